//! `kforge mutate`: wrong kernels through the real verifier.

use super::{
    error::{Error, Outcome},
    print::{self, GREEN, RED},
    project::{Opened, Selection},
    worker::{Asker, any_seed},
};
use crate::{
    build::{
        engine::interrupt,
        mutate::{
            corpus,
            manifests::{self, Wrong},
            score::{Counts, Score},
            select,
            subject::{self, Subject},
            trial::{Laboratory, MutateError, Prepared, Trial},
        },
    },
    protocol::{
        Gate,
        mutation::{Family, Fate, Mutant, Proof},
    },
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    selection: Selection,
    /// Only mutants whose id contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Mutants tried of each kind (the same mistake in the same kind of code) over all blocks; 0 tries all
    #[arg(long, value_name = "N", default_value_t = 3)]
    per_kind: usize,
    /// The regression corpus: its cases are replayed first, and those are added that alone rejected a mutant; the project's
    /// `corpus` if not given
    #[arg(long, value_name = "FILE")]
    corpus: Option<PathBuf>,
    /// List the mutants and try none
    #[arg(long)]
    list: bool,
    /// Mutants that are tried at a time
    #[arg(short = 'j', long, value_name = "N")]
    jobs: Option<usize>,
    /// Of the verifier's inputs; another one each time if not given
    #[arg(long, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seed: Option<u64>,
    /// Name every rejected mutant with the gate that rejected it and why, and the largest error / bound of each stage
    #[arg(short, long)]
    verbose: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn main(directory: &Path, args: Args) -> Result<Outcome, Error> {
    let opened = Opened::open(directory, &args.selection)?;
    let subjects = subject::subjects(&opened.blocks);
    if subjects.is_empty() {
        return Err(Error::input("there is no block to mutate"));
    }
    // Hundreds of kernels that nobody wants do not go to the project's store.
    let folder = tempfile::tempdir()?;
    let asker = Asker::new(folder.path())?;
    let _guard = interrupt::guard(asker.shared_leash());
    let seed = args.seed.unwrap_or_else(any_seed);
    let mut corpus = corpus::Open::new(&opened.project, directory, args.corpus.as_deref())?;
    let cases = corpus.cases().to_vec();
    let laboratory = Laboratory {
        toolchain: asker.toolchain(),
        leash: asker.leash(),
        cas: &asker.cas,
        shaders: &opened.project.shaders,
        jobs: args.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from)),
        seed,
        corpus: &cases,
    };
    let start = Instant::now();
    let prepared = prepare(&laboratory, &subjects)?;
    let wrong = manifests::mutations(&opened.project)?;
    let chosen = Chosen::new(&prepared, wrong, &args);
    if args.list {
        return list(&chosen, args.json);
    }
    let count = chosen.manifests.len() + chosen.kernels.len();
    let bar = bar(count);
    let color = print::colored(&io::stderr());
    let on_trial = |trial: &Trial| {
        bar.inc(1);
        if bar.is_hidden() && (bar.position().is_multiple_of(PROGRESS_EVERY) || bar.position() == count as u64) {
            eprintln!("{:>9} {} of {count} mutants", "tried", bar.position());
        }
        if trial.fate == Fate::Survived {
            let verb = print::paint(color, RED, " survived");
            let line = format!("{verb} {} {}: {}", trial.block, trial.mutant.id, trial.mutant.description);
            if bar.is_hidden() { eprintln!("{line}") } else { bar.println(line) }
        }
    };
    let trials = chosen.manifests.into_iter().map(|it| it.judge().inspect(on_trial));
    let mut trials = trials.collect::<io::Result<Vec<_>>>()?;
    trials.extend(laboratory.judge_all(&chosen.kernels, &on_trial)?);
    bar.finish_and_clear();
    let score = Score::new(&trials);
    let added = corpus.add(&trials, seed)?;
    if args.json {
        print::json(&to_json(&prepared, &trials, &score, laboratory.seed))?;
    } else {
        print::out(&text(&prepared, &trials, &score, start.elapsed(), args.verbose))?;
        if let (Some(path), 1..) = (corpus.path(), added) {
            print::out(&format!("{added} cases added to {}\n", path.display()))?;
        }
    }
    Ok(if score.perfect() { Outcome::Done } else { Outcome::StepFailed })
}

/// Where stderr is a log: one line for so many mutants.
const PROGRESS_EVERY: u64 = 100;

fn prepare(laboratory: &Laboratory<'_>, subjects: &[Subject]) -> Result<Vec<Prepared>, Error> {
    Ok(subjects.iter().map(|it| laboratory.prepare(it)).collect::<Result<_, _>>()?)
}

impl From<MutateError> for Error {
    fn from(error: MutateError) -> Self {
        match error {
            MutateError::Worker(error) => error.into(),
            MutateError::Step { block, failure } => {
                let message = format!("block `{block}`: {}", failure.message);
                crate::protocol::Failure { message, ..failure }.into()
            }
        }
    }
}

fn bar(count: usize) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(Some(count as u64), ProgressDrawTarget::hidden());
    }
    let bar = ProgressBar::new(count as u64);
    let style = ProgressStyle::with_template("[{bar:24}] {pos}/{len} mutants {elapsed}, {eta} to go");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// What is tried.
struct Chosen<'a> {
    manifests: Vec<Wrong>,
    kernels: Vec<(&'a Prepared, &'a Mutant)>,
}

impl<'a> Chosen<'a> {
    fn new(prepared: &'a [Prepared], wrong: Vec<Wrong>, args: &Args) -> Self {
        let wanted = |it: &Mutant| args.only.as_ref().is_none_or(|only| it.id.contains(only));
        let wrong: Vec<Wrong> = wrong.into_iter().filter(|it| wanted(&it.mutant)).collect();
        let lists: Vec<Vec<&'a Mutant>> =
            prepared.iter().map(|it| it.mutants.iter().filter(|it| wanted(it)).collect()).collect();
        let mut chosen = {
            let mut lists: Vec<Vec<&Mutant>> = lists.clone();
            lists.push(wrong.iter().map(|it| &it.mutant).collect());
            select::spread(&lists, args.per_kind)
        };
        let manifests = chosen.pop().unwrap_or_default();
        let kernels = prepared.iter().zip(&lists).zip(chosen).flat_map(|((prepared, list), chosen)| {
            let list = list.iter().zip(chosen).filter(|it| it.1).map(|it| *it.0);
            list.map(move |mutant| (prepared, mutant)).collect::<Vec<_>>()
        });
        let kernels = kernels.collect();
        let manifests = wrong.into_iter().zip(manifests).filter(|it| it.1).map(|it| it.0).collect();
        Self { manifests, kernels }
    }
}

fn list(chosen: &Chosen<'_>, as_json: bool) -> Result<Outcome, Error> {
    let manifests = chosen.manifests.iter().map(|it| ("manifest", &it.mutant));
    let all: Vec<_> =
        manifests.chain(chosen.kernels.iter().map(|it| (it.0.subject.block.name.as_str(), it.1))).collect();
    if as_json {
        let mutants: Vec<_> = all.iter().map(|(block, it)| json!({ "block": block, "mutant": it })).collect();
        print::json(&json!({ "version": 1, "mutants": mutants }))?;
    } else {
        let row = |(block, it): &(&str, &Mutant)| vec![(*block).to_owned(), it.id.clone(), it.description.clone()];
        print::out(&print::columns(&all.iter().map(row).collect::<Vec<_>>(), false))?;
    }
    Ok(Outcome::Done)
}

fn to_json(prepared: &[Prepared], trials: &[Trial], score: &Score, seed: u64) -> serde_json::Value {
    let subject = |it: &Prepared| json!({ "block": it.subject.block.name, "scaled": it.subject.scaled, "spec": it.subject.block.spec, "mutants": it.mutants.len() });
    json!({
        "version": 1,
        "seed": seed,
        "subjects": prepared.iter().map(subject).collect::<Vec<_>>(),
        "score": score,
        "redundant-gates": score.redundant(),
        "mutants": trials,
    })
}

fn text(prepared: &[Prepared], trials: &[Trial], score: &Score, wall: Duration, verbose: bool) -> String {
    let color = print::colored(&io::stdout());
    let mut text = String::new();
    for it in prepared.iter().filter(|it| it.subject.scaled) {
        text += &format!("{} is mutated at a smaller size\n", it.subject.block.name);
    }
    text += &families(score);
    text.push('\n');
    let killed: Vec<_> = score.killed_by.iter().map(|(by, count)| format!("{} {count}", by.name())).collect();
    text += &format!("killed by: {}\n\n", killed.join(", "));
    text += &gates(score);
    for gate in score.redundant() {
        let why = match score.gates.get(&gate) {
            Some(_) => "others reject all that it rejects",
            None => "it rejected nothing",
        };
        text += &format!("{} is redundant here: {why}\n", gate.name());
    }
    let named = |word: &str, of: &dyn Fn(&Fate) -> Option<String>| -> String {
        let lines = trials.iter().filter_map(|it| {
            let why = of(&it.fate)?;
            Some(format!("{word} {} {}: {}{why}\n", it.block, it.mutant.id, it.mutant.description))
        });
        lines.collect()
    };
    let equivalents = named("equivalent", &|fate| match fate {
        Fate::Equivalent { proof: Proof::IdenticalCode } => Some(" (identical code)".to_owned()),
        Fate::Equivalent { proof: Proof::NeverExecuted } => Some(" (never executed)".to_owned()),
        Fate::Equivalent { proof: Proof::Reviewed(reason) } => Some(format!(" ({reason})")),
        _ => None,
    });
    let stillborn = named("stillborn", &|fate| match fate {
        Fate::Stillborn { message } => Some(format!(" ({})", message.lines().next().unwrap_or_default())),
        _ => None,
    });
    let survivors = named("SURVIVED", &|fate| (*fate == Fate::Survived).then(String::new));
    let rejected: String = trials.iter().filter(|_| verbose).filter_map(rejection).collect();
    for section in [rejected, equivalents, stillborn, survivors] {
        if !section.is_empty() {
            text += &format!("\n{section}");
        }
    }
    let (style, word) = if score.perfect() { (GREEN, "done") } else { (RED, "failed") };
    let Counts { killed, survived, .. } = score.total;
    let percent = score.percent.unwrap_or(0.0);
    text += &format!(
        "\n{}: {killed} of {} wrong kernels rejected, mutation score {percent:.1} %, {:.1} s\n",
        print::paint(color, style, word),
        killed + survived,
        wall.as_secs_f64()
    );
    text
}

/// Who rejected a mutant, and why; then the largest error / bound at each stage.
fn rejection(trial: &Trial) -> Option<String> {
    let Fate::Killed { by, evidence, .. } = &trial.fate else { return None };
    let Trial { block, mutant, stages, .. } = trial;
    let gate = evidence.gate.map_or(by.name(), Gate::name);
    let stage = evidence.stage.as_ref().map(|it| format!(", {it}")).unwrap_or_default();
    let mut text =
        format!("rejected {block} {} by {gate} ({}{stage}): {}\n", mutant.id, evidence.case, evidence.message);
    if !stages.is_empty() {
        let stages: Vec<_> = stages.iter().map(|(name, ratio)| format!("{name} {ratio:.3}")).collect();
        text += &format!("    error / bound: {}\n", stages.join(", "));
    }
    Some(text)
}

fn families(score: &Score) -> String {
    let header = ["family", "mutants", "killed", "survived", "equivalent", "stillborn", "score"].map(str::to_owned);
    let row = |name: &str, it: Counts| {
        let percent = it.score().map_or("-".to_owned(), |it| format!("{:.1} %", it * 100.0));
        let counts = [it.mutants, it.killed, it.survived, it.equivalent, it.stillborn].map(|it| it.to_string());
        [vec![name.to_owned()], counts.to_vec(), vec![percent]].concat()
    };
    let mut rows = vec![header.to_vec()];
    rows.extend(Family::ALL.iter().filter_map(|family| Some(row(family.name(), *score.families.get(family)?))));
    rows.push(row("all", score.total));
    print::columns(&rows, true)
}

fn gates(score: &Score) -> String {
    let mut rows = vec![["gate", "rejected", "alone"].map(str::to_owned).to_vec()];
    rows.extend(
        score
            .gates
            .iter()
            .map(|(gate, it)| vec![gate.name().to_owned(), it.rejected.to_string(), it.alone.to_string()]),
    );
    print::columns(&rows, true)
}
