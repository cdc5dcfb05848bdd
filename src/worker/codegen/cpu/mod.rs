//! Stages + schedules -> one MLIR module -> one object file for the host CPU.
//!
//! Entry points: [`compile`] (all of it), [`module::generate`] (the MLIR text and the kernel's description), [`lower`] (text to
//! object). Each kind of stage has a file; all matrix products share [`micro`].

mod attention;
#[cfg(test)]
mod costs_tests;
mod elementwise;
mod emit;
#[cfg(test)]
mod foreign_tests;
mod given;
#[cfg(test)]
mod half_tests;
mod lower;
mod math;
mod matmul;
mod memory;
mod micro;
mod mlp;
mod module;
mod norm;
mod pack;
#[cfg(test)]
mod tests;

pub use given::compile_given;
pub use lower::{initialize_target, object as assemble};
pub use module::generate;

use super::Compiled;
use kernelforge::{
    host::CpuFacts,
    plan::{Plan, stage::StageGraph},
    protocol::Failure,
};

/// Generates, lowers and assembles the kernel of `graph` under `plan` for the CPU this process runs on.
///
/// # Errors
/// `IllegalPlan` when a schedule breaks a constraint or a stage has none; `Codegen` when MLIR or LLVM refuse the module.
pub fn compile(graph: &StageGraph, plan: &Plan, cpu: &CpuFacts) -> Result<Compiled, Failure> {
    let (lowered, kernel) = module::generate(graph, plan, cpu)?;
    let object = lower::object(&lowered)?;
    Ok(Compiled { object, kernel, lowered })
}
