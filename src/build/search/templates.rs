//! A project's own shader templates in its plans: a plan has the digests of those that its stages are rendered from, and of no
//! others, so that an edit of one makes exactly those kernels stale.

use crate::{
    digest::Digest,
    host::Device,
    plan::{Plan, gpu, schedule::Schedule, stage::StageGraph},
    protocol::{Failure, FailureKind},
};
use std::collections::{BTreeMap, BTreeSet};

/// The digests of those of `own` that a plan of these schedules uses.
pub fn used(
    graph: &StageGraph,
    stages: &BTreeMap<String, Schedule>,
    device: &Device,
    own: &BTreeMap<String, String>,
) -> BTreeMap<String, Digest> {
    if own.is_empty() || matches!(device, Device::Cpu(_)) {
        return BTreeMap::new();
    }
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for stage in &graph.stages {
        let dtype = graph.tensor(stage.output).dtype;
        // A stage that no pass marked is rendered too, from its plain schedule.
        let plain = || Schedule::plain(&stage.op, dtype, device);
        let schedule = stages.get(&stage.name).filter(|_| stage.scheduled).cloned().unwrap_or_else(plain);
        names.extend(gpu::templates(&stage.op, &schedule));
    }
    // An own text may include templates that the built-in one of its name does not.
    let mut open: Vec<&str> = names.iter().copied().collect();
    while let Some(name) = open.pop() {
        let text = own.get(name).map_or("", String::as_str);
        let named = gpu::TEMPLATES.iter().filter(|it| mentions(text, it));
        open.extend(named.filter(|it| names.insert(it)));
    }
    let digest = |(name, text): (&String, &String)| (name.clone(), Digest::of(text.as_bytes()));
    own.iter().filter(|it| names.contains(it.0.as_str())).map(digest).collect()
}

/// Whether a template's text names another one, as `include` and `import` do.
fn mentions(text: &str, name: &str) -> bool {
    ['"', '\''].iter().any(|quote| text.contains(&format!("{quote}{name}{quote}")))
}

/// A plan rests on templates that the project does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("the plan uses a template `shaders/{name}` of its project's own, and this project has none")]
    Absent { name: String },
    #[error("the plan uses another `shaders/{name}` than this project has: {planned}, not {found}")]
    Other { name: String, planned: String, found: String },
}

impl TemplateError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Absent { name } => {
                format!("put the plan's `{name}` into the folder `shaders` beside kernelforge.toml")
            }
            Self::Other { .. } => "have the plan made again, or use the templates that it was made with".to_owned(),
        }
    }
}

impl From<TemplateError> for Failure {
    fn from(error: TemplateError) -> Self {
        Self::new(FailureKind::BadInput, error.to_string()).with_hint(error.hint())
    }
}

/// The texts that `plan` names, of the project's `own`: what compiling it is given.
///
/// # Errors
/// Where the project has none of the name, or another text.
pub fn of_plan(plan: &Plan, own: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, TemplateError> {
    let text = |(name, planned): (&String, &Digest)| {
        let text = own.get(name).ok_or_else(|| TemplateError::Absent { name: name.clone() })?;
        let found = Digest::of(text.as_bytes());
        if found != *planned {
            let (planned, found) = (planned.short(), found.short());
            return Err(TemplateError::Other { name: name.clone(), planned, found });
        }
        Ok((name.clone(), text.clone()))
    };
    plan.shaders.iter().map(text).collect()
}
