//! Exactly the steps that read a value are stale when it changes.

use super::{Past, block, build, cpu, gpu, gpu_block, graph, names, outputs, transformer};
use crate::manifest::Strategy;
use crate::{
    build::graph::{
        BlockTarget, Decision, EnvironmentLlm, KeyParts, Outputs, Rules, Step, StepKind, plan_build,
        steps::{block_parts, serialized_block_parts},
    },
    digest::Digest,
    host::{
        CpuFacts, Device,
        gpu::{GpuFacts, GpuFeature, GpuKind},
    },
    manifest::spec::{BlockSpec, Pass},
    plan::space::only::tests::only,
    protocol::{Gate, corpus::Case},
};
use std::{collections::BTreeSet, sync::Arc};

/// The kinds of steps that run in the second build, when nothing is cut off.
fn rerun(
    blocks: &[BlockTarget],
    devices: [&Device; 2],
    rules: [&Rules; 2],
    edit: impl FnOnce(&mut BlockTarget),
) -> String {
    let mut past = Past::default();
    let on = |blocks: &[BlockTarget], device: &Device| -> Vec<_> {
        blocks.iter().map(|it| BlockTarget { device: Arc::new(device.clone()), ..it.clone() }).collect()
    };
    let before = plan_build(&on(blocks, devices[0]), rules[0]);
    assert_eq!(build(&before, &mut past, |step, parts| outputs(step, parts, &[])).len(), before.len());
    assert_eq!(build(&before, &mut past, |step, parts| outputs(step, parts, &[])), []);
    let mut blocks = blocks.to_vec();
    edit(&mut blocks[0]);
    let after = plan_build(&on(&blocks, devices[1]), rules[1]);
    let ran = build(&after, &mut past, |step, parts| outputs(step, parts, &[]));
    names(&after, &ran).join(" ").replace("gpt2@cpu:", "")
}

/// [`rerun`] after an edit of one block.
fn edited(edit: impl FnOnce(&mut BlockTarget)) -> String {
    rerun(&[block("gpt2", transformer())], [&cpu().into(), &cpu().into()], [&Rules::default(), &Rules::default()], edit)
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
    let ran = rerun(&blocks, [&cpu().into(), &cpu().into()], [&rules, &rules], |it| {
        if let BlockSpec::Transformer { norm, .. } = &mut it.spec {
            norm.eps = 1e-6;
        }
    });
    assert_eq!(ran, "ir plan compile verify benchmark report");
}

#[test]
fn what_a_manifest_sets_beside_the_fields_reaches_the_steps_that_read_it() {
    assert_eq!(edited(|_| {}), "");
    assert_eq!(edited(|it| it.tuning.strategy = Strategy::Random), "plan compile verify benchmark report");
    assert_eq!(edited(|it| it.passes.truncate(5)), "ir plan compile verify benchmark report");
    assert_eq!(edited(|it| it.threads = 2), "plan compile verify benchmark report");
}

#[test]
fn what_a_search_is_restricted_to_is_in_the_key_of_its_plan() {
    let restricted = |strategy, text: &str| {
        let mut blocks = [block("gpt2", transformer())];
        blocks[0].tuning.strategy = strategy;
        if !text.is_empty() {
            blocks[0].tuning.knobs = only(text);
        }
        plan_build(&blocks, &Rules::default()).steps().iter().map(|it| it.params()).collect::<Vec<_>>()
    };
    let grid = |text: &str| restricted(Strategy::Grid, text);
    let differ = |a: &str, b: &str| {
        let (a, b) = (grid(a), grid(b));
        (0..a.len()).filter(|it| a[*it] != b[*it]).collect::<Vec<_>>()
    };
    // The plan step alone.
    assert_eq!(differ("", "mr = 6"), [1]);
    assert_eq!(differ("mr = 6", "mr = 6 8"), [1]);
    assert_eq!(differ("mr = 6", "up.mr = 6"), [1]);
    assert_eq!(differ("mr = 6 8; lanes = 8", "lanes = 8; mr = 8 6"), Vec::<usize>::new());
    // The heuristic chooses nothing.
    assert_eq!(restricted(Strategy::Heuristic, ""), restricted(Strategy::Heuristic, "mr = 6"));
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
    blocks[0].tuning.strategy = Strategy::Grid;
    assert_eq!(build(&graph(&blocks), &mut past, run).len(), 5);
    blocks[0].tuning.strategy = Strategy::Heuristic;
    assert_eq!(build(&graph(&blocks), &mut past, run), []);
}

#[test]
fn how_steps_work_is_in_the_keys_of_those_steps() {
    let blocks = [block("gpt2", transformer())];
    let rules = Rules::default();
    let ran = |new: Rules| rerun(&blocks, [&cpu().into(), &cpu().into()], [&rules, &new], |_| {});
    assert_eq!(ran(Rules { seed: 7, ..rules.clone() }), "verify report");
    assert_eq!(ran(Rules { benchmark_ms: 9, ..rules.clone() }), "benchmark report");
    let (op, case, found) = ("mlp".to_owned(), "peaky".to_owned(), "block/mutant".to_owned());
    let corpus = vec![Case { gate: Gate::V2Bound, op, case, seed: 1, found }];
    assert_eq!(ran(Rules { corpus, ..rules.clone() }), "verify report");
}

#[test]
fn the_language_model_is_in_the_key_of_its_plans_and_where_it_lives_is_not() {
    let mut blocks = [block("gpt2", transformer())];
    blocks[0].tuning.strategy = Strategy::Llm;
    let said = |model: Option<&str>, endpoint| Rules {
        llm: EnvironmentLlm { model: model.map(str::to_owned), endpoint },
        ..Rules::default()
    };
    let searched = "plan compile verify benchmark report";
    let ran = |rules: [&Rules; 2]| rerun(&blocks, [&cpu().into(), &cpu().into()], rules, |_| {});
    assert_eq!(ran([&said(None, false), &said(Some("large"), true)]), searched);
    assert_eq!(ran([&said(Some("small"), true), &said(Some("large"), true)]), searched);
    assert_eq!(ran([&said(Some("small"), false), &said(Some("small"), true)]), searched);
    let plan = |blocks: &[BlockTarget], rules: &Rules| plan_build(blocks, rules).steps()[1].params();
    let at = |url: &str| {
        let mut moved = blocks.clone();
        moved[0].tuning.llm.endpoint = Some(url.to_owned());
        moved[0].tuning.llm.model = Some("large".to_owned());
        plan(&moved, &Rules::default())
    };
    assert_eq!(at("http://here"), at("http://there"));
    // What the manifest says and what the environment says instead are one thing.
    assert_eq!(at("http://here"), plan(&blocks, &said(Some("large"), true)));
}

#[test]
fn another_cpu_measures_again_and_never_builds_the_ir_again() {
    let blocks = [block("gpt2", transformer())];
    let rules = Rules::default();
    let ran = |edit: fn(&mut CpuFacts)| {
        let mut other = cpu();
        edit(&mut other);
        rerun(&blocks, [&cpu().into(), &other.into()], [&rules, &rules], |_| {})
    };
    assert_eq!(ran(|it| it.cores = 8), "plan compile verify benchmark report");
    assert_eq!(ran(|it| it.l2 *= 2), "plan compile verify benchmark report");
    assert_eq!(ran(|it| it.isa.push("avx512f".to_owned())), "plan compile verify benchmark report");
    assert_eq!(ran(|it| it.model.push('X')), "plan compile verify benchmark report");
}

/// [`rerun`] of a block for a GPU after an edit of the block and of the GPU.
fn edited_gpu(edit: impl FnOnce(&mut BlockTarget), change: impl FnOnce(&mut GpuFacts)) -> String {
    let (rules, mut other) = (Rules::default(), gpu());
    change(&mut other);
    let devices = [&gpu().into(), &other.into()];
    rerun(&[gpu_block("gpt2", transformer())], devices, [&rules, &rules], edit).replace("gpt2@gpu:", "")
}

#[test]
fn another_gpu_is_planned_and_generated_for_only_where_it_can_do_something_else() {
    let ran = |change: fn(&mut GpuFacts)| edited_gpu(|_| {}, change);
    assert_eq!(ran(|_| {}), "");
    let all = "plan compile verify benchmark report";
    assert_eq!(ran(|it| it.kind = GpuKind::Integrated), all);
    assert_eq!(ran(|it| it.features.push(GpuFeature::Timestamps)), all);
    assert_eq!(ran(|it| it.subgroup_min = 8), all);
    assert_eq!(ran(|it| it.subgroup_max = 64), all);
    assert_eq!(ran(|it| it.workgroup_memory *= 2), all);
    assert_eq!(ran(|it| it.workgroup_invocations = 256), all);
    assert_eq!(ran(|it| it.workgroup_x = 256), all);
    assert_eq!(ran(|it| it.workgroups = 1 << 20), all);
    assert_eq!(ran(|it| it.buffer_bytes = 1), all);
    assert_eq!(ran(|it| it.binding_bytes = 1), all);
    assert_eq!(ran(|it| it.bindings = 8), all);
    assert_eq!(ran(|it| it.binding_alignment = 256), all);
    assert_eq!(ran(|it| it.cooperative.clear()), all);
    assert_eq!(ran(|it| it.vendor = 9), all);
    assert_eq!(ran(|it| it.api = "metal".to_owned()), all);
    let device = "verify benchmark report";
    assert_eq!(ran(|it| it.name = "Test GPU 2".to_owned()), device);
    assert_eq!(ran(|it| it.device = 3), device);
    assert_eq!(ran(|it| it.driver = "other".to_owned()), device);
    assert_eq!(ran(|it| it.driver_version = "1.1".to_owned()), device);
}

#[test]
fn where_the_softmax_runs_is_a_matter_of_plans_for_gpus() {
    assert_eq!(edited_gpu(|it| it.hybrid_softmax = true, |_| {}), "plan compile verify benchmark report");
    assert_eq!(edited(|it| it.hybrid_softmax = true), "");
}

#[test]
fn blocks_for_different_devices_have_the_facts_of_their_own() {
    let graph = graph(&[block("gpt2", transformer()), gpu_block("gpt2", transformer())]);
    for step in graph.steps().iter().filter(|it| !matches!(it.kind, StepKind::Ir)) {
        let facts = |prefix: &str| step.params().iter().filter(|it| it.0.starts_with(prefix)).count();
        let (own, other) = if step.on_gpu { ("gpu.", "cpu.") } else { ("cpu.", "gpu.") };
        assert!(facts(own) > 0 && facts(other) == 0, "{}", step.identity());
    }
    // They compute the same, so the IR is built once.
    let ir = |target: &str| graph.step(graph.find(&format!("gpt2@{target}:ir")).unwrap()).params().key();
    assert_eq!(ir("cpu"), ir("gpu"));
}

#[test]
fn every_step_that_uses_the_device_has_every_fact_of_it_in_its_key() {
    let graph = graph(&[block("gpt2", transformer()), gpu_block("gpt2", transformer())]);
    for (target, facts) in
        [("cpu", serde_json::to_value(cpu()).unwrap()), ("gpu", serde_json::to_value(gpu()).unwrap())]
    {
        for kind in [StepKind::Verify, StepKind::Benchmark, StepKind::Report] {
            let step = graph.step(graph.find(&format!("gpt2@{target}:{kind}")).unwrap());
            for fact in facts.as_object().unwrap().keys() {
                assert!(step.params().get(&format!("{target}.{fact}")).is_some(), "{kind} does not read {fact}");
            }
        }
    }
}

/// A plan step whose content is the digests of the templates that its block uses, as the real one's is beside its schedules.
fn with_templates<'a>(used: &'a [(&'a str, &'a [&'a str])]) -> impl Fn(&Step, &KeyParts) -> Outputs + 'a {
    move |step, parts| {
        let unused = |part: &str| {
            let name = part.strip_prefix("shaders/");
            let of = used.iter().find(|it| Some(it.0) == step.block.as_deref()).map_or(&[][..], |it| it.1);
            name.is_some_and(|it| !of.contains(&it))
        };
        let ignored: Vec<&str> = parts.iter().map(|it| it.0).filter(|it| unused(it)).collect();
        outputs(step, parts, &ignored)
    }
}

#[test]
fn an_edited_template_makes_stale_the_kernels_that_use_it() {
    let blocks =
        [gpu_block("norms", transformer()), gpu_block("products", transformer()), block("products", transformer())];
    let used = [("norms", &["norm.wgsl", "math.wgsl"][..]), ("products", &["matmul.wgsl", "math.wgsl"][..])];
    let texts = |edited: &str| {
        let text = |name: &str| (name.to_owned(), format!("{name} {}", name == edited));
        Rules { shaders: ["norm.wgsl", "matmul.wgsl", "math.wgsl"].map(text).into(), ..Rules::default() }
    };
    let ran = |edited: &str| {
        let (mut past, run) = (Past::default(), with_templates(&used));
        build(&plan_build(&blocks, &texts("")), &mut past, &run);
        let graph = plan_build(&blocks, &texts(edited));
        let ran = build(&graph, &mut past, &run);
        let ran = ran.into_iter().filter(|it| graph.step(*it).kind == StepKind::Compile).collect::<Vec<_>>();
        names(&graph, &ran).join(" ")
    };
    assert_eq!(ran(""), "");
    assert_eq!(ran("norm.wgsl"), "norms@gpu:compile");
    assert_eq!(ran("matmul.wgsl"), "products@gpu:compile");
    assert_eq!(ran("math.wgsl"), "norms@gpu:compile products@gpu:compile");
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
        BlockSpec::Matmul { m: 2, n: 3, k: 4, b: Default::default(), bias: true, activation, dtype },
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
