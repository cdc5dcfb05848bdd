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
use crate::{manifest::Strategy, protocol::tuning::Trial};

/// The strategy at the beginning of its search; `None` for the one that needs more than a problem, [`super::llm`].
pub fn proposer(strategy: Strategy, problem: &Problem) -> Option<Box<dyn Proposer + Send>> {
    Some(match strategy {
        Strategy::Heuristic => Box::new(Heuristic),
        Strategy::Grid => Box::new(grid::Grid::new(problem)),
        Strategy::Random => Box::new(random::Random::new(problem)),
        Strategy::Evolutionary => Box::new(evolutionary::Evolutionary::new(problem)),
        Strategy::Model => Box::new(model::Model::new(problem)),
        Strategy::Llm => return None,
    })
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
