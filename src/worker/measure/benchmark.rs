//! Times a compiled kernel: the block and each stage.

use super::{ceilings::Meter, sampling};
use crate::{
    device::{cpu::LoadedKernel, memory::Memory, threads::Threads},
    verify::{candidate::Tensors, inputs},
};
use kernelforge::{
    host::CpuFacts,
    plan::{
        kernel::Kernel,
        stage::{Role, StageGraph, TensorId},
    },
    protocol::{Benchmark, Failure, StageBenchmark},
};
use std::time::Duration;

/// The version of the benchmark blob.
pub const BENCHMARK_VERSION: u32 = 1;

/// Tables of any base cost the same.
const ROPE_THETA: f64 = 10_000.0;

/// Any numbers of the usual size: no stage's time depends on them, as long as none is subnormal or NaN.
const SEED: u64 = 1;

struct Filled<'a> {
    graph: &'a StageGraph,
    memory: &'a mut Memory,
}

impl Tensors for Filled<'_> {
    fn graph(&self) -> &StageGraph {
        self.graph
    }

    fn tensor(&self, id: TensorId) -> &[f32] {
        self.memory.tensor(id)
    }

    fn tensor_mut(&mut self, id: TensorId) -> &mut [f32] {
        self.memory.tensor_mut(id)
    }
}

/// A loaded kernel with filled and packed tensors, every value computed once.
pub struct Runnable {
    pub kernel: LoadedKernel,
    pub memory: Memory,
    pub threads: Threads,
}

impl Runnable {
    /// # Errors
    /// As loading, allocating and starting threads fail.
    pub fn new(object: &[u8], kernel: &Kernel, threads: usize) -> Result<Self, Failure> {
        let kernel = LoadedKernel::load(object, kernel.clone())?;
        let mut memory = Memory::new(kernel.kernel(), threads)?;
        let threads = Threads::new(threads)?;
        inputs::fill(&mut Filled { graph: &kernel.kernel().graph, memory: &mut memory }, ROPE_THETA, SEED);
        kernel.prepare(&mut memory, &threads);
        (0..kernel.kernel().graph.stages.len()).for_each(|it| kernel.stage(it, &mut memory, &threads));
        Ok(Self { kernel, memory, threads })
    }
}

/// Measures the block, every stage and the machine's ceilings for about `time_ms`, in interleaved rounds.
///
/// # Errors
/// As [`Runnable::new`].
pub fn benchmark(
    object: &[u8],
    kernel: &Kernel,
    cpu: &CpuFacts,
    threads: usize,
    time_ms: u64,
) -> Result<Benchmark, Failure> {
    let mut meter = Meter::new(cpu)?;
    let Runnable { kernel, mut memory, threads } = Runnable::new(object, kernel, threads)?;
    let graph = &kernel.kernel().graph;
    let stages = graph.stages.len();
    let timings = sampling::interleaved(stages + 3, Duration::from_millis(time_ms), |task| match task {
        it if it == stages => kernel.block(&mut memory, &threads),
        it if it == stages + 1 => meter.compute(&threads),
        it if it == stages + 2 => meter.read(&threads),
        stage => kernel.stage(stage, &mut memory, &threads),
    })?;
    let ceilings = meter.ceilings(&threads, &timings[stages + 1], &timings[stages + 2]);
    let bytes = graph.tensors.iter().filter(|it| it.role != Role::Value).map(|it| it.bytes() as u64).sum();
    let whole = ("block".to_owned(), "block".to_owned(), graph.flops(), bytes);
    let names =
        graph.stages.iter().map(|it| (it.name.clone(), it.op.name().to_owned(), it.op.flops(), graph.bytes(it)));
    let mut results: Vec<StageBenchmark> = names
        .chain([whole])
        .zip(timings)
        .map(|((name, op, flops, bytes), timing)| StageBenchmark { name, op, timing, flops, bytes })
        .collect();
    let block = results
        .pop()
        .ok_or_else(|| Failure::new(kernelforge::protocol::FailureKind::Internal, "the block was not measured"))?;
    Ok(Benchmark { version: BENCHMARK_VERSION, threads: threads.count(), ceilings, block, stages: results })
}
