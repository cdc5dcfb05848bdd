//! Times a program on a GPU: the block in one submission, every stage alone, and the device's ceilings, in interleaved rounds.
//!
//! Times are the device's timestamps around a run, several runs one after another in a submission. A GPU that has nothing to do lowers
//! its clock within milliseconds and takes a tenth of a second to raise it again (an H100 showed a quarter of its peak in a
//! measurement that looked at results between the samples), so every round begins with work for nothing, and the host looks at
//! results when all samples of the round are taken. The inputs change from round to round, and what the timed runs left is
//! compared with what untimed ones computed (gate V7).

mod meter;
pub mod race;

use super::{
    benchmark::work,
    stats,
    tamper::{self, Tamper},
};
use crate::{
    device::{
        gpu::{
            Gpu, memory,
            program::{Checks, LoadedProgram},
            run::{Session, Work},
        },
        stored,
    },
    verify::{candidate::Tensors, drawn::Drawn, gaming, inputs},
};
use kernelforge::{
    host::gpu::GpuFeature,
    manifest::spec::Dtype,
    plan::{
        program::{Program, Step},
        stage::{Role, StageGraph, Tensor, TensorId},
    },
    protocol::{Benchmark, Ceilings, Clock, Failure, FailureKind, GateResult, StageBenchmark, Timing},
};
use meter::{Ceiling, Meter};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// A submission lasts about this long: the cost of submitting hides behind it.
const SUBMISSION_NS: f64 = 2_000_000.0;
const MOST_RUNS: u32 = 128;
/// Work for nothing before a round, on a device that is more than the CPU.
const WARM_UP: Duration = Duration::from_millis(150);
const FEWEST_ROUNDS: usize = 5;
const MOST_ROUNDS: usize = 1000;
const SEED: u64 = 1;
/// Tables of any base cost the same.
const ROPE_THETA: f64 = 10_000.0;

/// Bytes that a workgroup's memory path delivers for each operation of the f32 peak: 128 bytes a cycle where 256 operations are
/// done, as on NVIDIA's and AMD's compute units.
const BYTES_PER_OPERATION: f64 = 0.5;

/// Measures for about `time_ms` and says by gate V7 whether the measurement is to be believed.
///
/// # Errors
/// As [`LoadedProgram::load`], [`Session::new`] and [`Gpu::wait`].
pub fn benchmark(gpu: &Arc<Gpu>, program: &Program, sources: &[String], time_ms: u64) -> Result<Benchmark, Failure> {
    let meter = Meter::new(gpu)?;
    let metering = meter.session()?;
    let loaded = LoadedProgram::load(gpu, program.clone(), sources, Checks::Off)?;
    let halved = match tamper::current() {
        Some(Tamper::HalfTheUnits) => Some(LoadedProgram::load(gpu, halved(program), sources, Checks::Off)?),
        _ => None,
    };
    let whole = Session::new(&loaded, false)?;
    let halved = halved.as_ref().map(|it| Session::new(it, false)).transpose()?;
    let given = Given::draw(&program.graph);
    let draws = given.draws(&whole, halved.as_ref())?;
    let session = halved.unwrap_or(whole);
    let works: Vec<Work> = std::iter::once(Work::Block).chain((0..program.stages.len()).map(Work::Stage)).collect();
    let mut results: Vec<gaming::Timed> = works.iter().map(|_| gaming::Timed::default()).collect();
    let ceilings = meter.ceilings();
    let mut samples = vec![Vec::new(); works.len() + ceilings.len()];

    let start = Instant::now();
    let mut runs = vec![0; works.len()];
    let mut timed = 0;
    let kept = Kept::new(&session)?;
    for round in 0..MOST_ROUNDS {
        if round > FEWEST_ROUNDS && start.elapsed() >= Duration::from_millis(time_ms) {
            break;
        }
        let draw = &draws[round % 2];
        draw.write_inputs(&session)?;
        warm_up(&meter, &metering)?;
        for (task, work) in works.iter().enumerate() {
            if runs[task] == 0 {
                runs[task] = runs_of(session.time(*work, 1)?);
            }
            timed += 1;
            let first_only = tamper::current() == Some(Tamper::FirstResultKept) && timed > works.len();
            let times = if first_only { vec![1e6; runs[task] as usize] } else { session.time(*work, runs[task])? };
            if *work == Work::Block {
                kept.take(&session)?;
            }
            // The first round warms up.
            if round > 0 {
                samples[task].extend(times);
            }
        }
        for (index, ceiling) in ceilings.iter().enumerate() {
            let times = metering.time(meter.work(*ceiling), 1)?;
            if round > 0 {
                samples[works.len() + index].extend(times);
            }
        }
        if round > 0 {
            for (work, result) in works.iter().zip(&mut results) {
                draw.compare(&session, &kept, *work, result)?;
            }
        }
    }
    let timings = samples.into_iter().map(stats::timing).collect::<Option<Vec<_>>>();
    let mut timings = timings.ok_or_else(|| Failure::new(FailureKind::Internal, "nothing was measured"))?;
    if tamper::current() == Some(Tamper::SlowClock) {
        timings[..works.len()].iter_mut().for_each(|it| it.median_ns /= 1000.0);
    }
    Ok(report(gpu, program, &meter, timings, results))
}

/// Work for nothing, so that the clock is up when the samples begin.
fn warm_up(meter: &Meter, metering: &Session) -> Result<(), Failure> {
    let warm = Instant::now();
    while !metering.gpu().facts.software() && warm.elapsed() < WARM_UP {
        metering.time(meter.work(Ceiling::Fma), 8)?;
    }
    Ok(())
}

/// How many runs fill a submission, if one takes this long.
fn runs_of(once: Vec<f64>) -> u32 {
    let once = once.first().copied().unwrap_or(SUBMISSION_NS);
    ((SUBMISSION_NS / once.max(1.0)) as u32).clamp(1, MOST_RUNS)
}

/// The figures of all timings: of the block, the stages, the ceilings.
fn report(gpu: &Gpu, program: &Program, meter: &Meter, timings: Vec<Timing>, results: Vec<gaming::Timed>) -> Benchmark {
    let graph = &program.graph;
    let half = graph.tensors.iter().any(|it| it.dtype == Dtype::F16);
    let Rates { ceilings, peak, bytes_peak } = rates(gpu, meter, half, &timings[graph.stages.len() + 1..]);
    let (flops, bytes) = work(graph);
    let whole = ("block".to_owned(), "block".to_owned(), flops, bytes);
    let names =
        graph.stages.iter().map(|it| (it.name.clone(), it.op.name().to_owned(), it.op.flops(), graph.bytes(it)));
    let all = std::iter::once(whole).chain(names).zip(&timings);
    let mut all: Vec<StageBenchmark> = all
        .map(|((name, op, flops, bytes), timing)| StageBenchmark { name, op, timing: timing.clone(), flops, bytes })
        .collect();
    let names = || std::iter::once(None).chain(graph.stages.iter().map(|it| Some(it.name.as_str())));
    let mut checks: Vec<GateResult> = results.into_iter().zip(names()).map(|(it, name)| it.result(name)).collect();
    checks.extend(all.iter().zip(names()).map(|(it, name)| gaming::plausible(it, name, peak, bytes_peak)));
    let block = all.remove(0);
    let clock = if stamped(gpu, program) { Clock::Device } else { Clock::HostAroundSubmission };
    let version = super::benchmark::BENCHMARK_VERSION;
    Benchmark { version, threads: 1, clock, ceilings, block, stages: all, checks }
}

/// Whether the device's own clock can time all of the program.
fn stamped(gpu: &Gpu, program: &Program) -> bool {
    let hosted = program.stages.iter().flatten().any(|it| matches!(it, Step::HostSoftmax { .. }));
    gpu.facts.has(GpuFeature::Timestamps) && !hosted
}

/// What samples of the ceilings mean: medians, and the fastest ones, which nothing can exceed.
struct Rates {
    ceilings: Ceilings,
    /// Operations in a nanosecond.
    peak: f64,
    /// Bytes in a nanosecond.
    bytes_peak: f64,
}

/// `timings` in the order of [`Meter::ceilings`]; `half`: products of f16 are within reach.
fn rates(gpu: &Gpu, meter: &Meter, half: bool, timings: &[Timing]) -> Rates {
    let rate = |wanted: Ceiling, time: fn(&Timing) -> f64| {
        let index = meter.ceilings().iter().position(|it| *it == wanted)?;
        Some(meter.amount(wanted, &gpu.facts) / time(timings.get(index)?))
    };
    let fma = |time| rate(Ceiling::Fma, time).unwrap_or(0.0);
    let arithmetic = |time: fn(&Timing) -> f64| {
        let cooperative = if half { rate(Ceiling::Cooperative, time).unwrap_or(0.0) } else { 0.0 };
        cooperative.max(fma(time))
    };
    let ceilings = Ceilings {
        threads: 1,
        gflops: arithmetic(|it| it.median_ns),
        gigabytes_per_s: rate(Ceiling::Read, |it| it.median_ns).unwrap_or(0.0),
    };
    Rates { ceilings, peak: arithmetic(|it| it.min_ns), bytes_peak: fma(|it| it.min_ns) * BYTES_PER_OPERATION }
}

/// The program with half of the workgroups of every dispatch, as a tampered measurement runs it.
fn halved(program: &Program) -> Program {
    let mut halved = program.clone();
    for step in halved.stages.iter_mut().flatten() {
        if let Step::Dispatch(dispatch) = step
            && let Some(most) = dispatch.workgroups.iter_mut().max()
        {
            *most /= 2;
        }
    }
    halved
}

/// A tensor by its id, as it is stored.
type Stored = Vec<(TensorId, Vec<u8>)>;

/// What programs of one graph are given: weights, and two draws of the inputs.
struct Given {
    weights: Stored,
    inputs: [Stored; 2],
}

impl Given {
    fn draw(graph: &StageGraph) -> Self {
        let mut drawn = Drawn::new(graph.clone());
        inputs::fill(&mut drawn, ROPE_THETA, SEED);
        let stored = |(id, tensor): (TensorId, &Tensor)| (id, stored::bytes(tensor.dtype, drawn.tensor(id)));
        let weights = graph.with_role(Role::Weight).map(stored).collect();
        let inputs = [0x7a, 0x7b].map(|lane| {
            let draw = |(id, tensor): (TensorId, &Tensor)| {
                let mut source = inputs::Source::new(SEED + lane, id.0 as u64);
                let values: Vec<f32> = (0..tensor.len()).map(|_| source.normal()).collect();
                (id, stored::bytes(tensor.dtype, &values))
            };
            graph.with_role(Role::Input).map(draw).collect()
        });
        Self { weights, inputs }
    }

    /// What a program makes of both draws in `session`, which is left with packed weights and the second draw. `timed`: the session
    /// that is timed in place of it, and left in the same state.
    fn draws(&self, session: &Session, timed: Option<&Session>) -> Result<[Draw<'_>; 2], Failure> {
        for session in [session].into_iter().chain(timed) {
            write(session, &self.weights)?;
            session.run(Work::Packing)?;
        }
        if let Some(timed) = timed {
            // Values exist before the first stage is timed alone.
            Draw::computed(&self.inputs[1], timed)?;
        }
        let [first, second] = &self.inputs;
        Ok([Draw::computed(first, session)?, Draw::computed(second, session)?])
    }
}

fn write(session: &Session, tensors: &Stored) -> Result<(), Failure> {
    tensors.iter().try_for_each(|(id, bytes)| {
        session.tensor(*id)?.write(session.gpu(), bytes);
        Ok(())
    })
}

/// A draw of every input, and what all stages make of it.
struct Draw<'a> {
    inputs: &'a Stored,
    /// By stage.
    computed: Stored,
}

impl<'a> Draw<'a> {
    /// Runs every stage.
    fn computed(inputs: &'a Stored, session: &Session) -> Result<Self, Failure> {
        write(session, inputs)?;
        let graph = &session.program().graph;
        let mut computed = Vec::with_capacity(graph.stages.len());
        for (index, stage) in graph.stages.iter().enumerate() {
            let region = session.tensor(stage.output)?;
            // A stage that leaves something out must not find it there.
            region.fill(session.gpu(), f32::NAN.to_le_bytes(), true);
            session.run(Work::Stage(index))?;
            computed.push((stage.output, download(session, region)?));
        }
        Ok(Self { inputs, computed })
    }

    fn write_inputs(&self, session: &Session) -> Result<(), Failure> {
        write(session, self.inputs)
    }

    /// Compares what the last timed run left.
    fn compare(&self, session: &Session, kept: &Kept, work: Work, result: &mut gaming::Timed) -> Result<(), Failure> {
        let graph = &session.program().graph;
        for (index, (id, expected)) in self.computed.iter().enumerate() {
            let tensor = graph.tensor(*id);
            let wanted = match work {
                Work::Block => tensor.role == Role::Output,
                Work::Stage(stage) => stage == index,
                Work::Packing => false,
            };
            if wanted {
                let own = session.tensor(*id)?;
                let region = if work == Work::Block { kept.regions.get(id).unwrap_or(own) } else { own };
                let width = tensor.shape.last().copied().unwrap_or(1);
                result.compare_stored(width, tensor.dtype, &download(session, region)?, expected);
            }
        }
        Ok(())
    }
}

fn download(session: &Session, region: &memory::Region) -> Result<Vec<u8>, Failure> {
    Ok(memory::download(session.gpu(), &[(&region.buffer, region.offset, region.bytes)])?.concat())
}

/// Copies of what the block returned, because its result is its last stage's too, which is measured right after.
struct Kept {
    regions: BTreeMap<TensorId, memory::Region>,
}

impl Kept {
    fn new(session: &Session) -> Result<Self, Failure> {
        let outputs = session.program().graph.with_role(Role::Output);
        let region = |(id, tensor): (TensorId, &Tensor)| {
            Ok((id, memory::Region::new(session.gpu(), tensor.bytes() as u64, false)?))
        };
        Ok(Self { regions: outputs.map(region).collect::<Result<_, Failure>>()? })
    }

    /// Copies, and overwrites the originals with zeros.
    fn take(&self, session: &Session) -> Result<(), Failure> {
        for (id, to) in &self.regions {
            memory::take(session.gpu(), session.tensor(*id)?, to);
        }
        Ok(())
    }
}
