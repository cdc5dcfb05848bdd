//! Judges a program on a GPU: the same gates, on [`OnGpu`] as the candidate.
//!
//! Guard bands stand in for guard pages. The gates run shaders that check their indices; at the end everything runs once more
//! without checks and in other buffers, and must return the same bits, because that is what is measured and used.

pub mod candidate;
#[cfg(test)]
mod tests;

use super::{Maker, VERDICT_VERSION, candidate::Candidate, examine, gates, inputs, place, weakness};
use crate::{
    codegen::gpu,
    device::gpu::{
        Gpu,
        program::{Checks, LoadedProgram},
    },
};
use candidate::OnGpu;
use kernelforge::{
    host::{Device, gpu::GpuFacts},
    manifest::spec::BlockSpec,
    plan::{Plan, program::Program, stage::StageGraph},
    protocol::{Failure, Gate, GateResult, GateStatus, Verdict, corpus::Case},
    store::cas::Cas,
};
use std::{collections::BTreeMap, sync::Arc};

/// A program to judge, and what it claims to be.
pub struct Request<'a> {
    pub program: &'a Program,
    /// The WGSL of its shaders.
    pub sources: &'a [String],
    pub plan: &'a Plan,
    pub block: &'a BlockSpec,
    pub facts: &'a GpuFacts,
    /// Drawn after the shaders were rendered.
    pub seed: u64,
    /// Replayed first.
    pub corpus: &'a [Case],
    /// The project's own templates, from which the plan is generated at other shapes; `None` where the code is not what is
    /// generated of the plan.
    pub templates: Option<&'a BTreeMap<String, String>>,
    /// Where compiled pipelines are kept.
    pub store: Option<&'a Cas>,
}

/// Runs every gate. A wrong program is a verdict that does not accept it.
///
/// # Errors
/// When it cannot be run at all: `DeviceUnavailable`, `Codegen` for shaders that do not compile, `OutOfMemory`, `Crash` for a
/// device that is lost, `Timeout`.
pub fn verify(request: &Request) -> Result<Verdict, Failure> {
    let Request { program, plan, seed, .. } = *request;
    let device = Device::Gpu(request.facts.clone());
    let verdict = |gates: Vec<GateResult>| {
        let mut gates = weakness::filter(gates);
        place::locate(&mut gates, &program.graph, plan, &device);
        let accepted = !gates.is_empty() && gates.iter().all(|it| it.status == GateStatus::Passed);
        Verdict { version: VERDICT_VERSION, accepted, seed, gates }
    };
    let mut results = gates::legality::check(&program.graph, plan, &device);
    if results.iter().any(|it| it.status != GateStatus::Passed) {
        return Ok(verdict(results));
    }
    let gpu = Gpu::open(request.facts, request.store)?;
    results.extend(examine_program(&gpu, request)?);
    if let Some(own) = request.templates {
        let maker = Generator { device: &device, gpu: &gpu, own };
        results.extend(gates::shapes::check(&program.graph, plan, &maker, seed)?);
    }
    results.sort_by_key(|it| it.gate);
    Ok(verdict(results))
}

/// The gates that run the program itself.
fn examine_program(gpu: &Arc<Gpu>, request: &Request) -> Result<Vec<GateResult>, Failure> {
    let Request { program, sources, block, seed, corpus, .. } = *request;
    let (mut results, outputs) = {
        let loaded = LoadedProgram::load(gpu, program.clone(), sources, Checks::On)?;
        let mut candidate = OnGpu::new(&loaded, true)?;
        let mut results = gates::regression::replay(&mut candidate, block, corpus);
        let (examined, outputs) = examine(&mut candidate, block, seed);
        results.extend(examined);
        fail(&mut candidate)?;
        (results, outputs)
    };
    // What is wrong already may index anywhere, and nothing would stop it without checks.
    if results.iter().any(|it| it.status != GateStatus::Passed) {
        return Ok(results);
    }
    let loaded = LoadedProgram::load(gpu, program.clone(), sources, Checks::Off)?;
    let mut candidate = OnGpu::new(&loaded, false)?;
    inputs::fill(&mut candidate, inputs::rope_theta(block), seed);
    // The last one is the comparison of the outputs; without bands there is nothing else to say.
    let agreed = gates::guard::check_begin(&mut candidate, &outputs).pop();
    results.extend(agreed.map(|it| GateResult {
        gate: Gate::V4Memory,
        case: "shaders without checks, in other buffers".to_owned(),
        ..it
    }));
    fail(&mut candidate)?;
    Ok(results)
}

fn fail(candidate: &mut OnGpu) -> Result<(), Failure> {
    candidate.failure().map_or(Ok(()), Err)
}

/// The generator for this GPU.
struct Generator<'a> {
    device: &'a Device,
    gpu: &'a Arc<Gpu>,
    own: &'a BTreeMap<String, String>,
}

impl Maker for Generator<'_> {
    fn device(&self) -> &Device {
        self.device
    }

    fn make(&self, graph: &StageGraph, plan: &Plan, act: &mut dyn FnMut(&mut dyn Candidate)) -> Result<(), Failure> {
        let compiled = gpu::compile(graph, plan, &self.gpu.facts, self.own)?;
        let loaded = LoadedProgram::load(self.gpu, compiled.program, &compiled.sources, Checks::On)?;
        let mut candidate = OnGpu::new(&loaded, true)?;
        act(&mut candidate);
        fail(&mut candidate)
    }
}
