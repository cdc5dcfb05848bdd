//! Locks between processes: `flock` on files that are never unlinked, so that two processes cannot hold two files of one name.
//! The system releases a lock when its process dies, however it dies. The file's content names the holder, for messages only.

use super::disk;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::Serialize;
use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

/// How often a waiting process tries again: short beside any build, long beside the try itself (a few microseconds).
const POLL: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 20 }); // tests wait for each other often

/// Who has a lock, as far as the lock file tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Holder {
    pub pid: u32,
    pub command: String,
    /// Seconds since 1970.
    pub since_unix: u64,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == 0 {
            return f.write_str("another process");
        }
        let seconds = unix_now().saturating_sub(self.since_unix);
        write!(f, "process {} (`{}`, for {seconds} s)", self.pid, self.command)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("`{}` is held by {holder}; gave up after {} s", path.display(), waited.as_secs())]
    Held { path: PathBuf, holder: Holder, waited: Duration },
    #[error("cannot lock `{}`: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A lock that this process holds until the value is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Who may hold a lock beside its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    Alone,
    /// Others that share it.
    Shared,
}

impl Lock {
    /// Takes the lock at `path`, waiting at most `wait` (`None`: as long as it takes). `on_wait` is called when the waiting
    /// begins and again whenever another process turns out to be the holder.
    pub fn acquire(
        path: &Path,
        sharing: Sharing,
        wait: Option<Duration>,
        mut on_wait: impl FnMut(&Holder),
    ) -> Result<Self, LockError> {
        let start = Instant::now();
        let mut told = None;
        loop {
            let holder = match Self::try_acquire(path, sharing)? {
                Ok(lock) => return Ok(lock),
                Err(holder) => holder,
            };
            let waited = start.elapsed();
            if wait.is_some_and(|it| waited >= it) {
                return Err(LockError::Held { path: path.to_owned(), holder, waited });
            }
            if told.as_ref() != Some(&holder) {
                on_wait(&holder);
                told = Some(holder);
            }
            thread::sleep(wait.map_or(POLL, |it| POLL.min(it - waited)));
        }
    }

    /// Takes the lock at `path` if nobody is in the way, or says who is.
    pub fn try_acquire(path: &Path, sharing: Sharing) -> Result<Result<Self, Holder>, LockError> {
        let failed = |source| LockError::Io { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            disk::create_folder(folder).map_err(failed)?;
        }
        // Not truncated here: until the lock is ours, the content is the holder's.
        let mut file = disk::open(path).map_err(failed)?;
        let operation = match sharing {
            Sharing::Alone => FlockOperation::NonBlockingLockExclusive,
            Sharing::Shared => FlockOperation::NonBlockingLockShared,
        };
        match flock(&file, operation) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(Err(read_holder(&mut file))),
            Err(error) => return Err(failed(error.into())),
        }
        // A disk without room for the name must not keep anyone from making room.
        write_holder(&file).unwrap_or(());
        Ok(Ok(Self { _file: file }))
    }
}

/// Three lines: pid, seconds since 1970, command.
fn write_holder(file: &File) -> io::Result<()> {
    let command = std::env::args_os().map(|it| it.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    let command = command.replace(['\n', '\r'], " ");
    disk::cut(file, 0)?;
    disk::write_at(file, format!("{}\n{}\n{command}\n", std::process::id(), unix_now()).as_bytes(), 0)
}

/// What the file says; pid 0 when it says nothing readable, as in the moment between another's locking and writing.
fn read_holder(file: &mut File) -> Holder {
    let mut text = Vec::new();
    file.take(64 << 10).read_to_end(&mut text).unwrap_or(0);
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut lines = text.lines();
    let mut number = || lines.next().and_then(|it| it.parse::<u64>().ok());
    let (pid, since) = (number(), number());
    Holder {
        pid: pid.and_then(|it| it.try_into().ok()).unwrap_or(0),
        since_unix: since.unwrap_or(0),
        command: lines.next().unwrap_or("unknown command").to_owned(),
    }
}

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |it| it.as_secs())
}
