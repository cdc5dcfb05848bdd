//! V6: what must hold between two runs of one stage, bit for bit and without a reference: rows that move or change take
//! their results along and leave the others alone, a power of two passes through what is linear, later tokens do not reach
//! earlier rows, equal heads give equal results. An error that the reference and the kernel share cannot hide here.

use crate::verify::{
    candidate::Candidate,
    coverage,
    inputs::{self, Regime, Source},
    tally::Tally,
};
use kernelforge::{
    manifest::spec::{Activation, Dtype},
    plan::stage::{Role, Stage, StageOp},
    protocol::{Gate, GateResult},
};

/// The operands of a stage by position: those that are given with a call, and vectors of weights (biases, gains), which no
/// kernel packs. Matrices of weights and tables stay as they are.
type Operands = Vec<Option<Vec<f32>>>;

/// Changes the operands and returns what the output must become, from what it was; an element that nothing is said about is
/// NaN. `None`: the relation says nothing about this stage.
type Change = fn(&StageOp, &mut Operands, &[f32], &mut Source) -> Option<Vec<f32>>;

const RELATIONS: [(&str, Change); 9] = [
    ("rows reversed", reverse_rows),
    ("sequences reversed", reverse_sequences),
    ("another last row", change_last_row),
    ("other later tokens", change_later_tokens),
    (SPOILT, spoil_later_token),
    (SCALED, scale),
    ("operands exchanged", exchange),
    ("equal heads", equal_heads),
    ("groups of heads reversed", reverse_groups),
];

/// Runs every stage alone. Values and inputs are overwritten, weights are left as they were.
pub fn check(candidate: &mut dyn Candidate, seed: u64) -> Vec<GateResult> {
    (0..candidate.graph().stages.len()).flat_map(|it| check_stage(candidate, it, seed, None)).collect()
}

/// One stage, in all relations or in the one of this name.
pub fn check_stage(candidate: &mut dyn Candidate, index: usize, seed: u64, only: Option<&str>) -> Vec<GateResult> {
    let stage = &candidate.graph().stages[index].clone();
    let seed = seed.wrapping_add(0x06e1 + index as u64);
    inputs::fill_stage(candidate, stage, Regime::Normal, seed);
    if candidate.arithmetic().flushes {
        forget_lost(candidate, stage);
    }
    candidate.stage(index);
    let (given, before) = (operands(candidate, stage), candidate.tensor(stage.output).to_vec());
    let width = coverage::output_shape(&stage.op).1;
    let dtype = candidate.graph().tensor(stage.output).dtype;
    let mut results = Vec::new();
    for (name, change) in RELATIONS.into_iter().filter(|it| only.is_none_or(|only| only == it.0)) {
        if name == SPOILT && !candidate.leaves_later_tokens_out() {
            continue;
        }
        let mut changed = given.clone();
        let mut source = Source::new(seed, 0x0006_0000);
        let Some(mut expected) = change(&stage.op, &mut changed, &before, &mut source) else { continue };
        if name == SCALED {
            forget_subnormals(&mut expected, dtype);
        }
        write(candidate, stage, &changed);
        candidate.stage(index);
        let mut tally = Tally::default();
        let output = candidate.tensor(stage.output);
        let spoilt: Vec<f32>;
        let output = if name == SPOILT {
            // Infinite or NaN: a weight may be 0.
            spoilt = output.iter().map(|it| if it.is_finite() { *it } else { f32::INFINITY }).collect();
            &spoilt
        } else {
            output
        };
        tally.compare_bits_where(width, output, &expected, |it| !it.is_nan());
        results.push(tally.result(Gate::V6Relations, Some(&stage.name), name));
    }
    write(candidate, stage, &given);
    results
}

fn operands(candidate: &dyn Candidate, stage: &Stage) -> Operands {
    let operand = |id| {
        let tensor = candidate.graph().tensor(id);
        (tensor.role != Role::Weight || tensor.shape.len() == 1).then(|| candidate.tensor(id).to_vec())
    };
    stage.inputs.iter().map(|&id| operand(id)).collect()
}

/// Operands below the normal range become zero: where the candidate may take them for that, scaled ones would be none of them.
fn forget_lost(candidate: &mut dyn Candidate, stage: &Stage) {
    for &id in &stage.inputs {
        let tensor = candidate.graph().tensor(id);
        let (role, least) = (tensor.role, tensor.dtype.min_positive());
        if role != Role::Weight {
            candidate.tensor_mut(id).iter_mut().filter(|it| it.abs() < least).for_each(|it| *it = 0.0);
        }
    }
}

fn write(candidate: &mut dyn Candidate, stage: &Stage, operands: &Operands) {
    for (&id, operand) in stage.inputs.iter().zip(operands) {
        if let Some(operand) = operand {
            candidate.tensor_mut(id).copy_from_slice(operand);
        }
    }
}

/// Rows of a stage whose rows know nothing of each other.
fn independent_rows(op: &StageOp) -> Option<usize> {
    match *op {
        StageOp::Attention { .. } | StageOp::Rope { .. } => None,
        _ => Some(coverage::output_shape(op).0).filter(|it| *it > 1),
    }
}

/// The operands that have a row for each row of the output.
fn with_rows<'a>(op: &StageOp, operands: &'a mut Operands) -> impl Iterator<Item = &'a mut Vec<f32>> + use<'a> {
    let rows = coverage::output_shape(op).0;
    let vectors = match op {
        // B too, which has rows of its own where it is no weight.
        StageOp::Matmul { bias, .. } => 1..2 + usize::from(*bias),
        StageOp::LayerNorm { .. } | StageOp::RmsNorm { .. } => 1..3,
        // Every vector lies between x and the residual.
        StageOp::Mlp { gated, bias, .. } => 1..1 + (2 + usize::from(*gated)) * (1 + usize::from(*bias)),
        _ => 0..0,
    };
    let all = operands.iter_mut().enumerate().filter(move |it| !vectors.contains(&it.0));
    all.filter_map(|it| it.1.as_mut()).filter(move |it| it.len().is_multiple_of(rows))
}

fn reversed(data: &[f32], parts: usize) -> Vec<f32> {
    data.chunks_exact((data.len() / parts).max(1)).rev().flatten().copied().collect()
}

fn reverse_rows(op: &StageOp, operands: &mut Operands, before: &[f32], _: &mut Source) -> Option<Vec<f32>> {
    let rows = independent_rows(op)?;
    with_rows(op, operands).for_each(|it| *it = reversed(it, rows));
    Some(reversed(before, rows))
}

fn reverse_sequences(op: &StageOp, operands: &mut Operands, before: &[f32], _: &mut Source) -> Option<Vec<f32>> {
    let (StageOp::Attention { batch, .. } | StageOp::Rope { batch, .. }) = *op else { return None };
    if batch < 2 {
        return None;
    }
    operands.iter_mut().flatten().for_each(|it| *it = reversed(it, batch));
    Some(reversed(before, batch))
}

fn change_last_row(op: &StageOp, operands: &mut Operands, before: &[f32], source: &mut Source) -> Option<Vec<f32>> {
    let rows = independent_rows(op)?;
    for operand in with_rows(op, operands) {
        let start = operand.len() / rows * (rows - 1);
        operand[start..].fill_with(|| source.normal());
    }
    let mut expected = before.to_vec();
    expected[before.len() / rows * (rows - 1)..].fill(f32::NAN);
    Some(expected)
}

fn change_later_tokens(op: &StageOp, operands: &mut Operands, before: &[f32], source: &mut Source) -> Option<Vec<f32>> {
    let StageOp::Attention { batch, seq, causal: true, .. } = *op else { return None };
    if seq < 2 {
        return None;
    }
    // An odd place, so that it is not where a tile ends.
    let first = 1 + source.below(seq - 1);
    let mut expected = before.to_vec();
    let later = |data: &mut [f32], value: &mut dyn FnMut() -> f32| {
        let width = data.len() / (batch * seq);
        let rows = data.chunks_exact_mut(width).enumerate().filter(|it| it.0 % seq >= first);
        rows.for_each(|(_, row)| row.fill_with(&mut *value));
    };
    operands.iter_mut().flatten().for_each(|it| later(it, &mut || 8.0 * source.normal()));
    later(&mut expected, &mut || f32::NAN);
    Some(expected)
}

const SPOILT: &str = "a later token that is not finite";

/// A value of a later token that is not finite, as in memory that nobody wrote, is in the results of those that see it and of no other:
/// a weight of 0 for it is not enough, 0 times infinity is NaN.
fn spoil_later_token(op: &StageOp, operands: &mut Operands, before: &[f32], source: &mut Source) -> Option<Vec<f32>> {
    let StageOp::Attention { batch, seq, causal: true, .. } = *op else { return None };
    if seq < 2 {
        return None;
    }
    let first = 1 + source.below(seq - 1);
    let values = operands.get_mut(2)?.as_mut()?;
    let width = values.len() / (batch * seq);
    let rows = values.chunks_exact_mut(width).enumerate();
    rows.filter(|it| it.0 % seq == first).for_each(|it| it.1.fill(f32::INFINITY));
    let mut expected = before.to_vec();
    let width = expected.len() / (batch * seq);
    let rows = expected.chunks_exact_mut(width).enumerate();
    rows.filter(|it| it.0 % seq >= first).for_each(|it| it.1.fill(f32::INFINITY));
    Some(expected)
}

const SCALED: &str = "operands times 2^7";

/// What was rounded below the normal range, or to its least number, has not the bits that it has when scaled. Of f16 one result
/// in twenty thousand is so small, of f32 none.
fn forget_subnormals(expected: &mut [f32], dtype: Dtype) {
    if dtype == Dtype::F32 {
        return;
    }
    let least = dtype.min_positive() * FACTOR;
    expected.iter_mut().filter(|it| it.abs() <= least).for_each(|it| *it = f32::NAN);
}

/// Results of operands around 1 are at most some hundreds, and times this still below f16's 65504.
const FACTOR: f32 = 128.0;

/// Exact in every order of summation, because it is in every operation.
fn scale(op: &StageOp, operands: &mut Operands, before: &[f32], _: &mut Source) -> Option<Vec<f32>> {
    let positions = match op {
        StageOp::Matmul { activation: None | Some(Activation::Relu), .. } => 0..operands.len(),
        StageOp::Add { .. } | StageOp::Scale { .. } => 0..operands.len(),
        StageOp::Mul { .. } => 0..1,
        // Rotary tables are matrices of weights, so they stay.
        StageOp::Rope { .. } => 0..1,
        StageOp::Attention { .. } => 2..3,
        // Gain and bias.
        StageOp::LayerNorm { .. } | StageOp::RmsNorm { .. } => 1..operands.len(),
        StageOp::Matmul { .. } | StageOp::Mlp { .. } | StageOp::Activation { .. } => return None,
    };
    // Of the two factors of a product one only, also where B is no weight.
    let factor = matches!(op, StageOp::Matmul { .. }).then_some(1);
    for (position, operand) in operands.iter_mut().enumerate() {
        if positions.contains(&position) && Some(position) != factor {
            operand.iter_mut().flatten().for_each(|it| *it *= FACTOR);
        }
    }
    Some(before.iter().map(|it| it * FACTOR).collect())
}

fn exchange(op: &StageOp, operands: &mut Operands, before: &[f32], _: &mut Source) -> Option<Vec<f32>> {
    if !matches!(op, StageOp::Add { .. } | StageOp::Mul { .. }) {
        return None;
    }
    operands.swap(0, 1);
    Some(before.to_vec())
}

/// The heads of a [_, heads * head_dim] matrix in another order, or some of them several times.
fn take_heads(data: &[f32], heads: usize, head_dim: usize, order: impl Fn(usize) -> usize) -> Vec<f32> {
    let rows = data.chunks_exact(heads * head_dim);
    rows.flat_map(|row| {
        (0..heads).flat_map(|it| &row[order(it) * head_dim..(order(it) + 1) * head_dim]).collect::<Vec<_>>()
    })
    .copied()
    .collect()
}

/// Grouped-query attention with repeated keys and values is multi-head attention: with one query for all heads too, every head
/// returns what the first one did.
fn equal_heads(op: &StageOp, operands: &mut Operands, before: &[f32], _: &mut Source) -> Option<Vec<f32>> {
    let StageOp::Attention { heads, kv_heads, head_dim, .. } = *op else { return None };
    if heads < 2 {
        return None;
    }
    for (operand, heads) in operands.iter_mut().flatten().zip([heads, kv_heads, kv_heads]) {
        *operand = take_heads(operand, heads, head_dim, |_| 0);
    }
    Some(take_heads(before, heads, head_dim, |_| 0))
}

fn reverse_groups(op: &StageOp, operands: &mut Operands, before: &[f32], _: &mut Source) -> Option<Vec<f32>> {
    let StageOp::Attention { heads, kv_heads, head_dim, .. } = *op else { return None };
    if kv_heads < 2 {
        return None;
    }
    let group = heads / kv_heads;
    let query = |it: usize| (kv_heads - 1 - it / group) * group + it % group;
    for (position, operand) in operands.iter_mut().enumerate() {
        let operand = operand.as_mut()?;
        *operand = match position {
            0 => take_heads(operand, heads, head_dim, query),
            _ => take_heads(operand, kv_heads, head_dim, |it| kv_heads - 1 - it),
        };
    }
    Some(take_heads(before, heads, head_dim, query))
}
