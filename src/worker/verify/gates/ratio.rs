//! V3: no less accurate than plain code. A worst-case bound has room that rounding errors, being of either sign, hardly ever
//! use; a lost low-order term can hide there. So the errors of many elements together are held against those that plain f32
//! code makes on the same inputs, stored as the candidate's are.

use crate::verify::{
    bounds::{ETA, Precision},
    candidate::{Candidate, precision},
    coverage,
    emulation::emulate,
    inputs::{self, Regime},
    reference::{self, Detail, Operand, Reference},
    tally::Tally,
};
use kernelforge::{
    manifest::spec::Dtype,
    plan::stage::{Stage, StageOp},
    protocol::{Gate, GateResult},
};
use std::collections::BTreeSet;

/// How many times the errors of plain code a kernel's may be.
const FACTOR: f64 = 4.0;

/// f32 operations of the emulation for each stage and regime.
const BUDGET: u64 = 10_000_000;

/// Fewer elements say nothing: by chance plain code may be nearly exact on all of them. Small stages run again on other
/// numbers until there are as many.
const ELEMENTS: usize = 512;

/// Fewer different results say nothing either: where a bias drowns what is computed, every run returns the same few numbers,
/// and by chance plain code is nearly exact on all of them. (An MLP of one column and subnormal inputs did.)
const DIFFERENT: usize = 64;

/// Errors that share a cause are few however many elements they reach: all columns of a row have that of its one hidden
/// element, say. Two mean squares of so many independent normal errors differ by 16 once in 10^11 times.
const INDEPENDENT: f64 = 32.0;

/// Runs on other numbers of a stage that has elements enough, and whose errors were not independent enough. Without this limit
/// a degenerate regime cost 512 runs, and the mutants of one small block 65 seconds instead of 40.
const MORE_RUNS: u64 = 16;

/// Fewer rows do not show what their columns share.
const FEWEST_ROWS: usize = 4;

/// What has been summed over elements.
#[derive(Debug, Default, Clone)]
pub struct Errors {
    elements: usize,
    candidate: f64,
    plain: f64,
    /// Of rounding an exact result, which plain code cannot be asked to beat.
    rounding: f64,
    /// Some of the candidate's results.
    results: BTreeSet<u32>,
    /// Plain code's mean square in each row, and its sum of squares in each column.
    rows: Vec<f64>,
    columns: Vec<f64>,
}

impl Errors {
    /// Adds those of the stage's output as the candidate holds it. `reference` is that of `rows`; some of them are looked at.
    pub fn add(&mut self, candidate: &dyn Candidate, stage: &Stage, rows: &[usize], reference: &Reference) {
        let inputs: Vec<&[f32]> = stage.inputs.iter().map(|&id| candidate.tensor(id)).collect();
        let (count, affordable) = (rows.len(), coverage::rows(&stage.op, BUDGET, 0).len().min(rows.len()));
        // From the first to the last: later rows of causal attention see more keys.
        let chosen: Vec<usize> =
            (0..affordable).map(|it| it * (count - 1) / affordable.saturating_sub(1).max(1)).collect();
        let precision = precision(candidate, stage);
        let Precision { arithmetic, storage } = precision;
        let chosen_rows: Vec<usize> = chosen.iter().map(|&it| rows[it]).collect();
        let plain = emulate(&stage.op, &inputs, &chosen_rows, precision);
        let (width, output) = (coverage::output_shape(&stage.op).1, candidate.tensor(stage.output));
        self.columns.resize(width, 0.0);
        let places = chosen.iter().flat_map(|&row| (0..width).map(move |column| (row, column)));
        for (index, ((row, column), plain)) in places.zip(&plain).enumerate() {
            let (exact, bound) = (reference.value[[row, column]], reference.bound[[row, column]]);
            let computed = &output[rows[row] * width + column];
            let [candidate, plain] = [computed, plain].map(|it| f64::from(*it) - exact);
            if index % width == 0 {
                self.rows.push(0.0);
            }
            // What cannot be judged is V2's to say, of its own run. In the further runs here it is no evidence: two large
            // elements that happen to be equal have no layer norm within f32.
            if !bound.is_finite() || !exact.is_finite() || !plain.is_finite() {
                continue;
            }
            let rounding = match storage {
                Dtype::F32 => 0.5 * arithmetic.unit * exact.abs() + ETA,
                Dtype::F16 | Dtype::Bf16 => 0.5 * arithmetic.stored(storage, 0.0, exact),
            };
            self.elements += 1;
            self.candidate += candidate * candidate;
            self.plain += plain * plain;
            self.rounding += rounding * rounding;
            if let Some(row) = self.rows.last_mut() {
                *row += plain * plain / width as f64;
            }
            self.columns[index % width] += plain * plain;
            if self.results.len() < DIFFERENT {
                self.results.insert(computed.to_bits());
            }
        }
    }

    /// How many independent errors plain code's amount to. The mean of n squares of independent normal errors has a relative
    /// variance of 2 / n; that of the rows' means, and of the columns', says how many there are in each.
    fn independent(&self) -> f64 {
        let degrees = |squares: &[f64]| {
            let n = squares.len() as f64;
            let mean = squares.iter().sum::<f64>() / n;
            let variance = squares.iter().map(|it| (it - mean).powi(2)).sum::<f64>() / n;
            // A few may be alike by chance.
            let caution = 1.0 + 16.0 / n;
            if variance == 0.0 { f64::INFINITY } else { 2.0 * n * mean * mean / variance / caution }
        };
        match (self.rows.len(), self.columns.len()) {
            // A few rows do not show what their columns share: a norm's mean is one error for all of them.
            (..FEWEST_ROWS, _) => 0.0,
            (_, 1) => degrees(&self.rows),
            _ => degrees(&self.rows).min(degrees(&self.columns)),
        }
    }

    /// Runs a small stage on other tensors of the regime until there are enough elements, and holds the errors against those of
    /// plain code. Nothing where there is too little for statistics.
    pub fn finish(
        mut self,
        candidate: &mut dyn Candidate,
        index: usize,
        regime: Regime,
        seed: u64,
    ) -> Option<GateResult> {
        let stage = candidate.graph().stages[index].clone();
        // Equal logits: the errors of all results are that of one common weight. Logits far apart: of all rows only the few
        // where two keys are close have an error.
        if matches!((&stage.op, regime), (StageOp::Attention { .. }, Regime::Sunk | Regime::Peaky)) {
            return None;
        }
        let (rows, width) = coverage::output_shape(&stage.op);
        let cost = 2 * stage.op.flops() + 32 * (rows * width) as u64;
        let most = if self.elements < ELEMENTS { ELEMENTS as u64 } else { MORE_RUNS };
        let runs = (BUDGET / cost.max(1)).clamp(FEWEST_ROWS as u64, most);
        for lane in 1..=runs {
            if self.elements >= ELEMENTS && self.independent() >= INDEPENDENT {
                break;
            }
            let seed = seed.wrapping_add(0x0040_0000 + lane);
            inputs::fill_stage(candidate, &stage, regime, seed);
            candidate.stage(index);
            let rows = coverage::rows(&stage.op, BUDGET, seed);
            let inputs: Vec<Operand> = stage.inputs.iter().map(|&id| Operand::F32(candidate.tensor(id))).collect();
            let precision = precision(candidate, &stage);
            let reference = reference::evaluate(&stage.op, &inputs, &rows, Detail::Bound, precision);
            self.add(candidate, &stage, &rows, &reference);
        }
        let enough = self.results.len() >= DIFFERENT && self.independent() >= INDEPENDENT;
        enough.then(|| self.result(&stage, regime.name()))
    }

    fn result(self, stage: &Stage, case: &str) -> GateResult {
        let mut tally = Tally::default();
        let rms = |it: f64| (it / self.elements as f64).sqrt();
        tally.compare_rms("RMS error", rms(self.candidate), FACTOR * rms(self.plain.max(self.rounding)));
        tally.result(Gate::V3ErrorRatio, Some(&stage.name), case)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Errors of a [rows, columns] output: `error(row, column)` times a standard normal number.
    fn independent(rows: usize, columns: usize, common: bool) -> f64 {
        let mut source = inputs::Source::new(1, 0);
        let mut errors = Errors { columns: vec![0.0; columns], ..Errors::default() };
        for _ in 0..rows {
            let of_row = source.normal();
            let square = |it: f32| f64::from(it * it);
            let row: Vec<f64> = (0..columns).map(|_| square(if common { of_row } else { source.normal() })).collect();
            errors.rows.push(row.iter().sum::<f64>() / columns as f64);
            errors.columns.iter_mut().zip(&row).for_each(|(sum, it)| *sum += it);
        }
        errors.independent()
    }

    #[test]
    fn errors_that_a_row_shares_count_once() {
        assert!(independent(8, 500, false) > 500.0);
        let shared = independent(8, 500, true);
        assert!(shared < INDEPENDENT, "{shared}");
        let many = independent(400, 50, true);
        assert!((100.0..1600.0).contains(&many), "{many}");
    }
}
