//! `.kforge-cache/`: blobs, action records, locks, and `out/`. The only writer of that folder.
//!
//! Nothing in here knows what a kernel, a step or a manifest is: it keeps bytes by digest ([`cas`]), what each action made
//! ([`records`]), who is busy ([`lock`]), and the files that people open ([`out`]). Whatever a crash, a full disk or a flipped
//! bit does to the folder, the worst outcome is a miss that is named and rebuilt, never a wrong result.

pub mod cas;
mod clean;
mod disk;
pub mod gc;
pub mod key;
pub mod lock;
pub mod memo;
pub mod out;
pub mod outputs;
pub mod records;
pub mod survey;
#[cfg(test)]
mod tests;
pub mod verify;

use crate::digest::Digest;
use cas::Cas;
use lock::{Holder, Lock, LockError, Sharing};
use records::Records;
use serde::Serialize;
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// The layout this kforge reads and writes. An older one is upgraded in place or, since nothing in it is precious, emptied.
pub const LAYOUT_VERSION: u32 = 1;

/// The folder's name in a project's root.
pub const FOLDER: &str = ".kforge-cache";

/// Where files are written before they are renamed, in the cache folder.
const TEMPORARY: &str = "tmp";

/// The store cannot do its work: the environment's fault (disk, permissions), or the folder was written by a newer kforge.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {doing} `{}`: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "`{}` has store layout {found}, but this kforge knows layouts up to {known}; \
         use the newer kforge that wrote it, or remove the folder: it holds nothing that cannot be rebuilt",
        path.display()
    )]
    NewerLayout { path: PathBuf, found: u32, known: u32 },
}

impl StoreError {
    fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}

/// Something was wrong with the folder, and was put right at the price of rebuilding. To be shown, not to be acted on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "notice", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Notice {
    #[error("the build records are unreadable ({why}); moved to `{}`, starting without them", moved_to.display())]
    RecordsReset { why: String, moved_to: PathBuf },
    #[error("{bytes} bytes of the build records are damaged; the records in them are rebuilt (old file: `{}`)", kept.display())]
    RecordsDamaged { bytes: u64, kept: PathBuf },
    #[error("`{}` held {found:?} instead of a layout version; written anew", path.display())]
    VersionRewritten { path: PathBuf, found: String },
}

/// One project's cache folder.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    pub cas: Cas,
    pub records: Records,
}

impl Store {
    /// Opens, and where needed creates, the cache folder in the project's root. Takes no lock: readers never wait.
    pub fn open(root: &Path) -> Result<(Self, Vec<Notice>), StoreError> {
        let dir = root.join(FOLDER);
        let mut notices = Vec::new();
        disk::create_folder(&dir).map_err(StoreError::io("create the folder", &dir))?;
        notices.extend(check_layout(&dir)?);
        let cas = Cas::open(&dir)?;
        let (records, damage) = Records::open(&dir)?;
        notices.extend(damage);
        Ok((Self { dir, cas, records }, notices))
    }

    /// The cache folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits until no other process builds in this project, and keeps all others out of it.
    pub fn lock_out_builds(
        &self,
        wait: Option<Duration>,
        on_wait: impl FnMut(&Holder),
    ) -> Result<(Lock, Vec<Notice>), BuildLockError> {
        let lock = Lock::acquire(&self.build_lock_path(), Sharing::Alone, wait, on_wait)?;
        Ok((lock, self.entered()?))
    }

    /// Sees what other processes recorded and removes what those that were killed left behind.
    pub fn entered(&self) -> Result<Vec<Notice>, StoreError> {
        let notices = self.records.refresh()?;
        self.cas.sweep()?;
        Ok(notices)
    }

    /// The lock that builds share and [`Store::lock_out_builds`] takes alone.
    pub fn build_lock_path(&self) -> PathBuf {
        self.dir.join("locks").join("build")
    }

    /// The lock of the step with this key while it is made. Steps share 4096 locks, because lock files are never removed: two
    /// that happen to have the same one wait for each other.
    pub fn step_lock_path(&self, key: &Digest) -> PathBuf {
        let name = key.to_string();
        self.dir.join("locks").join("steps").join(&name[..3])
    }

    /// The folder of what a person opens, e.g. `.kforge-cache/out/gpt2-small-s128@cpu`.
    pub fn out(&self, block_at_target: &str) -> PathBuf {
        self.dir.join(out::OUT).join(block_at_target)
    }

    /// Makes [`Store::out`] hold exactly these blobs under these names ([`out::materialise`]). Returns how many files changed.
    pub fn materialise(&self, block_at_target: &str, files: &[(&str, Digest)]) -> Result<usize, out::OutError> {
        out::materialise(&self.cas, &self.out(block_at_target), files)
    }
}

/// The build lock was not taken, or the store failed right behind it.
#[derive(Debug, thiserror::Error)]
pub enum BuildLockError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Refuses a folder of a newer layout. The file says its number twice, so that a flipped bit does not make a newer one. It is
/// advisory: missing or unreadable content is written anew.
fn check_layout(dir: &Path) -> Result<Option<Notice>, StoreError> {
    let path = dir.join("VERSION");
    let found = match fs::read(&path) {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).trim().chars().take(40).collect::<String>()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(StoreError::io("read", path)(error)),
    };
    let mut numbers = found.iter().flat_map(|it| it.lines()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(second)), None) if first == second && first > LAYOUT_VERSION => {
            return Err(StoreError::NewerLayout { path: dir.to_owned(), found: first, known: LAYOUT_VERSION });
        }
        (Some(Ok(first)), Some(Ok(second)), None) if first == second => return Ok(None),
        // What versions before wrote, or what is left of the two lines.
        (Some(Ok(only)), None, None) if only <= LAYOUT_VERSION => return Ok(None),
        _ => {}
    }
    let temporary = dir.join(TEMPORARY);
    disk::create_folder(&temporary).map_err(StoreError::io("create the folder", &temporary))?;
    for (name, content) in [
        // Version control and backups should leave the folder alone.
        (".gitignore", "*\n"),
        (
            "CACHEDIR.TAG",
            "Signature: 8a477f597d28d172789f06886806bc55\n# Made by kforge; everything here can be rebuilt.\n",
        ),
        ("VERSION", &format!("{LAYOUT_VERSION}\n{LAYOUT_VERSION}\n")),
    ] {
        let path = dir.join(name);
        out::replace(&temporary, &path, content.as_bytes()).map_err(StoreError::io("write", path))?;
    }
    Ok(found.map(|found| Notice::VersionRewritten { path, found }))
}
