//! `kforge mutate`: wrong kernels through the real binaries.

use crate::project::Project;
use serde_json::Value;
use std::{collections::BTreeSet, fs};

const BLOCK: &str = r#"
[block.tiny]
kind = "transformer"
seq = 16
d-model = 32
heads = 2
d-ff = 48
norm = "layer-norm"
norm-eps = 1e-5
activation = "gelu"
bias = true
causal = true
"#;

const MATMUL: &str = "[block.plain]\nkind = \"matmul\"\nm = 5\nn = 20\nk = 9\n";

/// The mutants whose id contains `only`, judged; every one is killed.
fn killed(project: &Project, only: &str) -> Vec<Value> {
    let run = project.done(&["mutate", "--seed", "3", "--only", only, "--json"]).json();
    let mutants = run["mutants"].as_array().unwrap().clone();
    assert!(!mutants.is_empty(), "no mutant is called `{only}`");
    for it in &mutants {
        assert_eq!(it["fate"], "killed", "{it}");
    }
    mutants
}

#[track_caller]
fn assert_rejected(mutants: &[Value], gate: &str, stage: &str) {
    for it in mutants {
        let gates: Vec<_> = it["gates"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
        assert!(gates.contains(&gate), "{it}");
        assert_eq!(it["evidence"]["stage"], stage, "{it}");
    }
}

#[test]
fn what_the_original_tool_accepted_is_rejected_at_its_stage() {
    let project = Project::with(BLOCK);
    assert_rejected(&killed(&project, "code/attn_core/untransposed"), "v2-bound", "attn.core");
    assert_rejected(&killed(&project, "ir/attn.core/uniform"), "v2-bound", "attn.core");
    assert_rejected(&killed(&project, "ir/attn.core/scale-missing"), "v2-bound", "attn.core");
    assert_rejected(&killed(&project, "code/norm1/fma-first-factor"), "v2-bound", "norm1");
    assert_rejected(&killed(&project, "code/norm1/store-nan"), "v2-bound", "norm1");
    let plain = Project::with(MATMUL);
    let gelu = killed(&plain, "ir/matmul/activation-is-gelu");
    assert_rejected(&gelu, "v1-exactness", "matmul");
    assert_rejected(&gelu, "v2-bound", "matmul");
}

#[test]
fn a_mutant_that_crashes_its_worker_is_killed_and_disturbs_no_other() {
    let project = Project::with(MATMUL);
    let mutants = killed(&project, "host/");
    let by: BTreeSet<_> = mutants.iter().map(|it| it["by"].as_str().unwrap()).collect();
    assert!(by.len() > 1, "{by:?}");
}

#[test]
fn the_same_block_has_the_same_mutants_every_time_and_no_two_of_one_name() {
    let project = Project::with(BLOCK);
    let list = || project.done(&["mutate", "--list", "--json"]).json();
    let first = list();
    assert_eq!(first, list());
    let all = first["mutants"].as_array().unwrap();
    let ids: BTreeSet<_> = all.iter().map(|it| it["mutant"]["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), all.len());
    for family in ["plan", "ir", "code", "host", "oracle"] {
        assert!(all.iter().any(|it| it["mutant"]["family"] == family), "no mutant of the family {family}");
    }
}

#[test]
fn a_measurement_that_is_not_to_be_believed_is_rejected_by_gate_v7_alone() {
    let mutants = killed(&Project::with(MATMUL), "host/measured/");
    assert_eq!(mutants.len(), 3);
    assert!(mutants.iter().all(|it| it["gates"] == serde_json::json!(["v7-no-gaming"])), "{mutants:#?}");
}

#[test]
fn stages_that_mean_something_else_are_rejected_by_their_meaning_alone() {
    let mutants = killed(&Project::with(MATMUL), "graph/matmul/");
    assert!(mutants.iter().all(|it| it["gates"] == serde_json::json!(["v2-meaning"])), "{mutants:#?}");
}

#[test]
fn manifests_that_cannot_be_are_refused_before_anything_runs() {
    let mutants = killed(&Project::with(MATMUL), "manifest/");
    let refused: BTreeSet<_> = mutants.iter().map(|it| it["kind"].as_str().unwrap()).collect();
    for kind in ["manifest/dtype", "manifest/backend", "manifest/pass-unknown", "manifest/targets"] {
        assert!(refused.contains(kind), "{refused:?}");
    }
    assert!(mutants.iter().all(|it| it["by"] == "validation"));
}

#[test]
fn illegal_plans_never_run() {
    let mutants = killed(&Project::with(MATMUL), "plan/matmul/");
    assert!(mutants.iter().all(|it| it["by"] == "validation"), "{mutants:#?}");
}

#[test]
fn a_run_that_tries_nothing_proves_nothing() {
    let project = Project::with(MATMUL);
    assert_eq!(project.run(&["mutate-and-test", "--only", "no such mutant"]).code, Some(1));
}

#[test]
fn the_json_has_its_documented_shape() {
    let run = Project::with(MATMUL).done(&["mutate", "--only", "ir/matmul/", "--json"]).json();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(keys(&run), "mutants redundant-gates score seed subjects version");
    assert_eq!(keys(&run["score"]), "families gates killed-by percent total");
    assert_eq!(
        keys(&run["mutants"][0]),
        "block by description evidence family fate gates id kind stage stages witnesses"
    );
    assert_eq!(keys(&run["mutants"][0]["evidence"]), "case gate message stage");
}

#[test]
fn what_alone_rejected_a_mutant_goes_into_the_corpus_and_is_replayed() {
    let project = Project::with(BLOCK);
    project.edit("kernelforge.toml", "name = \"test\"\n", "name = \"test\"\ncorpus = \"corpus.toml\"\n");
    project.build(&[]);
    let mutate = ["mutate", "--seed", "3", "--only", "ir/norm1/epsilon-slightly-off"];
    let run = project.done(&mutate);
    assert!(run.stdout.contains("cases added to "), "{}", run.stdout);
    let corpus = fs::read_to_string(project.path("corpus.toml")).unwrap();
    assert!(corpus.contains("op = \"layer-norm\"\ncase = \"variance near epsilon\"\nseed = 3\n"), "{corpus}");
    assert!(corpus.contains("found = \"tiny/ir/norm1/epsilon-slightly-off\""), "{corpus}");
    // The same again adds nothing.
    assert!(!project.done(&mutate).stdout.contains("cases added"));
    assert_eq!(fs::read_to_string(project.path("corpus.toml")).unwrap(), corpus);
    // Verify reads it, and nothing else of a build does.
    assert_eq!(project.build(&[]).ran(), ["tiny@cpu:report", "tiny@cpu:verify"]);
    let audit = fs::read_to_string(project.path(".kforge-cache/out/tiny@cpu/audit.json")).unwrap();
    assert!(audit.contains("regression case: variance near epsilon with seed 3"), "{audit}");

    project.edit("kernelforge.toml", "corpus.toml", "../corpus.toml");
    let run = project.run(&["build"]);
    assert_eq!((run.code, run.stderr.contains("is outside the project")), (Some(2), true), "{}", run.stderr);
    project.edit("kernelforge.toml", "../corpus.toml", "corpus.toml");
    project.edit("corpus.toml", "v3-error-ratio", "v3");
    let run = project.run(&["build"]);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("this is no regression corpus: unknown variant `v3`"), "{}", run.stderr);
    assert!(run.stderr.contains("corpus.toml:"), "{}", run.stderr);
    // One that is named on the command line is read as the project's is; one that is not there yet is begun.
    project.edit("kernelforge.toml", "corpus = \"corpus.toml\"\n", "");
    let given = |file| project.run(&[&mutate[..], &["--corpus", file]].concat());
    let run = given("corpus.toml");
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("this is no regression corpus: unknown variant `v3`"), "{}", run.stderr);
    assert_eq!(given("other.toml").code, Some(0));
    assert_eq!(fs::read_to_string(project.path("other.toml")).unwrap(), corpus);
}

#[test]
fn every_rejected_mutant_is_named_with_gate_and_reason_when_asked() {
    let run = Project::with(MATMUL).done(&["mutate", "--only", "ir/matmul/", "--verbose"]);
    let line = run.stdout.lines().find(|it| it.starts_with("rejected plain ir/matmul/depth-minus-one by "));
    assert!(line.is_some_and(|it| it.contains("(matmul ")), "{}", run.stdout);
    assert!(run.stdout.contains("    error / bound: matmul "), "{}", run.stdout);
}
