//! What is collected, and never what is needed.

use super::{dir, record};
use crate::{
    digest::Digest,
    store::{
        FOLDER, Store,
        gc::{Blob, Bounds, Collected, Contents, Decision, GRACE, Holding, Request, decide},
        out,
        records::Record,
        survey::Needs,
    },
};
use proptest::prelude::*;
use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt, thread, time::Duration};

fn digest(index: usize) -> Digest {
    Digest::of(&index.to_le_bytes())
}

/// Up to 12 records that share up to 10 blobs, some of which are missing.
fn contents() -> impl Strategy<Value = Contents> {
    let record = (0..1000u64, 1..50u64, proptest::collection::btree_set(0..12usize, 0..4), any::<bool>());
    let blob = proptest::option::weighted(0.8, (1..1000u64, proptest::bool::weighted(0.2)));
    (proptest::collection::vec(record, 0..12), proptest::collection::vec(blob, 12), 0..500u64).prop_map(
        |(mut records, blobs, other)| {
            records.sort_by_key(|it| it.0);
            let records = records.into_iter().enumerate().map(|(index, (used_unix, bytes, blobs, stays))| Holding {
                key: digest(1000 + index),
                used_unix,
                bytes,
                blobs: blobs.into_iter().map(digest).collect(),
                stays,
            });
            let blobs = blobs.into_iter().enumerate();
            let blobs = blobs.filter_map(|(at, it)| it.map(|(bytes, stays)| (digest(at), Blob { bytes, stays })));
            Contents { records: records.collect(), blobs: blobs.collect(), other }
        },
    )
}

/// Bytes of what is left.
fn left(contents: &Contents, decision: &Decision) -> u64 {
    let records = contents.records.iter().filter(|it| !decision.records.contains_key(&it.key));
    let blobs = contents.blobs.iter().filter(|it| !decision.blobs.contains(it.0));
    contents.other + records.map(|it| it.bytes).sum::<u64>() + blobs.map(|it| it.1.bytes).sum::<u64>()
}

proptest! {
    #[test]
    fn what_is_needed_stays_and_the_rest_fits_the_limit(
        contents in contents(), max_bytes in proptest::option::of(0..8000u64), used_since in proptest::option::of(0..1000u64),
    ) {
        let decision = decide(&contents, Bounds { max_bytes, used_since });
        prop_assert_eq!(decision.bytes, left(&contents, &decision));
        let kept: Vec<_> = contents.records.iter().filter(|it| !decision.records.contains_key(&it.key)).collect();
        let named: BTreeSet<_> = kept.iter().flat_map(|it| &it.blobs).collect();
        for record in contents.records.iter().filter(|it| it.stays) {
            prop_assert!(!decision.records.contains_key(&record.key), "a needed record goes");
        }
        for blob in &decision.blobs {
            prop_assert!(contents.blobs.contains_key(blob) && !contents.blobs[blob].stays, "a needed blob goes");
            prop_assert!(!named.contains(blob), "a blob goes that a kept record names");
        }
        for (digest, blob) in &contents.blobs {
            prop_assert!(blob.stays || named.contains(digest) || decision.blobs.contains(digest), "a blob stays for nobody");
        }
        // Least recently used first: whoever goes for lack of room was used no later than any that could go and stays.
        let whole = |it: &&Holding| it.blobs.iter().all(|blob| contents.blobs.contains_key(blob));
        let may_go = |it: &&Holding| !it.stays && whole(it) && used_since.is_none_or(|since| it.used_unix >= since);
        let goes: Vec<_> = contents.records.iter().filter(may_go).map(|it| decision.records.contains_key(&it.key)).collect();
        let (last_gone, first_kept) = (goes.iter().rposition(|it| *it), goes.iter().position(|it| !it));
        if let (Some(gone), Some(kept)) = (last_gone, first_kept) {
            prop_assert!(gone < kept);
        }
        match max_bytes {
            Some(max) => prop_assert!(decision.bytes <= max || kept.iter().all(|it| it.stays), "more goes than fits"),
            None => prop_assert_eq!(last_gone, None, "a sound record goes although nothing asks for it"),
        }
        for record in &kept {
            prop_assert!(record.stays || used_since.is_none_or(|since| record.used_unix >= since));
        }
    }
}

/// Three steps with two blobs each, one of them of everybody; a copy of the first and of the last in `out/`.
fn filled(store: &Store) -> Vec<Record> {
    let shared = store.cas.put(b"shared").unwrap();
    let steps = ["a@cpu:ir", "b@cpu:ir", "c@cpu:ir"];
    let records = steps.iter().zip(0..).map(|(step, index)| {
        let own = store.cas.put(&[index as u8; 1000]).unwrap();
        let outputs = [("own".to_owned(), own), ("shared".to_owned(), shared)].into();
        let record = Record { outputs, ..record(index) };
        store.records.put(step, &record).unwrap();
        record
    });
    let records: Vec<_> = records.collect();
    for (folder, record) in [("a@cpu", &records[0]), ("c@cpu", &records[2])] {
        store.materialise(folder, &[("own", record.outputs["own"])]).unwrap();
    }
    records
}

fn needs(record: &Record, folder: &str) -> Needs {
    Needs { records: [record.key].into(), folders: [folder.to_owned()].into(), ..Needs::default() }
}

fn collect(store: &Store, needs: &Needs, max_bytes: Option<u64>, grace: Duration, dry_run: bool) -> Collected {
    let bounds = Bounds { max_bytes, used_since: None };
    store.collect(&Request { needs, bounds, grace, dry_run }).unwrap()
}

#[test]
fn without_a_limit_only_what_nobody_can_reach_goes() {
    let dir = dir();
    let (store, _) = Store::open(dir.path()).unwrap();
    let records = filled(&store);
    let orphan = store.cas.put(b"of a build that failed").unwrap();
    fs::remove_file(store.cas.path(&records[1].outputs["own"])).unwrap();
    fs::create_dir(store.dir().join("corrupt")).unwrap();
    fs::write(store.dir().join("corrupt/blob"), "bad").unwrap();
    fs::write(store.out("c@cpu").join("notes.txt"), "mine").unwrap();
    let needs = needs(&records[0], "a@cpu");

    let young = collect(&store, &needs, None, GRACE, true);
    assert_eq!((young.records, young.blobs.files), (1, 0), "a running build may be about to name the blob");
    let foreseen = collect(&store, &needs, None, Duration::ZERO, true);
    assert!(store.cas.contains(&orphan) && store.out("c@cpu").join("own").exists());
    let done = collect(&store, &needs, None, Duration::ZERO, false);
    assert_eq!(Collected { bytes_after: 0, ..foreseen }, Collected { bytes_after: 0, ..done });
    assert_eq!((done.records, done.blobs.files, done.out.files, done.corrupt.files), (1, 1, 1, 1));
    assert!(done.bytes_before > done.bytes_after);
    assert_eq!(
        store.records.kept().iter().map(|it| it.record.key).collect::<Vec<_>>(),
        [records[0].key, records[2].key]
    );
    assert!(!store.cas.contains(&orphan) && store.cas.contains(&records[2].outputs["own"]));
    assert_eq!(fs::read_to_string(store.out("c@cpu").join("notes.txt")).unwrap(), "mine");
    assert!(!store.out("c@cpu").join("own").exists() && store.out("a@cpu").join("own").exists());
    assert!(collect(&store, &needs, None, Duration::ZERO, false).is_nothing());
}

#[test]
fn the_least_recently_used_goes_first_and_what_is_needed_never() {
    let dir = dir();
    let (store, _) = Store::open(dir.path()).unwrap();
    let records = filled(&store);
    let needs = needs(&records[0], "a@cpu");
    let all = collect(&store, &needs, None, Duration::ZERO, false).bytes_after;
    let done = collect(&store, &needs, Some(all - 500), Duration::ZERO, false);
    assert_eq!((done.records, done.blobs.files, done.blobs.bytes), (1, 1, 1000));
    assert!(done.bytes_after <= all - 500);
    assert!(!store.cas.contains(&records[1].outputs["own"]) && store.cas.contains(&records[2].outputs["own"]));

    let done = collect(&store, &needs, Some(0), Duration::ZERO, false);
    assert_eq!((done.records, done.blobs.files), (1, 1));
    assert_eq!(store.records.kept().len(), 1);
    assert!(records[0].outputs.values().all(|it| store.cas.get(it).is_ok()));
    let (again, notices) = Store::open(dir.path()).unwrap();
    assert_eq!((again.records.latest("a@cpu:ir"), notices), (Some(records[0].clone()), vec![]));
}

#[test]
fn what_was_not_used_for_long_goes_at_any_size() {
    let dir = dir();
    let (store, _) = Store::open(dir.path()).unwrap();
    let records = filled(&store);
    store.records.set_latest("d@cpu:ir", &records[1].key).unwrap();
    let bounds = Bounds { max_bytes: None, used_since: Some(records[2].finished_unix + 1) };
    let needs = needs(&records[0], "a@cpu");
    let request = Request { needs: &needs, bounds, grace: Duration::ZERO, dry_run: false };
    assert_eq!(store.collect(&request).unwrap().records, 1);
    let kept: Vec<_> = store.records.kept().into_iter().map(|it| it.record.key).collect();
    assert_eq!(kept, [records[0].key, records[1].key], "needed, and current again");
}

#[test]
fn what_a_folder_shows_and_no_record_names_stays() {
    let dir = dir();
    let (store, _) = Store::open(dir.path()).unwrap();
    let audit = store.cas.put(b"rejected").unwrap();
    store.materialise("a@cpu", &[("audit.json", audit)]).unwrap();
    let folder = store.out("a@cpu");
    let shown: BTreeSet<_> = out::stamped(&folder).into_iter().map(|it| it.1).collect();
    let needs = Needs { blobs: shown, folders: ["a@cpu".to_owned()].into(), ..Needs::default() };
    assert!(collect(&store, &needs, Some(0), Duration::ZERO, false).is_nothing());
    assert_eq!(out::copied_from(&folder, "audit.json"), Some(audit));
    assert_eq!(store.cas.get(&audit).unwrap(), b"rejected");
}

#[test]
fn putting_a_blob_again_says_that_it_is_about_to_be_named() {
    let dir = dir();
    let (store, _) = Store::open(dir.path()).unwrap();
    let path = store.cas.path(&store.cas.put(b"again").unwrap());
    let changed = || fs::metadata(&path).map(|it| (it.ctime(), it.ctime_nsec())).unwrap();
    let before = changed();
    while changed() == before {
        thread::sleep(Duration::from_millis(5)); // as coarse as the file system's clock may be
        store.cas.put(b"again").unwrap();
    }
    assert!(changed() > before);
    assert!(store.dir().ends_with(FOLDER));
}
