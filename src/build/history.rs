//! Shows the store to the graph as its [`History`]: records are trusted only if every blob they name is there and intact.

use super::graph::{Built, Damage, History, Recorded};
use crate::{
    digest::Digest,
    store::{Store, cas::BlobError, records::Record},
};

impl History for Store {
    fn recorded(&self, key: &Digest) -> Recorded {
        let Some(outputs) = self.records.outputs(key) else { return Recorded::Absent };
        for (output, blob) in &outputs {
            let damage = match self.cas.check(blob) {
                Ok(()) => continue,
                Err(BlobError::Corrupt { .. }) => Damage::Corrupt,
                // A blob that cannot be read is as good as gone; making it again tells of a broken disk with its own error.
                Err(BlobError::Missing { .. } | BlobError::Io { .. }) => Damage::Missing,
            };
            return Recorded::Damaged { output: output.clone(), blob: *blob, damage };
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
