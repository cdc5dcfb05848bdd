//! V1: inputs for which floating point is exact, compared without a tolerance. Small integers make every sum of a product
//! exact in any order; equal logits make uniform attention weights, one logit far ahead makes one-hot weights; rows of one
//! value have no deviation, and rows of whole numbers next to each other a mean without a rounding of the sum. Where an inexact function follows an exact sum, its own error alone is allowed; where the result's
//! type cannot hold it, it must be the nearest number that it can.

use super::Judged;
use crate::verify::{
    candidate::{Candidate, Tensors},
    coverage,
    inputs::Source,
    reference::Detail,
};
use kernelforge::{
    manifest::spec::Dtype,
    plan::stage::{Factor, Role, Stage, StageOp},
    protocol::{Gate, GateResult},
};

/// What a stage is given, and at which rows its result is exact.
pub struct Case {
    pub name: &'static str,
    pub fill: fn(&mut dyn Tensors, &Stage, &mut Source),
    /// `None`: this stage has no such case.
    pub rows: fn(&StageOp, Dtype, Vec<usize>) -> Option<Vec<usize>>,
}

pub const CASES: [Case; 7] = [
    Case { name: "small integers", fill: fill_integers, rows: integer_rows },
    Case { name: "uniform attention", fill: fill_uniform, rows: uniform_rows },
    Case { name: "uniform attention far below zero", fill: fill_sunk, rows: uniform_rows },
    Case { name: "one-hot attention", fill: fill_one_hot, rows: one_hot_rows },
    Case { name: "rows of one value", fill: fill_constant, rows: constant_rows },
    Case { name: "powers of two", fill: fill_powers, rows: power_rows },
    Case { name: "rows that hardly vary", fill: fill_neighbours, rows: neighbour_rows },
];

/// Runs every stage alone on each of its exact cases. Overwrites all tensors, weights included.
pub fn check(candidate: &mut dyn Candidate, seed: u64) -> Vec<GateResult> {
    fill_all_weights(candidate, seed);
    (0..candidate.graph().stages.len()).flat_map(|it| check_stage(candidate, it, seed, None)).collect()
}

/// The weights that exact cases need.
pub fn fill_all_weights(candidate: &mut dyn Candidate, seed: u64) {
    for (index, stage) in candidate.graph().stages.clone().iter().enumerate() {
        fill_weights(candidate, stage, &mut Source::new(seed, 0xe8ac_0000 + index as u64));
    }
    candidate.prepare();
}

/// One stage, in all its cases or in the one of this name, on weights of [`fill_all_weights`].
pub fn check_stage(candidate: &mut dyn Candidate, index: usize, seed: u64, only: Option<&str>) -> Vec<GateResult> {
    let stages = candidate.graph().stages.len();
    let stage = &candidate.graph().stages[index].clone();
    let dtype = candidate.graph().tensor(stage.output).dtype;
    let mut results = Vec::new();
    for (lane, case) in CASES.iter().enumerate().filter(|it| only.is_none_or(|only| only == it.1.name)) {
        let lane = (lane * stages + index) as u64;
        let rows = coverage::rows(&stage.op, coverage::LIGHT, seed.wrapping_add(lane));
        let Some(rows) = (case.rows)(&stage.op, dtype, rows) else { continue };
        (case.fill)(candidate, stage, &mut Source::new(seed, 0xca5e_0000 + lane));
        candidate.stage(index);
        let judged = Judged { gate: Gate::V1Exactness, stage, case: case.name, detail: Detail::ExactSums, seed };
        results.extend(judged.judge(candidate, &rows));
    }
    results
}

/// Whole numbers for a product of `depth` terms: in even terms the left factor is wide and the right one -1, 0 or 1, in odd
/// ones the other way round. So both operands have numbers that half precision cannot hold, and no sum exceeds 2^23 in any order.
#[derive(Debug, Clone, Copy)]
struct Whole {
    wide: u32,
    /// A power of two on the right factor that brings the product to a deviation near 2, where activations bend.
    quantum: f32,
}

impl Whole {
    fn new(depth: usize, dtype: Dtype) -> Self {
        // 12 bits: one more than half precision has. What is stored in half precision has 11, in bf16 8, and its results have more.
        let bits = match dtype {
            Dtype::F32 => 12,
            Dtype::F16 => 11,
            Dtype::Bf16 => 8,
        };
        let wide = ((1usize << 23) / depth).clamp(1, (1 << bits) - 1) as u32;
        let deviation = f64::from(wide) * (depth as f64 * 2.0 / 9.0).sqrt();
        let quantum = (2.0 / deviation).log2().floor().exp2() as f32;
        // No operand is below the normal range, where it might be taken for zero.
        Self { wide, quantum: quantum.max(dtype.min_positive()) }
    }

    fn left(self, term: usize, source: &mut Source) -> f32 {
        source.integer(if term.is_multiple_of(2) { self.wide } else { 1 })
    }

    fn right(self, term: usize, source: &mut Source) -> f32 {
        self.quantum * source.integer(if term.is_multiple_of(2) { 1 } else { self.wide })
    }

    /// What is added to the product: a bias, a residual.
    fn addend(self, source: &mut Source) -> f32 {
        self.quantum * source.integer(self.wide)
    }
}

/// The weights of one stage that its exact cases need.
pub fn fill_weights(candidate: &mut dyn Tensors, stage: &Stage, source: &mut Source) {
    let depth = match stage.op {
        StageOp::Matmul { k, .. } => Some(k),
        StageOp::Mlp { d_model, .. } => Some(d_model),
        _ => None,
    };
    let last_matrix = stage.inputs.iter().copied().rfind(|&id| {
        let it = candidate.graph().tensor(id);
        it.role == Role::Weight && it.shape.len() == 2
    });
    for &id in &stage.inputs {
        let tensor = candidate.graph().tensor(id);
        if tensor.role != Role::Weight {
            continue;
        }
        let dtype = tensor.dtype;
        let (columns, matrix) = (tensor.shape.last().copied().unwrap_or(1), tensor.shape.len() == 2);
        let data = candidate.tensor_mut(id);
        match (depth.map(|it| Whole::new(it, dtype)), &stage.op) {
            (Some(_), StageOp::Mlp { .. }) if Some(id) == last_matrix => select(data, columns, source),
            (Some(whole), _) if matrix => {
                let rows = data.chunks_exact_mut(columns).enumerate();
                rows.for_each(|(term, row)| row.fill_with(|| whole.right(term, source)));
            }
            (Some(whole), _) => data.fill_with(|| whole.addend(source)),
            (None, StageOp::Rope { .. }) => data.fill_with(|| source.integer(1)),
            (None, _) => data.fill_with(|| source.integer(8)),
        }
    }
}

/// A matrix whose every column takes one row, the first column the last row: activations, which are no whole numbers, pass
/// through it without a rounding.
fn select(matrix: &mut [f32], columns: usize, source: &mut Source) {
    matrix.fill(0.0);
    let rows = matrix.len() / columns;
    for column in 0..columns {
        let row = if column == 0 { rows - 1 } else { source.below(rows) };
        matrix[row * columns + column] = source.sign();
    }
}

/// Writes the stage's input at `position`, where that is no weight.
fn fill_input(candidate: &mut dyn Tensors, stage: &Stage, position: usize, mut value: impl FnMut(usize) -> f32) {
    let Some(&id) = stage.inputs.get(position) else { return };
    if candidate.graph().tensor(id).role != Role::Weight {
        for (index, it) in candidate.tensor_mut(id).iter_mut().enumerate() {
            *it = value(index);
        }
    }
}

fn fill_integers(candidate: &mut dyn Tensors, stage: &Stage, source: &mut Source) {
    let dtype = candidate.graph().tensor(stage.output).dtype;
    let (StageOp::Matmul { k: depth, .. } | StageOp::Mlp { d_model: depth, .. }) = stage.op else {
        // A product of two must stay below 65504.
        let limit = if dtype == Dtype::F16 && matches!(stage.op, StageOp::Mul { .. }) { 200 } else { 1000 };
        (0..stage.inputs.len()).for_each(|it| fill_input(candidate, stage, it, |_| source.integer(limit)));
        return;
    };
    let whole = Whole::new(depth, dtype);
    fill_input(candidate, stage, 0, |index| whole.left(index % depth, source));
    // B, where that is no weight.
    let product = matches!(stage.op, StageOp::Matmul { .. });
    if product {
        let columns = coverage::output_shape(&stage.op).1;
        fill_input(candidate, stage, 1, |index| whole.right(index / columns, source));
    }
    let addends = 1 + usize::from(product)..stage.inputs.len();
    addends.for_each(|it| fill_input(candidate, stage, it, |_| whole.addend(source)));
}

fn integer_rows(op: &StageOp, _: Dtype, rows: Vec<usize>) -> Option<Vec<usize>> {
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
fn fill_uniform(candidate: &mut dyn Tensors, stage: &Stage, source: &mut Source) {
    fill_input(candidate, stage, 0, |_| 0.0);
    fill_input(candidate, stage, 1, |_| source.normal());
    fill_input(candidate, stage, 2, |_| source.integer(1000));
}

/// All logits are the same number, so far below zero that its exponential is none: the maximum must be subtracted, also when
/// it is negative. Whole powers of two, so that the logits are exact.
fn fill_sunk(candidate: &mut dyn Tensors, stage: &Stage, source: &mut Source) {
    let StageOp::Attention { head_dim, scale, .. } = stage.op else { return };
    let size = (2.0 * AHEAD / (scale.abs() * head_dim as f64)).log2().ceil().exp2() as f32;
    fill_input(candidate, stage, 0, |_| -size);
    fill_input(candidate, stage, 1, |_| 1.0);
    fill_input(candidate, stage, 2, |_| source.integer(1000));
}

/// Rows that see a power of two of keys: their mean of whole numbers is exact.
fn uniform_rows(op: &StageOp, _: Dtype, rows: Vec<usize>) -> Option<Vec<usize>> {
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

/// Columns of a head from which on random patterns of signs differ.
const PATTERNS: usize = 32;

/// Every query looks at one key that it sees. Keys are sign patterns, or points of a parabola where heads are too narrow for
/// patterns that all differ; the query is its key's pattern times the power of two that puts it `AHEAD`.
fn fill_one_hot(candidate: &mut dyn Tensors, stage: &Stage, source: &mut Source) {
    let StageOp::Attention { batch, seq, heads, kv_heads, head_dim, causal, scale } = stage.op else { return };
    let patterns = head_dim >= PATTERNS;
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

fn one_hot_rows(op: &StageOp, dtype: Dtype, rows: Vec<usize>) -> Option<Vec<usize>> {
    let StageOp::Attention { head_dim, seq, .. } = *op else { return None };
    // The formats of 16 bits have no room for a longer parabola. Half precision: queries are twice a key's number times up to
    // 2^10, which puts narrow heads `AHEAD`, and that must stay below 65504. bf16: the square of a key's number has 8 bits.
    let longest = match dtype {
        Dtype::F32 => usize::MAX,
        Dtype::F16 => 32,
        Dtype::Bf16 => 17,
    };
    let fits = head_dim >= PATTERNS || seq <= longest;
    // A parabola's coordinates need two columns.
    (head_dim >= 2 && fits).then_some(rows)
}

/// Each row one value, 0 or a power of two: the mean is that value, the deviation 0, the result the bias.
fn fill_constant(candidate: &mut dyn Tensors, stage: &Stage, source: &mut Source) {
    let width = coverage::output_shape(&stage.op).1;
    // For RMS norm only rows of zeros are exact.
    let centred = matches!(stage.op, StageOp::LayerNorm { .. });
    let rows: Vec<f32> = (0..coverage::output_shape(&stage.op).0)
        .map(|_| if centred { source.sign() * [0.0, 0.5, 1.0, 4.0][source.below(4)] } else { 0.0 })
        .collect();
    fill_input(candidate, stage, 0, |index| rows[index / width]);
}

fn constant_rows(op: &StageOp, _: Dtype, rows: Vec<usize>) -> Option<Vec<usize>> {
    matches!(op, StageOp::LayerNorm { .. } | StageOp::RmsNorm { .. }).then_some(rows)
}

/// Each row a large whole number plus 0 to 3: its sum is exact in any order, so that the mean is off by one division and no more.
/// The bound for any row would allow the rounding of a sum, n times as much.
fn fill_neighbours(candidate: &mut dyn Tensors, stage: &Stage, source: &mut Source) {
    let (_, width) = coverage::output_shape(&stage.op);
    // Just below where whole numbers end to be numbers of the type, so that sums have many bits; in f32 2^13, which half precision
    // cannot hold and which leaves the bound of the variance finite.
    let most = match candidate.graph().tensor(stage.output).dtype {
        Dtype::F32 => 1 << 13,
        Dtype::F16 => 1 << 11,
        Dtype::Bf16 => 1 << 8,
    };
    let below = ((1usize << 24) / width).clamp(4, most);
    let offset = ((1usize << below.ilog2()) - 4) as f32;
    fill_input(candidate, stage, 0, |_| offset + source.below(4) as f32);
}

fn neighbour_rows(op: &StageOp, _: Dtype, rows: Vec<usize>) -> Option<Vec<usize>> {
    matches!(op, StageOp::LayerNorm { .. }).then_some(rows)
}

/// A power of two times any factor is exact but for the factor's own rounding, which the reference shares.
fn fill_powers(candidate: &mut dyn Tensors, stage: &Stage, source: &mut Source) {
    fill_input(candidate, stage, 0, |_| source.sign() * 2f32.powi(source.below(16) as i32 - 8));
}

/// Only where the factor itself is a number of f32.
fn power_rows(op: &StageOp, _: Dtype, rows: Vec<usize>) -> Option<Vec<usize>> {
    let StageOp::Scale { factor, .. } = *op else { return None };
    let exact = match factor {
        Factor::Value(value) => f64::from(value as f32) == value,
        Factor::InverseSqrt(value) => value.sqrt().log2().fract() == 0.0,
    };
    exact.then_some(rows)
}
