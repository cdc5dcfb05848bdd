//! Trials in a file, to be carried to another machine: a header, and results in the shape of the T4 format of auto-tuners
//! (<https://github.com/odgaard/TuningFormats>): a configuration, whether it was right, and measurements with units.
//!
//! What is imported is a place to start from. It has keys of its own, so no search takes it for a measurement of its own device.

use super::ledger::Ledger;
use crate::{
    plan::schedule::Schedule,
    protocol::tuning::{Measured, Refusal, TRIAL_VERSION, Trial, TrialOutcome},
    store::{StoreError, key::KeyParts},
};
use serde::{Deserialize, Serialize};

/// The version of the file. A reader refuses a larger one.
pub const VERSION: u32 = 1;
/// Bytes of the largest file that is read: a hundred thousand trials.
pub const MAX_BYTES: u64 = 256 << 20;

/// What a file has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub struct File {
    pub version: u32,
    /// Of the T4 format.
    pub schema_version: String,
    pub metadata: Metadata,
    pub results: Vec<TrialResult>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub struct Metadata {
    pub generator: String,
}

/// One trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub struct TrialResult {
    /// The operation in one line, and its digest: what a search looks for.
    pub operation: String,
    pub signature: String,
    pub device: String,
    pub fingerprint: String,
    pub threads: usize,
    pub hybrid_softmax: bool,
    pub origin: String,
    pub configuration: Schedule,
    /// `correct`, or why not: `compile`, `runtime`, `correctness`, `constraints`, `timeout`.
    pub invalidity: String,
    pub measurements: Vec<Measurement>,
    pub objectives: Vec<String>,
    /// The trial itself; the fields above are for other tools.
    pub outcome: TrialOutcome,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub struct Measurement {
    pub name: String,
    pub value: f64,
    pub unit: String,
}

/// The file is not one of trials.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("it is no JSON of trials: {0}")]
    Malformed(String),
    #[error("it has version {0}, and this kforge reads versions up to {VERSION}")]
    Newer(u32),
    #[error("trial {number}: {message}")]
    Trial { number: usize, message: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl File {
    /// The trials that `wanted` takes by the digest of their operation, the imported ones too.
    pub fn of(ledger: &Ledger<'_>, wanted: impl Fn(&str) -> bool) -> Self {
        let mut results: Vec<TrialResult> = Vec::new();
        for (trial, record) in ledger.trials() {
            let part = |name: &str| record.parts.get(name).unwrap_or_default().to_owned();
            if !wanted(&part("operation")) {
                continue;
            }
            results.push(TrialResult {
                operation: part("op"),
                signature: part("operation"),
                device: part("device-name"),
                fingerprint: part("device"),
                threads: part("threads").parse().unwrap_or(1),
                hybrid_softmax: part("hybrid-softmax") == "true",
                origin: trial.origin,
                invalidity: invalidity(&trial.outcome).to_owned(),
                measurements: measurements(&trial.outcome),
                objectives: vec!["relative".to_owned()],
                configuration: trial.schedule,
                outcome: trial.outcome,
            });
        }
        let order = |it: &TrialResult| {
            let relative = it.measurements.iter().find(|it| it.name == "relative").map_or(f64::INFINITY, |it| it.value);
            (it.operation.clone(), it.fingerprint.clone(), it.threads, relative.to_bits())
        };
        results.sort_by_key(order);
        let metadata = Metadata { generator: format!("kforge {}", env!("CARGO_PKG_VERSION")) };
        Self { version: VERSION, schema_version: "1.0.0".to_owned(), metadata, results }
    }

    /// Reads a file that somebody hands over.
    ///
    /// # Errors
    /// When it is not what it should be, with the first thing that is wrong.
    pub fn read(bytes: &[u8]) -> Result<Self, ImportError> {
        let malformed = |error: serde_json::Error| ImportError::Malformed(error.to_string());
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(bytes).map_err(malformed)?;
        if version > VERSION {
            return Err(ImportError::Newer(version));
        }
        let file: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        for (index, it) in file.results.iter().enumerate() {
            let refuse = |message: String| Err(ImportError::Trial { number: index + 1, message });
            for (name, text) in [("signature", &it.signature), ("fingerprint", &it.fingerprint)] {
                if text.parse::<crate::digest::Digest>().is_err() {
                    return refuse(format!("`{name}` is no digest"));
                }
            }
            if let TrialOutcome::Measured(Measured { relative, .. }) = &it.outcome
                && !(relative.is_finite() && *relative > 0.0)
            {
                return refuse(format!("a relative time of {relative}"));
            }
            let texts = [&it.operation, &it.device, &it.origin];
            if texts.iter().any(|it| it.len() > 1000 || it.chars().any(char::is_control)) {
                return refuse("a text that is not one short line".to_owned());
            }
        }
        Ok(file)
    }

    /// Keeps the trials as what searches may begin with. How many.
    pub fn import(self, ledger: &Ledger<'_>) -> Result<usize, ImportError> {
        let count = self.results.len();
        for it in self.results {
            let trial =
                Trial { version: TRIAL_VERSION, schedule: it.configuration, origin: it.origin, outcome: it.outcome };
            let mut parts = KeyParts::new()
                .with("operation", it.signature)
                .with("op", it.operation)
                .with("device", it.fingerprint)
                .with("device-name", it.device)
                .with("threads", it.threads)
                .with("schedule", serde_json::to_string(&trial.schedule).unwrap_or_default());
            if it.hybrid_softmax {
                parts.set("hybrid-softmax", "true");
            }
            ledger.import(parts, &trial)?;
        }
        Ok(count)
    }
}

/// In the words of the T4 format.
fn invalidity(outcome: &TrialOutcome) -> &'static str {
    use crate::protocol::FailureKind as K;
    match outcome {
        TrialOutcome::Measured(_) => "correct",
        TrialOutcome::Rejected(Refusal { kind, .. }) => match kind {
            K::IllegalPlan => "constraints",
            K::Codegen => "compile",
            K::Timeout => "timeout",
            K::NumericMismatch | K::Memory | K::Implausible => "correctness",
            _ => "runtime",
        },
    }
}

fn measurements(outcome: &TrialOutcome) -> Vec<Measurement> {
    let TrialOutcome::Measured(it) = outcome else { return Vec::new() };
    let of = |name: &str, value: f64, unit: &str| Measurement { name: name.to_owned(), value, unit: unit.to_owned() };
    vec![of("time", it.timing.median_ns, "ns"), of("relative", it.relative, ""), of("noise", it.noise, "")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trials_of_this_repository_can_be_imported() {
        let file = File::read(include_bytes!("../../../benches/gpu/trials-h100.json")).unwrap();
        assert_eq!(file.results.len(), 150);
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = crate::store::Store::open(folder.path()).unwrap();
        let ledger = Ledger { store: &store };
        let again = File::read(&serde_json::to_vec(&file).unwrap()).unwrap();
        assert_eq!((again.import(&ledger).unwrap(), ledger.trials().len()), (150, 150));
        assert_eq!(File::of(&ledger, |_| true).results.len(), 150);
    }

    #[test]
    fn a_file_with_a_trial_that_cannot_be_is_refused_by_its_number() {
        let mut file = File::read(include_bytes!("../../../benches/gpu/trials-h100.json")).unwrap();
        file.results[2].fingerprint = "none".to_owned();
        let refused = File::read(&serde_json::to_vec(&file).unwrap()).unwrap_err().to_string();
        assert_eq!(refused, "trial 3: `fingerprint` is no digest");
    }
}
