//! Wrong manifests: the project's own files with one value changed, loaded from a folder of their own. A manifest that says
//! what cannot be must be refused before anything is built.

use super::trial::Trial;
use crate::{
    manifest::{self, Project},
    protocol::mutation::{Evidence, Family, Fate, KilledBy, Mutant},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Instant,
};
use toml::{Table, Value};

/// A project's files as tables.
struct Files(Vec<(PathBuf, Table)>);

/// One mistake.
pub struct Wrong {
    pub mutant: Mutant,
    files: Files,
}

/// A key, what is wrong with its value, and the value.
type WrongValue = (&'static str, &'static str, fn() -> Value);

/// What a block must not have.
const BLOCK_VALUES: [WrongValue; 9] = [
    ("dtype", "a type that the target lacks", || "f8".into()),
    ("kind", "no kind of block", || "convolution".into()),
    ("targets", "no such target", || vec!["tpu"].into()),
    ("pipeline", "no such pipeline", || "fastest".into()),
    ("norm-eps", "no epsilon", || 0.0.into()),
    ("heads", "does not divide the width", || 7.into()),
    ("seq", "no tokens", || 0.into()),
    ("m", "fewer than no rows", || (-1).into()),
    ("tile-m", "a knob of a plan, and none of a block", || 1024.into()),
];

/// Every mistake in every block that has the key, and those in what all blocks share.
pub fn mutations(project: &Project) -> io::Result<Vec<Wrong>> {
    let files = Files::read(project)?;
    let mut all = Vec::new();
    let mut push = |id: String, kind: &str, description: String, files: Files| {
        let kind = format!("manifest/{kind}");
        let mutant = Mutant { id: format!("manifest/{id}"), family: Family::Plan, kind, stage: None, description };
        all.push(Wrong { mutant, files });
    };
    for (file, block) in files.blocks() {
        let table = files.0.get(file).and_then(|it| it.1.get("block")?.get(&block)?.as_table());
        for (key, what, value) in BLOCK_VALUES {
            // A key that the kind of block does not have would be refused for that.
            let own = table.is_some_and(|it| it.contains_key(key));
            if own || matches!(key, "dtype" | "targets" | "pipeline" | "tile-m") {
                let value = value();
                let description = format!("`{key}` = {value}: {what}");
                let edited = files.with(file, &["block", &block], key, value);
                push(format!("{block}/{key}"), key, description, edited);
            }
        }
    }
    let backend = files.with(0, &["target", "cpu"], "backend", "tpu".into());
    push("backend".to_owned(), "backend", "`backend` = \"tpu\": no backend".to_owned(), backend);
    let strategy = files.with(0, &["tuning", "default"], "strategy", "oracle".into());
    push("strategy".to_owned(), "strategy", "`strategy` = \"oracle\": no strategy".to_owned(), strategy);
    for (id, passes) in [("pass-unknown", vec!["fold-constants", "fuse-everything"]), ("pass-empty", vec![""])] {
        let edited = files.with(0, &["pipeline", "default"], "passes", passes.into());
        push(id.to_owned(), id, "a pass that does not exist".to_owned(), edited);
    }
    Ok(all)
}

impl Wrong {
    /// Loads it, as a build would.
    pub fn judge(self) -> io::Result<Trial> {
        let start = Instant::now();
        let folder = tempfile::tempdir()?;
        self.files.write(folder.path())?;
        let fate = match manifest::load(folder.path()) {
            Ok(_) => Fate::Survived,
            Err(errors) => {
                let problems: Vec<_> = errors.problems().iter().map(|it| it.kind.to_string()).collect();
                let message = problems.join("; ");
                let evidence = Evidence { gate: None, stage: None, case: "reading the manifest".to_owned(), message };
                Fate::Killed { by: KilledBy::Validation, evidence, gates: Vec::new() }
            }
        };
        let block = "manifest".to_owned();
        Ok(Trial { block, mutant: self.mutant, fate, stages: Vec::new(), witnesses: Vec::new(), wall: start.elapsed() })
    }
}

impl Files {
    fn read(project: &Project) -> io::Result<Self> {
        let table = |path: &PathBuf| {
            let text = fs::read_to_string(project.root.join(path))?;
            let table = text.parse::<Table>().map_err(|it| io::Error::other(format!("{}: {it}", path.display())))?;
            Ok((path.clone(), table))
        };
        project.files.iter().map(table).collect::<io::Result<_>>().map(Self)
    }

    /// The file and the name of every block.
    fn blocks(&self) -> Vec<(usize, String)> {
        let names = |(index, (_, table)): (usize, &(PathBuf, Table))| {
            let names = table.get("block").and_then(Value::as_table).map(|it| it.keys().cloned().collect::<Vec<_>>());
            names.unwrap_or_default().into_iter().map(move |it| (index, it))
        };
        self.0.iter().enumerate().flat_map(names).collect()
    }

    /// The same files, one key of one table of the file at `file` set.
    fn with(&self, file: usize, path: &[&str], key: &str, value: Value) -> Self {
        let mut files = self.0.clone();
        if let Some((_, root)) = files.get_mut(file) {
            let mut table = root;
            for name in path {
                let entry = table.entry(*name).or_insert_with(|| Value::Table(Table::new()));
                match entry {
                    Value::Table(inner) => table = inner,
                    _ => return Self(files),
                }
            }
            table.insert(key.to_owned(), value);
        }
        Self(files)
    }

    fn write(&self, folder: &Path) -> io::Result<()> {
        for (path, table) in &self.0 {
            let path = folder.join(path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(path, table.to_string())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::PROJECT_FILE;

    const MANIFEST: &str = "[project]\nname = \"p\"\n[block.norm]\nkind = \"transformer\"\nseq = 4\nd-model = 8\nheads = 2\nd-ff = 16\n\
                            norm-eps = 1e-5\n[block.plain]\nkind = \"matmul\"\nm = 2\nn = 3\nk = 4\n";

    fn project() -> (tempfile::TempDir, Project) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(PROJECT_FILE), MANIFEST).unwrap();
        let project = manifest::load(folder.path()).unwrap();
        (folder, project)
    }

    #[test]
    fn the_files_as_they_are_load() {
        let (_folder, project) = project();
        let copy = tempfile::tempdir().unwrap();
        Files::read(&project).unwrap().write(copy.path()).unwrap();
        assert_eq!(manifest::load(copy.path()).unwrap().blocks.len(), project.blocks.len());
    }

    #[test]
    fn every_mistake_is_refused_for_what_is_wrong_with_it() {
        let (_folder, project) = project();
        let all = mutations(&project).unwrap();
        assert!(all.len() >= 15, "{}", all.len());
        for wrong in all {
            let trial = wrong.judge().unwrap();
            let Fate::Killed { evidence, .. } = &trial.fate else { panic!("{trial:?}") };
            // The key, or the name that its value is not.
            let description = &trial.mutant.description;
            let named = description
                .split(['`', '"'])
                .filter(|it| !it.is_empty() && !it.contains([' ', '=']))
                .collect::<Vec<_>>();
            let named = if named.is_empty() { vec!["pass"] } else { named };
            let message = &evidence.message;
            assert!(named.iter().any(|it| message.contains(it)), "{}: {message}", trial.mutant.id);
        }
    }
}
