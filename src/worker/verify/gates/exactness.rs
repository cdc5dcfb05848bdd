//! V1: inputs for which floating point is exact, compared without a tolerance. Small integers make every sum of a product
//! exact in any order; equal logits make uniform attention weights, one logit far ahead makes one-hot weights; rows of one
//! value have no deviation. Where an inexact function follows an exact sum, its own error alone is allowed.

use super::{bound::linear, operands};
use crate::verify::{
    candidate::Candidate,
    coverage,
    inputs::Source,
    projection::Sums,
    reference::{self, Detail},
    tally::Tally,
};
use kernelforge::{
    plan::stage::{Factor, Role, Stage, StageOp, TensorId},
    protocol::{Gate, GateResult},
};

/// What a stage is given, and at which rows its result is exact.
struct Case {
    name: &'static str,
    fill: fn(&mut dyn Candidate, &Stage, &mut Source),
    /// `None`: this stage has no such case.
    rows: fn(&StageOp, Vec<usize>) -> Option<Vec<usize>>,
}

const CASES: [Case; 6] = [
    Case { name: "small integers", fill: fill_integers, rows: integer_rows },
    Case { name: "uniform attention", fill: fill_uniform, rows: uniform_rows },
    Case { name: "uniform attention far below zero", fill: fill_sunk, rows: uniform_rows },
    Case { name: "one-hot attention", fill: fill_one_hot, rows: one_hot_rows },
    Case { name: "rows of one value", fill: fill_constant, rows: constant_rows },
    Case { name: "powers of two", fill: fill_powers, rows: power_rows },
];

/// Runs every stage alone on each of its exact cases. Overwrites all tensors, weights included.
pub fn check(candidate: &mut dyn Candidate, seed: u64) -> Vec<GateResult> {
    let stages = candidate.graph().stages.clone();
    for (index, stage) in stages.iter().enumerate() {
        fill_weights(candidate, stage, &mut Source::new(seed, 0xe8ac_0000 + index as u64));
    }
    candidate.prepare();
    let mut results = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        for (lane, case) in CASES.iter().enumerate() {
            let lane = (lane * stages.len() + index) as u64;
            let rows = coverage::rows(&stage.op, coverage::LIGHT, seed.wrapping_add(lane));
            let Some(rows) = (case.rows)(&stage.op, rows) else { continue };
            (case.fill)(candidate, stage, &mut Source::new(seed, 0xca5e_0000 + lane));
            candidate.stage(index);
            results.extend(judge(candidate, stage, case.name, &rows, seed));
        }
    }
    results
}

fn judge(candidate: &dyn Candidate, stage: &Stage, case: &str, rows: &[usize], seed: u64) -> Vec<GateResult> {
    let reference = reference::evaluate(&stage.op, &operands(candidate, stage), rows, Detail::ExactSums);
    let mut tally = Tally::default();
    tally.compare_rows(candidate.tensor(stage.output), rows, &reference.value, &reference.bound);
    let mut results = vec![tally.result(Gate::V1Exactness, Some(&stage.name), case)];
    if let (true, Some(linear)) = (rows.len() < coverage::output_shape(&stage.op).0, linear(candidate, stage)) {
        let mut tally = Tally::default();
        linear.check(Sums::Exact, seed, &mut tally);
        results.push(tally.result(Gate::V1Exactness, Some(&stage.name), format!("{case}, all rows by projection")));
    }
    results
}

/// Largest magnitude of the whole numbers in a product of `depth` terms: sums with bias and residual stay under 2^24.
fn limit(depth: usize) -> u32 {
    ((f64::from(1 << 23) / depth as f64).sqrt() as u32).clamp(1, 8)
}

/// A power of two that brings a product of whole numbers of `depth` terms to a deviation near 2, where activations bend.
fn quantum(depth: usize) -> f32 {
    let limit = f64::from(limit(depth));
    let variance = limit * (limit + 1.0) / 3.0;
    (2.0 / (variance * (depth as f64).sqrt())).log2().floor().exp2() as f32
}

fn fill_weights(candidate: &mut dyn Candidate, stage: &Stage, source: &mut Source) {
    let weights: Vec<TensorId> =
        stage.inputs.iter().copied().filter(|&id| candidate.graph().tensor(id).role == Role::Weight).collect();
    let depth = match stage.op {
        StageOp::Matmul { k, .. } => k,
        StageOp::Mlp { d_model, .. } => d_model,
        _ => 1,
    };
    for id in weights {
        let tensor = candidate.graph().tensor(id);
        // The second matrix of an MLP multiplies activations, which are no whole numbers: any size will do.
        let rows = if let &[rows, _] = tensor.shape.as_slice() { rows } else { depth };
        let (limit, quantum) = match (&stage.op, tensor.shape.len()) {
            (StageOp::Matmul { .. } | StageOp::Mlp { .. }, 2) => (limit(rows), quantum(rows)),
            (StageOp::Matmul { .. } | StageOp::Mlp { .. }, _) => (limit(depth), quantum(depth)),
            (StageOp::Rope { .. }, _) => (1, 1.0),
            _ => (8, 1.0),
        };
        candidate.tensor_mut(id).fill_with(|| quantum * source.integer(limit));
    }
}

/// Writes the stage's input at `position`, where that is no weight.
fn fill_input(candidate: &mut dyn Candidate, stage: &Stage, position: usize, mut value: impl FnMut(usize) -> f32) {
    let Some(&id) = stage.inputs.get(position) else { return };
    if candidate.graph().tensor(id).role != Role::Weight {
        for (index, it) in candidate.tensor_mut(id).iter_mut().enumerate() {
            *it = value(index);
        }
    }
}

fn fill_integers(candidate: &mut dyn Candidate, stage: &Stage, source: &mut Source) {
    let (first, rest) = match stage.op {
        StageOp::Matmul { k, .. } => (limit(k), (limit(k), quantum(k))),
        StageOp::Mlp { d_model, .. } => (limit(d_model), (limit(d_model), quantum(d_model))),
        _ => (1000, (1000, 1.0)),
    };
    fill_input(candidate, stage, 0, |_| source.integer(first));
    // Residuals share the quantum of the product that they are added to.
    (1..stage.inputs.len()).for_each(|it| fill_input(candidate, stage, it, |_| rest.1 * source.integer(rest.0)));
}

fn integer_rows(op: &StageOp, rows: Vec<usize>) -> Option<Vec<usize>> {
    let exact = match op {
        StageOp::Matmul { .. } | StageOp::Mlp { .. } => true,
        StageOp::Rope { .. } | StageOp::Add { .. } | StageOp::Mul { .. } | StageOp::Activation { .. } => true,
        StageOp::Attention { .. } | StageOp::LayerNorm { .. } | StageOp::RmsNorm { .. } | StageOp::Scale { .. } => {
            false
        }
    };
    exact.then_some(rows)
}

/// Q = 0: all logits are 0, whatever the keys.
fn fill_uniform(candidate: &mut dyn Candidate, stage: &Stage, source: &mut Source) {
    fill_input(candidate, stage, 0, |_| 0.0);
    fill_input(candidate, stage, 1, |_| source.normal());
    fill_input(candidate, stage, 2, |_| source.integer(1000));
}

/// All logits are the same number, so far below zero that its exponential is none: the maximum must be subtracted, also when
/// it is negative. Whole powers of two, so that the logits are exact.
fn fill_sunk(candidate: &mut dyn Candidate, stage: &Stage, source: &mut Source) {
    let StageOp::Attention { head_dim, scale, .. } = stage.op else { return };
    let size = (2.0 * AHEAD / (scale.abs() * head_dim as f64)).log2().ceil().exp2() as f32;
    fill_input(candidate, stage, 0, |_| -size);
    fill_input(candidate, stage, 1, |_| 1.0);
    fill_input(candidate, stage, 2, |_| source.integer(1000));
}

/// Rows that see a power of two of keys: their mean of whole numbers is exact.
fn uniform_rows(op: &StageOp, rows: Vec<usize>) -> Option<Vec<usize>> {
    let StageOp::Attention { batch, seq, causal, .. } = *op else { return None };
    let exact: Vec<usize> = match causal {
        true => (0..batch * seq).filter(|row| (row % seq + 1).is_power_of_two()).collect(),
        false if seq.is_power_of_two() => rows,
        false => Vec::new(),
    };
    (!exact.is_empty()).then_some(exact)
}

/// How far ahead one logit must be for the others' weights to vanish in f32 (exp(-104) is below its smallest number).
const AHEAD: f64 = 110.0;

/// Every query looks at one key that it sees. Keys are sign patterns, or points of a parabola where heads are too narrow for
/// patterns that all differ; the query is its key's pattern times the power of two that puts it `AHEAD`.
fn fill_one_hot(candidate: &mut dyn Candidate, stage: &Stage, source: &mut Source) {
    let StageOp::Attention { batch, seq, heads, kv_heads, head_dim, causal, scale } = stage.op else { return };
    let patterns = head_dim >= 32;
    let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
    let mut keys = vec![0f32; batch * seq * kv_width];
    for (index, it) in keys.iter_mut().enumerate() {
        let (key, i) = ((index / kv_width % seq) as f32, index % head_dim);
        *it = match (patterns, i) {
            (true, _) => source.sign(),
            (false, 0) => key,
            (false, 1) => key * key,
            (false, _) => 0.0,
        };
    }
    let mut queries = vec![0f32; batch * seq * width];
    for (index, query) in queries.chunks_exact_mut(head_dim).enumerate() {
        let (row, head) = (index / heads, index % heads);
        let (first, visible) = (row / seq * seq, if causal { row % seq + 1 } else { seq });
        let target = source.below(visible);
        let key = |it: usize| {
            let at = (first + it) * kv_width + head / (heads / kv_heads) * head_dim;
            &keys[at..at + head_dim]
        };
        match patterns {
            true => query.copy_from_slice(key(target)),
            // 2 t j - j^2 = t^2 - (t - j)^2 is largest at j = t.
            false => query[..2].copy_from_slice(&[2.0 * target as f32, -1.0]),
        }
        let dot = |it: usize| query.iter().zip(key(it)).map(|(q, k)| f64::from(q * k)).sum::<f64>();
        let own = dot(target);
        let gap = (0..visible).filter(|&it| it != target).map(|it| own - dot(it)).fold(f64::INFINITY, f64::min);
        let factor = if gap.is_finite() { (AHEAD / (scale.abs() * gap.max(1.0))).log2().ceil().exp2() } else { 1.0 };
        query.iter_mut().for_each(|it| *it *= factor as f32);
    }
    fill_input(candidate, stage, 0, |index| queries[index]);
    fill_input(candidate, stage, 1, |index| keys[index]);
    // No zeros: adding what is left of the other keys' weights to a zero would show.
    fill_input(candidate, stage, 2, |_| source.sign() * (1.0 + source.below(1000) as f32));
}

fn one_hot_rows(op: &StageOp, rows: Vec<usize>) -> Option<Vec<usize>> {
    // A parabola's coordinates need two columns.
    matches!(*op, StageOp::Attention { head_dim, .. } if head_dim >= 2).then_some(rows)
}

/// Each row one value, 0 or a power of two: the mean is that value, the deviation 0, the result the bias.
fn fill_constant(candidate: &mut dyn Candidate, stage: &Stage, source: &mut Source) {
    let width = coverage::output_shape(&stage.op).1;
    // For RMS norm only rows of zeros are exact.
    let centred = matches!(stage.op, StageOp::LayerNorm { .. });
    let rows: Vec<f32> = (0..coverage::output_shape(&stage.op).0)
        .map(|_| if centred { source.sign() * [0.0, 0.5, 1.0, 4.0][source.below(4)] } else { 0.0 })
        .collect();
    fill_input(candidate, stage, 0, |index| rows[index / width]);
}

fn constant_rows(op: &StageOp, rows: Vec<usize>) -> Option<Vec<usize>> {
    matches!(op, StageOp::LayerNorm { .. } | StageOp::RmsNorm { .. }).then_some(rows)
}

/// A power of two times any factor is exact but for the factor's own rounding, which the reference shares.
fn fill_powers(candidate: &mut dyn Candidate, stage: &Stage, source: &mut Source) {
    fill_input(candidate, stage, 0, |_| source.sign() * 2f32.powi(source.below(16) as i32 - 8));
}

/// Only where the factor itself is a number of f32.
fn power_rows(op: &StageOp, rows: Vec<usize>) -> Option<Vec<usize>> {
    let StageOp::Scale { factor, .. } = *op else { return None };
    let exact = match factor {
        Factor::Value(value) => f64::from(value as f32) == value,
        Factor::InverseSqrt(value) => value.sqrt().log2().fract() == 0.0,
    };
    exact.then_some(rows)
}
