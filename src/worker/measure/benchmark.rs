//! Times a compiled kernel: the block and each stage.

use super::{
    ceilings::Meter,
    sampling::{self, Tasks},
    tamper::{self, Tamper},
};
use crate::{
    device::{self, cpu::LoadedKernel, memory::Memory, threads::Threads},
    verify::{candidate::Tensors, gaming, inputs},
};
use kernelforge::{
    host::CpuFacts,
    plan::{
        kernel::Kernel,
        stage::{Role, StageGraph, Tensor, TensorId},
    },
    protocol::{Benchmark, Clock, Failure, FailureKind, GateResult, StageBenchmark},
};
use std::{sync::Arc, time::Duration};

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
    pub threads: Arc<Threads>,
}

/// A value of every tensor of some kind.
pub type Values = Vec<(TensorId, Vec<f32>)>;

/// Two draws of every input, which timed runs are given in turn: a run that computes nothing leaves the result of the one before.
pub fn draws(graph: &StageGraph) -> [Values; 2] {
    let draw = |lane: u64| {
        let values = |(id, tensor): (TensorId, &Tensor)| {
            let mut source = inputs::Source::new(SEED + lane, id.0 as u64);
            (id, (0..tensor.len()).map(|_| source.normal()).collect())
        };
        graph.with_role(Role::Input).map(values).collect()
    };
    [draw(0x7a), draw(0x7b)]
}

/// Operations of the whole graph, and the bytes that must move at least: inputs and weights read once, outputs written once.
pub fn work(graph: &StageGraph) -> (u64, u64) {
    let bytes = graph.tensors.iter().filter(|it| it.role != Role::Value).map(|it| it.bytes() as u64).sum();
    (graph.flops(), bytes)
}

impl Runnable {
    /// # Errors
    /// As loading, allocating and starting threads fail.
    pub fn new(object: &[u8], kernel: &Kernel, threads: usize) -> Result<Self, Failure> {
        let threads = Arc::new(device::started(threads)?);
        Self::filled(object, kernel, threads, |graph, memory| {
            inputs::fill(&mut Filled { graph, memory }, ROPE_THETA, SEED);
        })
    }

    /// Another kernel that is given tensors of the same ids, shapes and types, with the same tensors and threads.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn beside(&self, object: &[u8], kernel: &Kernel) -> Result<Self, Failure> {
        Self::filled(object, kernel, Arc::clone(&self.threads), |graph, memory| {
            for (id, _) in graph.with_role(Role::Input).chain(graph.with_role(Role::Weight)) {
                memory.tensor_mut(id).copy_from_slice(self.memory.tensor(id));
            }
        })
    }

    fn filled(
        object: &[u8],
        kernel: &Kernel,
        threads: Arc<Threads>,
        fill: impl FnOnce(&StageGraph, &mut Memory),
    ) -> Result<Self, Failure> {
        let kernel = LoadedKernel::load(object, kernel.clone())?;
        let mut memory = Memory::new(kernel.kernel(), threads.count(), None)?;
        fill(&kernel.kernel().graph, &mut memory);
        kernel.prepare(&mut memory, &threads);
        let mut it = Self { kernel, memory, threads };
        it.stages();
        Ok(it)
    }

    /// Computes every stage from what its memory holds.
    pub fn stages(&mut self) {
        let Self { kernel, memory, threads } = self;
        (0..kernel.kernel().graph.stages.len()).for_each(|it| kernel.stage(it, memory, threads));
    }

    /// Overwrites inputs, so that no run converts tensors.
    pub fn give(&mut self, values: &Values) {
        values.iter().for_each(|(id, values)| self.memory.tensor_mut(*id).copy_from_slice(values));
        self.memory.settle();
    }
}

/// The block is measured first in each round, then its stages, then the ceilings.
const BLOCK: usize = 0;

/// What is timed, with what its runs must return. The inputs change from round to round, in place, and so does every stage's
/// result; a run that computes nothing leaves the result of the round before.
struct Timed<'a> {
    runnable: &'a mut Runnable,
    meter: &'a mut Meter,
    /// Two draws of every input.
    inputs: [Values; 2],
    /// Every stage's output for each draw.
    expected: [Vec<Vec<f32>>; 2],
    draw: usize,
    /// Of the block, then of each stage.
    results: Vec<gaming::Timed>,
    runs: usize,
}

impl<'a> Timed<'a> {
    fn new(runnable: &'a mut Runnable, meter: &'a mut Meter) -> Self {
        let graph = runnable.kernel.kernel().graph.clone();
        let inputs = draws(&graph);
        let results = (0..=graph.stages.len()).map(|_| gaming::Timed::default()).collect();
        let mut timed = Self { runnable, meter, inputs, expected: [Vec::new(), Vec::new()], draw: 0, results, runs: 0 };
        for draw in [0, 1] {
            timed.begin_round(draw);
            timed.runnable.stages();
            let memory = &timed.runnable.memory;
            timed.expected[draw] = graph.stages.iter().map(|it| memory.tensor(it.output).to_vec()).collect();
        }
        timed
    }

    fn stages(&self) -> usize {
        self.runnable.kernel.kernel().graph.stages.len()
    }
}

impl Tasks for Timed<'_> {
    fn begin_round(&mut self, round: usize) {
        self.draw = round % 2;
        self.runnable.give(&self.inputs[self.draw]);
    }

    fn run(&mut self, task: usize) {
        let stages = self.stages();
        let Runnable { kernel, memory, threads } = &mut *self.runnable;
        self.runs += 1;
        match (task, tamper::current()) {
            (it, Some(Tamper::FirstResultKept)) if it <= stages && self.runs > stages + 1 => {}
            (it, Some(Tamper::HalfTheUnits)) if (1..=stages).contains(&it) => {
                let units = kernel.kernel().stages[it - 1].units;
                kernel.stage_units(it - 1, 0..units / 2, memory);
            }
            (BLOCK, _) => kernel.block(memory, threads),
            (it, _) if it <= stages => kernel.stage(it - 1, memory, threads),
            (it, _) if it == stages + 1 => self.meter.compute(threads),
            _ => self.meter.read(threads),
        }
    }

    fn sampled(&mut self, task: usize) {
        let graph = &self.runnable.kernel.kernel().graph.clone();
        for (index, stage) in graph.stages.iter().enumerate() {
            let tensor = graph.tensor(stage.output);
            if task == index + 1 || (task == BLOCK && tensor.role == Role::Output) {
                let width = tensor.shape.last().copied().unwrap_or(1);
                let value = self.runnable.memory.tensor(stage.output);
                self.results[task].compare(width, value, &self.expected[self.draw][index]);
                // The block's result is its last stage's too, which is measured next.
                if task == BLOCK {
                    self.runnable.memory.tensor_mut(stage.output).fill(f32::NAN);
                    self.runnable.memory.settle();
                }
            }
        }
    }
}

/// Measures the block, every stage and the machine's ceilings for about `time_ms`, in interleaved rounds, and says by gate V7
/// whether the measurement is to be believed.
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
    let mut runnable = Runnable::new(object, kernel, threads)?;
    let mut timed = Timed::new(&mut runnable, &mut meter);
    let stages = timed.stages();
    let mut timings = sampling::interleaved(stages + 3, Duration::from_millis(time_ms), &mut timed)?;
    let results = timed.results;
    if tamper::current() == Some(Tamper::SlowClock) {
        timings[..=stages].iter_mut().for_each(|it| it.median_ns /= 1000.0);
    }
    let Runnable { kernel, threads, .. } = &runnable;
    let graph = &kernel.kernel().graph;
    let (compute, read) = (&timings[stages + 1], &timings[stages + 2]);
    let (ceilings, peak) = (meter.ceilings(threads, compute, read), meter.peak(threads, compute));
    let (flops, bytes) = work(graph);
    let whole = ("block".to_owned(), "block".to_owned(), flops, bytes);
    let names =
        graph.stages.iter().map(|it| (it.name.clone(), it.op.name().to_owned(), it.op.flops(), graph.bytes(it)));
    let all = std::iter::once(whole).chain(names).zip(timings);
    let mut all = all.map(|((name, op, flops, bytes), timing)| StageBenchmark { name, op, timing, flops, bytes });
    let block = all.next().ok_or_else(|| Failure::new(FailureKind::Internal, "the block was not measured"))?;
    let stages: Vec<StageBenchmark> = all.collect();
    let names = std::iter::once(None).chain(graph.stages.iter().map(|it| Some(it.name.as_str())));
    let mut checks: Vec<GateResult> = results.into_iter().zip(names).map(|(it, name)| it.result(name)).collect();
    let bytes_peak = peak * gaming::BYTES_PER_OPERATION;
    checks.push(gaming::plausible(&block, None, peak, bytes_peak));
    checks.extend(stages.iter().map(|it| gaming::plausible(it, Some(&it.name), peak, bytes_peak)));
    let (version, threads, clock) = (BENCHMARK_VERSION, threads.count(), Clock::Host);
    Ok(Benchmark { version, threads, clock, ceilings, block, stages, checks })
}
