//! Many builds of one directory at once, and the same with some of them killed.

use crate::project::{Built, Project, Random, Run, no_worker_is_left, signal};
use std::{
    collections::BTreeMap,
    io::Read,
    os::unix::process::ExitStatusExt,
    process::{Child, Stdio},
    thread,
    time::Duration,
};

const BUILDS: usize = 8;

/// Five blocks, one of them in two groups of names: selections of different builds overlap.
fn project() -> Project {
    let block = |(index, name): (usize, &str)| {
        format!("[block.{name}]\nkind = \"layer-norm\"\nseq = 2\nd-model = {}\n", 16 * (index + 1))
    };
    Project::with(
        &["red-a", "red-b", "blue-a", "blue-b", "green"].into_iter().enumerate().map(block).collect::<String>(),
    )
}

const SELECTIONS: [&[&str]; BUILDS] =
    [&[], &["red-*"], &["*-a"], &["green", "blue-b"], &[], &["blue-*"], &["red-a"], &["*-b", "green"]];

/// Starts all builds, in an order of its own for each number of jobs.
fn start(project: &Project) -> Vec<Child> {
    let start = |(index, selection): (usize, &&[&str])| {
        let jobs = format!("-j{}", 1 + index % 3);
        let args: Vec<&str> = ["build", "--json", &jobs].into_iter().chain(selection.iter().copied()).collect();
        project.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    SELECTIONS.iter().enumerate().map(start).collect()
}

/// How often each step ran in all of these builds.
fn ran(runs: &[Run]) -> BTreeMap<String, usize> {
    let mut ran = BTreeMap::new();
    for step in runs.iter().flat_map(|it| Built(it.json()).ran()) {
        *ran.entry(step).or_default() += 1;
    }
    ran
}

#[test]
fn eight_builds_at_once_do_each_step_once_and_all_succeed() {
    let alone = project();
    alone.build(&[]);
    let expected = alone.artefacts();

    let project = project();
    let runs: Vec<Run> = thread::scope(|scope| {
        let waits: Vec<_> =
            start(&project).into_iter().map(|it| scope.spawn(|| Run::of(it.wait_with_output().unwrap()))).collect();
        waits.into_iter().map(|it| it.join().unwrap()).collect()
    });
    for run in &runs {
        assert_eq!(run.code, Some(0), "{}", run.stderr);
    }
    let ran = ran(&runs);
    assert_eq!((ran.len(), ran.values().sum::<usize>()), (30, 30), "{ran:?}");
    assert_eq!(project.artefacts(), expected);
    assert_eq!(project.build(&[]).ran(), [] as [&str; 0]);
}

fn killed_builds_leave_the_others_and_the_result_alone(rounds: u64) {
    let alone = project();
    alone.build(&[]);
    let expected = alone.artefacts();
    let mut random = Random(0xb01d);
    let mut killed = 0;
    for round in 0..rounds {
        let project = project();
        let builds = start(&project);
        let victims: Vec<u32> = builds.iter().map(Child::id).filter(|_| random.below(2) == 0).collect();
        let runs: Vec<_> = thread::scope(|scope| {
            let wait = |mut build: Child| {
                let (mut stdout, mut stderr) = (String::new(), String::new());
                build.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
                build.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
                (build.id(), build.wait().unwrap(), Run { code: None, stdout, stderr })
            };
            let waits: Vec<_> = builds.into_iter().map(|it| scope.spawn(move || wait(it))).collect();
            for victim in &victims {
                thread::sleep(Duration::from_millis(400).mul_f64(random.unit()));
                signal("KILL", *victim);
            }
            waits.into_iter().map(|it| it.join().unwrap()).collect()
        });
        for (build, status, run) in &runs {
            if victims.contains(build) && status.signal() == Some(9) {
                killed += 1;
            } else {
                assert_eq!(status.code(), Some(0), "round {round}: {}", run.stderr);
            }
        }
        no_worker_is_left(&project);
        let finished: Vec<Run> = runs.into_iter().filter(|it| it.1.code() == Some(0)).map(|it| it.2).collect();
        let ran = ran(&finished);
        assert!(ran.values().all(|it| *it == 1), "round {round}: {ran:?}");
        project.build(&[]);
        assert_eq!(project.artefacts(), expected, "round {round}");
        assert_eq!(project.build(&[]).ran(), [] as [&str; 0], "round {round}");
    }
    assert!(killed >= rounds, "only {killed} builds were killed in {rounds} rounds: the delays miss them");
    println!("cases: {rounds}");
}

#[test]
fn builds_that_are_killed_beside_others_leave_them_and_the_result_alone() {
    killed_builds_leave_the_others_and_the_result_alone(2);
}

#[test]
#[ignore = "the full size, minutes"]
fn full_size_builds_that_are_killed_beside_others_leave_them_and_the_result_alone() {
    killed_builds_leave_the_others_and_the_result_alone(25);
}
