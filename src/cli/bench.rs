//! `kforge bench matmul`: the generated matrix product beside the hand-written ones and a CBLAS.

use super::{
    error::{Error, Outcome},
    print,
    worker::{Asked, Asker},
};
use crate::{
    build::{
        engine::lease::{self, Patience, Use},
        graph::StepKind,
        search,
    },
    host::{CpuFacts, Device},
    manifest::spec::{BlockSpec, Dtype, Pass},
    plan::stage::StageGraph,
    protocol::{ActionKind, Benchmark, Blobs, StageBenchmark, blob},
};
use serde_json::json;
use std::collections::BTreeMap;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// One matrix product by every kernel: reference, blocked, parallel, library, generated
    Matmul(MatmulArgs),
}

/// C[M, N] = A[M, K] B[K, N] in f32.
#[derive(Debug, clap::Args)]
pub struct MatmulArgs {
    /// Rows of A and C
    #[arg(long, default_value_t = 512, value_parser = size)]
    m: usize,
    /// Columns of B and C
    #[arg(long, default_value_t = 512, value_parser = size)]
    n: usize,
    /// Columns of A, rows of B
    #[arg(long, default_value_t = 512, value_parser = size)]
    k: usize,
    /// Threads of the kernels that use several
    #[arg(long, default_value_t = 1, value_parser = size)]
    threads: usize,
    /// Time to measure each kernel for, in milliseconds
    #[arg(long, default_value_t = 500)]
    time_ms: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(size @ 1..=65536) => Ok(size),
        _ => Err("a whole number from 1 to 65536 was expected".to_owned()),
    }
}

pub fn main(command: Command) -> Result<Outcome, Error> {
    let Command::Matmul(args) = command;
    let cpu = CpuFacts::detect();
    // What is measured here belongs to no project.
    let folder = tempfile::tempdir()?;
    let asker = Asker::new(folder.path())?;
    let benchmark = asker.with(|asked| {
        let kernel = compile(asked, &asker, &args, &cpu)?;
        let on_wait = |holder: &_| print::warning(&format!("waiting for this device, which is used by {holder}"));
        let patience = Patience { cancelled: &|| asker.leash().is_cancelled(), limit: None };
        let lease = lease::devices(&[(cpu.fingerprint(), Use::Measure)], &patience, on_wait)?;
        let lease = lease.ok_or_else(Error::interrupted)?;
        let MatmulArgs { threads, time_ms, .. } = args;
        let action = ActionKind::BenchMatmul { cpu: cpu.clone(), threads, time_ms };
        let outputs = asked.action(action, kernel, StepKind::Benchmark)?;
        drop(lease);
        asked.value::<Benchmark>(&outputs, blob::BENCHMARK)
    })?;
    if args.json {
        print::json(&to_json(&args, &cpu, &benchmark))?;
    } else {
        print::out(&table(&args, &benchmark))?;
    }
    Ok(Outcome::Done)
}

/// The object and the kernel of a matmul block with the heuristic's plan, as inputs.
fn compile(asked: &mut Asked<'_>, asker: &Asker, args: &MatmulArgs, cpu: &CpuFacts) -> Result<Blobs, Error> {
    let &MatmulArgs { m, n, k, .. } = args;
    let name = "matmul".to_owned();
    let block = BlockSpec::Matmul { m, n, k, b: Default::default(), bias: false, activation: None, dtype: Dtype::F32 };
    let ir = ActionKind::Ir { name: name.clone(), block, passes: Pass::ALL.to_vec(), origins: BTreeMap::new() };
    let mut inputs = asked.action(ir, Blobs::new(), StepKind::Ir)?;
    let stages: StageGraph = asked.value(&inputs, blob::STAGES)?;
    let device = Device::from(cpu.clone());
    let plan = search::plan(&stages, (&name, "cpu"), (&device, false), &BTreeMap::new());
    let plan = serde_json::to_vec(&plan).map_err(|error| Error::environment(error.to_string()))?;
    inputs.insert(blob::PLAN.to_owned(), asker.cas.put(&plan)?);
    asked.action(ActionKind::Compile { device, shaders: BTreeMap::new() }, inputs, StepKind::Compile)
}

/// 10^9 operations a second.
fn gflops(stage: &StageBenchmark) -> f64 {
    stage.flops as f64 / stage.timing.median_ns
}

/// The hand-written kernels, then the generated one, which is the benchmark's block.
fn kernels(benchmark: &Benchmark) -> impl Iterator<Item = (&str, &StageBenchmark)> {
    let baselines = benchmark.stages.iter().map(|it| (it.name.as_str(), it));
    baselines.chain([("generated", &benchmark.block)])
}

fn table(args: &MatmulArgs, benchmark: &Benchmark) -> String {
    let header = ["kernel", "median ms", "spread %", "samples", "GFLOP/s", "of peak", "of generated"]
        .map(str::to_owned)
        .to_vec();
    let generated = gflops(&benchmark.block);
    let row = |(name, stage): (&str, &StageBenchmark)| {
        let timing = &stage.timing;
        vec![
            name.to_owned(),
            format!("{:.3}", timing.median_ns / 1e6),
            format!("{:.1}", 100.0 * (timing.q3_ns - timing.q1_ns) / timing.median_ns),
            timing.samples.to_string(),
            format!("{:.1}", gflops(stage)),
            format!("{:.0}%", 100.0 * gflops(stage) / benchmark.ceilings.gflops),
            format!("{:.2}", gflops(stage) / generated),
        ]
    };
    let rows: Vec<_> = std::iter::once(header).chain(kernels(benchmark).map(row)).collect();
    let MatmulArgs { m, n, k, .. } = args;
    let title = format!("C[{m}, {n}] = A[{m}, {k}] B[{k}, {n}], f32, {} thread(s)", benchmark.threads);
    let title = format!("{title}; peak {:.1} GFLOP/s\n", benchmark.ceilings.gflops);
    title + &print::columns(&rows, true)
}

fn to_json(args: &MatmulArgs, cpu: &CpuFacts, benchmark: &Benchmark) -> serde_json::Value {
    let generated = gflops(&benchmark.block);
    let kernel = |(name, it): (&str, &StageBenchmark)| {
        let speed = gflops(it);
        json!({ "name": name, "timing": it.timing, "flops": it.flops, "gflops": speed, "of-generated": speed / generated })
    };
    json!({
        "version": 1, "m": args.m, "n": args.n, "k": args.k, "threads": benchmark.threads, "cpu": cpu, "ceilings": benchmark.ceilings,
        "kernels": kernels(benchmark).map(kernel).collect::<Vec<_>>(),
    })
}
