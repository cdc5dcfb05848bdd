//! Right and wrong kernels through the gates of a search.

use super::{Request, on_cpu, on_gpu};
use crate::{
    codegen::{self, Compiled},
    device::gpu::tests::software,
    verify::samples,
};
use kernelforge::{
    host::CpuFacts,
    manifest::spec::{BlockSpec, Dtype},
    plan::{
        Plan, operation,
        schedule::{PackB, Schedule},
        stage::StageGraph,
    },
    protocol::{Failure, FailureKind, Gate},
};
use std::collections::BTreeMap;

const SEED: u64 = 7;

/// Each stage of a block alone, with the schedule of its kind that nobody tuned.
fn operations(block: &BlockSpec) -> Vec<StageGraph> {
    let graph = samples::graph(block);
    let mut all: Vec<StageGraph> = graph.stages.iter().map(|it| operation::isolate(&graph, it)).collect();
    all.iter_mut().for_each(|it| it.stages[0].scheduled = false);
    all
}

fn matmul() -> StageGraph {
    operations(&samples::product((24, 96, 64), true)).remove(0)
}

fn plan(target: &str) -> Plan {
    samples::plan(operation::NAME, target, BTreeMap::new())
}

fn attempt(graph: &StageGraph, plan: &Plan, given: Option<&str>, threads: usize) -> Result<Compiled, Failure> {
    let given = given.map(|it| it.as_bytes().to_vec());
    on_cpu(Request { graph, plan, given, seed: SEED }, &CpuFacts::detect(), threads)
}

#[test]
fn right_kernels_of_every_kind_of_operation_pass_and_are_what_compile_makes() {
    for block in samples::all().into_iter().flat_map(|it| [samples::halved(&it), it]) {
        for graph in operations(&block) {
            let tried = attempt(&graph, &plan("cpu"), None, 2).unwrap_or_else(|it| panic!("{graph:?}: {it}"));
            let compiled = codegen::cpu::compile(&graph, &plan("cpu"), &CpuFacts::detect()).unwrap();
            assert_eq!((tried.object, tried.lowered), (compiled.object, compiled.lowered));
        }
    }
}

/// How the matmul is refused when its text is edited.
#[track_caller]
fn refused(from: &str, to: &str) -> Failure {
    let graph = matmul();
    let text = attempt(&graph, &plan("cpu"), None, 1).unwrap().lowered;
    assert!(text.contains(from), "no `{from}` in\n{text}");
    attempt(&graph, &plan("cpu"), Some(&text.replace(from, to)), 1).err().expect("a wrong kernel passes")
}

#[test]
fn a_wrong_kernel_is_refused_by_its_gate() {
    let failure = refused("arith.addf", "arith.subf");
    assert_eq!(failure.kind, FailureKind::NumericMismatch, "{failure}");
    assert_eq!(failure.gate, Some(Gate::V2Bound));
    assert_eq!(failure.stage.as_deref(), Some(operation::NAME));
    assert!(failure.message.contains("(matmul bias=true k=64 m=24 n=96 "), "{failure}");
}

#[test]
fn a_kernel_that_leaves_its_buffers_is_refused_as_that_whatever_it_returns() {
    let failure = refused("arith.constant 64 : index", "arith.constant 80 : index");
    assert_eq!((failure.kind, failure.gate), (FailureKind::Memory, Some(Gate::V4Memory)), "{failure}");
    assert!(failure.message.contains("past the end of"), "{failure}");
}

#[test]
fn an_illegal_schedule_is_refused_by_the_gate_of_legality() {
    let mut graph = matmul();
    graph.stages[0].scheduled = true;
    let schedule = Schedule::plain(&graph.stages[0].op, Dtype::F32, &CpuFacts::detect().into());
    let Schedule::Matmul(mut schedule) = schedule else { panic!("{schedule:?}") };
    (schedule.lanes, schedule.pack_b) = (3, PackB::Never);
    let mut plan = plan("cpu");
    plan.stages.insert(operation::NAME.to_owned(), Schedule::Matmul(schedule));
    let failure = attempt(&graph, &plan, None, 1).err().unwrap();
    assert_eq!((failure.kind, failure.gate), (FailureKind::IllegalPlan, Some(Gate::V0Legality)));
    assert!(failure.message.contains("lanes"), "{failure}");
}

#[test]
fn only_one_operation_is_tried() {
    let mut graph = samples::graph(&samples::gpt());
    graph.stages.iter_mut().for_each(|it| it.scheduled = false);
    assert_eq!(attempt(&graph, &plan("cpu"), None, 1).err().unwrap().kind, FailureKind::Internal);
}

#[test]
fn programs_for_a_gpu_pass_the_same_gates() {
    let (gpu, graph, plan) = (software(), matmul(), plan("gpu"));
    let attempt = |given: Option<&str>| {
        let given = given.map(|it| it.as_bytes().to_vec());
        on_gpu(Request { graph: &graph, plan: &plan, given, seed: SEED }, &gpu, &BTreeMap::new(), None)
    };
    let compiled = attempt(None).unwrap_or_else(|it| panic!("{it}"));
    let text = codegen::gpu::listing(&compiled.program, &compiled.sources);
    for (from, to, kind, gate) in [
        ("y = y + ", "y = y - ", FailureKind::NumericMismatch, Gate::V2Bound),
        ("out[at] =", "out[at + 1u] =", FailureKind::Memory, Gate::V4Memory),
    ] {
        assert!(text.contains(from), "no `{from}` in\n{text}");
        let failure = attempt(Some(&text.replace(from, to))).err().unwrap_or_else(|| panic!("{to} passes"));
        assert_eq!((failure.kind, failure.gate), (kind, Some(gate)), "{failure}");
    }
}

/// What a try of 128x768x3072 costs: `cargo test --release --bin kforge-worker a_try_costs -- --ignored --nocapture`.
#[test]
#[ignore = "prints times"]
fn a_try_costs() {
    use std::time::Instant;
    let block = samples::product((128, 3072, 768), true);
    let (mut graph, cpu) = (operations(&block).remove(0), CpuFacts::detect());
    graph.stages[0].scheduled = true;
    let schedule = |mr| {
        Schedule::Matmul(kernelforge::plan::schedule::MatmulSchedule {
            mr,
            nr: 2 * cpu.lanes,
            lanes: cpu.lanes,
            mc: 16 * mr,
            nc: 8 * cpu.lanes,
            kc: 256,
            unroll: 4,
            dot: kernelforge::plan::schedule::Dot::Fma,
            order: kernelforge::plan::schedule::TileOrder::ColumnsOutside,
            pack_a: false,
            pack_b: PackB::Ahead,
            prefetch: true,
            split: kernelforge::plan::schedule::Split::Columns,
        })
    };
    for mr in [6, 6, 4, 2] {
        let mut plan = plan("cpu");
        plan.stages.insert(operation::NAME.to_owned(), schedule(mr));
        let start = Instant::now();
        codegen::cpu::compile(&graph, &plan, &cpu).unwrap();
        let compiled = start.elapsed();
        attempt(&graph, &plan, None, 1).unwrap();
        println!("mr {mr}: compile {compiled:?}, try beside it {:?}", start.elapsed() - 2 * compiled);
    }
}
