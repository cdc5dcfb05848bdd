//! `out/<block>@<target>/`: copies of blobs under names that a person opens. Never read by the build itself.
//!
//! Each folder has a stamp file that says which blob each file was copied from and what the file looked like then, so that an
//! unchanged folder costs one read and one `stat` a file, and a file that somebody edited or removed is put back.

use super::{
    FOLDER,
    cas::{BlobError, Cas},
    clean::accept_absent,
    disk,
};
use crate::digest::Digest;
use std::{
    fmt::Write as _,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

/// Where the folders of the project at `root` are.
pub fn folder(root: &Path) -> PathBuf {
    root.join(FOLDER).join(OUT)
}

pub(super) const OUT: &str = "out";

const STAMP: &str = ".kforge-stamp";

#[derive(Debug, thiserror::Error)]
pub enum OutError {
    #[error("cannot write `{}`: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("cannot write `{}`: {source}", path.display())]
    Blob { path: PathBuf, source: BlobError },
    #[error("`{name}` is not a plain file name")]
    BadName { name: String },
}

/// Makes `folder` hold these blobs under these names. Files that an earlier call wrote and that are no longer wanted are
/// removed; files of other origin stay, and so does what somebody made of ours. Returns how many files were written or removed.
pub fn materialise(cas: &Cas, folder: &Path, files: &[(&str, Digest)]) -> Result<usize, OutError> {
    if let Some((name, _)) = files.iter().find(|it| !is_plain(it.0)) {
        return Err(OutError::BadName { name: (*name).to_owned() });
    }
    let stamp_path = folder.join(STAMP);
    let old = fs::read_to_string(&stamp_path).unwrap_or_default();
    let mut changed = 0;
    let mut stamp = String::new();
    for (name, digest) in files {
        let path = folder.join(name);
        let failed = |source| OutError::Io { path: path.clone(), source };
        let current = state(&path);
        let line = match current.map(|it| line(name, digest, &it)) {
            Some(line) if old.lines().any(|it| it == line) => line,
            _ => {
                let bytes = cas.get(digest).map_err(|source| OutError::Blob { path: path.clone(), source })?;
                // The state of what was compared or written, and not of what another build may have put there since.
                let state = match current {
                    Some(state) if fs::read(&path).ok().as_ref() == Some(&bytes) => state,
                    _ => {
                        disk::create_folder(folder).map_err(failed)?;
                        changed += 1;
                        replace(cas.temporary(), &path, &bytes).map_err(failed)?
                    }
                };
                line(name, digest, &state)
            }
        };
        writeln!(stamp, "{line}").unwrap_or(());
    }
    for (gone, _) in untouched(folder) {
        let wanted = files.iter().any(|it| gone.ends_with(it.0));
        if !wanted && disk::remove_file(&gone).is_ok() {
            changed += 1;
        }
    }
    if stamp != old {
        disk::create_folder(folder)
            .and_then(|()| replace(cas.temporary(), &stamp_path, stamp.as_bytes()).map(drop))
            .map_err(|source| OutError::Io { path: stamp_path, source })?;
    }
    Ok(changed)
}

/// The blob that the file `name` in `folder` was copied from, whatever somebody made of the file since.
pub fn copied_from(folder: &Path, name: &str) -> Option<Digest> {
    stamped(folder).into_iter().find(|it| it.0 == name).map(|it| it.1)
}

/// The files in `folder` that are copies, by name, each with the blob that it was copied from.
pub fn stamped(folder: &Path) -> Vec<(String, Digest)> {
    let stamp = fs::read_to_string(folder.join(STAMP)).unwrap_or_default();
    stamp.lines().filter_map(stamped_line).map(|(digest, name)| (name.to_owned(), digest)).collect()
}

fn stamped_line(line: &str) -> Option<(Digest, &str)> {
    let mut parts = line.splitn(4, ' ');
    let digest = parts.next()?.parse().ok()?;
    Some((digest, parts.nth(2).filter(|it| is_plain(it))?))
}

/// The copies in `folder` that nobody touched since they were made, with their sizes.
pub(super) fn untouched(folder: &Path) -> Vec<(PathBuf, u64)> {
    let stamp = fs::read_to_string(folder.join(STAMP)).unwrap_or_default();
    let untouched = stamp.lines().filter_map(|it| {
        let (digest, name) = stamped_line(it)?;
        let path = folder.join(name);
        let state = state(&path)?;
        (line(name, &digest, &state) == it).then_some((path, state.0))
    });
    untouched.collect()
}

/// Removes these copies and the stamp, and the folder if nothing else is in it. Without a stamp it is not ours.
pub(super) fn remove(folder: &Path, copies: impl Iterator<Item = PathBuf>) -> io::Result<()> {
    let stamp = folder.join(STAMP);
    if !stamp.is_file() {
        return Ok(());
    }
    for path in copies {
        accept_absent(disk::remove_file(&path))?;
    }
    accept_absent(disk::remove_file(&stamp))?;
    match disk::remove_folder(folder) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        removed => accept_absent(removed),
    }
}

/// Lets the next [`materialise`] look at the content of these files, whatever the stamp says of them.
pub(super) fn distrust(cas: &Cas, folder: &Path, names: &[String]) -> io::Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let path = folder.join(STAMP);
    let mut stamp = String::new();
    for old in fs::read_to_string(&path)?.lines() {
        let distrusted = stamped_line(old).filter(|it| names.iter().any(|name| name == it.1));
        let new = distrusted.map_or_else(|| old.to_owned(), |(digest, name)| line(name, &digest, &NEVER));
        writeln!(stamp, "{new}").unwrap_or(());
    }
    replace(cas.temporary(), &path, stamp.as_bytes()).map(drop)
}

/// A state that no file has: it was not modified before time began.
const NEVER: State = (0, i128::MIN);

/// `digest size mtime name`; the name last, because it may contain spaces.
fn line(name: &str, digest: &Digest, state: &State) -> String {
    format!("{digest} {} {} {name}", state.0, state.1)
}

/// Size, and modification time in nanoseconds.
type State = (u64, i128);

fn state(path: &Path) -> Option<State> {
    let metadata = fs::symlink_metadata(path).ok()?;
    metadata.is_file().then(|| state_of(&metadata))
}

fn state_of(metadata: &fs::Metadata) -> State {
    (metadata.len(), i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()))
}

/// A name without folders: what comes from a record must not lead out of the folder.
fn is_plain(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(it)), None) if it == name)
        && name != STAMP
        && !name.contains('\n')
}

/// Replaces the file at `path` by rename: a reader sees the old content or the new, nothing between. Not synced: what it
/// is used for can be made again. `temporary` is the store's `tmp/`, where leftovers of killed processes are swept.
/// Returns the state of the file that was written.
pub(super) fn replace(temporary: &Path, path: &Path, bytes: &[u8]) -> io::Result<State> {
    let mut file = disk::Temporary::create(temporary, "file-")?;
    file.write(bytes)?;
    file.set_mode(0o644)?;
    Ok(state_of(&file.persist(path)?.metadata()?))
}
