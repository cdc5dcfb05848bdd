//! Follows a stale step, or the last rebuild of one that is up to date, to the fields that were edited.

use super::{
    Built, Decision, Graph, History, KeyParts, StaleReason, StepId,
    stale::{INPUT, InputChange, change, explain},
};
use crate::manifest::spec::Origin;
use serde::Serialize;
use std::{collections::VecDeque, fmt};

/// The answer to `kforge why STEP`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Why {
    pub step: String,
    pub state: State,
    /// One chain for each cause, from the step to the cause.
    pub chains: Vec<Vec<Link>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nothing to do; the chains say why it ran last.
    UpToDate,
    Stale,
    MayBeStale,
}

/// One step on the way to a cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Link {
    pub step: String,
    /// What the link before this one reads of it; empty for the first link.
    pub reads: Vec<String>,
    /// The cause, at the end of a chain.
    pub reason: Option<StaleReason>,
    /// Where the changed fields are written now, as far as [`Why::locate`] was told.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub written: Vec<Written>,
}

/// A field's place in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Written {
    pub field: String,
    #[serde(flatten)]
    pub origin: Origin,
}

/// Explains one step. `decisions` is what [`Graph::status`] says now.
pub fn why(graph: &Graph, step: StepId, decisions: &[Decision], history: &impl History) -> Why {
    let state = match &decisions[step.index()] {
        Decision::UpToDate { .. } => State::UpToDate,
        Decision::Stale { .. } => State::Stale,
        Decision::Unknown { .. } => State::MayBeStale,
    };
    let chains = search(graph, step, |id| match (state, &decisions[id.index()]) {
        // Also reached from a stale step whose inputs changed before it: their steps ran in a build that stopped there.
        (State::UpToDate, _) | (_, Decision::UpToDate { .. }) => last_rebuild(graph, id, history),
        (_, Decision::Unknown { waits_for }) => {
            Cause { here: own_change(graph, id, history), upstream: waits_for.clone() }
        }
        (_, Decision::Stale { reason, .. }) => changed_upstream(graph, id, reason.clone(), history),
    });
    Why { step: graph.step(step).identity().to_owned(), state, chains }
}

/// Where a step's staleness comes from: itself, steps that it reads, or both.
#[derive(Default)]
pub(super) struct Cause {
    pub here: Option<StaleReason>,
    pub upstream: Vec<StepId>,
}

/// What is known of a step whose inputs are not: that its own parameters are others than at its last success.
fn own_change(graph: &Graph, id: StepId, history: &impl History) -> Option<StaleReason> {
    let step = graph.step(id);
    let latest = history.latest(step.identity())?;
    let before: KeyParts = latest.parts.iter().filter(|it| !it.0.starts_with(INPUT)).collect();
    change(&before, &step.params())
}

/// Why the step ran last: the parts of its last success against those of the success before.
pub(super) fn last_rebuild(graph: &Graph, id: StepId, history: &impl History) -> Cause {
    let identity = graph.step(id).identity();
    let Some(latest) = history.latest(identity) else { return Cause::default() };
    let before = history.before(identity);
    changed_upstream(graph, id, explain(before.as_ref().map(|it| &it.parts), &latest.parts), history)
}

/// If inputs changed, the steps whose last rebuild changed them; else, or if that was no step's last rebuild, the reason itself.
pub(super) fn changed_upstream(graph: &Graph, id: StepId, reason: StaleReason, history: &impl History) -> Cause {
    let StaleReason::InputsChanged { inputs } = &reason else {
        return Cause { here: Some(reason), upstream: Vec::new() };
    };
    let made_by = |change: &InputChange| {
        let part = format!("{INPUT}{}.{}", change.from, change.input);
        let step = graph.step(id).inputs.iter().find(|it| *it.part == *part)?.step;
        let identity = graph.step(step).identity();
        let made = |built: Option<Built>| built?.outputs.get(&change.input).map(ToString::to_string);
        // A step that ran more often than this one may have made the change in an earlier run than its last.
        (made(history.latest(identity)) == change.new && made(history.before(identity)) == change.old).then_some(step)
    };
    let mut upstream: Vec<_> = inputs.iter().filter_map(made_by).collect();
    upstream.sort();
    upstream.dedup();
    Cause { here: upstream.is_empty().then_some(reason), upstream }
}

/// Breadth first, so that each cause is told by its shortest chain and only once.
fn search(graph: &Graph, start: StepId, cause_of: impl Fn(StepId) -> Cause) -> Vec<Vec<Link>> {
    let mut reached_from: Vec<Option<StepId>> = vec![None; graph.len()];
    let mut queue = VecDeque::from([start]);
    let mut chains = Vec::new();
    while let Some(id) = queue.pop_front() {
        let Cause { here, upstream } = cause_of(id);
        chains.extend(here.map(|reason| chain(graph, id, &reached_from, reason)));
        for step in upstream {
            if step != start && reached_from[step.index()].is_none() {
                reached_from[step.index()] = Some(id);
                queue.push_back(step);
            }
        }
    }
    chains
}

fn chain(graph: &Graph, end: StepId, reached_from: &[Option<StepId>], reason: StaleReason) -> Vec<Link> {
    let mut links = Vec::new();
    let mut at = end;
    let mut reason = Some(reason);
    loop {
        let reader = reached_from[at.index()];
        let read = |reader: StepId| graph.step(reader).inputs.iter().filter(|it| it.step == at);
        let reads = reader.into_iter().flat_map(read).map(|it| it.name.to_owned()).collect();
        let (step, reason) = (graph.step(at).identity().to_owned(), reason.take());
        links.push(Link { step, reads, reason, written: Vec::new() });
        match reader {
            Some(reader) => at = reader,
            None => break,
        }
    }
    links.reverse();
    links
}

impl Why {
    /// Adds where the changed fields are written. `origin_of` is told the step's identity and the field.
    pub fn locate(&mut self, origin_of: impl Fn(&str, &str) -> Option<Origin>) {
        for link in self.chains.iter_mut().flatten() {
            let Some(StaleReason::Changed { parts }) = &link.reason else { continue };
            let written = parts.iter().filter(|it| it.new.is_some()).filter_map(|it| {
                let field = it.field().to_owned();
                Some(Written { origin: origin_of(&link.step, &field)?, field })
            });
            link.written = written.collect();
        }
    }
}

/// ` (workloads/gpt2.toml:7)`, with the fields' names where there are several.
fn places(written: &[Written]) -> String {
    let place = |it: &Written| format!("{}:{}", it.origin.file, it.origin.line);
    match written {
        [] => String::new(),
        [one] => format!(" ({})", place(one)),
        several => {
            let places: Vec<_> = several.iter().map(|it| format!("`{}` at {}", it.field, place(it))).collect();
            format!(" ({})", places.join(", "))
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let new = |chain: &Vec<Link>| chain.iter().any(|it| it.reason == Some(StaleReason::NeverBuilt));
        let state = match self.state {
            State::UpToDate if self.chains.iter().any(new) => "up to date; ran once, when it was new",
            State::UpToDate if self.chains.is_empty() => "up to date",
            State::UpToDate => "up to date; ran last because",
            State::Stale => "stale",
            State::MayBeStale => "may be stale",
        };
        write!(f, "`{}`: {state}", self.step)?;
        for chain in self.chains.iter().filter(|it| self.state != State::UpToDate || !new(it)) {
            for (depth, link) in chain.iter().enumerate() {
                if depth > 0 {
                    let reads = link.reads.iter().map(|it| format!("`{it}`")).collect::<Vec<_>>().join(", ");
                    write!(f, "\n{}reads {reads} of `{}`", "  ".repeat(depth), link.step)?;
                }
                if let Some(reason) = &link.reason {
                    write!(f, "\n{}{reason}{}", "  ".repeat(depth + 1), places(&link.written))?;
                }
            }
        }
        Ok(())
    }
}
