//! Decides whether a kernel is right: the gates of the verification protocol, run on the compiled code itself.
//!
//! [`gates`] run a [`candidate`] on [`inputs`]; [`reference`] says in f64 what a stage should have computed and, through
//! [`bounds`], how far it may be off; [`oracle`] says from the specification alone what a block means; [`projection`] and
//! [`columns`] cover rows that are too many to compute; [`tally`] compares. Tolerances are derived, never chosen, and nothing here reads the
//! generated code or repairs a result.

pub mod bounds;
pub mod candidate;
mod columns;
#[cfg(test)]
mod compiled_tests;
mod coverage;
mod functions;
mod gates;
pub mod inputs;
#[cfg(test)]
mod interpreter;
mod oracle;
mod projection;
mod reference;
#[cfg(test)]
mod samples;
mod tally;
#[cfg(test)]
mod tests;
pub mod weakness;

use crate::device::cpu::LoadedKernel;
use candidate::{Candidate, Compiled};
use kernelforge::{
    host::CpuFacts,
    manifest::spec::BlockSpec,
    plan::{Plan, kernel::Kernel},
    protocol::{Failure, GateResult, GateStatus, Verdict},
};

/// The version of the verdict blob.
pub const VERDICT_VERSION: u32 = 1;

/// A kernel to judge, and what it claims to be.
pub struct Request<'a> {
    pub object: &'a [u8],
    pub kernel: &'a Kernel,
    pub plan: &'a Plan,
    pub block: &'a BlockSpec,
    pub cpu: &'a CpuFacts,
    pub threads: usize,
    /// Drawn after the kernel was compiled, so that no kernel can know its inputs.
    pub seed: u64,
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
        let gates = weakness::filter(gates);
        Verdict {
            version: VERDICT_VERSION,
            accepted: !gates.is_empty() && gates.iter().all(|it| it.status == GateStatus::Passed),
            seed: request.seed,
            gates,
        }
    };
    let mut results = gates::legality::check(&request.kernel.graph, request.plan, request.cpu);
    if results.iter().any(|it| it.status != GateStatus::Passed) {
        return Ok(verdict(results));
    }
    let kernel = load()?;
    let mut candidate = Compiled::new(&kernel, request.threads)?;
    results.extend(examine(&mut candidate, request.block, request.seed));
    Ok(verdict(results))
}

/// The gates that need no plan, on anything that runs. In an order that fills tensors as seldom as possible; the results
/// are in the order of the gates.
fn examine(candidate: &mut dyn Candidate, block: &BlockSpec, seed: u64) -> Vec<GateResult> {
    inputs::fill(candidate, inputs::rope_theta(block), seed);
    candidate.prepare();
    let mut memory = gates::memory::check(candidate);
    memory.extend(gates::split::check(candidate));
    let mut results = gates::bound::check_received(candidate, seed);
    results.extend(gates::bound::check_regimes(candidate, seed));
    results.extend(memory);
    results.extend(gates::meaning::check(candidate, block, seed.wrapping_add(0x0dd5)));
    results.extend(gates::exactness::check(candidate, seed));
    results.sort_by_key(|it| it.gate);
    results
}
