//! `.kforge-cache/`: blobs, action records, locks, and `out/`. The only writer of that folder.
//!
//! Nothing in here knows what a kernel, a step or a manifest is: it keeps bytes by digest ([`cas`]), what each action made
//! ([`records`]), who is busy ([`lock`]), and the files that people open ([`out`]). Whatever a crash, a full disk or a flipped
//! bit does to the folder, the worst outcome is a miss that is named and rebuilt, never a wrong result.

pub mod cas;
pub mod key;

use std::{io, path::PathBuf};

/// The store cannot do its work: the environment's fault (disk, permissions) or a folder written by a newer kforge.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {doing} `{}`: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "`{}` has store layout {found}, but this kforge knows layouts up to {known}\n\
         hint: use the newer kforge that wrote it, or remove the folder: it holds nothing that cannot be rebuilt",
        path.display()
    )]
    NewerLayout { path: PathBuf, found: u32, known: u32 },
    #[error("`{}` does not hold a layout version: {content:?}\nhint: remove the folder `{}`; it holds nothing that cannot be rebuilt",
        path.display(), path.parent().unwrap_or(path).display())]
    BadVersionFile { path: PathBuf, content: String },
}

impl StoreError {
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}
