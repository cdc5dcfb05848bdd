//! The worker under limits: what it does to an action that crashes, hangs, panics or allocates without end, and that the
//! next action finds a healthy worker again.

use kernelforge::{
    build::engine::worker::{Leash, Request, Seat, Toolchain},
    protocol::{ActionKind, Failure, FailureKind, Fault, Hello, Limits, Outcome, PROTOCOL_VERSION},
};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const WORKER: &str = env!("CARGO_BIN_EXE_kforge-worker");

fn toolchain(store: &TempDir) -> Toolchain {
    Toolchain { program: Some(WORKER.into()), store: store.path().join("cache"), allow_faults: true }
}

fn fault(fault: Fault, wall_ms: u64) -> Request {
    let limits = Limits { wall_ms, memory_bytes: 256 << 20 };
    Request { kind: ActionKind::Fault { fault }, inputs: BTreeMap::new(), limits }
}

/// What the fault becomes, and that the seat then has a worker that does an action (a panic is the cheapest one to ask for).
fn failure_of(kind: Fault, wall_ms: u64) -> Failure {
    let store = TempDir::new().unwrap();
    let (toolchain, leash) = (toolchain(&store), Leash::default());
    let mut seat = Seat::new(&toolchain, &leash);
    let failure = seat.execute(&fault(kind, wall_ms)).unwrap().unwrap_err();
    let next = seat.execute(&fault(Fault::Panic, 20_000)).unwrap().unwrap_err();
    assert_eq!(next.message, "the worker panicked: a panic was asked for");
    failure
}

#[test]
fn a_segfault_is_a_crash_that_names_the_signal() {
    let failure = failure_of(Fault::Segfault, 20_000);
    assert_eq!(failure.kind, FailureKind::Crash);
    assert_eq!(failure.message, "the worker was killed by SIGSEGV, an invalid memory access");
}

#[test]
fn an_endless_loop_is_killed_at_its_deadline() {
    let start = Instant::now();
    let failure = failure_of(Fault::LoopForever, 300);
    assert_eq!(failure.kind, FailureKind::Timeout);
    assert_eq!(failure.message, "killed at its limit of 300ms");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn endless_allocation_ends_at_the_memory_limit() {
    let failure = failure_of(Fault::AllocateForever, 60_000);
    assert_eq!(failure.kind, FailureKind::OutOfMemory);
    assert_eq!(failure.message, "ran out of its 256 MiB of memory");
    assert!(failure.detail.contains("memory allocation of"), "{}", failure.detail);
}

#[test]
fn an_exit_in_the_middle_of_an_action_is_a_crash() {
    let failure = failure_of(Fault::Exit, 20_000);
    assert_eq!((failure.kind, failure.message.as_str()), (FailureKind::Crash, "the worker exited with code 3"));
}

#[test]
fn a_panic_keeps_the_worker_and_its_log() {
    let store = TempDir::new().unwrap();
    let (toolchain, leash) = (toolchain(&store), Leash::default());
    let mut seat = Seat::new(&toolchain, &leash);
    let failure = seat.execute(&fault(Fault::Panic, 20_000)).unwrap().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Internal);
    let pid = seat.pid();
    seat.execute(&fault(Fault::Panic, 20_000)).unwrap().unwrap_err();
    assert!(pid.is_some() && seat.pid() == pid);
}

#[test]
fn a_worker_that_dies_while_idle_is_replaced_unnoticed() {
    let store = TempDir::new().unwrap();
    let (toolchain, leash) = (toolchain(&store), Leash::default());
    let mut seat = Seat::new(&toolchain, &leash);
    let pid = seat.hello().unwrap().pid;
    kill(pid);
    wait_until("the worker is dead", || !running(pid));
    let failure = seat.execute(&fault(Fault::Panic, 20_000)).unwrap().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Internal, "{failure:?}");
    assert_ne!(seat.pid(), Some(pid));
}

#[test]
fn cancelling_kills_the_action_at_once() {
    let store = TempDir::new().unwrap();
    let (toolchain, leash) = (toolchain(&store), Leash::default());
    let start = Instant::now();
    let failure = thread::scope(|scope| {
        let action = scope
            .spawn(|| Seat::new(&toolchain, &leash).execute(&fault(Fault::LoopForever, 600_000)).unwrap().unwrap_err());
        thread::sleep(Duration::from_millis(300));
        leash.cancel();
        action.join().unwrap()
    });
    assert_eq!(failure.kind, FailureKind::Cancelled);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn a_worker_ends_when_nobody_listens_any_more() {
    let store = TempDir::new().unwrap();
    let mut worker = Command::new(WORKER)
        .args(["serve", "--allow-faults", "--store"])
        .arg(store.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(worker.stdout.take().unwrap()).lines();
    let hello: Hello = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!((hello.protocol, hello.pid), (PROTOCOL_VERSION, worker.id()));
    let mut stdin = worker.stdin.take().unwrap();
    let action = action_json(Fault::LoopForever);
    writeln!(stdin, "{action}").unwrap();
    drop(stdin); // what the death of the tool looks like, in the middle of an action
    wait_until("the worker is dead", || worker.try_wait().unwrap().is_some());
}

#[test]
fn one_action_runs_alone_from_a_file() {
    let store = TempDir::new().unwrap();
    let action = store.path().join("action.json");
    fs::write(&action, action_json(Fault::Panic)).unwrap();
    let output = Command::new(WORKER).arg("run").arg(&action).arg("--store").arg(store.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let outcome: Outcome = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(outcome.result.unwrap_err().message, "this worker was not started to make faults");
}

fn action_json(fault: Fault) -> String {
    let action = kernelforge::protocol::Action {
        id: 1,
        kind: ActionKind::Fault { fault },
        inputs: BTreeMap::new(),
        limits: Limits { wall_ms: 1000, memory_bytes: 1 << 30 },
    };
    serde_json::to_string(&action).unwrap()
}

fn kill(pid: u32) {
    assert!(Command::new("kill").arg("-9").arg(pid.to_string()).status().unwrap().success());
}

/// Zombies do not count: their parent has not yet asked for them. Every thread is looked at, because the first can be a
/// zombie while another still holds the pipes open.
fn running(pid: u32) -> bool {
    let tasks = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")).into_iter().flatten().flatten();
    let stats = tasks.filter_map(|it| fs::read_to_string(it.path().join("stat")).ok());
    stats.into_iter().any(|it| it.rsplit(')').next().is_some_and(|it| !it.trim_start().starts_with(['Z', 'X'])))
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
