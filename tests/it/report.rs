//! `kforge report`, and the audits that it shows.

use crate::project::{Built, Project, Run};
use kernelforge::store::cas::Cas;
use serde_json::Value;
use std::{fs, os::unix::fs::PermissionsExt};

/// Puts a worker into the project that hands every action through `filter`, a shell command, and is the real one otherwise.
fn filtered_worker(project: &Project, filter: &str) -> String {
    let path = project.path("filtered-worker");
    let worker = env!("CARGO_BIN_EXE_kforge-worker");
    let script = format!("#!/bin/sh\n{filter} | '{worker}' \"$@\"\n");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn build_with(project: &Project, worker: &str) -> Run {
    Run::of(project.command(&["build", "first"]).env("KFORGE_WORKER", worker).output().unwrap())
}

fn audit(project: &Project, block: &str) -> Value {
    let path = project.path(&format!(".kforge-cache/out/{block}@cpu/audit.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_block_has_no_record_before_it_is_built_and_an_old_one_after_an_edit() {
    let project = Project::new();
    let run = project.run(&["report"]);
    assert_eq!(run.code, Some(4));
    assert_eq!(
        run.stdout,
        "first@cpu: not built: `kforge build first@cpu`\n\nsecond@cpu: not built: `kforge build second@cpu`\n"
    );
    project.build(&[]);
    let run = project.done(&["report"]);
    for told in ["first@cpu: accepted\n", "norm  norm lanes=", "V2 bound", "GFLOP/s peak", "second@cpu: accepted\n"] {
        assert!(run.stdout.contains(told), "`{told}` is not in {}", run.stdout);
    }
    project.edit("workloads/blocks.toml", "norm-eps = 1e-5", "norm-eps = 1e-6");
    let run = project.run(&["report", "first"]);
    assert_eq!(run.code, Some(4));
    let stale = "first@cpu: stale (`ir`: `norm-eps` changed from 1e-5 to 1e-6): `kforge build first@cpu`\n";
    assert_eq!(run.stdout, stale);
    assert_eq!(project.run(&["report", "second"]).code, Some(0));
    assert_eq!(project.run(&["report", "thrid"]).code, Some(2));
    assert_eq!(project.build(&[]).steps("ran").len(), 6, "a report runs nothing");
}

#[test]
fn the_json_has_the_audit_and_the_report() {
    let project = Project::new();
    project.build(&["first"]);
    let run = project.run(&["report", "--json"]);
    assert_eq!(run.code, Some(4));
    let json = run.json();
    let (first, second) = (&json["blocks"][0], &json["blocks"][1]);
    assert_eq!((&first["state"], &second["state"]), (&"recorded".into(), &"not-built".into()));
    assert_eq!(second["next"], "kforge build second@cpu");
    assert_eq!(first["audit"], audit(&project, "first"));
    assert_eq!(first["report"]["plan"]["digest"], first["audit"]["plan-digest"]);
    let keys: Vec<_> = first["audit"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys.join(" "),
        "block device object plan plan-digest recipes ruling seed target threads verdict version wall-us workload"
    );
    let object =
        kernelforge::digest::Digest::of(&fs::read(project.path(".kforge-cache/out/first@cpu/kernel.o")).unwrap());
    let plan =
        kernelforge::digest::Digest::of(&fs::read(project.path(".kforge-cache/out/first@cpu/plan.json")).unwrap());
    assert_eq!(first["audit"]["object"], object.to_string());
    assert_eq!(first["audit"]["plan-digest"], plan.to_string());
}

#[test]
fn a_kernel_that_was_run_and_not_measured_has_an_audit_and_no_figures() {
    let project = Project::new();
    project.done(&["run", "first@cpu"]);
    let run = project.done(&["report", "first"]);
    assert!(run.stdout.contains("V2 bound"), "{}", run.stdout);
    assert!(run.stdout.ends_with("\nnot measured: `kforge build first@cpu`\n"), "{}", run.stdout);
}

#[test]
fn another_verification_with_the_same_outcome_measures_nothing_again() {
    let project = Project::new();
    project.build(&[]);
    let before = project.outputs("first@cpu:verify");
    fs::remove_file(project.blob("first@cpu:verify", "audit")).unwrap();
    // The report shows the verification's time, so it is made again.
    assert_eq!(project.build(&[]).ran(), ["first@cpu:report", "first@cpu:verify"]);
    assert_ne!(project.outputs("first@cpu:verify"), before, "an audit has the time that it took");
}

#[test]
fn a_lost_audit_is_made_again_for_the_measurement_that_needs_it() {
    let project = Project::new();
    project.build(&["first"]);
    let (audit, benchmark) =
        (project.blob("first@cpu:verify", "audit"), project.blob("first@cpu:benchmark", "benchmark"));
    // Looks intact, and is found out by the worker that reads it.
    let modified = fs::metadata(&audit).unwrap().modified().unwrap();
    fs::set_permissions(&audit, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&audit, "{}").unwrap();
    fs::File::options().write(true).open(&audit).unwrap().set_modified(modified).unwrap();
    fs::remove_file(benchmark).unwrap();
    let run = project.done(&["build", "first"]);
    assert!(run.stderr.contains("first@cpu:verify is made again for first@cpu:benchmark"), "{}", run.stderr);
}

#[test]
fn a_rejected_kernel_leaves_its_audit_and_the_report_names_the_reason() {
    let project = Project::new();
    project.build(&["first"]);
    let wrong = fs::read_to_string(project.path(".kforge-cache/out/first@cpu/kernel.mlir")).unwrap();
    let wrong = wrong.replacen("math.sqrt", "math.absf", 1);
    project.done(&["clean"]);
    let cas = Cas::open(&project.path(".kforge-cache")).unwrap();
    let digest = cas.put(wrong.as_bytes()).unwrap();
    let filter = format!("sed -u '/\"action\":\"compile\"/s/\"inputs\":{{/\"inputs\":{{\"lowered\":\"{digest}\",/'");
    let run = build_with(&project, &filtered_worker(&project, &filter));
    assert_eq!(run.code, Some(1), "{}{}", run.stdout, run.stderr);
    let audit = audit(&project, "first");
    let reason = &audit["ruling"]["rejected"];
    assert_eq!((&reason["kind"], &reason["stage"]), (&"numeric-mismatch".into(), &"norm".into()), "{audit}");
    assert_eq!(audit["verdict"]["accepted"], false);
    let run = project.run(&["report", "first"]);
    assert_eq!(run.code, Some(1));
    assert!(run.stdout.starts_with("first@cpu: rejected\nreason    NumericMismatch, gate v"), "{}", run.stdout);
    assert!(run.stdout.contains("stage `norm`") && run.stdout.contains("failed"), "{}", run.stdout);
    // It is not used either.
    let run = project.run(&["run", "first@cpu"]);
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("failed first@cpu:verify: gate v"), "{}", run.stderr);
    // An edited copy changes nothing; another kernel does.
    fs::write(project.path(".kforge-cache/out/first@cpu/audit.json"), "{}").unwrap();
    assert_eq!(project.run(&["report", "first"]).code, Some(1));
    assert_eq!(Built(project.done(&["build", "--force", "--json", "first"]).json()).ran().len(), 6);
    assert_eq!(project.run(&["report", "first"]).code, Some(0));
}

#[test]
fn a_kernel_that_takes_the_worker_with_it_leaves_an_audit_too() {
    let project = Project::new();
    let filter = "while IFS= read -r line; do\n  case \"$line\" in *'\"action\":\"verify\"'*) kill -s SEGV $$; exit ;; esac\n  \
                  printf '%s\\n' \"$line\"\ndone";
    let run = build_with(&project, &filtered_worker(&project, filter));
    assert_eq!(run.code, Some(1), "{}{}", run.stdout, run.stderr);
    let audit = audit(&project, "first");
    assert_eq!((&audit["ruling"]["rejected"]["kind"], &audit["verdict"]), (&"crash".into(), &Value::Null), "{audit}");
    let run = project.run(&["report", "first"]);
    assert_eq!(run.code, Some(1));
    assert!(run.stdout.contains("\nreason    Crash: the worker was killed by SIGSEGV"), "{}", run.stdout);
}
