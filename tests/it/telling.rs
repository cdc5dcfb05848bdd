//! What a build tells besides its result: `--events`, `--trace`.

use crate::{
    faults::{BAD, fragile_worker},
    project::{BLOCKS, Project, wait_until},
};
use kernelforge::store::Store;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

/// The lines of an events file.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.ends_with('\n'), "the last line is whole: {text}");
    text.lines().map(|it| serde_json::from_str(it).unwrap_or_else(|error| panic!("{error} in {it}"))).collect()
}

/// Where in `lines` the step has this event; none twice.
fn at(lines: &[Value], event: &str, step: &str) -> Option<usize> {
    let mut found = lines.iter().enumerate().filter(|(_, it)| it["event"] == event && it["step"] == step);
    let first = found.next().map(|it| it.0);
    assert_eq!(found.next(), None, "{event} {step}");
    first
}

fn events_of(project: &Project, args: &[&str]) -> Vec<Value> {
    let args = [&["build", "--events", "events.jsonl"], args].concat();
    project.done(&args);
    lines(&project.path("events.jsonl"))
}

#[test]
fn the_events_tell_a_build_from_the_first_step_to_the_counts() {
    let project = Project::new();
    let lines = events_of(&project, &["-j2"]);
    let first = &lines[0];
    assert_eq!((&first["event"], &first["version"], &first["at-us"]), (&"opened".into(), &1.into(), &0.into()));
    assert_eq!((&first["project"], &first["command"][1]), (&"test".into(), &"build".into()), "{first}");
    assert!(first["started-unix-us"].as_u64().is_some_and(|it| it > 1_700_000_000_000_000), "{first}");
    assert!(lines.is_sorted_by_key(|it| it["at-us"].as_u64().unwrap()));
    let mut seats = BTreeSet::new();
    let workers: BTreeSet<_> =
        lines.iter().filter(|it| it["event"] == "worker-started").map(|it| it["process"].as_u64()).collect();
    for block in ["first", "second"] {
        for kind in ["ir", "plan", "compile", "verify", "benchmark", "report"] {
            let step = format!("{block}@cpu:{kind}");
            let order = ["queued", "started", "done", "finished"].map(|it| at(&lines, it, &step));
            assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{step}: {order:?}");
            let started = &lines[order[1].unwrap()];
            seats.insert(started["seat"].as_u64().unwrap());
            let own = matches!(kind, "plan" | "report");
            assert!(
                if own { started["worker"].is_null() } else { workers.contains(&started["worker"].as_u64()) },
                "{started}"
            );
            assert_eq!(lines[order[0].unwrap()]["reason"]["reason"], "never-built");
            let lease = at(&lines, "acquired", &step);
            assert_eq!(lease.is_some(), kind == "benchmark");
            assert!(lease.is_none_or(|it| Some(it) < order[1]), "the lease comes before the start");
        }
    }
    assert!(seats.iter().all(|it| (1..=2).contains(it)), "{seats:?}");
    assert!(at(&lines, "begun", "").is_none() && lines.iter().any(|it| it["event"] == "begun" && it["steps"] == 12));
    let last = lines.last().unwrap();
    assert_eq!((&last["event"], &last["ran"], &last["interrupted"]), (&"ended".into(), &12.into(), &false.into()));
}

#[test]
fn the_events_tell_what_is_cut_off_and_that_nothing_is_to_do() {
    let project = Project::new();
    project.build(&[]);
    project.edit(
        "kernelforge.toml",
        r#""tile-matmul", "vectorize-layernorm""#,
        r#""vectorize-layernorm", "tile-matmul""#,
    );
    let lines = events_of(&project, &["first"]);
    assert!(at(&lines, "cut-off", "first@cpu:compile").is_some());
    assert!(at(&lines, "finished", "first@cpu:ir").is_some_and(|it| lines[it]["unchanged"] == false));
    let kinds: Vec<_> =
        events_of(&project, &["first"]).iter().map(|it| it["event"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["opened", "begun", "ended"]);
}

#[test]
fn the_events_tell_failures_and_what_they_skip() {
    let project = Project::with(&format!("{BAD}{BLOCKS}"));
    let worker = fragile_worker(&project);
    let args = ["build", "-k", "--events", "events.jsonl", "--trace", "trace.json"];
    let run = project.command(&args).env("KFORGE_WORKER", worker).output().unwrap();
    assert_eq!(run.status.code(), Some(1));
    let lines = lines(&project.path("events.jsonl"));
    let failed = &lines[at(&lines, "failed", "bad@cpu:ir").unwrap()];
    assert_eq!(failed["failure"]["kind"], "crash", "{failed}");
    let skipped = &lines[at(&lines, "skipped", "bad@cpu:verify").unwrap()];
    assert_eq!(skipped["because"], "bad@cpu:ir");
    let last = lines.last().unwrap();
    assert_eq!((&last["ran"], &last["failed"], &last["skipped"]), (&12.into(), &1.into(), &5.into()));
    let trace = trace(&project.path("trace.json"));
    let slice = slices(&trace).into_iter().find(|it| it["name"] == "bad@cpu:ir").unwrap();
    assert!(slice["args"]["outcome"].as_str().unwrap().starts_with("failed: the worker was killed"), "{slice}");
}

#[test]
fn a_build_that_cannot_go_on_says_so_in_its_last_event() {
    let project = Project::new();
    let args = ["build", "--events", "events.jsonl", "--trace", "trace.json"];
    let run = project.command(&args).env("KFORGE_WORKER", "/nonexistent").output().unwrap();
    assert_eq!(run.status.code(), Some(3));
    let lines = lines(&project.path("events.jsonl"));
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["event"], &last["error"]),
        (&"aborted".into(), &"there is no worker: `/nonexistent` does not exist".into())
    );
    trace(&project.path("trace.json"));
}

#[test]
fn a_reader_can_follow_the_events_of_a_running_build() {
    let project = Project::new();
    let (store, _) = Store::open(project.folder.path()).unwrap();
    let (lock, _) = store.lock_out_builds(None, |_| {}).unwrap();
    let args = ["build", "--events", "events.jsonl"];
    let mut build = project.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let path = project.path("events.jsonl");
    wait_until("the build tells that it waits", || {
        fs::read_to_string(&path).is_ok_and(|it| it.contains("\"waiting\""))
    });
    let waiting = lines(&path).pop().unwrap();
    assert_eq!((&waiting["what"], &waiting["holder"]["pid"]), (&"directory".into(), &std::process::id().into()));
    drop(lock);
    assert!(build.wait().unwrap().success());
    let acquired = lines(&path).into_iter().find(|it| it["event"] == "acquired").unwrap();
    assert_eq!(acquired["what"], "directory");
}

#[test]
fn a_follower_that_goes_away_is_no_failure() {
    let project = Project::new();
    let pipe = project.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut build = project.command(&["build", "--events", "pipe"]).stdout(Stdio::null()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(File::open(&pipe).unwrap()).read_line(&mut first).unwrap();
    assert!(first.starts_with("{\"at-us\":0,\"event\":\"opened\""), "{first}");
    assert_eq!(build.wait().unwrap().code(), Some(0));
}

#[test]
fn a_file_that_cannot_be_told_into_is_refused_before_anything_runs() {
    let project = Project::new();
    for flag in ["--events", "--trace"] {
        for path in ["missing/file", ".", "/dev/full"] {
            let run = project.run(&["build", flag, path]);
            assert_eq!(run.code, Some(2), "{}", run.stderr);
            assert!(run.stderr.starts_with("error: cannot write `"), "{}", run.stderr);
        }
        let run = project.run(&["build", flag, "-"]);
        assert_eq!(run.code, Some(2));
        assert!(
            run.stderr.starts_with(&format!("error: `{flag} -`: standard output is for the result\n")),
            "{}",
            run.stderr
        );
        assert_eq!(project.run(&["build", "-n", flag, "file"]).code, Some(2));
        assert_eq!(project.run(&["build", "--locked", flag, "file"]).code, Some(2));
    }
    assert_eq!(project.run(&["build", "--events", "file", "--trace", "file"]).code, Some(2));
    assert_eq!(project.build(&[]).ran().len(), 12);
}

#[test]
fn a_file_named_beside_another_directory_is_in_that_directory() {
    let project = Project::new();
    project.done(&["-C", "workloads", "build", "--events", "events.jsonl", "second"]);
    assert!(project.path("workloads/events.jsonl").exists());
}

/// The entries of a trace file.
fn trace(path: &Path) -> Vec<Value> {
    let trace: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    trace["traceEvents"].as_array().unwrap().clone()
}

fn slices(trace: &[Value]) -> Vec<&Value> {
    trace.iter().filter(|it| it["ph"] == "X").collect()
}

#[test]
fn a_trace_has_every_step_on_a_seat_and_its_slices_nest() {
    let project = Project::new();
    project.done(&["build", "-j3", "--trace", "trace.json"]);
    let trace = trace(&project.path("trace.json"));
    let mut tracks: BTreeMap<u64, Vec<(u64, u64, &str)>> = BTreeMap::new();
    let mut steps = BTreeSet::new();
    for slice in slices(&trace) {
        let number = |it: &str| slice[it].as_u64().unwrap_or_else(|| panic!("no {it} in {slice}"));
        tracks.entry(number("tid")).or_default().push((
            number("ts"),
            number("ts") + number("dur"),
            slice["name"].as_str().unwrap(),
        ));
        if slice["name"].as_str().unwrap().contains('@') {
            assert!(number("tid") > 0 && steps.insert(slice["name"].as_str().unwrap().to_owned()), "{slice}");
            assert_eq!(
                (&slice["args"]["reason"], &slice["args"]["outcome"]),
                (&"never built".into(), &"finished".into())
            );
            assert_eq!(slice["args"]["step"], slice["name"]);
        }
    }
    let expected: BTreeSet<_> = project.build(&[]).steps("up-to-date").into_iter().collect();
    assert_eq!(steps, expected);
    for (track, slices) in &mut tracks {
        slices.sort_by_key(|it| (it.0, std::cmp::Reverse(it.1)));
        let mut open: Vec<(u64, u64, &str)> = Vec::new();
        for &slice in &*slices {
            open.retain(|it| it.1 > slice.0);
            assert!(open.iter().all(|it| slice.1 <= it.1), "on track {track}, {slice:?} overlaps {open:?}");
            // Only the start of a worker may lie within a step.
            assert!(open.is_empty() || slice.2 == "start a worker", "on track {track}, {slice:?} is within {open:?}");
            open.push(slice);
        }
    }
    let has = |track: u64, name: &str| tracks.get(&track).is_some_and(|it| it.iter().any(|it| it.2 == name));
    assert!(has(0, "decide") && has(0, "lock of the directory"));
    assert!(
        tracks.keys().any(|&it| has(it, "start a worker")) && tracks.keys().any(|&it| has(it, "lease of the device"))
    );
    let named: BTreeSet<_> =
        trace.iter().filter(|it| it["name"] == "thread_name").map(|it| it["tid"].as_u64().unwrap()).collect();
    assert!(tracks.keys().all(|it| named.contains(it)), "every track has a name");
    // Every wait for a turn begins and ends once.
    let ids = |phase: &str| {
        trace.iter().filter(|it| it["ph"] == phase).map(|it| it["id"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let (mut begun, mut ended) = (ids("b"), ids("e"));
    begun.sort_unstable();
    ended.sort_unstable();
    assert_eq!((begun.len(), begun), (12, ended));
}

/// The value with every number replaced: figures and times are the machine's, everything else the project's.
fn without_figures(value: &Value) -> Value {
    match value {
        Value::Number(_) => Value::from(0),
        Value::Array(items) => items.iter().map(without_figures).collect(),
        Value::Object(fields) => fields.iter().map(|(name, it)| (name.clone(), without_figures(it))).collect(),
        other => other.clone(),
    }
}

#[test]
fn the_result_is_told_in_the_projects_order_however_the_steps_were_scheduled() {
    let project = Project::new();
    project.build(&[]);
    // What does not come from a clock: block, status and number of stages of each row, and the last line.
    let rows = |jobs: &str| {
        let stdout = project.done(&["build", "--force", jobs]).stdout;
        let (table, end) = stdout.trim_end().rsplit_once('\n').unwrap();
        let row = |it: &str| it.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
        table.lines().map(row).chain([end.to_owned()]).collect::<Vec<_>>()
    };
    let one = rows("-j1");
    assert_eq!(one.len(), 4, "{one:?}");
    for jobs in ["-j1", "-j4", "-j4"] {
        assert_eq!(rows(jobs), one, "{jobs}");
    }
    let json = |jobs: &str| without_figures(&project.build(&["--force", jobs]).0);
    assert_eq!(json("-j1"), json("-j4"));
}
