//! A race on the software device that every machine that runs these tests has.

use super::race;
use crate::{
    codegen::gpu::compile,
    device::gpu::{Gpu, tests::software},
    measure::tamper::{self, Tamper},
    verify::samples,
};
use kernelforge::{
    plan::{operation, program::Program},
    protocol::{FailureKind, Gate},
};
use std::collections::BTreeMap;

/// A small matmul with its plain schedule.
fn entrant() -> (Vec<String>, Program) {
    let block = samples::product((24, 96, 64), true);
    let graph = samples::graph(&block);
    let mut graph = operation::isolate(&graph, &graph.stages[0]);
    graph.stages[0].scheduled = false;
    let plan = samples::plan(operation::NAME, "gpu", BTreeMap::new());
    let compiled = compile(&graph, &plan, &software(), &BTreeMap::new()).unwrap();
    (compiled.sources, compiled.program)
}

#[test]
fn programs_race_and_tampered_races_are_noticed() {
    let gpu = Gpu::open(&software(), None).unwrap();
    let entrants = [entrant(), entrant()];
    let it = race(&gpu, &entrants, 20).unwrap();
    assert_eq!((it.entrants.len(), it.entrants[0].relative), (2, 1.0));
    for entrant in &it.entrants {
        assert!(entrant.failed.is_empty() && entrant.relative.is_finite() && entrant.noise.is_finite(), "{entrant:?}");
    }
    assert!(it.canaries.iter().all(|it| it.gflops > 0.0 && it.gigabytes_per_s > 0.0));
    // A thousandth of this matmul's time is above the floor where a busy host's launches are most of it.
    for tamper in [Tamper::HalfTheUnits, Tamper::FirstResultKept] {
        let it = tamper::with(tamper, || race(&gpu, &entrants, 20)).unwrap();
        let noticed = |it: &[_]| it.iter().any(|it: &kernelforge::protocol::GateResult| it.gate == Gate::V7NoGaming);
        assert!(it.entrants.iter().all(|it| noticed(&it.failed)), "{tamper:?}: {it:?}");
    }
    assert_eq!(race(&gpu, &[], 20).unwrap_err().kind, FailureKind::BadInput);
}
