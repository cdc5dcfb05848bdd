//! Shows the store to the graph as its [`History`]: records are trusted only if every blob they name is there and intact.

use super::graph::{Built, Damage, History, Recorded};
use crate::{
    digest::Digest,
    store::{Store, cas::BlobError, records::Record},
};

impl History for Store {
    fn recorded(&self, key: &Digest) -> Recorded {
        let Some(outputs) = self.records.outputs(key) else { return Recorded::Absent };
        for (output, blob) in outputs.iter() {
            let damage = match self.cas.check(blob) {
                Ok(()) => continue,
                Err(BlobError::Corrupt { .. }) => Damage::Corrupt,
                // A blob that cannot be read is as good as gone; making it again tells of a broken disk with its own error.
                Err(BlobError::Missing { .. } | BlobError::Io { .. }) => Damage::Missing,
            };
            return Recorded::Damaged { output: output.to_owned(), blob: *blob, damage };
        }
        Recorded::Intact(outputs)
    }

    fn latest(&self, step: &str) -> Option<Built> {
        self.records.latest(step).map(built)
    }

    fn before(&self, step: &str) -> Option<Built> {
        self.records.before(step).map(built)
    }
}

fn built(record: Record) -> Built {
    Built { key: record.key, parts: record.parts, outputs: record.outputs }
}

#[cfg(test)]
mod tests {
    use crate::{
        build::graph::{
            Damage, Decision, Graph, StaleReason, StepId,
            tests::{block, graph, transformer},
        },
        store::{Store, records::Record},
    };
    use std::{fs, path::Path, time::Instant};
    use tempfile::TempDir;

    /// Runs what is stale, in one commit a step; each output is a blob that says what was read. Returns how many ran.
    fn build(graph: &Graph, root: &Path) -> usize {
        let (store, notices) = Store::open(root).unwrap();
        assert_eq!(notices, []);
        let mut decisions: Vec<Decision> = Vec::new();
        let mut ran = 0;
        for step in graph.steps() {
            let decide = |decisions: &[Decision]| {
                graph.decide(step.id, |it: StepId| decisions[it.index()].outputs(), &store, false)
            };
            if let Decision::Stale { key, parts, .. } = decide(&decisions) {
                let outputs = ["module", "stages", "passes", "plan", "object", "kernel", "audit", "benchmark"]
                    .into_iter()
                    .filter(|name| graph.dependents(step.id).iter().any(|it| reads(graph, *it, step.id, name)))
                    .chain(["log"])
                    .map(|name| (name.to_owned(), store.cas.put(format!("{name} {parts:?}").as_bytes()).unwrap()))
                    .collect();
                store
                    .records
                    .put(step.identity(), &Record { key, parts, outputs, finished_unix: 0, wall_us: 0 })
                    .unwrap();
                ran += 1;
            }
            let decision = decide(&decisions);
            assert!(decision.is_up_to_date());
            decisions.push(decision);
        }
        ran
    }

    fn reads(graph: &Graph, reader: StepId, step: StepId, name: &str) -> bool {
        graph.step(reader).inputs.iter().any(|it| it.step == step && it.name == name)
    }

    #[test]
    fn the_store_remembers_a_build_and_a_blob_that_goes_bad_is_named_and_made_again() {
        let root = TempDir::new().unwrap();
        let graph = graph(&[block("gpt2", transformer())]);
        assert_eq!(build(&graph, root.path()), 6);
        assert_eq!(build(&graph, root.path()), 0);

        let compile = graph.find("gpt2@cpu:compile").unwrap();
        for (damage, expected) in [(Damage::Missing, "missing"), (Damage::Corrupt, "corrupt")] {
            let (store, _) = Store::open(root.path()).unwrap();
            let object = store.records.latest("gpt2@cpu:compile").unwrap().outputs["object"];
            let path = store.cas.path(&object);
            fs::remove_file(&path).unwrap();
            if damage == Damage::Corrupt {
                fs::write(&path, "not what it was").unwrap();
            }
            let status = graph.status(&store, |_| false);
            let Decision::Stale { reason, .. } = &status[compile.index()] else { panic!("{status:?}") };
            assert_eq!(*reason, StaleReason::OutputDamaged { output: "object".into(), blob: object, damage });
            assert!(reason.to_string().contains(expected), "{reason}");
            assert_eq!(build(&graph, root.path()), 1, "the same content comes out again: nothing else runs");
        }
    }

    /// `cargo test --release --no-default-features --lib build::history -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn a_build_with_nothing_to_do() {
        for blocks in [16, 167] {
            let root = TempDir::new().unwrap();
            let blocks: Vec<_> = (0..blocks).map(|it| block(&format!("block{it}"), transformer())).collect();
            build(&graph(&blocks), root.path());
            let mut best = [u128::MAX; 3];
            for _ in 0..20 {
                let start = Instant::now();
                let graph = graph(&blocks);
                let planned = start.elapsed().as_micros();
                let (store, _) = Store::open(root.path()).unwrap();
                let opened = start.elapsed().as_micros();
                assert!(graph.status(&store, |_| false).iter().all(Decision::is_up_to_date));
                let decided = start.elapsed().as_micros();
                for (best, now) in best.iter_mut().zip([planned, opened - planned, decided - opened]) {
                    *best = now.min(*best);
                }
            }
            println!(
                "{} steps: graph {} us, store {} us, status {} us",
                graph(&blocks).len(),
                best[0],
                best[1],
                best[2]
            );
        }
    }
}
