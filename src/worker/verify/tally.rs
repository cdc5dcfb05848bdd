//! Comparing element by element: what is counted, what fails, what is inconclusive. The only place that decides.

use kernelforge::{
    manifest::spec::Dtype,
    protocol::{Gate, GateResult, GateStatus, Mismatch},
};
use ndarray::Array2;

/// The comparisons of one gate at one stage in one case.
#[derive(Debug)]
pub struct Tally {
    /// What the candidate stores its results as.
    storage: Dtype,
    checked: u64,
    /// Largest error / bound so far among elements with a usable bound; 0 where both are 0.
    worst_ratio: f64,
    failed: Option<Mismatch>,
    inconclusive: Option<Mismatch>,
    /// What an expectation that did not hold says, where that is no comparison of two numbers.
    broken: Option<String>,
}

impl Default for Tally {
    fn default() -> Self {
        Self::of(Dtype::F32)
    }
}

impl Tally {
    /// Of results that are stored as this.
    pub const fn of(storage: Dtype) -> Self {
        Self { storage, checked: 0, worst_ratio: 0.0, failed: None, inconclusive: None, broken: None }
    }

    /// Compares one element. A candidate that is not finite where the reference is fails whatever the bound; a bound that
    /// is not finite decides nothing, and so does a reference that the storage cannot hold.
    pub fn compare(&mut self, element: &[usize], value: f64, expected: f64, bound: f64) {
        self.checked += 1;
        let (value, bound) = super::weakness::observe(value, expected, bound, self.storage);
        let mismatch = || Mismatch {
            element: element.to_vec(),
            value: format!("{value:e}"),
            expected: format!("{expected:e}"),
            bound: format!("{bound:e}"),
        };
        let representable =
            expected.abs() + if bound.is_finite() { bound } else { 0.0 } <= f64::from(self.storage.max());
        if !value.is_finite() && representable {
            if self.worst_ratio < f64::INFINITY {
                self.failed = Some(mismatch());
            }
            self.worst_ratio = f64::INFINITY;
        } else if !representable || !bound.is_finite() {
            self.inconclusive.get_or_insert_with(mismatch);
        } else {
            let error = (value - expected).abs();
            // Not `error / bound > 1`: both may be zero.
            let ratio = if error == 0.0 { 0.0 } else { error / bound };
            if error > bound && ratio > self.worst_ratio {
                self.failed = Some(mismatch());
            }
            self.worst_ratio = self.worst_ratio.max(ratio);
        }
    }

    /// Compares rows of the candidate's [_, width] output with the references of those rows.
    pub fn compare_rows(&mut self, output: &[f32], rows: &[usize], value: &Array2<f64>, bound: &Array2<f64>) {
        let width = value.ncols();
        for (index, &row) in rows.iter().enumerate() {
            for column in 0..width {
                let got = output.get(row * width + column).copied().unwrap_or(f32::NAN);
                self.compare(&[row, column], f64::from(got), value[[index, column]], bound[[index, column]]);
            }
        }
    }

    /// Compares bits: any difference fails.
    pub fn compare_bits(&mut self, width: usize, value: &[f32], expected: &[f32]) {
        self.compare_bits_where(width, value, expected, |_| true);
    }

    /// So many elements were compared, and none differs.
    pub const fn agree(&mut self, elements: usize) {
        self.checked += elements as u64;
    }

    /// Compares bits where `asked` says so of the expected value: any difference fails.
    pub fn compare_bits_where(&mut self, width: usize, value: &[f32], expected: &[f32], asked: fn(f32) -> bool) {
        self.checked += expected.iter().filter(|it| asked(**it)).count() as u64;
        let differs = |(a, b): (&f32, &f32)| {
            asked(*b) && a.to_bits() != b.to_bits() && !super::weakness::overlooks(*a, *b, self.storage)
        };
        let at = value.iter().zip(expected).position(differs).or((value.len() != expected.len()).then_some(0));
        if let (Some(at), None) = (at, &self.failed) {
            let text = |data: &[f32]| data.get(at).map_or_else(|| "nothing".to_owned(), |it| format!("{it:e}"));
            self.failed = Some(Mismatch {
                element: vec![at / width.max(1), at % width.max(1)],
                value: text(value),
                expected: text(expected),
                bound: "0".to_owned(),
            });
        }
    }

    /// A figure of many elements, `what`, that must not exceed its limit. A limit that is no number decides nothing.
    pub fn compare_rms(&mut self, what: &str, value: f64, limit: f64) {
        let before = self.failed.is_some();
        self.compare(&[], value, 0.0, limit);
        if let (Some(it), false) = (&self.failed, before) {
            self.broken =
                Some(format!("{what} {} is above its limit {} (4 times that of plain f32 code)", it.value, it.bound));
        }
    }

    /// Something that is so or is not.
    pub fn expect(&mut self, holds: bool, message: impl FnOnce() -> String) {
        self.checked += 1;
        if !holds && self.broken.is_none() {
            self.broken = Some(message());
        }
    }

    /// What the gate found. Nothing compared is a gate that did not look: inconclusive.
    pub fn result(self, gate: Gate, stage: Option<&str>, case: impl Into<String>) -> GateResult {
        let (status, mismatch) = match (self.failed, self.inconclusive) {
            (None, _) if self.broken.is_some() => (GateStatus::Failed, None),
            (Some(mismatch), _) => (GateStatus::Failed, Some(mismatch)),
            (None, Some(mismatch)) => (GateStatus::Inconclusive, Some(mismatch)),
            (None, None) if self.checked == 0 => (GateStatus::Inconclusive, None),
            (None, None) => (GateStatus::Passed, None),
        };
        let message = match (status, &mismatch) {
            (GateStatus::Passed, _) => String::new(),
            (GateStatus::Failed, _) if self.broken.is_some() => self.broken.unwrap_or_default(),
            (_, None) => "nothing was compared".to_owned(),
            (status, Some(it)) => {
                let verdict = match status {
                    GateStatus::Failed => "is further from the reference than the bound",
                    _ => {
                        "cannot be judged: its bound is not finite, or the reference leaves the range of the result's type"
                    }
                };
                let Mismatch { element, value, expected, bound } = it;
                format!("element {element:?} = {value} {verdict} (reference {expected}, bound {bound})")
            }
        };
        GateResult {
            gate,
            stage: stage.map(str::to_owned),
            case: case.into(),
            status,
            checked: self.checked,
            worst_ratio: self.worst_ratio.is_finite().then_some(self.worst_ratio),
            mismatch,
            message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(value: f64, expected: f64, bound: f64) -> GateStatus {
        let mut tally = Tally::default();
        tally.compare(&[0], value, expected, bound);
        tally.result(Gate::V2Bound, None, "case").status
    }

    #[test]
    fn an_error_up_to_the_bound_passes_and_a_larger_one_fails() {
        assert_eq!(judged(1.0, 1.5, 0.5), GateStatus::Passed);
        assert_eq!(judged(1.0, 1.5, 0.49), GateStatus::Failed);
        assert_eq!(judged(1.0, 1.0, 0.0), GateStatus::Passed);
        assert_eq!(judged(1.0, 1.0 + 1e-15, 0.0), GateStatus::Failed);
    }

    #[test]
    fn nan_and_infinity_fail_where_the_reference_is_finite_even_without_a_usable_bound() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(judged(value, 1.0, 1e30), GateStatus::Failed);
            assert_eq!(judged(value, 1.0, f64::INFINITY), GateStatus::Failed);
            assert_eq!(judged(value, 1.0, f64::NAN), GateStatus::Failed);
        }
    }

    #[test]
    fn a_bound_that_is_not_finite_is_inconclusive_and_does_not_pass() {
        assert_eq!(judged(1.0, 1.0, f64::INFINITY), GateStatus::Inconclusive);
        assert_eq!(judged(1.0, 1.0, f64::NAN), GateStatus::Inconclusive);
        assert_eq!(judged(1.0, f64::NAN, 1.0), GateStatus::Inconclusive);
        assert_eq!(judged(f64::INFINITY, 1e39, 1.0), GateStatus::Inconclusive);
    }

    #[test]
    fn a_reference_beyond_the_range_of_the_type_is_inconclusive() {
        let mut tally = Tally::of(Dtype::F16);
        tally.compare(&[0], f64::INFINITY, 65_530.0, 1.0);
        assert_eq!(tally.result(Gate::V2Bound, None, "case").status, GateStatus::Inconclusive);
        let mut tally = Tally::of(Dtype::F16);
        tally.compare(&[0], f64::INFINITY, 60_000.0, 32.0);
        assert_eq!(tally.result(Gate::V2Bound, None, "case").status, GateStatus::Failed);
    }

    #[test]
    fn the_worst_failure_is_the_one_reported() {
        let mut tally = Tally::default();
        tally.compare(&[0], 2.0, 1.0, 0.5);
        tally.compare(&[1], 9.0, 1.0, 0.5);
        tally.compare(&[2], 3.0, 1.0, 0.5);
        let result = tally.result(Gate::V2Bound, Some("mlp"), "case");
        assert_eq!((result.mismatch.map(|it| it.element), result.worst_ratio), (Some(vec![1]), Some(16.0)));
    }

    #[test]
    fn nothing_compared_is_not_passed() {
        assert_eq!(Tally::default().result(Gate::V2Bound, None, "").status, GateStatus::Inconclusive);
    }
}
