//! Exactly the steps that read a value are stale when it changes.

use super::{Past, block, build, cpu, graph, names, outputs, transformer};
use crate::{
    build::graph::{
        BlockTarget, Decision, Rules, StepKind, plan_build,
        steps::{block_parts, serialized_block_parts},
    },
    digest::Digest,
    host::CpuFacts,
    manifest::spec::{BlockSpec, Pass},
    protocol::{Gate, corpus::Case},
};
use std::collections::BTreeSet;

/// The kinds of steps that run in the second build, when nothing is cut off.
fn rerun(
    blocks: &[BlockTarget],
    cpus: [&CpuFacts; 2],
    rules: [&Rules; 2],
    edit: impl FnOnce(&mut BlockTarget),
) -> String {
    let mut past = Past::default();
    let before = plan_build(blocks, cpus[0], rules[0]);
    assert_eq!(build(&before, &mut past, |step, parts| outputs(step, parts, &[])).len(), before.len());
    assert_eq!(build(&before, &mut past, |step, parts| outputs(step, parts, &[])), []);
    let mut blocks = blocks.to_vec();
    edit(&mut blocks[0]);
    let after = plan_build(&blocks, cpus[1], rules[1]);
    let ran = build(&after, &mut past, |step, parts| outputs(step, parts, &[]));
    names(&after, &ran).join(" ").replace("gpt2@cpu:", "")
}

/// [`rerun`] after an edit of one block.
fn edited(edit: impl FnOnce(&mut BlockTarget)) -> String {
    rerun(&[block("gpt2", transformer())], [&cpu(), &cpu()], [&Rules::default(), &Rules::default()], edit)
}

#[test]
fn the_first_build_runs_everything_and_the_second_nothing() {
    let graph = graph(&[block("gpt2", transformer()), block("bert", transformer())]);
    let mut past = Past::default();
    let ran = build(&graph, &mut past, |step, parts| outputs(step, parts, &[]));
    assert_eq!(ran.len(), 2 * 6, "six steps a block");
    assert_eq!(build(&graph, &mut past, |step, parts| outputs(step, parts, &[])), []);
    assert!(graph.status(&past, |_| false).iter().all(Decision::is_up_to_date));
}

#[test]
fn what_a_gate_makes_reaches_the_action_and_no_key() {
    let graph = graph(&[block("gpt2", transformer())]);
    let of = |kind: &str| graph.step(graph.find(&format!("gpt2@cpu:{kind}")).unwrap());
    let (verify, benchmark) = (of("verify"), of("benchmark"));
    let gates: Vec<_> = benchmark.gates.iter().map(|it| it.name).collect();
    assert_eq!(gates, ["plan", "audit"]);
    assert!(benchmark.deps.contains(&verify.id));
    let made: Vec<_> = graph.steps().iter().map(|it| outputs(it, &it.params(), &[])).collect();
    let key = |audit: &str| {
        let mut made = made.clone();
        made[verify.id.index()].insert("audit", Digest::of(audit.as_bytes()));
        graph.parts(benchmark.id, |it| made.get(it.index())).unwrap().key()
    };
    assert_eq!(key("yesterday"), key("today"));
}

#[test]
fn an_edited_field_runs_the_steps_of_its_block_only() {
    let blocks = [block("gpt2", transformer()), block("bert", transformer())];
    let rules = Rules::default();
    let ran = rerun(&blocks, [&cpu(), &cpu()], [&rules, &rules], |it| {
        if let BlockSpec::Transformer { norm, .. } = &mut it.spec {
            norm.eps = 1e-6;
        }
    });
    assert_eq!(ran, "ir plan compile verify benchmark report");
}

#[test]
fn what_a_manifest_sets_beside_the_fields_reaches_the_steps_that_read_it() {
    assert_eq!(edited(|_| {}), "");
    assert_eq!(edited(|it| it.strategy = "random".to_owned()), "plan compile verify benchmark report");
    assert_eq!(edited(|it| it.passes.truncate(5)), "ir plan compile verify benchmark report");
    assert_eq!(edited(|it| it.threads = 2), "plan compile verify benchmark report");
}

#[test]
fn a_pass_list_that_leaves_the_ir_the_same_stops_after_ir() {
    let mut blocks = vec![block("gpt2", transformer())];
    let mut past = Past::default();
    let run = |step: &super::super::Step, parts: &super::super::KeyParts| outputs(step, parts, &["passes"]);
    build(&graph(&blocks), &mut past, run);
    blocks[0].passes.push(Pass::EliminateDeadOps);
    let graph = graph(&blocks);
    let ran = build(&graph, &mut past, run);
    assert_eq!(names(&graph, &ran), ["gpt2@cpu:ir"]);
}

#[test]
fn an_edit_taken_back_runs_nothing() {
    let mut past = Past::default();
    let run = |step: &super::super::Step, parts: &super::super::KeyParts| outputs(step, parts, &[]);
    let mut blocks = vec![block("gpt2", transformer())];
    build(&graph(&blocks), &mut past, run);
    blocks[0].strategy = "grid".to_owned();
    assert_eq!(build(&graph(&blocks), &mut past, run).len(), 5);
    blocks[0].strategy = "heuristic".to_owned();
    assert_eq!(build(&graph(&blocks), &mut past, run), []);
}

#[test]
fn how_steps_work_is_in_the_keys_of_those_steps() {
    let blocks = [block("gpt2", transformer())];
    let rules = Rules::default();
    let ran = |new: Rules| rerun(&blocks, [&cpu(), &cpu()], [&rules, &new], |_| {});
    assert_eq!(ran(Rules { seed: 7, ..rules.clone() }), "verify report");
    assert_eq!(ran(Rules { benchmark_ms: 9, ..rules.clone() }), "benchmark report");
    let (op, case, found) = ("mlp".to_owned(), "peaky".to_owned(), "block/mutant".to_owned());
    let corpus = vec![Case { gate: Gate::V2Bound, op, case, seed: 1, found }];
    assert_eq!(ran(Rules { corpus, ..rules.clone() }), "verify report");
}

#[test]
fn another_cpu_measures_again_and_never_builds_the_ir_again() {
    let blocks = [block("gpt2", transformer())];
    let rules = Rules::default();
    let ran = |edit: fn(&mut CpuFacts)| {
        let mut other = cpu();
        edit(&mut other);
        rerun(&blocks, [&cpu(), &other], [&rules, &rules], |_| {})
    };
    assert_eq!(ran(|it| it.cores = 8), "plan compile verify benchmark report");
    assert_eq!(ran(|it| it.l2 *= 2), "plan compile verify benchmark report");
    assert_eq!(ran(|it| it.isa.push("avx512f".to_owned())), "plan compile verify benchmark report");
    assert_eq!(ran(|it| it.model.push('X')), "compile verify benchmark report");
}

#[test]
fn every_step_that_uses_the_device_has_every_fact_of_it_in_its_key() {
    let graph = graph(&[block("gpt2", transformer())]);
    let facts = serde_json::to_value(cpu()).unwrap();
    for kind in [StepKind::Verify, StepKind::Benchmark] {
        let step = graph.steps().iter().find(|it| it.kind == kind).unwrap();
        for fact in facts.as_object().unwrap().keys() {
            assert!(step.params().get(&format!("cpu.{fact}")).is_some(), "{kind} does not read {fact}");
        }
    }
}

/// The paths of all values in a JSON object that are no objects.
fn leaves(value: &serde_json::Value, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                path.push(name.clone());
                leaves(value, path, found);
                path.pop();
            }
        }
        _ => found.push(path.clone()),
    }
}

#[test]
fn every_field_of_every_kind_of_block_is_a_part_of_its_own() {
    use crate::manifest::spec::{Activation, Dtype};
    let BlockSpec::Transformer { rows, attention, norm, mlp, .. } = transformer() else { unreachable!() };
    let dtype = Dtype::F32;
    let activation = Some(Activation::Silu);
    let specs = [
        transformer(),
        BlockSpec::TransformerMicroblock { rows, attention, norm, dtype },
        BlockSpec::Microblock { m: 2, n: 3, k: 4, bias: true, norm, dtype },
        BlockSpec::Attention { rows, attention, dtype },
        BlockSpec::Mlp { rows, mlp, dtype },
        BlockSpec::Matmul { m: 2, n: 3, k: 4, bias: true, activation, dtype },
        BlockSpec::LayerNorm { rows, d_model: 768, norm, dtype },
    ];
    let keys: BTreeSet<_> = specs.iter().map(|it| block_parts(it).key()).collect();
    assert_eq!(keys.len(), specs.len());
    for spec in specs {
        let value = serde_json::to_value(&spec).unwrap();
        let mut found = Vec::new();
        leaves(&value, &mut Vec::new(), &mut found);
        for path in found {
            let mut edited = value.clone();
            let leaf = path.iter().fold(&mut edited, |it, name| &mut it[name]);
            *leaf = match &*leaf {
                serde_json::Value::Bool(it) => (!*it).into(),
                serde_json::Value::Number(it) if it.is_f64() => (it.as_f64().unwrap() + 0.25).into(),
                serde_json::Value::Number(it) => (it.as_u64().unwrap() + 1).into(),
                _ => "other".into(),
            };
            let key = serialized_block_parts(&edited).key();
            assert_ne!(key, block_parts(&spec).key(), "{path:?} of {}", spec.kind_name());
        }
    }
}

#[test]
fn a_block_has_the_part_names_of_the_manifest() {
    let parts = block_parts(&transformer());
    let lines: Vec<_> = parts.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    block.activation = gelu-tanh
    block.batch = 1
    block.bias = true
    block.causal = true
    block.d-ff = 3072
    block.d-model = 768
    block.dtype = f32
    block.gated = false
    block.head-dim = 64
    block.heads = 12
    block.kind = transformer
    block.kv-heads = 12
    block.norm = layer-norm
    block.norm-eps = 1e-5
    block.out-bias = true
    block.qkv-bias = true
    block.rope-theta = 0.0
    block.seq = 128
    ");
}
