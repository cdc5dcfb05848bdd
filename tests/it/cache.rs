//! `kforge cache`: what is kept, whether it is sound, which plans there are.

use crate::project::Project;
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

/// Changes a file that nobody is meant to change.
fn overwrite(path: &Path, bytes: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn stats_tell_what_the_manifests_need_from_the_rest() {
    let project = Project::new();
    let stats = || project.done(&["cache", "stats", "--json"]).json();
    assert_eq!((&stats()["blobs"]["files"], &stats()["records"]["count"]), (&0.into(), &0.into()));
    project.build(&[]);
    let built = stats();
    assert_eq!((&built["records"]["count"], &built["steps"]), (&12.into(), &12.into()));
    assert_eq!((&built["needed"], built["rest"]["files"].as_u64()), (&built["blobs"], Some(0)));
    // Going back to an earlier state needs both: the latest of each step and what is up to date.
    project.edit("workloads/blocks.toml", "norm-eps = 1e-5", "norm-eps = 1e-6");
    project.build(&[]);
    assert!(stats()["rest"]["files"].as_u64() > Some(0), "{}", stats());
    project.edit("workloads/blocks.toml", "norm-eps = 1e-6", "norm-eps = 1e-5");
    assert_eq!(stats()["rest"]["files"], 0, "{}", stats());
    project.build(&[]);
    assert!(stats()["rest"]["files"].as_u64() > Some(0), "{}", stats());
    // A block in a group is needed too.
    project.edit("workloads/blocks.toml", "[block.second]", "[block.second]\ngroup = \"large\"");
    let grouped = stats();
    assert!(grouped["needed"]["bytes"].as_u64() == built["needed"]["bytes"].as_u64(), "{grouped} {built}");
    let text = project.done(&["cache", "stats"]).stdout;
    for told in ["blobs", "that the manifests need", "records (of 12 steps)", "files in out/", "together"] {
        assert!(text.contains(told), "`{told}` is not in {text}");
    }
}

#[test]
fn verify_names_what_is_damaged_and_the_next_build_makes_it_again() {
    let project = Project::new();
    project.build(&[]);
    let sound = project.done(&["cache", "verify"]).stdout;
    assert!(sound.starts_with("sound: ") && sound.contains("12 records, 14 files in out/"), "{sound}");
    let expected = project.artefacts();

    // A blob that rots without its times changing, one that is gone, a copy that was edited, one that was removed.
    let object = project.blob("first@cpu:compile", "object");
    let modified = fs::metadata(&object).unwrap().modified().unwrap();
    overwrite(&object, b"rotten");
    fs::File::options().write(true).open(&object).unwrap().set_modified(modified).unwrap();
    fs::remove_file(project.blob("second@cpu:ir", "stages")).unwrap();
    let copy = |name: &str| project.path(".kforge-cache/out").join(name);
    let modified = fs::metadata(copy("first@cpu/plan.json")).unwrap().modified().unwrap();
    let mut plan = fs::read(copy("first@cpu/plan.json")).unwrap();
    plan[0] ^= 1;
    fs::write(copy("first@cpu/plan.json"), plan).unwrap();
    let file = fs::File::options().write(true).open(copy("first@cpu/plan.json")).unwrap();
    file.set_modified(modified).unwrap();
    fs::remove_file(copy("second@cpu/kernel.o")).unwrap();

    let run = project.run(&["cache", "verify", "--json"]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    let json = run.json();
    let wrong: Vec<_> = json["wrong"].as_array().unwrap().iter().map(|it| it["wrong"].as_str().unwrap()).collect();
    assert_eq!(wrong, ["corrupt-blob", "missing-blob", "changed-copy", "missing-copy"], "{json}");
    assert_eq!(json["wrong"][0]["outputs"][0], "`object` of `first@cpu:compile`");
    assert!(project.path(json["wrong"][0]["moved-to"].as_str().unwrap()).exists(), "{json}");
    // The plan hands on what `ir` made.
    let both = ["`stages` of `second@cpu:ir`", "`stages` of `second@cpu:plan`"];
    assert_eq!(json["wrong"][1]["outputs"], serde_json::json!(both));
    assert_eq!(json["wrong"][2]["file"], ".kforge-cache/out/first@cpu/plan.json");
    assert_eq!(json["wrong"][3]["file"], ".kforge-cache/out/second@cpu/kernel.o");

    let again = project.run(&["cache", "verify"]);
    assert_eq!(again.code, Some(1), "nothing was made again yet");
    let blob = object.iter().rev().take(2).map(|it| it.to_str().unwrap()).collect::<Vec<_>>();
    let missing =
        format!("wrong: blob {} is missing, `object` of `first@cpu:compile`\n", &[blob[1], blob[0]].concat()[..12]);
    assert!(again.stdout.starts_with(&missing) || again.stdout.contains(&format!("\n{missing}")), "{}", again.stdout);
    assert!(again.stdout.ends_with("the next `kforge build` makes again what the project needs of them\n"));

    project.build(&[]);
    assert_eq!(project.artefacts(), expected);
    assert_eq!(project.done(&["cache", "verify", "--json"]).json()["wrong"], serde_json::json!([]));
}

#[test]
fn plans_are_listed_with_the_ruling_on_each() {
    let project = Project::new();
    let none = project.done(&["cache", "plans"]).stdout;
    assert_eq!(none, "block@target  plan  strategy  age  audit\n");
    project.build(&["second"]);
    // The worker dies of the first block's kernel.
    let script = "#!/bin/sh\nwhile IFS= read -r line; do\n  case \"$line\" in *'\"action\":\"verify\"'*) kill -s SEGV $$; exit ;; esac\n  \
                  printf '%s\\n' \"$line\"\ndone";
    let worker = project.path("fragile-worker");
    fs::write(&worker, format!("{script} | '{}' \"$@\"\n", env!("CARGO_BIN_EXE_kforge-worker"))).unwrap();
    fs::set_permissions(&worker, fs::Permissions::from_mode(0o755)).unwrap();
    let built = project.command(&["build", "first"]).env("KFORGE_WORKER", &worker).output().unwrap();
    assert_eq!(built.status.code(), Some(1));

    let json = project.done(&["cache", "plans", "--json"]).json();
    let plans = json["plans"].as_array().unwrap();
    let told: Vec<_> = plans.iter().map(|it| [&it["block"], &it["target"], &it["strategy"], &it["judged"]]).collect();
    assert_eq!(told, [["first", "cpu", "heuristic", "rejected"], ["second", "cpu", "heuristic", "accepted"]], "{json}");
    assert_eq!(plans[1]["plan"], project.outputs("second@cpu:plan")["plan"]);
    let text = project.done(&["cache", "plans"]).stdout;
    let digest = &plans[0]["plan"].as_str().unwrap()[..12];
    let first = text.lines().nth(1).unwrap();
    assert!(
        first.starts_with(&format!("first@cpu     {digest}  heuristic  ")) && first.ends_with("rejected"),
        "{text}"
    );
}
