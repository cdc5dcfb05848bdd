//! `kforge why BLOCK@TARGET[:STEP]`.

use super::{
    error::{Error, Outcome},
    print,
    project::{Opened, Selection},
};
use crate::build::graph::{Step, StepKind, why::why};
use std::path::Path;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// BLOCK@TARGET, or BLOCK@TARGET:STEP for one step (ir, plan, compile, verify, benchmark, report)
    #[arg(value_name = "BLOCK@TARGET[:STEP]")]
    step: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn main(directory: &Path, args: Args) -> Result<Outcome, Error> {
    let (name, step) = match args.step.rsplit_once(':') {
        Some((name, step)) => (name, step),
        None => (args.step.as_str(), StepKind::Report.name()),
    };
    let Some(kind) = StepKind::ALL.into_iter().find(|it| it.name() == step) else {
        let names: Vec<_> = StepKind::ALL.iter().map(|it| format!("`{}`", it.name())).collect();
        return Err(
            Error::input(format!("there is no step `{step}`")).with_hint(format!("steps: {}", names.join(", ")))
        );
    };
    let selection = Selection { blocks: vec![name.to_owned()], ..Selection::default() };
    let opened = Opened::open(directory, &selection)?;
    let decisions = opened.graph.status(&opened.store, |_| false);
    let steps = opened.graph.steps().iter().filter(|it| it.kind == kind);
    let origin_of = |step: &str, field: &str| {
        let subject = opened.graph.step(opened.graph.find(step)?).subject?;
        opened.origins.get(subject)?.get(field).cloned()
    };
    let answer = |it: &Step| {
        let mut answer = why(&opened.graph, it.id, &decisions, &opened.store);
        answer.locate(origin_of);
        answer
    };
    let answers: Vec<_> = steps.map(answer).collect();
    if args.json {
        print::json(&answers)?;
    } else {
        let texts: Vec<_> = answers.iter().map(ToString::to_string).collect();
        print::out(&(texts.join("\n") + "\n"))?;
    }
    Ok(Outcome::Done)
}
