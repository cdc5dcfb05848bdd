//! What people and programs read: snapshots of every reason, of `why`, and of the drawings.

use super::{Past, block, build, graph, outputs, transformer};
use crate::manifest::Strategy;
use crate::{
    build::graph::{
        BlockTarget, Damage, Graph, KeyParts, Rules, StaleReason, Step,
        output::{dot, json, mermaid, status},
        plan_build,
        stale::explain,
        why::why,
    },
    digest::Digest,
    manifest::spec::{BlockSpec, Origin, Pass},
    protocol::{Gate, corpus::Case},
};

fn run(step: &Step, parts: &KeyParts) -> super::Outputs {
    outputs(step, parts, &[])
}

fn blocks() -> Vec<BlockTarget> {
    vec![block("gpt2", transformer())]
}

fn with_eps(eps: f64) -> Vec<BlockTarget> {
    let mut blocks = blocks();
    if let BlockSpec::Transformer { norm, .. } = &mut blocks[0].spec {
        norm.eps = eps;
    }
    blocks
}

/// What `why` says about a step when these blocks are in the manifest.
fn told(blocks: &[BlockTarget], past: &Past, step: &str) -> String {
    let graph = graph(blocks);
    let status = graph.status(past, |_| false);
    why(&graph, graph.find(step).unwrap(), &status, past).to_string()
}

#[test]
fn every_reason_is_one_line() {
    let parts = |text: &str| -> KeyParts { text.split_whitespace().filter_map(|it| it.split_once('=')).collect() };
    let old = parts("step=compile recipe=aaa block.norm-eps=1e-5 block.seq=1 gone=x input.ir.stages=0123456789abcdef");
    let reasons = [
        explain(None, &old),
        explain(Some(&old), &parts("step=compile recipe=aaa block.norm-eps=1e-6 block.seq=1 gone=x input.ir.stages=f")),
        explain(
            Some(&old),
            &parts("step=compile recipe=bbb block.norm-eps=1e-5 block.seq=8 new=y input.ir.stages=0123456789abcdef"),
        ),
        explain(
            Some(&old),
            &parts("step=compile recipe=aaa block.norm-eps=1e-5 block.seq=1 gone=x input.ir.stages=fedcba9876543210"),
        ),
        explain(
            Some(&old),
            &parts("step=compile recipe=aaa block.norm-eps=1e-5 block.seq=1 gone=x input.plan.plan=fedcba9876543210"),
        ),
        StaleReason::OutputDamaged { output: "object".into(), blob: Digest::of(b"x"), damage: Damage::Missing },
        StaleReason::OutputDamaged { output: "object".into(), blob: Digest::of(b"x"), damage: Damage::Corrupt },
        StaleReason::Forced,
    ];
    for reason in &reasons {
        let text = serde_json::to_string(reason).unwrap();
        assert_eq!(&serde_json::from_str::<StaleReason>(&text).unwrap(), reason, "survives its JSON");
        assert!(!reason.to_string().contains('\n'));
    }
    let lines: Vec<_> = reasons.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    never built
    `norm-eps` changed from 1e-5 to 1e-6
    `seq` changed from 1 to 8; `gone` is gone, it was x; `new` is new: y; kforge itself changed (`recipe`)
    `stages` of `ir` changed from 0123456789ab to fedcba987654
    `stages` of `ir` changed from 0123456789ab to nothing; `plan` of `plan` changed from nothing to fedcba987654
    output `object` is missing (blob 3ae7d805f678)
    output `object` is corrupt (blob 3ae7d805f678)
    forced
    ");
}

#[test]
fn a_template_of_the_project_is_told_by_its_path() {
    let with = |digest: &str| KeyParts::new().with("step", "plan").with("shaders/norm.wgsl", digest);
    let (none, one, other) = (KeyParts::new().with("step", "plan"), with("0123"), with("4567"));
    let told = |old: &KeyParts, new: &KeyParts| explain(Some(old), new).to_string();
    assert_eq!(told(&one, &other), "`shaders/norm.wgsl` changed");
    assert_eq!(told(&none, &one), "`shaders/norm.wgsl` is new");
    assert_eq!(told(&one, &none), "`shaders/norm.wgsl` is gone");
}

#[test]
fn a_reason_in_json_has_every_field() {
    let old: KeyParts = [("block.seq", "1")].into_iter().collect();
    let new: KeyParts = [("block.seq", "8")].into_iter().collect();
    insta::assert_snapshot!(serde_json::to_string(&explain(Some(&old), &new)).unwrap(), @r#"{"reason":"changed","parts":[{"name":"block.seq","old":"1","new":"8"}]}"#);
}

#[test]
fn a_list_is_told_by_what_came_and_went() {
    let change = |old: &str, new: &str| {
        let part = |it: &str| [("passes", it)].into_iter().collect::<KeyParts>();
        explain(Some(&part(old)), &part(new)).to_string()
    };
    let lines = [
        change("[a, b]", "[a, c]"),
        change("[a, b]", "[b, a]"),
        change("[]", r#"[{"gate":"v1","op":"x, y"}]"#),
        change(r#"[{"seed":1}, {"seed":2}]"#, r#"[{"seed":3}]"#),
        change(r#"[{"seed":1}, {"seed":2}]"#, r#"[{"seed":2}, {"seed":1}]"#),
    ];
    insta::assert_snapshot!(lines.join("\n"), @r"
    `passes` changed: +c, -b
    `passes` changed from [a, b] to [b, a]
    `passes` changed: 1 added
    `passes` changed: 1 added, 2 removed
    `passes` changed: the order
    ");
}

#[test]
fn why_names_the_edited_field_through_the_steps_between() {
    let mut past = Past::default();
    build(&graph(&blocks()), &mut past, run);
    let text =
        ["ir", "compile", "report"].map(|it| told(&with_eps(1e-6), &past, &format!("gpt2@cpu:{it}"))).join("\n\n");
    insta::assert_snapshot!(text, @r"
    `gpt2@cpu:ir`: stale
      `norm-eps` changed from 1e-5 to 1e-6

    `gpt2@cpu:compile`: may be stale
      reads `stages`, `plan` of `gpt2@cpu:plan`
        reads `stages`, `passes` of `gpt2@cpu:ir`
          `norm-eps` changed from 1e-5 to 1e-6

    `gpt2@cpu:report`: may be stale
      `norm-eps` changed from 1e-5 to 1e-6
      reads `audit` of `gpt2@cpu:verify`
        `norm-eps` changed from 1e-5 to 1e-6
      reads `passes`, `stages`, `plan` of `gpt2@cpu:plan`
        reads `stages`, `passes` of `gpt2@cpu:ir`
          `norm-eps` changed from 1e-5 to 1e-6
    ");
}

#[test]
fn why_tells_of_the_last_rebuild_once_all_is_up_to_date() {
    let mut past = Past::default();
    build(&graph(&blocks()), &mut past, run);
    build(&graph(&with_eps(1e-6)), &mut past, run);
    let text = ["gpt2@cpu:ir", "gpt2@cpu:benchmark"].map(|it| told(&with_eps(1e-6), &past, it)).join("\n\n");
    insta::assert_snapshot!(text, @r"
    `gpt2@cpu:ir`: up to date; ran last because
      `norm-eps` changed from 1e-5 to 1e-6

    `gpt2@cpu:benchmark`: up to date; ran last because
      reads `object`, `kernel` of `gpt2@cpu:compile`
        reads `stages`, `plan` of `gpt2@cpu:plan`
          reads `stages`, `passes` of `gpt2@cpu:ir`
            `norm-eps` changed from 1e-5 to 1e-6
    ");
}

#[test]
fn why_tells_each_of_several_causes() {
    let mut past = Past::default();
    build(&graph(&blocks()), &mut past, run);
    let mut edited = with_eps(1e-6);
    edited[0].tuning.strategy = Strategy::Random;
    edited[0].passes = vec![Pass::TileMatmul];
    let plan = past.latest_output("gpt2@cpu:plan", "plan");
    past.damaged.insert(plan, Damage::Corrupt);
    let text = ["gpt2@cpu:compile", "gpt2@cpu:plan"].map(|it| told(&edited, &past, it)).join("\n\n");
    insta::assert_snapshot!(text, @r"
    `gpt2@cpu:compile`: may be stale
      reads `stages`, `plan` of `gpt2@cpu:plan`
        `strategy` changed from heuristic to random
      reads `stages`, `plan` of `gpt2@cpu:plan`
        reads `stages`, `passes` of `gpt2@cpu:ir`
          `norm-eps` changed from 1e-5 to 1e-6; `passes` changed: -fold-constants, -fuse-matmul-activation, -fuse-mlp-block, -eliminate-dead-ops, -vectorize-layernorm

    `gpt2@cpu:plan`: may be stale
      `strategy` changed from heuristic to random
      reads `stages`, `passes` of `gpt2@cpu:ir`
        `norm-eps` changed from 1e-5 to 1e-6; `passes` changed: -fold-constants, -fuse-matmul-activation, -fuse-mlp-block, -eliminate-dead-ops, -vectorize-layernorm
    ");
    // The digest in this graph contains the recipe: it changes with kforge's own sources.
    let text = told(&blocks(), &past, "gpt2@cpu:verify").replace(&plan.short(), "BLOB");
    insta::assert_snapshot!(text, @r"
    `gpt2@cpu:verify`: may be stale
      reads `plan` of `gpt2@cpu:plan`
        output `plan` is corrupt (blob BLOB)
    ");
}

#[test]
fn why_of_a_block_that_was_never_built() {
    insta::assert_snapshot!(told(&blocks(), &Past::default(), "gpt2@cpu:verify"), @r"
    `gpt2@cpu:verify`: may be stale
      reads `plan` of `gpt2@cpu:plan`
        reads `stages`, `passes` of `gpt2@cpu:ir`
          never built
    ");
}

/// A failed build leaves steps that were built and steps that were not.
#[test]
fn why_after_a_build_that_stopped_on_the_way() {
    let mut past = Past::default();
    build(&graph(&blocks()), &mut past, run);
    let mut later = past.clone();
    build(&graph(&with_eps(1e-6)), &mut later, run);
    for kind in ["compile", "verify", "benchmark", "report"] {
        let step = format!("gpt2@cpu:{kind}");
        let dropped = later.steps.insert(step.clone(), past.steps[&step]).unwrap().0;
        later.records.remove(&dropped);
    }
    let text = ["gpt2@cpu:compile", "gpt2@cpu:verify"].map(|it| told(&with_eps(1e-6), &later, it)).join("\n\n");
    insta::assert_snapshot!(text, @r"
    `gpt2@cpu:compile`: stale
      reads `stages`, `plan` of `gpt2@cpu:plan`
        reads `stages`, `passes` of `gpt2@cpu:ir`
          `norm-eps` changed from 1e-5 to 1e-6

    `gpt2@cpu:verify`: may be stale
      `norm-eps` changed from 1e-5 to 1e-6
      reads `object`, `kernel` of `gpt2@cpu:compile`
        reads `stages`, `plan` of `gpt2@cpu:plan`
          reads `stages`, `passes` of `gpt2@cpu:ir`
            `norm-eps` changed from 1e-5 to 1e-6
    ");
}

#[test]
fn why_says_where_the_edited_fields_are_written() {
    let mut past = Past::default();
    build(&graph(&blocks()), &mut past, run);
    let mut edited = with_eps(1e-6);
    edited[0].passes.truncate(5);
    let graph = graph(&edited);
    let mut why = why(&graph, graph.find("gpt2@cpu:report").unwrap(), &graph.status(&past, |_| false), &past);
    let origin = |line| Origin { file: "workloads/gpt2.toml".to_owned(), line, column: 1 };
    why.locate(|step, field| {
        assert!(step.starts_with("gpt2@cpu:"));
        (field == "norm-eps").then(|| origin(7)).or((field == "passes" && step.ends_with(":ir")).then(|| origin(9)))
    });
    insta::assert_snapshot!(why, @r"
    `gpt2@cpu:report`: may be stale
      `norm-eps` changed from 1e-5 to 1e-6 (workloads/gpt2.toml:7)
      reads `audit` of `gpt2@cpu:verify`
        `norm-eps` changed from 1e-5 to 1e-6 (workloads/gpt2.toml:7)
      reads `passes`, `stages`, `plan` of `gpt2@cpu:plan`
        reads `stages`, `passes` of `gpt2@cpu:ir`
          `norm-eps` changed from 1e-5 to 1e-6; `passes` changed: -vectorize-layernorm (`norm-eps` at workloads/gpt2.toml:7, `passes` at workloads/gpt2.toml:9)
    ");
    let written = serde_json::to_string(&why.chains[0][0].written).unwrap();
    assert_eq!(written, r#"[{"field":"norm-eps","file":"workloads/gpt2.toml","line":7,"column":1}]"#);
}

#[test]
fn why_follows_what_is_no_field_through_the_steps_between() {
    let mut past = Past::default();
    build(&graph(&blocks()), &mut past, run);

    // Built by another kforge.
    let mut older = past.clone();
    let mut built = older.records.remove(&older.steps["gpt2@cpu:ir"].0).unwrap();
    built.parts.set("recipe", "older");
    built.key = built.parts.key();
    older.steps.insert("gpt2@cpu:ir".to_owned(), (built.key, None));
    older.records.insert(built.key, built);
    let recipe = told(&blocks(), &older, "gpt2@cpu:benchmark");

    let case = Case { gate: Gate::V2Bound, op: "mlp".into(), case: "peaky".into(), seed: 1, found: "b/m".into() };
    let longer = plan_build(&blocks(), &Rules { corpus: vec![case], ..Rules::default() });
    let asked = |graph: &Graph, step: &str, forced: bool| {
        let decisions = graph.status(&past, |_| forced);
        why(graph, graph.find(step).unwrap(), &decisions, &past).to_string()
    };
    let corpus = asked(&longer, "gpt2@cpu:report", false);
    let forced = asked(&graph(&blocks()), "gpt2@cpu:compile", true);

    let mut lost = past.clone();
    lost.records.remove(&past.steps["gpt2@cpu:ir"].0);
    let lost = told(&blocks(), &lost, "gpt2@cpu:compile");
    insta::assert_snapshot!([recipe, corpus, forced, lost].join("\n\n"), @r"
    `gpt2@cpu:benchmark`: may be stale
      reads `object`, `kernel` of `gpt2@cpu:compile`
        reads `stages`, `plan` of `gpt2@cpu:plan`
          reads `stages`, `passes` of `gpt2@cpu:ir`
            kforge itself changed (`recipe`)

    `gpt2@cpu:report`: may be stale
      reads `audit` of `gpt2@cpu:verify`
        `corpus` changed: 1 added

    `gpt2@cpu:compile`: may be stale
      reads `stages`, `plan` of `gpt2@cpu:plan`
        reads `stages`, `passes` of `gpt2@cpu:ir`
          forced

    `gpt2@cpu:compile`: may be stale
      reads `stages`, `plan` of `gpt2@cpu:plan`
        reads `stages`, `passes` of `gpt2@cpu:ir`
          never built
    ");
}

#[test]
fn why_in_json() {
    let mut past = Past::default();
    build(&graph(&blocks()), &mut past, run);
    let graph = graph(&with_eps(1e-6));
    let status = graph.status(&past, |_| false);
    let why = why(&graph, graph.find("gpt2@cpu:plan").unwrap(), &status, &past);
    insta::assert_snapshot!(serde_json::to_string_pretty(&why).unwrap(), @r#"
    {
      "step": "gpt2@cpu:plan",
      "state": "may-be-stale",
      "chains": [
        [
          {
            "step": "gpt2@cpu:plan",
            "reads": [],
            "reason": null
          },
          {
            "step": "gpt2@cpu:ir",
            "reads": [
              "stages",
              "passes"
            ],
            "reason": {
              "reason": "changed",
              "parts": [
                {
                  "name": "block.norm-eps",
                  "old": "1e-5",
                  "new": "1e-6"
                }
              ]
            }
          }
        ]
      ]
    }
    "#);
}

#[test]
fn the_graph_as_dot() {
    let mut past = Past::default();
    build(&graph(&blocks()), &mut past, run);
    insta::assert_snapshot!(dot(&graph(&blocks()), None), @r#"
    digraph kforge {
      rankdir=LR;
      node [shape=box, style=filled, fillcolor=white];
      subgraph cluster_0 {
        label="gpt2@cpu";
        s0 [label="ir"];
        s1 [label="plan"];
        s2 [label="compile"];
        s3 [label="verify"];
        s4 [label="benchmark"];
        s5 [label="report"];
      }
      s0 -> s1 [label="stages, passes"];
      s1 -> s2 [label="stages, plan"];
      s1 -> s3 [label="plan"];
      s2 -> s3 [label="object, kernel"];
      s1 -> s4 [style=dashed];
      s2 -> s4 [label="object, kernel"];
      s3 -> s4 [style=dashed];
      s1 -> s5 [label="passes, stages, plan"];
      s3 -> s5 [label="audit"];
      s4 -> s5 [label="benchmark"];
    }
    "#);
    let graph = graph(&with_eps(1e-6));
    let coloured = dot(&graph, Some(&graph.status(&past, |_| false)));
    let nodes: Vec<_> = coloured.lines().filter(|it| it.contains("fillcolor=") && !it.contains("node")).collect();
    insta::assert_snapshot!(nodes.join("\n"), @r#"
    s0 [label="ir", fillcolor=salmon];
    s1 [label="plan", fillcolor=khaki];
    s2 [label="compile", fillcolor=khaki];
    s3 [label="verify", fillcolor=khaki];
    s4 [label="benchmark", fillcolor=khaki];
    s5 [label="report", fillcolor=khaki];
    "#);
}

#[test]
fn the_graph_as_mermaid() {
    let graph = graph(&blocks());
    let status = graph.status(&Past::default(), |_| false);
    insta::assert_snapshot!(mermaid(&graph, Some(&status)), @r#"
    flowchart LR
      subgraph c0["gpt2@cpu"]
        s0[ir]
        s1[plan]
        s2[compile]
        s3[verify]
        s4[benchmark]
        s5[report]
      end
      s0 -- "stages, passes" --> s1
      s1 -- "stages, plan" --> s2
      s1 -- "plan" --> s3
      s2 -- "object, kernel" --> s3
      s1 -.-> s4
      s2 -- "object, kernel" --> s4
      s3 -.-> s4
      s1 -- "passes, stages, plan" --> s5
      s3 -- "audit" --> s5
      s4 -- "benchmark" --> s5
      style s0 fill:salmon
      style s1 fill:khaki
      style s2 fill:khaki
      style s3 fill:khaki
      style s4 fill:khaki
      style s5 fill:khaki
    "#);
}

#[test]
fn the_graph_as_json() {
    let mut past = Past::default();
    build(&graph(&blocks()), &mut past, run);
    let graph = graph(&with_eps(1e-6));
    let decisions = graph.status(&past, |_| false);
    let text = json(&graph, Some(&decisions));
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (step, decision) in value["steps"].as_array().unwrap().iter().zip(&decisions) {
        assert_eq!(step["status"], status(decision));
    }
    assert_eq!(value["steps"].as_array().unwrap().len(), graph.len());
    let mut plan = value["steps"][1].take();
    assert_eq!(plan["params"]["recipe"].as_str().unwrap().len(), 64);
    plan["params"]["recipe"] = "RECIPE".into();
    insta::assert_snapshot!(format!("{plan:#}"), @r#"
    {
      "block": "gpt2",
      "class": "search",
      "deps": [
        0
      ],
      "gates": [],
      "id": 1,
      "inputs": [
        {
          "name": "stages",
          "step": 0
        },
        {
          "name": "passes",
          "step": 0
        }
      ],
      "kind": "plan",
      "params": {
        "cpu.arch": "x86_64",
        "cpu.cores": "4",
        "cpu.isa": "[avx2, fma]",
        "cpu.l1d": "32768",
        "cpu.l2": "1048576",
        "cpu.l3": "33554432",
        "cpu.lanes": "8",
        "cpu.model": "Test CPU (family 1 model 2 stepping 3)",
        "cpu.vector-registers": "16",
        "name": "gpt2",
        "recipe": "RECIPE",
        "step": "plan",
        "strategy": "heuristic",
        "target": "cpu",
        "threads": "1"
      },
      "status": {
        "state": "may-be-stale",
        "waits-for": [
          0
        ]
      },
      "step": "gpt2@cpu:plan",
      "target": "cpu",
      "threads": 1
    }
    "#);
}

impl Past {
    fn latest_output(&self, step: &str, output: &str) -> Digest {
        self.records[&self.steps[step].0].outputs[output]
    }
}
