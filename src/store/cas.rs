//! Blobs by BLAKE3 digest, under `cas/ab/cdef...`. Both processes read and write here at once, without a lock.
//!
//! A blob appears under its name complete or not at all: it is written to `tmp/`, synced and renamed. Blobs never change, so
//! they are read-only and carry one fixed modification time. Any other time means that something wrote to the file, and
//! then its content is hashed before it is trusted ([`Cas::check`]). So a build with nothing to do needs one `stat` for each blob
//! and still sees a blob that was edited or cut short. Rejected: keeping size and time of each blob in the records, which must
//! then be written again whenever a cache folder is copied.

use super::{FOLDER, StoreError, TEMPORARY, disk, lock::unix_now};
use crate::digest::Digest;
use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// Modification time of every intact blob, in seconds since 1970. Not 0, which some archivers take for "unknown".
const SEALED: i64 = 1;

/// A temporary file this old belongs to no living writer: one blob takes far less than a second.
const ABANDONED: Duration = Duration::from_secs(3600);

/// The folders that hold the blobs of the project at `root`, whether they exist or not. One that lost a blob, or got one, has
/// another change time.
pub fn folders(root: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let blobs = root.join(FOLDER).join(BLOBS);
    (0..=u8::MAX).map(move |it| blobs.join(format!("{it:02x}")))
}

const BLOBS: &str = "cas";

/// The blobs of one store.
#[derive(Debug, Clone)]
pub struct Cas {
    blobs: PathBuf,
    temporary: PathBuf,
    corrupt: PathBuf,
}

/// A blob cannot be had. The first two are misses: whoever can make the blob again, does.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("blob {} is missing", digest.short())]
    Missing { digest: Digest },
    /// It was moved away to `moved_to`, so that the next build makes it again.
    #[error("blob {} is corrupt: its content has digest {} (moved to `{}`)", digest.short(), found.short(), moved_to.display())]
    Corrupt { digest: Digest, found: Digest, moved_to: PathBuf },
    #[error("cannot {doing} blob `{}`: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
}

impl BlobError {
    /// The blob is not there or not intact: making it again helps.
    pub const fn is_miss(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Corrupt { .. })
    }

    /// The blob, if it [is a miss](Self::is_miss).
    pub const fn missed(&self) -> Option<Digest> {
        match self {
            Self::Missing { digest } | Self::Corrupt { digest, .. } => Some(*digest),
            Self::Io { .. } => None,
        }
    }

    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }
}

impl Cas {
    /// Opens, and where needed creates, the blobs in the cache folder `dir` (`.kforge-cache`, not its `cas`).
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let cas = Self { blobs: dir.join(BLOBS), temporary: dir.join(TEMPORARY), corrupt: dir.join("corrupt") };
        for folder in [&cas.blobs, &cas.temporary] {
            disk::create_folder(folder).map_err(StoreError::io("create the folder", folder))?;
        }
        Ok(cas)
    }

    /// Where the blob is, if it is there. Never write to it.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.blobs.join(&name[..2]).join(&name[2..])
    }

    /// A file of that name exists. Its content may still be wrong: see [`Cas::check`].
    pub fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    /// Stores `bytes`. A blob that is already there is left alone, whoever wrote it, but counts as just changed: whoever collects
    /// what no record names ([`super::gc`]) must know that one is about to.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        let path = self.path(&digest);
        if fs::symlink_metadata(&path).is_ok_and(|it| it.is_file() && it.len() == bytes.len() as u64 && sealed(&it)) {
            // Best effort: what is collected too early is a miss.
            seal(&path).unwrap_or(());
            return Ok(digest);
        }
        if let Some(folder) = path.parent() {
            disk::create_folder(folder).map_err(StoreError::io("create the folder", folder))?;
        }
        self.write(&path, bytes).map_err(StoreError::io("write the blob", &path))?;
        Ok(digest)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = disk::Temporary::create(&self.temporary, "blob-")?;
        file.write(bytes)?;
        file.set_mode(0o444)?;
        file.set_modified(sealed_time())?;
        // Before the rename: after a power cut the name must not stand for content that never reached the disk. The
        // folder itself is not synced: a lost name is a miss.
        file.sync()?;
        file.persist(path)?;
        Ok(())
    }

    /// The content, whose digest was just checked. A corrupt blob is moved away.
    pub fn get(&self, digest: &Digest) -> Result<Vec<u8>, BlobError> {
        let path = self.path(digest);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if is_absent(&error) => return Err(BlobError::Missing { digest: *digest }),
            Err(error) => return Err(BlobError::io("read", &path)(error)),
        };
        let found = Digest::of(&bytes);
        if found == *digest { Ok(bytes) } else { Err(self.move_away(digest, &path, found)) }
    }

    /// Whether the blob is there and intact: one `stat`, unless something touched the file since it was sealed; then the content
    /// is hashed, and a good blob sealed again.
    pub fn check(&self, digest: &Digest) -> Result<(), BlobError> {
        let path = self.path(digest);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() && sealed(&metadata) => Ok(()),
            Ok(_) => {
                self.get(digest)?;
                // Best effort: an unsealed good blob only costs the next check its hash.
                seal(&path).unwrap_or(());
                Ok(())
            }
            Err(error) if is_absent(&error) => Err(BlobError::Missing { digest: *digest }),
            Err(error) => Err(BlobError::io("look at", &path)(error)),
        }
    }

    fn move_away(&self, digest: &Digest, path: &Path, found: Digest) -> BlobError {
        let moved_to = self.corrupt.join(digest.to_string());
        let moved = disk::create_folder(&self.corrupt).and_then(|()| disk::rename(path, &moved_to));
        match moved {
            Err(error) if !is_absent(&error) => return BlobError::io("move away the corrupt", path)(error),
            _ => {}
        }
        // Another process may have replaced the bad blob between our reading and our moving.
        if fs::read(&moved_to).is_ok_and(|it| Digest::of(&it) == *digest) {
            disk::rename(&moved_to, path).unwrap_or(());
        }
        BlobError::Corrupt { digest: *digest, found, moved_to }
    }

    /// The folder of half-written files, on the same file system as all that the store keeps.
    pub(super) fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Removes what killed writers left in `tmp/`.
    pub(super) fn sweep(&self) -> Result<(), StoreError> {
        for (path, _) in self.abandoned()? {
            disk::remove_file(&path).unwrap_or(());
        }
        Ok(())
    }

    /// The files that killed writers left in `tmp/`, with their sizes.
    pub(super) fn abandoned(&self) -> Result<Vec<(PathBuf, u64)>, StoreError> {
        let entries = fs::read_dir(&self.temporary).map_err(StoreError::io("list", &self.temporary))?;
        let now = unix_now();
        let abandoned = entries.flatten().filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            // The change time: the modification time is that of every blob once the file is sealed.
            let age = now.checked_sub(metadata.ctime().try_into().ok()?)?;
            (age > ABANDONED.as_secs()).then(|| (entry.path(), metadata.len()))
        });
        Ok(abandoned.collect())
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn sealed(metadata: &fs::Metadata) -> bool {
    metadata.mtime() == SEALED
}

fn seal(path: &Path) -> io::Result<()> {
    disk::set_modified(&File::open(path)?, sealed_time())
}

fn sealed_time() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(SEALED as u64)
}
