//! Steps, edges, keys, stale reasons. Pure: no IO, no clock. What was built before comes in through [`History`].
//!
//! [`steps::plan_build`] makes the [`Graph`] from plain data. A step's key is the digest of named parts: its own parameters, and
//! for each blob it reads the digest of the blob's CONTENT. So a step that makes the same output again stops the rebuild
//! (early cutoff), and two keys can be compared part by part ([`stale`]). [`status`] decides which steps are up to date,
//! [`why`] follows a change to the field that was edited, [`causes`] groups all that must run by such changes, [`output`] draws
//! the graph, [`page`] shows it as a web page.

pub mod causes;
pub mod output;
pub mod page;
pub mod stale;
pub mod status;
pub mod steps;
#[cfg(test)]
pub(crate) mod tests;
pub mod why;

pub use crate::store::{key::KeyParts, outputs::Outputs};
pub use stale::StaleReason;
pub use status::{Built, Damage, Decision, History, Recorded};
pub use steps::{BlockTarget, EnvironmentLlm, Rules, plan_build};

use crate::digest::Digest;
use serde::Serialize;
use std::{fmt, sync::Arc};

/// Index of a step in its graph. A step's dependencies have smaller ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct StepId(pub u32);

impl StepId {
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    Ir,
    Plan,
    Compile,
    Verify,
    Benchmark,
    Report,
}

impl StepKind {
    pub const ALL: [Self; 6] = [Self::Ir, Self::Plan, Self::Compile, Self::Verify, Self::Benchmark, Self::Report];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Ir => "ir",
            Self::Plan => "plan",
            Self::Compile => "compile",
            Self::Verify => "verify",
            Self::Benchmark => "benchmark",
            Self::Report => "report",
        }
    }

    pub const fn class(self) -> Class {
        match self {
            Self::Ir | Self::Compile | Self::Report => Class::Compute,
            Self::Plan => Class::Search,
            Self::Verify => Class::Device { exclusive: false },
            Self::Benchmark => Class::Device { exclusive: true },
        }
    }
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a step needs while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    Compute,
    /// Proposes; runs in the tool itself. What measures its proposals is of the other class.
    Search,
    /// Needs the target's device. `exclusive`: it measures, so nothing else of the build may run on the device.
    Device {
        exclusive: bool,
    },
}

/// One blob that a step reads: an output of another step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    pub step: StepId,
    /// The output's name, which is also the action's name for the input ([`crate::protocol::blob`]).
    pub name: &'static str,
    /// The name of the key part that holds the blob's digest, e.g. `input.compile.object`. Of a gate no key has the part.
    pub part: Arc<str>,
}

#[derive(Debug, Clone)]
pub struct Step {
    pub id: StepId,
    pub kind: StepKind,
    /// Index into the block targets that the graph was made from; none for a probe.
    pub subject: Option<usize>,
    /// The block instance's name; none for a probe.
    pub block: Option<Arc<str>>,
    pub target: Arc<str>,
    pub threads: usize,
    /// The target's device is a GPU.
    pub on_gpu: bool,
    /// A plan that is found by measuring.
    pub searches: bool,
    /// Steps that must have succeeded before this one runs, ascending: the inputs' steps and the gates, whose content is not
    /// part of the key.
    pub deps: Vec<StepId>,
    pub inputs: Vec<Input>,
    /// What its gates made, handed to its action like an input. No part of the key: a gate decides whether the step may run,
    /// and not what it makes.
    pub gates: Vec<Input>,
    /// The parts of the key that do not depend on other steps: its own, and those that it shares with others.
    own: KeyParts,
    shared: Vec<Arc<KeyParts>>,
    identity: Arc<str>,
}

impl Step {
    /// What the step is called wherever it is named: `gpt2-small-s128@cpu:verify`; a probe is `@cpu:probe`.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    pub const fn class(&self) -> Class {
        if self.searches { Class::Device { exclusive: true } } else { self.kind.class() }
    }

    /// The parts of the key that do not depend on other steps.
    pub fn params(&self) -> KeyParts {
        let mut parts = self.own.clone();
        self.shared.iter().for_each(|it| parts.extend(it));
        parts
    }
}

/// Steps in an order in which they can run.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    steps: Vec<Step>,
    dependents: Vec<Vec<StepId>>,
}

impl Graph {
    /// Appends a step and returns its id.
    ///
    /// # Panics
    /// When a dependency is not in the graph yet: the order of the steps is what makes cycles impossible.
    fn push(
        &mut self,
        kind: StepKind,
        (subject, block): (Option<usize>, Option<Arc<str>>),
        (target, threads, on_gpu): (&Arc<str>, usize, bool),
        reads: &[(StepId, &'static str)],
        gates: &[(StepId, &'static str)],
        (own, shared): (KeyParts, &[&Arc<KeyParts>]),
    ) -> StepId {
        let id = StepId(u32::try_from(self.steps.len()).unwrap_or(u32::MAX));
        let mut deps: Vec<_> = reads.iter().chain(gates).map(|it| it.0).collect();
        deps.sort();
        deps.dedup();
        for dep in &deps {
            assert!(*dep < id, "step {} depends on step {}, which comes later", id.0, dep.0);
            self.dependents[dep.index()].push(id);
        }
        let input = |&(step, name): &(StepId, &'static str)| Input {
            step,
            name,
            part: format!("input.{}.{name}", self.steps[step.index()].kind.name()).into(),
        };
        let (inputs, gates) = (reads.iter().map(input).collect(), gates.iter().map(input).collect());
        let identity = format!("{}@{target}:{kind}", block.as_deref().unwrap_or_default()).into();
        let target = target.clone();
        let shared = shared.iter().map(|it| Arc::clone(it)).collect();
        self.steps.push(Step {
            id,
            kind,
            subject,
            block,
            target,
            threads,
            on_gpu,
            searches: false,
            deps,
            inputs,
            gates,
            own,
            shared,
            identity,
        });
        self.dependents.push(Vec::new());
        id
    }

    /// The step measures what it proposes.
    fn search(&mut self, id: StepId) {
        self.steps[id.index()].searches = true;
    }

    /// Every step after the steps it depends on.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    pub fn step(&self, id: StepId) -> &Step {
        &self.steps[id.index()]
    }

    pub fn len(&self) -> usize {
        self.steps.len()
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The steps that depend directly on this one, ascending.
    pub fn dependents(&self, id: StepId) -> &[StepId] {
        &self.dependents[id.index()]
    }

    /// The step of this identity ([`Step::identity`]).
    pub fn find(&self, identity: &str) -> Option<StepId> {
        self.steps.iter().find(|it| it.identity() == identity).map(|it| it.id)
    }

    /// The step's key, or the steps whose outputs would have to be known for it. The same as the key of [`Graph::parts`], without
    /// putting the parts together: a build asks for the keys of all steps, and for the parts of those that run.
    pub fn key<'a>(
        &self,
        id: StepId,
        outputs_of: impl Fn(StepId) -> Option<&'a Outputs>,
    ) -> Result<Digest, Vec<StepId>> {
        let step = self.step(id);
        let mut inputs = Vec::with_capacity(step.inputs.len());
        for input in &step.inputs {
            match outputs_of(input.step).and_then(|it| it.get(input.name)) {
                Some(digest) => inputs.push((&*input.part, digest.to_string())),
                None => return Err(self.unknown(step, outputs_of)),
            }
        }
        let own = step.own.iter().chain(step.shared.iter().flat_map(|it| it.iter()));
        Ok(KeyParts::key_of(own.chain(inputs.iter().map(|(name, digest)| (*name, digest.as_str())))))
    }

    fn unknown<'a>(&self, step: &Step, outputs_of: impl Fn(StepId) -> Option<&'a Outputs>) -> Vec<StepId> {
        let known = |it: &Input| outputs_of(it.step).is_some_and(|outputs| outputs.contains_key(it.name));
        let mut unknown: Vec<_> = step.inputs.iter().filter(|it| !known(it)).map(|it| it.step).collect();
        unknown.sort();
        unknown.dedup();
        unknown
    }

    /// All parts of the step's key, or the steps whose outputs would have to be known for that.
    pub fn parts<'a>(
        &self,
        id: StepId,
        outputs_of: impl Fn(StepId) -> Option<&'a Outputs>,
    ) -> Result<KeyParts, Vec<StepId>> {
        let step = self.step(id);
        let mut parts = step.params();
        for input in &step.inputs {
            match outputs_of(input.step).and_then(|it| it.get(input.name)) {
                Some(digest) => parts.set(input.part.clone(), digest.to_string()),
                None => return Err(self.unknown(step, outputs_of)),
            }
        }
        Ok(parts)
    }
}
