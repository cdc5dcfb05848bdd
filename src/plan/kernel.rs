//! How a compiled kernel is called: `kernel.json`, written by code generation beside the object file and read by everything
//! that runs it.
//!
//! Every entry has the C signature `void entry(void *const *args, int64_t begin, int64_t end)`. `args` points to the
//! buffers listed in the entry's `args`, in order, each 64-byte aligned. A stage's work is cut into `units` independent
//! units; one call does the units `begin..end`, so any split over threads computes the same bits. A call on another thread
//! needs a workspace of its own.

use super::{
    schedule::Dot,
    stage::{StageGraph, TensorId},
};
use serde::{Deserialize, Serialize};

pub const KERNEL_VERSION: u32 = 2;

/// One pointer of an entry's argument table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arg {
    Tensor(TensorId),
    /// Index into [`Kernel::packed`].
    Packed(usize),
    /// Working memory of one thread: [`Entry::workspace`] bytes; contents undefined before and after.
    Workspace,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Entry {
    /// The symbol in the object file.
    pub symbol: String,
    pub args: Vec<Arg>,
    pub units: usize,
    /// Bytes of the workspace; 0 when no argument is one.
    pub workspace: usize,
}

/// A weight in the layout its stages want, filled by a prepare entry from the tensor given by the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Packed {
    pub weight: TensorId,
    pub bytes: usize,
    /// Arguments: the weight, the packed buffer.
    pub prepare: Entry,
}

/// Where an intermediate value lives inside the block entry's workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Placement {
    pub tensor: TensorId,
    /// Bytes from the workspace's start; a multiple of 64.
    pub offset: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Kernel {
    pub version: u32,
    pub graph: StageGraph,
    /// What its products are computed with; where stages differ, the least accurate.
    pub dot: Dot,
    pub packed: Vec<Packed>,
    /// One for each stage of `graph`, in order. Arguments: the stage's inputs (a packed weight in place of its tensor),
    /// its output, then the workspace if it has one.
    pub stages: Vec<Entry>,
    /// The whole block on one thread: inputs and outputs of the graph, weights (packed where packed), the workspace.
    pub block: Entry,
    /// Values with disjoint lifetimes share memory.
    pub placements: Vec<Placement>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The benchmark beside other engines is no part of the build, so nothing else would tell that it reads another version.
    #[test]
    fn the_benchmark_beside_peers_reads_this_version() {
        let reader = include_str!("../../benches/peers/rust/src/description.rs");
        assert!(reader.contains(&format!("const VERSION: u32 = {KERNEL_VERSION};")));
    }
}
