//! The hand-written matrix products beside the generated one, on the same operands and in the same rounds.

use super::{
    benchmark::{BENCHMARK_VERSION, Runnable},
    ceilings::Meter,
    sampling,
};
use crate::kernels::{self, MatmulKernel, Shape};
use kernelforge::{
    host::CpuFacts,
    plan::{
        kernel::Kernel,
        stage::{StageGraph, StageOp, TensorId},
    },
    protocol::{Benchmark, Clock, Failure, FailureKind, StageBenchmark},
};
use std::time::Duration;

/// Measures the one matmul of `kernel` and every hand-written kernel of its shape for about `time_ms`. `block` of the result
/// is the generated kernel; `stages` are the others, by name; one that is absent on this machine is not there.
///
/// # Errors
/// `BadInput` when the kernel is not one plain matmul; else as loading and running fail.
pub fn bench_matmul(
    object: &[u8],
    kernel: &Kernel,
    cpu: &CpuFacts,
    threads: usize,
    time_ms: u64,
) -> Result<Benchmark, Failure> {
    let mut meter = Meter::new(cpu)?;
    let (shape, a, b) = operands(kernel)?;
    let Runnable { kernel, mut memory, threads } = Runnable::new(object, kernel, threads)?;
    let (a, b) = (memory.tensor(a).to_vec(), memory.tensor(b).to_vec());
    let mut c = vec![0.0; shape.m * shape.n];
    let others: Vec<Box<dyn MatmulKernel>> = kernels::all(threads.count());
    let count = others.len();
    let timings = sampling::interleaved(count + 3, Duration::from_millis(time_ms), &mut |task| match task {
        0 => kernel.block(&mut memory, &threads),
        it if it == count + 1 => meter.compute(&threads),
        it if it == count + 2 => meter.read(&threads),
        other => others[other - 1].multiply(&a, &b, &mut c, shape),
    })?;
    let ceilings = meter.ceilings(&threads, &timings[count + 1], &timings[count + 2]);
    let Shape { m, n, k } = shape;
    let names = std::iter::once("generated".to_owned()).chain(others.iter().map(|it| it.name().to_owned()));
    let mut results = names.zip(timings).map(|(name, timing)| StageBenchmark {
        name,
        op: "matmul".to_owned(),
        timing,
        flops: 2 * (m * n * k) as u64,
        bytes: 4 * (m * k + k * n + m * n) as u64,
    });
    let block = results.next().ok_or_else(|| Failure::new(FailureKind::Internal, "nothing was measured"))?;
    Ok(Benchmark {
        version: BENCHMARK_VERSION,
        threads: threads.count(),
        clock: Clock::Host,
        ceilings,
        block,
        stages: results.collect(),
        checks: Vec::new(),
    })
}

/// Shape and operands of a graph that is one product and nothing else: the others compute no bias and no activation.
fn operands(kernel: &Kernel) -> Result<(Shape, TensorId, TensorId), Failure> {
    let plain = |it: &StageOp| matches!(it, StageOp::Matmul { bias: false, activation: None, residual: false, .. });
    match (kernel.graph.stages.as_slice(), product(&kernel.graph)) {
        ([stage], Some(product)) if plain(&stage.op) => Ok(product),
        ([stage], _) => Err(refuse(&stage.name)),
        _ => Err(refuse(&kernel.graph.block)),
    }
}

/// Shape and factors of the product of a graph that is one matmul, whatever follows it there.
pub fn product(graph: &StageGraph) -> Option<(Shape, TensorId, TensorId)> {
    let [stage] = graph.stages.as_slice() else { return None };
    match (&stage.op, stage.inputs.as_slice()) {
        (&StageOp::Matmul { m, n, k, .. }, &[a, b, ..]) => Some((Shape { m, n, k }, a, b)),
        _ => None,
    }
}

fn refuse(name: &str) -> Failure {
    Failure::new(FailureKind::BadInput, format!("`{name}` is not a plain matmul: there is nothing to compare it with"))
}
