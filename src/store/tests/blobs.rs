//! Blobs that are damaged, written by many at once, or cut off by a kill.

use super::{blob, child, dir};
use crate::{
    digest::Digest,
    store::cas::{BlobError, Cas},
};
use proptest::prelude::*;
use std::{
    fs::{self, Permissions},
    io::Read,
    os::unix::fs::PermissionsExt,
    path::Path,
    thread,
    time::Duration,
};

#[test]
fn a_blob_reads_back_and_is_stored_once() {
    let dir = dir();
    let cas = Cas::open(dir.path()).unwrap();
    let digest = cas.put(b"kernel").unwrap();
    let path = cas.path(&digest);
    let text = digest.to_string();
    assert_eq!(path, dir.path().join("cas").join(&text[..2]).join(&text[2..]));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
    let inode = |path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let first = inode(&path);
    assert_eq!(cas.put(b"kernel").unwrap(), digest);
    assert_eq!(inode(&path), first, "the blob was written again");
    assert_eq!(cas.get(&digest).unwrap(), b"kernel");
    assert!(cas.contains(&digest) && cas.check(&digest).is_ok());
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0, "temporary files are left");
}

#[test]
fn a_missing_blob_is_a_miss() {
    let dir = dir();
    let cas = Cas::open(dir.path()).unwrap();
    let digest = Digest::of(b"never stored");
    assert!(matches!(cas.get(&digest), Err(BlobError::Missing { .. })));
    assert!(matches!(cas.check(&digest), Err(BlobError::Missing { .. })));
    assert!(!cas.contains(&digest));
}

/// Changes a blob's file in place, as a bad program or a person would.
fn overwrite(path: &Path, bytes: &[u8]) {
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
}

proptest! {
    #![proptest_config(crate::testing::cases(40))]
    #[test]
    fn a_flipped_bit_or_a_cut_is_found_moved_away_and_healed_by_the_next_put(
        content in proptest::collection::vec(any::<u8>(), 1..2000), at: prop::sample::Index, bit in 0..8u8, cut: bool, by_check: bool,
    ) {
        let dir = dir();
        let cas = Cas::open(dir.path()).unwrap();
        let digest = cas.put(&content).unwrap();
        let mut bad = content.clone();
        let at = at.index(bad.len());
        if cut { bad.truncate(at) } else { bad[at] ^= 1u8 << bit }
        overwrite(&cas.path(&digest), &bad);

        let error = if by_check { cas.check(&digest).unwrap_err() } else { cas.get(&digest).unwrap_err() };
        let BlobError::Corrupt { found, moved_to, .. } = &error else { panic!("{error}") };
        prop_assert_eq!(*found, Digest::of(&bad));
        prop_assert_eq!(fs::read(moved_to).unwrap(), bad);
        prop_assert!(error.is_miss() && !cas.contains(&digest));

        prop_assert_eq!(cas.put(&content).unwrap(), digest);
        prop_assert_eq!(cas.get(&digest).unwrap(), content);
    }

    #[test]
    fn a_put_over_a_damaged_blob_replaces_it(content in proptest::collection::vec(any::<u8>(), 1..200)) {
        let dir = dir();
        let cas = Cas::open(dir.path()).unwrap();
        let digest = cas.put(&content).unwrap();
        overwrite(&cas.path(&digest), &vec![0x55; content.len()]);
        cas.put(&content).unwrap();
        prop_assert_eq!(cas.get(&digest).unwrap(), content);
    }
}

#[test]
fn a_touched_but_intact_blob_is_sealed_again() {
    let dir = dir();
    let cas = Cas::open(dir.path()).unwrap();
    let digest = cas.put(b"copied by a backup").unwrap();
    overwrite(&cas.path(&digest), b"copied by a backup");
    let modified = || fs::metadata(cas.path(&digest)).unwrap().modified().unwrap();
    let touched = modified();
    cas.check(&digest).unwrap();
    assert!(modified() < touched);
}

#[test]
fn a_corrupt_blob_names_itself_and_where_it_went() {
    let dir = dir();
    let cas = Cas::open(dir.path()).unwrap();
    let digest = cas.put(b"kernel").unwrap();
    overwrite(&cas.path(&digest), b"kernul");
    let message = cas.get(&digest).unwrap_err().to_string().replace(&dir.path().display().to_string(), "DIR");
    insta::assert_snapshot!(message, @"blob 7b28c281c83b is corrupt: its content has digest c723d98a2cd6 (moved to `DIR/corrupt/7b28c281c83b5ff162d9b2a6e697daca7b3b261a4577a619dd0b8689d871830a`)");
}

#[test]
fn many_writers_of_one_blob_leave_one_good_blob() {
    let dir = dir();
    let cas = Cas::open(dir.path()).unwrap();
    let mut children: Vec<_> = (0..3).map(|_| child("put-20", dir.path())).collect();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for index in 0..20 {
                    cas.put(&blob(index)).unwrap();
                }
            });
        }
    });
    for (child, output) in &mut children {
        output.read_to_end(&mut Vec::new()).unwrap();
        assert!(child.wait().unwrap().success());
    }
    for index in 0..20 {
        assert_eq!(cas.get(&Digest::of(&blob(index))).unwrap(), blob(index));
    }
}

#[test]
fn a_writer_killed_at_any_moment_leaves_whole_blobs_only() {
    let dir = dir();
    let mut total = 0;
    for round in 0..15 {
        let (mut child, _output) = child("put", dir.path());
        thread::sleep(Duration::from_millis(3 + 4 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let cas = Cas::open(dir.path()).unwrap();
        let stored = (0..).take_while(|&index| cas.contains(&Digest::of(&blob(index)))).count();
        for index in 0..stored as u64 {
            assert_eq!(cas.get(&Digest::of(&blob(index))).unwrap(), blob(index));
        }
        total += stored;
        fs::remove_dir_all(dir.path().join("cas")).unwrap();
    }
    assert!(total > 0, "no child got as far as storing a blob");
}
