//! Every single change on disk cut off: by SIGKILL before it, by SIGKILL in the middle of it, by a disk that is full.
//!
//! The process to be killed is this test binary again, doing [`workload`]. All sizes of it:
//! `cargo test --no-default-features --lib store::tests::disk -- --ignored --skip worker`

use super::{dir, record};
use crate::{
    digest::Digest,
    store::{
        FOLDER, Store,
        gc::{Bounds, Request},
        records::Record,
        survey::Needs,
    },
};
use rustix::process::{Signal, getpid, kill_process};
use std::{
    cell::Cell,
    collections::BTreeMap,
    env, fs, io,
    ops::ControlFlow,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Output},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};
use walkdir::WalkDir;

/// `kill:N` or `tear:N`: the change at which this process dies.
const CUT: &str = "KFORGE_TEST_CUT";

static CHANGES: AtomicU64 = AtomicU64::new(0);
static CUT_AT: LazyLock<Option<(bool, u64)>> = LazyLock::new(|| {
    let text = env::var(CUT).ok()?;
    let (how, at) = text.split_once(':').unwrap();
    Some((how == "tear", at.parse().unwrap()))
});

thread_local! {
    /// How many changes of this thread find room on the disk; `None`: all.
    static ROOM: Cell<Option<u64>> = const { Cell::new(None) };
}

/// What [`crate::store::disk`] asks before each change. Returns how many of `bytes` are written.
pub fn before(change: &'static str, bytes: usize) -> io::Result<usize> {
    let number = CHANGES.fetch_add(1, Ordering::Relaxed);
    match *CUT_AT {
        Some((false, at)) if at == number => die(),
        Some((true, at)) if at == number && bytes > 0 => return Ok(bytes / 2),
        _ => {}
    }
    match ROOM.get() {
        Some(0) if bytes > 0 => Ok(bytes / 2),
        Some(0) if change.starts_with("create") => Err(io::ErrorKind::StorageFull.into()),
        Some(left) => {
            ROOM.set(Some(left.saturating_sub(1)));
            Ok(bytes)
        }
        None => Ok(bytes),
    }
}

/// A part was written. The process dies, or finds the disk full.
pub fn torn() {
    if CUT_AT.is_some() {
        die();
    }
}

fn die() {
    kill_process(getpid(), Signal::KILL).unwrap();
    unreachable!("killed");
}

/// A record whose outputs are these blobs.
fn made(index: u64, blobs: &[&str]) -> Record {
    let outputs = blobs.iter().map(|it| ((*it).to_owned(), blob(it))).collect();
    Record { outputs, ..record(index) }
}

/// The content of the blob of this name is the name, long.
fn content(name: &str) -> Vec<u8> {
    name.repeat(200).into_bytes()
}

fn blob(name: &str) -> Digest {
    Digest::of(&content(name))
}

/// Whatever a store is used for, in steps that each commit once, for `rounds` blocks. `after` is told the number of each finished
/// step and may end it. Done again after it was cut off anywhere, it reaches the same end.
fn workload(root: &Path, rounds: u64, mut after: impl FnMut(usize) -> ControlFlow<()>) -> ControlFlow<()> {
    let (store, _) = Store::open(root).unwrap();
    let mut step = 0;
    let mut finished = || {
        step += 1;
        after(step)
    };
    finished()?;
    for round in 0..rounds {
        let (block, base) = (format!("block{round}@cpu"), 10 * round);
        let [ir, plan, other] = ["ir", "plan", "other"].map(|it| format!("{block}:{it}"));
        let names = ["one", "two", "three", "four"].map(|it| format!("{it}{round}"));
        let [one, two, three, four] = names.each_ref().map(String::as_str);
        for name in [one, two, three, four] {
            store.cas.put(&content(name)).unwrap();
            finished()?;
        }
        store.records.put(&ir, &made(base + 1, &[one])).unwrap();
        finished()?;
        let (second, third) = (made(base + 2, &[two]), made(base + 3, &[three]));
        store.records.put_all(&[(&plan, &second), (&other, &third)]).unwrap();
        finished()?;
        store.materialise(&block, &[("ir", blob(one)), ("plan", blob(two))]).unwrap();
        finished()?;
        store.records.put(&ir, &made(base + 4, &[four])).unwrap();
        finished()?;
        store.materialise(&block, &[("ir", blob(four))]).unwrap();
        finished()?;
        store.records.set_latest(&ir, &record(base + 1).key).unwrap();
        finished()?;
        store.records.remove(&[(record(base + 4).key, u64::MAX)].into()).unwrap();
        finished()?;
        store.materialise(&format!("other{round}@cpu"), &[("plan", blob(three))]).unwrap();
        finished()?;
        store.records.put(&other, &made(base + 5, &[three])).unwrap();
        finished()?;
        let needs = Needs {
            records: (0..=round).flat_map(|it| [10 * it + 1, 10 * it + 2]).map(|it| record(it).key).collect(),
            folders: (0..=round).map(|it| format!("block{it}@cpu")).collect(),
            ..Needs::default()
        };
        let bounds = Bounds { max_bytes: Some(0), used_since: None };
        store.collect(&Request { needs: &needs, bounds, grace: Duration::ZERO, dry_run: false }).unwrap();
        finished()?;
        store.cas.put(&content(three)).unwrap();
        finished()?;
        store.records.put(&other, &third).unwrap();
        finished()?;
        store.forget(&format!("other{round}@cpu"), &[&other], &[&ir, &plan]).unwrap();
        finished()?;
    }
    ControlFlow::Continue(())
}

/// What can be read from a store.
#[derive(Debug, PartialEq, Clone, Default)]
struct Seen {
    blobs: BTreeMap<Digest, Vec<u8>>,
    records: BTreeMap<Digest, Record>,
    latest: BTreeMap<String, Digest>,
    out: BTreeMap<String, Vec<u8>>,
}

fn see(root: &Path) -> Seen {
    let (store, notices) = Store::open(root).unwrap();
    assert_eq!(notices, [], "being killed damages nothing");
    let mut seen = Seen {
        records: store.records.kept().into_iter().map(|it| (it.record.key, it.record)).collect(),
        latest: store.records.steps().into_iter().map(|it| (it.step, it.latest)).collect(),
        ..Seen::default()
    };
    let files = |folder: &str| {
        let files = WalkDir::new(root.join(FOLDER).join(folder)).into_iter().filter_map(Result::ok);
        files.filter(|it| it.file_type().is_file()).map(|it| it.into_path()).collect::<Vec<_>>()
    };
    for path in files("cas") {
        let parts: Vec<_> = path.iter().rev().take(2).map(|it| it.to_str().unwrap()).collect();
        let digest: Digest = format!("{}{}", parts[1], parts[0]).parse().unwrap();
        seen.blobs.insert(digest, store.cas.get(&digest).unwrap());
    }
    for path in files("out").into_iter().filter(|it| !it.ends_with(".kforge-stamp")) {
        let name = path.strip_prefix(root).unwrap().display().to_string();
        seen.out.insert(name, fs::read(path).unwrap());
    }
    seen
}

/// What is seen after each number of steps of an undisturbed run.
fn undisturbed(rounds: u64) -> Vec<Seen> {
    let dir = dir();
    let mut seen = vec![Seen::default()];
    let _ = workload(dir.path(), rounds, |_| {
        seen.push(see(dir.path()));
        ControlFlow::Continue(())
    });
    seen
}

/// Whether what is seen after a cut within one step is what was there before the step or what is there after it.
fn check<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    context: &str,
    found: &BTreeMap<K, V>,
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) {
    for (key, value) in found {
        assert!([before, after].iter().any(|it| it.get(key) == Some(value)), "{context}: {key:?} is {value:?}");
    }
    for key in before.keys().filter(|it| after.contains_key(*it)) {
        assert!(found.contains_key(key), "{context}: {key:?} is lost");
    }
}

fn cut_off(how: &str, at: u64, rounds: u64, root: &Path) -> Output {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "store::tests::disk::worker_to_be_killed", "--ignored", "--nocapture", "--test-threads=1"])
        .env(CUT, format!("{how}:{at}"))
        .env("KFORGE_TEST_ROUNDS", rounds.to_string())
        .env("KFORGE_TEST_DIR", root)
        .output()
        .unwrap()
}

#[test]
#[ignore = "run by other tests, as a process to be killed"]
fn worker_to_be_killed() {
    let (Some(root), Ok(rounds)) = (env::var_os("KFORGE_TEST_DIR"), env::var("KFORGE_TEST_ROUNDS")) else { return };
    let _ = workload(Path::new(&root), rounds.parse().unwrap(), |step| {
        println!("finished {step}");
        ControlFlow::Continue(())
    });
}

/// Kills the workload at change `at`; `None` once it is no longer reached, else whether it was killed there.
fn killed(how: &str, at: u64, rounds: u64, expected: &[Seen]) -> Option<bool> {
    let dir = dir();
    let output = cut_off(how, at, rounds, dir.path());
    let log = String::from_utf8(output.stdout).unwrap();
    let numbers = log.lines().filter_map(|it| it.rsplit_once("finished ")?.1.parse().ok());
    let finished: usize = numbers.max().unwrap_or(0);
    let context = format!("{how} at change {at}, after step {finished}");
    if output.status.success() {
        return None;
    }
    assert_eq!(output.status.signal(), Some(9), "{context}: {log}{}", String::from_utf8_lossy(&output.stderr));
    let (seen, before, after) = (see(dir.path()), &expected[finished], &expected[finished + 1]);
    check(&context, &seen.records, &before.records, &after.records);
    check(&context, &seen.latest, &before.latest, &after.latest);
    check(&context, &seen.blobs, &before.blobs, &after.blobs);
    check(&context, &seen.out, &before.out, &after.out);
    assert!(workload(dir.path(), rounds, |_| ControlFlow::Continue(())).is_continue());
    assert_eq!(Some(&see(dir.path())), expected.last(), "{context}, and done again");
    Some(true)
}

/// Kills at every change; returns how many there were.
fn kill_everywhere(rounds: u64, threads: u64, tear: bool) -> u64 {
    let expected = undisturbed(rounds);
    let cuts = AtomicU64::new(0);
    let killed = |how, at| {
        let killed = killed(how, at, rounds, &expected).is_some();
        cuts.fetch_add(killed.into(), Ordering::Relaxed);
        killed
    };
    let run = |first: u64| {
        let mut at = first;
        while killed("kill", at) {
            if tear {
                killed("tear", at);
            }
            at += threads;
        }
        at
    };
    let changes = thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|first| scope.spawn(move || run(first))).collect();
        all.into_iter().map(|it| it.join().unwrap()).min().unwrap()
    });
    crate::testing::tried(cuts.into_inner());
    changes
}

#[test]
fn a_kill_before_or_within_any_change_on_disk_loses_nothing_that_was_finished() {
    let changes = kill_everywhere(1, 2, true);
    assert!(changes > 60, "only {changes} changes were seen");
}

#[test]
#[ignore = "the full size, minutes"]
fn a_kill_at_any_change_of_a_long_life_loses_nothing_that_was_finished() {
    let changes = kill_everywhere(12, 4, true);
    assert!(changes > 700, "only {changes} changes were seen");
}

#[test]
fn a_disk_that_is_full_from_any_change_on_is_an_error_and_nothing_wrong_is_kept() {
    let mut errors = 0;
    for room in 0.. {
        let dir = dir();
        ROOM.set(Some(room));
        let failed = until_full(dir.path());
        ROOM.set(None);
        let Err(error) = failed else { break };
        assert!(error.contains("cannot ") && error.contains("no storage space"), "room for {room} changes: {error}");
        errors += 1;
        see(dir.path());
        until_full(dir.path()).unwrap();
        assert_eq!(see(dir.path()).records.len(), 2);
    }
    assert!(errors > 20, "only {errors} changes needed room");
}

/// A build as the store sees it; the error's text where there was one.
fn until_full(root: &Path) -> Result<(), String> {
    let (store, _) = Store::open(root).map_err(|it| it.to_string())?;
    for (index, name) in ["one", "two"].into_iter().enumerate() {
        store.cas.put(&content(name)).map_err(|it| it.to_string())?;
        let record = made(index as u64, &[name]);
        store.records.put("block@cpu:ir", &record).map_err(|it| it.to_string())?;
        store.materialise("block@cpu", &[("ir", blob(name))]).map_err(|it| it.to_string())?;
    }
    Ok(())
}
