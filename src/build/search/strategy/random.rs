//! Points drawn at random, families all as often.

use super::known::Known;
use crate::{
    build::search::propose::{Problem, Proposal, Proposer},
    protocol::tuning::Trial,
};

/// Draws for one proposal. Where none of so many is legal and new, little is left, and the grid's order finds it.
const DRAWS: usize = 256;

pub struct Random(Known);

impl Random {
    pub fn new(problem: &Problem) -> Self {
        Self(Known::new(problem))
    }
}

impl Proposer for Random {
    fn ask(&mut self, most: usize) -> Vec<Proposal> {
        let known = &mut self.0;
        let mut rng = known.rng();
        let mut proposals = Vec::new();
        for _ in 0..most {
            let drawn = (0..DRAWS).find_map(|_| {
                let point = known.space.sample(&mut rng)?;
                known.take(&point)
            });
            let Some(schedule) = drawn.or_else(|| known.next()) else { break };
            proposals.push(Proposal::new(schedule, "random"));
        }
        proposals
    }

    fn tell(&mut self, trials: &[Trial]) {
        self.0.tell(trials);
    }
}
