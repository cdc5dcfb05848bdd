//! What a build does and does not do again.

use crate::project::{Built, Project, Run, signal, wait_until};
use kernelforge::{
    host::CpuFacts,
    store::{
        Store,
        lock::{Lock, Sharing},
    },
};
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Stdio,
    thread,
};

const ROW: [&str; 6] = ["benchmark", "compile", "ir", "plan", "report", "verify"];

fn row(block: &str) -> Vec<String> {
    ROW.iter().map(|it| format!("{block}@cpu:{it}")).collect()
}

#[test]
fn a_build_makes_what_a_person_opens_and_then_has_nothing_to_do() {
    let project = Project::new();
    let first = project.done(&["build"]);
    assert!(first.stdout.ends_with("done: 12 steps run, 0 up to date\n"), "{}", first.stdout);
    assert!(first.stderr.starts_with("  because 12 steps of first@cpu, second@cpu: never built\n"), "{}", first.stderr);
    assert_eq!(first.stderr.lines().count(), 1 + 12, "one line for each step: {}", first.stderr);
    for file in ["plan.json", "block.mlir", "kernel.mlir", "kernel.o", "kernel.json", "report.json", "audit.json"] {
        for block in ["first", "second"] {
            let path = project.path(".kforge-cache/out").join(format!("{block}@cpu")).join(file);
            assert!(fs::metadata(&path).is_ok_and(|it| it.len() > 0), "{} is missing", path.display());
        }
    }
    let second = project.done(&["build"]);
    assert!(second.stdout.ends_with("done: 0 steps run, 12 up to date\n"), "{}", second.stdout);
    assert_eq!(second.stderr, "");
}

#[test]
fn comments_and_formatting_make_nothing_stale() {
    let project = Project::new();
    project.build(&[]);
    project.edit("workloads/blocks.toml", "norm-eps = 1e-5", "norm-eps   =  0.00001 # as in the paper");
    assert_eq!(project.build(&[]).ran(), [] as [&str; 0]);
}

#[test]
fn a_field_of_one_block_makes_only_its_steps_stale() {
    let project = Project::new();
    project.build(&[]);
    project.edit("workloads/blocks.toml", "norm-eps = 1e-5", "norm-eps = 1e-6");
    assert_eq!(project.done(&["why", "first@cpu:ir"]).stdout, WHY_EPS);
    let cause = "6 steps of first@cpu: `norm-eps` changed from 1e-5 to 1e-6\n";
    assert!(project.done(&["build", "-n"]).stdout.contains(cause));
    let explained = project.done(&["build", "-n", "--explain"]).stdout;
    assert!(!explained.contains(cause), "{explained}");
    let dry = project.done(&["build", "-n", "--json"]).json();
    assert_eq!((&dry["causes"][0]["steps"], &dry["causes"][0]["reason"]["reason"]), (&6.into(), &"changed".into()));
    let built = project.build(&[]);
    assert_eq!(built.ran(), row("first"));
    assert_eq!(built.steps("up-to-date").len(), 6);
    assert_eq!(built.0["causes"], dry["causes"]);
    assert_eq!(project.build(&[]).0["causes"], serde_json::json!([]));
}

const WHY_EPS: &str = "`first@cpu:ir`: stale\n  `norm-eps` changed from 1e-5 to 1e-6 (workloads/blocks.toml:7)\n";

#[test]
fn going_back_to_an_earlier_value_runs_nothing() {
    let project = Project::new();
    project.build(&[]);
    let before = project.artefacts();
    project.edit("workloads/blocks.toml", "norm-eps = 1e-5", "norm-eps = 1e-6");
    project.build(&[]);
    assert_ne!(project.artefacts(), before);
    project.edit("workloads/blocks.toml", "norm-eps = 1e-6", "norm-eps = 1e-5");
    assert_eq!(project.build(&[]).ran(), [] as [&str; 0]);
    assert_eq!(project.artefacts(), before);
}

#[test]
fn a_pass_list_that_leaves_the_ir_the_same_stops_at_the_cutoff() {
    let project = Project::new();
    project.build(&[]);
    project.edit(
        "kernelforge.toml",
        r#""tile-matmul", "vectorize-layernorm""#,
        r#""vectorize-layernorm", "tile-matmul""#,
    );
    let built = project.build(&[]);
    // The report lists the passes in their order, so it is made again; nothing is compiled, verified or measured.
    let ran = ["ir", "plan", "report"];
    let ran: Vec<_> = ["first", "second"].iter().flat_map(|it| ran.map(|kind| format!("{it}@cpu:{kind}"))).collect();
    assert_eq!(built.ran(), ran);
    let why = project.done(&["why", "first@cpu"]).stdout;
    assert!(why.starts_with("`first@cpu:report`: up to date; ran last because\n"), "{why}");
    let reads = why.contains("  reads `passes`") && why.contains(" of `first@cpu:plan`\n");
    assert!(reads && why.contains("\n      `passes` changed from ["), "{why}");
}

#[test]
fn a_pass_that_is_removed_changes_the_kernel() {
    let project = Project::new();
    project.build(&[]);
    let before = project.outputs("first@cpu:compile");
    project.edit("kernelforge.toml", r#", "vectorize-layernorm""#, "");
    let built = project.build(&[]);
    assert!(built.ran().contains(&"first@cpu:benchmark".to_owned()), "{:?}", built.ran());
    assert_ne!(project.outputs("first@cpu:compile")["object"], before["object"]);
}

#[test]
fn a_dry_run_tells_and_changes_nothing() {
    let project = Project::new();
    let dry = project.done(&["build", "-n", "--explain"]);
    assert!(dry.stdout.contains("stale first@cpu:ir: "), "{}", dry.stdout);
    assert!(dry.stdout.contains("may run first@cpu:compile\n"), "{}", dry.stdout);
    assert_eq!(project.run(&["build", "--locked"]).code, Some(4));
    assert_eq!(project.build(&[]).ran().len(), 12);
    assert_eq!(project.run(&["build", "--locked"]).code, Some(0));
}

#[test]
fn forced_steps_run_again_and_say_that_nothing_changed() {
    let project = Project::new();
    project.build(&[]);
    let forced = project.done(&["build", "--force", "--explain", "first"]);
    assert!(forced.stdout.ends_with("done: 6 steps run, 0 up to date\n"), "{}", forced.stdout);
    assert!(forced.stderr.contains("ran first@cpu:compile (its outputs are unchanged)\n"), "{}", forced.stderr);
}

#[test]
fn a_deleted_or_edited_out_file_is_put_back() {
    let project = Project::new();
    project.build(&[]);
    let before = project.artefacts();
    fs::remove_file(project.path(".kforge-cache/out/first@cpu/plan.json")).unwrap();
    fs::write(project.path(".kforge-cache/out/second@cpu/block.mlir"), "scribble").unwrap();
    assert_eq!(project.build(&[]).ran(), [] as [&str; 0]);
    assert_eq!(project.artefacts(), before);
}

#[test]
fn a_missing_or_corrupt_blob_is_named_and_made_again() {
    let project = Project::new();
    project.build(&[]);
    let before = project.artefacts();
    fs::remove_file(project.blob("first@cpu:compile", "object")).unwrap();
    overwrite(&project.blob("second@cpu:ir", "stages"), false);
    let again = project.done(&["build", "--explain"]);
    let told = |text: &str| assert!(again.stderr.contains(text), "`{text}` is not in {}", again.stderr);
    told("stale first@cpu:compile: ");
    told("stale second@cpu:ir: ");
    assert!(again.stdout.ends_with("done: 2 steps run, 10 up to date\n"), "{}{}", again.stdout, again.stderr);
    assert_eq!(project.artefacts(), before);
}

#[test]
fn a_blob_that_only_looks_intact_is_found_by_its_reader_and_made_again() {
    let project = Project::new();
    project.build(&[]);
    let before = project.artefacts();
    let (plan, stages) = (project.blob("first@cpu:plan", "plan"), project.blob("first@cpu:ir", "stages"));
    let (benchmark, object) =
        (project.blob("second@cpu:benchmark", "benchmark"), project.blob("second@cpu:compile", "object"));
    // Read by the tool itself, and by a worker.
    overwrite(&stages, true);
    overwrite(&object, true);
    fs::remove_file(plan).unwrap();
    fs::remove_file(benchmark).unwrap();
    let again = project.done(&["build"]);
    for text in
        ["first@cpu:ir is made again for first@cpu:plan", "second@cpu:compile is made again for second@cpu:benchmark"]
    {
        assert!(again.stderr.contains(text), "`{text}` is not in {}", again.stderr);
    }
    assert_eq!(project.artefacts(), before);
}

/// Damages a blob, with or without a trace in its modification time.
fn overwrite(blob: &Path, secretly: bool) {
    let modified = fs::metadata(blob).unwrap().modified().unwrap();
    fs::set_permissions(blob, fs::Permissions::from_mode(0o644)).unwrap();
    let length = fs::metadata(blob).unwrap().len() as usize;
    fs::write(blob, vec![b'#'; length]).unwrap();
    if secretly {
        File::options().write(true).open(blob).unwrap().set_modified(modified).unwrap();
    }
}

#[test]
fn a_build_waits_for_who_cleans_its_directory_and_names_it() {
    let project = Project::new();
    let (store, _) = Store::open(project.folder.path()).unwrap();
    let (lock, _) = store.lock_out_builds(None, |_| {}).unwrap();
    let mut build = project.command(&["build"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(build.stderr.take().unwrap());
    let mut line = line_with("waiting for", &mut stderr);
    let expected = format!("waiting for this directory, which is cleaned by process {} (`", std::process::id());
    assert!(line.trim_start().starts_with(&expected), "{line}");
    drop(lock);
    stderr.read_to_string(&mut line).unwrap();
    assert!(build.wait_with_output().unwrap().status.success(), "{line}");
}

/// The next line that has this text in it.
fn line_with(text: &str, log: &mut impl BufRead) -> String {
    let line = log.lines().map(Result::unwrap).find(|it| it.contains(text));
    line.unwrap_or_else(|| panic!("`{text}` was not told"))
}

#[test]
fn a_waiting_build_can_be_interrupted() {
    let project = Project::new();
    let (store, _) = Store::open(project.folder.path()).unwrap();
    let _lock = store.lock_out_builds(None, |_| {}).unwrap();
    let mut build = project.command(&["build"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(build.stderr.take().unwrap());
    line_with("waiting for", &mut stderr);
    signal("INT", build.id());
    assert_eq!(build.wait().unwrap().code(), Some(130));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let project = Project::new();
    let mut build = project.command(&["build"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((build.stdout.take(), build.stderr.take()));
    assert_eq!(build.wait().unwrap().code(), Some(0));
    assert_eq!(project.build(&[]).ran(), [] as [&str; 0]);
}

#[test]
fn two_builds_at_once_do_each_step_once() {
    let project = Project::new();
    let runs: Vec<Run> = thread::scope(|scope| {
        let runs = [(); 2].map(|()| scope.spawn(|| project.done(&["build", "--json"])));
        runs.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let builds: Vec<_> = runs.iter().map(|it| Built(it.json())).collect();
    assert_eq!(builds.iter().map(|it| it.ran().len()).sum::<usize>(), 12);
}

/// The lock of a step while it is made, as another build would hold it.
fn make_elsewhere(project: &Project, step: &str) -> Lock {
    let steps = project.done(&["build", "-n", "--json"]).json();
    let step = steps["steps"].as_array().unwrap().iter().find(|it| it["step"] == step).unwrap();
    let (store, _) = Store::open(&project.folder.path().canonicalize().unwrap()).unwrap();
    let key = step["status"]["key"].as_str().unwrap().parse().unwrap();
    Lock::acquire(&store.step_lock_path(&key), Sharing::Alone, None, |_| {}).unwrap()
}

#[test]
fn a_step_that_another_process_makes_is_waited_for_while_other_blocks_are_built() {
    let project = Project::new();
    let lock = make_elsewhere(&project, "first@cpu:ir");
    assert_eq!(project.build(&["second"]).ran(), row("second"));

    let held = project.run(&["build", "first", "--wait", "0"]);
    assert_eq!(held.code, Some(3), "{}", held.stderr);
    let holder = format!("is held by process {} (`", std::process::id());
    assert!(held.stderr.contains(&holder) && held.stderr.contains("gave up after 0 s"), "{}", held.stderr);

    let mut build = project.command(&["build"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(build.stderr.take().unwrap());
    let line = line_with("waiting for", &mut stderr);
    let expected = format!("waiting for first@cpu:ir, which is made by process {} (`", std::process::id());
    assert!(line.trim_start().starts_with(&expected), "{line}");
    drop(lock);
    assert!(build.wait_with_output().unwrap().status.success());
}

#[test]
fn what_another_process_made_meanwhile_is_taken_from_it() {
    let project = Project::new();
    // What the other build is going to make.
    project.build(&["first"]);
    let records = project.path(".kforge-cache/records");
    let made = fs::read(&records).unwrap();
    fs::remove_file(&records).unwrap();

    let lock = make_elsewhere(&project, "first@cpu:ir");
    let mut build = project.command(&["build", "first"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(build.stderr.take().unwrap());
    let mut log = line_with("waiting for", &mut stderr);
    assert!(log.contains("waiting for first@cpu:ir"), "{log}");
    fs::write(&records, made).unwrap();
    drop(lock);
    stderr.read_to_string(&mut log).unwrap();
    assert!(log.contains("found first@cpu:ir (another process made it)\n"), "{log}");
    let stdout = String::from_utf8(build.wait_with_output().unwrap().stdout).unwrap();
    assert!(stdout.ends_with("done: 0 steps run, 6 up to date\n"), "{stdout}{log}");
}

#[test]
fn while_somebody_measures_no_step_runs_beside_it() {
    let project = Project::new();
    let folder = project.path("run").join(format!("kforge-{}", rustix::process::getuid().as_raw()));
    let device = folder.join(format!("device-{}", CpuFacts::detect().fingerprint().short()));
    let lock = Lock::acquire(&device, Sharing::Alone, None, |_| {}).unwrap();
    let held = project.run(&["build", "--wait", "0"]);
    assert_eq!((held.code, held.stderr.contains("is held by process")), (Some(3), true), "{}", held.stderr);
    drop(lock);
    // Another build that computes is not in the way of computing, and is in that of measuring.
    let lock = Lock::acquire(&device, Sharing::Shared, None, |_| {}).unwrap();
    let held = project.run(&["build", "first", "--wait", "0"]);
    assert_eq!(held.code, Some(3));
    assert!(held.stderr.contains("ran first@cpu:verify\n") && !held.stderr.contains("ran first@cpu:benchmark"));
    drop(lock);
    project.done(&["build"]);
}

#[test]
fn a_manifest_that_is_edited_during_the_build_is_told_of_and_spoils_nothing() {
    let project = Project::new();
    let lock = make_elsewhere(&project, "first@cpu:ir");
    let mut build = project.command(&["build"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(build.stderr.take().unwrap());
    let mut log = line_with("waiting for", &mut stderr);
    project.edit("workloads/blocks.toml", "norm-eps = 1e-5", "norm-eps = 1e-3");
    drop(lock);
    stderr.read_to_string(&mut log).unwrap();
    assert!(build.wait().unwrap().success());
    assert!(log.contains("warning: `workloads/blocks.toml` was edited during the build"), "{log}");
    // What was made is of what was read.
    assert_eq!(project.build(&[]).ran(), row("first"));
    project.edit("workloads/blocks.toml", "norm-eps = 1e-3", "norm-eps = 1e-5");
    assert_eq!(project.build(&[]).ran(), [] as [&str; 0]);
}

#[test]
fn a_selection_builds_only_what_it_names() {
    let project = Project::new();
    let built = project.build(&["sec*@cpu"]);
    assert_eq!(built.ran(), row("second"));
    let unknown = project.run(&["build", "sekond"]);
    assert_eq!(unknown.code, Some(2));
    assert_eq!(unknown.stderr, "error: no block matches `sekond`\n  hint: did you mean `second`?\n");
}

#[test]
fn cleaning_one_block_keeps_the_others() {
    let project = Project::new();
    project.build(&[]);
    let before = project.artefacts();
    project.done(&["clean", "first"]);
    assert!(!project.path(".kforge-cache/out/first@cpu").exists());
    assert_eq!(project.build(&[]).ran(), row("first"));
    assert_eq!(project.artefacts(), before);
    project.done(&["clean"]);
    assert_eq!(project.build(&[]).ran().len(), 12);
}

#[test]
fn a_moved_project_needs_no_rebuild() {
    let project = Project::new();
    project.build(&[]);
    let moved = project.path("elsewhere");
    fs::create_dir(&moved).unwrap();
    for name in ["kernelforge.toml", "workloads", ".kforge-cache"] {
        fs::rename(project.path(name), moved.join(name)).unwrap();
    }
    let built = Built(project.done(&["-C", "elsewhere", "build", "--json"]).json());
    assert_eq!(built.ran(), [] as [&str; 0]);
    wait_until("the folder is there", || moved.join(".kforge-cache/out").is_dir());
}
