//! `kforge cache`: what `.kforge-cache` holds and whether it is sound.

use super::{
    error::{Error, Outcome},
    print::{self, GREEN, RED, YELLOW},
    project::{self, Opened},
};
use crate::{
    build::{
        needs,
        plans::{self, Judged},
        report::terminal::duration,
        tune::ledger,
    },
    store::{
        Store,
        survey::{Count, Survey},
    },
};
use bytesize::ByteSize;
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::{
    io::{self, IsTerminal},
    path::Path,
    time::{Duration, SystemTime},
};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Say how much is kept, and how much of it the present manifests need
    Stats(Format),
    /// Read everything that is kept, name what is damaged, and fail (1) if anything is
    Verify(Format),
    /// List the plans that are kept, and how each was judged
    Plans(Format),
}

#[derive(Debug, clap::Args)]
pub struct Format {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn main(directory: &Path, command: Command) -> Result<Outcome, Error> {
    match command {
        Command::Stats(format) => stats(directory, &format),
        Command::Verify(format) => verify(directory, &format),
        Command::Plans(format) => plans(directory, &format),
    }
}

fn open(directory: &Path) -> Result<Store, Error> {
    let (store, found) = Store::open(&project::load(directory)?.root)?;
    project::notices(&found);
    Ok(store)
}

fn stats(directory: &Path, format: &Format) -> Result<Outcome, Error> {
    let opened = Opened::whole(directory)?;
    let store = &opened.store;
    let needs = needs::of(store, &opened.graph);
    let survey = store.survey()?;
    let mut needed = Count::default();
    for digest in store.needed_blobs(&needs) {
        if let Some(file) = survey.blobs.get(&digest) {
            needed.add(file.bytes);
        }
    }
    let blobs = survey.blob_count();
    let rest = Count { files: blobs.files - needed.files, bytes: blobs.bytes - needed.bytes };
    let steps = store.records.steps();
    let searched = steps.iter().filter(|it| ledger::is_of_search(&it.step)).count();
    let (records, steps) = (store.records.len(), steps.len() - searched);
    if format.json {
        print::json(&json!({
            "version": 1, "folder": store.dir(), "bytes": survey.bytes(),
            "blobs": blobs, "needed": needed, "rest": rest,
            "records": { "count": records, "bytes": survey.records }, "steps": steps, "of-searches": searched,
            "out": survey.out, "tmp": survey.temporary, "corrupt": survey.corrupt,
        }))?;
    } else {
        print::out(&stats_text(&survey, needed, rest, (records, steps, searched)))?;
    }
    Ok(Outcome::Done)
}

fn stats_text(
    survey: &Survey,
    needed: Count,
    rest: Count,
    (records, steps, searched): (usize, usize, usize),
) -> String {
    let of = match searched {
        0 => format!("of {steps} steps"),
        _ => format!("of {steps} steps, and {searched} of searches"),
    };
    let row = |name: &str, count: Count| vec![name.to_owned(), count.files.to_string(), size(count.bytes)];
    let rows = [
        row("blobs", survey.blob_count()),
        row("  that the manifests need", needed),
        row("  others", rest),
        row(&format!("records ({of})"), Count { files: records as u64, bytes: survey.records }),
        row("files in out/", survey.out),
        row("files in tmp/", survey.temporary),
        row("files in corrupt/", survey.corrupt),
        vec!["together".to_owned(), String::new(), size(survey.bytes())],
    ];
    print::columns(&rows, true)
}

fn verify(directory: &Path, format: &Format) -> Result<Outcome, Error> {
    let store = open(directory)?;
    let bar = bar(store.survey()?.blob_count().bytes);
    let verified = store.verify(|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let verified = verified?;
    if format.json {
        let mut value = serde_json::to_value(&verified).map_err(io::Error::from)?;
        value["version"] = json!(1);
        print::json(&value)?;
    } else {
        let color = print::colored(&io::stdout());
        let mut text = String::new();
        for wrong in &verified.wrong {
            text += &format!("{}: {wrong}\n", print::paint(color, RED, "wrong"));
        }
        let looked = format!(
            "{} blobs ({}), {} records, {} files in out/",
            verified.blobs.files,
            size(verified.blobs.bytes),
            verified.records,
            verified.copies
        );
        text += &match verified.wrong.len() {
            0 => format!("{}: {looked}\n", print::paint(color, GREEN, "sound")),
            count => format!(
                "{count} of {looked} wrong; the next `kforge build` makes again what the project needs of them\n"
            ),
        };
        print::out(&text)?;
    }
    Ok(if verified.wrong.is_empty() { Outcome::Done } else { Outcome::StepFailed })
}

fn bar(bytes: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::hidden());
    }
    let bar = ProgressBar::new(bytes);
    let style = ProgressStyle::with_template("[{bar:24}] {binary_bytes}/{binary_total_bytes} {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar
}

fn plans(directory: &Path, format: &Format) -> Result<Outcome, Error> {
    let store = open(directory)?;
    let plans = plans::kept(&store);
    let best = plans::best(&store);
    if format.json {
        print::json(&json!({ "version": 1, "plans": plans, "best": best }))?;
        return Ok(Outcome::Done);
    }
    let color = print::colored(&io::stdout());
    let heads = ["block@target", "plan", "strategy", "age", "audit"].map(str::to_owned).to_vec();
    let rows = plans.iter().map(|it| {
        let style = match it.judged {
            Judged::Accepted => GREEN,
            Judged::Rejected => RED,
            Judged::Not => YELLOW,
        };
        // The last column may be styled: nothing is aligned after it.
        let judged = print::paint(color, style, it.judged.name());
        vec![format!("{}@{}", it.block, it.target), it.plan.short(), it.strategy.clone(), age(it.made_unix), judged]
    });
    let rows: Vec<_> = std::iter::once(heads).chain(rows).collect();
    let mut text = print::columns(&rows, false);
    if !best.is_empty() {
        let heads = ["operation", "device", "time", "of heuristic", "by", "age", "state"].map(str::to_owned).to_vec();
        let rows = best.iter().map(|it| {
            let (style, state) = if it.current { (GREEN, "in use") } else { (YELLOW, "of another kforge") };
            vec![
                it.operation.clone(),
                if it.threads > 1 { format!("{} x{}", it.device, it.threads) } else { it.device.clone() },
                duration(it.best.median_ns),
                format!("{:.3}", it.best.relative),
                it.best.origin.clone(),
                age(it.found_unix),
                print::paint(color, style, state),
            ]
        });
        let rows: Vec<_> = std::iter::once(heads).chain(rows).collect();
        text += &format!("\nbest verified schedules\n{}", print::columns(&rows, false));
    }
    print::out(&text)?;
    Ok(Outcome::Done)
}

fn age(unix: u64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    HumanDuration(now.saturating_sub(Duration::from_secs(unix))).to_string()
}

/// Bytes as a person reads them.
pub fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}
