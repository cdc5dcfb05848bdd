//! The space in a fixed order, which covers it evenly however early it ends. A larger budget tries what a smaller one did, and more.

use super::known::Known;
use crate::{
    build::search::propose::{Problem, Proposal, Proposer},
    protocol::tuning::Trial,
};

pub struct Grid(Known);

impl Grid {
    pub fn new(problem: &Problem) -> Self {
        Self(Known::new(problem))
    }
}

impl Proposer for Grid {
    fn ask(&mut self, most: usize) -> Vec<Proposal> {
        (0..most).map_while(|_| self.0.next()).map(|it| Proposal::new(it, "grid")).collect()
    }

    fn tell(&mut self, trials: &[Trial]) {
        self.0.tell(trials);
    }
}
