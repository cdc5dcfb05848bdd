//! `kforge build`, and the same for the commands that need a block built first.

use super::{
    error::{Error, Outcome},
    gc,
    listeners::{Files, Listeners},
    print::{self, CYAN, GREEN, YELLOW},
    project::{self, Opened, Selection},
    result,
};
use crate::{
    build::{
        engine::{
            action::Workers,
            control::Control,
            devices::ground::Ground,
            interrupt,
            lease::{self, Patience},
            observe::{Event, Observer, Wait},
            out,
            run::{self, Built, Options, StepResult},
            worker::{Leash, Toolchain},
        },
        graph::{
            Decision, Outputs, Step, StepId,
            causes::{self, Cause},
            output,
        },
        report::terminal::{Line, State},
        uptodate::{self, Summary},
    },
    host::CpuFacts,
    protocol::FailureKind,
    store::{cas::BlobError, out::OutError},
};
use serde_json::json;
use std::{
    collections::BTreeSet,
    io,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

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
    #[command(flatten)]
    how: How,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    files: Files,
}

/// What a build and a watch have in common.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct How {
    /// Go on with what does not depend on a failed step
    #[arg(short = 'k', long)]
    keep_going: bool,
    /// Steps that run at a time; those that measure always run alone
    #[arg(short = 'j', long, value_name = "N", value_parser = jobs)]
    jobs: Option<usize>,
    /// How often a step is tried again that crashed, ran into a limit or measured what cannot be; it is then marked flaky.
    /// What the verifier rejected is never tried again
    #[arg(long, value_name = "N", default_value_t = 0)]
    retries: usize,
    /// Seconds to wait for another process that makes the same step, cleans, or measures; as long as it takes if not given
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
}

fn jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(jobs @ 1..=1024) => Ok(jobs),
        _ => Err("a whole number from 1 to 1024 was expected".to_owned()),
    }
}

pub fn main(directory: &Path, args: Args) -> Result<Outcome, Error> {
    let cpu = CpuFacts::detect();
    let Selection { blocks, target, group } = &args.selection;
    let selection = uptodate::selection(blocks, target.as_deref(), group.as_deref());
    if !args.force
        && !args.json
        && !args.files.any()
        && let Some(summary) = uptodate::recall(&project::root(directory), &selection, &cpu)
    {
        return say_again(&summary, &args);
    }
    let opened = Opened::open(directory, &args.selection)?;
    let force = args.force;
    let start = Instant::now();
    let decisions = opened.graph.status(&opened.store, |_| force);
    let deciding = start.elapsed();
    let causes = causes::causes(&opened.graph, &decisions, &opened.store);
    if args.dry_run || args.locked {
        return foresee(&opened, &decisions, &causes, &args);
    }
    let listeners = Listeners::open(directory, &opened, &args.files, args.explain)?;
    let goals = opened.goals();
    let built = match nothing_to_do(&opened, &decisions, &goals)? {
        Some(built) => {
            remember(&opened, &built, &selection);
            let all = listeners.all();
            all.event(Event::Begun { steps: 0, deciding });
            all.event(Event::Ended { counts: built.counts(), interrupted: false });
            Ok(built)
        }
        None => {
            if !args.explain {
                listeners.causes(&causes::top(&causes));
            }
            build(&opened, &Request { goals: &goals, force, how: &args.how }, &listeners.all())
        }
    };
    if built.as_ref().is_ok_and(|it| it.counts().ran > 0) {
        gc::after_build(directory, &opened);
    }
    let told = listeners.finish();
    both(built.and_then(|built| result::conclude(&opened, &built, &causes, args.json)), told)
}

/// How a build ended whose files may be incomplete. What is wrong with the build matters more than what is wrong with them.
fn both(outcome: Result<Outcome, Error>, told: Result<(), Error>) -> Result<Outcome, Error> {
    match (outcome, told) {
        (Ok(Outcome::Done), Err(error)) => Err(error),
        (outcome, Err(error)) => {
            print::warning(&error.to_string());
            outcome
        }
        (outcome, Ok(())) => outcome,
    }
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
    let request = Request { goals: &goals, force: false, how: &How::default() };
    let built = build(opened, &request, &Listeners::quiet().all())?;
    Ok(match &built.outputs[step.index()] {
        Some(_) => Wanted::Built(gathered(opened, step, |it| built.outputs[it.index()].as_ref())),
        None => Wanted::Not(result::outcome(&built)),
    })
}

/// What the step made and what the steps that it reads made; of outputs of one name that of the later step.
fn gathered<'a>(opened: &Opened, step: StepId, outputs_of: impl Fn(StepId) -> Option<&'a Outputs>) -> Outputs {
    let steps = opened.graph.step(step).deps.iter().copied().chain([step]);
    steps.filter_map(outputs_of).flat_map(Outputs::iter).map(|(name, digest)| (name, *digest)).collect()
}

pub struct Request<'a> {
    pub goals: &'a [StepId],
    pub force: bool,
    pub how: &'a How,
}

/// Builds until it is done or a signal comes.
pub fn build(opened: &Opened, request: &Request<'_>, observer: &dyn Observer) -> Result<Built, Error> {
    let built = locked(opened, request, observer);
    if let Err(error) = &built {
        observer.event(Event::Aborted { error: &error.to_string() });
    }
    built
}

fn locked(opened: &Opened, request: &Request<'_>, observer: &dyn Observer) -> Result<Built, Error> {
    let leash = Arc::new(Leash::default());
    let _guard = interrupt::guard(&leash);
    let built = build_under((&leash, &Control::default()), opened, request, observer)?;
    let lost = |it: &StepResult| matches!(it, StepResult::Failed { failure, .. } if failure.kind == FailureKind::DeviceUnavailable);
    if built.results.iter().any(lost) {
        // A GPU that went although nothing of what its memo rests on changed: the next build looks for it. Losing the attempt to
        // forget it costs one more failed build.
        let _ = opened.store.forget_all();
    }
    for path in opened.sources.changed(&opened.project.root) {
        let path = path.display();
        print::warning(&format!("`{path}` was edited during the build, whose results are of what it said before"));
    }
    Ok(built)
}

/// Takes the directory's lock and builds until it is done, interrupted or superseded.
pub fn build_under(
    (leash, control): (&Leash, &Control),
    opened: &Opened,
    request: &Request<'_>,
    observer: &dyn Observer,
) -> Result<Built, Error> {
    let How { keep_going, retries, jobs, wait } = *request.how;
    let wait = wait.map(Duration::from_secs);
    let start = Instant::now();
    let on_wait = |holder: &_| observer.event(Event::Waiting { what: Wait::Directory, holder });
    let patience = Patience { cancelled: &|| leash.is_cancelled(), limit: wait };
    let (_lock, found) = lease::directory(&opened.store, &patience, on_wait)?.ok_or_else(Error::interrupted)?;
    observer.event(Event::Acquired { what: Wait::Directory, waited: start.elapsed() });
    project::notices(&found);
    let jobs = jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let force = request.force;
    let forced = move |_: &Step| force;
    let toolchain = Toolchain::new(opened.store.dir());
    let workers = Workers { toolchain: &toolchain, leash };
    let once = |forced: &dyn Fn(&Step) -> bool| {
        let options = Options { jobs, keep_going, retries, wait, forced, goals: request.goals };
        run::run(&opened.workspace(), &options, &workers, (leash, control), observer)
    };
    let mut built = once(&forced)?;
    let mut lost = BTreeSet::new();
    loop {
        match out::after(&opened.workspace(), &built) {
            Ok(_) => return Ok(built),
            // A blob that looked intact turned out not to be when it was copied. It is known to be lost now; the same one again
            // is more than one loss.
            Err(OutError::Blob { source, .. }) if source.missed().is_some_and(|it| lost.insert(it)) => {
                print::warning(&format!("{source}; it is made again"));
                built = merge(built, once(&|_| false)?);
            }
            Err(error) => return Err(error.into()),
        }
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
pub fn nothing_to_do(opened: &Opened, decisions: &[Decision], goals: &[StepId]) -> Result<Option<Built>, Error> {
    let mut outputs = vec![None; decisions.len()];
    for goal in goals {
        let Decision::UpToDate { key, outputs: made } = &decisions[goal.index()] else { return Ok(None) };
        // Going back to an earlier state of the manifest makes its results current again.
        opened.store.records.set_latest(opened.graph.step(*goal).identity(), key)?;
        outputs[goal.index()] = Some(made.clone());
    }
    let folders = out::folders(opened.graph.steps(), |id| outputs[id.index()].as_ref());
    match out::materialise(&opened.store, &folders) {
        Ok(_) => {}
        Err(OutError::Blob { source: BlobError::Missing { .. } | BlobError::Corrupt { .. }, .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let results = outputs.iter().map(|it| if it.is_some() { StepResult::UpToDate } else { StepResult::NotReached });
    Ok(Some(Built { results: results.collect(), outputs, interrupted: false, superseded: false }))
}

/// Keeps what a build with nothing to do says, so that the next one need not find out again.
fn remember(opened: &Opened, built: &Built, selection: &str) {
    let (lines, more) = result::lines(opened, built);
    let lines = lines.into_iter().map(|it| it.cells).collect();
    let summary = Summary { steps: opened.graph.len(), lines, more };
    let folders = out::folders(opened.graph.steps(), |id| built.outputs[id.index()].as_ref());
    let folders: Vec<_> =
        folders.into_iter().map(|(name, files)| (name, files.into_iter().map(|it| it.0).collect())).collect();
    let from = (opened.project.root.as_path(), &opened.sources);
    let ground = opened.uses_gpus().then(Ground::now);
    // Nothing depends on it, and a folder that cannot be written is told of by whoever must write to it.
    let _ = uptodate::remember(&opened.store, from, selection, (&opened.cpu, ground), &folders, &summary);
}

/// What [`result::conclude`] and [`foresee`] say where there is nothing to do.
fn say_again(summary: &Summary, args: &Args) -> Result<Outcome, Error> {
    let steps = summary.steps;
    let text = if args.dry_run || args.locked {
        nothing_stale(0, steps)
    } else {
        let lines = summary.lines.iter().map(|it| Line { state: State::UpToDate, cells: it.clone() }).collect();
        result::table(lines, summary.more) + &result::done(GREEN, "done", &format!("0 steps run, {steps} up to date"))
    };
    print::out(&text)?;
    Ok(Outcome::Done)
}

fn nothing_stale(stale: usize, up_to_date: usize) -> String {
    format!("{stale} steps stale or waiting for stale ones, {up_to_date} up to date\n")
}

/// `-n` and `--locked`.
fn foresee(opened: &Opened, decisions: &[Decision], causes: &[Cause], args: &Args) -> Result<Outcome, Error> {
    let is_stale = |it: &&Decision| !matches!(it, Decision::UpToDate { .. });
    let stale = decisions.iter().filter(is_stale).count();
    if args.json {
        let steps = opened.graph.steps().iter().zip(decisions);
        let steps: Vec<_> =
            steps.map(|(step, it)| json!({ "step": step.identity(), "status": output::status(it) })).collect();
        let project = &opened.project.name;
        print::json(&json!({ "version": 1, "project": project, "stale": stale, "causes": causes, "steps": steps }))?;
    } else {
        let color = print::colored(&io::stdout());
        let mut text = String::new();
        // Whoever sees why each step is stale needs no summary of it.
        let each = args.explain || args.locked;
        for (step, decision) in opened.graph.steps().iter().zip(decisions) {
            let (style, verb, why) = match decision {
                Decision::UpToDate { .. } => continue,
                Decision::Stale { reason, .. } => (YELLOW, "stale", format!(": {reason}")),
                Decision::Unknown { .. } => (CYAN, "may run", String::new()),
            };
            let why = if each { why } else { String::new() };
            text += &format!("{} {}{why}\n", print::paint(color, style, &format!("{verb:>9}")), step.identity());
        }
        if !each {
            causes::top(causes).iter().for_each(|it| text += &format!("{it}\n"));
        }
        print::out(&(text + &nothing_stale(stale, decisions.len() - stale)))?;
    }
    Ok(if args.locked && stale > 0 { Outcome::Stale } else { Outcome::Done })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incomplete_file_is_a_failure_only_of_a_build_that_succeeded() {
        let told = || Err(Error::environment("`trace` is incomplete"));
        assert_eq!(both(Ok(Outcome::Done), told()).unwrap_err().code(), Outcome::Environment);
        assert_eq!(both(Ok(Outcome::StepFailed), told()).unwrap(), Outcome::StepFailed);
        assert_eq!(both(Err(Error::interrupted()), told()).unwrap_err().code(), Outcome::Interrupted);
        assert_eq!(both(Ok(Outcome::Done), Ok(())).unwrap(), Outcome::Done);
    }
}
