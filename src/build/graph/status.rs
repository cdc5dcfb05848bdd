//! Decides, step by step, what is up to date. The engine calls [`Graph::decide`] when a step's dependencies are done;
//! [`Graph::status`] does it for the whole graph without running anything.

use super::{Graph, KeyParts, Outputs, StaleReason, Step, StepId, stale::explain};
use crate::digest::Digest;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What was built before. The store implements it; tests use maps.
pub trait History {
    /// What is known under this key.
    fn recorded(&self, key: &Digest) -> Recorded;
    /// The last success of the step of this identity.
    fn latest(&self, step: &str) -> Option<Built>;
    /// The success that the last one replaced.
    fn before(&self, step: &str) -> Option<Built>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recorded {
    Absent,
    /// Every output is there.
    Intact(Outputs),
    /// There is a record, but this output cannot be used.
    Damaged {
        output: String,
        blob: Digest,
        damage: Damage,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Damage {
    Missing,
    /// Its content no longer has its digest.
    Corrupt,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::Corrupt => "corrupt",
        })
    }
}

/// An earlier success of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    pub key: Digest,
    pub parts: KeyParts,
    pub outputs: Outputs,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    UpToDate {
        key: Digest,
        outputs: Outputs,
    },
    /// Must run. `parts` go into the record that it leaves.
    Stale {
        key: Digest,
        parts: KeyParts,
        reason: StaleReason,
    },
    /// Reads outputs of these steps, which are stale or unknown themselves: whether it must run shows when they have run.
    Unknown {
        waits_for: Vec<StepId>,
    },
}

impl Decision {
    pub const fn outputs(&self) -> Option<&Outputs> {
        match self {
            Self::UpToDate { outputs, .. } => Some(outputs),
            Self::Stale { .. } | Self::Unknown { .. } => None,
        }
    }

    pub const fn is_up_to_date(&self) -> bool {
        matches!(self, Self::UpToDate { .. })
    }

    /// `up to date`, `stale`, `may be stale`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::UpToDate { .. } => "up to date",
            Self::Stale { .. } => "stale",
            Self::Unknown { .. } => "may be stale",
        }
    }
}

impl Graph {
    /// Decides about one step, given the outputs of the steps it reads as far as they are known.
    ///
    /// A gate that is stale leaves the step up to date: its own result is still right. The engine runs the gate, and if that
    /// fails, what depends on it is skipped.
    pub fn decide<'a>(
        &self,
        id: StepId,
        outputs_of: impl Fn(StepId) -> Option<&'a Outputs>,
        history: &impl History,
        forced: bool,
    ) -> Decision {
        let key = match self.key(id, &outputs_of) {
            Ok(key) => key,
            Err(waits_for) => return Decision::Unknown { waits_for },
        };
        let recorded = if forced { Recorded::Absent } else { history.recorded(&key) };
        if let Recorded::Intact(outputs) = recorded {
            return Decision::UpToDate { key, outputs };
        }
        let parts = match self.parts(id, outputs_of) {
            Ok(parts) => parts,
            Err(waits_for) => return Decision::Unknown { waits_for },
        };
        let reason = match recorded {
            _ if forced => StaleReason::Forced,
            Recorded::Damaged { output, blob, damage } => StaleReason::OutputDamaged { output, blob, damage },
            Recorded::Intact(_) | Recorded::Absent => {
                explain(history.latest(self.step(id).identity()).as_ref().map(|it| &it.parts), &parts)
            }
        };
        Decision::Stale { key, parts, reason }
    }

    /// Decides about every step without running any; one decision for each step, in order.
    pub fn status(&self, history: &impl History, forced: impl Fn(&Step) -> bool) -> Vec<Decision> {
        let mut decisions: Vec<Decision> = Vec::with_capacity(self.len());
        for step in self.steps() {
            let outputs_of = |it: StepId| decisions[it.index()].outputs();
            let decision = self.decide(step.id, outputs_of, history, forced(step));
            decisions.push(decision);
        }
        decisions
    }
}
