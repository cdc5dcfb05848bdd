//! Searching: proposers ask, workers compile and check and race, the store remembers, and the best plan that the verifier accepts
//! is what a block is built with.
//!
//! [`operation`] searches the schedule of one operation with one strategy, [`block`] puts those of a block together and measures
//! the whole, [`judge`] has all gates decide on the winner, [`lab`] has candidates tried and raced by the workers of a [`pool`],
//! [`time`] says where the time goes, [`restrict`] what is left to search, [`ledger`] is what is kept of it all, [`exchange`] moves
//! trials between machines.

pub mod block;
pub mod exchange;
pub mod judge;
pub mod lab;
pub mod ledger;
pub mod operation;
pub mod pool;
pub mod proposers;
mod restrict;
pub mod time;

use crate::{
    build::engine::worker::WorkerError,
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
