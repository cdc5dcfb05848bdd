//! V4, the part about poison: nothing that a kernel has not written decides what it returns, inputs and weights stay as
//! they are, and the two ways to run a block agree.

use crate::verify::{candidate::Candidate, coverage, tally::Tally};
use kernelforge::{
    plan::stage::{Role, TensorId},
    protocol::{Gate, GateResult},
};

/// What values, outputs and workspaces hold before a run: once what spreads, once what is finite and hides in a sum.
const POISONS: [(f32, &str); 2] = [(f32::NAN, "NaN"), (1.267_650_6e30, "2^100")];

/// Runs all stages on poisoned memory.
fn run(candidate: &mut dyn Candidate, poison: f32) {
    candidate.poison(poison);
    (0..candidate.graph().stages.len()).for_each(|it| candidate.stage(it));
}

/// Compares runs bit for bit. Tensors must be filled and prepared. Afterwards they hold what a run of all stages left, so
/// that a gate that judges what stages received can follow.
pub fn check(candidate: &mut dyn Candidate) -> Vec<GateResult> {
    let given = fingerprints(candidate);
    let computed: Vec<TensorId> = candidate.graph().stages.iter().map(|it| it.output).collect();
    run(candidate, POISONS[0].0);
    let first: Vec<Vec<f32>> = computed.iter().map(|&id| candidate.tensor(id).to_vec()).collect();
    let mut results = Vec::new();

    run(candidate, POISONS[1].0);
    for (index, stage) in candidate.graph().stages.iter().enumerate() {
        let mut tally = Tally::default();
        tally.compare_bits(coverage::output_shape(&stage.op).1, candidate.tensor(stage.output), &first[index]);
        results.push(tally.result(Gate::V4Memory, Some(&stage.name), "2^100 against NaN as poison"));
    }

    for (poison, name) in POISONS {
        candidate.poison(poison);
        candidate.block();
        let tally = same(candidate, &computed, &first, |role| role == Role::Output);
        results.push(tally.result(Gate::V4Memory, None, format!("block against its stages, {name} as poison")));
    }

    // Not poisoned again: the workspaces hold what the block entry left.
    (0..computed.len()).for_each(|it| candidate.stage(it));
    let tally = same(candidate, &computed, &first, |_| true);
    results.push(tally.result(Gate::V4Memory, None, "another run on used memory"));

    results.push(unchanged(candidate, &given));
    results
}

/// Compares the computed tensors whose role is asked for with an earlier run.
fn same(candidate: &dyn Candidate, ids: &[TensorId], earlier: &[Vec<f32>], asked: fn(Role) -> bool) -> Tally {
    let mut tally = Tally::default();
    for (&id, earlier) in ids.iter().zip(earlier) {
        let tensor = candidate.graph().tensor(id);
        if asked(tensor.role) {
            tally.compare_bits(tensor.shape.last().copied().unwrap_or(1), candidate.tensor(id), earlier);
        }
    }
    tally
}

fn unchanged(candidate: &dyn Candidate, given: &[(TensorId, u64)]) -> GateResult {
    let now = fingerprints(candidate);
    let changed = given.iter().zip(&now).filter(|(before, after)| before != after);
    let changed: Vec<&str> = changed.map(|(before, _)| candidate.graph().tensor(before.0).name.as_str()).collect();
    let mut tally = Tally::default();
    tally.expect(changed.is_empty(), || format!("the kernel wrote to its inputs: {}", changed.join(", ")));
    tally.result(Gate::V4Memory, None, "inputs and weights after the runs")
}

/// A 64-bit sum of the bits of every input and weight: not cryptographic, because nobody chooses the bits.
fn fingerprints(tensors: &dyn Candidate) -> Vec<(TensorId, u64)> {
    let given = tensors.graph().tensors.iter().enumerate().filter(|it| matches!(it.1.role, Role::Input | Role::Weight));
    let sum = |data: &[f32]| {
        data.iter().fold(0xcbf2_9ce4_8422_2325, |sum: u64, it| {
            (sum ^ u64::from(it.to_bits())).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        })
    };
    given.map(|(index, _)| (TensorId(index), sum(tensors.tensor(TensorId(index))))).collect()
}
