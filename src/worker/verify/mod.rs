//! Decides whether a kernel is right: the gates of the verification protocol, run on the compiled code itself.
//!
//! [`gates`] run a [`candidate`] on [`inputs`]; [`reference`] says in f64 what a stage should have computed and, through
//! [`bounds`], how far it may be off; [`oracle`] says from the specification alone what a block means; [`projection`] and
//! [`columns`] cover rows that are too many to compute; [`tally`] compares. [`quick`] is the
//! few gates that a search can afford for each of its schedules. Tolerances are derived, never chosen, and nothing here reads the
//! generated code or repairs a result.

pub mod bounds;
pub mod candidate;
mod columns;
#[cfg(test)]
mod compiled_tests;
pub mod coverage;
pub mod drawn;
mod emulation;
mod functions;
mod gates;
pub mod gpu;
pub mod inputs;
#[cfg(test)]
mod interpreter;
mod oracle;
#[cfg(test)]
mod pairs_tests;
pub mod place;
#[cfg(test)]
mod precise;
#[cfg(test)]
mod precise_tests;
mod projection;
pub mod quick;
pub mod reference;
#[cfg(test)]
pub mod samples;
#[cfg(test)]
mod schedules_tests;
mod tally;
#[cfg(test)]
mod tests;
pub mod weakness;

pub use gates::{gaming, guard::outputs};

use crate::{
    codegen::{self, Compiled},
    device::{cpu::LoadedKernel, guard::Edge},
};
use candidate::Candidate;
use inputs::Regime;
use kernelforge::{
    host::Device,
    manifest::spec::BlockSpec,
    plan::{Plan, kernel::Kernel, stage::StageGraph},
    protocol::{Failure, FailureKind, GateResult, GateStatus, Verdict, corpus::Case},
};
use std::{panic, thread};

/// The version of the verdict blob.
pub const VERDICT_VERSION: u32 = 1;

/// A kernel to judge, and what it claims to be.
pub struct Request<'a> {
    pub object: &'a [u8],
    pub kernel: &'a Kernel,
    pub plan: &'a Plan,
    pub block: &'a BlockSpec,
    pub device: &'a Device,
    pub threads: usize,
    /// Drawn after the kernel was compiled, so that no kernel can know its inputs.
    pub seed: u64,
    /// Replayed first.
    pub corpus: &'a [Case],
    /// Whether the code is what is generated of the plan; only then does judging the plan at other shapes (V5) say anything about
    /// it.
    pub generated: bool,
}

/// Runs every gate. A wrong kernel is a verdict that does not accept it.
///
/// # Errors
/// Only when the kernel cannot be run at all: `Codegen` for an object that does not load, `OutOfMemory`, `Internal`.
pub fn verify(request: &Request) -> Result<Verdict, Failure> {
    verify_loaded(request, || LoadedKernel::load(request.object, request.kernel.clone()))
}

/// [`verify`] of code that is brought into the process in another way than by its object file alone.
pub fn verify_loaded(
    request: &Request,
    load: impl FnOnce() -> Result<LoadedKernel, Failure>,
) -> Result<Verdict, Failure> {
    let verdict = |gates: Vec<GateResult>| {
        let mut gates = weakness::filter(gates);
        place::locate(&mut gates, &request.kernel.graph, request.plan, request.device);
        Verdict {
            version: VERDICT_VERSION,
            accepted: !gates.is_empty() && gates.iter().all(|it| it.status == GateStatus::Passed),
            seed: request.seed,
            gates,
        }
    };
    let mut results = gates::legality::check(&request.kernel.graph, request.plan, request.device);
    if results.iter().any(|it| it.status != GateStatus::Passed) {
        return Ok(verdict(results));
    }
    let kernel = load()?;
    // Compiling the plan for other shapes takes as long as a third of the other gates, and needs none of their tensors.
    let (examined, shapes) = thread::scope(|scope| {
        let shapes = request.generated.then(|| {
            scope.spawn(|| {
                let maker = Cpu { device: request.device };
                gates::shapes::check(&request.kernel.graph, request.plan, &maker, request.seed)
            })
        });
        let examined = examine_loaded(&kernel, request);
        (examined, shapes.map(thread::ScopedJoinHandle::join))
    });
    results.extend(examined?);
    match shapes {
        Some(Ok(shapes)) => results.extend(shapes?),
        Some(Err(panic)) => panic::resume_unwind(panic),
        None => {}
    }
    results.sort_by_key(|it| it.gate);
    Ok(verdict(results))
}

/// What the gate of legality has against a plan for a GPU, if anything.
pub fn illegal(graph: &StageGraph, plan: &Plan, gpu: &kernelforge::host::gpu::GpuFacts) -> Option<String> {
    let results = gates::legality::check(graph, plan, &Device::Gpu(gpu.clone()));
    results.into_iter().find(|it| it.status != GateStatus::Passed).map(|it| it.message)
}

/// Has code for other shapes written and hands it over to be run.
pub trait Maker {
    fn device(&self) -> &Device;

    /// Calls `act` with the code of this graph under this plan.
    ///
    /// # Errors
    /// `IllegalPlan`, `Codegen` when the plan cannot be generated for the graph; `OutOfMemory`, `Internal`, `Crash`.
    fn make(&self, graph: &StageGraph, plan: &Plan, act: &mut dyn FnMut(&mut dyn Candidate)) -> Result<(), Failure>;
}

/// The generator for the CPU.
struct Cpu<'a> {
    device: &'a Device,
}

impl Cpu<'_> {
    /// Calls `act` with the code, between protected pages.
    fn run(compiled: Compiled, act: &mut dyn FnMut(&mut dyn Candidate)) -> Result<(), Failure> {
        let loaded = LoadedKernel::load(&compiled.object, compiled.kernel)?;
        act(&mut candidate::Compiled::new(&loaded, 1, Some(Edge::End))?);
        Ok(())
    }
}

impl Maker for Cpu<'_> {
    fn device(&self) -> &Device {
        self.device
    }

    fn make(&self, graph: &StageGraph, plan: &Plan, act: &mut dyn FnMut(&mut dyn Candidate)) -> Result<(), Failure> {
        let Device::Cpu(cpu) = self.device else {
            return Err(Failure::new(FailureKind::Internal, "the code of a GPU is not made for a CPU"));
        };
        Self::run(codegen::cpu::compile(graph, plan, cpu)?, act)
    }
}

/// The gates that run the kernel itself: between protected pages, which lie after the buffers, then once more before them.
fn examine_loaded(kernel: &LoadedKernel, request: &Request) -> Result<Vec<GateResult>, Failure> {
    let Request { block, threads, seed, .. } = *request;
    let (mut results, outputs) = {
        let mut candidate = candidate::Compiled::new(kernel, threads, Some(Edge::End))?;
        let mut results = gates::regression::replay(&mut candidate, block, request.corpus);
        let (examined, outputs) = examine(&mut candidate, block, seed);
        results.extend(examined);
        (results, outputs)
    };
    let mut candidate = candidate::Compiled::new(kernel, threads, Some(Edge::Begin))?;
    inputs::fill(&mut candidate, inputs::rope_theta(block), seed);
    results.extend(gates::guard::check_begin(&mut candidate, &outputs));
    Ok(results)
}

/// The gates that need no plan, on anything that runs, in an order that fills tensors as seldom as possible; and what the
/// block returned for the tensors of this seed.
pub fn examine(candidate: &mut dyn Candidate, block: &BlockSpec, seed: u64) -> (Vec<GateResult>, Vec<Vec<f32>>) {
    let seed = weakness::seed(seed);
    inputs::fill(candidate, inputs::rope_theta(block), seed);
    candidate.prepare();
    let mut results = gates::memory::check(candidate);
    results.extend(gates::split::check(candidate));
    let outputs = gates::guard::outputs(candidate).iter().map(|&id| candidate.tensor(id).to_vec()).collect();
    results.extend(check_received(candidate, seed));
    results.extend(check_regimes(candidate, seed));
    results.extend(gates::relations::check(candidate, seed));
    results.extend(gates::meaning::check(candidate, block, seed.wrapping_add(0x0dd5)));
    results.extend(gates::exactness::check(candidate, seed));
    results.extend(gates::guard::check_end(candidate));
    (results, outputs)
}

/// Judges what the last run of all stages left, by the bound and beside plain code.
fn check_received(candidate: &mut dyn Candidate, seed: u64) -> Vec<GateResult> {
    let stages = candidate.graph().stages.clone();
    let (mut results, mut errors) = (Vec::new(), Vec::new());
    for stage in &stages {
        let (judged, rows, reference) = gates::bound::check(candidate, stage, Regime::Normal, coverage::FULL, seed);
        results.extend(judged);
        let mut of_stage = gates::ratio::Errors::default();
        of_stage.add(candidate, stage, &rows, &reference);
        errors.push(of_stage);
    }
    // Only now may stages be given other tensors.
    for (index, errors) in errors.into_iter().enumerate() {
        results.extend(errors.finish(candidate, index, Regime::Normal, seed));
    }
    results
}

/// Runs every stage alone on each regime. Weights stay as they are; values and inputs are overwritten.
fn check_regimes(candidate: &mut dyn Candidate, seed: u64) -> Vec<GateResult> {
    let mut results = Vec::new();
    for regime in Regime::SYNTHETIC {
        for index in 0..candidate.graph().stages.len() {
            results.extend(check_regime(candidate, index, regime, seed));
        }
    }
    results
}

/// One stage on one regime of a verification of this seed.
fn check_regime(candidate: &mut dyn Candidate, index: usize, regime: Regime, seed: u64) -> Vec<GateResult> {
    let stage = candidate.graph().stages[index].clone();
    if !regime.applies(&stage.op, candidate::precision(candidate, &stage)) {
        return Vec::new();
    }
    let seed = regime.seed(seed);
    inputs::fill_stage(candidate, &stage, regime, seed);
    candidate.stage(index);
    let (mut results, rows, reference) = gates::bound::check(candidate, &stage, regime, coverage::LIGHT, seed);
    let mut errors = gates::ratio::Errors::default();
    errors.add(candidate, &stage, &rows, &reference);
    results.extend(errors.finish(candidate, index, regime, seed));
    results
}
