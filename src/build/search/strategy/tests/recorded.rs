//! How good strategies are on times that were measured: every schedule of a restricted space of 128x768x3072 (`[tuning.exhaustive]` of
//! benches/search), each raced against the heuristic's on a Zen 3.

use super::*;
use crate::{
    host::CpuFacts,
    plan::schedule::{Dot, MatmulSchedule, PackB, Split, TileOrder},
};
use std::collections::HashMap;

/// mr, nr, mc, nc, kc, pack-a, order; the time as a share of the heuristic's.
const GRID: &str = include_str!("grid-128x768x3072.csv");

fn schedule(([mr, nr], [mc, nc, kc]): ([usize; 2], [usize; 3]), pack_a: bool, order: TileOrder) -> Schedule {
    Schedule::Matmul(MatmulSchedule {
        mr,
        nr,
        lanes: 8,
        mc,
        nc,
        kc,
        unroll: 8,
        dot: Dot::Fma,
        order,
        pack_a,
        pack_b: PackB::Ahead,
        // It acts with this order only.
        prefetch: order == TileOrder::ColumnsOutside,
        split: Split::Columns,
    })
}

fn recorded() -> HashMap<Schedule, f64> {
    let entry = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        let [mr, nr, mc, nc, kc] = [0, 1, 2, 3, 4].map(|it| fields[it].parse().unwrap());
        let order = if fields[6] == "rows-outside" { TileOrder::RowsOutside } else { TileOrder::ColumnsOutside };
        let schedule = schedule(([mr, nr], [mc, nc, kc]), fields[5] == "true", order);
        (schedule, fields[7].parse().unwrap())
    };
    GRID.lines().map(entry).collect()
}

fn on_zen3(seed: u64) -> Problem {
    let isa = ["avx", "avx2", "f16c", "fma"].map(str::to_owned).to_vec();
    let arch = "x86_64".to_owned();
    let cpu = CpuFacts {
        arch,
        model: "AMD EPYC".to_owned(),
        isa,
        lanes: 8,
        vector_registers: 16,
        l1d: 32 << 10,
        l2: 512 << 10,
        l3: 32 << 20,
        cores: 2,
    };
    let mut problem = problem(matmul(128, 768, 3072), Dtype::F32, &cpu.into(), false, seed);
    // What the times are shares of.
    problem.heuristic = schedule(([4, 24], [64, 768, 1024]), true, TileOrder::ColumnsOutside);
    problem.only = only(
        "lanes = 8; mr = 4 6; nr = 16 24; mc = 128 132 64 66 32 36; nc = 768 384 192; unroll = 8; \
         kc = 3072 1536 1024 768 512 384 256; pack-b = ahead; prefetch = true; split = columns",
    );
    problem
}

/// The best that so many trials in batches of 8 find.
fn found(kind: Kind, times: &HashMap<Schedule, f64>, seed: u64, budget: usize) -> f64 {
    let problem = on_zen3(seed);
    let mut proposer = proposer(kind, &problem).unwrap();
    proposer.tell(&[trial(&problem.heuristic, "heuristic", Some(1.0))]);
    let (mut best, mut count) = (1.0f64, 1);
    while count < budget {
        let proposals = proposer.ask(8.min(budget - count));
        let told = proposals.iter().map(|it| trial(&it.schedule, &it.origin, Some(times[&it.schedule])));
        let told: Vec<Trial> = told.collect();
        best = told.iter().filter_map(Trial::relative).fold(best, f64::min);
        count += told.len();
        proposer.tell(&told);
    }
    best
}

#[test]
fn the_recorded_grid_is_the_whole_restricted_space() {
    let (times, problem) = (recorded(), on_zen3(1));
    let all: HashSet<Schedule> = problem.space().schedules().collect();
    assert!(
        all.len() >= 700 && times.keys().cloned().collect::<HashSet<_>>() == all,
        "{} of {}",
        times.len(),
        all.len()
    );
}

/// The share of the best time that is recorded, by seed. That one was measured once and is a little lucky: in the final, where it was
/// measured anew, it had 0.978 and not 0.938.
fn shares(kind: Kind, times: &HashMap<Schedule, f64>) -> Vec<f64> {
    let best = times.values().copied().fold(f64::INFINITY, f64::min);
    (0..32).map(|seed| best / found(kind, times, seed, times.len() / 10)).collect()
}

/// Found were 0.970 to 1.000, and the very best of the grid for 22 of 32 seeds; at random for four, and 0.944 to 0.977 else.
#[test]
fn evolution_finds_the_best_of_a_measured_grid_in_a_tenth_of_its_trials() {
    let times = recorded();
    let reached = |kind| {
        let shares = shares(kind, &times);
        println!("{kind:?}: {shares:.3?}");
        (shares.iter().filter(|it| **it >= 0.98).count(), shares.iter().copied().fold(f64::INFINITY, f64::min))
    };
    let ((evolution, worst), (random, _)) = (reached(Kind::Evolutionary), reached(Kind::Random));
    assert!(evolution >= 16 && evolution >= 2 * random && worst >= 0.96, "{evolution}, {worst:.3}, {random}");
}
