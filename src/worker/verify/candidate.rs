//! What the gates need of a kernel: a graph, tensors to fill and read, and two ways to run it. The gates know nothing of
//! object files, so their own tests run them on an interpreter that can be made wrong in every way of the catalogue.

use super::bounds::{Arithmetic, Precision};
use crate::device::{
    self,
    cpu::LoadedKernel,
    guard::{Edge, Escape, announced},
    memory::Memory,
    threads::Threads,
};
use kernelforge::{
    plan::{
        kernel::{Arg, Kernel},
        schedule::Dot,
        stage::{Stage, StageGraph, TensorId},
    },
    protocol::Failure,
};
use std::ffi::CString;

/// The tensors of a graph. Shapes, roles and types are the graph's; values are f32 whatever the type is.
pub trait Tensors {
    fn graph(&self) -> &StageGraph;
    /// Exactly the values that are stored; what was written since the last run may not be rounded yet.
    fn tensor(&self, id: TensorId) -> &[f32];
    /// What is written here is rounded to the tensor's type before anything runs.
    fn tensor_mut(&mut self, id: TensorId) -> &mut [f32];
}

/// Something that computes what a graph says, on tensors it holds.
pub trait Candidate: Tensors {
    /// The operations that it computes with. No default: a bound for other operations than the candidate's says nothing.
    fn arithmetic(&self) -> Arithmetic;
    /// Must be called after weights changed and before anything runs.
    fn prepare(&mut self);
    /// Computes one stage's output from its inputs.
    fn stage(&mut self, index: usize);
    /// Independent units that a stage's work is cut into.
    fn units(&self, _index: usize) -> usize {
        1
    }
    /// Computes the units `begin..end` of one stage, as one thread of several does.
    fn stage_units(&mut self, index: usize, _begin: usize, _end: usize) {
        self.stage(index);
    }
    /// Computes the graph's outputs from its inputs; values in between are not visible.
    fn block(&mut self);
    /// Running the block is running its stages one after another.
    fn blocks_are_stages(&self) -> bool {
        false
    }
    /// Whether attention with a causal mask keeps tokens that a row does not see out of it even where they are not finite.
    fn leaves_later_tokens_out(&self) -> bool {
        true
    }
    /// Overwrites values, outputs and working memory; leaves inputs, weights and packed weights. Where a type cannot hold a finite
    /// value, one that it can hold takes its place.
    fn poison(&mut self, value: f32);
    /// How it left its buffers since this was asked last, for those who can tell.
    fn escapes(&mut self) -> Vec<Left> {
        Vec::new()
    }
}

/// What a stage is computed with and stored as.
pub fn precision(candidate: &dyn Candidate, stage: &Stage) -> Precision {
    Precision { arithmetic: candidate.arithmetic(), storage: candidate.graph().tensor(stage.output).dtype }
}

/// A buffer that was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    pub call: Call,
    /// In words: the tensor's name, `packed` and the weight's, or the workspace.
    pub buffer: String,
    pub escape: Escape,
}

/// Which entry ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    Prepare,
    Stage(usize),
    Block,
}

/// A compiled kernel with memory to run in.
pub struct Compiled<'a> {
    kernel: &'a LoadedKernel,
    memory: Memory,
    threads: Threads,
    /// The block entry is for one thread; on more, a block is its stages.
    alone: Threads,
    left: Vec<Left>,
    /// What is said if a call ends the process: of packing, of each stage, of the block.
    names: Vec<CString>,
}

impl<'a> Compiled<'a> {
    /// `edge`: where its buffers touch protected pages, if they are to.
    ///
    /// # Errors
    /// `OutOfMemory`, or `Internal` when threads cannot be started.
    pub fn new(kernel: &'a LoadedKernel, threads: usize, edge: Option<Edge>) -> Result<Self, Failure> {
        let memory = Memory::new(kernel.kernel(), threads, edge)?;
        let stages = kernel.kernel().graph.stages.iter().map(|it| format!("stage `{}`", it.name));
        let names = ["packing".to_owned(), "the block".to_owned()].into_iter().chain(stages);
        // No name has a NUL: they are identifiers.
        let names = names.map(|it| CString::new(it).unwrap_or_default()).collect();
        let (threads, alone) = (device::started(threads)?, device::started(1)?);
        Ok(Self { kernel, memory, threads, alone, left: Vec::new(), names })
    }

    /// Stores what was written to tensors, as a call does first: of 16 bits it is rounded.
    pub fn settle(&mut self) {
        self.memory.settle();
    }

    /// Asked after every call, so that the call is known.
    fn note(&mut self, call: Call) {
        for (buffer, escape) in self.memory.escapes() {
            let Kernel { graph, packed, .. } = self.kernel.kernel();
            let buffer = match buffer {
                Arg::Tensor(id) => format!("`{}`", graph.tensor(id).name),
                Arg::Packed(index) => format!("packed `{}`", graph.tensor(packed[index].weight).name),
                Arg::Workspace => "the workspace".to_owned(),
            };
            let left = Left { call, buffer, escape };
            if !self.left.contains(&left) {
                self.left.push(left);
            }
        }
    }
}

impl Tensors for Compiled<'_> {
    fn graph(&self) -> &StageGraph {
        &self.kernel.kernel().graph
    }

    fn tensor(&self, id: TensorId) -> &[f32] {
        self.memory.tensor(id)
    }

    fn tensor_mut(&mut self, id: TensorId) -> &mut [f32] {
        self.memory.tensor_mut(id)
    }
}

impl Candidate for Compiled<'_> {
    fn arithmetic(&self) -> Arithmetic {
        match self.kernel.kernel().dot {
            Dot::Fma => Arithmetic::cpu(),
            Dot::Pairs => Arithmetic::cpu_pairs(),
        }
    }

    /// A tile's rows are multiplied up to the last key that its last row sees, with weights of 0.
    fn leaves_later_tokens_out(&self) -> bool {
        false
    }

    fn prepare(&mut self) {
        // NaN shows padding that the prepare entry left unwritten and that a stage then reads.
        self.memory.poison_packed(f32::NAN);
        announced(&self.names[0], || self.kernel.prepare(&mut self.memory, &self.threads));
        self.note(Call::Prepare);
    }

    fn stage(&mut self, index: usize) {
        announced(&self.names[2 + index], || self.kernel.stage(index, &mut self.memory, &self.threads));
        self.note(Call::Stage(index));
    }

    fn units(&self, index: usize) -> usize {
        self.kernel.kernel().stages[index].units
    }

    fn stage_units(&mut self, index: usize, begin: usize, end: usize) {
        announced(&self.names[2 + index], || self.kernel.stage_units(index, begin..end, &mut self.memory));
        self.note(Call::Stage(index));
    }

    fn block(&mut self) {
        announced(&self.names[1], || self.kernel.block(&mut self.memory, &self.alone));
        self.note(Call::Block);
    }

    fn blocks_are_stages(&self) -> bool {
        // The block entry is for one thread.
        self.threads.count() > 1
    }

    fn poison(&mut self, value: f32) {
        self.memory.poison(value);
    }

    fn escapes(&mut self) -> Vec<Left> {
        std::mem::take(&mut self.left)
    }
}
