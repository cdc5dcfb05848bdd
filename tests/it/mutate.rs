//! `kforge mutate`: wrong kernels through the real binaries.

use crate::project::Project;
use serde_json::Value;
use std::collections::BTreeSet;

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
    assert_eq!(keys(&run["mutants"][0]), "block by description evidence family fate gates id stage stages");
    assert_eq!(keys(&run["mutants"][0]["evidence"]), "case gate message stage");
}
