//! The gates that cost little, for the schedules of a search: one operation, one normal draw (V2), its exact cases (V1), two runs
//! that must agree bit for bit on memory poisoned differently, and protected pages or guard bands around every buffer (V4).
//!
//! What a kernel is held against is evaluated once for all schedules of an operation ([`recall`]): for a product of 128x768x3072,
//! drawing the operands and evaluating values and bounds takes many times as long as the kernel's runs and all comparisons. That
//! is why the seed is the search's and not the object's. It is no hole: who wins a search goes through all gates.

use super::{
    bounds::Precision,
    candidate::{Candidate, Tensors, precision},
    coverage,
    drawn::Drawn,
    gates::{exactness, guard},
    inputs::{self, Source},
    reference::{self, Detail, Operand, Reference},
    tally::Tally,
};
use kernelforge::{
    digest::Digest,
    half,
    manifest::spec::Dtype,
    plan::{
        operation,
        stage::{Stage, StageGraph, TensorId},
    },
    protocol::{Failure, FailureKind, Gate, GateResult},
};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

/// f64 operations of one case's reference. Spent once for an operation, so it may be more than what one regime of a full
/// verification spends.
const BUDGET: u64 = 2_000_000_000;

/// Elements of one case that are compared; this is spent for every schedule. Larger results are sampled by rows: what a schedule
/// gets wrong it gets wrong in whole tiles.
const MOST_ELEMENTS: usize = 1 << 20;

/// Bytes of all references that are remembered. A case of 128x768x3072 has 18 MB: 11 of tensors, 6 of values and bounds.
const MOST_BYTES: usize = 512 << 20;

/// Tables of any base are tables.
const ROPE_THETA: f64 = 10_000.0;

/// What a stage is given in one case, and what it has to make of it.
struct Case {
    gate: Gate,
    name: &'static str,
    given: Vec<(TensorId, Vec<f32>)>,
    rows: Vec<usize>,
    reference: Reference,
}

/// All cases of an operation.
pub struct Expected {
    precision: Precision,
    cases: Vec<Case>,
}

impl Expected {
    fn evaluate(graph: &StageGraph, stage: &Stage, precision: Precision, seed: u64) -> Self {
        let mut drawn = Drawn::new(graph.clone());
        inputs::fill(&mut drawn, ROPE_THETA, seed);
        let (height, width) = coverage::output_shape(&stage.op);
        let mut rows = coverage::rows(&stage.op, BUDGET, seed);
        if rows.len() * width > MOST_ELEMENTS {
            rows = coverage::sample(height, MOST_ELEMENTS / width.max(1), seed);
        }
        let mut cases = vec![case(&mut drawn, (Gate::V2Bound, "normal", Detail::Bound), rows.clone(), precision)];
        // A tensor that is two operands at once cannot be what an exact case wants of each.
        let mut operands = stage.inputs.clone();
        operands.sort();
        operands.dedup();
        if operands.len() == stage.inputs.len() {
            exactness::fill_weights(&mut drawn, stage, &mut Source::new(seed, 0xe8ac_0000));
            for (lane, exact) in exactness::CASES.iter().enumerate() {
                let Some(rows) = (exact.rows)(&stage.op, precision.storage, rows.clone()) else { continue };
                (exact.fill)(&mut drawn, stage, &mut Source::new(seed, 0xca5e_0000 + lane as u64));
                let what = (Gate::V1Exactness, exact.name, Detail::ExactSums);
                cases.push(case(&mut drawn, what, rows, precision));
            }
        }
        Self { precision, cases }
    }

    fn bytes(&self) -> usize {
        let of = |it: &Case| {
            let given: usize = it.given.iter().map(|it| it.1.len() * 4).sum();
            given + it.rows.len() * 8 + 16 * it.reference.value.len()
        };
        self.cases.iter().map(of).sum()
    }
}

/// The case of what is drawn now.
fn case(
    drawn: &mut Drawn,
    (gate, name, detail): (Gate, &'static str, Detail),
    rows: Vec<usize>,
    precision: Precision,
) -> Case {
    let graph = drawn.graph().clone();
    for (index, tensor) in graph.tensors.iter().enumerate().filter(|it| it.1.dtype != Dtype::F32) {
        let values = drawn.tensor_mut(TensorId(index));
        values.iter_mut().for_each(|it| *it = half::nearest(tensor.dtype, *it));
    }
    let stage = &graph.stages[0];
    let operands: Vec<_> = stage.inputs.iter().map(|id| Operand::F32(drawn.tensor(*id))).collect();
    let reference = reference::evaluate(&stage.op, &operands, &rows, detail, precision);
    let given = drawn.given().map(|(id, values)| (id, values.to_vec())).collect();
    Case { gate, name, given, rows, reference }
}

/// What is remembered, the least recently used first.
static REMEMBERED: Mutex<VecDeque<(Key, Arc<Expected>)>> = Mutex::new(VecDeque::new());

/// The operation's signature, and the seed.
type Key = (Digest, u64);

/// What the operation's kernels have to compute, remembered or evaluated.
///
/// # Errors
/// `Internal` when the graph is not one operation.
fn recall(candidate: &dyn Candidate, seed: u64) -> Result<Arc<Expected>, Failure> {
    let graph = candidate.graph();
    let [stage] = graph.stages.as_slice() else {
        let message = format!("`{}` has {} stages: what is tried is one operation", graph.block, graph.stages.len());
        return Err(Failure::new(FailureKind::Internal, message));
    };
    let (key, precision) = ((operation::signature(graph), seed), precision(candidate, stage));
    let mut remembered = REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner);
    // A schedule may compute with other operations than the one before it: cooperative products.
    if let Some(at) = remembered.iter().position(|(known, it)| *known == key && it.precision == precision)
        && let Some(found) = remembered.remove(at)
    {
        let expected = Arc::clone(&found.1);
        remembered.push_back(found);
        return Ok(expected);
    }
    drop(remembered);
    let expected = Arc::new(Expected::evaluate(graph, stage, precision, seed));
    let mut remembered = REMEMBERED.lock().unwrap_or_else(PoisonError::into_inner);
    remembered.push_back((key, Arc::clone(&expected)));
    let mut bytes: usize = remembered.iter().map(|it| it.1.bytes()).sum();
    // What alone is larger than all that may be kept is not kept either.
    while bytes > MOST_BYTES
        && let Some((_, oldest)) = remembered.pop_front()
    {
        bytes -= oldest.bytes();
    }
    Ok(expected)
}

/// Runs the candidate, which computes one operation, in all cases. A run that left its buffers is told first: whatever it
/// returned, that is why.
///
/// # Errors
/// As [`recall`].
pub fn examine(candidate: &mut dyn Candidate, seed: u64) -> Result<Vec<GateResult>, Failure> {
    let expected = recall(candidate, seed)?;
    let stage = candidate.graph().stages[0].clone();
    let width = coverage::output_shape(&stage.op).1;
    let mut results = Vec::new();
    for (index, case) in expected.cases.iter().enumerate() {
        for (id, values) in &case.given {
            candidate.tensor_mut(*id).copy_from_slice(values);
        }
        candidate.prepare();
        candidate.poison(f32::NAN);
        candidate.stage(0);
        let mut tally = Tally::of(expected.precision.storage);
        let Reference { value, bound } = &case.reference;
        tally.compare_rows(candidate.tensor(stage.output), &case.rows, value, bound);
        results.push(tally.result(case.gate, Some(&stage.name), case.name));
        if index == 0 {
            results.push(repeated(candidate, &stage, width));
        }
        let mut tally = Tally::default();
        for (id, values) in &case.given {
            let width = candidate.graph().tensor(*id).shape.last().copied().unwrap_or(1);
            tally.compare_bits(width, candidate.tensor(*id), values);
        }
        results.push(tally.result(Gate::V4Memory, Some(&stage.name), format!("{}, inputs after the runs", case.name)));
    }
    let mut guards = guard::check_end(candidate);
    guards.append(&mut results);
    Ok(guards)
}

/// The run that was just judged again: by the block's entry, which is what is timed, on the other poison.
fn repeated(candidate: &mut dyn Candidate, stage: &Stage, width: usize) -> GateResult {
    let first = candidate.tensor(stage.output).to_vec();
    candidate.poison(2f32.powi(100));
    candidate.block();
    let mut tally = Tally::default();
    tally.compare_bits(width, candidate.tensor(stage.output), &first);
    tally.result(Gate::V4Memory, Some(&stage.name), "block against its stage, 2^100 against NaN as poison")
}
