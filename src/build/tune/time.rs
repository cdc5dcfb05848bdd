//! Where the time of a search goes, when it has a limit.

use std::time::Duration;

/// What the searches of a block's operations may use; the rest is for racing the plans that come of them and for all gates on the
/// winner.
const OPERATIONS: f64 = 0.75;

/// Of the time that is left for a whole block, what its operations may use.
pub fn of_operations(left: Duration) -> Duration {
    left.mul_f64(OPERATIONS)
}

/// Of the time that is left, what the first of these operations may use, by what each could gain: the MLP is two thirds of a block,
/// a norm less than a hundredth, and what an operation does not use is the others'.
pub fn of_first(left: Duration, gains: &[f64]) -> Duration {
    let whole: f64 = gains.iter().sum();
    match gains.first() {
        Some(first) if whole > 0.0 => left.mul_f64((first / whole).clamp(0.0, 1.0)),
        _ => left,
    }
}

/// How long a trial takes.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    trial: Duration,
}

impl Pace {
    /// Before the first trial: what its part of a race takes, and about as much for compiling and checking it.
    pub fn new(race: Duration) -> Self {
        Self { trial: race * 2 }
    }

    /// What was known before took no time.
    pub fn took(&mut self, trials: usize, time: Duration) {
        if let Ok(trials @ 1..) = u32::try_from(trials) {
            self.trial = time / trials;
        }
    }

    /// How many trials fit into this time.
    pub fn fit(&self, time: Duration) -> usize {
        (time.as_secs_f64() / self.trial.as_secs_f64().max(1e-3)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn time_goes_where_there_is_something_to_gain() {
        assert_eq!(of_first(SECOND * 10, &[6.0, 3.0, 1.0]), SECOND * 6);
        assert_eq!(of_first(SECOND * 4, &[3.0, 1.0]), SECOND * 3);
        assert_eq!(of_first(SECOND, &[1.0]), SECOND);
        assert_eq!(of_first(SECOND, &[0.0, 0.0]), SECOND);
        assert_eq!(of_operations(SECOND * 60), SECOND * 45);
    }

    #[test]
    fn a_batch_is_as_large_as_fits() {
        let mut pace = Pace::new(Duration::from_millis(250));
        assert_eq!(pace.fit(SECOND * 4), 8);
        pace.took(8, SECOND * 8);
        assert_eq!((pace.fit(SECOND * 4), pace.fit(SECOND / 2)), (4, 0));
        pace.took(0, SECOND * 100);
        assert_eq!(pace.fit(SECOND * 4), 4);
    }
}
