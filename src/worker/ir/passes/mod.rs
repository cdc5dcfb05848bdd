//! The passes over the `transformer` dialect: rewrite patterns, one file for each pass. A pattern looks at one op and either
//! rewrites or leaves it; the [`driver`] applies a pass's patterns until none matches and counts what they did.
//!
//! A pass never changes what the block computes, only how much of it is one op, and which ops ask for a searched schedule.
//! Passes that fuse do not clean up: what they leave without a reader is still generated and run until `eliminate-dead-ops`
//! erases it.

mod driver;
mod eliminate_dead_ops;
mod fold_constants;
mod fuse_matmul_activation;
mod fuse_mlp_block;
#[cfg(test)]
mod meaning;
mod tile_matmul;
mod vectorize_layernorm;

use driver::Pattern;
use kernelforge::{
    manifest::spec::Pass,
    protocol::{Failure, PassReport},
};
use melior::{Context, ir::Module};

use super::dialect::Op;

/// Runs one pass over a module that both verifiers have passed.
pub fn run(context: &Context, module: &Module<'_>, pass: Pass) -> Result<PassReport, Failure> {
    let patterns: Vec<(Op, Pattern)> = match pass {
        Pass::FoldConstants => fold_constants::patterns(),
        Pass::FuseMatmulActivation => fuse_matmul_activation::patterns(),
        Pass::FuseMlpBlock => fuse_mlp_block::patterns(),
        Pass::EliminateDeadOps => eliminate_dead_ops::patterns(),
        Pass::TileMatmul => tile_matmul::patterns(),
        Pass::VectorizeLayernorm => vectorize_layernorm::patterns(),
    };
    let counts = driver::apply(context, module, pass.name(), &patterns)?;
    Ok(PassReport { pass, created: counts.created, changed: counts.changed, erased: counts.erased })
}
