//! V2: every stage within its rounding bound, on the inputs that it really received. A stage too large for a full
//! reference is checked at sampled rows, and at all rows in the ways of `Judged`.

use super::Judged;
use crate::verify::{
    candidate::Candidate,
    coverage,
    inputs::{self, Regime},
    reference::Detail,
};
use kernelforge::{
    plan::stage::Stage,
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
    let judged = Judged { gate: Gate::V2Bound, stage, case: regime.name(), detail: Detail::Bound, seed };
    judged.judge(candidate, &rows)
}
