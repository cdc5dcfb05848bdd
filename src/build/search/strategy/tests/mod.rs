//! What every strategy promises, on operations of every kind and devices of every size, without a device.

mod quality;
mod recorded;

use super::*;
use crate::manifest::Strategy as Kind;
use crate::{
    build::search::{gpu, heuristic},
    host::Device,
    manifest::spec::Dtype,
    plan::{
        constraint,
        schedule::Schedule,
        space::{
            Only,
            only::tests::only,
            tests::{devices, dtypes, matmul, ops},
        },
        stage::{Role, Stage, StageGraph, StageOp, Tensor, TensorId},
    },
    protocol::{
        FailureKind, Timing,
        tuning::{Measured, Refusal, TRIAL_VERSION, TrialOutcome},
    },
};
use proptest::{prelude::*, strategy::Strategy};
use std::collections::{BTreeMap, HashSet};

const KINDS: [Kind; 5] = [Kind::Heuristic, Kind::Grid, Kind::Random, Kind::Evolutionary, Kind::Model];

pub fn problem(op: StageOp, dtype: Dtype, device: &Device, hybrid_softmax: bool, seed: u64) -> Problem {
    let tensor = Tensor { name: "op".to_owned(), shape: vec![1], dtype, role: Role::Output };
    let stage = Stage { name: "op".to_owned(), op, inputs: vec![], output: TensorId(0), scheduled: true };
    let operation = StageGraph { block: "op".to_owned(), tensors: vec![tensor], stages: vec![stage] };
    let mut proposed = match device {
        Device::Cpu(it) => heuristic::propose(&operation, it),
        Device::Gpu(it) => gpu::propose(&operation, it, hybrid_softmax),
    };
    Problem {
        heuristic: proposed.remove("op").unwrap(),
        operation,
        device: device.clone(),
        threads: 1,
        hybrid_softmax,
        seeds: vec![],
        only: Only::default(),
        seed,
        shaders: BTreeMap::new(),
    }
}

/// What became of a schedule whose time is `relative`; none: it was rejected.
pub fn trial(schedule: &Schedule, origin: &str, relative: Option<f64>) -> Trial {
    let timing = Timing { samples: 1, median_ns: 1.0, min_ns: 1.0, q1_ns: 1.0, q3_ns: 1.0 };
    let refusal = Refusal { kind: FailureKind::Crash, gate: None, message: "it crashed".to_owned() };
    let measured = |relative| TrialOutcome::Measured(Measured { timing, relative, noise: 0.0, floor_ns: 0.0 });
    Trial {
        version: TRIAL_VERSION,
        schedule: schedule.clone(),
        origin: origin.to_owned(),
        outcome: relative.map_or(TrialOutcome::Rejected(refusal), measured),
    }
}

/// A time that has nothing to do with the schedule; one in eight is rejected.
fn noise(schedule: &Schedule) -> Option<f64> {
    let digest = blake3::hash(serde_json::to_string(schedule).unwrap().as_bytes());
    let [first, second, ..] = digest.as_bytes();
    (first % 8 > 0).then(|| 0.5 + f64::from(*second) / 256.0)
}

/// A search of `rounds` of `most`; every schedule that was proposed, with its origin.
fn search(kind: Kind, problem: &Problem, most: usize, rounds: usize) -> Vec<Proposal> {
    let mut proposer = proposer(kind, problem).unwrap();
    proposer.tell(&[trial(&problem.heuristic, "heuristic", Some(1.0))]);
    let mut all = Vec::new();
    for _ in 0..rounds {
        let proposals = proposer.ask(most);
        assert!(proposals.len() <= most);
        let told: Vec<Trial> =
            proposals.iter().map(|it| trial(&it.schedule, &it.origin, noise(&it.schedule))).collect();
        proposer.tell(&told);
        all.extend(proposals);
    }
    all
}

fn kinds() -> impl Strategy<Value = Kind> {
    proptest::sample::select(KINDS.to_vec())
}

proptest! {
    #![proptest_config(crate::testing::cases(24))]
    #[test]
    fn every_proposal_is_legal_new_and_the_same_again(
        op in ops(), dtype in dtypes(), device in 0usize..5, kind in kinds(), hybrid: bool, seed: u64
    ) {
        let problem = problem(op, dtype, &devices()[device], hybrid, seed);
        let all = search(kind, &problem, 9, 4);
        let mut seen = HashSet::from([problem.heuristic.clone()]);
        for it in &all {
            prop_assert_eq!(constraint::check(problem.stage(), dtype, &it.schedule, &problem.device), Ok(()));
            prop_assert!(seen.insert(it.schedule.clone()), "{:?}", it);
            prop_assert!(it.origin.starts_with(kind.name()));
        }
        prop_assert_eq!(all.is_empty(), kind == Kind::Heuristic);
        prop_assert_eq!(search(kind, &problem, 9, 4), all);
    }

    /// The heuristic's proposal is near the space: its neighbours there are what a search begins with.
    #[test]
    fn the_heuristic_is_near_the_space(op in ops(), dtype in dtypes(), device in 0usize..5, hybrid: bool) {
        let problem = problem(op, dtype, &devices()[device], hybrid, 0);
        let space = known::Known::new(&problem).space;
        let near = space.nearest(&problem.heuristic).and_then(|it| space.schedule(&it));
        prop_assert_eq!(near.map(|it| it.name()), Some(problem.heuristic.name()));
    }
}

#[test]
fn small_spaces_end() {
    let problem = problem(StageOp::Add { rows: 7, width: 30 }, Dtype::F32, &devices()[0], false, 5);
    for kind in [Kind::Grid, Kind::Random, Kind::Evolutionary, Kind::Model] {
        let all = search(kind, &problem, 7, 8);
        assert_eq!(all.len(), 39, "{kind:?}");
        let mut over = proposer(kind, &problem).unwrap();
        over.ask(1000);
        assert!(over.ask(1).is_empty(), "{kind:?}");
    }
}

#[test]
fn a_larger_grid_has_the_smaller_one() {
    let problem = problem(matmul(128, 768, 768), Dtype::F32, &devices()[0], false, 5);
    let (small, large) = (search(Kind::Grid, &problem, 8, 3), search(Kind::Grid, &problem, 5, 12));
    assert_eq!(small[..], large[..24]);
}

#[test]
fn schedules_that_did_well_elsewhere_come_first() {
    let mut problem = problem(matmul(128, 768, 768), Dtype::F32, &devices()[0], false, 5);
    let mut grid = proposer(Kind::Grid, &problem).unwrap();
    problem.seeds = grid.ask(3).into_iter().map(|it| it.schedule).collect();
    for kind in [Kind::Evolutionary, Kind::Model] {
        let first = proposer(kind, &problem).unwrap().ask(3).into_iter().map(|it| it.schedule).collect::<Vec<_>>();
        assert_eq!(first, problem.seeds, "{kind:?}");
    }
}

/// A restriction that the heuristic's schedule does not meet, and seeds of which some do.
fn restricted(op: StageOp, text: &str) -> Problem {
    let mut problem = problem(op, Dtype::F32, &devices()[0], false, 5);
    problem.seeds = problem.space().schedules().take(40).collect();
    Problem { only: only(text), ..problem }
}

#[test]
fn every_strategy_proposes_only_what_a_search_is_restricted_to() {
    for text in ["lanes = 8; mr = 3; pack-b = never", "nr = 24; mc = 48 96", "prefetch = true; order = rows-outside"] {
        let problem = restricted(matmul(128, 768, 768), text);
        let space = problem.space();
        assert!(space.admits(&problem.heuristic).is_err(), "{text}");
        assert!(space.nearest(&problem.heuristic).is_some(), "{text}");
        for kind in [Kind::Grid, Kind::Random, Kind::Evolutionary, Kind::Model] {
            let all = search(kind, &problem, 8, 6);
            assert_eq!(all.len(), 48, "{kind:?} {text}");
            all.iter().for_each(|it| assert_eq!(space.admits(&it.schedule), Ok(()), "{}", it.origin));
            let bred = |it: &&Proposal| it.origin.ends_with("mutation") || it.origin.ends_with("neighbour");
            let bred = all.iter().filter(bred).count();
            assert!(
                kind != Kind::Evolutionary || bred > 8,
                "{bred} {text} {:?}",
                all.iter().map(|it| it.origin.as_str()).collect::<Vec<_>>()
            );
        }
    }
}

/// How fast it ends does not depend on how few of the points that are left are legal.
#[test]
fn a_grid_over_what_is_left_tries_all_of_it_and_ends() {
    let text =
        "lanes = 16; mr = 14; nr = 16 32; mc = 126 140; unroll = 1; order = rows-outside; pack-a = false; split = rows";
    let problem = restricted(matmul(128, 768, 768), text);
    let space = problem.space();
    let legal = space.points().filter(|it| space.schedule(it).is_some()).count();
    assert!(legal > 100 && (legal as u128) < space.len(), "{legal} of {}", space.len());
    for kind in [Kind::Grid, Kind::Random] {
        let mut over = proposer(kind, &problem).unwrap();
        let all: HashSet<_> = over.ask(1 << 20).into_iter().map(|it| it.schedule).collect();
        assert_eq!((all.len(), over.ask(1).len()), (legal, 0), "{kind:?}");
    }
}

#[test]
fn a_restriction_that_leaves_nothing_proposes_nothing() {
    let mut problem = restricted(matmul(128, 768, 768), "mr = 9");
    problem.seeds.push(problem.heuristic.clone());
    assert!(problem.space().none_left().is_some());
    for kind in KINDS {
        assert_eq!(search(kind, &problem, 8, 2), [], "{kind:?}");
    }
}
