//! `kforge clean [BLOCK]`.

use super::{
    error::{Error, Outcome},
    print,
    project::{self, Opened, Selection},
};
use crate::store::Store;
use std::path::Path;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only what these blocks made; everything if none is given
    #[arg(value_name = "BLOCK")]
    blocks: Vec<String>,
}

pub fn main(directory: &Path, args: Args) -> Result<Outcome, Error> {
    if args.blocks.is_empty() {
        let project = project::load(directory)?;
        let (store, _) = Store::open(&project.root)?;
        let (_lock, _) = store.lock_out_builds(None, waiting)?;
        store.clear()?;
        print::out(&format!("removed `{}`\n", store.dir().display()))?;
        return Ok(Outcome::Done);
    }
    let chosen = Opened::recorded(directory, &Selection { blocks: args.blocks, ..Selection::default() })?;
    let all = Opened::whole(directory)?;
    let (_lock, found) = chosen.store.lock_out_builds(None, waiting)?;
    project::notices(&found);
    let steps_of = |opened: &'_ Opened, wanted: &dyn Fn(&str) -> bool| -> Vec<String> {
        let steps = opened.graph.steps().iter();
        steps
            .map(|it| it.identity().to_owned())
            .filter(|it| it.rsplit_once(':').is_some_and(|it| wanted(it.0)))
            .collect()
    };
    let folders: Vec<_> = chosen.blocks.iter().map(|it| format!("{}@{}", it.name, it.target)).collect();
    let others = steps_of(&all, &|it| !folders.iter().any(|folder| folder == it));
    let others: Vec<_> = others.iter().map(String::as_str).collect();
    for folder in &folders {
        let steps = steps_of(&chosen, &|it| it == folder);
        chosen.store.forget(folder, &steps.iter().map(String::as_str).collect::<Vec<_>>(), &others)?;
        print::out(&format!("removed what was built of `{folder}`\n"))?;
    }
    Ok(Outcome::Done)
}

fn waiting(holder: &crate::store::lock::Holder) {
    print::warning(&format!("waiting for {holder}"));
}
