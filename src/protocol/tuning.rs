//! Trials: what a search measured of one schedule of one operation, and races: how they are measured.

use super::{Ceilings, Clock, FailureKind, Gate, GateResult, Timing};
use crate::plan::schedule::Schedule;
use serde::{Deserialize, Serialize};
use std::time::Duration;

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

/// Milliseconds of a race for each entrant, at least and at most.
const RACE_MS: [f64; 2] = [25.0, 600.0];

/// How long a race goes on for each entrant, where one run takes so many nanoseconds.
pub fn race_time(run_ns: f64, runs: u32) -> Duration {
    let [least, most] = RACE_MS;
    let ms = run_ns * f64::from(runs) / 1e6;
    // A time that is no number is none.
    Duration::from_secs_f64(if ms.is_finite() { ms.clamp(least, most) } else { least } / 1e3)
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
    /// By how much the canaries differ, as a share: those of memory where that is what bounds the entrants, else those of arithmetic.
    pub fn drift(&self, by_memory: bool) -> f64 {
        let [before, after] = self.canaries.each_ref().map(|it| if by_memory { it.gigabytes_per_s } else { it.gflops });
        if before > 0.0 && after > 0.0 { (before / after).max(after / before) - 1.0 } else { 0.0 }
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
