//! How good strategies are, on costs that are computed instead of measured: a register file, three caches and short blocks, which
//! act together. They are unlike enough that a strategy that suits one of them alone shows.

use super::*;
use crate::plan::{
    schedule::{Dot, MatmulSchedule, PackB, Split, TileOrder},
    space::{Space, Walk},
};

const SHAPE: [usize; 3] = [128, 768, 3072];

fn octaves(value: usize, best: f64) -> f64 {
    (value as f64 / best).log2().abs()
}

fn waste(extent: usize, unit: usize) -> f64 {
    (extent.div_ceil(unit) * unit) as f64 / extent as f64
}

/// Wide vectors and large register tiles; panels in the first cache, blocks in the second.
fn wide(s: &MatmulSchedule) -> f64 {
    let loads = (s.mr + s.nr / s.lanes) as f64 / (s.mr * s.nr) as f64;
    let panel = octaves(s.kc * s.nr * 4, 48.0 * 1024.0);
    let block = octaves(s.mc * s.kc * 4, 512.0 * 1024.0);
    let strides = if s.pack_a || s.kc < 512 { 1.0 } else { 1.15 };
    let unpacked = if s.pack_b == PackB::Ahead { 1.0 } else { 1.2 };
    let ahead = if s.prefetch { 0.95 } else { 1.0 };
    let copies = if s.pack_a { 1.0 + 0.2 * (s.nr as f64 / s.nc as f64) } else { 1.0 };
    let waste = waste(SHAPE[0], s.mr) * waste(SHAPE[1], s.nr);
    (0.2 + 8.0 * loads) * waste * (1.0 + 0.05 * panel + 0.03 * block) * strides * unpacked * copies * ahead
}

/// Narrow vectors, small tiles, the code itself in a small cache, nothing packed.
fn narrow(s: &MatmulSchedule) -> f64 {
    let lanes = if s.lanes == 8 { 1.0 } else { 1.1 };
    let code = octaves(s.mr * (s.nr / s.lanes) * s.unroll, 24.0);
    let panel = octaves(s.kc * s.nr, 4096.0);
    let order = match s.order {
        TileOrder::RowsOutside => 1.0,
        TileOrder::ColumnsOutside => 1.06,
    };
    let packing = 1.0 + if s.pack_a { 0.1 } else { 0.0 } + if s.pack_b == PackB::Ahead { 0.08 } else { 0.0 };
    let blocks = 1.0 + 0.02 * octaves(s.nc, 256.0) + 0.02 * octaves(s.mc, 32.0);
    lanes * (1.0 + 0.1 * code) * (1.0 + 0.04 * panel) * order * packing * blocks * waste(SHAPE[0], s.mr)
}

/// Two basins: deep blocks with packing, shallow ones without, the latter wider and worse.
fn deceptive(s: &MatmulSchedule) -> f64 {
    let deep = 1.0 + 0.1 * octaves(s.kc, 1536.0) + 0.1 * octaves(s.mr, 6.0) + 0.1 * octaves(s.nr, 64.0);
    let deep = deep + if s.pack_a && s.pack_b == PackB::Ahead { 0.0 } else { 0.4 };
    let shallow = 1.08 + 0.04 * octaves(s.kc, 96.0) + 0.04 * octaves(s.mr, 12.0) + 0.04 * octaves(s.nr, 16.0);
    let shallow = shallow + if s.pack_a { 0.1 } else { 0.0 };
    deep.min(shallow) * (1.0 + 0.02 * octaves(s.nc, 768.0) + 0.02 * octaves(s.mc, 64.0) + 0.02 * octaves(s.unroll, 4.0))
}

type Cost = fn(&MatmulSchedule) -> f64;
const COSTS: [Cost; 3] = [wide, narrow, deceptive];

fn of(schedule: &Schedule, cost: Cost) -> f64 {
    let Schedule::Matmul(it) = schedule else { panic!("{schedule:?}") };
    cost(it)
}

/// The best that `budget` trials in rounds of 16 find.
fn found(kind: Kind, problem: &Problem, cost: Cost, budget: usize) -> f64 {
    let mut proposer = proposer(kind, problem).unwrap();
    let whole = of(&problem.heuristic, cost);
    let mut best = whole;
    proposer.tell(&[trial(&problem.heuristic, "heuristic", Some(1.0))]);
    for _ in 0..budget / 16 {
        let proposals = proposer.ask(16);
        let told = proposals.iter().map(|it| trial(&it.schedule, &it.origin, Some(of(&it.schedule, cost) / whole)));
        let told: Vec<Trial> = told.collect();
        best = told.iter().filter_map(Trial::relative).map(|it| it * whole).fold(best, f64::min);
        proposer.tell(&told);
    }
    best
}

/// The best of the space, as far as climbing from many places finds it: enumerating it would take minutes.
fn optimum(space: &Space, cost: Cost) -> f64 {
    let mut walk = Walk::new(space);
    let starts = std::iter::from_fn(|| walk.next(space)).take(40);
    let climb = |(mut at, schedule): (crate::plan::space::Point, Schedule)| {
        let mut best = of(&schedule, cost);
        loop {
            let next = space.neighbours(&at).into_iter().filter_map(|it| Some((of(&space.schedule(&it)?, cost), it)));
            match next.min_by(|a, b| a.0.total_cmp(&b.0)) {
                Some((lower, point)) if lower < best => (best, at) = (lower, point),
                _ => return best,
            }
        }
    };
    starts.map(climb).fold(f64::INFINITY, f64::min)
}

/// Of `seeds` searches of each cost, how many found at least this share of the optimum.
fn successes(kind: Kind, share: f64, budget: usize, seeds: u64) -> [usize; 3] {
    let device = &devices()[0];
    // Where a search begins must not change with the heuristic: these costs are not its.
    let start = Schedule::Matmul(MatmulSchedule {
        mr: 8,
        nr: 48,
        lanes: 16,
        mc: 128,
        nc: 768,
        kc: 1024,
        unroll: 2,
        dot: Dot::Fma,
        order: TileOrder::ColumnsOutside,
        pack_a: true,
        pack_b: PackB::Ahead,
        prefetch: true,
        split: Split::Columns,
    });
    let problem = |seed| Problem {
        heuristic: start.clone(),
        ..problem(matmul(SHAPE[0], SHAPE[1], SHAPE[2]), Dtype::F32, device, false, seed)
    };
    let space = known::Known::new(&problem(0)).space;
    COSTS.map(|cost| {
        let best = optimum(&space, cost);
        let result = (0..seeds).map(|seed| best / found(kind, &problem(seed), cost, budget));
        let result: Vec<f64> = result.collect();
        println!("{kind:?} {budget} of {}: {result:.3?}", space.len());
        result.iter().filter(|it| **it >= share).count()
    })
}

/// A space of five million points, of which 256 are tried. Found were 0.991, 0.969 to 1.000, and 1.000 of the optimum.
#[test]
fn evolution_finds_the_best_within_a_ten_thousandth_of_the_space() {
    let successes = successes(Kind::Evolutionary, 0.98, 256, 6);
    assert!(successes.iter().all(|it| *it >= 4), "{successes:?}");
}

/// It is bolder, and ends beside the best more often than evolution does: found were 0.979 to 0.991, 0.974 to 0.999, and 1.000.
#[test]
fn a_cost_model_comes_near_the_best_within_a_ten_thousandth_of_the_space() {
    let successes = successes(Kind::Model, 0.96, 256, 3);
    assert!(successes.iter().all(|it| *it >= 2), "{successes:?}");
}
