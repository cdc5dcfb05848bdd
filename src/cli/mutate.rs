//! `kforge mutate`: wrong kernels through the real verifier.

use super::{
    error::{Error, Outcome},
    print::{self, GREEN, RED},
    project::{Opened, Selection},
    worker::Asker,
};
use crate::{
    build::{
        engine::interrupt,
        mutate::{
            score::{Counts, Score},
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
    path::Path,
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
    /// List the mutants and try none
    #[arg(long)]
    list: bool,
    /// Mutants that are tried at a time
    #[arg(short = 'j', long, value_name = "N")]
    jobs: Option<usize>,
    /// Of the verifier's inputs; another one each time if not given
    #[arg(long)]
    seed: Option<u64>,
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
    let laboratory = Laboratory {
        toolchain: asker.toolchain(),
        leash: asker.leash(),
        cas: &asker.cas,
        cpu: &opened.cpu,
        jobs: args.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from)),
        seed: args.seed.unwrap_or_else(opened_at),
    };
    let start = Instant::now();
    let prepared = prepare(&laboratory, &subjects)?;
    let wanted = |it: &Mutant| args.only.as_ref().is_none_or(|only| it.id.contains(only));
    if args.list {
        return list(&prepared, &wanted, args.json);
    }
    let count = prepared.iter().flat_map(|it| &it.mutants).filter(|it| wanted(it)).count();
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
    let trials = laboratory.judge_all(&prepared, &wanted, &on_trial)?;
    bar.finish_and_clear();
    let score = Score::new(&trials);
    if args.json {
        print::json(&to_json(&prepared, &trials, &score, laboratory.seed))?;
    } else {
        print::out(&text(&prepared, &trials, &score, start.elapsed()))?;
    }
    Ok(if score.perfect() { Outcome::Done } else { Outcome::StepFailed })
}

/// Where stderr is a log: one line for so many mutants.
const PROGRESS_EVERY: u64 = 100;

/// A seed that nobody chose.
fn opened_at() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos() & u128::from(u32::MAX)).unwrap_or_default()
}

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

fn list(prepared: &[Prepared], wanted: &dyn Fn(&Mutant) -> bool, as_json: bool) -> Result<Outcome, Error> {
    let all = prepared.iter().flat_map(|it| it.mutants.iter().map(move |mutant| (&it.subject.name, mutant)));
    let all: Vec<_> = all.filter(|it| wanted(it.1)).collect();
    if as_json {
        let mutants: Vec<_> = all.iter().map(|(block, it)| json!({ "block": block, "mutant": it })).collect();
        print::json(&json!({ "version": 1, "mutants": mutants }))?;
    } else {
        let row = |(block, it): &(&String, &Mutant)| vec![(*block).clone(), it.id.clone(), it.description.clone()];
        print::out(&print::columns(&all.iter().map(row).collect::<Vec<_>>(), false))?;
    }
    Ok(Outcome::Done)
}

fn gate_name(gate: Gate) -> String {
    serde_json::to_string(&gate).unwrap_or_default().replace('"', "")
}

fn to_json(prepared: &[Prepared], trials: &[Trial], score: &Score, seed: u64) -> serde_json::Value {
    let subject = |it: &Prepared| json!({ "block": it.subject.name, "scaled": it.subject.scaled, "spec": it.subject.spec, "mutants": it.mutants.len() });
    json!({
        "version": 1,
        "seed": seed,
        "subjects": prepared.iter().map(subject).collect::<Vec<_>>(),
        "score": score,
        "redundant-gates": score.redundant(),
        "mutants": trials,
    })
}

fn text(prepared: &[Prepared], trials: &[Trial], score: &Score, wall: Duration) -> String {
    let color = print::colored(&io::stdout());
    let mut text = String::new();
    for it in prepared.iter().filter(|it| it.subject.scaled) {
        text += &format!("{} is mutated at a smaller size\n", it.subject.name);
    }
    text += &families(score);
    text.push('\n');
    let killed: Vec<_> = score.killed_by.iter().map(|(by, count)| format!("{} {count}", by.name())).collect();
    text += &format!("killed by: {}\n\n", killed.join(", "));
    text += &gates(score);
    for gate in score.redundant() {
        text += &format!("{} is redundant here: others reject all that it rejects\n", gate_name(gate));
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
        Fate::Equivalent { proof: Proof::Reviewed(reason) } => Some(format!(" ({reason})")),
        _ => None,
    });
    let stillborn = named("stillborn", &|fate| match fate {
        Fate::Stillborn { message } => Some(format!(" ({})", message.lines().next().unwrap_or_default())),
        _ => None,
    });
    let survivors = named("SURVIVED", &|fate| (*fate == Fate::Survived).then(String::new));
    for section in [equivalents, stillborn, survivors] {
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
        score.gates.iter().map(|(gate, it)| vec![gate_name(*gate), it.rejected.to_string(), it.alone.to_string()]),
    );
    print::columns(&rows, true)
}
