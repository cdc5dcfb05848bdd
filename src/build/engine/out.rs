//! `out/<block>@<target>/`: which outputs of which step a person finds there under which name.

use super::{
    action::Workspace,
    run::{Built, StepResult},
};
use crate::{
    build::graph::{Outputs, Step, StepId, StepKind},
    digest::Digest,
    protocol::blob,
    store::{Store, out::OutError},
};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// The step's kind, the output's name, the file's name.
const FILES: [(StepKind, &str, &str); 7] = [
    (StepKind::Ir, blob::OPTIMIZED, "block.mlir"),
    (StepKind::Plan, blob::PLAN, "plan.json"),
    (StepKind::Compile, blob::LOWERED, "kernel.mlir"),
    (StepKind::Compile, blob::OBJECT, "kernel.o"),
    (StepKind::Compile, blob::KERNEL, "kernel.json"),
    (StepKind::Verify, blob::AUDIT, "audit.json"),
    (StepKind::Report, blob::REPORT, "report.json"),
];

/// Name and content of each file of a folder.
type Files = Vec<(&'static str, Digest)>;

/// The folders of all blocks that have an output, by name, and what is in them.
pub fn folders<'a>(steps: &'a [Step], outputs_of: impl Fn(StepId) -> Option<&'a Outputs>) -> BTreeMap<String, Files> {
    let mut folders: BTreeMap<String, Files> = BTreeMap::new();
    for step in steps {
        let (Some(block), Some(outputs)) = (&step.block, outputs_of(step.id)) else { continue };
        let files = FILES.iter().filter(|it| it.0 == step.kind);
        let files = files.filter_map(|(_, output, file)| Some((*file, *outputs.get(output)?)));
        folders.entry(format!("{block}@{}", step.target)).or_default().extend(files);
    }
    folders
}

/// Brings the folders up to date. Returns how many files changed.
pub fn materialise(store: &Store, folders: &BTreeMap<String, Files>) -> Result<usize, OutError> {
    folders.par_iter().map(|(folder, files)| store.materialise(folder, files)).sum()
}

/// [`materialise`] after a build. A rejected kernel's audit is there too: it says what is wrong with the kernel beside it.
pub fn after(workspace: &Workspace<'_>, built: &Built) -> Result<usize, OutError> {
    let failed: BTreeMap<usize, Outputs> = (built.results.iter().enumerate())
        .filter_map(|(index, it)| match it {
            StepResult::Failed { failure, .. } => {
                Some((index, failure.outputs.iter().map(|it| (it.0, *it.1)).collect()))
            }
            _ => None,
        })
        .collect();
    let outputs_of = |id: StepId| failed.get(&id.index()).or(built.outputs[id.index()].as_ref());
    materialise(workspace.store, &folders(workspace.graph.steps(), outputs_of))
}
