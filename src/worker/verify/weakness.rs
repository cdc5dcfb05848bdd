//! The verifier made wrong on purpose, so that `kforge mutate` can show that each part of it matters: a weakened verifier must
//! accept a kernel that the real one rejects.
//!
//! A weakness is in force only inside [`with`], on the calling thread. Nothing but `mutate` calls it; an action that
//! verifies a kernel cannot ask for it.

use kernelforge::{
    manifest::spec::Dtype,
    protocol::{GateResult, GateStatus},
};
use std::cell::RefCell;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Weakness {
    /// Bounds are ten times as large, and where none is allowed, ten units in the last place are.
    ToleranceTimes10,
    /// Every finite value is near enough.
    Unbounded,
    /// NaN is as good as any number.
    NanIgnored,
    /// The candidate is compared with itself.
    ComparedWithItself,
    /// Nothing is looked at here.
    StageSkipped(String),
    /// The inputs are the same every time.
    FixedSeed,
}

thread_local! {
    static WEAKNESS: RefCell<Option<Weakness>> = const { RefCell::new(None) };
}

/// Calls `judge` with a weakened verifier.
pub fn with<T>(weakness: Weakness, judge: impl FnOnce() -> T) -> T {
    struct Restored;
    impl Drop for Restored {
        fn drop(&mut self) {
            WEAKNESS.with_borrow_mut(|it| *it = None);
        }
    }
    WEAKNESS.with_borrow_mut(|it| *it = Some(weakness));
    let _restored = Restored;
    judge()
}

/// The value and the bound that a comparison sees.
pub fn observe(value: f64, expected: f64, bound: f64, storage: Dtype) -> (f64, f64) {
    WEAKNESS.with_borrow(|weakness| match weakness {
        Some(Weakness::ToleranceTimes10) => {
            let ulp = expected.abs() * 2.0 * storage.roundoff();
            (value, 10.0 * if bound == 0.0 { ulp } else { bound })
        }
        Some(Weakness::Unbounded) if value.is_finite() => (expected, 0.0),
        Some(Weakness::NanIgnored) if value.is_nan() => (expected, bound),
        Some(Weakness::ComparedWithItself) => (expected, 0.0),
        _ => (value, bound),
    })
}

/// The seed that inputs are drawn from.
pub fn seed(drawn: u64) -> u64 {
    WEAKNESS.with_borrow(|it| if *it == Some(Weakness::FixedSeed) { 1 } else { drawn })
}

/// Whether a comparison of bits takes these for the same.
pub fn overlooks(a: f32, b: f32, storage: Dtype) -> bool {
    WEAKNESS.with_borrow(|weakness| match weakness {
        Some(Weakness::ToleranceTimes10) => (a - b).abs() <= 20.0 * storage.roundoff() as f32 * b.abs(),
        Some(Weakness::Unbounded) => a.is_finite() && b.is_finite(),
        Some(Weakness::NanIgnored) => a.is_nan() || b.is_nan(),
        Some(Weakness::ComparedWithItself) => true,
        _ => false,
    })
}

/// The results that reach the verdict.
pub fn filter(mut gates: Vec<GateResult>) -> Vec<GateResult> {
    WEAKNESS.with_borrow(|weakness| {
        let skipped = |it: &GateResult| match weakness {
            Some(Weakness::StageSkipped(stage)) => it.stage.as_ref() == Some(stage),
            _ => false,
        };
        gates.iter_mut().filter(|it| skipped(it)).for_each(|it| it.status = GateStatus::Passed);
        gates
    })
}
