//! What the blocks of a graph need of the store: what a build of them would find up to date, what each step made last, and what
//! their folders in `out/` were copied from (the audit of a rejected kernel is named nowhere else).

use super::{
    graph::{Decision, Graph},
    tune::ledger,
};
use crate::store::{Store, out, survey::Needs};

/// What must be kept for `graph`.
pub fn of(store: &Store, graph: &Graph) -> Needs {
    let mut needs = Needs::default();
    for decision in graph.status(store, |_| false) {
        if let Decision::UpToDate { key, .. } = decision {
            needs.records.insert(key);
        }
    }
    for step in graph.steps() {
        needs.records.extend(store.records.latest_key(step.identity()));
        if let Some(block) = &step.block {
            needs.folders.insert(format!("{block}@{}", step.target));
        }
    }
    // Trials are what the next search does not repeat.
    let kept = store.records.kept().into_iter().map(|it| it.record);
    needs.records.extend(kept.filter(|it| ledger::is_current(&it.parts)).map(|it| it.key));
    for folder in &needs.folders {
        needs.blobs.extend(out::stamped(&store.out(folder)).into_iter().map(|it| it.1));
    }
    needs
}
