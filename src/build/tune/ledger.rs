//! What searches found out, in the store: trials, what won, and the best verified schedule of each operation on each device.
//!
//! A trial is a record like that of a step, under the key of all that its outcome depends on. So a schedule that was tried is not
//! tried again, whichever block, strategy or budget proposes it; a change of the generator, of the verifier, of how is measured or
//! of the device makes another key.

use crate::{
    build::graph::BlockTarget,
    digest::Digest,
    host::Device,
    plan::{one_line, schedule::Schedule},
    protocol::{
        blob, recipe,
        tuning::{Refusal, TRIAL_VERSION, Trial, TrialOutcome},
    },
    store::{
        Store, StoreError,
        key::KeyParts,
        lock::unix_now,
        outputs::Outputs,
        records::{Kept, Record},
    },
};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;

/// The values of the key part `step` of records that are no steps of a build.
pub const TRIAL: &str = "trial";
const CHOICE: &str = "choice";
pub const BEST: &str = "best";
const IMPORTED: &str = "imported-trial";
pub const EXCHANGE: &str = "llm-exchange";

/// Whether a record under this name is a search's, and no step of a build.
pub fn is_of_search(identity: &str) -> bool {
    let prefix = identity.split_once(':').map(|it| it.0);
    prefix.is_some_and(|it| [TRIAL, CHOICE, BEST, IMPORTED, EXCHANGE].contains(&it))
}

/// Whether a record is of a search, and of this build of kforge.
pub fn is_current(parts: &KeyParts) -> bool {
    match parts.get("step") {
        Some(TRIAL | CHOICE | BEST) => recipes().iter().all(|(name, recipe)| parts.get(name) == Some(recipe.as_str())),
        Some(IMPORTED | EXCHANGE) => true,
        _ => false,
    }
}

/// What decides how a trial ends, beside its schedule, operation and device.
fn recipes() -> [(&'static str, String); 3] {
    [
        ("recipe.compile", recipe::COMPILE.to_string()),
        ("recipe.verify", recipe::VERIFY.to_string()),
        ("recipe.benchmark", recipe::BENCHMARK.to_string()),
    ]
}

/// One operation on one device: what trials are compared within.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Of the operation, see [`crate::plan::operation`].
    pub signature: Digest,
    /// The operation in one line, for people.
    pub operation: String,
    pub device: Digest,
    pub device_name: String,
    pub threads: usize,
    /// Attention on a GPU leaves its softmax to the CPU, which is another space of schedules.
    pub hybrid_softmax: bool,
}

impl Scope {
    pub fn new((signature, operation): (Digest, &impl Serialize), on: On<'_>) -> Self {
        let On { device, threads, hybrid_softmax } = on;
        let (fingerprint, device_name) = (device.fingerprint(), device.shown());
        Self { signature, operation: one_line(operation), device: fingerprint, device_name, threads, hybrid_softmax }
    }

    /// Whether a record with these parts is a trial of this operation here.
    pub fn is_of(&self, parts: &KeyParts) -> bool {
        parts.get("step") == Some(TRIAL) && self.parts(TRIAL).iter().all(|(name, value)| parts.get(name) == Some(value))
    }

    fn parts(&self, step: &str) -> KeyParts {
        let mut parts = KeyParts::new()
            .with("step", step)
            .with("operation", self.signature)
            .with("op", &self.operation)
            .with("device", self.device)
            .with("device-name", &self.device_name)
            .with("threads", self.threads);
        if self.hybrid_softmax {
            parts.set("hybrid-softmax", "true");
        }
        recipes().into_iter().for_each(|(name, recipe)| parts.set(name, recipe));
        parts
    }
}

/// What an operation runs on.
#[derive(Clone, Copy)]
pub struct On<'a> {
    pub device: &'a Device,
    pub threads: usize,
    pub hybrid_softmax: bool,
}

impl<'a> On<'a> {
    pub fn of(block: &'a BlockTarget) -> Self {
        Self { device: &block.device, threads: block.threads, hybrid_softmax: block.hybrid_softmax }
    }
}

/// The key of a trial, with its parts. `shaders`: the project's own templates that the schedule is rendered from.
fn trial_parts(scope: &Scope, schedule: &Schedule, shaders: &BTreeMap<String, Digest>) -> KeyParts {
    let mut parts = scope.parts(TRIAL);
    // Plain data.
    parts.set("schedule", serde_json::to_string(schedule).unwrap_or_default());
    shaders.iter().for_each(|(name, digest)| parts.set(format!("shaders/{name}"), digest.to_string()));
    parts
}

/// The searches' part of a store.
#[derive(Clone, Copy)]
pub struct Ledger<'a> {
    pub store: &'a Store,
}

impl Ledger<'_> {
    /// How this schedule did, where it was tried.
    pub fn trial(&self, scope: &Scope, schedule: &Schedule, shaders: &BTreeMap<String, Digest>) -> Option<Trial> {
        let trial: Trial = self.read(&trial_parts(scope, schedule, shaders).key(), blob::TRIAL)?;
        (trial.version == TRIAL_VERSION).then_some(trial)
    }

    pub fn record_trial(
        &self,
        scope: &Scope,
        trial: &Trial,
        shaders: &BTreeMap<String, Digest>,
    ) -> Result<Digest, StoreError> {
        let parts = trial_parts(scope, &trial.schedule, shaders);
        let key = parts.key();
        self.write(&format!("{TRIAL}:{}", key.short()), parts, &[(blob::TRIAL, json(trial))])?;
        Ok(key)
    }

    /// Never to be tried again: the full gates rejected what the quick ones let pass.
    pub fn refute(
        &self,
        scope: &Scope,
        schedule: &Schedule,
        shaders: &BTreeMap<String, Digest>,
        refusal: Refusal,
    ) -> Result<(), StoreError> {
        let origin = self.trial(scope, schedule, shaders).map_or_else(String::new, |it| it.origin);
        let outcome = TrialOutcome::Rejected(refusal);
        let trial = Trial { version: TRIAL_VERSION, schedule: schedule.clone(), origin, outcome };
        self.record_trial(scope, &trial, shaders).map(drop)
    }

    /// What won of `candidates`, the digest of all that was compared, where it was decided.
    pub fn choice<T: DeserializeOwned>(&self, scope: &Scope, candidates: &Digest) -> Option<T> {
        self.read(&scope.parts(CHOICE).with("candidates", candidates).key(), CHOICE)
    }

    pub fn record_choice(&self, scope: &Scope, candidates: &Digest, choice: &impl Serialize) -> Result<(), StoreError> {
        let parts = scope.parts(CHOICE).with("candidates", candidates);
        self.write(&format!("{CHOICE}:{}", parts.key().short()), parts, &[(CHOICE, json(choice))])
    }

    /// The best schedule of the operation that a verifier accepted on this device, with this kforge.
    pub fn best(&self, scope: &Scope) -> Option<Best> {
        let best: Best = self.read(&self.store.records.latest_key(&best_identity(scope))?, BEST)?;
        Some(best).filter(|it| it.recipes == recipe_digest())
    }

    /// Keeps `best` unless a better one is known. Whether it was kept.
    pub fn record_best(&self, scope: &Scope, best: &Best, audit: Digest) -> Result<bool, StoreError> {
        if self.best(scope).is_some_and(|known| known.relative <= best.relative) {
            return Ok(false);
        }
        let schedule = serde_json::to_string(&best.schedule).unwrap_or_default();
        let parts = scope.parts(BEST).with("schedule", schedule).with("audit", audit);
        let bytes = json(best);
        let mut outputs = Outputs::default();
        outputs.insert(BEST, self.store.cas.put(&bytes)?);
        outputs.insert(blob::AUDIT, audit);
        self.put(&best_identity(scope), parts, outputs)?;
        Ok(true)
    }

    /// Every best schedule that is kept, with the parts of its key and when it was found; those of other kforges too.
    pub fn all_best(&self) -> Vec<(Best, Kept)> {
        let latest = self.store.records.steps_of(BEST_PREFIX).into_iter();
        let latest: std::collections::BTreeSet<Digest> = latest.map(|it| it.latest).collect();
        let kept = self.store.records.kept().into_iter().filter(|it| latest.contains(&it.record.key));
        kept.filter_map(|it| Some((self.read(&it.record.key, BEST)?, it))).collect()
    }

    /// What plans of the heuristic depend on: the best schedules of each device and number of threads of these blocks, by digest,
    /// where there are some.
    pub fn best_digests(&self, blocks: &[BlockTarget]) -> BTreeMap<(Digest, usize), Digest> {
        let best: Vec<_> = self.store.records.steps_of(BEST_PREFIX);
        let mut digests = BTreeMap::new();
        let mut seen: Vec<(&std::sync::Arc<Device>, usize)> = Vec::new();
        for block in blocks.iter().filter(|_| !best.is_empty()) {
            // Blocks of one target share their device.
            if seen.iter().any(|it| std::sync::Arc::ptr_eq(it.0, &block.device) && it.1 == block.threads) {
                continue;
            }
            seen.push((&block.device, block.threads));
            let device = (block.device.fingerprint(), block.threads);
            let suffix = best_suffix(&device.0, device.1);
            let own = best.iter().filter(|it| it.step.ends_with(&suffix));
            let text: String = own.map(|it| format!("{} {}\n", it.step, it.latest)).collect();
            if !text.is_empty() {
                digests.insert(device, Digest::of((text + &recipe_digest().to_string()).as_bytes()));
            }
        }
        digests
    }

    /// Every trial that is kept, those of other devices and imported ones too.
    pub fn trials(&self) -> Vec<(Trial, Record)> {
        let kept = self.store.records.kept().into_iter();
        let trials = kept.filter(|it| matches!(it.record.parts.get("step"), Some(TRIAL | IMPORTED)));
        trials.filter_map(|it| Some((self.read(&it.record.key, blob::TRIAL)?, it.record))).collect()
    }

    /// Keeps a trial of another machine: a place to start from, and never a measurement of this one.
    pub fn import(&self, parts: KeyParts, trial: &Trial) -> Result<(), StoreError> {
        let parts = parts.with("step", IMPORTED);
        self.write(&format!("{IMPORTED}:{}", parts.key().short()), parts, &[(blob::TRIAL, json(trial))])
    }

    /// Schedules of the operation that did well on other devices, or elsewhere, best first.
    pub fn transferred(&self, scope: &Scope, most: usize) -> Vec<Schedule> {
        let signature = scope.signature.to_string();
        let (device, threads) = (scope.device.to_string(), scope.threads.to_string());
        let mut found: Vec<(f64, String, Schedule)> = Vec::new();
        for (trial, record) in self.trials() {
            let part = |name: &str| record.parts.get(name).unwrap_or_default();
            let own = part("step") == TRIAL && part("device") == device && part("threads") == threads;
            if own || part("operation") != signature {
                continue;
            }
            if let Some(relative) = trial.relative().filter(|it| *it < 1.0) {
                found.push((relative, part("schedule").to_owned(), trial.schedule));
            }
        }
        found.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
        let mut schedules: Vec<Schedule> = Vec::new();
        for (_, _, schedule) in found {
            if schedules.len() < most && !schedules.contains(&schedule) {
                schedules.push(schedule);
            }
        }
        schedules
    }

    /// An exchange with a language model.
    pub fn exchange<T: DeserializeOwned>(&self, key: &Digest) -> Option<T> {
        self.read(&exchange_parts(key).key(), EXCHANGE)
    }

    pub fn record_exchange(&self, key: &Digest, exchange: &impl Serialize) -> Result<(), StoreError> {
        self.write(&format!("{EXCHANGE}:{}", key.short()), exchange_parts(key), &[(EXCHANGE, json(exchange))])
    }

    fn read<T: DeserializeOwned>(&self, key: &Digest, name: &str) -> Option<T> {
        let digest = *self.store.records.outputs(key)?.get(name)?;
        // What cannot be read is a miss, and made again.
        serde_json::from_slice(&self.store.cas.get(&digest).ok()?).ok()
    }

    fn write(&self, identity: &str, parts: KeyParts, blobs: &[(&str, Vec<u8>)]) -> Result<(), StoreError> {
        let mut outputs = Outputs::default();
        for (name, bytes) in blobs {
            outputs.insert(name, self.store.cas.put(bytes)?);
        }
        self.put(identity, parts, outputs)
    }

    fn put(&self, identity: &str, parts: KeyParts, outputs: Outputs) -> Result<(), StoreError> {
        let record = Record { key: parts.key(), parts, outputs, finished_unix: unix_now(), wall_us: 0 };
        self.store.records.put(identity, &record)
    }
}

/// The best known schedule of one operation on one device.
#[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Best {
    pub schedule: Schedule,
    /// Its time as a share of that of the heuristic's schedule.
    pub relative: f64,
    /// Nanoseconds.
    pub median_ns: f64,
    pub origin: String,
    /// The block whose verification accepted it.
    pub block: String,
    /// The digest of the recipes that it rests on: of another kforge's nothing is used.
    pub recipes: Digest,
}

/// [`Best::recipes`] of this kforge.
pub fn recipe_digest() -> Digest {
    Digest::of(recipes().map(|it| it.1).concat().as_bytes())
}

const BEST_PREFIX: &str = "best:";

fn best_identity(scope: &Scope) -> String {
    let hybrid = if scope.hybrid_softmax { "+hybrid-softmax" } else { "" };
    format!("{BEST_PREFIX}{}{hybrid}{}", scope.signature, best_suffix(&scope.device, scope.threads))
}

fn best_suffix(device: &Digest, threads: usize) -> String {
    format!("@{device}x{threads}")
}

fn exchange_parts(key: &Digest) -> KeyParts {
    KeyParts::new().with("step", EXCHANGE).with("request", key)
}

/// Indented and newline-ended, as everything that a person may open.
fn json(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text.into_bytes()
}
