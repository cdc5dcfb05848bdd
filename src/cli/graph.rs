//! `kforge graph`.

use super::{
    error::{Error, Outcome},
    print,
    project::{Opened, Selection},
};
use crate::build::graph::output;
use std::path::Path;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    selection: Selection,
    #[arg(long, value_enum, default_value_t = Format::Dot)]
    format: Format,
    /// The same as `--format json`
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    /// Graphviz
    Dot,
    /// For Markdown pages
    Mermaid,
    Json,
}

pub fn main(directory: &Path, args: Args) -> Result<Outcome, Error> {
    let opened = Opened::open(directory, &args.selection)?;
    let decisions = opened.graph.status(&opened.store, |_| false);
    let format = if args.json { Format::Json } else { args.format };
    let draw = match format {
        Format::Dot => output::dot,
        Format::Mermaid => output::mermaid,
        Format::Json => output::json,
    };
    print::out(&draw(&opened.graph, Some(&decisions)))?;
    Ok(Outcome::Done)
}
