//! `kforge report`: what is recorded of blocks. Runs nothing.

use super::{
    error::{Error, Outcome},
    print::{self, YELLOW},
    project::{Opened, Selection},
};
use crate::{
    build::{
        graph::{Decision, History, StaleReason, Step, StepKind},
        report::{
            BlockReport,
            record::{self, Record},
        },
    },
    digest::Digest,
    plan::stage::StageGraph,
    protocol::{audit::Audit, blob, recipe},
    store::out,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{io, path::Path};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 every block has a record and was accepted, 1 one was rejected, 2 the manifest or the \
                        command line, 4 one was not built or its record is stale."
)]
pub struct Args {
    #[command(flatten)]
    selection: Selection,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is known of one block.
enum State {
    Recorded(Box<Recorded>),
    NotBuilt,
    /// Why the record is no longer of what the manifest says.
    Stale(String),
}

struct Recorded {
    audit: Audit,
    stages: StageGraph,
    report: Option<BlockReport>,
}

pub fn main(directory: &Path, args: Args) -> Result<Outcome, Error> {
    let opened = Opened::open(directory, &args.selection)?;
    let decisions = opened.graph.status(&opened.store, |_| false);
    let states: Vec<_> = (0..opened.blocks.len()).map(|it| Block::new(&opened, &decisions, it).state()).collect();
    if args.json {
        let blocks: Vec<_> =
            opened.blocks.iter().zip(&states).map(|(it, state)| to_json(&it.name, &it.target, state)).collect();
        print::json(&json!({ "version": 1, "project": opened.project.name, "blocks": blocks }))?;
    } else {
        let texts: Vec<_> =
            opened.blocks.iter().zip(&states).map(|(it, state)| text(&it.name, &it.target, state)).collect();
        print::out(&texts.join("\n"))?;
    }
    Ok(outcome(&states))
}

fn outcome(states: &[State]) -> Outcome {
    let rejected = |it: &State| matches!(it, State::Recorded(it) if !it.audit.accepted());
    if states.iter().any(rejected) {
        Outcome::StepFailed
    } else if states.iter().all(|it| matches!(it, State::Recorded(_))) {
        Outcome::Done
    } else {
        Outcome::Stale
    }
}

/// What is the next step of a block without a record.
fn next(name: &str, target: &str) -> String {
    format!("kforge build {name}@{target}")
}

fn text(name: &str, target: &str, state: &State) -> String {
    let color = print::colored(&io::stdout());
    let problem = match state {
        State::Recorded(it) => {
            let record = Record { audit: &it.audit, stages: &it.stages, report: it.report.as_ref() };
            let width = if color { print::width() } else { 160 };
            let mut text = record::text(&record, width, color);
            if it.report.is_none() && it.audit.accepted() {
                text += &format!("\nnot measured: `{}`\n", next(name, target));
            }
            return text;
        }
        State::NotBuilt => "not built".to_owned(),
        State::Stale(why) => format!("stale ({why})"),
    };
    format!("{name}@{target}: {}: `{}`\n", print::paint(color, YELLOW, &problem), next(name, target))
}

fn to_json(name: &str, target: &str, state: &State) -> Value {
    let mut value = match state {
        State::Recorded(it) => json!({ "state": "recorded", "audit": it.audit, "report": it.report }),
        State::NotBuilt => json!({ "state": "not-built", "next": next(name, target) }),
        State::Stale(why) => json!({ "state": "stale", "why": why, "next": next(name, target) }),
    };
    value["block"] = json!(name);
    value["target"] = json!(target);
    value
}

/// One block's row of the graph.
struct Block<'a> {
    opened: &'a Opened,
    decisions: &'a [Decision],
    subject: usize,
}

impl<'a> Block<'a> {
    fn new(opened: &'a Opened, decisions: &'a [Decision], subject: usize) -> Self {
        Self { opened, decisions, subject }
    }

    /// The digest of what a step made, if the step is up to date.
    fn output(&self, kind: StepKind, name: &str) -> Option<Digest> {
        let step = self.opened.step(self.subject, kind)?;
        self.decisions[step.id.index()].outputs()?.get(name).copied()
    }

    fn read<T: DeserializeOwned>(&self, digest: Digest) -> Option<T> {
        serde_json::from_slice(&self.opened.store.cas.get(&digest).ok()?).ok()
    }

    fn state(&self) -> State {
        let audit = self.output(StepKind::Verify, blob::AUDIT).and_then(|it| self.read(it));
        let stages = self.output(StepKind::Plan, blob::STAGES).and_then(|it| self.read(it));
        if let (Some(audit), Some(stages)) = (audit.or_else(|| self.rejected()), stages) {
            let report = self.output(StepKind::Report, blob::REPORT).and_then(|it| self.read(it));
            return State::Recorded(Box::new(Recorded { audit, stages, report }));
        }
        let row = || self.opened.graph.steps().iter().filter(|it| it.subject == Some(self.subject));
        if row().all(|it| self.opened.store.latest(it.identity()).is_none()) {
            return State::NotBuilt;
        }
        let reason = |step: &Step| match &self.decisions[step.id.index()] {
            Decision::Stale { reason: StaleReason::NeverBuilt, .. } => Some(format!("`{}` never succeeded", step.kind)),
            Decision::Stale { reason, .. } => Some(format!("`{}`: {reason}", step.kind)),
            _ => None,
        };
        State::Stale(row().find_map(reason).unwrap_or_else(|| "a blob of its record cannot be read".to_owned()))
    }

    /// The audit that the last build's failed verification left in `out/`, if it is still of this block's plan and object,
    /// judged by this kforge on this machine: a step that failed has no record, and would fail again.
    fn rejected(&self) -> Option<Audit> {
        let Opened { store, blocks, rules, .. } = self.opened;
        let block = blocks.get(self.subject)?;
        let folder = store.out(&format!("{}@{}", block.name, block.target));
        let audit: Audit = self.read(out::copied_from(&folder, "audit.json")?)?;
        let current = audit.object == self.output(StepKind::Compile, blob::OBJECT)
            && Some(audit.plan_digest) == self.output(StepKind::Plan, blob::PLAN)
            && audit.device.fingerprint == block.device.fingerprint()
            && audit.recipes.verify == recipe::VERIFY
            && (&audit.workload.spec, audit.threads, audit.seed) == (&block.spec, block.threads, Some(rules.seed));
        (current && !audit.accepted()).then_some(audit)
    }
}
