//! `kforge ir emit|passes|diff`.

use super::{
    error::{Error, Outcome},
    print, project,
    worker::Asker,
};
use crate::{
    build::graph::StepKind,
    manifest::spec::Pass,
    protocol::{ActionKind, IrView, blob},
};
use similar::TextDiff;
use std::{collections::BTreeMap, io, path::Path};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print a block as a module in the transformer dialect
    Emit(EmitArgs),
    /// List the passes
    Passes(PassesArgs),
    /// Show what the block's pipeline does to its module, as a unified diff
    Diff(DiffArgs),
}

#[derive(Debug, clap::Args)]
pub struct EmitArgs {
    #[arg(value_name = "BLOCK")]
    block: String,
    /// After the block's passes instead of before
    #[arg(long)]
    optimized: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct PassesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    #[arg(value_name = "BLOCK")]
    block: String,
    /// A section for each pass instead of one for the whole pipeline
    #[arg(long)]
    each: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn main(directory: &Path, command: Command) -> Result<Outcome, Error> {
    match command {
        Command::Emit(args) => emit(directory, &args)?,
        Command::Passes(args) => passes(&args)?,
        Command::Diff(args) => diff(directory, &args)?,
    }
    Ok(Outcome::Done)
}

fn emit(directory: &Path, args: &EmitArgs) -> Result<(), Error> {
    let view = if args.optimized { IrView::Optimized } else { IrView::Emit };
    let (name, text) = ask(directory, &args.block, view)?;
    match args.json {
        true => print::json(&serde_json::json!({ "version": 1, "block": name, "module": text }))?,
        false => print::out(&(text.trim_end().to_owned() + "\n"))?,
    }
    Ok(())
}

fn passes(args: &PassesArgs) -> Result<(), Error> {
    if args.json {
        let passes = Pass::ALL.map(|it| serde_json::json!({ "name": it.name(), "summary": it.summary() }));
        print::json(&passes)?;
    } else {
        let rows = Pass::ALL.map(|it| vec![it.name().to_owned(), it.summary().to_owned()]);
        print::out(&print::columns(&rows, false))?;
    }
    Ok(())
}

fn diff(directory: &Path, args: &DiffArgs) -> Result<(), Error> {
    let (name, text) = ask(directory, &args.block, IrView::Steps)?;
    let steps: Vec<(String, String)> = serde_json::from_str(&text)
        .map_err(|error| Error::environment(format!("the worker's answer is no list of modules: {error}")))?;
    let sections = sections(&steps, args.each);
    if args.json {
        let section = |it: &Section<'_>| serde_json::json!({ "before": it.before, "after": it.after, "diff": it.diff });
        let sections: Vec<_> = sections.iter().map(section).collect();
        print::json(&serde_json::json!({ "version": 1, "block": name, "sections": sections }))?;
    } else {
        let color = print::colored(&io::stdout());
        let texts: Vec<_> = sections.iter().map(|it| it.text(color)).collect();
        print::out(&texts.concat())?;
    }
    Ok(())
}

/// The block's name and what the worker prints of it.
fn ask(directory: &Path, name: &str, view: IrView) -> Result<(String, String), Error> {
    let project = project::load(directory)?;
    let block = project::block(&project, name)?;
    let kind = ActionKind::IrText {
        name: block.name.clone(),
        block: block.spec.clone(),
        passes: project::passes(&project, block),
        origins: block.origins.clone(),
        view,
    };
    // Nothing of it is worth keeping, so it does not go to the project's store.
    let folder = tempfile::tempdir()?;
    let text = Asker::new(folder.path())?.with(|asked| {
        let outputs = asked.action(kind, BTreeMap::new(), StepKind::Ir)?;
        asked.text(&outputs, blob::TEXT)
    })?;
    Ok((block.name.clone(), text))
}

/// One change of the module.
struct Section<'a> {
    before: &'a str,
    after: &'a str,
    /// Unified; empty where nothing changed.
    diff: String,
}

/// From the (title, module) pairs: one section for each pass, or one from the first module to the last.
fn sections(steps: &[(String, String)], each: bool) -> Vec<Section<'_>> {
    let section = |before: &'_ (String, String), after: &'_ (String, String)| {
        let diff = TextDiff::from_lines(&before.1, &after.1);
        diff.unified_diff().context_radius(3).to_string()
    };
    let pairs: Vec<_> = match (each, steps) {
        (true, steps) => steps.windows(2).map(|it| (&it[0], &it[1])).collect(),
        (false, [first, .., last]) => vec![(first, last)],
        (false, _) => Vec::new(),
    };
    pairs.into_iter().map(|(a, b)| Section { before: &a.0, after: &b.0, diff: section(a, b) }).collect()
}

impl Section<'_> {
    fn text(&self, color: bool) -> String {
        let mut text = format!("--- {}\n+++ {}\n", self.before, self.after);
        if self.diff.is_empty() {
            text.push_str("(no change)\n");
        }
        for line in self.diff.lines() {
            let style = match line.as_bytes().first() {
                Some(b'+') => Some(print::GREEN),
                Some(b'-') => Some(print::RED),
                Some(b'@') => Some(print::CYAN),
                _ => None,
            };
            text.push_str(&style.map_or_else(|| line.to_owned(), |style| print::paint(color, style, line)));
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps() -> Vec<(String, String)> {
        let step = |title: &str, text: &str| (title.to_owned(), text.to_owned());
        vec![step("built", "a\nb\n"), step("fold-constants", "a\nb\n"), step("fuse-mlp-block", "a\nc\n")]
    }

    #[test]
    fn each_pass_has_a_section_and_one_that_changes_nothing_says_so() {
        let steps = steps();
        let texts: Vec<_> = sections(&steps, true).iter().map(|it| it.text(false)).collect();
        assert_eq!(texts[0], "--- built\n+++ fold-constants\n(no change)\n");
        assert_eq!(texts[1], "--- fold-constants\n+++ fuse-mlp-block\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n");
    }

    #[test]
    fn the_whole_pipeline_is_one_section() {
        let steps = steps();
        let sections = sections(&steps, false);
        assert_eq!((sections.len(), sections[0].before, sections[0].after), (1, "built", "fuse-mlp-block"));
    }
}
