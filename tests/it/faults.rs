//! What goes wrong around a build: workers that crash, signals, `kill -9` of everything at any moment.

use crate::project::{BLOCKS, Project, Random, Run, children, no_worker_is_left, processes_on, signal, wait_until};
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

/// Puts a worker into the project that dies of a segmentation fault when it is asked for the IR of a block named `bad`,
/// and is the real one otherwise.
pub fn fragile_worker(project: &Project) -> String {
    let path = project.path("fragile-worker");
    let worker = env!("CARGO_BIN_EXE_kforge-worker");
    let script = format!(
        "#!/bin/sh\nwhile IFS= read -r line; do\n  case \"$line\" in *'\"name\":\"bad\"'*) echo 'last words' >&2; kill -s SEGV $$; exit ;; esac\n  \
         printf '%s\\n' \"$line\"\ndone | '{worker}' \"$@\"\n"
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

pub const BAD: &str = "[block.bad]\nkind = \"layer-norm\"\nseq = 2\nd-model = 16\n";

fn build_with_fragile_worker(project: &Project, args: &[&str]) -> Run {
    let worker = fragile_worker(project);
    Run::of(project.command(args).env("KFORGE_WORKER", worker).output().unwrap())
}

#[test]
fn a_crash_fails_its_step_and_with_k_the_rest_is_built() {
    let project = Project::with(&format!("{BAD}{BLOCKS}"));
    let run = build_with_fragile_worker(&project, &["build", "-k", "-j1"]);
    assert_eq!(run.code, Some(1));
    let told = |text: &str| assert!(run.stderr.contains(text), "`{text}` is not in {}", run.stderr);
    told("failed bad@cpu:ir: the worker was killed by SIGSEGV, an invalid memory access\n");
    told("last words");
    told("skipped bad@cpu:verify: bad@cpu:ir failed\n");
    assert!(run.stdout.ends_with("failed: 12 steps run, 0 up to date, 1 failed, 5 skipped\n"), "{}", run.stdout);
    assert!(project.path(".kforge-cache/out/first@cpu/report.json").exists());
    // With a sound worker, only what is missing is done.
    assert_eq!(project.build(&[]).ran().len(), 6);
}

/// A worker that dies the first time it is asked for the IR of `bad`.
fn flaky_worker(project: &Project) -> String {
    let path = fragile_worker(project);
    let script = fs::read_to_string(&path).unwrap();
    let marker = project.path("died-once");
    let once = format!("[ -e '{0}' ] || {{ : >'{0}'; echo 'last words' >&2; kill -s SEGV $$; }}", marker.display());
    fs::write(&path, script.replace("echo 'last words' >&2; kill -s SEGV $$; exit", &once)).unwrap();
    path
}

#[test]
fn a_step_that_fails_once_is_flaky_where_retries_are_allowed() {
    let project = Project::with(BAD);
    let worker = flaky_worker(&project);
    let run = |args: &[&str]| Run::of(project.command(args).env("KFORGE_WORKER", &worker).output().unwrap());
    let run_flaky = run(&["build", "--retries", "2", "--json"]);
    assert_eq!(run_flaky.code, Some(0), "{}", run_flaky.stderr);
    assert!(run_flaky.stderr.contains("retrying bad@cpu:ir: the worker was killed by SIGSEGV"), "{}", run_flaky.stderr);
    let json = run_flaky.json();
    let step = &json["steps"][0];
    assert_eq!((&step["step"], &step["result"]), (&"bad@cpu:ir".into(), &"flaky".into()));
    assert_eq!(step["failures"][0]["kind"], "crash");
    assert_eq!((&json["flaky"], &json["run"]), (&1.into(), &6.into()));

    // Told in the table, too; and without retries it is a failure.
    for (retries, code, table) in [("1", 0, "flaky: ir"), ("0", 1, "failed: ir")] {
        fs::remove_file(project.path("died-once")).unwrap();
        let run = run(&["build", "--force", "--retries", retries]);
        assert_eq!(run.code, Some(code), "{}", run.stderr);
        assert!(run.stdout.contains(table), "{}", run.stdout);
    }
}

#[test]
fn a_worker_does_not_outlive_the_build_and_neither_do_its_children() {
    let project = Project::with(BAD);
    let path = fragile_worker(&project);
    let time = format!("1000.{}", std::process::id());
    fs::write(&path, format!("#!/bin/sh\nsleep {time} &\nexec '{}' \"$@\"\n", env!("CARGO_BIN_EXE_kforge-worker")))
        .unwrap();
    let mut command = project.command(&["build"]);
    command.env("KFORGE_WORKER", &path).stderr(Stdio::piped()).stdout(Stdio::null());
    let mut build = command.spawn().unwrap();
    let mut log = BufReader::new(build.stderr.take().unwrap());
    assert!(log.by_ref().lines().any(|it| it.unwrap().contains("ran bad@cpu:")));
    let asleep = || !processes_on(Path::new(&time)).is_empty();
    assert!(asleep());
    signal("TERM", build.id());
    assert_eq!(build.wait().unwrap().code(), Some(130));
    wait_until("nothing is left", || !asleep());
}

#[test]
fn without_k_the_first_failure_ends_the_build() {
    let project = Project::with(&format!("{BAD}{BLOCKS}"));
    let run = build_with_fragile_worker(&project, &["build", "-j1"]);
    assert_eq!(run.code, Some(1));
    assert!(run.stdout.contains("1 failed") && run.stdout.contains("not reached"), "{}", run.stdout);
}

#[test]
fn an_interrupted_build_exits_130_and_keeps_what_was_finished() {
    for name in ["INT", "TERM"] {
        let project = Project::new();
        let mut build =
            project.command(&["build", "-j1"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(build.stderr.take().unwrap());
        let mut log = String::new();
        while !log.contains("ran ") {
            assert!(stderr.read_line(&mut log).unwrap() > 0, "{log}");
        }
        assert!(log.contains("ran first@cpu:ir"), "{log}");
        signal(name, build.id());
        stderr.read_to_string(&mut log).unwrap();
        let finished = log.lines().filter(|it| it.trim_start().starts_with("ran ")).count();
        assert_eq!(build.wait().unwrap().code(), Some(130), "{log}");
        let ran = project.build(&[]).ran();
        assert_eq!(ran.len(), 12 - finished, "{log}{ran:?}");
        no_worker_is_left(&project);
    }
}

#[test]
fn kill_9_at_any_moment_loses_only_what_was_running() {
    kill_9_at_any_moment(30);
}

#[test]
#[ignore = "the full size, minutes"]
fn full_size_kill_9_at_any_moment_loses_only_what_was_running() {
    kill_9_at_any_moment(300);
}

fn kill_9_at_any_moment(rounds: usize) {
    let undisturbed = Project::new();
    undisturbed.build(&[]);
    let start = Instant::now();
    undisturbed.build(&["--force"]);
    let length = start.elapsed();
    let expected = undisturbed.artefacts();

    let project = Project::new();
    let mut random = Random(0x5eed);
    let mut disturbed = 0;
    for round in 0..rounds {
        if round % 3 == 0 {
            let _ = fs::remove_dir_all(project.path(".kforge-cache"));
        }
        let delay = length.mul_f64(random.unit());
        let mut build = project.command(&["build"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        thread::sleep(delay);
        let workers = children(build.id());
        let worker = workers.get(random.below(workers.len().max(1))).filter(|_| round % 2 == 0);
        signal("KILL", worker.copied().unwrap_or(build.id()));
        let mut log = String::new();
        build.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        let status = build.wait().unwrap();
        match worker {
            // Idle, it is replaced; busy, its step fails and says why.
            Some(_) => assert!(status.code() == Some(0) || log.contains("SIGKILL"), "round {round}, {delay:?}: {log}"),
            None => assert!(status.signal() == Some(9) || status.code() == Some(0), "round {round}, {delay:?}: {log}"),
        }
        disturbed += usize::from(status.code() != Some(0));
        no_worker_is_left(&project);
        if round % 3 == 2 {
            project.build(&[]);
            assert_eq!(project.artefacts(), expected, "round {round}, {delay:?}");
        }
    }
    assert!(disturbed >= rounds / 3, "only {disturbed} of {rounds} builds were disturbed: the delays miss them");
    println!("cases: {rounds}");
}

#[test]
fn every_exit_code_has_its_cause() {
    let project = Project::new();
    let code = |args: &[&str]| project.run(args).code;
    assert_eq!(code(&["build", "--no-such-flag"]), Some(2));
    assert_eq!(code(&["build", "-j0"]), Some(2));
    assert_eq!(code(&["why", "first@cpu:link"]), Some(2));
    assert_eq!(code(&["build", "--target", "tpu"]), Some(2));
    assert_eq!(code(&["build", "--locked"]), Some(4));
    let no_worker = Run::of(project.command(&["build"]).env("KFORGE_WORKER", "/nonexistent").output().unwrap());
    assert_eq!(no_worker.code, Some(3));
    assert!(no_worker.stderr.contains("there is no worker: `/nonexistent` does not exist"), "{}", no_worker.stderr);
    let wrong_worker = Run::of(project.command(&["build"]).env("KFORGE_WORKER", "/bin/echo").output().unwrap());
    assert_eq!(wrong_worker.code, Some(3), "{}", wrong_worker.stderr);
    project.edit("workloads/blocks.toml", "d-model", "d-modle");
    assert_eq!(code(&["build"]), Some(2));
    let nowhere = Project::new();
    fs::remove_file(nowhere.path("kernelforge.toml")).unwrap();
    assert_eq!(nowhere.run(&["build"]).code, Some(2));
}

#[test]
fn delays_cover_the_whole_build() {
    let mut random = Random(0x5eed);
    let delays: Vec<_> = (0..30).map(|_| Duration::from_secs(1).mul_f64(random.unit())).collect();
    assert!(delays.iter().any(|it| it.as_millis() < 150) && delays.iter().any(|it| it.as_millis() > 850), "{delays:?}");
}
