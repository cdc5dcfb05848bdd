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

/// The step's kind, the output's name, the file's name on a CPU and on a GPU: the object of a GPU is the list of its shaders,
/// and what it was lowered to is one text of all of them.
const FILES: [(StepKind, &str, [&str; 2]); 7] = [
    (StepKind::Ir, blob::OPTIMIZED, ["block.mlir"; 2]),
    (StepKind::Plan, blob::PLAN, ["plan.json"; 2]),
    (StepKind::Compile, blob::LOWERED, ["kernel.mlir", "kernel.wgsl"]),
    (StepKind::Compile, blob::OBJECT, ["kernel.o", "shaders.json"]),
    (StepKind::Compile, blob::KERNEL, ["kernel.json"; 2]),
    (StepKind::Verify, blob::AUDIT, ["audit.json"; 2]),
    (StepKind::Report, blob::REPORT, ["report.json"; 2]),
];

/// Name and content of each file of a folder.
type Files = Vec<(&'static str, Digest)>;

/// The folders of all blocks that have an output, by name, and what is in them.
pub fn folders<'a>(steps: &'a [Step], outputs_of: impl Fn(StepId) -> Option<&'a Outputs>) -> BTreeMap<String, Files> {
    let mut folders: BTreeMap<String, Files> = BTreeMap::new();
    for step in steps {
        let (Some(block), Some(outputs)) = (&step.block, outputs_of(step.id)) else { continue };
        let files = FILES.iter().filter(|it| it.0 == step.kind);
        let files = files.filter_map(|(_, output, file)| Some((file[usize::from(step.on_gpu)], *outputs.get(output)?)));
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
