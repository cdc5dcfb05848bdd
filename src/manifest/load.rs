//! Reads a project's files: the project file, then what its patterns match. Nothing outside the project is opened, nothing
//! larger than a manifest can sensibly be is read. What the files say is for [`super::resolve`].

use super::{
    PROJECT_FILE, Project, ProjectErrors, Sources, corpus,
    error::{At, MAX_FILE, Problem, ProblemKind, SourceFile, shown},
    resolve::{Pattern, Resolver},
    shaders,
};
use crate::{facts::Facts, protocol::corpus::Case};
use globset::{GlobBuilder, GlobMatcher};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Component, Path, PathBuf},
    sync::Arc,
};
use walkdir::WalkDir;

/// Loads the project at `root`, or says everything that is wrong with it.
pub fn load(root: &Path) -> Result<Project, ProjectErrors> {
    load_with_sources(root).0
}

/// [`load`], and what it looked at.
pub fn load_with_sources(root: &Path) -> (Result<Project, ProjectErrors>, Sources) {
    let mut sources = Sources::default();
    (load_from(root, &mut sources), sources)
}

fn load_from(root: &Path, sources: &mut Sources) -> Result<Project, ProjectErrors> {
    let mut problems = Vec::new();
    let Some((root, file)) = read_project_file(root, sources, &mut problems) else {
        return Err(ProjectErrors::new(problems));
    };
    let mut resolver = Resolver::default();
    let mut files = vec![PathBuf::from(PROJECT_FILE)];
    let patterns = resolver.project_file(&file, &mut problems);
    for (path, at) in matches(&root, &file, &patterns, sources, &mut problems) {
        if path == Path::new(PROJECT_FILE) {
            continue; // `*.toml` matches it too
        }
        if let Some(file) = checked(read(&root, &path, sources), Some(at), &mut problems) {
            resolver.workload_file(&file, &mut problems);
        }
        files.push(path);
    }
    if let Some(pattern) = resolver.corpus() {
        let (path, at) = (PathBuf::from(&pattern.text), At::new(&file, pattern.span));
        if path.components().any(|it| !matches!(it, Component::Normal(_) | Component::CurDir)) {
            problems.push(Problem::new(
                ProblemKind::OutsideProject { path: shown(&pattern.text), resolved: None },
                Some(at),
            ));
        } else {
            let corpus = if fs::symlink_metadata(root.join(&path)).is_ok() {
                checked(read(&root, &path, sources), Some(at), &mut problems)
            } else {
                sources.nothing(&path);
                None
            };
            resolver.corpus_file(path, corpus.as_ref(), &mut problems);
        }
    }
    shaders::load(&root, sources, &mut resolver, &mut problems);
    resolver.finish(root, files, &file, problems)
}

fn read_project_file(
    root: &Path,
    sources: &mut Sources,
    problems: &mut Vec<Problem>,
) -> Option<(PathBuf, Arc<SourceFile>)> {
    let no_project = || {
        let folder = if root.as_os_str().is_empty() || root == Path::new(".") {
            "this folder".to_owned()
        } else {
            format!("`{}`", root.display())
        };
        Problem::new(ProblemKind::NoProject { folder }, None)
    };
    let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
    let Ok(canonical) = root.canonicalize() else {
        problems.push(no_project());
        return None;
    };
    match fs::symlink_metadata(canonical.join(PROJECT_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            sources.nothing(Path::new(PROJECT_FILE));
            problems.push(no_project());
            None
        }
        _ => {
            let file = checked(read(&canonical, Path::new(PROJECT_FILE), sources), None, problems)?;
            Some((canonical, file))
        }
    }
}

fn checked(
    result: Result<Arc<SourceFile>, ProblemKind>,
    at: Option<At>,
    problems: &mut Vec<Problem>,
) -> Option<Arc<SourceFile>> {
    result.map_err(|kind| problems.push(Problem::new(kind, at))).ok()
}

/// Reads a regression corpus that is not the project's; one that does not exist yet is empty.
pub fn load_corpus(path: &Path) -> Result<Vec<Case>, ProjectErrors> {
    let refuse = |it: Problem| ProjectErrors::new(vec![it]);
    if fs::symlink_metadata(path).is_err_and(|it| it.kind() == io::ErrorKind::NotFound) {
        return Ok(Vec::new());
    }
    let read = read_file(path, path.display().to_string()).map_err(|it| refuse(Problem::new(it, None)));
    let (file, _) = read?;
    corpus::read(&file).map_err(refuse)
}

/// Reads one file of the project.
pub fn read(root: &Path, path: &Path, sources: &mut Sources) -> Result<Arc<SourceFile>, ProblemKind> {
    let read = read_inside(root, path);
    match &read {
        Ok((file, facts)) => sources.file(path, *facts, file.text.as_bytes()),
        Err(_) => sources.nothing(path),
    }
    read.map(|it| it.0)
}

fn read_inside(root: &Path, path: &Path) -> Result<(Arc<SourceFile>, Facts), ProblemKind> {
    let name = slashes(path);
    let resolved = root
        .join(path)
        .canonicalize()
        .map_err(|it| ProblemKind::Unreadable { path: name.clone(), reason: it.to_string() })?;
    if !resolved.starts_with(root) {
        let resolved = Some(format!("`{}`", shown(&resolved.display().to_string())));
        return Err(ProblemKind::OutsideProject { path: name, resolved });
    }
    read_file(&resolved, name)
}

/// The file, and its facts of before it was read.
fn read_file(path: &Path, name: String) -> Result<(Arc<SourceFile>, Facts), ProblemKind> {
    let unreadable = |reason: String| ProblemKind::Unreadable { path: name.clone(), reason };
    let failed = |error: io::Error| unreadable(error.to_string());
    // Opening a pipe would wait for ever.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(unreadable("it is not a regular file".to_owned()));
    }
    let mut file = File::open(path).map_err(failed)?;
    let facts = Facts::new(&file.metadata().map_err(failed)?);
    let mut bytes = Vec::new();
    // One byte more than the limit tells a file that is too large from one that just fits, however it grows meanwhile.
    Read::by_ref(&mut file).take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        let bytes = file.metadata().map_err(failed)?.len();
        return Err(ProblemKind::TooLarge { path: name, bytes });
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let (offset, bytes) = (error.utf8_error().valid_up_to(), error.as_bytes());
        let line = bytes.iter().take(offset).filter(|it| **it == b'\n').count() + 1;
        ProblemKind::NotUtf8 { path: name.clone(), offset, line, byte: bytes.get(offset).copied().unwrap_or_default() }
    })?;
    Ok((Arc::new(SourceFile::new(name, text)), facts))
}

/// The path as messages and origins show it.
pub fn slashes(path: &Path) -> String {
    shown(&path.iter().map(|it| it.to_string_lossy()).collect::<Vec<_>>().join("/"))
}

/// The files that the patterns match, in order, each with the (first) pattern that named it.
fn matches(
    root: &Path,
    project: &Arc<SourceFile>,
    patterns: &[Pattern],
    sources: &mut Sources,
    problems: &mut Vec<Problem>,
) -> BTreeMap<PathBuf, At> {
    let mut files = BTreeMap::new();
    for pattern in patterns {
        let at = At::new(project, pattern.span.clone());
        match expand(root, &pattern.text, sources) {
            Ok(found) => files.extend(
                found.into_iter().filter(|it| !files.contains_key(it)).map(|it| (it, at.clone())).collect::<Vec<_>>(),
            ),
            Err(kind) => problems.push(Problem::new(kind, Some(at))),
        }
    }
    files
}

fn expand(root: &Path, pattern: &str, sources: &mut Sources) -> Result<Vec<PathBuf>, ProblemKind> {
    let path = Path::new(pattern);
    if path.components().any(|it| !matches!(it, Component::Normal(_) | Component::CurDir)) {
        return Err(ProblemKind::OutsideProject { path: shown(pattern), resolved: None });
    }
    let pattern = pattern.trim_start_matches("./");
    let glob = GlobBuilder::new(pattern)
        .literal_separator(true)
        .build()
        .map_err(|error| ProblemKind::BadPattern { pattern: shown(pattern), reason: error.kind().to_string() })?;
    let found = walk(root, pattern, &glob.compile_matcher(), sources)?;
    match found.is_empty() {
        true => Err(ProblemKind::NothingMatches { pattern: shown(pattern) }),
        false => Ok(found),
    }
}

/// Walks only what the pattern can match: from its last folder without a wildcard, no deeper than it goes, and no hidden
/// folder, where tools keep what is not the project's.
fn walk(root: &Path, pattern: &str, glob: &GlobMatcher, sources: &mut Sources) -> Result<Vec<PathBuf>, ProblemKind> {
    let parts: Vec<_> = pattern.split('/').collect();
    let fixed = parts.iter().take_while(|it| !it.contains(['*', '?', '[', '{'])).count().min(parts.len() - 1);
    let depth = if pattern.contains("**") || pattern.contains('{') { usize::MAX } else { parts.len() - fixed };
    let base = parts[..fixed].iter().fold(root.to_owned(), |base, part| base.join(part));
    if !base.is_dir() {
        sources.nothing(base.strip_prefix(root).unwrap_or(&base));
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    let mut entries = WalkDir::new(&base).max_depth(depth).follow_links(true).into_iter();
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => match error.io_error() {
                // A link to nowhere matches nothing; a link to a folder above it has been walked.
                Some(reason) if reason.kind() != io::ErrorKind::NotFound => {
                    let path = error.path().unwrap_or(&base);
                    let path = slashes(path.strip_prefix(root).unwrap_or(path));
                    return Err(ProblemKind::Unreadable { path, reason: reason.to_string() });
                }
                _ => continue,
            },
        };
        if entry.file_type().is_dir() {
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            let leaves = entry.path_is_symlink() && !entry.path().canonicalize().is_ok_and(|it| it.starts_with(root));
            if entry.depth() > 0 && (hidden || leaves) {
                entries.skip_current_dir();
            } else if entry.depth() < depth {
                sources.folder(root, entry.path().strip_prefix(root).unwrap_or(entry.path()));
            }
            continue;
        }
        let path = entry.path().strip_prefix(root).unwrap_or(entry.path());
        if glob.is_match(path) {
            found.push(path.to_owned());
        }
    }
    Ok(found)
}
