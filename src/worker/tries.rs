//! One schedule of one operation, for a search: compiled, and put through the gates that cost little ([`quick`]).

use crate::{
    audit,
    codegen::{self, cpu, gpu},
    device::{
        cpu::LoadedKernel,
        gpu::{
            Gpu,
            program::{Checks, LoadedProgram},
        },
        guard::Edge,
    },
    verify::{candidate, gpu::candidate::OnGpu, place, quick},
};
use kernelforge::{
    host::{CpuFacts, Device, gpu::GpuFacts},
    plan::{Plan, stage::StageGraph},
    protocol::{Failure, FailureKind, Gate, GateResult},
    store::cas::Cas,
};
use std::{collections::BTreeMap, sync::Arc};

/// What is tried.
pub struct Request<'a> {
    /// One operation.
    pub graph: &'a StageGraph,
    pub plan: &'a Plan,
    /// Code to try in place of what the generator writes for the plan.
    pub given: Option<Vec<u8>>,
    /// Of the search: all schedules of an operation are run on the same tensors.
    pub seed: u64,
}

/// Compiles and runs a kernel for the CPU, between protected pages.
///
/// # Errors
/// As compiling; of a gate that did not pass, as [`audit::rejection`]; `Internal` when the graph is not one operation.
pub fn on_cpu(request: Request<'_>, cpu: &CpuFacts, threads: usize) -> Result<codegen::Compiled, Failure> {
    let Request { graph, plan, given, seed } = request;
    let compiled = match given {
        None => cpu::compile(graph, plan, cpu),
        Some(text) => cpu::compile_given(graph, plan, cpu, text),
    };
    let compiled = compiled.map_err(by_legality)?;
    let loaded = LoadedKernel::load(&compiled.object, compiled.kernel.clone())?;
    let mut candidate = candidate::Compiled::new(&loaded, threads, Some(Edge::End))?;
    judge(quick::examine(&mut candidate, seed)?, graph, plan, &cpu.clone().into())?;
    Ok(compiled)
}

/// As [`on_cpu`], of a program for a GPU, between guard bands and with shaders that check their indices.
///
/// # Errors
/// As [`on_cpu`], and what the device has against it.
pub fn on_gpu(
    request: Request<'_>,
    facts: &GpuFacts,
    own: &BTreeMap<String, String>,
    store: Option<&Cas>,
) -> Result<gpu::Compiled, Failure> {
    let Request { graph, plan, given, seed } = request;
    let compiled = match given {
        None => gpu::compile(graph, plan, facts, own),
        Some(text) => gpu::compile_given(graph, plan, facts, own, &text),
    };
    let compiled = compiled.map_err(by_legality)?;
    let gpu: Arc<Gpu> = Gpu::open(facts, store)?;
    let loaded = LoadedProgram::load(&gpu, compiled.program.clone(), &compiled.sources, Checks::On)?;
    let mut candidate = OnGpu::new(&loaded, true)?;
    let gates = quick::examine(&mut candidate, seed);
    // The device's own failure is why the gates saw nothing but NaN.
    candidate.failure().map_or(Ok(()), Err)?;
    judge(gates?, graph, plan, &Device::Gpu(facts.clone()))?;
    Ok(compiled)
}

/// A plan that is refused before it runs is refused by gate V0.
fn by_legality(failure: Failure) -> Failure {
    if failure.kind == FailureKind::IllegalPlan { failure.by_gate(Gate::V0Legality) } else { failure }
}

fn judge(mut gates: Vec<GateResult>, graph: &StageGraph, plan: &Plan, device: &Device) -> Result<(), Failure> {
    place::locate(&mut gates, graph, plan, device);
    audit::rejection(&gates).map_or(Ok(()), Err)
}

#[cfg(test)]
#[path = "tries_tests.rs"]
mod tests;
