//! What the gates need of a kernel: a graph, tensors to fill and read, and two ways to run it. The gates know nothing of
//! object files, so their own tests run them on an interpreter that can be made wrong in every way of the catalogue.

use crate::device::{cpu::LoadedKernel, memory::Memory, threads::Threads};
use kernelforge::{
    plan::stage::{StageGraph, TensorId},
    protocol::Failure,
};

/// The tensors of a graph. Shapes and roles are the graph's.
pub trait Tensors {
    fn graph(&self) -> &StageGraph;
    fn tensor(&self, id: TensorId) -> &[f32];
    fn tensor_mut(&mut self, id: TensorId) -> &mut [f32];
}

/// Something that computes what a graph says, on tensors it holds.
pub trait Candidate: Tensors {
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
    /// Overwrites values, outputs and working memory; leaves inputs, weights and packed weights.
    fn poison(&mut self, value: f32);
}

/// A compiled kernel with memory to run in.
pub struct Compiled<'a> {
    kernel: &'a LoadedKernel,
    memory: Memory,
    threads: Threads,
    /// The block entry is for one thread; on more, a block is its stages.
    alone: Threads,
}

impl<'a> Compiled<'a> {
    /// # Errors
    /// `OutOfMemory`, or `Internal` when threads cannot be started.
    pub fn new(kernel: &'a LoadedKernel, threads: usize) -> Result<Self, Failure> {
        let memory = Memory::new(kernel.kernel(), threads)?;
        Ok(Self { kernel, memory, threads: Threads::new(threads)?, alone: Threads::new(1)? })
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
    fn prepare(&mut self) {
        // NaN shows padding that the prepare entry left unwritten and that a stage then reads.
        self.memory.packed.iter_mut().for_each(|it| it.fill(f32::NAN));
        self.kernel.prepare(&mut self.memory, &self.threads);
    }

    fn stage(&mut self, index: usize) {
        self.kernel.stage(index, &mut self.memory, &self.threads);
    }

    fn units(&self, index: usize) -> usize {
        self.kernel.kernel().stages[index].units
    }

    fn stage_units(&mut self, index: usize, begin: usize, end: usize) {
        self.kernel.stage_units(index, begin..end, &mut self.memory);
    }

    fn block(&mut self) {
        self.kernel.block(&mut self.memory, &self.alone);
    }

    fn poison(&mut self, value: f32) {
        self.memory.poison(value);
    }
}
