//! What every strategy keeps: the space, what was proposed, and how it did.

use crate::{
    build::search::propose::Problem,
    plan::{
        schedule::Schedule,
        space::{Point, Space, Walk},
    },
    protocol::tuning::Trial,
};
use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;
use std::collections::HashSet;

/// A schedule that was measured.
#[derive(Debug, Clone)]
pub struct Tried {
    pub schedule: Schedule,
    /// In the space, or the nearest there; none for a kernel that the space does not have.
    pub point: Option<Point>,
    /// Its time as a share of the heuristic's.
    pub relative: f64,
}

pub struct Known {
    pub space: Space,
    seed: u64,
    walk: Walk,
    /// Everything that was proposed or told: nothing of it is proposed again.
    seen: HashSet<Schedule>,
    /// What was measured, in the order in which it was told.
    pub tried: Vec<Tried>,
}

impl Known {
    pub fn new(problem: &Problem) -> Self {
        let space = problem.space();
        // Whoever runs the search tries the heuristic's schedule first.
        let seen = HashSet::from([problem.heuristic.clone()]);
        Self { walk: Walk::new(&space), space, seed: problem.seed, seen, tried: Vec::new() }
    }

    pub fn tell(&mut self, trials: &[Trial]) {
        for trial in trials {
            self.seen.insert(trial.schedule.clone());
            let usable = trial.relative().filter(|it| it.is_finite() && *it > 0.0);
            if let Some(relative) = usable {
                let (schedule, point) = (trial.schedule.clone(), self.space.nearest(&trial.schedule));
                self.tried.push(Tried { schedule, point, relative });
            }
        }
    }

    /// How many schedules were proposed or told.
    pub fn count(&self) -> usize {
        self.seen.len()
    }

    /// The generator of the next answer.
    pub fn rng(&self) -> Pcg64Mcg {
        let known = (self.count() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Pcg64Mcg::seed_from_u64(self.seed ^ known)
    }

    /// The schedule of a point that is legal and new, which it is not from now on.
    pub fn take(&mut self, point: &Point) -> Option<Schedule> {
        let schedule = self.space.schedule(point)?;
        self.take_schedule(schedule)
    }

    /// `schedule` if it is legal, new, and within what the search is restricted to. It need not be a point of the space.
    pub fn take_schedule(&mut self, schedule: Schedule) -> Option<Schedule> {
        let new =
            !self.seen.contains(&schedule) && self.space.admits(&schedule).is_ok() && self.space.is_legal(&schedule);
        new.then(|| {
            self.seen.insert(schedule.clone());
            schedule
        })
    }

    pub fn is_new(&self, schedule: &Schedule) -> bool {
        !self.seen.contains(schedule)
    }

    /// The next new schedule of the walk over the space; none when it has gone through all.
    pub fn next(&mut self) -> Option<Schedule> {
        loop {
            let (_, schedule) = self.walk.next(&self.space)?;
            if self.seen.insert(schedule.clone()) {
                return Some(schedule);
            }
        }
    }

    /// What was measured, the fastest first, at most `count`.
    pub fn best(&self, count: usize) -> Vec<&Tried> {
        let mut all: Vec<&Tried> = self.tried.iter().collect();
        all.sort_by(|a, b| a.relative.total_cmp(&b.relative));
        all.truncate(count);
        all
    }
}
