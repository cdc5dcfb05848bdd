//! What a build tells at its end: the table, the counts, the JSON, the exit code.

use super::{
    error::{Error, Outcome},
    print::{self, GREEN, RED, YELLOW},
    project::Opened,
};
use crate::{
    build::{
        engine::{
            observe::Counts,
            run::{Built, StepResult},
        },
        graph::{History, Outputs, Step, StepId, StepKind, causes::Cause},
        report::{
            BlockReport,
            terminal::{self, Line, State},
        },
    },
    protocol::{FailureKind, blob},
};
use serde_json::{Value, json};
use std::io;

pub fn outcome(built: &Built) -> Outcome {
    if built.interrupted {
        Outcome::Interrupted
    } else if built.failed() > 0 {
        // A step that could not read or write, or had no device, is no judgement on what it was to make.
        let environment = |it: &&StepResult| match it {
            StepResult::Failed { failure, .. } => {
                matches!(failure.kind, FailureKind::Io | FailureKind::DeviceUnavailable)
            }
            _ => false,
        };
        if built.results.iter().filter(environment).count() == built.failed() {
            Outcome::Environment
        } else {
            Outcome::StepFailed
        }
    } else {
        Outcome::Done
    }
}

/// Prints what was built.
pub fn conclude(opened: &Opened, built: &Built, causes: &[Cause], json: bool) -> Result<Outcome, Error> {
    if json {
        print::json(&to_json(opened, built, causes))?;
    } else {
        let (lines, more) = lines(opened, built);
        print::out(&(table(lines, more) + &summary(built)))?;
    }
    Ok(outcome(built))
}

/// What a build changed: the blocks that something happened to, their figures against the last ones, and the counts.
pub fn news(opened: &Opened, built: &Built) -> String {
    let rows = rows(opened);
    let mut lines = Vec::new();
    let mut changes = String::new();
    for (block, steps) in opened.blocks.iter().zip(&rows) {
        let Some(state) = state(opened, built, steps).filter(|it| *it != State::UpToDate) else { continue };
        let report = report(opened, built, steps);
        if let Some(change) = report.as_ref().and_then(|it| change(opened, steps, it)) {
            changes += &format!("{}@{}: {change}\n", block.name, block.target);
        }
        lines.push(Line::new(&block.name, &block.target, state, report.as_ref()));
    }
    table(lines, 0) + &changes + &summary(built)
}

/// The block's time against that of the report that this one replaced.
fn change(opened: &Opened, steps: &[StepId], report: &BlockReport) -> Option<String> {
    let before = opened.store.before(report_step(opened, steps)?.identity())?;
    let before = read_report(opened, &before.outputs)?;
    let (was, is) = (before.measured.timing.median_ns, report.measured.timing.median_ns);
    let percent = (is / was - 1.0) * 100.0;
    Some(format!("{}, was {} ({percent:+.1}%)", terminal::duration(is), terminal::duration(was)))
}

/// The report that one of these steps made, if there is one.
fn report(opened: &Opened, built: &Built, steps: &[StepId]) -> Option<BlockReport> {
    read_report(opened, built.outputs[report_step(opened, steps)?.id.index()].as_ref()?)
}

fn report_step<'a>(opened: &'a Opened, steps: &[StepId]) -> Option<&'a Step> {
    steps.iter().map(|it| opened.graph.step(*it)).find(|it| it.kind == StepKind::Report)
}

fn read_report(opened: &Opened, outputs: &Outputs) -> Option<BlockReport> {
    serde_json::from_slice(&opened.store.cas.get(outputs.get(blob::REPORT)?).ok()?).ok()
}

/// The steps of each block.
fn rows(opened: &Opened) -> Vec<Vec<StepId>> {
    let mut rows = vec![Vec::new(); opened.blocks.len()];
    for step in opened.graph.steps() {
        if let Some(row) = step.subject.and_then(|it| rows.get_mut(it)) {
            row.push(step.id);
        }
    }
    rows
}

/// Blocks that are up to date are shown until there are so many lines.
const SHOWN: usize = 50;

/// The lines of the table: all blocks that something happened to, and of the others the first; and how many more there are.
pub fn lines(opened: &Opened, built: &Built) -> (Vec<Line>, usize) {
    let rows = rows(opened);
    let states: Vec<_> = rows.iter().map(|it| state(opened, built, it)).collect();
    let news = states.iter().filter(|it| !matches!(it, None | Some(State::UpToDate))).count();
    let (mut room, mut more) = (SHOWN.saturating_sub(news), 0);
    let mut lines = Vec::new();
    for ((block, steps), state) in opened.blocks.iter().zip(&rows).zip(states) {
        let Some(state) = state else { continue };
        if state == State::UpToDate {
            if room == 0 {
                more += 1;
                continue;
            }
            room -= 1;
        }
        lines.push(Line::new(&block.name, &block.target, state, report(opened, built, steps).as_ref()));
    }
    (lines, more)
}

pub fn table(lines: Vec<Line>, more: usize) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let color = print::colored(&io::stdout());
    let width = if color { print::width() } else { 160 };
    let rest =
        if more > 0 { format!("and {more} more, up to date: `kforge report` shows them\n") } else { String::new() };
    terminal::table(&lines, width, color) + &rest
}

/// What became of a block with these steps; `None` where the build ended before it was finished.
fn state(opened: &Opened, built: &Built, steps: &[StepId]) -> Option<State> {
    let mut state = State::UpToDate;
    for step in steps.iter().map(|it| opened.graph.step(*it)) {
        match &built.results[step.id.index()] {
            StepResult::UpToDate => {}
            StepResult::Ran { failures, .. } if !failures.is_empty() => {
                state = State::Flaky(step.kind.name().to_owned());
            }
            StepResult::Ran { .. } if state == State::UpToDate => state = State::Built,
            StepResult::Ran { .. } => {}
            StepResult::Failed { .. } => return Some(State::Failed(step.kind.name().to_owned())),
            StepResult::Skipped { because } => {
                return Some(State::Failed(opened.graph.step(*because).kind.name().to_owned()));
            }
            StepResult::NotReached => return None,
        }
    }
    Some(state)
}

pub fn summary(built: &Built) -> String {
    let Counts { ran, flaky, up_to_date, failed, skipped, not_reached } = built.counts();
    let mut text = format!("{ran} steps run, {up_to_date} up to date");
    for (number, word) in [(flaky, "flaky"), (failed, "failed"), (skipped, "skipped"), (not_reached, "not reached")] {
        if number > 0 {
            text += &format!(", {number} {word}");
        }
    }
    let (style, word) = match outcome(built) {
        Outcome::Done => (GREEN, "done"),
        Outcome::Interrupted => (YELLOW, "interrupted"),
        _ => (RED, "failed"),
    };
    done(style, word, &text)
}

/// The last line of a build.
pub fn done(style: anstyle::Style, word: &str, text: &str) -> String {
    format!("{}: {text}\n", print::paint(print::colored(&io::stdout()), style, word))
}

fn to_json(opened: &Opened, built: &Built, causes: &[Cause]) -> Value {
    let step = |(step, result): (&Step, &StepResult)| {
        let mut value = match result {
            StepResult::NotReached => json!({ "result": "not-reached" }),
            StepResult::UpToDate => json!({ "result": "up-to-date" }),
            StepResult::Ran { reason, wall, unchanged, failures } => json!({
                "result": if failures.is_empty() { "ran" } else { "flaky" }, "failures": failures, "reason": reason, "text": reason.to_string(), "wall-ms": wall.as_secs_f64() * 1e3,
                "unchanged": unchanged,
            }),
            StepResult::Failed { reason, failure } => {
                json!({ "result": "failed", "reason": reason, "failure": failure })
            }
            StepResult::Skipped { because } => {
                json!({ "result": "skipped", "because": opened.graph.step(*because).identity() })
            }
        };
        value["step"] = json!(step.identity());
        value
    };
    let steps: Vec<_> = opened.graph.steps().iter().zip(&built.results).map(step).collect();
    let Counts { ran, flaky, up_to_date, failed, skipped, not_reached } = built.counts();
    json!({
        "version": 1,
        "project": opened.project.name,
        "exit-code": outcome(built) as u8,
        "run": ran,
        "up-to-date": up_to_date,
        "flaky": flaky,
        "failed": failed,
        "skipped": skipped,
        "not-reached": not_reached,
        "causes": causes,
        "steps": steps,
        "reports": rows(opened).iter().filter_map(|it| report(opened, built, it)).collect::<Vec<_>>(),
    })
}
