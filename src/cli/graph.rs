//! `kforge graph`.

use super::{
    error::{Error, Outcome},
    print,
    project::{Opened, Selection},
};
use crate::build::graph::{
    Decision, Step, output,
    page::{self, Last},
};
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    selection: Selection,
    #[arg(long, value_enum, default_value_t = Format::Dot)]
    format: Format,
    /// The same as `--format json`
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Write to FILE instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    /// Graphviz
    Dot,
    /// For Markdown pages
    Mermaid,
    Json,
    /// A page that shows for each step its status, last run and cause
    Html,
}

pub fn main(directory: &Path, args: Args) -> Result<Outcome, Error> {
    let opened = Opened::open(directory, &args.selection)?;
    let decisions = opened.graph.status(&opened.store, |_| false);
    let format = if args.json { Format::Json } else { args.format };
    let (graph, decided) = (&opened.graph, Some(&decisions[..]));
    let text = match format {
        Format::Dot => output::dot(graph, decided),
        Format::Mermaid => output::mermaid(graph, decided),
        Format::Json => output::json(graph, decided),
        Format::Html => html(&opened, &decisions)?,
    };
    match &args.output {
        Some(path) => print::file(&directory.join(path), &text).map_err(|error| {
            Error::environment(format!("cannot write `{}`: {error}", directory.join(path).display()))
        })?,
        None => print::out(&text)?,
    }
    Ok(Outcome::Done)
}

fn html(opened: &Opened, decisions: &[Decision]) -> Result<String, Error> {
    let last = |it: &Step| {
        let record = opened.store.records.latest(it.identity())?;
        Some(Last { wall_us: record.wall_us, finished_unix: record.finished_unix })
    };
    let last: Vec<_> = opened.graph.steps().iter().map(last).collect();
    let page = page::html(&opened.project.name, &opened.graph, decisions, &last, &opened.store);
    page.map_err(|error| Error::environment(format!("the page cannot be written: {error}")))
}
