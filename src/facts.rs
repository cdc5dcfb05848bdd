//! What the file system tells of a file without opening it: enough to know that nobody wrote to it since.

use rustix::fs::{AtFlags, statat};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, Metadata},
    os::{fd::BorrowedFd, unix::fs::MetadataExt},
    path::Path,
    time::{Duration, SystemTime},
};

/// Size, inode and change time of a file, or of a folder, whose change time moves with every entry that comes or goes. The change
/// time, unlike the modification time, cannot be set by anybody: an edit that puts the old modification time back shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub size: u64,
    pub inode: u64,
    /// Nanoseconds since 1970.
    pub changed: i64,
}

/// The kernel's clock for change times ticks every 1 to 10 ms: two writes in one tick leave equal facts. What changed less than
/// this before it was looked at may have changed right after.
const TICKS: Duration = Duration::from_millis(50);

impl Facts {
    pub fn new(metadata: &Metadata) -> Self {
        let changed = metadata.ctime().saturating_mul(1_000_000_000).saturating_add(metadata.ctime_nsec());
        Self { size: metadata.len(), inode: metadata.ino(), changed }
    }

    /// Of what the path leads to; `None` where there is nothing that can be looked at.
    pub fn at(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|it| Self::new(&it))
    }

    /// Of what `path` leads to from an open folder: for many files of one folder half the price of [`Facts::at`].
    pub fn within(folder: BorrowedFd<'_>, path: &str) -> Option<Self> {
        let stat = statat(folder, path, AtFlags::empty()).ok()?;
        let changed = stat.st_ctime.checked_mul(1_000_000_000)?;
        Some(Self {
            size: stat.st_size.try_into().ok()?,
            inode: stat.st_ino,
            changed: changed.checked_add(stat.st_ctime_nsec.try_into().ok()?)?,
        })
    }

    /// These facts, if equal ones later mean that nothing changed. `now` is a time before they were taken.
    pub fn lasting(self, now: SystemTime) -> Option<Self> {
        let limit = now.checked_sub(TICKS)?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        (i128::from(self.changed) < limit.as_nanos().cast_signed()).then_some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_that_keeps_size_and_modification_time_shows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "one").unwrap();
        let (before, times) = (Facts::at(&path).unwrap(), fs::metadata(&path).unwrap().modified().unwrap());
        assert_eq!(Facts::at(&path), Some(before));
        std::thread::sleep(TICKS);
        fs::write(&path, "two").unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(times).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), times);
        assert_ne!(Facts::at(&path), Some(before));
    }

    #[test]
    fn what_changed_just_now_is_not_relied_on() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let facts = Facts::at(folder.path()).unwrap();
        assert_eq!(facts.lasting(now), None);
        assert_eq!(facts.lasting(now + Duration::from_secs(1)), Some(facts));
        // A file from the future, of a server whose clock is ahead.
        assert_eq!(Facts { changed: i64::MAX, ..facts }.lasting(now), None);
    }
}
