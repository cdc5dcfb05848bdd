//! Hashes everything that the store keeps and names what is not what it should be.

use super::{
    Store, StoreError,
    cas::BlobError,
    out,
    survey::{Count, relative},
};
use crate::digest::Digest;
use rayon::prelude::*;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "wrong", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Wrong {
    #[error("blob {} is corrupt{}: its content has digest {} (moved to `{moved_to}`)", blob.short(), of(outputs), found.short())]
    CorruptBlob { blob: Digest, found: Digest, moved_to: String, outputs: Vec<String> },
    #[error("blob {} cannot be read{}: {reason}", blob.short(), of(outputs))]
    UnreadableBlob { blob: Digest, reason: String, outputs: Vec<String> },
    #[error("blob {} is missing{}", blob.short(), of(outputs))]
    MissingBlob { blob: Digest, outputs: Vec<String> },
    #[error("`{file}` is not what it was copied from (blob {})", blob.short())]
    ChangedCopy { file: String, blob: Digest },
    #[error("`{file}` is missing")]
    MissingCopy { file: String, blob: Digest },
}

fn of(outputs: &[String]) -> String {
    if outputs.is_empty() { String::new() } else { format!(", {}", outputs.join(", ")) }
}

/// What was looked at, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Verified {
    pub blobs: Count,
    pub records: u64,
    pub copies: u64,
    pub wrong: Vec<Wrong>,
}

impl Store {
    /// Reads every blob and every copy of one in `out/`. Moves away what is corrupt, and has the next build look at the content of
    /// copies that were changed. `progress` is told the bytes of each blob that was read.
    pub fn verify(&self, progress: impl Fn(u64) + Sync) -> Result<Verified, StoreError> {
        let survey = self.survey()?;
        let outputs = self.outputs_of_blobs();
        let outputs_of = |blob: &Digest| outputs.get(blob).cloned().unwrap_or_default();
        let blobs: Vec<_> = survey.blobs.iter().collect();
        let check = |&(blob, file): &(&Digest, &super::survey::BlobFile)| {
            let outputs = || outputs_of(blob);
            let wrong = match self.cas.get(blob) {
                // Gone since it was listed: somebody removed it, and the records are asked below.
                Ok(_) | Err(BlobError::Missing { .. }) => None,
                Err(BlobError::Corrupt { found, moved_to, .. }) => {
                    let moved_to = relative(self.dir(), &moved_to);
                    Some(Wrong::CorruptBlob { blob: *blob, found, moved_to, outputs: outputs() })
                }
                Err(BlobError::Io { source, .. }) => {
                    Some(Wrong::UnreadableBlob { blob: *blob, reason: source.to_string(), outputs: outputs() })
                }
            };
            progress(file.bytes);
            wrong
        };
        let mut wrong: Vec<_> = blobs.par_iter().filter_map(check).collect();
        let known: BTreeSet<_> = wrong
            .iter()
            .filter_map(|it| match it {
                Wrong::CorruptBlob { blob, .. } | Wrong::UnreadableBlob { blob, .. } => Some(*blob),
                _ => None,
            })
            .collect();
        for (blob, outputs) in &outputs {
            if !known.contains(blob) && !self.cas.contains(blob) {
                wrong.push(Wrong::MissingBlob { blob: *blob, outputs: outputs.clone() });
            }
        }
        let copies = self.verify_copies(&mut wrong)?;
        if !wrong.is_empty() {
            self.forget_all().map_err(StoreError::io("forget what is in", self.dir()))?;
        }
        Ok(Verified { blobs: survey.blob_count(), records: self.records.len() as u64, copies, wrong })
    }

    /// For each blob that a record names, `output of step` for each of its records.
    fn outputs_of_blobs(&self) -> BTreeMap<Digest, Vec<String>> {
        let mut steps: BTreeMap<Digest, String> = BTreeMap::new();
        for step in self.records.steps() {
            if let Some(before) = step.before {
                steps.entry(before).or_insert_with(|| format!("an earlier `{}`", step.step));
            }
            steps.insert(step.latest, format!("`{}`", step.step));
        }
        let mut outputs: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
        for kept in self.records.kept() {
            let step = steps.get(&kept.record.key).map_or("an earlier build", String::as_str);
            for (name, blob) in kept.record.outputs.iter() {
                let text = format!("`{name}` of {step}");
                let all = outputs.entry(*blob).or_default();
                if !all.contains(&text) {
                    all.push(text);
                }
            }
        }
        // Records come in the order of their keys, which is no order for people.
        outputs.values_mut().for_each(|it| it.sort());
        outputs
    }

    /// Returns how many files were compared.
    fn verify_copies(&self, wrong: &mut Vec<Wrong>) -> Result<u64, StoreError> {
        let mut copies = 0;
        for folder in self.out_folders()? {
            let path = self.out(&folder);
            let mut changed = Vec::new();
            for (name, blob) in out::stamped(&path) {
                copies += 1;
                let file = path.join(&name);
                match fs::read(&file) {
                    Ok(bytes) if Digest::of(&bytes) == blob => continue,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        wrong.push(Wrong::MissingCopy { file: relative(self.dir(), &file), blob });
                    }
                    _ => wrong.push(Wrong::ChangedCopy { file: relative(self.dir(), &file), blob }),
                }
                changed.push(name);
            }
            out::distrust(&self.cas, &path, &changed).map_err(StoreError::io("write the stamp of", path))?;
        }
        Ok(copies)
    }

    /// The names of the folders in `out/`.
    pub(super) fn out_folders(&self) -> Result<Vec<String>, StoreError> {
        let path = self.dir().join("out");
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StoreError::io("list", path)(error)),
        };
        // A name that is not UTF-8 is none of ours.
        let mut names: Vec<_> = entries.flatten().filter_map(|it| it.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }
}
