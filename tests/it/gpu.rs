//! Targets for GPUs, on whatever GPU there is: `script/bootstrap` sees to a software one.

use crate::project::Project;
use std::{fs, path::Path, thread, time::Duration};

/// The two blocks of [`Project::new`], and a target for a GPU that nobody builds for unasked.
fn project() -> Project {
    let project = Project::new();
    project.edit("kernelforge.toml", "[pipeline.default]", "[target.gpu]\nbackend = \"gpu\"\n\n[pipeline.default]");
    project
}

/// The first block for the GPU, and what it has in the end.
const FIRST: [&str; 6] = ["benchmark", "compile", "ir", "plan", "report", "verify"];

fn steps(block: &str) -> Vec<String> {
    FIRST.iter().map(|it| format!("{block}@gpu:{it}")).collect()
}

#[test]
fn a_block_is_built_for_the_target_that_is_asked_for() {
    let project = project();
    assert_eq!(project.build(&["first@gpu"]).ran(), steps("first"));
    let both = project.build(&["--target", "gpu"]);
    assert_eq!(both.ran(), steps("second"));
    assert_eq!(both.steps("up-to-date"), steps("first"));
    let out = project.path(".kforge-cache/out/first@gpu");
    let mut files: Vec<_> =
        fs::read_dir(&out).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    files.retain(|it| !it.starts_with('.'));
    files.sort();
    let all = ["audit.json", "block.mlir", "kernel.json", "kernel.wgsl", "plan.json", "report.json", "shaders.json"];
    assert_eq!(files, all);
    assert!(fs::read_to_string(out.join("kernel.wgsl")).unwrap().contains("@compute"));
    // A plain build is of the project's own targets; what both targets compute is built once.
    assert!(project.done(&["build", "-n"]).stdout.contains("10 steps stale or waiting for stale ones, 2 up to date"));
    let table = project.done(&["build", "--target", "gpu"]).stdout;
    assert!(table.contains("device") && table.contains("first@gpu"), "{table}");
}

#[test]
fn a_build_for_a_gpu_with_nothing_to_do_starts_no_worker() {
    let project = project();
    project.done(&["build", "--target", "gpu"]);
    thread::sleep(Duration::from_millis(150));
    for _ in 0..2 {
        let mut command = project.command(&["build", "--target", "gpu"]);
        let run = command.env("KFORGE_WORKER", "/nonexistent").output().unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(said.ends_with("done: 0 steps run, 12 up to date\n"), "{said}{}", String::from_utf8_lossy(&run.stderr));
    }
}

#[test]
fn a_kernel_for_a_gpu_runs_and_its_plan_is_verified_like_any_other() {
    let project = project();
    let run = project.done(&["run", "first@gpu", "--json"]).json();
    assert!(run["tensors"].as_array().is_some_and(|it| !it.is_empty()), "{run}");
    let plan = ".kforge-cache/out/first@gpu/plan.json";
    let audit = project.done(&["verify", plan, "--block", "first@gpu", "--json"]).json();
    assert_eq!((&audit["ruling"], &audit["target"]), (&"accepted".into(), &"gpu".into()), "{audit}");
    let other = project.run(&["verify", plan, "--block", "first@cpu"]);
    assert_eq!(other.code, Some(2));
    assert!(other.stderr.contains("the plan is for target `gpu`"), "{}", other.stderr);
}

#[test]
fn without_a_gpu_that_matches_the_build_says_which_there_are() {
    let project = project();
    project.edit("kernelforge.toml", "backend = \"gpu\"\n", "backend = \"mps\"\nadapter = \"nothing-like-it\"\n");
    let run = project.run(&["build", "--target", "gpu"]);
    assert_eq!(run.code, Some(3), "{}", run.stderr);
    assert!(run.stderr.contains("no GPU has a name that matches `nothing-like-it`"), "{}", run.stderr);
    assert!(run.stderr.contains("kforge doctor"), "{}", run.stderr);
    let doctor = project.run(&["doctor", "--json"]);
    assert_eq!(doctor.code, Some(3));
    assert!(doctor.json()["gpu-targets"][0]["problem"].as_str().is_some_and(|it| it.contains("nothing-like-it")));
    // What needs no GPU is built all the same, and so is what was built kept.
    project.done(&["build"]);
    project.done(&["gc"]);
}

#[test]
fn the_doctor_computes_something_on_every_gpu() {
    let found = project().done(&["doctor", "--json"]).json();
    let gpus = found["gpus"].as_array().unwrap();
    assert!(!gpus.is_empty(), "{found}");
    assert!(gpus.iter().all(|it| it["smoke"]["error"].is_null()), "{found}");
    assert!(found["gpu-targets"][0]["gpu"].is_string(), "{found}");
}

#[test]
fn an_own_template_replaces_the_built_in_one_and_an_edit_of_it_builds_what_uses_it() {
    let project = project();
    project.done(&["build", "--target", "gpu"]);
    let shaders = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let norm = fs::read_to_string(shaders.join("norm.wgsl")).unwrap();
    fs::create_dir(project.path("shaders")).unwrap();
    fs::write(project.path("shaders/norm.wgsl"), &norm).unwrap();
    // The plan says whose text it is from now on; the text is the same, and so is the kernel's code.
    project.build(&["--target", "gpu"]);
    let plan = fs::read_to_string(project.path(".kforge-cache/out/first@gpu/plan.json")).unwrap();
    assert!(plan.contains("norm.wgsl"), "{plan}");
    let plan = fs::read_to_string(project.path(".kforge-cache/out/second@gpu/plan.json")).unwrap();
    assert!(!plan.contains("norm.wgsl"), "{plan}");

    fs::write(project.path("shaders/norm.wgsl"), format!("{norm}\n// mine\n")).unwrap();
    let ran = project.build(&["--target", "gpu"]).ran();
    assert!(ran.contains(&"first@gpu:compile".to_owned()), "{ran:?}");
    assert!(!ran.contains(&"second@gpu:compile".to_owned()), "{ran:?}");
    let kernel = fs::read_to_string(project.path(".kforge-cache/out/first@gpu/kernel.wgsl")).unwrap();
    assert!(kernel.contains("// mine"), "{kernel}");

    // A plan that somebody has with another template is not this project's.
    fs::copy(project.path(".kforge-cache/out/first@gpu/plan.json"), project.path("plan.json")).unwrap();
    project.done(&["verify", "plan.json", "--block", "first@gpu"]);
    fs::write(project.path("shaders/norm.wgsl"), &norm).unwrap();
    let other = project.run(&["verify", "plan.json", "--block", "first@gpu"]);
    assert_eq!(other.code, Some(2));
    assert!(other.stderr.contains("another `shaders/norm.wgsl` than this project has"), "{}", other.stderr);

    fs::write(project.path("shaders/norm.wgsl"), "{% if %}").unwrap();
    let broken = project.run(&["build", "--target", "gpu"]);
    assert_eq!(broken.code, Some(1));
    assert!(broken.stderr.contains("shaders/norm.wgsl:1"), "{}", broken.stderr);
}
