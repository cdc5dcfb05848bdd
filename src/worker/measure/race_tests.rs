//! Races of real compiled kernels.

use super::{Rules, race};
use crate::{
    codegen::cpu::compile,
    measure::tamper::{self, Tamper},
    verify::samples,
};
use kernelforge::{
    host::CpuFacts,
    plan::{
        Plan,
        kernel::Kernel,
        operation,
        schedule::{MatmulSchedule, PackB, Schedule, Split, TileOrder},
        stage::StageGraph,
    },
    protocol::{FailureKind, Gate, tuning::Race},
};

const RULES: Rules = Rules { threads: 1, runs: 20, variants: false };

fn matmul() -> StageGraph {
    let block = samples::product((24, 96, 64), true);
    let graph = samples::graph(&block);
    operation::isolate(&graph, &graph.stages[0])
}

/// A kernel of the operation whose micro-kernel has so many rows.
fn entrant(graph: &StageGraph, mr: usize) -> (Vec<u8>, Kernel) {
    let cpu = CpuFacts::detect();
    let schedule = MatmulSchedule {
        mr,
        nr: 2 * cpu.lanes,
        lanes: cpu.lanes,
        mc: 24,
        nc: 8 * cpu.lanes,
        kc: 64,
        unroll: 4,
        dot: kernelforge::plan::schedule::Dot::Fma,
        order: TileOrder::ColumnsOutside,
        pack_a: false,
        pack_b: PackB::Ahead,
        prefetch: false,
        split: Split::Columns,
    };
    let plan = samples::plan(&graph.block, "cpu", [(operation::NAME.to_owned(), Schedule::Matmul(schedule))].into());
    let compiled = compile(graph, &plan, &cpu).unwrap_or_else(|it| panic!("{it}\n{}", it.detail));
    (compiled.object, compiled.kernel)
}

fn raced(entrants: &[(Vec<u8>, Kernel)], rules: Rules) -> Race {
    race(entrants, &CpuFacts::detect(), rules).unwrap()
}

#[test]
fn a_kernel_is_about_as_fast_as_itself_and_other_schedules_have_their_own_figures() {
    let graph = matmul();
    let one = entrant(&graph, 4);
    let race = raced(&[one.clone(), one, entrant(&graph, 2), entrant(&graph, 1)], Rules { runs: 10_000, ..RULES });
    assert_eq!((race.entrants.len(), race.entrants[0].relative, race.entrants[0].noise), (4, 1.0, 0.0));
    for it in &race.entrants {
        assert!(it.failed.is_empty(), "{it:?}");
        assert!(it.relative.is_finite() && it.noise.is_finite() && it.timing.median_ns > 0.0, "{it:?}");
    }
    assert!((0.3..3.0).contains(&race.entrants[1].relative), "{race:?}");
    // Three challengers: one of them leaves after the first heat, one after the second.
    let mut samples: Vec<usize> = race.entrants[1..].iter().map(|it| it.timing.samples).collect();
    samples.sort_unstable();
    assert!(samples[0] < samples[1] && samples[1] < samples[2], "{samples:?}");
    assert_eq!(race.entrants[0].timing.samples, samples[2]);
    assert!(race.canaries.iter().all(|it| it.gflops > 0.0 && it.gigabytes_per_s > 0.0), "{:?}", race.canaries);
}

#[test]
fn hand_written_kernels_run_beside_a_matmul() {
    let graph = matmul();
    let race = raced(&[entrant(&graph, 4)], Rules { threads: 2, variants: true, ..RULES });
    let names: Vec<&str> = race.variants.iter().map(|it| it.name.as_str()).collect();
    assert!(names.starts_with(&["reference", "blocked", "parallel"]), "{names:?}");
    assert!(race.variants.iter().all(|it| it.relative.is_finite() && it.timing.samples > 0));
    let norm = samples::graph(&samples::gpt());
    let mut norm = operation::isolate(&norm, &norm.stages[0]);
    norm.stages[0].scheduled = false;
    let cpu = CpuFacts::detect();
    let compiled = compile(&norm, &plain(&norm), &cpu).unwrap();
    let race = raced(&[(compiled.object, compiled.kernel)], Rules { variants: true, ..RULES });
    assert!(race.variants.is_empty());
}

fn plain(graph: &StageGraph) -> Plan {
    samples::plan(&graph.block, "cpu", Default::default())
}

#[test]
fn whole_blocks_race_too() {
    let mut graph = samples::graph(&samples::gpt());
    graph.stages.iter_mut().for_each(|it| it.scheduled = false);
    let compiled = compile(&graph, &plain(&graph), &CpuFacts::detect()).unwrap();
    let one = (compiled.object, compiled.kernel);
    for threads in [1, 2] {
        let race = raced(&[one.clone(), one.clone()], Rules { threads, ..RULES });
        assert!(race.entrants.iter().all(|it| it.failed.is_empty() && it.relative.is_finite()), "{race:?}");
    }
}

#[test]
fn every_tampered_race_is_noticed() {
    let graph = matmul();
    let entrants = [entrant(&graph, 4), entrant(&graph, 2)];
    for (tamper, case) in [
        (Tamper::SlowClock, "plausible time"),
        (Tamper::HalfTheUnits, "results of the timed runs"),
        (Tamper::FirstResultKept, "results of the timed runs"),
    ] {
        let race = tamper::with(tamper, || raced(&entrants, RULES));
        for it in &race.entrants {
            let found = it.failed.iter().any(|it| it.gate == Gate::V7NoGaming && it.case == case);
            assert!(found, "{tamper:?}: {:?}", it.failed);
        }
    }
}

#[test]
fn only_what_computes_the_same_races() {
    let graph = matmul();
    let mut other = graph.clone();
    other.tensors[0].name = "in9".to_owned();
    let kernels = [entrant(&graph, 4), entrant(&other, 4)];
    let refused = |entrants: &[(Vec<u8>, Kernel)]| race(entrants, &CpuFacts::detect(), RULES).unwrap_err();
    assert_eq!(refused(&[]).kind, FailureKind::BadInput);
    let failure = refused(&kernels);
    assert_eq!(failure.kind, FailureKind::BadInput);
    assert_eq!(failure.message, "entrant 1 does not compute what entrant 0 computes");
}

#[test]
fn what_does_not_fit_into_memory_is_refused_by_name() {
    let graph = matmul();
    let (object, mut kernel) = entrant(&graph, 4);
    kernel.packed[0].bytes = 1 << 50;
    let failure = race(&[(object, kernel)], &CpuFacts::detect(), RULES).unwrap_err();
    assert_eq!(failure.kind, FailureKind::OutOfMemory);
    assert!(failure.message.starts_with("1 entrants need "), "{failure}");
}
