//! The records file under truncation, flipped bits, kills and several writers; and how fast it opens.

use super::{child, dir, record};
use crate::{
    digest::Digest,
    store::{
        Notice,
        records::{Record, Records},
    },
};
use proptest::prelude::*;
use std::{
    fs,
    io::Read,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// The records file of `count` records in steps `step0` to `step6`.
fn records_file(dir: &Path, count: u64) -> Vec<u8> {
    let (records, _) = Records::open(dir).unwrap();
    (0..count).for_each(|index| records.put(&format!("step{}", index % 7), &record(index)).unwrap());
    fs::read(dir.join("records")).unwrap()
}

/// How many of the first `count` records are there. Whatever is there must be right.
fn count_good(records: &Records, count: u64) -> usize {
    let good = (0..count).filter(|&index| {
        let expected = record(index);
        assert_eq!(records.outputs(&expected.key), records.get(&expected.key).map(|it| it.outputs));
        records.get(&expected.key).is_some_and(|found| {
            assert_eq!(found, expected);
            true
        })
    });
    let good = good.count();
    assert_eq!(records.len(), good, "there is a record that nobody wrote");
    good
}

#[test]
fn records_read_back_after_reopening() {
    let dir = dir();
    records_file(dir.path(), 20);
    let (records, notices) = Records::open(dir.path()).unwrap();
    assert_eq!(notices, []);
    assert_eq!(count_good(&records, 20), 20);
    assert_eq!(records.latest("step3"), Some(record(17)));
    assert_eq!(records.before("step3"), Some(record(10)));
    assert_eq!((records.latest("other"), records.before("other")), (None, None));
}

#[test]
fn a_step_whose_inputs_are_again_what_they_were_has_its_old_record_as_latest() {
    let dir = dir();
    let (records, _) = Records::open(dir.path()).unwrap();
    records.put("step", &record(1)).unwrap();
    records.put("step", &record(2)).unwrap();
    records.set_latest("step", &record(1).key).unwrap();
    let size = fs::metadata(dir.path().join("records")).unwrap().len();
    records.set_latest("step", &record(1).key).unwrap();
    assert_eq!(
        fs::metadata(dir.path().join("records")).unwrap().len(),
        size,
        "nothing changed, but something was written"
    );
    let (records, _) = Records::open(dir.path()).unwrap();
    assert_eq!(records.latest("step"), Some(record(1)));
    assert_eq!(records.before("step"), Some(record(2)));
}

/// The records of these indices, in this order.
fn indices(records: &Records) -> Vec<u64> {
    records.kept().iter().map(|it| it.record.wall_us).collect()
}

#[test]
fn records_are_kept_in_the_order_of_their_last_use_across_a_rewrite() {
    let dir = dir();
    let (records, _) = Records::open(dir.path()).unwrap();
    (0..4).for_each(|index| records.put("step", &record(index)).unwrap());
    assert_eq!(indices(&records), [0, 1, 2, 3]);
    // Current again long after it was made, then replaced: no step names it any more.
    let later = record(9).finished_unix;
    records.set_latest_at("step", &record(1).key, later).unwrap();
    records.set_latest_at("step", &record(2).key, later + 1).unwrap();
    records.set_latest_at("step", &record(3).key, later + 2).unwrap();
    assert_eq!(indices(&records), [0, 1, 2, 3]);
    records.set_latest_at("step", &record(0).key, later + 3).unwrap();
    assert_eq!(indices(&records), [1, 2, 3, 0]);

    assert_eq!(records.remove(&[(record(2).key, u64::MAX)].into()).unwrap(), 1);
    let (again, notices) = Records::open(dir.path()).unwrap();
    assert_eq!(notices, []);
    assert_eq!(again.kept(), records.kept());
    assert_eq!(indices(&again), [1, 3, 0]);
    assert_eq!((again.latest("step"), again.before("step")), (Some(record(0)), Some(record(3))));
}

#[test]
fn removing_forgets_steps_without_a_record_and_spares_what_was_used_since() {
    let dir = dir();
    let (records, _) = Records::open(dir.path()).unwrap();
    let (other, _) = Records::open(dir.path()).unwrap();
    (0..3).for_each(|index| records.put(&format!("step{index}"), &record(index)).unwrap());
    let decided = records.kept().iter().map(|it| (it.record.key, it.used_unix)).collect();
    // Another process builds on, with a record and with an old one that is current again.
    other.put("step3", &record(3)).unwrap();
    other.set_latest("step3", &record(1).key).unwrap();
    assert_eq!(records.remove(&decided).unwrap(), 2);
    let steps: Vec<_> = records.steps().into_iter().map(|it| (it.step, it.latest, it.before)).collect();
    assert_eq!(steps, [("step1".into(), record(1).key, None), ("step3".into(), record(1).key, Some(record(3).key))]);
    assert_eq!(records.len(), 2);
    assert_eq!(other.refresh().unwrap(), []);
    assert_eq!(other.kept(), records.kept());
    assert_eq!(records.remove(&decided).unwrap(), 0, "nothing left to remove");
}

#[test]
fn a_records_file_cut_anywhere_keeps_every_whole_commit() {
    let source = dir();
    let whole = records_file(source.path(), 12);
    let mut last = 0;
    for length in (0..whole.len()).step_by(29).chain([whole.len()]) {
        let dir = dir();
        fs::write(dir.path().join("records"), &whole[..length]).unwrap();
        let (records, notices) = Records::open(dir.path()).unwrap();
        assert_eq!(notices, [], "a torn tail is what killing leaves, nothing to tell");
        let good = count_good(&records, 12);
        assert!(good >= last && good <= last + 1, "cut at {length}: {last} then {good} records");
        last = good;
        records.put("step0", &record(99)).unwrap();
        let (records, notices) = Records::open(dir.path()).unwrap();
        assert_eq!((records.len(), notices), (good + 1, vec![]));
        assert_eq!(records.latest("step0"), Some(record(99)));
    }
    assert_eq!(last, 12);
}

#[test]
fn a_flipped_bit_anywhere_costs_at_most_the_commit_it_is_in() {
    let source = dir();
    let whole = records_file(source.path(), 12);
    let header = 17;
    for at in (0..17).chain((17..whole.len()).step_by(23)) {
        let dir = dir();
        let mut bad = whole.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(dir.path().join("records"), &bad).unwrap();
        let (records, notices) = Records::open(dir.path()).unwrap();
        let good = count_good(&records, 12);
        if at < header {
            assert!(matches!(&notices[..], [Notice::RecordsReset { .. }]), "{notices:?}");
        } else {
            assert!(good >= 11, "flip at {at}: {good} records");
            // In the length of the last frame the flip can look like a write that was cut short.
            let torn = at > whole.len() - 700 && notices.is_empty();
            assert!(torn || matches!(&notices[..], [Notice::RecordsDamaged { .. }]), "flip at {at}: {notices:?}");
        }
        // Said once, and put right.
        records.put("step0", &record(99)).unwrap();
        let (records, notices) = Records::open(dir.path()).unwrap();
        assert_eq!((records.len(), notices), (good + 1, vec![]));
    }
}

proptest! {
    #![proptest_config(crate::testing::cases(60))]
    #[test]
    fn any_damage_to_the_records_file_is_survived(
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), 0..200usize, any::<u8>()), 1..6), whole in 0..3u8,
    ) {
        let dir = dir();
        let mut bytes = records_file(dir.path(), 9);
        for (at, length, value) in cuts {
            let start = at.index(bytes.len());
            let end = (start + length).min(bytes.len());
            match whole {
                0 => bytes[start..end].fill(value),
                1 => drop(bytes.drain(start..end)),
                _ => drop(bytes.splice(start..start, vec![value; length])),
            }
            if bytes.is_empty() { break }
        }
        fs::write(dir.path().join("records"), &bytes).unwrap();
        let (records, _) = Records::open(dir.path()).unwrap();
        let good = count_good(&records, 9);
        records.put("step0", &record(99)).unwrap();
        let (records, notices) = Records::open(dir.path()).unwrap();
        prop_assert_eq!((records.len(), notices), (good + 1, vec![]));
    }
}

#[test]
fn a_records_file_of_something_else_is_moved_aside_and_said_so() {
    let dir = dir();
    fs::write(dir.path().join("records"), "SQLite format 3\0").unwrap();
    let (records, notices) = Records::open(dir.path()).unwrap();
    assert!(records.is_empty());
    let notice = notices[0].to_string().replace(&dir.path().display().to_string(), "DIR");
    insta::assert_snapshot!(notice, @"the build records are unreadable (not written by this version of kforge); moved to `DIR/corrupt/records`, starting without them");
    assert_eq!(fs::read(dir.path().join("corrupt/records")).unwrap(), b"SQLite format 3\0");
}

#[test]
fn a_folder_in_place_of_the_records_file_is_moved_aside() {
    let dir = dir();
    fs::create_dir(dir.path().join("records")).unwrap();
    let (records, notices) = Records::open(dir.path()).unwrap();
    assert_eq!((records.len(), notices.len()), (0, 1));
    records.put("step", &record(1)).unwrap();
    assert_eq!(records.latest("step"), Some(record(1)));
}

#[test]
fn a_writer_killed_at_any_moment_loses_no_finished_commit() {
    let dir = dir();
    let mut total = 0;
    // The first of each pair begins on no file, the second on the one that the first was killed over.
    for round in 0..20 {
        let (mut child, _output) = child("record", dir.path());
        thread::sleep(Duration::from_millis(2 + 3 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let (records, notices) = Records::open(dir.path()).unwrap();
        assert_eq!(notices, []);
        let count = records.len() as u64;
        assert_eq!(count_good(&records, count) as u64, count, "a commit in the middle is missing");
        if count > 0 && round % 2 == 0 {
            assert_eq!(records.latest(&format!("step{}", (count - 1) % 7)), Some(record(count - 1)));
        }
        total += count;
        if round % 2 == 1 {
            fs::remove_file(dir.path().join("records")).unwrap();
        }
    }
    assert!(total > 0, "no child got as far as writing a record");
}

#[test]
fn processes_that_write_at_once_lose_nothing() {
    let dir = dir();
    let (records, _) = Records::open(dir.path()).unwrap();
    let mut children: Vec<_> = (0..3).map(|_| child("record-100", dir.path())).collect();
    (0..100).for_each(|index| records.put("own", &record(index)).unwrap());
    for (child, output) in &mut children {
        while child.try_wait().unwrap().is_none() {
            assert_eq!(records.refresh().unwrap(), [], "a commit of another process looked damaged");
        }
        output.read_to_end(&mut Vec::new()).unwrap();
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(records.refresh().unwrap(), []);
    assert_eq!(records.len(), 400);
    for (child, _) in &children {
        let base = u64::from(child.id()) << 20;
        assert_eq!(records.latest(&base.to_string()), Some(record(base + 99)));
    }
}

#[test]
fn a_records_file_full_of_replaced_entries_is_rewritten() {
    let dir = dir();
    let (records, _) = Records::open(dir.path()).unwrap();
    let (other, _) = Records::open(dir.path()).unwrap();
    let large = Record { outputs: (0..500).map(|it| (it.to_string(), Digest::of(b"x"))).collect(), ..record(1) };
    records.put("first", &record(0)).unwrap();
    let size = || fs::metadata(dir.path().join("records")).unwrap().len();
    let mut sizes = vec![size()];
    while sizes.len() < 500 && sizes.is_sorted() {
        records.put("step", &large).unwrap();
        sizes.push(size());
    }
    assert!(!sizes.is_sorted(), "never rewritten: {} bytes", size());
    assert_eq!((records.latest("step"), records.latest("first")), (Some(large.clone()), Some(record(0))));
    // A process that had the old file open sees the new one.
    assert_eq!(other.refresh().unwrap(), []);
    assert_eq!(other.latest("step"), Some(large));
    other.put("step", &record(2)).unwrap();
    assert_eq!(records.refresh().unwrap(), []);
    assert_eq!(records.latest("step"), Some(record(2)));
}

/// `cargo test --release --no-default-features --lib store::tests::records::opening -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn opening_and_reading_records() {
    for count in [100, 1000, 10_000, 100_000] {
        let dir = dir();
        let (records, _) = Records::open(dir.path()).unwrap();
        let all: Vec<_> = (0..count).map(|index| (format!("block{index}@cpu:verify"), record(index))).collect();
        let batch: Vec<_> = all.iter().map(|(step, record)| (step.as_str(), record)).collect();
        batch.chunks(5).for_each(|it| records.put_all(it).unwrap());
        let best = (0..10).map(|_| {
            let start = Instant::now();
            let (records, _) = Records::open(dir.path()).unwrap();
            assert!(all.iter().all(|(_, it)| records.outputs(&it.key).is_some()));
            start.elapsed()
        });
        let size = fs::metadata(dir.path().join("records")).unwrap().len();
        println!("{count} records, {size} bytes: opened and looked up in {:?} (best of 10)", best.min().unwrap());
    }
}
