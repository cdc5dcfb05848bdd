//! V4, the part about threads: the units of a stage are independent. Whatever range of them a call is given, it writes these
//! units' part of the output and nothing else, and the parts together are the whole. One thread alone never shows this.

use crate::verify::{candidate::Candidate, tally::Tally};
use kernelforge::protocol::{Gate, GateResult};

/// Tensors must hold what a run of all stages left, and hold it afterwards.
pub fn check(candidate: &mut dyn Candidate) -> Vec<GateResult> {
    let stages = candidate.graph().stages.clone();
    let mut results = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        let units = candidate.units(index);
        if units < 2 {
            continue;
        }
        let whole = candidate.tensor(stage.output).to_vec();
        let width = candidate.graph().tensor(stage.output).shape.last().copied().unwrap_or(1);
        // Other than 0..n/2 first: a call that always begins at 0 must not find its work already done.
        let ranges = [units / 2..units, 0..units / 2];
        let mut joined = vec![f32::NAN; whole.len()];
        let mut twice = None;
        for range in ranges {
            candidate.tensor_mut(stage.output).fill(f32::NAN);
            candidate.stage_units(index, range.start, range.end);
            for (at, (joined, part)) in joined.iter_mut().zip(candidate.tensor(stage.output)).enumerate() {
                if !part.is_nan() {
                    twice = twice.or((!joined.is_nan()).then_some(at));
                    *joined = *part;
                }
            }
        }
        let mut tally = Tally::default();
        tally.compare_bits(width, &joined, &whole);
        if let Some(at) = twice {
            // An element that belongs to two ranges: two threads would race for it.
            tally.compare(&[at / width, at % width], 2.0, 1.0, 0.0);
        }
        let case = format!("units {}..{units} and 0..{} apart", units / 2, units / 2);
        results.push(tally.result(Gate::V4Memory, Some(&stage.name), case));

        // Threads may finish in any order: what one unit writes into another's part is not made good by the other coming later.
        candidate.tensor_mut(stage.output).fill(f32::NAN);
        (0..units).rev().for_each(|unit| candidate.stage_units(index, unit, unit + 1));
        let mut tally = Tally::default();
        tally.compare_bits(width, candidate.tensor(stage.output), &whole);
        results.push(tally.result(Gate::V4Memory, Some(&stage.name), "unit by unit, the last one first"));
        candidate.tensor_mut(stage.output).copy_from_slice(&whole);
    }
    results
}
