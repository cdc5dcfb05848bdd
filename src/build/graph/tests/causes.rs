//! What runs, grouped by what was changed.

use super::{Past, block, build, cpu, graph, outputs, transformer};
use crate::manifest::Strategy;
use crate::{
    build::graph::{
        BlockTarget, Damage, Decision, Graph, KeyParts, Step,
        causes::{causes, roots, top},
    },
    host::Device,
    manifest::spec::BlockSpec,
};
use std::{collections::BTreeSet, sync::Arc};

fn run(step: &Step, parts: &KeyParts) -> super::Outputs {
    outputs(step, parts, &[])
}

fn blocks(count: usize) -> Vec<BlockTarget> {
    (0..count).map(|it| block(&format!("b{it}"), transformer())).collect()
}

fn eps(block: &mut BlockTarget, eps: f64) {
    if let BlockSpec::Transformer { norm, .. } = &mut block.spec {
        norm.eps = eps;
    }
}

fn built(blocks: &[BlockTarget]) -> Past {
    let mut past = Past::default();
    build(&graph(blocks), &mut past, run);
    past
}

/// The top causes, one a line. Whatever they are, they cover each step that is not up to date once.
fn told(graph: &Graph, past: &Past, forced: bool) -> String {
    let decisions = graph.status(past, |_| forced);
    let causes = causes(graph, &decisions, past);
    let stale = decisions.iter().filter(|it| !it.is_up_to_date()).count();
    assert_eq!(causes.iter().map(|it| it.steps).sum::<usize>(), stale);
    top(&causes).join("\n")
}

#[test]
fn steps_count_to_the_edited_field_that_they_wait_for() {
    let mut blocks = blocks(3);
    let past = built(&blocks);
    eps(&mut blocks[1], 1e-6);
    blocks[2].tuning.strategy = Strategy::Random;
    blocks.push(block("new", transformer()));
    insta::assert_snapshot!(told(&graph(&blocks), &past, false), @r"
    6 steps of b1@cpu: `norm-eps` changed from 1e-5 to 1e-6
    6 steps of new@cpu: never built
    5 steps of b2@cpu: `strategy` changed from heuristic to random
    ");
}

#[test]
fn one_change_in_several_blocks_is_one_cause() {
    let mut blocks = blocks(5);
    let past = built(&blocks);
    blocks[..3].iter_mut().for_each(|it| eps(it, 1e-6));
    let three = told(&graph(&blocks), &past, false);
    blocks[3..].iter_mut().for_each(|it| eps(it, 1e-4));
    let five = told(&graph(&blocks), &past, false);
    insta::assert_snapshot!(format!("{three}\n{five}"), @r"
    18 steps of b0@cpu, b1@cpu, b2@cpu: `norm-eps` changed from 1e-5 to 1e-6
    30 steps of 5 blocks: `norm-eps` changed
    ");
}

#[test]
fn every_kind_of_cause_has_its_line() {
    let mut blocks = blocks(7);
    let mut past = built(&blocks);
    let digest = |step: &str| past.steps[step].0;
    let (lost, blob) = (digest("b1@cpu:verify"), past.records[&digest("b2@cpu:compile")].outputs["object"]);
    past.records.remove(&lost);
    past.damaged.insert(blob, Damage::Missing);
    let compiled = past.records.get_mut(&past.steps["b3@cpu:compile"].0).unwrap();
    let mut before = compiled.parts.clone();
    before.set("recipe", "older");
    // The step ran with an older kforge; nothing has its new key.
    let key = before.key();
    let older = super::Built { key, parts: before, outputs: compiled.outputs.clone() };
    past.records.remove(&past.steps["b3@cpu:compile"].0);
    past.records.insert(key, older);
    past.steps.insert("b3@cpu:compile".to_owned(), (key, None));
    blocks[4].passes.truncate(2);
    blocks[5].threads = 2;
    let graph = graph(&blocks);
    let decisions = graph.status(&past, |_| false);
    let all: Vec<_> = causes(&graph, &decisions, &past).iter().map(ToString::to_string).collect();
    // A step whose record is gone is no different from one that never ran.
    insta::assert_snapshot!(all.join("\n"), @r"
    6 steps of b4@cpu: `passes` changed: -fuse-mlp-block, -eliminate-dead-ops, -tile-matmul, -vectorize-layernorm
    5 steps of b5@cpu: `threads` changed from 1 to 2
    4 steps of b2@cpu: output `object` is missing
    4 steps of b3@cpu: kforge itself changed (`recipe`)
    2 steps of b1@cpu: never built
    ");
    let told = told(&graph, &past, false);
    assert_eq!(told.lines().count(), 4);
    assert!(told.ends_with("\nand 2 more causes: `--explain` names them"), "{told}");
}

#[test]
fn what_is_forced_says_so() {
    let blocks = blocks(4);
    insta::assert_snapshot!(told(&graph(&blocks), &built(&blocks), true), @"24 steps of 4 blocks: forced");
}

#[test]
fn another_machine_is_told_in_one_line() {
    let blocks = blocks(4);
    let past = built(&blocks);
    let mut other = cpu();
    (other.cores, other.l1d, other.l2, other.l3) = (8, 1, 2, 3);
    let device: Arc<Device> = Arc::new(other.into());
    let blocks: Vec<_> = blocks.into_iter().map(|it| BlockTarget { device: Arc::clone(&device), ..it }).collect();
    insta::assert_snapshot!(told(&graph(&blocks), &past, false), @"20 steps of 4 blocks: `cpu.cores` changed from 4 to 8; `cpu.l1d` changed from 32768 to 1; `cpu.l2` changed from 1048576 to 2; and 1 more");
}

#[test]
fn after_a_build_that_stopped_on_the_way_the_rest_counts_to_the_edit() {
    let mut blocks = blocks(1);
    let past = built(&blocks);
    eps(&mut blocks[0], 1e-6);
    let mut later = past.clone();
    build(&graph(&blocks), &mut later, run);
    for kind in ["compile", "verify", "benchmark", "report"] {
        let step = format!("b0@cpu:{kind}");
        let dropped = later.steps.insert(step.clone(), past.steps[&step]).unwrap().0;
        later.records.remove(&dropped);
    }
    insta::assert_snapshot!(told(&graph(&blocks), &later, false), @"4 steps of b0@cpu: `norm-eps` changed from 1e-5 to 1e-6");
}

#[test]
fn causes_in_json() {
    let mut blocks = blocks(2);
    let past = built(&blocks);
    blocks.iter_mut().for_each(|it| it.tuning.strategy = Strategy::Random);
    let graph = graph(&blocks);
    let causes = causes(&graph, &graph.status(&past, |_| false), &past);
    insta::assert_snapshot!(serde_json::to_string(&causes).unwrap(), @r#"[{"steps":10,"blocks":["b0@cpu","b1@cpu"],"text":"`strategy` changed from heuristic to random","reason":{"reason":"changed","parts":[{"name":"strategy","old":"heuristic","new":"random"}]}}]"#);
}

/// 100,000 steps take well under a second; with a step compared with each other step this would not end.
#[test]
fn a_hundred_thousand_steps_have_their_causes() {
    let blocks = blocks(16_667);
    let graph = graph(&blocks);
    let decisions = graph.status(&Past::default(), |_| false);
    let causes = causes(&graph, &decisions, &Past::default());
    assert_eq!(top(&causes), ["100002 steps of 16667 blocks: never built"]);
}

#[test]
fn an_up_to_date_step_leads_to_what_made_it_run_last() {
    let mut blocks = blocks(1);
    let mut past = built(&blocks);
    eps(&mut blocks[0], 1e-6);
    let graph = graph(&blocks);
    build(&graph, &mut past, run);
    let decisions = graph.status(&past, |_| false);
    assert!(decisions.iter().all(Decision::is_up_to_date));
    let roots = roots(&graph, &decisions, &past, |_| true);
    let told: BTreeSet<_> = graph.steps().iter().map(|it| roots.of(it.id).unwrap().1.to_string()).collect();
    assert_eq!(told.into_iter().collect::<Vec<_>>(), ["`norm-eps` changed from 1e-5 to 1e-6"]);
}
