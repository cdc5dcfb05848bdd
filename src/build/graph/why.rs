//! Follows a stale step, or the last rebuild of one that is up to date, to the fields that were edited.

use super::{Built, Decision, Graph, History, StaleReason, StepId, stale::explain};
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
}

/// Explains one step. `decisions` is what [`Graph::status`] says now.
pub fn why(graph: &Graph, step: StepId, decisions: &[Decision], history: &impl History) -> Why {
    let state = match &decisions[step.index()] {
        Decision::UpToDate { .. } => State::UpToDate,
        Decision::Stale { .. } => State::Stale,
        Decision::Unknown { .. } => State::MayBeStale,
    };
    let chains = search(graph, step, |id| match (state, &decisions[id.index()]) {
        (State::UpToDate, _) => last_rebuild(graph, id, history),
        (_, Decision::UpToDate { .. }) => Cause::None,
        (_, Decision::Unknown { waits_for }) => Cause::Upstream(waits_for.clone()),
        (_, Decision::Stale { reason, .. }) => match reason {
            // Inputs that changed although their steps are up to date: those steps ran, and their last rebuild is the cause.
            StaleReason::InputsChanged { .. } => changed_upstream(graph, id, reason, history),
            _ => Cause::Here(reason.clone()),
        },
    });
    Why { step: graph.step(step).identity().to_owned(), state, chains }
}

enum Cause {
    None,
    Here(StaleReason),
    Upstream(Vec<StepId>),
}

/// Why the step ran last: the parts of its last success against those of the success before.
fn last_rebuild(graph: &Graph, id: StepId, history: &impl History) -> Cause {
    let identity = graph.step(id).identity();
    let Some(latest) = history.latest(identity) else { return Cause::None };
    let before = history.before(identity);
    match explain(before.as_ref().map(|it| &it.parts), &latest.parts) {
        reason @ StaleReason::InputsChanged { .. } => changed_upstream(graph, id, &reason, history),
        reason => Cause::Here(reason),
    }
}

/// The steps whose last rebuild made the change that `reason` tells of; the reason itself if none of them did.
fn changed_upstream(graph: &Graph, id: StepId, reason: &StaleReason, history: &impl History) -> Cause {
    let StaleReason::InputsChanged { inputs } = reason else { return Cause::Here(reason.clone()) };
    let made_by = |change: &super::stale::InputChange| {
        let part = format!("{}{}.{}", super::stale::INPUT, change.from, change.input);
        let step = graph.step(id).inputs.iter().find(|it| *it.part == *part)?.step;
        let identity = graph.step(step).identity();
        let made = |built: Option<Built>| built?.outputs.get(&change.input).map(ToString::to_string);
        // An upstream step that ran more often than this one may have made the change in an earlier run than its last.
        (made(history.latest(identity)) == change.new && made(history.before(identity)) == change.old).then_some(step)
    };
    let mut steps: Vec<_> = inputs.iter().filter_map(made_by).collect();
    steps.sort();
    steps.dedup();
    if steps.is_empty() { Cause::Here(reason.clone()) } else { Cause::Upstream(steps) }
}

/// Breadth first, so that each cause is told by its shortest chain and only once.
fn search(graph: &Graph, start: StepId, cause_of: impl Fn(StepId) -> Cause) -> Vec<Vec<Link>> {
    let mut reached_from: Vec<Option<StepId>> = vec![None; graph.len()];
    let mut queue = VecDeque::from([start]);
    let mut chains = Vec::new();
    while let Some(id) = queue.pop_front() {
        match cause_of(id) {
            Cause::None => {}
            Cause::Here(reason) => chains.push(chain(graph, id, &reached_from, reason)),
            Cause::Upstream(steps) => {
                for step in steps {
                    if step != start && reached_from[step.index()].is_none() {
                        reached_from[step.index()] = Some(id);
                        queue.push_back(step);
                    }
                }
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
        links.push(Link { step: graph.step(at).identity().to_owned(), reads, reason: reason.take() });
        match reader {
            Some(reader) => at = reader,
            None => break,
        }
    }
    links.reverse();
    links
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (state, verb) = match self.state {
            State::UpToDate => ("up to date", "ran last because "),
            State::Stale => ("stale", ""),
            State::MayBeStale => ("may be stale", ""),
        };
        let first = self.chains.iter().all(|it| it.iter().all(|link| link.reason != Some(StaleReason::NeverBuilt)));
        write!(f, "`{}`: {state}", self.step)?;
        for chain in &self.chains {
            for (depth, link) in chain.iter().enumerate() {
                let indent = "  ".repeat(depth + 1);
                if depth > 0 {
                    let reads = link.reads.iter().map(|it| format!("`{it}`")).collect::<Vec<_>>().join(", ");
                    write!(f, "\n{}reads {reads} of `{}`", "  ".repeat(depth), link.step)?;
                }
                match &link.reason {
                    Some(StaleReason::NeverBuilt) if self.state == State::UpToDate => {
                        write!(f, "\n{indent}ran once, when it was new")?;
                    }
                    Some(reason) => write!(f, "\n{indent}{}{reason}", if first && depth == 0 { verb } else { "" })?,
                    None => {}
                }
            }
        }
        Ok(())
    }
}
