//! What the cache folder holds, by looking at it.

use super::{FOLDER, Store, StoreError, outputs::Outputs};
use crate::digest::Digest;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
};
use walkdir::WalkDir;

/// Files, and their bytes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Count {
    pub files: u64,
    pub bytes: u64,
}

impl Count {
    pub fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

/// The file of one blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobFile {
    pub bytes: u64,
    /// When it was last written or put again; seconds since 1970.
    pub changed_unix: i64,
}

/// What must stay, as those say who know what the project is.
#[derive(Debug, Clone, Default)]
pub struct Needs {
    /// Keys of records; the blobs that they name are needed too.
    pub records: BTreeSet<Digest>,
    /// Blobs that no record names.
    pub blobs: BTreeSet<Digest>,
    /// Names of the folders of `out/`.
    pub folders: BTreeSet<String>,
}

impl Needs {
    /// Also what `other` needs.
    pub fn add(&mut self, mut other: Self) {
        self.records.append(&mut other.records);
        self.blobs.append(&mut other.blobs);
        self.folders.append(&mut other.folders);
    }
}

/// What is in the folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Survey {
    pub blobs: BTreeMap<Digest, BlobFile>,
    /// Bytes of the records' file.
    pub records: u64,
    pub out: Count,
    pub temporary: Count,
    pub corrupt: Count,
}

impl Survey {
    pub fn blob_count(&self) -> Count {
        Count { files: self.blobs.len() as u64, bytes: self.blobs.values().map(|it| it.bytes).sum() }
    }

    /// All that is counted here; locks and version take next to nothing.
    pub fn bytes(&self) -> u64 {
        self.blob_count().bytes + self.records + self.out.bytes + self.temporary.bytes + self.corrupt.bytes
    }
}

impl Store {
    /// Looks at every file. What disappears meanwhile is not counted.
    pub fn survey(&self) -> Result<Survey, StoreError> {
        let count = |folder: &str| count(&self.dir().join(folder));
        let mut blobs = BTreeMap::new();
        files(&self.dir().join("cas"), |path, metadata| {
            // Anything else is not ours.
            if let Some(digest) = named(path) {
                blobs.insert(digest, BlobFile { bytes: metadata.len(), changed_unix: metadata.ctime() });
            }
        })?;
        Ok(Survey {
            blobs,
            records: self.records.bytes(),
            out: count("out")?,
            temporary: count(super::TEMPORARY)?,
            corrupt: count("corrupt")?,
        })
    }

    /// The blobs of these records and those needed besides.
    pub fn needed_blobs(&self, needs: &Needs) -> BTreeSet<Digest> {
        let outputs = needs.records.iter().filter_map(|it| self.records.outputs(it));
        outputs.flat_map(Outputs::into_values).chain(needs.blobs.iter().copied()).collect()
    }
}

/// The files below `folder`, which need not exist.
pub(super) fn count(folder: &Path) -> Result<Count, StoreError> {
    let mut count = Count::default();
    files(folder, |_, metadata| count.add(metadata.len()))?;
    Ok(count)
}

/// Calls `each` for every file below `folder`, which need not exist.
fn files(folder: &Path, mut each: impl FnMut(&Path, &std::fs::Metadata)) -> Result<(), StoreError> {
    for entry in WalkDir::new(folder) {
        let seen = entry.and_then(|it| it.metadata().map(|metadata| (it, metadata)));
        match seen {
            Ok((entry, metadata)) if !metadata.is_dir() => each(entry.path(), &metadata),
            Ok(_) => {}
            Err(error) if error.io_error().is_some_and(|it| it.kind() == io::ErrorKind::NotFound) => {}
            Err(error) => {
                let path = error.path().unwrap_or(folder).to_owned();
                return Err(StoreError::io("look at", path)(error.into()));
            }
        }
    }
    Ok(())
}

/// The digest that a path `.../cas/ab/cdef...` stands for.
fn named(path: &Path) -> Option<Digest> {
    let mut parts = path.iter().rev().filter_map(|it| it.to_str());
    let (rest, first) = (parts.next()?, parts.next()?);
    format!("{first}{rest}").parse().ok().filter(|_| first.len() == 2)
}

/// A path as people see it: from the project's root.
pub(super) fn relative(dir: &Path, path: &Path) -> String {
    path.strip_prefix(dir).map_or_else(|_| path.to_owned(), |it| Path::new(FOLDER).join(it)).display().to_string()
}
