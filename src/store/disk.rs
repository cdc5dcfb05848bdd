//! Every change that the store makes on disk goes through here, so that the tests can cut one off: they kill the process before
//! the n-th change or in the middle of it, or let the disk be full from then on (`tests/disk.rs`). Reads are not here.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    time::SystemTime,
};
use tempfile::NamedTempFile;
use walkdir::WalkDir;

/// Told before each change; may refuse it. `bytes` is how many are about to be written, and the answer how many of them are.
#[cfg(not(test))]
fn before(_change: &'static str, bytes: usize) -> io::Result<usize> {
    Ok(bytes)
}

#[cfg(test)]
use super::tests::disk::before;

/// What a killed process leaves of a write is told here, after it was written.
#[cfg(not(test))]
fn torn() {}

#[cfg(test)]
use super::tests::disk::torn;

/// Writes all of `bytes` by `write`, which takes the bytes and where they begin.
fn write_by(change: &'static str, bytes: &[u8], mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let allowed = before(change, bytes.len())?;
    write(bytes.get(..allowed).unwrap_or(bytes))?;
    if allowed < bytes.len() {
        torn();
        return Err(io::ErrorKind::StorageFull.into());
    }
    Ok(())
}

/// Also where folders above it are missing; one that is there is no change.
pub fn create_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    before("create folder", 0)?;
    fs::create_dir_all(path)
}

pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    before("rename", 0)?;
    fs::rename(from, to)
}

pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let bytes = fs::read(from)?;
    write_by("copy", &bytes, |it| fs::write(to, it))
}

pub fn remove_file(path: &Path) -> io::Result<()> {
    before("remove file", 0)?;
    fs::remove_file(path)
}

/// The folder must be empty.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    before("remove folder", 0)?;
    fs::remove_dir(path)
}

/// Removes whatever is there; links are not followed.
pub fn remove_all(path: &Path) -> io::Result<()> {
    for entry in WalkDir::new(path).contents_first(true) {
        let entry = entry.map_err(|error| match error.io_error() {
            Some(inner) => io::Error::new(inner.kind(), error.to_string()),
            None => io::Error::other(error),
        })?;
        let removed = if entry.file_type().is_dir() { remove_folder(entry.path()) } else { remove_file(entry.path()) };
        match removed {
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound && entry.depth() > 0 => {}
            removed => removed?,
        }
    }
    Ok(())
}

/// Opens for writing; creates the file where it is missing, and never cuts what is in it.
pub fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    before("create file", 0)?;
    options.create(true).truncate(false).open(path)
}

/// Cuts the file to `length` bytes; one that has them is not touched.
pub fn cut(file: &File, length: u64) -> io::Result<()> {
    if file.metadata()?.len() == length {
        return Ok(());
    }
    before("cut", 0)?;
    file.set_len(length)
}

pub fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    write_by("write", bytes, |it| file.write_all_at(it, offset))
}

pub fn set_modified(file: &File, time: SystemTime) -> io::Result<()> {
    before("set time", 0)?;
    file.set_modified(time)
}

/// A new file under a name of its own, removed when dropped unless it was given its place.
pub struct Temporary(NamedTempFile);

impl Temporary {
    pub fn create(folder: &Path, prefix: &str) -> io::Result<Self> {
        before("create temporary file", 0)?;
        tempfile::Builder::new().prefix(prefix).tempfile_in(folder).map(Self)
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        write_by("write", bytes, |it| self.0.write_all(it))
    }

    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        before("set mode", 0)?;
        self.0.as_file().set_permissions(Permissions::from_mode(mode))
    }

    pub fn set_modified(&self, time: SystemTime) -> io::Result<()> {
        set_modified(self.0.as_file(), time)
    }

    /// Returns when the content is on the disk.
    pub fn sync(&self) -> io::Result<()> {
        before("sync", 0)?;
        self.0.as_file().sync_all()
    }

    /// Replaces whatever file is at `path`.
    pub fn persist(self, path: &Path) -> io::Result<File> {
        before("rename", 0)?;
        Ok(self.0.persist(path)?)
    }
}
