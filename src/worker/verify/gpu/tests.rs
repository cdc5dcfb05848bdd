//! Real programs through the whole verifier, on the software device that every machine that runs these tests has.

use super::{Request, verify};
use crate::{
    codegen::gpu::{Compiled, compile},
    device::gpu::tests::software,
    verify::samples,
};
use kernelforge::{
    host::Device,
    manifest::spec::BlockSpec,
    plan::{
        Plan,
        schedule::Schedule,
        space::Space,
        stage::{StageGraph, StageOp},
    },
    protocol::{FailureKind, Gate, GateStatus, Verdict},
};
use std::collections::BTreeMap;

/// No pass asked for a schedule: every stage has its plain one.
fn unscheduled(block: &BlockSpec) -> StageGraph {
    let mut graph = samples::graph(block);
    graph.stages.iter_mut().for_each(|it| it.scheduled = false);
    graph
}

fn plan(stages: BTreeMap<String, Schedule>) -> Plan {
    samples::plan("sample", "gpu", stages)
}

fn judge(block: &BlockSpec, compiled: &Compiled, plan: &Plan, shapes: bool) -> Verdict {
    let none = BTreeMap::new();
    let request = Request {
        program: &compiled.program,
        sources: &compiled.sources,
        plan,
        block,
        facts: &software(),
        seed: 17,
        corpus: &[],
        templates: shapes.then_some(&none),
        store: None,
    };
    verify(&request).unwrap_or_else(|it| panic!("{block:?}: {it}\n{}", it.detail))
}

#[track_caller]
fn assert_accepted(verdict: &Verdict, block: &BlockSpec, plan: &Plan) {
    let failed: Vec<_> = verdict.gates.iter().filter(|it| it.status != GateStatus::Passed).collect();
    assert!(verdict.accepted, "{block:?}\n{plan:?}\n{failed:#?}");
}

#[test]
fn plain_programs_of_every_kind_are_accepted() {
    for block in samples::all() {
        let (graph, plan) = (unscheduled(&block), plan(BTreeMap::new()));
        let compiled = compile(&graph, &plan, &software(), &BTreeMap::new()).unwrap();
        let verdict = judge(&block, &compiled, &plan, true);
        assert_accepted(&verdict, &block, &plan);
        let unchecked = verdict.gates.iter().find(|it| it.case.starts_with("shaders without checks"));
        assert!(unchecked.is_some_and(|it| it.gate == Gate::V4Memory && it.checked > 0), "{unchecked:?}");
        // Schedules that two stages have in common are judged at other shapes once.
        for stage in &graph.stages {
            let same = |it: &&str| graph.stage(it).is_some_and(|it| it.op.name() == stage.op.name());
            let shaped =
                verdict.gates.iter().filter(|it| it.gate == Gate::V5Shapes).filter_map(|it| it.stage.as_deref());
            assert!(shaped.filter(same).count() >= 2, "{}", stage.name);
        }
    }
}

#[test]
fn plain_programs_of_blocks_stored_as_halves_are_accepted() {
    for block in samples::all() {
        let (block, plan) = (samples::halved(&block), plan(BTreeMap::new()));
        let compiled = compile(&unscheduled(&block), &plan, &software(), &BTreeMap::new()).unwrap();
        assert_accepted(&judge(&block, &compiled, &plan, true), &block, &plan);
    }
}

#[test]
fn softmax_on_the_host_is_accepted() {
    let (block, gpu) = (samples::gpt(), software());
    let graph = samples::graph(&block);
    let mut stages = BTreeMap::new();
    for stage in &graph.stages {
        let dtype = graph.tensor(stage.output).dtype;
        let mut schedule = Schedule::plain(&stage.op, dtype, &Device::Gpu(gpu.clone()));
        if let StageOp::Attention { .. } = stage.op {
            let hosted = Space::of(&stage.op, dtype, &Device::Gpu(gpu.clone()), true);
            schedule = hosted.schedules().next().unwrap();
        }
        stages.insert(stage.name.clone(), schedule);
    }
    let plan = plan(stages);
    let compiled = compile(&graph, &plan, &gpu, &BTreeMap::new()).unwrap();
    assert_accepted(&judge(&block, &compiled, &plan, true), &block, &plan);
}

#[test]
fn what_does_not_compile_is_a_failure_with_the_shader_s_name() {
    let (block, plan) = (samples::gpt(), plan(BTreeMap::new()));
    let mut compiled = compile(&unscheduled(&block), &plan, &software(), &BTreeMap::new()).unwrap();
    compiled.sources[0].push_str("\nthis is no WGSL");
    let none = BTreeMap::new();
    let request = Request {
        program: &compiled.program,
        sources: &compiled.sources,
        plan: &plan,
        block: &block,
        facts: &software(),
        seed: 1,
        corpus: &[],
        templates: Some(&none),
        store: None,
    };
    let failure = verify(&request).err().unwrap();
    assert_eq!(failure.kind, FailureKind::Codegen);
    assert!(failure.message.contains(&compiled.program.shaders[0].name), "{failure}");
}
