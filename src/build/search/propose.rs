//! What every strategy is: something that is asked for schedules and told how they did.

use crate::{
    host::Device,
    plan::{
        schedule::Schedule,
        space::{Only, Space},
        stage::{Stage, StageGraph},
    },
    protocol::tuning::Trial,
};
use std::collections::BTreeMap;

/// What schedules are wanted for.
#[derive(Debug, Clone)]
pub struct Problem {
    /// One stage alone, see [`crate::plan::operation`].
    pub operation: StageGraph,
    pub device: Device,
    /// Of the CPU, that run it.
    pub threads: usize,
    /// Attention on a GPU leaves its softmax to the CPU: schedules of other kinds are not wanted.
    pub hybrid_softmax: bool,
    /// What the analytic heuristic proposes: the first trial of every search, which the others are held against, whatever the search
    /// is restricted to.
    pub heuristic: Schedule,
    /// Schedules that did well elsewhere, best first. They are proposed early and have to prove themselves here.
    pub seeds: Vec<Schedule>,
    /// What knobs may be: nothing else is proposed.
    pub only: Only,
    /// Equal seeds, equal proposals, as long as what is told is equal.
    pub seed: u64,
    /// The project's own shader templates, by file name.
    pub shaders: BTreeMap<String, String>,
}

impl Problem {
    /// The stage; an operation always has one.
    pub fn stage(&self) -> &Stage {
        &self.operation.stages[0]
    }

    /// What may be proposed. Every proposer takes its schedules from here, and holds to it those that come from elsewhere
    /// ([`Space::admits`]).
    pub fn space(&self) -> Space {
        Space::of_operation(&self.operation, &self.device, self.hybrid_softmax).only(&self.only)
    }

    /// [`Self::space`], where it is not the whole one: making it costs more than what most problems need of it.
    pub fn restricted_space(&self) -> Option<Space> {
        (!self.only.is_empty()).then(|| self.space())
    }
}

/// A schedule to try.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    pub schedule: Schedule,
    /// Who proposed it and how, e.g. `evolutionary: crossover`, `llm: round 2`.
    pub origin: String,
}

impl Proposal {
    pub fn new(schedule: Schedule, origin: impl Into<String>) -> Self {
        Self { schedule, origin: origin.into() }
    }
}

/// A search strategy. Its proposals are a function of the problem and of what it was told, so that a search that was interrupted
/// goes on where it was when the same things are told again.
pub trait Proposer {
    /// Up to `most` schedules that were not proposed before, every one of them legal ([`crate::plan::constraint::check`]). None:
    /// there is nothing left to propose.
    fn ask(&mut self, most: usize) -> Vec<Proposal>;

    /// How the last proposals did, in the order in which they were proposed. The heuristic's schedule is told first, though nobody
    /// proposed it.
    fn tell(&mut self, trials: &[Trial]);

    /// What a reader of the plan must know of how it came about, e.g. that a language model did not answer and the heuristic
    /// stood in for it. Each line once.
    fn remarks(&mut self) -> Vec<String> {
        Vec::new()
    }
}
