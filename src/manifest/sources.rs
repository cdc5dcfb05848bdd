//! What loading a project looked at: whoever wants to know whether loading it again would say the same, or when to look again,
//! need not know how files are found.

use crate::{digest::Digest, facts::Facts};
use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Files and folders, relative to the project's root. Complete for a broken project too.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Before anything was looked at.
    start: SystemTime,
    pub seen: Vec<Source>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub path: PathBuf,
    pub what: Seen,
    /// If equal facts mean equal content; `None` also where there is nothing.
    pub facts: Option<Facts>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Of what was read.
    File(Digest),
    /// Its entries were matched against a pattern.
    Folder,
    /// It is named and not there, or cannot be read.
    Nothing,
}

impl Default for Sources {
    fn default() -> Self {
        Self { start: SystemTime::now(), seen: Vec::new() }
    }
}

impl Sources {
    /// A time before anything was looked at.
    pub const fn start(&self) -> SystemTime {
        self.start
    }

    /// The files that no longer say what was read. Folders are not compared: an editor's temporary file changes them too.
    pub fn changed(&self, root: &Path) -> Vec<&Path> {
        let holds = |source: &&Source| {
            let path = root.join(&source.path);
            match source.what {
                Seen::File(digest) => {
                    let same = source.facts.is_some() && Facts::at(&path) == source.facts;
                    same || fs::read(&path).is_ok_and(|it| Digest::of(&it) == digest)
                }
                Seen::Nothing => Facts::at(&path).is_none(),
                Seen::Folder => true,
            }
        };
        self.seen.iter().filter(|it| !holds(it)).map(|it| it.path.as_path()).collect()
    }

    /// `facts` are those of before the file was read.
    pub(super) fn file(&mut self, path: &Path, facts: Facts, content: &[u8]) {
        self.add(path, Seen::File(Digest::of(content)), Some(facts));
    }

    /// Called before the folder is listed.
    pub(super) fn folder(&mut self, root: &Path, path: &Path) {
        let facts = Facts::at(&root.join(path));
        self.add(path, if facts.is_some() { Seen::Folder } else { Seen::Nothing }, facts);
    }

    pub(super) fn nothing(&mut self, path: &Path) {
        self.add(path, Seen::Nothing, None);
    }

    fn add(&mut self, path: &Path, what: Seen, facts: Option<Facts>) {
        let facts = facts.and_then(|it| it.lasting(self.start));
        self.seen.push(Source { path: path.to_owned(), what, facts });
    }
}
