//! Small files that remember what was found out, so that it need not be found out again. Losing one costs time and nothing else:
//! what cannot be read, or is not what was written, is as good as absent.

use super::{FOLDER, Store, cas::Cas, disk, out};
use crate::digest::Digest;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

const MEMO: &str = "memo";

/// Length of the digest that every memo begins with.
const CHECKSUM: usize = 32;

/// What was remembered under this name in the project at `root`.
pub fn recall(root: &Path, name: &str) -> Option<Vec<u8>> {
    read(&path(&root.join(FOLDER), name))
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = fs::read(path).ok()?;
    let content = bytes.split_off(CHECKSUM.min(bytes.len()));
    (Digest::of(&content).as_bytes() == bytes.as_slice()).then_some(content)
}

impl Store {
    /// Forgets everything: what it rests on turned out to be other than it looks.
    pub fn forget_all(&self) -> io::Result<()> {
        match disk::remove_all(&self.dir.join(MEMO)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Remembers `content` under this plain file name.
    pub fn remember(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.cas.remember(name, content)
    }
}

/// For a worker, which knows a project's blobs and nothing else of it.
impl Cas {
    /// What was remembered under this name beside these blobs.
    pub fn recall(&self, name: &str) -> Option<Vec<u8>> {
        read(&path(self.dir(), name))
    }

    /// Remembers `content` under this plain file name.
    pub fn remember(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let path = path(self.dir(), name);
        if let Some(folder) = path.parent() {
            disk::create_folder(folder)?;
        }
        out::replace(self.temporary(), &path, &[Digest::of(content).as_bytes(), content].concat()).map(drop)
    }

    fn dir(&self) -> &Path {
        self.temporary().parent().unwrap_or(Path::new("."))
    }
}

fn path(dir: &Path, name: &str) -> PathBuf {
    dir.join(MEMO).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_was_never_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(folder.path()).unwrap();
        assert_eq!(recall(folder.path(), "it"), None);
        store.remember("it", b"something").unwrap();
        assert_eq!(recall(folder.path(), "it").as_deref(), Some(&b"something"[..]));
        let path = path(store.dir(), "it");
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(recall(folder.path(), "it"), None, "{length} bytes");
        }
        for bit in 0..8 * whole.len() {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, bytes).unwrap();
            assert_eq!(recall(folder.path(), "it"), None, "bit {bit}");
        }
        fs::write(&path, &whole).unwrap();
        store.forget_all().unwrap();
        store.forget_all().unwrap();
        assert_eq!(recall(folder.path(), "it"), None);
    }
}
