//! Groups what must run by what was changed: the answer to "why does all this run?" in three lines.

use super::{Decision, Graph, History, StaleReason, StepId, why};
use serde::Serialize;
use std::{collections::HashMap, fmt};

/// One change, and what it makes run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cause {
    /// Steps that are stale because of it, with those that wait for them: at most so many run, early cutoff can make them fewer.
    pub steps: usize,
    /// Of which blocks: `gpt2-small-s128@cpu`, in the graph's order.
    pub blocks: Vec<String>,
    pub text: String,
    /// The reason itself, where it is the same for all blocks.
    pub reason: Option<StaleReason>,
}

/// What makes steps run, that with the most steps first. Each step that is not up to date counts once, to the first of its
/// causes. Takes time linear in the steps.
pub fn causes(graph: &Graph, decisions: &[Decision], history: &impl History) -> Vec<Cause> {
    let roots = roots(graph, decisions, history, |it| !it.is_up_to_date());
    let mut found: Vec<Cause> = Vec::new();
    let mut by_change: HashMap<String, usize> = HashMap::new();
    // The cause that a step's own reason belongs to: every step that waits for it has the same.
    let mut known: HashMap<StepId, usize> = HashMap::new();
    for (step, decision) in graph.steps().iter().zip(decisions) {
        let (false, Some((root, reason))) = (decision.is_up_to_date(), roots.of(step.id)) else { continue };
        let index = *known.entry(root).or_insert_with(|| {
            let change = change(reason);
            let index = *by_change.entry(change.clone()).or_insert(found.len());
            match found.get_mut(index) {
                // The same thing was changed to different values.
                Some(cause) if cause.reason.as_ref().is_some_and(|it| it != reason) => {
                    (cause.text, cause.reason) = (change, None);
                }
                Some(_) => {}
                None => {
                    let (text, reason) = (text(reason), Some(reason.clone()));
                    found.push(Cause { steps: 0, blocks: Vec::new(), text, reason });
                }
            }
            index
        });
        let cause = &mut found[index];
        cause.steps += 1;
        let block = step.identity().rsplit_once(':').map_or(step.identity(), |it| it.0);
        if cause.blocks.last().is_none_or(|it| it != block) {
            cause.blocks.push(block.to_owned());
        }
    }
    found.sort_by_key(|it| std::cmp::Reverse(it.steps)); // stable: the first in the graph stays first among equals
    found
}

/// The first causes, a line each, and how many more there are.
pub fn top(causes: &[Cause]) -> Vec<String> {
    const LINES: usize = 3;
    let mut lines: Vec<_> = causes.iter().take(LINES).map(ToString::to_string).collect();
    match causes.len().saturating_sub(LINES) {
        0 => {}
        1 => lines.push("and 1 more cause: `--explain` names it".to_owned()),
        more => lines.push(format!("and {more} more causes: `--explain` names them")),
    }
    lines
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMED: usize = 3;
        let plural = if self.steps == 1 { "" } else { "s" };
        write!(f, "{} step{plural} of ", self.steps)?;
        match &self.blocks[..] {
            blocks if blocks.len() <= NAMED => f.write_str(&blocks.join(", "))?,
            blocks => write!(f, "{} blocks", blocks.len())?,
        }
        write!(f, ": {}", self.text)
    }
}

/// The reason in one line of bearable length.
fn text(reason: &StaleReason) -> String {
    const SHOWN: usize = 3;
    match reason {
        StaleReason::Changed { parts } if parts.len() > SHOWN => {
            let shown: Vec<_> = parts.iter().take(SHOWN).map(ToString::to_string).collect();
            format!("{}; and {} more", shown.join("; "), parts.len() - SHOWN)
        }
        StaleReason::Changed { .. } | StaleReason::NeverBuilt | StaleReason::Forced => reason.to_string(),
        // Digests say nothing here.
        StaleReason::InputsChanged { .. } | StaleReason::OutputDamaged { .. } => change(reason),
    }
}

/// What changed without its values: equal for reasons that are told as one.
fn change(reason: &StaleReason) -> String {
    let list = |items: Vec<String>| items.join("; ");
    match reason {
        StaleReason::Changed { parts } => list(
            parts
                .iter()
                .map(|it| if it.is_recipe() { it.to_string() } else { format!("`{}` changed", it.field()) })
                .collect(),
        ),
        StaleReason::InputsChanged { inputs } => {
            list(inputs.iter().map(|it| format!("`{}` of `{}` changed", it.input, it.from)).collect())
        }
        StaleReason::OutputDamaged { output, damage, .. } => format!("output `{output}` is {damage}"),
        other => other.to_string(),
    }
}

/// For each step the step whose own reason made it stale, or made it run last.
pub struct Roots {
    at: Vec<Option<StepId>>,
    reasons: Vec<Option<StaleReason>>,
}

impl Roots {
    /// The first root of a step, and what happened there.
    pub fn of(&self, step: StepId) -> Option<(StepId, &StaleReason)> {
        let root = self.at[step.index()]?;
        Some((root, self.reasons[root.index()].as_ref()?))
    }
}

/// Follows every wanted step to one root: from a step that waits to the first that it waits for, from one whose inputs changed
/// to the step that changed them. [`why::why`] finds all ways for one step; this finds one way for all, in linear time.
pub fn roots(
    graph: &Graph,
    decisions: &[Decision],
    history: &impl History,
    wanted: impl Fn(&Decision) -> bool,
) -> Roots {
    let mut wanted: Vec<bool> = decisions.iter().map(wanted).collect();
    let mut reasons: Vec<Option<StaleReason>> = vec![None; decisions.len()];
    let mut from: Vec<Option<StepId>> = vec![None; decisions.len()];
    // A step comes from earlier steps only: backwards, everything that is needed is known to be when it is reached.
    for step in graph.steps().iter().rev() {
        let at = step.id.index();
        if !wanted[at] {
            continue;
        }
        let cause = match &decisions[at] {
            Decision::Unknown { waits_for } => {
                why::Cause { here: None, upstream: waits_for.first().copied().into_iter().collect() }
            }
            Decision::Stale { reason, .. } => why::changed_upstream(graph, step.id, reason.clone(), history),
            Decision::UpToDate { .. } => why::last_rebuild(graph, step.id, history),
        };
        reasons[at] = cause.here;
        from[at] = cause.upstream.first().copied().filter(|_| reasons[at].is_none());
        if let Some(upstream) = from[at] {
            wanted[upstream.index()] = true;
        }
    }
    let mut at: Vec<Option<StepId>> = Vec::with_capacity(decisions.len());
    for (step, decision) in graph.steps().iter().zip(decisions) {
        let index = step.id.index();
        let mut root = from[index].and_then(|it| at[it.index()]);
        // Where the trail is lost on the way, the step's own reason is all that is known.
        if let (None, None, Decision::Stale { reason, .. }) = (&root, &reasons[index], decision) {
            reasons[index] = wanted[index].then(|| reason.clone());
        }
        if reasons[index].is_some() {
            root = Some(step.id);
        }
        at.push(root);
    }
    Roots { at, reasons }
}
