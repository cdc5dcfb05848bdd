//! `kforge build`, and the same for the commands that need a block built first.

use super::{
    error::{Error, Outcome},
    gc,
    print::{self, CYAN, GREEN, RED, YELLOW},
    progress::Progress,
    project::{self, Opened, Selection},
};
use crate::{
    build::{
        engine::{
            interrupt, lease,
            observe::{Event, Observer, Wait},
            out,
            run::{self, Built, Options, StepResult},
            worker::Leash,
        },
        graph::{Decision, Outputs, Step, StepId, StepKind, output},
        report::{BlockReport, terminal},
    },
    protocol::{FailureKind, blob},
    store::{Store, cas::BlobError, out::OutError},
};
use serde_json::{Value, json};
use std::{io, path::Path, sync::Arc, thread};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    selection: Selection,
    /// Say what would run, and run nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Say why each step runs
    #[arg(long)]
    explain: bool,
    /// Fail (4) if anything is stale, and run nothing
    #[arg(long)]
    locked: bool,
    /// Run every step, stale or not
    #[arg(long, conflicts_with = "locked")]
    force: bool,
    /// Go on with what does not depend on a failed step
    #[arg(short = 'k', long)]
    keep_going: bool,
    /// Steps that run at a time; those that measure always run alone
    #[arg(short = 'j', long, value_name = "N", value_parser = jobs)]
    jobs: Option<usize>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

fn jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(jobs @ 1..=1024) => Ok(jobs),
        _ => Err("a whole number from 1 to 1024 was expected".to_owned()),
    }
}

pub fn main(directory: &Path, args: Args) -> Result<Outcome, Error> {
    let opened = Opened::open(directory, &args.selection)?;
    let force = args.force;
    let decisions = opened.graph.status(&opened.store, |_| force);
    if args.dry_run || args.locked {
        return foresee(&opened, &decisions, &args);
    }
    if let Some(built) = nothing_to_do(&opened, &decisions, &opened.goals())? {
        return conclude(&opened, &built, &args);
    }
    let options = Request { goals: &opened.goals(), force, keep_going: args.keep_going, jobs: args.jobs };
    let progress = Progress::new(args.explain);
    let built = build(&opened, &options, &progress)?;
    if built.ran() > 0 {
        gc::after_build(directory, &opened);
    }
    conclude(&opened, &built, &args)
}

/// What a command that needs one step done gets.
pub enum Wanted {
    /// The outputs of the step and of the steps it reads.
    Built(Outputs),
    /// It was told why on stderr.
    Not(Outcome),
}

/// Builds one step and what it depends on, if anything of that is stale.
pub fn bring_up_to_date(opened: &Opened, step: StepId) -> Result<Wanted, Error> {
    let goals = [step];
    let decisions = opened.graph.status(&opened.store, |_| false);
    if decisions[step.index()].is_up_to_date() {
        return Ok(Wanted::Built(gathered(opened, step, |it| decisions[it.index()].outputs())));
    }
    let request = Request { goals: &goals, force: false, keep_going: false, jobs: None };
    let built = build(opened, &request, &Progress::new(false))?;
    Ok(match &built.outputs[step.index()] {
        Some(_) => Wanted::Built(gathered(opened, step, |it| built.outputs[it.index()].as_ref())),
        None => Wanted::Not(outcome(&built)),
    })
}

/// What the step made and what the steps that it reads made. No two kinds of step make outputs of one name.
fn gathered<'a>(opened: &Opened, step: StepId, outputs_of: impl Fn(StepId) -> Option<&'a Outputs>) -> Outputs {
    let steps = opened.graph.step(step).deps.iter().copied().chain([step]);
    steps.filter_map(outputs_of).flatten().map(|(name, digest)| (name.clone(), *digest)).collect()
}

struct Request<'a> {
    goals: &'a [StepId],
    force: bool,
    keep_going: bool,
    jobs: Option<usize>,
}

/// Takes the directory's lock and builds.
fn build(opened: &Opened, request: &Request<'_>, progress: &Progress) -> Result<Built, Error> {
    let leash = Arc::new(Leash::default());
    let _guard = interrupt::guard(&leash);
    let on_wait = |holder: &_| progress.event(Event::Waiting { what: Wait::Directory, holder });
    let (_lock, found) = lease::directory(&opened.store, &leash, on_wait)?.ok_or_else(Error::interrupted)?;
    project::notices(&found);
    let jobs = request.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let force = request.force;
    let forced = move |_: &Step| force;
    let once = |forced: &dyn Fn(&Step) -> bool| {
        let options = Options { jobs, keep_going: request.keep_going, forced, goals: request.goals };
        run::run(&opened.workspace(), &options, &leash, progress)
    };
    let built = once(&forced)?;
    match out::after(&opened.workspace(), &built) {
        Ok(_) => Ok(built),
        // A blob that looked intact turned out not to be when it was copied. It is known to be lost now.
        Err(OutError::Blob { source, .. }) if source.is_miss() => {
            print::warning(&format!("{source}; it is made again"));
            let again = once(&|_| false)?;
            out::after(&opened.workspace(), &again)?;
            Ok(merge(built, again))
        }
        Err(error) => Err(error.into()),
    }
}

/// The result of two runs of one build: what ran in either ran.
fn merge(first: Built, second: Built) -> Built {
    let results = first.results.into_iter().zip(second.results).map(|(first, second)| match second {
        StepResult::UpToDate => first,
        second => second,
    });
    Built { results: results.collect(), ..second }
}

/// The result of a build in which every goal is up to date; `None` if there is something to do. Takes no lock and starts no
/// thread: this is what most calls of `kforge build` do.
fn nothing_to_do(opened: &Opened, decisions: &[Decision], goals: &[StepId]) -> Result<Option<Built>, Error> {
    let mut outputs = vec![None; decisions.len()];
    for goal in goals {
        let Decision::UpToDate { key, outputs: made } = &decisions[goal.index()] else { return Ok(None) };
        // Going back to an earlier state of the manifest makes its results current again.
        opened.store.records.set_latest(opened.graph.step(*goal).identity(), key)?;
        outputs[goal.index()] = Some(made.clone());
    }
    match out::materialise(&opened.store, opened.graph.steps(), |id| outputs[id.index()].as_ref()) {
        Ok(_) => {}
        Err(OutError::Blob { source: BlobError::Missing { .. } | BlobError::Corrupt { .. }, .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let results = outputs.iter().map(|it| if it.is_some() { StepResult::UpToDate } else { StepResult::NotReached });
    Ok(Some(Built { results: results.collect(), outputs, interrupted: false }))
}

/// `-n` and `--locked`.
fn foresee(opened: &Opened, decisions: &[Decision], args: &Args) -> Result<Outcome, Error> {
    let is_stale = |it: &&Decision| !matches!(it, Decision::UpToDate { .. });
    let stale = decisions.iter().filter(is_stale).count();
    if args.json {
        let steps = opened.graph.steps().iter().zip(decisions);
        let steps: Vec<_> =
            steps.map(|(step, it)| json!({ "step": step.identity(), "status": output::status(it) })).collect();
        print::json(&json!({ "version": 1, "project": opened.project.name, "stale": stale, "steps": steps }))?;
    } else {
        let color = print::colored(&io::stdout());
        let mut text = String::new();
        for (step, decision) in opened.graph.steps().iter().zip(decisions) {
            let (style, verb, why) = match decision {
                Decision::UpToDate { .. } => continue,
                Decision::Stale { reason, .. } => (YELLOW, "stale", format!(": {reason}")),
                Decision::Unknown { .. } => (CYAN, "may run", String::new()),
            };
            let why = if args.explain || args.locked { why } else { String::new() };
            text += &format!("{} {}{why}\n", print::paint(color, style, &format!("{verb:>9}")), step.identity());
        }
        let summary = format!("{stale} steps stale or waiting for stale ones, {} up to date", decisions.len() - stale);
        print::out(&(text + &summary + "\n"))?;
    }
    Ok(if args.locked && stale > 0 { Outcome::Stale } else { Outcome::Done })
}

fn outcome(built: &Built) -> Outcome {
    if built.interrupted {
        Outcome::Interrupted
    } else if built.failed() > 0 {
        // A step that could not read or write is no judgement on what it was to make.
        let is_io =
            |it: &StepResult| matches!(it, StepResult::Failed { failure, .. } if failure.kind == FailureKind::Io);
        if count(built, is_io) == built.failed() { Outcome::Environment } else { Outcome::StepFailed }
    } else {
        Outcome::Done
    }
}

/// Prints what was built.
fn conclude(opened: &Opened, built: &Built, args: &Args) -> Result<Outcome, Error> {
    let reports = reports(opened, built);
    if args.json {
        print::json(&to_json(opened, built, &reports))?;
    } else {
        let color = print::colored(&io::stdout());
        let mut text = table(opened, built, &reports, color);
        text += &summary(built, color);
        print::out(&text)?;
    }
    Ok(outcome(built))
}

/// The report of each block, where there is one.
fn reports(opened: &Opened, built: &Built) -> Vec<Option<BlockReport>> {
    let mut reports: Vec<Option<BlockReport>> = opened.blocks.iter().map(|_| None).collect();
    for step in opened.graph.steps().iter().filter(|it| it.kind == StepKind::Report) {
        let outputs = built.outputs[step.id.index()].as_ref();
        if let (Some(subject), Some(outputs)) = (step.subject, outputs) {
            reports[subject] = read_report(&opened.store, outputs);
        }
    }
    reports
}

fn read_report(store: &Store, outputs: &Outputs) -> Option<BlockReport> {
    serde_json::from_slice(&store.cas.get(outputs.get(blob::REPORT)?).ok()?).ok()
}

fn table(opened: &Opened, built: &Built, reports: &[Option<BlockReport>], color: bool) -> String {
    let blocks = opened.blocks.iter().zip(reports).enumerate();
    let rows: Vec<_> = blocks
        .filter_map(|(subject, (block, report))| {
            let state = state(opened, built, subject)?;
            Some(terminal::Row { block: &block.name, target: &block.target, state, report: report.as_ref() })
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let width = if print::colored(&io::stdout()) { print::width() } else { 160 };
    terminal::table(&rows, width, color)
}

/// What became of a block; `None` where the build ended before it was finished.
fn state(opened: &Opened, built: &Built, subject: usize) -> Option<terminal::State> {
    let mut state = terminal::State::UpToDate;
    for step in opened.graph.steps().iter().filter(|it| it.subject == Some(subject)) {
        match &built.results[step.id.index()] {
            StepResult::UpToDate => {}
            StepResult::Ran { .. } => state = terminal::State::Built,
            StepResult::Failed { .. } => return Some(terminal::State::Failed(step.kind.name().to_owned())),
            StepResult::Skipped { because } => {
                return Some(terminal::State::Failed(opened.graph.step(*because).kind.name().to_owned()));
            }
            StepResult::NotReached => return None,
        }
    }
    Some(state)
}

fn count(built: &Built, wanted: fn(&StepResult) -> bool) -> usize {
    built.results.iter().filter(|it| wanted(it)).count()
}

fn summary(built: &Built, color: bool) -> String {
    let up_to_date = count(built, |it| matches!(it, StepResult::UpToDate));
    let mut text = format!("{} steps run, {up_to_date} up to date", built.ran());
    let skipped = count(built, |it| matches!(it, StepResult::Skipped { .. }));
    let not_reached = count(built, |it| matches!(it, StepResult::NotReached));
    for (number, word) in [(built.failed(), "failed"), (skipped, "skipped"), (not_reached, "not reached")] {
        if number > 0 {
            text += &format!(", {number} {word}");
        }
    }
    let (style, word) = match outcome(built) {
        Outcome::Done => (GREEN, "done"),
        Outcome::Interrupted => (YELLOW, "interrupted"),
        _ => (RED, "failed"),
    };
    format!("{}: {text}\n", print::paint(color, style, word))
}

fn to_json(opened: &Opened, built: &Built, reports: &[Option<BlockReport>]) -> Value {
    let step = |(step, result): (&Step, &StepResult)| {
        let mut value = match result {
            StepResult::NotReached => json!({ "result": "not-reached" }),
            StepResult::UpToDate => json!({ "result": "up-to-date" }),
            StepResult::Ran { reason, wall, unchanged } => json!({
                "result": "ran", "reason": reason, "text": reason.to_string(), "wall-ms": wall.as_secs_f64() * 1e3,
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
    json!({
        "version": 1,
        "project": opened.project.name,
        "exit-code": outcome(built) as u8,
        "run": built.ran(),
        "up-to-date": count(built, |it| matches!(it, StepResult::UpToDate)),
        "failed": built.failed(),
        "skipped": count(built, |it| matches!(it, StepResult::Skipped { .. })),
        "not-reached": count(built, |it| matches!(it, StepResult::NotReached)),
        "steps": steps,
        "reports": reports.iter().flatten().collect::<Vec<_>>(),
    })
}
