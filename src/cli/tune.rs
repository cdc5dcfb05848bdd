//! `kforge tune BLOCK`: searches the plans of blocks, whatever the manifest says of how; shows, exports and imports trials.

use super::{
    build::{self, How, Request},
    error::{Error, Outcome},
    listeners::{Files, Listeners},
    print,
    project::{self, Opened, Selection},
    result,
};
use crate::{
    build::{
        graph::{self, BlockTarget, StepKind},
        report::terminal::duration,
        tune::{
            block::Tuned,
            exchange::{File, ImportError, MAX_BYTES},
            ledger::{Ledger, On, Scope},
            operation::Found,
        },
    },
    manifest::{Strategy, Tuning},
    plan::{
        one_line, operation,
        stage::{Stage, StageGraph},
    },
    protocol::{
        blob,
        tuning::{Trial, TrialOutcome, Variant},
    },
    store::{Store, records::Record},
};
use serde_json::json;
use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    time::Instant,
};

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("instead").args(["show", "export", "import"])))]
pub struct Args {
    #[command(flatten)]
    selection: Selection,
    /// Schedules of each operation to try, those that were tried before among them [default: the manifest's]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    trials: Option<u32>,
    /// How long the search for one block may take, e.g. `20s` or `5m` [default: the manifest's]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    time: Option<std::time::Duration>,
    /// heuristic, grid, random, evolutionary, model or llm [default: the manifest's, or evolutionary where that is the heuristic]
    #[arg(long, value_parser = strategy)]
    strategy: Option<Strategy>,
    /// Of what the strategy draws [default: the manifest's]
    #[arg(long)]
    seed: Option<u64>,
    /// Do not try the block without its fusions
    #[arg(long)]
    keep_fusions: bool,
    /// List what was tried of the blocks' operations on their devices, and search nothing
    #[arg(long)]
    show: bool,
    /// Write the trials of the blocks' operations, from whatever device, to a file, and search nothing
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
    /// Take the trials of another machine from a file as places to start from, and search nothing
    #[arg(long, value_name = "FILE")]
    import: Option<PathBuf>,
    #[command(flatten)]
    how: How,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn strategy(text: &str) -> Result<Strategy, String> {
    Strategy::from_name(text).ok_or_else(|| format!("one of {} was expected", Strategy::NAMES.join(", ")))
}

pub fn main(directory: &Path, args: Args) -> Result<Outcome, Error> {
    if let Some(path) = &args.import {
        return import(directory, path, args.json);
    }
    let mut opened = Opened::open(directory, &args.selection)?;
    if args.show {
        return show(&opened, args.json);
    }
    if let Some(path) = &args.export {
        return export(&opened, directory, path, args.json);
    }
    for block in &mut opened.blocks {
        block.tuning = args.applied_to(&block.tuning);
    }
    opened.graph = graph::plan_build(&opened.blocks, &opened.rules);
    let start = Instant::now();
    let goals: Vec<_> = opened.graph.steps().iter().filter(|it| it.kind == StepKind::Plan).map(|it| it.id).collect();
    let listeners = Listeners::open(directory, &opened, &Files::default(), false)?;
    let built = build::build(&opened, &Request { goals: &goals, force: false, how: &args.how }, &listeners.all());
    listeners.finish()?;
    let built = built?;
    let mut tuned: Vec<(String, Tuned)> = Vec::new();
    for id in goals {
        let step = opened.graph.step(id);
        let block = step.subject.and_then(|it| opened.blocks.get(it));
        let outputs = built.outputs[id.index()].as_ref();
        if let (Some(block), Some(digest)) = (block, outputs.and_then(|it| it.get(blob::SEARCH))) {
            let ran = matches!(built.results[id.index()], crate::build::engine::run::StepResult::Ran { .. });
            tuned.push((title(block), read(&opened.store, digest, ran)?));
        }
    }
    let outcome = result::outcome(&built);
    if args.json {
        let blocks: Vec<_> = tuned.iter().map(|(block, it)| json!({ "block": block, "search": it })).collect();
        print::json(&json!({ "version": 1, "project": opened.project.name, "blocks": blocks }))?;
        return Ok(outcome);
    }
    let mut text = String::new();
    for (block, it) in &tuned {
        text += &table(block, it);
    }
    if outcome == Outcome::Done {
        let new: usize = tuned.iter().map(|it| it.1.new_trials()).sum();
        let told: usize = tuned.iter().flat_map(|it| &it.1.operations).map(|it| it.trials).sum();
        let wall = duration(start.elapsed().as_nanos() as f64);
        text += &result::done(print::GREEN, "done", &format!("{told} trials, {new} of them new, {wall}"));
    }
    print::out(&text)?;
    Ok(outcome)
}

impl Args {
    /// With this strategy unless another one is named.
    pub fn with(self, strategy: Strategy) -> Self {
        Self { strategy: self.strategy.or(Some(strategy)), ..self }
    }

    /// The manifest's tuning with what the command line says instead.
    fn applied_to(&self, tuning: &Tuning) -> Tuning {
        let searching = if tuning.strategy.searches() { tuning.strategy } else { Strategy::Evolutionary };
        Tuning {
            strategy: self.strategy.unwrap_or(searching),
            trials: self.trials.map_or(tuning.trials, |it| it as usize),
            time_ms: self.time.map_or(tuning.time_ms, |it| u64::try_from(it.as_millis()).ok()),
            seed: self.seed.unwrap_or(tuning.seed),
            fusions: tuning.fusions && !self.keep_fusions,
            ..tuning.clone()
        }
    }
}

fn title(block: &BlockTarget) -> String {
    format!("{}@{}", block.name, block.target)
}

/// What a search found. Of one that this call did not run, no trial is new.
fn read(store: &Store, digest: &crate::digest::Digest, ran: bool) -> Result<Tuned, Error> {
    let bytes = store.cas.get(digest).map_err(|error| Error::environment(error.to_string()))?;
    let mut tuned: Tuned =
        serde_json::from_slice(&bytes).map_err(|error| Error::environment(format!("a search's result: {error}")))?;
    if !ran {
        tuned.operations.iter_mut().for_each(|it| it.new = 0);
    }
    Ok(tuned)
}

fn table(block: &str, tuned: &Tuned) -> String {
    let heads = ["stage", "operation", "trials", "new", "refused", "time", "of heuristic", "of floor", "ended", "by"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for it in &tuned.operations {
        let Found { winner, stages, .. } = it;
        let stage = if *stages > 1 { format!("{} (x{stages})", it.stage) } else { it.stage.clone() };
        let share =
            if it.floor_ns > 0.0 { format!("{:.0} %", 100.0 * it.floor_ns / winner.median_ns) } else { String::new() };
        rows.push(vec![
            stage,
            it.operation.clone(),
            it.trials.to_string(),
            it.new.to_string(),
            it.refused.to_string(),
            duration(winner.median_ns),
            format!("{:.3} +-{:.3}", winner.relative, winner.noise),
            share,
            it.ended.name().to_owned(),
            winner.origin.clone(),
        ]);
    }
    let mut text = format!("{block}\n{}", print::columns(&rows, false));
    for it in &tuned.operations {
        for Variant { name, timing, relative } in &it.variants {
            text += &format!(
                "  {}: {name} takes {} ({relative:.2} of the heuristic)\n",
                it.stage,
                duration(timing.median_ns)
            );
        }
    }
    let remarks = &tuned.plan.provenance.remarks;
    remarks.iter().chain(&tuned.rejected).for_each(|it| text += &format!("  {it}\n"));
    let without: Vec<_> = tuned.plan.without.iter().map(|it| it.name()).collect();
    if !without.is_empty() {
        text += &format!("  without {}\n", without.join(", "));
    }
    text += &match (tuned.block_ns, tuned.heuristic_ns) {
        (Some(now), Some(before)) if tuned.relative < 1.0 => format!(
            "  the whole block: {} instead of {} ({:.3} of the heuristic's plan)\n",
            duration(now),
            duration(before),
            tuned.relative
        ),
        _ => "  the whole block: the heuristic's plan stays\n".to_owned(),
    };
    text
}

/// The operations of the blocks, as far as their IR is built, each with the name of a stage that is one.
fn operations(opened: &Opened) -> Vec<(String, Scope)> {
    let mut known: Vec<(String, Scope)> = Vec::new();
    let decisions = opened.graph.status(&opened.store, |_| false);
    for (subject, block) in opened.blocks.iter().enumerate() {
        let stages = [StepKind::Plan, StepKind::Ir].into_iter().find_map(|kind| {
            let step = opened.step(subject, kind)?;
            let digest = *decisions[step.id.index()].outputs()?.get(blob::STAGES)?;
            serde_json::from_slice::<StageGraph>(&opened.store.cas.get(&digest).ok()?).ok()
        });
        let Some(graph) = stages else { continue };
        for stage in graph.stages.iter().filter(|it: &&Stage| it.scheduled) {
            let signature = operation::signature(&operation::isolate(&graph, stage));
            let scope = Scope::new((signature, &stage.op), On::of(block));
            if !known.iter().any(|it| it.1 == scope) {
                known.push((format!("{} {}", title(block), stage.name), scope));
            }
        }
    }
    known
}

fn show(opened: &Opened, as_json: bool) -> Result<Outcome, Error> {
    let trials = (Ledger { store: &opened.store }).trials();
    let mut text = String::new();
    let mut all = Vec::new();
    for (stage, scope) in operations(opened) {
        let mut own: Vec<&(Trial, Record)> = trials.iter().filter(|it| scope.is_of(&it.1.parts)).collect();
        own.sort_by(|a, b| order(&a.0).total_cmp(&order(&b.0)));
        if as_json {
            let own: Vec<_> = own.iter().map(|it| &it.0).collect();
            all.push(
                json!({ "stage": stage, "operation": scope.operation, "device": scope.device_name, "trials": own }),
            );
            continue;
        }
        text += &format!("{stage}: {} on {}\n", scope.operation, scope.device_name);
        let rows: Vec<_> = own.iter().map(|it| row(&it.0)).collect();
        text += &if rows.is_empty() { "  nothing was tried yet\n".to_owned() } else { print::columns(&rows, false) };
    }
    if as_json {
        print::json(&json!({ "version": 1, "operations": all }))?;
    } else if text.is_empty() {
        print::out("no operation is known yet: `kforge build` or `kforge tune` makes the blocks' IR\n")?;
    } else {
        print::out(&text)?;
    }
    Ok(Outcome::Done)
}

fn order(trial: &Trial) -> f64 {
    trial.relative().unwrap_or(f64::INFINITY)
}

fn row(trial: &Trial) -> Vec<String> {
    let (time, relative) = match &trial.outcome {
        TrialOutcome::Measured(it) => (duration(it.timing.median_ns), format!("{:.3} +-{:.3}", it.relative, it.noise)),
        TrialOutcome::Rejected(it) => ("refused".to_owned(), it.message.clone()),
    };
    vec![format!("  {time}"), relative, trial.origin.clone(), one_line(&trial.schedule)]
}

fn export(opened: &Opened, directory: &Path, path: &Path, as_json: bool) -> Result<Outcome, Error> {
    let wanted: Vec<String> = operations(opened).into_iter().map(|it| it.1.signature.to_string()).collect();
    let file = File::of(&Ledger { store: &opened.store }, |it| wanted.iter().any(|known| known == it));
    let text = serde_json::to_string_pretty(&file).map_err(std::io::Error::from)? + "\n";
    let resolved = directory.join(path);
    fs::write(&resolved, text)
        .map_err(|error| Error::environment(format!("cannot write `{}`: {error}", path.display())))?;
    told(as_json, "exported", file.results.len(), path)
}

fn import(directory: &Path, path: &Path, as_json: bool) -> Result<Outcome, Error> {
    let failed = |error: String| Error::input(format!("`{}`: {error}", path.display()));
    let mut bytes = Vec::new();
    let opened = fs::File::open(directory.join(path)).map_err(|error| failed(error.to_string()))?;
    opened.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(failed(format!("it has more than {} MiB: that are no trials", MAX_BYTES >> 20)));
    }
    let (store, found) = Store::open(&project::load(directory)?.root)?;
    project::notices(&found);
    let file = File::read(&bytes).map_err(|error| failed(error.to_string()))?;
    let count = file.import(&Ledger { store: &store }).map_err(|error| match error {
        ImportError::Store(error) => Error::environment(error.to_string()),
        error => failed(error.to_string()),
    })?;
    told(as_json, "imported", count, path)
}

fn told(as_json: bool, verb: &str, count: usize, path: &Path) -> Result<Outcome, Error> {
    if as_json {
        print::json(&json!({ "version": 1, verb: count, "file": path }))?;
    } else {
        print::out(&format!("{verb} {count} trials: {}\n", path.display()))?;
    }
    Ok(Outcome::Done)
}
