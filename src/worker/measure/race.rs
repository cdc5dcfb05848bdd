//! Several compiled kernels of one operation, or of one block, against each other.
//!
//! Each entrant has tensors of its own, all with the same numbers in them. Before a sample its inputs are overwritten with one of two
//! draws; after it the results must be, bit for bit, what an untimed run made of that draw (gate V7).

use super::{
    benchmark::{self, Runnable, Values},
    ceilings::Meter,
    heats::{self, Field, Standing},
    matmul, sampling,
    tamper::{self, Tamper},
};
use crate::{
    kernels::{self, MatmulKernel, Shape},
    verify::gaming,
};
use kernelforge::{
    host::CpuFacts,
    manifest::spec::Dtype,
    plan::{
        kernel::Kernel,
        stage::{Role, StageGraph, Tensor},
    },
    protocol::{
        Ceilings, Clock, Failure, FailureKind, GateResult, GateStatus, StageBenchmark,
        tuning::{Entrant, Race, Variant},
    },
};
use std::{fs, time::Duration};

/// The version of the race blob.
pub const RACE_VERSION: u32 = 1;

/// How long the ceilings are sampled before the race, and after it: some 25 reads, a median of which moves by less than 1 % on a
/// machine that is left alone.
const CANARY: Duration = Duration::from_millis(50);

/// Operations of a product that the plain kernel is run for: it does some 2 in a nanosecond.
const MOST_FOR_REFERENCE: u64 = 100_000_000;

/// How it is raced.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub threads: usize,
    /// What each entrant may take, in runs of the first one.
    pub runs: u32,
    /// Run the hand-written kernels beside the entrants, where they compute the same.
    pub variants: bool,
}

/// Races object files, each with its kernel, in the order in which they are given; the first one is what the others are held against.
///
/// # Errors
/// `BadInput` without an entrant or when the entrants do not compute the same; `OutOfMemory` when they do not fit together; as
/// loading and running fail.
pub fn race(entrants: &[(Vec<u8>, Kernel)], cpu: &CpuFacts, rules: Rules) -> Result<Race, Failure> {
    let graphs: Vec<&StageGraph> = entrants.iter().map(|it| &it.1.graph).collect();
    let graph = same(&graphs)?;
    let mut meter = Meter::new(cpu)?;
    fits(entrants)?;
    let mut running = Running::new(entrants, graph, rules)?;
    let mut peaks = [0.0; 2];
    let before = running.canary(&mut meter, &mut peaks[0])?;
    let others = running.products.as_ref().map_or(0, |it| it.kernels.len());
    let budget = heats::budget(entrants.len(), rules.runs, &mut running)?;
    let standings = heats::run(entrants.len(), others, budget, &mut running)?;
    let after = running.canary(&mut meter, &mut peaks[1])?;
    let peak = peaks[0].max(peaks[1]);
    let mut standings = standings.into_iter();
    let judged = running.racers.into_iter().zip(&mut standings);
    let bytes_peak = peak * gaming::BYTES_PER_OPERATION;
    let entrants = judged.map(|(racer, it)| entrant(graph, racer.results, it, peak, bytes_peak)).collect();
    let named = running.products.iter().flat_map(|it| &it.kernels).zip(standings);
    let variants =
        named.map(|(kernel, it)| Variant { name: kernel.name().to_owned(), timing: it.timing, relative: it.relative });
    let variants = variants.collect();
    Ok(Race { version: RACE_VERSION, clock: Clock::Host, entrants, variants, canaries: [before, after] })
}

/// The graph of the first entrant. Others may get from the same tensors to the same results in other stages, as blocks with other
/// fusions do.
///
/// # Errors
/// `BadInput` without an entrant, and when one is given other tensors than the first or returns others.
pub fn same<'a>(graphs: &[&'a StageGraph]) -> Result<&'a StageGraph, Failure> {
    let first = graphs.first().ok_or_else(|| Failure::new(FailureKind::BadInput, "a race without entrants"))?;
    match graphs.iter().position(|it| !are_alike(it, first)) {
        None => Ok(first),
        Some(other) => {
            let message = format!("entrant {other} does not compute what entrant 0 computes");
            Err(Failure::new(FailureKind::BadInput, message))
        }
    }
}

/// Whether both are given the same tensors under the same ids, and return results of the same shapes and types. A result has
/// another id and another name where there are other stages.
fn are_alike(a: &StageGraph, b: &StageGraph) -> bool {
    let given = |role: Role| a.with_role(role).eq(b.with_role(role));
    let returned = |it: &StageGraph| -> Vec<Tensor> {
        it.with_role(Role::Output).map(|it| Tensor { name: String::new(), ..it.1.clone() }).collect()
    };
    given(Role::Input) && given(Role::Weight) && returned(a) == returned(b)
}

/// What gate V7 says of an entrant. `peak` and `bytes_peak`: see [`gaming::plausible`].
pub fn entrant(graph: &StageGraph, results: gaming::Timed, it: Standing, peak: f64, bytes_peak: f64) -> Entrant {
    let Standing { mut timing, relative, noise, dismissed } = it;
    if tamper::current() == Some(Tamper::SlowClock) {
        timing.median_ns /= 1000.0;
    }
    let (flops, bytes) = benchmark::work(graph);
    let name = graph.block.clone();
    let timed = StageBenchmark { op: name.clone(), name, timing: timing.clone(), flops, bytes };
    // Who was dismissed ran too seldom for results to be compared.
    let results = (!dismissed).then(|| results.result(None));
    let checks = results.into_iter().chain([gaming::plausible(&timed, None, peak, bytes_peak)]);
    let failed: Vec<GateResult> = checks.filter(|it| it.status != GateStatus::Passed).collect();
    Entrant { timing, relative, noise, failed }
}

/// Refuses what the system has no memory for. Its limit on addresses catches what is larger than the whole machine; pages that are
/// only promised end the process when they are touched.
fn fits(entrants: &[(Vec<u8>, Kernel)]) -> Result<(), Failure> {
    let needed: usize = entrants.iter().map(|it| bytes(&it.1)).sum();
    match available_memory() {
        Some(available) if needed as u64 > available => {
            let message =
                format!("{} entrants need {needed} bytes together, and {available} are available", entrants.len());
            Err(Failure::new(FailureKind::OutOfMemory, message))
        }
        _ => Ok(()),
    }
}

/// Of tensors, packed weights, and the two draws of inputs and results.
fn bytes(kernel: &Kernel) -> usize {
    let tensors: usize = kernel.graph.tensors.iter().map(|it| it.bytes()).sum();
    let packed: usize = kernel.packed.iter().map(|it| it.bytes).sum();
    let outputs: usize = kernel.graph.with_role(Role::Output).map(|it| 4 * it.1.len()).sum();
    tensors + packed + 2 * outputs
}

/// Bytes that can be had without swapping; `None` where the system does not say.
fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|it| it.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}

struct Racer {
    runnable: Runnable,
    /// The outputs for each draw.
    expected: [Values; 2],
    results: gaming::Timed,
    /// Nanoseconds of the faster of two untimed runs.
    once: f64,
    /// Runs of one sample; 0 until it is known.
    repetitions: usize,
    runs: usize,
}

impl Racer {
    fn new(mut runnable: Runnable, inputs: &[Values; 2]) -> Self {
        let mut once = f64::INFINITY;
        let expected = [0, 1].map(|draw| {
            runnable.give(&inputs[draw]);
            once = once.min(sampling::sample(0, 1, &mut |_| runnable.stages()));
            let outputs = runnable.kernel.kernel().graph.with_role(Role::Output);
            outputs.map(|it| (it.0, runnable.memory.tensor(it.0).to_vec())).collect()
        });
        Self { runnable, expected, results: gaming::Timed::default(), once, repetitions: 0, runs: 0 }
    }

    fn run(&mut self) {
        let Runnable { kernel, memory, threads } = &mut self.runnable;
        self.runs += 1;
        match tamper::current() {
            Some(Tamper::FirstResultKept) if self.runs > 1 => {}
            Some(Tamper::HalfTheUnits) => {
                for (index, stage) in kernel.kernel().stages.iter().enumerate() {
                    kernel.stage_units(index, 0..stage.units / 2, memory);
                }
            }
            _ => kernel.block(memory, threads),
        }
    }

    fn sample(&mut self, inputs: &Values, draw: usize) -> f64 {
        self.runnable.give(inputs);
        if self.repetitions == 0 {
            // Twice: what is called for the first time finds neither its code nor its memory in a cache.
            self.run();
            self.repetitions = sampling::repetitions(0, &mut |_| self.run());
        }
        let repetitions = self.repetitions;
        let time = sampling::sample(0, repetitions, &mut |_| self.run());
        for (id, expected) in &self.expected[draw] {
            let memory = &mut self.runnable.memory;
            let width = self.runnable.kernel.kernel().graph.tensor(*id).shape.last().copied().unwrap_or(1);
            self.results.compare(width, memory.tensor(*id), expected);
            // A run that leaves them out must not find them there.
            memory.tensor_mut(*id).fill(f32::NAN);
        }
        time
    }
}

/// The hand-written matrix products, on the first entrant's factors.
struct Products {
    kernels: Vec<Box<dyn MatmulKernel>>,
    repetitions: Vec<usize>,
    shape: Shape,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl Products {
    /// `None` where they do not compute what this graph is.
    fn new(first: &Runnable) -> Option<Self> {
        let graph = &first.kernel.kernel().graph;
        let (shape, a, b) = matmul::product(graph)?;
        if graph.tensors.iter().any(|it| it.dtype != Dtype::F32) {
            return None;
        }
        let mut kernels = kernels::all(first.threads.count());
        if graph.flops() >= MOST_FOR_REFERENCE {
            kernels.retain(|it| it.name() != kernels::Reference.name());
        }
        let (a, b) = (first.memory.tensor(a).to_vec(), first.memory.tensor(b).to_vec());
        let mut products = Self { kernels, repetitions: Vec::new(), shape, a, b, c: vec![0.0; shape.m * shape.n] };
        for index in 0..products.kernels.len() {
            products.run(index);
            let repetitions = sampling::repetitions(index, &mut |it| products.run(it));
            products.repetitions.push(repetitions);
        }
        Some(products)
    }

    fn run(&mut self, index: usize) {
        self.kernels[index].multiply(&self.a, &self.b, &mut self.c, self.shape);
    }
}

struct Running {
    racers: Vec<Racer>,
    products: Option<Products>,
    inputs: [Values; 2],
    draw: usize,
}

impl Running {
    fn new(entrants: &[(Vec<u8>, Kernel)], graph: &StageGraph, rules: Rules) -> Result<Self, Failure> {
        let inputs = benchmark::draws(graph);
        let mut racers: Vec<Racer> = Vec::with_capacity(entrants.len());
        for (index, (object, kernel)) in entrants.iter().enumerate() {
            let runnable = match racers.first() {
                None => Runnable::new(object, kernel, rules.threads),
                Some(first) => first.runnable.beside(object, kernel),
            };
            let runnable = runnable.map_err(|it| Failure {
                message: format!("entrant {index} of {}: {}", entrants.len(), it.message),
                ..it
            })?;
            racers.push(Racer::new(runnable, &inputs));
        }
        let products = racers.first().filter(|_| rules.variants).and_then(|it| Products::new(&it.runnable));
        Ok(Self { racers, products, inputs, draw: 0 })
    }

    /// What the machine can do now; and the fastest sample of its arithmetic.
    fn canary(&self, meter: &mut Meter, peak: &mut f64) -> Result<Ceilings, Failure> {
        let first = self.racers.first().ok_or_else(|| Failure::new(FailureKind::Internal, "nobody races"))?;
        let threads = &first.runnable.threads;
        let timings = sampling::interleaved(2, CANARY, &mut |task| match task {
            0 => meter.compute(threads),
            _ => meter.read(threads),
        })?;
        *peak = meter.peak(threads, &timings[0]);
        Ok(meter.ceilings(threads, &timings[0], &timings[1]))
    }
}

impl Field for Running {
    fn glance(&mut self, entrant: usize) -> Result<f64, Failure> {
        Ok(self.racers[entrant].once)
    }

    fn begin_round(&mut self, round: usize) -> Result<(), Failure> {
        self.draw = round % 2;
        Ok(())
    }

    fn sample(&mut self, racer: usize) -> Result<Vec<f64>, Failure> {
        let index = racer.checked_sub(self.racers.len());
        Ok(vec![match (index, &mut self.products) {
            (Some(index), Some(products)) => {
                let repetitions = products.repetitions[index];
                sampling::sample(index, repetitions, &mut |it| products.run(it))
            }
            _ => self.racers[racer].sample(&self.inputs[self.draw], self.draw),
        }])
    }
}

#[cfg(test)]
#[path = "race_tests.rs"]
mod tests;
