//! Children of the best schedules so far: what was fast, with a knob or two changed, or half of each of two.

use super::known::Known;
use crate::{
    build::search::propose::{Problem, Proposal, Proposer},
    plan::{
        schedule::Schedule,
        space::{Point, Space},
    },
    protocol::tuning::Trial,
};
use rand::{
    Rng, RngExt,
    seq::{IndexedRandom, SliceRandom},
};

/// The parents of a generation: the best of everything that was measured.
const PARENTS: usize = 12;
/// Of so many drawn from them the fastest becomes a parent.
const TOURNAMENT: usize = 3;
/// Schedules of the first generation, beside the heuristic's and the seeds.
const FIRST: usize = 16;
/// One of so many of them comes from anywhere; the others are one knob away from the heuristic's and the seeds.
const STRANGER_OF_FIRST: usize = 4;
/// Of 16 children so many are crossed, and so many come from anywhere.
const CROSSED: usize = 4;
const STRANGERS: usize = 1;
/// Tries to make one child that is legal and new.
const TRIES: usize = 64;

pub struct Evolutionary {
    known: Known,
    /// Not yet proposed, the best last.
    seeds: Vec<Schedule>,
    /// What the first generation is bred from before anything is known of it.
    ancestors: Vec<Point>,
    /// One knob away from those, in the order of the draw from the last to the first.
    near: Vec<Point>,
}

impl Evolutionary {
    pub fn new(problem: &Problem) -> Self {
        let known = Known::new(problem);
        let ancestors = std::iter::once(&problem.heuristic).chain(&problem.seeds);
        let ancestors: Vec<Point> = ancestors.filter_map(|it| known.space.nearest(it)).collect();
        let seeds = problem.seeds.iter().rev().cloned().collect();
        // The heuristic's own come first.
        let mut near = Vec::new();
        for ancestor in ancestors.iter().rev() {
            let mut neighbours = known.space.neighbours(ancestor);
            neighbours.shuffle(&mut known.rng());
            near.append(&mut neighbours);
        }
        Self { known, seeds, ancestors, near }
    }

    fn seed(&mut self) -> Option<Proposal> {
        while let Some(schedule) = self.seeds.pop() {
            if let Some(schedule) = self.known.take_schedule(schedule) {
                return Some(Proposal::new(schedule, "evolutionary: seed"));
            }
        }
        None
    }

    /// Most of it differs from the heuristic's schedule or a seed in one knob: which knobs are worth turning is what later generations
    /// combine. When half of it came from all over the space, 75 trials of 128x768x3072 found nothing for one seed of three.
    fn first(&mut self, rng: &mut impl Rng) -> Option<Proposal> {
        if !self.known.count().is_multiple_of(STRANGER_OF_FIRST) {
            while let Some(point) = self.near.pop() {
                if let Some(schedule) = self.known.take(&point) {
                    return Some(Proposal::new(schedule, "evolutionary: neighbour"));
                }
            }
            for _ in 0..TRIES {
                let Some(ancestor) = self.ancestors.choose(rng) else { break };
                let point = self.known.space.mutate(ancestor, 2, rng);
                if let Some(schedule) = self.known.take(&point) {
                    return Some(Proposal::new(schedule, "evolutionary: mutation"));
                }
            }
        }
        self.known.next().map(|it| Proposal::new(it, "evolutionary: stranger"))
    }

    fn child(&mut self, parents: &[Point], rng: &mut impl Rng) -> Option<Proposal> {
        let kind = rng.random_range(0..16);
        if !parents.is_empty() && kind >= STRANGERS {
            for _ in 0..TRIES {
                let (point, origin) = if kind < STRANGERS + CROSSED {
                    (cross(&self.known.space, parents, rng), "evolutionary: crossover")
                } else {
                    let count = 1 + usize::from(rng.random_range(0..3) == 0);
                    (self.known.space.mutate(tournament(parents, rng), count, rng), "evolutionary: mutation")
                };
                if let Some(schedule) = self.known.take(&point) {
                    return Some(Proposal::new(schedule, origin));
                }
            }
        }
        self.known.next().map(|it| Proposal::new(it, "evolutionary: stranger"))
    }
}

/// The best of a few; parents are in order.
fn tournament<'a>(parents: &'a [Point], rng: &mut impl Rng) -> &'a Point {
    let drawn = (0..TOURNAMENT).map(|_| rng.random_range(0..parents.len())).min();
    &parents[drawn.unwrap_or(0)]
}

/// A knob of one parent or the other, then sometimes one of neither.
fn cross(space: &Space, parents: &[Point], rng: &mut impl Rng) -> Point {
    let a = tournament(parents, rng);
    let others: Vec<&Point> = parents.iter().filter(|it| it.family == a.family && *it != a).collect();
    let child =
        if others.is_empty() { a.clone() } else { space.cross(a, others[rng.random_range(0..others.len())], rng) };
    // A child of equal parents is known: without a change there would be none.
    if rng.random::<bool>() || others.is_empty() { space.mutate(&child, 1, rng) } else { child }
}

impl Proposer for Evolutionary {
    fn ask(&mut self, most: usize) -> Vec<Proposal> {
        let mut rng = self.known.rng();
        let parents: Vec<Point> = self.known.best(PARENTS).into_iter().filter_map(|it| it.point.clone()).collect();
        // The heuristic's schedule, and the seeds' relatives.
        let first = 1 + FIRST + self.ancestors.len();
        let mut proposals = Vec::new();
        while proposals.len() < most {
            let next = match self.seed() {
                Some(seed) => Some(seed),
                None if self.known.count() < first => self.first(&mut rng),
                None => self.child(&parents, &mut rng),
            };
            let Some(next) = next else { break };
            proposals.push(next);
        }
        proposals
    }

    fn tell(&mut self, trials: &[Trial]) {
        self.known.tell(trials);
    }
}
