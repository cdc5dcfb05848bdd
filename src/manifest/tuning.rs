//! How plans are found: `[tuning.*]`.

use super::table::Fields;
use crate::plan::space::Only;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Schedules of each operation that a search tries where the manifest does not say.
pub const DEFAULT_TRIALS: usize = 32;

/// How the plans of some blocks are found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tuning {
    pub name: String,
    pub strategy: Strategy,
    /// Schedules of each operation, the heuristic's among them.
    pub trials: usize,
    /// Of the whole search for one block, in milliseconds; none: as long as the trials take.
    pub time_ms: Option<u64>,
    /// Of what strategies draw.
    pub seed: u64,
    /// Whether the block is tried without each of its fusions, too.
    pub fusions: bool,
    /// What a search may choose from: not the heuristic, whose schedules every search begins with.
    pub knobs: Only,
    pub llm: Llm,
}

impl Tuning {
    /// The heuristic, under this name.
    pub fn heuristic(name: String) -> Self {
        Self {
            name,
            strategy: Strategy::Heuristic,
            trials: DEFAULT_TRIALS,
            time_ms: None,
            seed: 1,
            fusions: true,
            knobs: Only::default(),
            llm: Llm::default(),
        }
    }

    pub(super) fn read(name: String, fields: &Fields, knobs: Only, llm: Option<&Fields>) -> Self {
        let plain = Self::heuristic(name);
        Self {
            strategy: fields.text("strategy").and_then(Strategy::from_name).unwrap_or(plain.strategy),
            trials: fields.size("trials").unwrap_or(plain.trials),
            time_ms: fields.time("time").map(milliseconds),
            seed: fields.size("seed").map_or(plain.seed, |it| it as u64),
            fusions: fields.flag("fusions").unwrap_or(plain.fusions),
            knobs,
            llm: llm.map(Llm::read).unwrap_or_default(),
            ..plain
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The language model of a tuning: `[tuning.*.llm]`. What is not given is taken from the environment or has a default.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Llm {
    pub endpoint: Option<String>,
    pub model: Option<String>,
    /// Of one request, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// The most that one search may send.
    pub requests: Option<usize>,
    /// The most that one search may spend, of prompts and answers together.
    pub tokens: Option<usize>,
    /// Schedules that are asked for in one request.
    pub proposals: Option<usize>,
    pub temperature: Option<f64>,
}

impl Llm {
    fn read(fields: &Fields) -> Self {
        Self {
            endpoint: fields.text("endpoint").map(str::to_owned),
            model: fields.text("model").map(str::to_owned),
            timeout_ms: fields.time("timeout").map(milliseconds),
            requests: fields.size("requests"),
            tokens: fields.size("tokens"),
            proposals: fields.size("proposals"),
            temperature: fields.number("temperature"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The analytic model; measures nothing.
    Heuristic,
    /// Points of the space that lie evenly in it.
    Grid,
    Random,
    /// Mutation and crossover of what did well.
    Evolutionary,
    /// A regression of the times so far ranks candidates before they are measured.
    Model,
    /// A language model proposes.
    Llm,
}

impl Strategy {
    pub const ALL: [Self; 6] = [Self::Heuristic, Self::Grid, Self::Random, Self::Evolutionary, Self::Model, Self::Llm];

    pub const NAMES: [&str; 6] = [
        Self::Heuristic.name(),
        Self::Grid.name(),
        Self::Random.name(),
        Self::Evolutionary.name(),
        Self::Model.name(),
        Self::Llm.name(),
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Heuristic => "heuristic",
            Self::Grid => "grid",
            Self::Random => "random",
            Self::Evolutionary => "evolutionary",
            Self::Model => "model",
            Self::Llm => "llm",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }

    /// Whether it measures anything.
    pub const fn searches(self) -> bool {
        !matches!(self, Self::Heuristic)
    }
}
