//! Search strategies: how schedules of the declared space are chosen.
//!
//! Every strategy is a function of the problem and of what it was told. Random numbers are drawn anew for every answer, from the
//! problem's seed and the number of schedules known by then, so that no generator's state is lost with an interrupted search.

mod evolutionary;
mod features;
mod grid;
mod known;
mod model;
mod random;

use super::propose::{Problem, Proposal, Proposer};
use crate::protocol::tuning::Trial;
use std::{fmt, str::FromStr};

/// The strategies that need nothing but a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The analytic heuristic alone.
    Heuristic,
    /// An even cover of the space.
    Grid,
    Random,
    /// Children of the best.
    Evolutionary,
    /// What a cost model, learned on the way, expects to be fast.
    Model,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Heuristic, Self::Grid, Self::Random, Self::Evolutionary, Self::Model];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Heuristic => "heuristic",
            Self::Grid => "grid",
            Self::Random => "random",
            Self::Evolutionary => "evolutionary",
            Self::Model => "model",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No strategy has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no search strategy `{0}`")]
pub struct UnknownStrategy(pub String);

impl FromStr for Kind {
    type Err = UnknownStrategy;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|it| it.name() == name).ok_or_else(|| UnknownStrategy(name.to_owned()))
    }
}

/// The strategy `kind` at the beginning of its search.
pub fn proposer(kind: Kind, problem: &Problem) -> Box<dyn Proposer + Send> {
    match kind {
        Kind::Heuristic => Box::new(Heuristic),
        Kind::Grid => Box::new(grid::Grid::new(problem)),
        Kind::Random => Box::new(random::Random::new(problem)),
        Kind::Evolutionary => Box::new(evolutionary::Evolutionary::new(problem)),
        Kind::Model => Box::new(model::Model::new(problem)),
    }
}

/// The heuristic's schedule is in every search; this strategy has nothing to add.
struct Heuristic;

impl Proposer for Heuristic {
    fn ask(&mut self, _most: usize) -> Vec<Proposal> {
        Vec::new()
    }

    fn tell(&mut self, _trials: &[Trial]) {}
}

#[cfg(test)]
#[path = "strategy/tests/mod.rs"]
mod tests;
