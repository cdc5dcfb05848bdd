//! Searching: proposers ask, workers compile and check and race, the store remembers, and the best plan that the verifier accepts
//! is what a block is built with.
//!
//! [`operation`] searches the schedule of one operation with one strategy, [`block`] puts those of a block together and measures
//! the whole, [`judge`] has all gates decide on the winner, [`lab`] has candidates tried and raced by the workers of a [`pool`],
//! [`time`] says where the time goes, [`ledger`] is what is kept of it all, [`exchange`] moves trials between machines.

pub mod block;
pub mod exchange;
pub mod judge;
pub mod lab;
pub mod ledger;
pub mod operation;
pub mod pool;
pub mod proposers;
pub mod time;

use crate::{
    build::engine::worker::WorkerError,
    manifest::schema::KNOBS_TABLE,
    plan::space::NoneLeft,
    protocol::{Failure, FailureKind},
    store::StoreError,
};

/// Why a search came to no result.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error(transparent)]
    Failed(Failure),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Stop {
    fn defect(message: String) -> Self {
        Self::Failed(Failure::new(FailureKind::Internal, message))
    }

    /// A restriction that leaves an operation without a schedule, which is found before anything is measured.
    fn nothing_left(none: &NoneLeft, (tuning, operation, stage): (&str, &str, &str)) -> Self {
        let message = format!("[tuning.{tuning}.{KNOBS_TABLE}] leaves no schedule for {operation}: {none}");
        let hint = "list more values, or other ones; a knob that is not named may be anything";
        Self::Failed(Failure::new(FailureKind::IllegalPlan, message).at_stage(stage).with_hint(hint))
    }

    fn unreadable(error: impl ToString) -> Self {
        Self::Failed(Failure::new(FailureKind::MissingBlob, error.to_string()))
    }
}

/// How far a search is, for whoever watches it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress<'a> {
    /// The stage that is searched, or what is done with the whole block.
    pub what: &'a str,
    /// Which of the block's operations, counted from 1, and how many there are.
    pub operation: (usize, usize),
    /// Schedules that are told of, and the budget.
    pub trials: (usize, usize),
    /// Of these, how many were measured or refused now; the others were known.
    pub new: usize,
    /// The best time so far as a share of the heuristic's.
    pub best: f64,
    /// Seconds that the search of this operation has taken.
    pub seconds: f64,
}

impl Progress<'_> {
    /// Trials in a second, of those that were made now.
    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.new as f64 / self.seconds } else { 0.0 }
    }

    /// Seconds that the rest of this operation takes at this rate; `None` where nothing says.
    pub fn left(&self) -> Option<f64> {
        let rate = self.rate();
        (rate > 0.0).then(|| (self.trials.1.saturating_sub(self.trials.0)) as f64 / rate)
    }
}

impl std::fmt::Display for Progress<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ((number, count), (told, budget)) = (self.operation, self.trials);
        write!(
            f,
            "{} ({number} of {count}): {told}/{budget} trials, best {:.3} of the heuristic",
            self.what, self.best
        )?;
        if self.new > 0 && self.rate() > 0.0 {
            write!(f, ", {:.1}/s", self.rate())?;
        }
        match self.left() {
            Some(left) if told < budget => write!(f, ", {left:.0} s left"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::space::only::Restricted;

    #[test]
    fn a_restriction_that_leaves_nothing_names_tuning_operation_stage_and_knobs() {
        let [only, of] = [vec!["9".to_owned()], vec!["4".to_owned(), "6".to_owned()]];
        let none = NoneLeft { knobs: vec![Restricted { knob: "mr".to_owned(), only, of }] };
        let Stop::Failed(it) = Stop::nothing_left(&none, ("tiles", "matmul m=8", "mlp.up")) else {
            panic!("a failure")
        };
        assert_eq!((it.kind, it.stage.as_deref()), (FailureKind::IllegalPlan, Some("mlp.up")));
        let message = "[tuning.tiles.knobs] leaves no schedule for matmul m=8: `mr` = 9 (the space has 4, 6)";
        assert_eq!(it.message, message);
    }
}
