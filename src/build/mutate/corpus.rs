//! The corpus file that a run of `kforge mutate` reads and adds to.

use super::trial::Trial;
use crate::{
    manifest::{Project, ProjectErrors, load_corpus},
    protocol::{
        corpus::{CORPUS_VERSION, Case, Corpus},
        mutation::Fate,
    },
};
use std::{
    io,
    path::{Path, PathBuf},
};

pub struct Open {
    path: Option<PathBuf>,
    corpus: Corpus,
}

impl Open {
    /// The file `given` on the command line, relative to `directory`, or else the project's.
    ///
    /// # Errors
    /// When a file that was given cannot be read or is no corpus.
    pub fn new(project: &Project, directory: &Path, given: Option<&Path>) -> Result<Self, ProjectErrors> {
        let (path, cases) = match given {
            None => (project.corpus.as_ref().map(|it| project.root.join(it)), project.cases.clone()),
            Some(given) => {
                let path = directory.join(given);
                let cases = load_corpus(&path)?;
                (Some(path), cases)
            }
        };
        Ok(Self { path, corpus: Corpus { version: CORPUS_VERSION, cases } })
    }

    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    pub fn cases(&self) -> &[Case] {
        &self.corpus.cases
    }

    /// Adds the cases that alone rejected a mutant in a run of this seed, and writes the file if there is one and something is
    /// new. Returns how many were added.
    pub fn add(&mut self, trials: &[Trial], seed: u64) -> io::Result<usize> {
        let Some(path) = &self.path else { return Ok(0) };
        let before = self.corpus.cases.len();
        for trial in trials.iter().filter(|it| matches!(it.fate, Fate::Killed { .. })) {
            for witness in &trial.witnesses {
                let found = format!("{}/{}", trial.block, trial.mutant.id);
                let (op, case) = (witness.op.clone(), witness.case.clone());
                self.corpus.add(Case { gate: witness.gate, op, case, seed, found });
            }
        }
        let added = self.corpus.cases.len() - before;
        if added > 0 {
            let text = self.corpus.to_toml().map_err(io::Error::other)?;
            // A reader, or a kill, sees the old file or the new one.
            let folder = path.parent().unwrap_or(Path::new("."));
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            io::Write::write_all(&mut file, text.as_bytes())?;
            file.persist(path).map_err(|it| it.error)?;
        }
        Ok(added)
    }
}
