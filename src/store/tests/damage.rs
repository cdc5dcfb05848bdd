//! Every state file cut at every length and with flipped bits at every offset: never a wrong result, never a failed open.
//!
//! All bits: `cargo test --no-default-features --lib store::tests::damage -- --ignored`

use super::{dir, record};
use crate::{
    digest::Digest,
    store::{
        FOLDER, Store,
        lock::{Lock, Sharing},
        records::Record,
    },
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

const BLOBS: [&[u8]; 2] = [b"the plan of a block", b"its object file"];

fn made(index: usize) -> Record {
    let mut record = record(index as u64);
    // Short, because every bit of it is flipped.
    record.parts = [("index", index.to_string())].into_iter().collect();
    record.key = record.parts.key();
    record.outputs = [("it".to_owned(), Digest::of(BLOBS[index]))].into();
    record
}

/// What a build does, after which everything is there.
fn build(store: &Store) {
    let digests: Vec<_> = BLOBS.iter().map(|it| store.cas.put(it).unwrap()).collect();
    for index in 0..BLOBS.len() {
        store.records.put(&format!("step{index}"), &made(index)).unwrap();
    }
    store.materialise("a@cpu", &[("plan.json", digests[0]), ("kernel.o", digests[1])]).unwrap();
    drop(Lock::acquire(&store.build_lock_path(), Sharing::Alone, None, |_| {}).unwrap());
}

/// Whatever can be read is right.
fn read_all(store: &Store) {
    for (index, content) in BLOBS.iter().enumerate() {
        let (expected, digest) = (made(index), Digest::of(content));
        if let Some(found) = store.records.get(&expected.key) {
            assert_eq!(found, expected);
        }
        if let Some(found) = store.records.latest(&format!("step{index}")) {
            assert_eq!(found, expected);
        }
        match store.cas.get(&digest) {
            Ok(bytes) => assert_eq!(bytes, *content),
            Err(error) => assert!(error.is_miss(), "{error}"),
        }
    }
    assert!(store.records.len() <= BLOBS.len(), "there is a record that nobody wrote");
}

/// Opens the damaged store, reads it, and has a build put it right.
fn survives(root: &Path, context: &str) {
    let (store, _) = Store::open(root).unwrap_or_else(|error| panic!("{context}: {error}"));
    read_all(&store);
    let _ = Lock::try_acquire(&store.build_lock_path(), Sharing::Alone).unwrap();
    build(&store);
    read_all(&store);
    let (store, notices) = Store::open(root).unwrap();
    assert_eq!(notices, [], "{context}: said once");
    assert_eq!(store.records.len(), BLOBS.len(), "{context}");
    for (name, content) in [("plan.json", BLOBS[0]), ("kernel.o", BLOBS[1])] {
        assert_eq!(store.cas.get(&Digest::of(content)).unwrap(), content, "{context}");
        assert_eq!(fs::read(store.out("a@cpu").join(name)).unwrap(), content, "{context}");
    }
    assert_eq!(fs::read(store.out("a@cpu").join("mine.txt")).unwrap(), b"mine", "{context}");
}

/// The files whose content decides something.
fn state_files(root: &Path) -> Vec<PathBuf> {
    let cache = root.join(FOLDER);
    let blob = |it: &[u8]| {
        let text = Digest::of(it).to_string();
        cache.join("cas").join(&text[..2]).join(&text[2..])
    };
    let fixed = ["records", "VERSION", "locks/build", "locks/records", "out/a@cpu/.kforge-stamp"];
    fixed.iter().map(|it| cache.join(it)).chain(BLOBS.iter().map(|it| blob(it))).collect()
}

/// Replaces the content in place; `modified` keeps the time, as a rotting disk does.
fn damage(path: &Path, bytes: &[u8], modified: Option<SystemTime>) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
    if let Some(time) = modified {
        fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }
}

/// Damages each file in each way; `bits` says which bits are flipped at an offset.
fn damage_everything(bits: impl Fn(usize) -> Vec<u8>) -> usize {
    let whole = dir();
    let (store, _) = Store::open(whole.path()).unwrap();
    build(&store);
    fs::write(store.out("a@cpu").join("mine.txt"), "mine").unwrap();
    let mut count = 0;
    for path in state_files(whole.path()) {
        let good = fs::read(&path).unwrap();
        assert!(!good.is_empty(), "{}", path.display());
        let cuts = (0..good.len()).map(|length| (format!("cut to {length}"), good[..length].to_vec()));
        let flips = (0..good.len()).flat_map(|at| bits(at).into_iter().map(move |bit| (at, bit)));
        let flips = flips.map(|(at, bit)| {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            (format!("bit {bit} of byte {at}"), bad)
        });
        for (index, (how, bad)) in cuts.chain(flips).enumerate() {
            let modified = fs::metadata(&path).unwrap().modified().unwrap();
            damage(&path, &bad, (index % 2 == 0).then_some(modified));
            // A blob whose times lie is only found out by those who read it, which a build does in a worker.
            let (store, _) = Store::open(whole.path()).unwrap_or_else(|error| panic!("{how}: {error}"));
            read_all(&store);
            drop(store);
            survives(whole.path(), &format!("{}, {how}", path.display()));
            count += 1;
        }
    }
    count
}

#[test]
fn a_cut_or_a_flipped_bit_anywhere_is_survived() {
    let count = damage_everything(|at| vec![(at % 8) as u8]);
    assert!(count > 1000, "only {count} damages");
}

#[test]
#[ignore = "the full size: every bit, minutes"]
fn every_flipped_bit_is_survived() {
    damage_everything(|_| (0..8).collect());
}
