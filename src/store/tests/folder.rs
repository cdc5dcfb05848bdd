//! Locks, `out/`, and the folder as a whole.

use super::{child, dir, record};
use crate::{
    digest::Digest,
    store::{
        FOLDER, LAYOUT_VERSION, Notice, Store, StoreError,
        lock::{Lock, LockError, Sharing},
    },
};
use std::{
    fs::{self, File},
    io::BufRead,
    thread,
    time::Duration,
};

#[test]
fn a_lock_is_waited_for_with_its_holder_named_and_freed_by_the_holders_death() {
    let dir = dir();
    let path = dir.path().join("lock");
    let (mut holder, mut output) = child("hold", dir.path());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), "held");

    let mut told = Vec::new();
    let error =
        Lock::acquire(&path, Sharing::Alone, Some(Duration::from_millis(100)), |it| told.push(it.clone())).unwrap_err();
    let LockError::Held { holder: named, waited, .. } = &error else { panic!("{error}") };
    assert_eq!((told.len(), &told[0]), (1, named), "told once for each holder");
    assert_eq!(named.pid, holder.id());
    assert!(named.command.contains("store::tests::child_process"), "{}", named.command);
    assert!(*waited >= Duration::from_millis(100));
    assert!(error.to_string().contains(&format!("is held by process {} (`", holder.id())), "{error}");

    thread::scope(|scope| {
        let waiting =
            scope.spawn(|| Lock::acquire(&path, Sharing::Alone, Some(Duration::from_secs(20)), |_| {}).map(drop));
        thread::sleep(Duration::from_millis(50));
        holder.kill().unwrap();
        waiting.join().unwrap().unwrap();
    });
    holder.wait().unwrap();
    assert!(path.exists(), "a lock file is never unlinked");
}

#[test]
fn a_lock_excludes_within_one_process_too() {
    let dir = dir();
    let path = dir.path().join("deep/lock");
    let lock = Lock::acquire(&path, Sharing::Alone, None, |_| {}).unwrap();
    let holder = Lock::try_acquire(&path, Sharing::Alone).unwrap().unwrap_err();
    assert_eq!(holder.pid, std::process::id());
    drop(lock);
    assert!(Lock::try_acquire(&path, Sharing::Alone).unwrap().is_ok());
}

#[test]
fn shared_holders_keep_out_who_wants_to_be_alone_and_nobody_else() {
    let dir = dir();
    let path = dir.path().join("lock");
    let first = Lock::try_acquire(&path, Sharing::Shared).unwrap().unwrap();
    let second = Lock::try_acquire(&path, Sharing::Shared).unwrap().unwrap();
    drop(first);
    assert!(Lock::try_acquire(&path, Sharing::Alone).unwrap().is_err());
    drop(second);
    let alone = Lock::try_acquire(&path, Sharing::Alone).unwrap().unwrap();
    assert!(Lock::try_acquire(&path, Sharing::Shared).unwrap().is_err());
    drop(alone);
}

#[test]
fn an_unreadable_lock_file_still_locks() {
    let dir = dir();
    let path = dir.path().join("lock");
    let lock = Lock::acquire(&path, Sharing::Alone, None, |_| {}).unwrap();
    fs::write(&path, b"\xff\xfe no holder").unwrap();
    assert_eq!(Lock::try_acquire(&path, Sharing::Alone).unwrap().unwrap_err().to_string(), "another process");
    drop(lock);
}

#[test]
fn out_holds_what_it_is_given_and_writes_only_what_differs() {
    let dir = dir();
    let (store, _) = Store::open(dir.path()).unwrap();
    let (plan, object) = (store.cas.put(b"plan").unwrap(), store.cas.put(b"object").unwrap());
    let write = |files: &[(&str, Digest)]| store.materialise("gpt2@cpu", files).unwrap();
    let read = |name: &str| fs::read_to_string(store.out("gpt2@cpu").join(name)).ok();
    assert_eq!(write(&[("plan.json", plan), ("block.o", object)]), 2);
    assert_eq!((read("plan.json").unwrap(), read("block.o").unwrap()), ("plan".to_owned(), "object".to_owned()));
    assert_eq!(write(&[("plan.json", plan), ("block.o", object)]), 0);

    fs::write(store.out("gpt2@cpu").join("plan.json"), "edited").unwrap();
    assert_eq!(write(&[("plan.json", plan), ("block.o", object)]), 1, "an edited file is put back");
    fs::remove_file(store.out("gpt2@cpu").join("block.o")).unwrap();
    assert_eq!(write(&[("plan.json", plan), ("block.o", object)]), 1, "a removed file is put back");

    fs::write(store.out("gpt2@cpu").join("notes.txt"), "mine").unwrap();
    assert_eq!(write(&[("plan.json", object)]), 2, "one file rewritten, one removed");
    assert_eq!((read("plan.json").unwrap(), read("block.o")), ("object".to_owned(), None));
    assert_eq!(read("notes.txt").unwrap(), "mine", "files of other origin stay");
}

#[test]
fn out_never_leaves_its_folder() {
    let dir = dir();
    let (store, _) = Store::open(dir.path()).unwrap();
    let digest = store.cas.put(b"x").unwrap();
    for name in ["../x", "/tmp/x", "a/b", "", ".", ".."] {
        let error = store.materialise("gpt2@cpu", &[(name, digest)]).unwrap_err();
        assert_eq!(error.to_string(), format!("`{name}` is not a plain file name"));
    }
}

#[test]
fn out_names_a_blob_that_is_gone() {
    let dir = dir();
    let (store, _) = Store::open(dir.path()).unwrap();
    let error = store.materialise("gpt2@cpu", &[("plan.json", Digest::of(b"gone"))]).unwrap_err().to_string();
    assert!(error.contains("plan.json") && error.contains("is missing"), "{error}");
}

#[test]
fn a_newer_layout_is_refused_with_what_to_do() {
    let dir = dir();
    drop(Store::open(dir.path()).unwrap());
    fs::write(dir.path().join(FOLDER).join("VERSION"), "2\n2\n").unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::NewerLayout { found: 2, known: LAYOUT_VERSION, .. }));
    insta::assert_snapshot!(error.to_string().replace(&dir.path().display().to_string(), "DIR"), @"`DIR/.kforge-cache` has store layout 2, but this kforge knows layouts up to 1; use the newer kforge that wrote it, or remove the folder: it holds nothing that cannot be rebuilt");
}

#[test]
fn an_unreadable_version_is_written_anew() {
    let dir = dir();
    drop(Store::open(dir.path()).unwrap());
    let path = dir.path().join(FOLDER).join("VERSION");
    fs::write(&path, b"\xff\xff").unwrap();
    let (_, notices) = Store::open(dir.path()).unwrap();
    assert!(matches!(&notices[..], [Notice::VersionRewritten { .. }]), "{notices:?}");
    assert_eq!(fs::read_to_string(path).unwrap(), "1\n1\n");
    assert_eq!(Store::open(dir.path()).unwrap().1, []);
}

#[test]
fn taking_the_build_lock_shows_what_the_build_before_recorded_and_removes_its_leftovers() {
    let dir = dir();
    let (store, _) = Store::open(dir.path()).unwrap();
    let (other, _) = Store::open(dir.path()).unwrap();
    other.records.put("step", &record(1)).unwrap();
    let young = dir.path().join(FOLDER).join("tmp/blob-young");
    File::create(&young).unwrap();
    let (_lock, notices) = store.lock_out_builds(None, |_| {}).unwrap();
    assert_eq!(notices, []);
    assert_eq!(store.records.latest("step"), Some(record(1)));
    assert!(young.exists(), "it may belong to a living worker");
    assert!(other.lock_out_builds(Some(Duration::ZERO), |_| {}).is_err());
}
