//! A cost model that learns from every trial, and schedules that it expects to be fast.
//!
//! The model is a few forests of extremely randomised trees on [`Features`]; what it predicts is the logarithm of the time. Where the
//! forests disagree little is known: half of their disagreement is taken off the prediction, so such schedules are tried now and then.

use super::{features::Features, known::Known};
use crate::{
    build::search::propose::{Problem, Proposal, Proposer},
    plan::{schedule::Schedule, space::Point},
    protocol::tuning::Trial,
};
use rand::{Rng, RngExt};
use smartcore::{
    ensemble::extra_trees_regressor::{ExtraTreesRegressor, ExtraTreesRegressorParameters},
    linalg::basic::matrix::DenseMatrix,
};
use std::collections::HashSet;

/// Trials that the first model learns from: with fewer, trees of some thirty features say nothing.
const ENOUGH: usize = 16;
/// Schedules that the model chooses from, half of them relatives of the best, and the draws that it may take to find them.
const POOL: usize = 512;
const DRAWS: usize = 4 * POOL;
/// The best, whose relatives are looked at.
const PARENTS: usize = 12;
/// One of so many proposals is not asked of the model.
const EXPLORE: usize = 10;
const FORESTS: u64 = 4;
const TREES: usize = 16;
const OPTIMISM: f64 = 0.5;

type Forest = ExtraTreesRegressor<f64, f64, DenseMatrix<f64>, Vec<f64>>;

pub struct Model {
    known: Known,
    features: Features,
    /// Not yet proposed, the best last.
    seeds: Vec<Schedule>,
}

impl Model {
    pub fn new(problem: &Problem) -> Self {
        let known = Known::new(problem);
        let features = Features::of(&known.space);
        Self { known, features, seeds: problem.seeds.iter().rev().cloned().collect() }
    }

    fn seed(&mut self) -> Option<Proposal> {
        while let Some(schedule) = self.seeds.pop() {
            if let Some(schedule) = self.known.take_schedule(schedule) {
                return Some(Proposal::new(schedule, "model: seed"));
            }
        }
        None
    }

    /// One forest for each seed. None where they cannot be grown.
    fn learn(&self) -> Option<Vec<Forest>> {
        let rows: Vec<Vec<f64>> = self.known.tried.iter().map(|it| self.features.row(&it.schedule)).collect();
        let times: Vec<f64> = self.known.tried.iter().map(|it| it.relative.ln()).collect();
        let (rows, columns) = (DenseMatrix::from_2d_vec(&rows).ok()?, rows.first()?.len());
        let grow = |seed: u64| {
            let parameters = ExtraTreesRegressorParameters::default()
                .with_n_trees(TREES)
                // Of regression, a third of the features is what is usual; more of them find the few that matter sooner.
                .with_m(columns.div_ceil(2))
                .with_min_samples_leaf(1)
                .with_seed(seed);
            Forest::fit(&rows, &times, parameters).ok()
        };
        (0..FORESTS).map(grow).collect()
    }

    /// New legal schedules: relatives of the best, and points from anywhere.
    fn pool(&self, rng: &mut impl Rng) -> Vec<(Point, Schedule)> {
        let (known, space) = (&self.known, &self.known.space);
        let parents: Vec<&Point> = known.best(PARENTS).into_iter().filter_map(|it| it.point.as_ref()).collect();
        let (mut pool, mut seen) = (Vec::new(), HashSet::new());
        for draw in 0..DRAWS {
            let point = if parents.is_empty() || draw.is_multiple_of(2) {
                space.sample(rng)
            } else {
                let parent = parents[rng.random_range(0..parents.len())];
                let other = parents[rng.random_range(0..parents.len())];
                let child = if rng.random_range(0..4) == 0 { space.cross(parent, other, rng) } else { parent.clone() };
                Some(space.mutate(&child, rng.random_range(1..4), rng))
            };
            let new = point.filter(|it| seen.insert(it.clone()));
            let new = new.and_then(|it| space.schedule(&it).map(|schedule| (it, schedule)));
            pool.extend(new.filter(|(_, schedule)| known.is_new(schedule)));
            if pool.len() == POOL {
                break;
            }
        }
        pool
    }

    /// The pool in the order of what the model expects, the best last.
    fn ranked(&self, rng: &mut impl Rng) -> Option<Vec<Point>> {
        let forests = self.learn()?;
        let pool = self.pool(rng);
        let rows: Vec<Vec<f64>> = pool.iter().map(|(_, it)| self.features.row(it)).collect();
        let rows = DenseMatrix::from_2d_vec(&rows).ok()?;
        let answers: Vec<Vec<f64>> = forests.iter().map(|it| it.predict(&rows).ok()).collect::<Option<_>>()?;
        let count = answers.len() as f64;
        let expected = |at: usize| {
            let mean = answers.iter().map(|it| it[at]).sum::<f64>() / count;
            let variance = answers.iter().map(|it| (it[at] - mean).powi(2)).sum::<f64>() / count;
            mean - OPTIMISM * variance.sqrt()
        };
        let points = pool.into_iter().enumerate();
        let mut ranked: Vec<(f64, Point)> = points.map(|(at, (point, _))| (expected(at), point)).collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        Some(ranked.into_iter().map(|it| it.1).collect())
    }
}

impl Proposer for Model {
    fn ask(&mut self, most: usize) -> Vec<Proposal> {
        let mut rng = self.known.rng();
        let enough = self.known.tried.len() >= ENOUGH;
        let mut ranked = if enough { self.ranked(&mut rng).unwrap_or_default() } else { Vec::new() };
        let mut proposals = Vec::new();
        while proposals.len() < most {
            let explore = self.known.count().is_multiple_of(EXPLORE);
            let chosen = match self.seed() {
                Some(seed) => Some(seed),
                None if explore => None,
                None => std::iter::from_fn(|| ranked.pop())
                    .find_map(|it| self.known.take(&it))
                    .map(|it| Proposal::new(it, "model: expected")),
            };
            let stranger = |known: &mut Known| known.next().map(|it| Proposal::new(it, "model: stranger"));
            let Some(next) = chosen.or_else(|| stranger(&mut self.known)) else { break };
            proposals.push(next);
        }
        proposals
    }

    fn tell(&mut self, trials: &[Trial]) {
        self.known.tell(trials);
    }
}
