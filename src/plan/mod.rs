//! Plans are data: what a block computes once the passes have run ([`stage`]), how each stage is to be generated
//! ([`schedule`]), which schedules are legal ([`constraint`]), and how the compiled kernel is called ([`kernel`]).
//! Nothing here does IO or starts anything; both processes read it.

pub mod constraint;
pub mod kernel;
pub mod schedule;
pub mod stage;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of `plan.json`. A file with a larger one comes from a newer kforge and is refused.
pub const PLAN_VERSION: u32 = 1;

/// How every stage of one block is to be generated for one target. `plan.json` is this, pretty-printed, keys in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Plan {
    pub version: u32,
    /// The block instance, e.g. `gpt2-small-s128`.
    pub block: String,
    pub target: String,
    pub provenance: Provenance,
    /// By stage name.
    pub stages: BTreeMap<String, schedule::Schedule>,
}

/// Who proposed a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Provenance {
    pub strategy: String,
    /// Trials measured to find it; 0 for the analytic heuristic.
    pub trials: u32,
}
