//! Trials: what a search measured of one schedule of one operation, and races: how they are measured.

use super::{Ceilings, Clock, FailureKind, Gate, GateResult, Timing};
use crate::plan::schedule::Schedule;
use serde::{Deserialize, Serialize};

pub const TRIAL_VERSION: u32 = 1;

/// Names of an entrant's blobs among the inputs of a race.
pub fn entrant_object(number: usize) -> String {
    format!("object-{number}")
}

/// As [`entrant_object`].
pub fn entrant_kernel(number: usize) -> String {
    format!("kernel-{number}")
}

/// One schedule of one operation on one device, tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Trial {
    pub version: u32,
    pub schedule: Schedule,
    /// Who proposed it first, e.g. `evolutionary: crossover`.
    pub origin: String,
    pub outcome: TrialOutcome,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrialOutcome {
    Measured(Measured),
    Rejected(Refusal),
}

/// Why a schedule is never to be tried again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Refusal {
    pub kind: FailureKind,
    pub gate: Option<Gate>,
    pub message: String,
}

/// A schedule's time in a race.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Measured {
    pub timing: Timing,
    /// Median over the rounds of its time divided by the time of the race's first entrant, the heuristic's schedule, in the same
    /// round: what trials are compared by, because it does not move with the machine's clock.
    pub relative: f64,
    /// Standard error of `relative`: 1.253 times that of a mean, which is what a median's is for normal noise.
    pub noise: f64,
    /// Nanoseconds that no schedule can do it in on this device, by the ceilings sampled in the same race.
    pub floor_ns: f64,
}

impl Trial {
    pub const fn measured(&self) -> Option<&Measured> {
        match &self.outcome {
            TrialOutcome::Measured(it) => Some(it),
            TrialOutcome::Rejected(_) => None,
        }
    }

    /// What proposers minimise; `None` for what was rejected.
    pub fn relative(&self) -> Option<f64> {
        self.measured().map(|it| it.relative)
    }
}

/// What a race of several compiled kernels of one operation, or of one block, found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Race {
    pub version: u32,
    pub clock: Clock,
    /// In the order in which they were named. The first is what the others are held against, and runs in every round.
    pub entrants: Vec<Entrant>,
    /// The hand-written kernels that compute the same, where there are some: they are measured, and a plan cannot name them.
    pub variants: Vec<Variant>,
    /// Before the first round and after the last.
    pub canaries: [Ceilings; 2],
}

impl Race {
    /// By how much the canaries differ, as a share: of arithmetic or of memory, whichever moved more.
    pub fn drift(&self) -> f64 {
        let [before, after] = &self.canaries;
        let share = |a: f64, b: f64| if a > 0.0 && b > 0.0 { (a / b).max(b / a) - 1.0 } else { 0.0 };
        share(before.gflops, after.gflops).max(share(before.gigabytes_per_s, after.gigabytes_per_s))
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Entrant {
    pub timing: Timing,
    pub relative: f64,
    pub noise: f64,
    /// What of gate V7 did not pass: results that differ under measurement, times that are impossible.
    pub failed: Vec<GateResult>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Variant {
    /// `reference`, `blocked`, `parallel`, `library (OpenBLAS ...)`.
    pub name: String,
    pub timing: Timing,
    pub relative: f64,
}
