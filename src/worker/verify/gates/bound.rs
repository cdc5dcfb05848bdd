//! V2: every stage within its rounding bound, on the inputs that it really received. A stage too large for a full
//! reference is checked at sampled rows, and at all rows through a random projection where it is linear.

use super::operands;
use crate::verify::{
    candidate::Candidate,
    coverage,
    inputs::{self, Regime},
    projection::{Linear, Sums},
    reference::{self, Detail},
    tally::Tally,
};
use kernelforge::{
    plan::stage::{Stage, StageOp},
    protocol::{Gate, GateResult},
};

/// Judges the outputs that the candidate's last run of all stages left in its tensors.
pub fn check_received(candidate: &dyn Candidate, seed: u64) -> Vec<GateResult> {
    let stages = candidate.graph().stages.iter();
    stages.flat_map(|stage| judge(candidate, stage, Regime::Normal, coverage::FULL, seed)).collect()
}

/// Runs every stage alone on each synthetic regime. Weights stay as they are; values and inputs are overwritten.
pub fn check_regimes(candidate: &mut dyn Candidate, seed: u64) -> Vec<GateResult> {
    let stages = candidate.graph().stages.clone();
    let mut results = Vec::new();
    for (lane, regime) in (1..).zip(Regime::SYNTHETIC) {
        let seed = seed.wrapping_add(lane);
        for (index, stage) in stages.iter().enumerate() {
            inputs::fill_stage(candidate, stage, regime, seed);
            candidate.stage(index);
            results.extend(judge(candidate, stage, regime, coverage::LIGHT, seed));
        }
    }
    results
}

fn judge(candidate: &dyn Candidate, stage: &Stage, regime: Regime, budget: u64, seed: u64) -> Vec<GateResult> {
    let rows = coverage::rows(&stage.op, budget, seed);
    let reference = reference::evaluate(&stage.op, &operands(candidate, stage), &rows, Detail::Bound);
    let mut tally = Tally::default();
    tally.compare_rows(candidate.tensor(stage.output), &rows, &reference.value, &reference.bound);
    let all = coverage::output_shape(&stage.op).0;
    let sampled = rows.len() < all;
    let case = match sampled {
        true => format!("{}, {} of {all} rows", regime.name(), rows.len()),
        false => regime.name().to_owned(),
    };
    let mut results = vec![tally.result(Gate::V2Bound, Some(&stage.name), case)];
    if let (true, Some(linear)) = (sampled, linear(candidate, stage)) {
        let mut tally = Tally::default();
        linear.check(Sums::Rounded, seed, &mut tally);
        let case = format!("{}, all rows by projection", regime.name());
        results.push(tally.result(Gate::V2Bound, Some(&stage.name), case));
    }
    results
}

/// The stage as a linear one, where it is.
pub fn linear<'a>(candidate: &'a dyn Candidate, stage: &Stage) -> Option<Linear<'a>> {
    let StageOp::Matmul { m, n, k, bias, activation: None, residual } = stage.op else { return None };
    let input = |index: usize| candidate.tensor(stage.inputs[index]);
    let (bias, residual) = (bias.then(|| input(2)), residual.then(|| input(stage.inputs.len() - 1)));
    Some(Linear { m, n, k, a: input(0), w: input(1), bias, residual, output: candidate.tensor(stage.output) })
}
