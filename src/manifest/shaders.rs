//! A project's own shader templates: `shaders/*.wgsl` beside the project file. Each replaces the built-in template of its name, so
//! one that replaces none would be a file that silently does nothing, and is refused. They are sources of the project like its
//! workloads: read under the same limits, watched, and part of what a build with nothing to do rests on.

use super::{
    Sources,
    error::{Problem, ProblemKind},
    load::{read, slashes},
    resolve::Resolver,
};
use crate::plan::gpu::TEMPLATES;
use std::{fs, path::Path};

/// The folder, relative to the project.
pub const FOLDER: &str = "shaders";

/// Reads the templates, if there are any.
pub fn load(root: &Path, sources: &mut Sources, resolver: &mut Resolver, problems: &mut Vec<Problem>) {
    let folder = Path::new(FOLDER);
    let unreadable = |reason: String| Problem::new(ProblemKind::Unreadable { path: FOLDER.to_owned(), reason }, None);
    if fs::symlink_metadata(root.join(folder)).is_err() {
        return sources.nothing(folder);
    }
    // Whatever comes into it or goes is looked at, and an editor's temporary file is not a template.
    sources.folder(root, folder);
    match root.join(folder).canonicalize() {
        Ok(resolved) if resolved.starts_with(root) => {}
        Ok(resolved) => {
            let resolved = Some(format!("`{}`", super::error::shown(&resolved.display().to_string())));
            let kind = ProblemKind::OutsideProject { path: FOLDER.to_owned(), resolved };
            return problems.push(Problem::new(kind, None));
        }
        Err(error) => return problems.push(unreadable(error.to_string())),
    }
    let mut names = match fs::read_dir(root.join(folder)) {
        Ok(entries) => entries.filter_map(|it| Some(it.ok()?.file_name())).collect::<Vec<_>>(),
        Err(error) => return problems.push(unreadable(error.to_string())),
    };
    names.sort();
    for name in names {
        let path = folder.join(&name);
        let hidden = name.to_string_lossy().starts_with('.');
        if hidden || path.extension().is_none_or(|it| it != "wgsl") {
            continue;
        }
        let known = name.to_str().filter(|it| TEMPLATES.contains(it));
        let Some(name) = known else {
            let kind = ProblemKind::NoTemplate { path: slashes(&path), known: TEMPLATES.to_vec() };
            problems.push(Problem::new(kind, None));
            continue;
        };
        match read(root, &path, sources) {
            Ok(file) => resolver.shader(name.to_owned(), &file),
            Err(kind) => problems.push(Problem::new(kind, None)),
        }
    }
}
