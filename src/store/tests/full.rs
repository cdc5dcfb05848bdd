//! A disk that is really full: a small tmpfs in a mount namespace of its own, where the system lets us have one.

use super::{dir, record};
use crate::{
    digest::Digest,
    store::{Store, StoreError, gc, records::Record, survey::Needs},
};
use std::{env, io, path::Path, process::Command, time::Duration};

fn is_full(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
}

fn mount(options: &str, folder: &Path) {
    assert!(
        Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder).status().unwrap().success()
    );
}

/// Blob `index`: too large for many of them.
fn content(index: u64) -> Vec<u8> {
    index.to_le_bytes().repeat(6000)
}

/// Puts and records until the disk is full; returns how many were recorded and the error.
fn fill(store: &Store) -> (u64, StoreError) {
    for index in 0..1000 {
        let step = || -> Result<(), StoreError> {
            let blob = store.cas.put(&content(index))?;
            let record = Record { outputs: [("it".to_owned(), blob)].into(), ..record(index) };
            store.records.put(&format!("step{index}"), &record)
        };
        if let Err(error) = step() {
            return (index, error);
        }
    }
    panic!("1 MiB was never full");
}

fn check(store: &Store, recorded: u64) {
    for index in 0..recorded {
        assert_eq!(store.records.outputs(&record(index).key).unwrap()["it"], Digest::of(&content(index)));
        assert_eq!(store.cas.get(&Digest::of(&content(index))).unwrap(), content(index));
    }
    let verified = store.verify(|_| {}).unwrap();
    assert_eq!(verified.wrong, [], "something wrong was kept");
}

#[test]
fn a_full_disk_is_a_typed_error_and_room_heals_it() {
    let dir = dir();
    let test = ["--exact", "store::tests::full::in_a_namespace", "--ignored", "--nocapture", "--test-threads=1"];
    let allowed = Command::new("unshare").args(["-Urm", "mount", "-t", "tmpfs", "tmpfs"]).arg(dir.path()).output();
    match allowed {
        Ok(output) if output.status.success() => {}
        Ok(output) => return println!("skipped: no mounts here: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => return println!("skipped: no `unshare`: {error}"),
    }
    let mut command = Command::new("unshare");
    command.arg("-Urm").arg(env::current_exe().unwrap()).args(test).env("KFORGE_TEST_DIR", dir.path());
    let output = command.output().unwrap();
    let log = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && log.contains("1 passed"), "{log}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "run by another test, where it may mount"]
fn in_a_namespace() {
    let Some(root) = env::var_os("KFORGE_TEST_DIR") else { return };
    let root = Path::new(&root);
    mount("size=1m", root);
    let (store, _) = Store::open(root).unwrap();
    let (recorded, error) = fill(&store);
    assert!(recorded > 3 && is_full(&error), "{recorded}: {error}");
    check(&store, recorded);

    // A full disk can be opened, read, and cleared of what nobody needs.
    let (store, _) = Store::open(root).unwrap();
    check(&store, recorded);
    let needs = Needs { records: [record(0).key].into(), ..Needs::default() };
    let bounds = gc::Bounds { max_bytes: Some(200_000), used_since: None };
    let request = gc::Request { needs: &needs, bounds, grace: Duration::ZERO, dry_run: false };
    let collected = store.collect(&request).unwrap();
    assert!(collected.records > 0 && collected.bytes_after <= 200_000, "{collected:?}");
    check(&store, 1);
    assert!(is_full(&fill(&store).1));

    mount("remount,size=100m", root);
    let (store, notices) = Store::open(root).unwrap();
    assert_eq!(notices, []);
    for index in 0..100 {
        let blob = store.cas.put(&content(index)).unwrap();
        let record = Record { outputs: [("it".to_owned(), blob)].into(), ..record(index) };
        store.records.put(&format!("step{index}"), &record).unwrap();
    }
    check(&store, 100);
}
