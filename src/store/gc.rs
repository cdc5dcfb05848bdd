//! Removes what nobody needs, least recently used first. [`decide`] only says what goes; [`Store::collect`] looks at the disk
//! before and changes it after.
//!
//! No lock keeps builds away meanwhile. A running build may be about to name a blob that no record names yet, so whatever was
//! written, put or used within a grace period stays. What is removed too early all the same is a miss, which the build repairs.

use super::{
    Store, StoreError,
    clean::accept_absent,
    disk,
    lock::unix_now,
    out,
    survey::{Count, Needs, count},
};
use crate::digest::Digest;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::Duration,
};

/// Longer than any step takes from the first blob that it puts to the record that names it.
pub const GRACE: Duration = Duration::from_secs(600);

/// A record, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    pub key: Digest,
    /// Seconds since 1970.
    pub used_unix: u64,
    pub bytes: u64,
    /// What it names; some may be missing.
    pub blobs: Vec<Digest>,
    /// It is needed, or was used a moment ago.
    pub stays: bool,
}

/// A blob that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    pub bytes: u64,
    /// It is needed without any record, or was put a moment ago.
    pub stays: bool,
}

/// What there is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contents {
    /// Least recently used first.
    pub records: Vec<Holding>,
    pub blobs: BTreeMap<Digest, Blob>,
    /// Bytes of all else, which nobody decides about here.
    pub other: u64,
}

/// How much may stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    pub max_bytes: Option<u64>,
    /// What was last used before goes; seconds since 1970.
    pub used_since: Option<u64>,
}

/// What goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    /// Keys, with the use times that were decided from.
    pub records: BTreeMap<Digest, u64>,
    pub blobs: BTreeSet<Digest>,
    /// What is left then.
    pub bytes: u64,
}

/// Without bounds, only records that lost a blob, and blobs without a record. With them, also what was not used for too long,
/// and the least recently used until the rest is small enough.
pub fn decide(contents: &Contents, bounds: Bounds) -> Decision {
    let is_whole = |it: &Holding| it.blobs.iter().all(|blob| contents.blobs.contains_key(blob));
    let is_recent = |it: &Holding| bounds.used_since.is_none_or(|since| it.used_unix >= since);
    let (kept, gone): (Vec<_>, Vec<_>) =
        contents.records.iter().partition(|it| it.stays || is_whole(it) && is_recent(it));
    let mut decision =
        Decision { records: gone.iter().map(|it| (it.key, it.used_unix)).collect(), ..Decision::default() };

    // How many of the records that are left name each blob.
    let mut users: HashMap<Digest, usize> = HashMap::new();
    for blob in kept.iter().flat_map(|it| &it.blobs) {
        *users.entry(*blob).or_default() += 1;
    }
    decision.bytes = contents.other + kept.iter().map(|it| it.bytes).sum::<u64>();
    for (digest, blob) in &contents.blobs {
        if blob.stays || users.contains_key(digest) {
            decision.bytes += blob.bytes;
        } else {
            decision.blobs.insert(*digest);
        }
    }
    let Some(max_bytes) = bounds.max_bytes else { return decision };
    for record in kept.iter().filter(|it| !it.stays) {
        if decision.bytes <= max_bytes {
            break;
        }
        decision.records.insert(record.key, record.used_unix);
        decision.bytes -= record.bytes;
        for digest in &record.blobs {
            let Some(count) = users.get_mut(digest) else { continue };
            *count -= 1;
            if *count == 0
                && let Some(blob) = contents.blobs.get(digest).filter(|it| !it.stays)
            {
                decision.blobs.insert(*digest);
                decision.bytes -= blob.bytes;
            }
        }
    }
    decision
}

/// What to collect.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub needs: &'a Needs,
    pub bounds: Bounds,
    pub grace: Duration,
    /// Only say what would go.
    pub dry_run: bool,
}

/// What went, or would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Collected {
    pub records: u64,
    pub blobs: Count,
    /// Files in `out/` of blocks that are no longer in the manifest.
    pub out: Count,
    /// What killed processes left in `tmp/`.
    pub tmp: Count,
    pub corrupt: Count,
    pub bytes_before: u64,
    pub bytes_after: u64,
}

impl Collected {
    pub fn is_nothing(&self) -> bool {
        self.records == 0 && [self.blobs, self.out, self.tmp, self.corrupt].iter().all(|it| it.files == 0)
    }
}

impl Store {
    /// Removes what is neither needed nor within the bounds. On a full disk too: what is lost anyway goes first.
    pub fn collect(&self, request: &Request<'_>) -> Result<Collected, StoreError> {
        // The records before the blobs: the blobs of every record that is seen were there before it.
        self.records.refresh()?;
        let kept = self.records.kept();
        let survey = self.survey()?;
        let mut collected = Collected { bytes_before: survey.bytes(), ..Collected::default() };
        let abandoned = self.cas.abandoned()?;
        let corrupt = self.dir().join("corrupt");
        let strays = self.strays(request.needs)?;
        abandoned.iter().for_each(|it| collected.tmp.add(it.1));
        collected.corrupt = count(&corrupt)?;
        strays.iter().flat_map(|it| &it.copies).for_each(|it| collected.out.add(it.1));
        if !request.dry_run {
            for (path, _) in &abandoned {
                accept_absent(disk::remove_file(path)).map_err(StoreError::io("remove", path))?;
            }
            accept_absent(disk::remove_all(&corrupt)).map_err(StoreError::io("remove", corrupt))?;
            for Stray { folder, copies } in strays {
                out::remove(&folder, copies.into_iter().map(|it| it.0))
                    .map_err(StoreError::io("remove the copies in", folder))?;
            }
        }

        let since = i64::try_from(unix_now().saturating_sub(request.grace.as_secs())).unwrap_or(i64::MAX);
        let needs = request.needs;
        let records = kept.into_iter().map(|it| Holding {
            key: it.record.key,
            used_unix: it.used_unix,
            bytes: it.bytes,
            blobs: it.record.outputs.into_values().collect(),
            stays: needs.records.contains(&it.record.key) || it.used_unix as i64 > since,
        });
        let blobs = survey.blobs.iter().map(|(digest, file)| {
            let stays = needs.blobs.contains(digest) || file.changed_unix > since;
            (*digest, Blob { bytes: file.bytes, stays })
        });
        let mut contents = Contents { records: records.collect(), blobs: blobs.collect(), other: 0 };
        let decided = survey.blob_count().bytes + contents.records.iter().map(|it| it.bytes).sum::<u64>();
        let removed = collected.tmp.bytes + collected.corrupt.bytes + collected.out.bytes;
        contents.other = survey.bytes().saturating_sub(decided + removed);
        let decision = decide(&contents, request.bounds);
        let bytes_of = |blob: &Digest| contents.blobs.get(blob).map_or(0, |it| it.bytes);
        if request.dry_run {
            collected.records = decision.records.len() as u64;
            decision.blobs.iter().for_each(|it| collected.blobs.add(bytes_of(it)));
            collected.bytes_after = decision.bytes;
            return Ok(collected);
        }

        // First what no record names. Then there may be room for writing the records anew without the rest.
        let named: BTreeSet<_> = contents.records.iter().flat_map(|it| &it.blobs).copied().collect();
        let (later, now): (BTreeSet<_>, BTreeSet<_>) =
            decision.blobs.iter().copied().partition(|it| named.contains(it));
        let mut remove = |blobs: BTreeSet<Digest>| -> Result<(), StoreError> {
            for blob in blobs {
                if self.remove_blob(&blob, since)? {
                    collected.blobs.add(bytes_of(&blob));
                }
            }
            Ok(())
        };
        remove(now)?;
        let forgotten = match self.records.remove(&decision.records) {
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {
                // Their records are to go as well; until they do, they are misses.
                remove(later.clone())?;
                self.records.remove(&decision.records)?
            }
            forgotten => forgotten?,
        };
        // A record that was used or made meanwhile keeps what it names.
        let named: BTreeSet<_> =
            self.records.kept().into_iter().flat_map(|it| it.record.outputs.into_values()).collect();
        remove(later.difference(&named).copied().collect())?;
        collected.records = forgotten as u64;
        collected.bytes_after = self.survey()?.bytes();
        Ok(collected)
    }

    /// Whether it was there and was not put again since `since`.
    fn remove_blob(&self, blob: &Digest, since: i64) -> Result<bool, StoreError> {
        let path = self.cas.path(blob);
        if fs::symlink_metadata(&path).is_ok_and(|it| it.ctime() > since) {
            return Ok(false);
        }
        match disk::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(StoreError::io("remove", path)(error)),
        }
    }

    /// The folders of `out/` that are of no block.
    fn strays(&self, needs: &Needs) -> Result<Vec<Stray>, StoreError> {
        let folders = self.out_folders()?.into_iter().filter(|it| !needs.folders.contains(it));
        let folders = folders.map(|it| self.out(&it));
        Ok(folders.map(|folder| Stray { copies: out::untouched(&folder), folder }).collect())
    }
}

struct Stray {
    folder: PathBuf,
    /// With their sizes.
    copies: Vec<(PathBuf, u64)>,
}
