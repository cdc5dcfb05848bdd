//! V2: every stage within its rounding bound, on the inputs that it really received. A stage too large for a full
//! reference is checked at sampled rows, and at all rows in the ways of `Judged`.

use super::Judged;
use crate::verify::{
    candidate::Candidate,
    coverage,
    inputs::Regime,
    reference::{Detail, Reference},
};
use kernelforge::{
    plan::stage::Stage,
    protocol::{Gate, GateResult},
};

/// Judges the output that the candidate's last run left in the stage's tensor, at so many rows as `budget` allows. Returns
/// the reference that it was held against and its rows too.
pub fn check(
    candidate: &dyn Candidate,
    stage: &Stage,
    regime: Regime,
    budget: u64,
    seed: u64,
) -> (Vec<GateResult>, Vec<usize>, Reference) {
    let rows = coverage::rows(&stage.op, budget, seed);
    let judged = Judged { gate: Gate::V2Bound, stage, case: regime.name(), detail: Detail::Bound, seed };
    let (results, reference) = judged.judge_and_keep(candidate, &rows);
    (results, rows, reference)
}
