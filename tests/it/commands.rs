//! The commands besides `build`.

use crate::project::Project;
use std::fs;

#[test]
fn init_makes_a_project_that_builds() {
    let project = Project::new();
    let made = project.done(&["init", "new"]);
    assert!(made.stdout.contains("next: `kforge build`"), "{}", made.stdout);
    assert_eq!(project.run(&["init", "new"]).code, Some(2));
    let built = project.done(&["-C", "new", "build"]);
    assert!(built.stdout.ends_with("done: 6 steps run, 0 up to date\n"), "{}", built.stdout);
}

#[test]
fn the_schema_is_a_json_schema() {
    let schema = Project::new().done(&["schema"]).json();
    assert!(schema["$schema"].as_str().is_some_and(|it| it.contains("json-schema.org")), "{schema}");
}

#[test]
fn the_graph_is_drawn_in_every_format() {
    let project = Project::new();
    assert!(project.done(&["graph"]).stdout.starts_with("digraph"));
    assert!(project.done(&["graph", "--format", "mermaid"]).stdout.starts_with("flowchart"));
    let json = project.done(&["graph", "--json"]).json();
    assert_eq!(json["steps"].as_array().map(Vec::len), Some(12));
    let page = project.done(&["graph", "--format", "html"]).stdout;
    assert_eq!(page.matches("<tr data-state=\"stale\">").count(), 2, "{page}");
}

#[test]
fn a_drawing_goes_into_a_file() {
    let project = Project::new();
    for format in ["dot", "mermaid", "json", "html"] {
        let run = project.done(&["graph", "--format", format, "-o", "graph"]);
        assert_eq!(run.stdout, "");
        let shown = project.done(&["graph", "--format", format]).stdout;
        assert_eq!(fs::read_to_string(project.path("graph")).unwrap(), shown);
    }
    let run = project.run(&["graph", "-o", "missing/graph"]);
    assert_eq!(run.code, Some(3));
    assert!(run.stderr.contains("missing/graph`: "), "{}", run.stderr);
}

#[test]
fn the_doctor_finds_the_worker_and_says_so_when_there_is_none() {
    let project = Project::new();
    let healthy = project.done(&["doctor", "--json"]).json();
    assert_eq!((&healthy["worker"]["ok"], &healthy["mlir"]["ok"]), (&true.into(), &true.into()), "{healthy}");
    let ill = project.command(&["diagnose-gpu"]).env("KFORGE_WORKER", "/nonexistent").output().unwrap();
    assert_eq!(ill.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&ill.stdout).contains("PROBLEM: there is no worker"));
}

#[test]
fn ir_shows_the_module_the_passes_and_what_each_one_does() {
    let project = Project::new();
    assert!(project.done(&["ir", "emit", "first"]).stdout.contains("first"));
    assert_eq!(project.done(&["emit-mlir", "first"]).stdout, project.done(&["ir", "emit", "first"]).stdout);
    let passes = project.done(&["show-passes"]).stdout;
    assert_eq!(passes.lines().count(), 6, "{passes}");
    let diff = project.done(&["ir", "diff", "first", "--each"]).stdout;
    assert!(diff.contains("+++ vectorize-layernorm\n"), "{diff}");
    assert_eq!(diff.matches("\n+++ ").count(), 6, "{diff}");
    assert_eq!(project.done(&["optimize-ir", "first"]).stdout.matches("\n+++ ").count(), 1);
    assert_eq!(project.run(&["ir", "emit", "furst"]).code, Some(2));
}

#[test]
fn a_block_runs_on_random_tensors_and_again_on_its_own_output_file() {
    let project = Project::new();
    let first = project.done(&["run", "first@cpu", "--output", "y.safetensors"]);
    assert!(first.stdout.starts_with("tensor"), "{}", first.stdout);
    assert!(fs::metadata(project.path("y.safetensors")).is_ok_and(|it| it.len() > 8));
    assert!(!project.path(".kforge-cache/out/first@cpu/report.json").exists(), "running needs no measurement");
    let missing = project.run(&["run", "first@cpu", "--input", "absent.safetensors"]);
    assert_eq!(missing.code, Some(2), "{}", missing.stderr);
}

#[test]
fn matmul_kernels_are_compared_under_both_names() {
    let project = Project::new();
    for command in [&["bench", "matmul"][..], &["benchmark-matmul"]] {
        let args = [command, &["--m", "16", "--n", "32", "--k", "16", "--time-ms", "5", "--json"]].concat();
        let json = project.done(&args).json();
        let names: Vec<_> = json["kernels"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
        for name in ["reference", "blocked", "parallel", "generated"] {
            assert!(names.contains(&name), "{name} is not in {names:?}");
        }
    }
}
