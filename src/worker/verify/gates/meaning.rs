//! V2Meaning: the stages mean what the manifest says. Two evaluations in f64, of the stage graph (what the passes made) and of
//! the specification (written apart from it), must agree. No generated code runs here.

use crate::verify::{
    candidate::Tensors,
    coverage, inputs,
    oracle::{self, Named},
    reference::{self, Operand},
    tally::Tally,
};
use kernelforge::{
    manifest::spec::{BlockSpec, NormKind},
    plan::stage::{Role, StageGraph, StageOp, TensorId},
    protocol::{Gate, GateResult, GateStatus},
};
use std::collections::{BTreeMap, BTreeSet};

/// Largest difference, relative to the largest element of the row.
///
/// Both sides round in f64 (2^-53) only. A product of K <= 2^15 terms is off by at most K 2^-53 = 4e-12 of the magnitudes
/// summed, in practice by sqrt(K) 2^-53; a norm of near-constant rows raises that by offset / deviation, 8 here; and a block is six products deep. So 1e-9 has room for three digits over
/// what occurs, and is still 60 times smaller than one rounding to f32: a constant kept as f32 where the manifest has an f64 shows.
const TOLERANCE: f64 = 1e-9;

/// f64 operations for each of the two evaluations before rows are sampled.
const BUDGET: u64 = 250_000_000;

/// Evaluates both sides on each set of tensors, which it writes into `tensors`.
pub fn check(tensors: &mut dyn Tensors, block: &BlockSpec, seed: u64) -> Vec<GateResult> {
    inputs::fill(tensors, inputs::rope_theta(block), seed);
    let mut results = vec![compare(tensors, block, "normal", seed)];
    if make_near_constant(tensors, block) {
        results.push(compare(tensors, block, "near-constant rows", seed));
    }
    results
}

/// Scales what each norm reads to a variance close to epsilon: `x`, or the weights of the product before the norm. Says
/// whether the block has a norm.
fn make_near_constant(tensors: &mut dyn Tensors, block: &BlockSpec) -> bool {
    let (norm, scaled): (_, &[&str]) = match *block {
        // The second norm reads x plus the attention's output.
        BlockSpec::Transformer { norm, .. } => (norm, &["x", "attn.wo", "attn.bo"]),
        BlockSpec::TransformerMicroblock { norm, .. } => (norm, &["attn.wv", "attn.bv"]),
        BlockSpec::Microblock { norm, .. } => (norm, &["w", "b"]),
        BlockSpec::LayerNorm { norm, .. } => (norm, &["x"]),
        BlockSpec::Attention { .. } | BlockSpec::Mlp { .. } | BlockSpec::Matmul { .. } => return false,
    };
    let deviation = norm.eps.sqrt() as f32;
    for (name, id) in given(tensors.graph()) {
        if scaled.contains(&name.as_str()) {
            let offset = if name == "x" && norm.kind == NormKind::LayerNorm { 8.0 } else { 0.0 };
            tensors.tensor_mut(id).iter_mut().for_each(|it| *it = deviation * (*it + offset));
        }
    }
    true
}

/// Inputs and weights by name.
fn given(graph: &StageGraph) -> BTreeMap<String, TensorId> {
    let tensors = graph.tensors.iter().enumerate();
    let given = tensors.filter(|it| matches!(it.1.role, Role::Input | Role::Weight));
    given.map(|(index, it)| (it.name.clone(), TensorId(index))).collect()
}

struct ByName<'a> {
    tensors: &'a dyn Tensors,
    ids: BTreeMap<String, TensorId>,
}

impl Named for ByName<'_> {
    fn get(&self, name: &str) -> Option<&[f32]> {
        self.ids.get(name).map(|&id| self.tensors.tensor(id))
    }
}

fn compare(tensors: &dyn Tensors, block: &BlockSpec, case: &str, seed: u64) -> GateResult {
    let graph = tensors.graph();
    let shape = oracle::output_shape(block);
    let output = match outputs(graph, shape) {
        Ok(output) => output,
        Err(message) => return refused(case, message),
    };
    let count = usize::try_from(BUDGET * shape.0 as u64 / graph.flops().max(1)).unwrap_or(usize::MAX);
    let rows = coverage::sample(shape.0, count, seed);
    let by_name = ByName { tensors, ids: given(graph) };
    let meant = match oracle::evaluate(block, &by_name, &rows) {
        Ok(meant) => meant,
        Err(error) => return refused(case, error.to_string()),
    };
    let staged = evaluate_stages(tensors, output, &rows);
    let mut tally = Tally::default();
    for (index, (meant, staged)) in meant.rows().into_iter().zip(&staged).enumerate() {
        let largest = meant.fold(0.0, |a: f64, b| a.max(b.abs()));
        for (column, (&meant, &staged)) in meant.iter().zip(staged).enumerate() {
            tally.compare(&[rows[index], column], staged, meant, TOLERANCE * largest);
        }
    }
    tally.result(Gate::V2Meaning, None, case)
}

/// The graph's one output, which must have the shape of the block's `y`.
fn outputs(graph: &StageGraph, (rows, columns): (usize, usize)) -> Result<TensorId, String> {
    let outputs: Vec<_> = graph.with_role(Role::Output).collect();
    match outputs.as_slice() {
        &[(id, tensor)] if tensor.shape == [rows, columns] => Ok(id),
        &[(_, tensor)] => Err(format!("the stages return {:?}, the block is [{rows}, {columns}]", tensor.shape)),
        many => Err(format!("the stages return {} tensors, the block one", many.len())),
    }
}

fn refused(case: &str, message: String) -> GateResult {
    GateResult {
        gate: Gate::V2Meaning,
        stage: None,
        case: case.to_owned(),
        status: GateStatus::Failed,
        checked: 0,
        worst_ratio: None,
        mismatch: None,
        message,
    }
}

/// The rows `wanted` of `output`, every value in between kept in f64.
fn evaluate_stages(tensors: &dyn Tensors, output: TensorId, wanted: &[usize]) -> Vec<Vec<f64>> {
    let graph = tensors.graph();
    let needed = needed_rows(graph, output, wanted);
    // Rows that nobody needs stay NaN, so that a row wrongly thought to be unneeded shows in the output.
    let mut values: BTreeMap<TensorId, Vec<f64>> = BTreeMap::new();
    for stage in &graph.stages {
        let Some(rows) = needed.get(&stage.output) else { continue };
        let rows: Vec<usize> = rows.iter().copied().collect();
        let operand = |id: &TensorId| match values.get(id) {
            Some(data) => Operand::F64(data),
            None => Operand::F32(tensors.tensor(*id)),
        };
        let operands: Vec<Operand> = stage.inputs.iter().map(operand).collect();
        let result = reference::value(&stage.op, &operands, &rows);
        let (all, width) = coverage::output_shape(&stage.op);
        let mut data = vec![f64::NAN; all * width];
        for (row, result) in rows.iter().zip(result.rows()) {
            data[row * width..(row + 1) * width].iter_mut().zip(result).for_each(|(to, from)| *to = *from);
        }
        values.insert(stage.output, data);
    }
    let width = graph.tensor(output).shape[1];
    let row = |row: &usize| values.get(&output).map_or_else(Vec::new, |it| it[row * width..(row + 1) * width].to_vec());
    wanted.iter().map(row).collect()
}

/// Which rows of each computed tensor decide the rows `wanted` of `output`: attention reads all keys and values, everything
/// else its own rows.
fn needed_rows(graph: &StageGraph, output: TensorId, wanted: &[usize]) -> BTreeMap<TensorId, BTreeSet<usize>> {
    let mut needed = BTreeMap::from([(output, wanted.iter().copied().collect::<BTreeSet<_>>())]);
    for stage in graph.stages.iter().rev() {
        let Some(rows) = needed.get(&stage.output).cloned() else { continue };
        for (position, &id) in stage.inputs.iter().enumerate() {
            match (graph.tensor(id).role, &stage.op) {
                (Role::Input | Role::Weight, _) => {}
                (_, StageOp::Attention { batch, seq, .. }) if position > 0 => {
                    needed.entry(id).or_default().extend(0..batch * seq);
                }
                _ => needed.entry(id).or_default().extend(&rows),
            }
        }
    }
    needed
}
