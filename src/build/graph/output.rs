//! The graph as text: `dot` and `mermaid` for pictures, `json` for programs.

use super::{Decision, Graph, Input, Step};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Version of the JSON's shape.
pub const GRAPH_VERSION: u32 = 1;

/// Graphviz: one cluster for each block and target, one node for each step. With decisions, a step that is up to date is
/// green, a stale one red, one that may be stale yellow; gates are dashed.
pub fn dot(graph: &Graph, decisions: Option<&[Decision]>) -> String {
    let mut out = String::from("digraph kforge {\n  rankdir=LR;\n  node [shape=box, style=filled, fillcolor=white];\n");
    for (index, (title, steps)) in clusters(graph).into_iter().enumerate() {
        line(&mut out, format_args!("  subgraph cluster_{index} {{\n    label={};", quoted(&title)));
        for step in steps {
            let fill = decisions.map_or(String::new(), |it| format!(", fillcolor={}", colour(&it[step.id.index()])));
            line(&mut out, format_args!("    s{} [label={}{fill}];", step.id.0, quoted(step.kind.name())));
        }
        line(&mut out, format_args!("  }}"));
    }
    for (step, dep, names) in edges(graph) {
        let style = if names.is_empty() { "style=dashed".to_owned() } else { format!("label={}", quoted(&names)) };
        line(&mut out, format_args!("  s{dep} -> s{step} [{style}];"));
    }
    out.push_str("}\n");
    out
}

/// Mermaid, as Markdown pages show it.
pub fn mermaid(graph: &Graph, decisions: Option<&[Decision]>) -> String {
    let mut out = String::from("flowchart LR\n");
    for (index, (title, steps)) in clusters(graph).into_iter().enumerate() {
        line(&mut out, format_args!("  subgraph c{index}[\"{}\"]", title.replace('"', "#quot;")));
        for step in steps {
            line(&mut out, format_args!("    s{}[{}]", step.id.0, step.kind));
        }
        line(&mut out, format_args!("  end"));
    }
    for (step, dep, names) in edges(graph) {
        let arrow = if names.is_empty() { "-.->".to_owned() } else { format!("-- \"{names}\" -->") };
        line(&mut out, format_args!("  s{dep} {arrow} s{step}"));
    }
    for (step, decision) in graph.steps().iter().zip(decisions.unwrap_or_default()) {
        line(&mut out, format_args!("  style s{} fill:{}", step.id.0, colour(decision)));
    }
    out
}

/// `{ version, steps: [{ id, step, kind, class, block, target, deps, inputs, gates, params, status? }] }`, pretty-printed.
pub fn json(graph: &Graph, decisions: Option<&[Decision]>) -> String {
    let step = |step: &Step| {
        let read = |it: &Input| json!({ "name": it.name, "step": it.step });
        let (inputs, gates): (Vec<_>, Vec<_>) =
            (step.inputs.iter().map(read).collect(), step.gates.iter().map(read).collect());
        let mut value = json!({
            "id": step.id, "step": step.identity(), "kind": step.kind, "class": step.class(), "block": step.block.as_deref(),
            "target": &*step.target, "threads": step.threads, "deps": step.deps, "inputs": inputs, "gates": gates, "params": step.params(),
        });
        if let Some(decision) = decisions.map(|it| &it[step.id.index()]) {
            value["status"] = status(decision);
        }
        value
    };
    let value = json!({ "version": GRAPH_VERSION, "steps": graph.steps().iter().map(step).collect::<Vec<_>>() });
    format!("{value:#}\n")
}

/// A decision as every `--json` output shows it.
pub fn status(decision: &Decision) -> Value {
    match decision {
        Decision::UpToDate { key, outputs } => json!({ "state": "up-to-date", "key": key, "outputs": outputs }),
        Decision::Stale { key, reason, .. } => {
            json!({ "state": "stale", "key": key, "reason": reason, "text": reason.to_string() })
        }
        Decision::Unknown { waits_for } => json!({ "state": "may-be-stale", "waits-for": waits_for }),
    }
}

/// Steps by block and target, in the order of their first steps.
fn clusters(graph: &Graph) -> Vec<(String, Vec<&Step>)> {
    let mut clusters: Vec<(String, Vec<&Step>)> = Vec::new();
    for step in graph.steps() {
        let title = step.identity().rsplit_once(':').map_or(step.identity(), |it| it.0);
        match clusters.last_mut() {
            Some((last, steps)) if last == title => steps.push(step),
            _ => clusters.push((title.to_owned(), vec![step])),
        }
    }
    clusters
}

/// (step, dependency, names of the blobs read); no names for a gate.
fn edges(graph: &Graph) -> impl Iterator<Item = (u32, u32, String)> {
    graph.steps().iter().flat_map(|step| {
        step.deps.iter().map(|&dep| {
            let names: Vec<_> = step.inputs.iter().filter(|it| it.step == dep).map(|it| it.name).collect();
            (step.id.0, dep.0, names.join(", "))
        })
    })
}

const fn colour(decision: &Decision) -> &'static str {
    match decision {
        Decision::UpToDate { .. } => "palegreen",
        Decision::Stale { .. } => "salmon",
        Decision::Unknown { .. } => "khaki",
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).unwrap_or(()); // writing to a String cannot fail
    out.push('\n');
}
