//! Removing what was built. The caller holds the lock of the build; the lock files themselves stay (see [`super::lock`]).

use super::{Store, StoreError, disk};
use crate::digest::Digest;
use std::{collections::BTreeSet, fs, io};

impl Store {
    /// Removes everything but the locks.
    pub fn clear(&self) -> Result<(), StoreError> {
        let entries = fs::read_dir(&self.dir).map_err(StoreError::io("list", &self.dir))?;
        for entry in entries {
            let entry = entry.map_err(StoreError::io("list", &self.dir))?;
            if entry.file_name() == "locks" {
                continue;
            }
            accept_absent(disk::remove_all(&entry.path())).map_err(StoreError::io("remove", entry.path()))?;
        }
        Ok(())
    }

    /// Removes the out folder, and the blobs and records that only these steps made last. What one of `others` made last too
    /// stays.
    pub fn forget(&self, block_at_target: &str, steps: &[&str], others: &[&str]) -> Result<(), StoreError> {
        let blobs = |steps: &[&str]| -> BTreeSet<Digest> {
            let records = steps.iter().filter_map(|it| self.records.latest(it));
            records.flat_map(|it| it.outputs.into_values()).collect()
        };
        for digest in blobs(steps).difference(&blobs(others)) {
            let path = self.cas.path(digest);
            accept_absent(disk::remove_file(&path)).map_err(StoreError::io("remove", path))?;
        }
        let keys = |steps: &[&str]| -> BTreeSet<Digest> {
            steps.iter().filter_map(|it| self.records.latest_key(it)).collect()
        };
        let unneeded = keys(steps).difference(&keys(others)).map(|it| (*it, u64::MAX)).collect();
        self.records.remove(&unneeded)?;
        let out = self.out(block_at_target);
        accept_absent(disk::remove_all(&out)).map_err(StoreError::io("remove", out))
    }
}

pub(super) fn accept_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{key::KeyParts, records::Record};

    #[test]
    fn forgetting_one_block_keeps_what_another_shares() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(folder.path()).unwrap();
        let (own, shared) = (store.cas.put(b"own").unwrap(), store.cas.put(b"shared").unwrap());
        let record = |step: &str, outputs: &[Digest]| {
            let parts = KeyParts::new().with("step", step);
            let outputs = outputs.iter().map(|it| (it.short(), *it)).collect();
            store
                .records
                .put(step, &Record { key: parts.key(), parts, outputs, finished_unix: 0, wall_us: 0 })
                .unwrap();
        };
        record("a@cpu:ir", &[own, shared]);
        record("b@cpu:ir", &[shared]);
        store.forget("a@cpu", &["a@cpu:ir"], &["b@cpu:ir"]).unwrap();
        assert!(!store.cas.contains(&own) && store.cas.contains(&shared));
        assert!(store.records.latest("a@cpu:ir").is_none() && store.records.latest("b@cpu:ir").is_some());
    }

    #[test]
    fn clearing_removes_everything_but_the_locks() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(folder.path()).unwrap();
        let digest = store.cas.put(b"blob").unwrap();
        let lock = store.lock_out_builds(None, |_| {}).unwrap();
        store.clear().unwrap();
        drop(lock);
        assert!(store.build_lock_path().exists() && !store.cas.path(&digest).exists());
    }
}
