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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::{graph::tests::gpu, search},
        host::CpuFacts,
        manifest::spec::Dtype,
        plan::stage::{Role, Stage, StageOp, Tensor, TensorId},
    };

    /// A norm of 4 rows of 32.
    fn graph() -> StageGraph {
        let tensor = Tensor { name: "y".to_owned(), shape: vec![4, 32], dtype: Dtype::F32, role: Role::Output };
        let op = StageOp::RmsNorm { rows: 4, width: 32, eps: 1e-5 };
        let stage = Stage { name: "norm".to_owned(), op, inputs: vec![], output: TensorId(0), scheduled: true };
        StageGraph { block: "b".to_owned(), tensors: vec![tensor], stages: vec![stage] }
    }

    fn own(texts: &[(&str, &str)]) -> BTreeMap<String, String> {
        texts.iter().map(|it| (it.0.to_owned(), it.1.to_owned())).collect()
    }

    fn plan(device: &Device, own: &BTreeMap<String, String>) -> Plan {
        search::plan(&graph(), ("b", "t"), (device, false), own)
    }

    #[test]
    fn a_plan_names_the_own_templates_that_it_uses_and_no_others() {
        let device = Device::from(gpu());
        let names = |own: &BTreeMap<String, String>| plan(&device, own).shaders.into_keys().collect::<Vec<_>>();
        let texts = own(&[("math.wgsl", "m"), ("norm.wgsl", "n"), ("rope.wgsl", "r")]);
        assert_eq!(names(&texts), ["math.wgsl", "norm.wgsl"]);
        // One that an own text includes.
        let including = own(&[("norm.wgsl", "{% include \"rope.wgsl\" %}"), ("rope.wgsl", "r")]);
        assert_eq!(names(&including), ["norm.wgsl", "rope.wgsl"]);
        assert_eq!(names(&own(&[])), Vec::<String>::new());
        assert_eq!(plan(&CpuFacts::detect().into(), &texts).shaders, BTreeMap::new());
    }

    #[test]
    fn a_plan_is_compiled_with_the_templates_that_it_names() {
        let texts = own(&[("norm.wgsl", "n"), ("rope.wgsl", "r")]);
        let plan = plan(&gpu().into(), &texts);
        assert_eq!(of_plan(&plan, &texts), Ok(own(&[("norm.wgsl", "n")])));
        let absent = of_plan(&plan, &own(&[("rope.wgsl", "r")])).unwrap_err();
        assert_eq!(absent, TemplateError::Absent { name: "norm.wgsl".to_owned() });
        let other = of_plan(&plan, &own(&[("norm.wgsl", "another")])).unwrap_err();
        assert!(other.to_string().starts_with("the plan uses another `shaders/norm.wgsl` than this project has: "));
    }
}
