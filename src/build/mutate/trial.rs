//! Mutants through workers, several at a time.

use super::subject::Subject;
use crate::{
    build::{
        engine::{
            action::{limits, with_driver},
            worker::{Leash, Request, Seat, Toolchain, WorkerError},
        },
        graph::{BlockTarget, StepKind},
        search,
    },
    digest::Digest,
    host::Device,
    protocol::{
        ActionKind, Failure, FailureKind, Limits, blob,
        corpus::{Case, Witness},
        mutation::{Evidence, Family, Fate, Judged, KilledBy, Mutant},
    },
    store::cas::Cas,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Wall time of one mutant. It takes a fifth of a second; one that takes a hundred times as long does not end.
pub const WALL_MS: u64 = 20_000;

/// Address space of one mutant: LLVM and a small block need a quarter of it.
const MEMORY: u64 = 4 << 30;

/// A subject with its real artefacts.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub subject: Subject,
    pub inputs: BTreeMap<String, Digest>,
    pub mutants: Vec<Mutant>,
}

/// One mutant's end.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Trial {
    pub block: String,
    #[serde(flatten)]
    pub mutant: Mutant,
    #[serde(flatten)]
    pub fate: Fate,
    /// Largest error / bound at each stage.
    pub stages: Vec<(String, f64)>,
    /// The replayable cases that rejected it, if nothing else did.
    pub witnesses: Vec<Witness>,
    #[serde(skip)]
    pub wall: Duration,
}

/// Why mutants could not be judged.
#[derive(Debug, thiserror::Error)]
pub enum MutateError {
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error("block `{block}`: {failure}")]
    Step { block: String, failure: Failure },
}

/// What all trials share.
pub struct Laboratory<'a> {
    pub toolchain: &'a Toolchain,
    pub leash: &'a Leash,
    pub cas: &'a Cas,
    /// The project's own shader templates.
    pub shaders: &'a BTreeMap<String, String>,
    /// Trials at a time.
    pub jobs: usize,
    /// Of the verifier's inputs; drawn anew for every run of the command.
    pub seed: u64,
    /// Replayed first.
    pub corpus: &'a [Case],
}

impl Laboratory<'_> {
    /// Builds the subject, checks that the verifier accepts it, and has its mutants listed.
    pub fn prepare(&self, subject: &Subject) -> Result<Prepared, MutateError> {
        let mut seat = Seat::new(self.toolchain, self.leash);
        let failed = |failure| MutateError::Step { block: subject.block.name.clone(), failure };
        let mut ask = |kind, inputs: &BTreeMap<String, Digest>, like| -> Result<_, MutateError> {
            let limits = with_driver(limits(like), &kind);
            let request = Request { kind, inputs: inputs.clone(), limits };
            Ok(seat.execute(&request)?.map_err(failed)?.outputs)
        };
        let BlockTarget { name, spec, passes, threads, device, target, hybrid_softmax, .. } = &subject.block;
        let (block, passes, threads, seed) = (spec.clone(), passes.clone(), *threads, self.seed);
        let device = Device::clone(device);
        let ir = ActionKind::Ir {
            name: name.clone(),
            block: block.clone(),
            passes: passes.clone(),
            origins: BTreeMap::new(),
        };
        let mut inputs = ask(ir, &BTreeMap::new(), StepKind::Ir)?;
        let stages = self.read(subject, &inputs, blob::STAGES)?;
        let plan = search::plan(&stages, (name, target), (&device, *hybrid_softmax), self.shaders);
        let shaders = search::templates::of_plan(&plan, self.shaders).map_err(|it| failed(it.into()))?;
        let plan = serde_json::to_vec_pretty(&plan).map_err(|error| failed(internal(error.to_string())))?;
        let plan = self.cas.put(&plan).map_err(|error| failed(Failure::new(FailureKind::Io, error.to_string())))?;
        inputs.insert(blob::PLAN.to_owned(), plan);
        inputs.extend(ask(ActionKind::Compile { device: device.clone(), shaders }, &inputs, StepKind::Compile)?);
        let corpus = self.corpus.to_vec();
        let verify = ActionKind::Verify { block: block.clone(), device: device.clone(), threads, seed, corpus };
        ask(verify, &inputs, StepKind::Verify)?;
        let listed = ask(ActionKind::ListMutants { block, passes, device }, &inputs, StepKind::Ir)?;
        let mutants = self.read(subject, &listed, blob::MUTANTS)?;
        Ok(Prepared { subject: subject.clone(), inputs, mutants })
    }

    /// Judges these mutants. The result is in their order.
    pub fn judge_all(
        &self,
        all: &[(&Prepared, &Mutant)],
        on_trial: &(dyn Fn(&Trial) + Sync),
    ) -> Result<Vec<Trial>, MutateError> {
        let (next, results) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        let work = || -> Result<(), MutateError> {
            let mut seat = Seat::new(self.toolchain, self.leash);
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some((prepared, mutant)) = all.get(index) else { return Ok(()) };
                let trial = self.judge(&mut seat, prepared, mutant)?;
                on_trial(&trial);
                results.lock().unwrap_or_else(PoisonError::into_inner).insert(index, trial);
            }
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..self.jobs.max(1)).map(|_| scope.spawn(work)).collect();
            let mut end = Ok(());
            for thread in threads {
                let result = thread.join().unwrap_or_else(|_| Err(WorkerError::Interrupted.into()));
                if result.is_err() {
                    // What still runs would only be waited for.
                    next.store(all.len(), Ordering::Relaxed);
                    end = end.and(result);
                }
            }
            end
        })?;
        Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect())
    }

    fn judge(&self, seat: &mut Seat<'_>, prepared: &Prepared, mutant: &Mutant) -> Result<Trial, MutateError> {
        let BlockTarget { name, spec, passes, threads, device, .. } = &prepared.subject.block;
        let kind = ActionKind::Mutant {
            block: spec.clone(),
            passes: passes.clone(),
            device: Device::clone(device),
            threads: *threads,
            seed: self.seed,
            corpus: self.corpus.to_vec(),
            mutant: mutant.id.clone(),
        };
        let limits = with_driver(Limits { wall_ms: WALL_MS, memory_bytes: MEMORY }, &kind);
        let request = Request { kind, inputs: prepared.inputs.clone(), limits };
        let start = Instant::now();
        let outcome = seat.execute(&request)?;
        let wall = start.elapsed();
        // A wrong kernel has run in there, and may have written anywhere.
        if mutant.family != Family::Plan {
            seat.vacate();
        }
        let judged = match outcome {
            Ok(done) => self.read(&prepared.subject, &done.outputs, blob::JUDGED)?,
            Err(failure) => {
                let judged = from_failure(failure);
                judged.map_err(|failure| match failure.kind {
                    FailureKind::Cancelled => WorkerError::Interrupted.into(),
                    _ => MutateError::Step { block: format!("{name}, mutant {}", mutant.id), failure },
                })?
            }
        };
        let Judged { fate, stages, witnesses } = judged;
        Ok(Trial { block: name.clone(), mutant: mutant.clone(), fate, stages, witnesses, wall })
    }

    fn read<T: DeserializeOwned>(
        &self,
        subject: &Subject,
        outputs: &BTreeMap<String, Digest>,
        name: &str,
    ) -> Result<T, MutateError> {
        let failed = |failure| MutateError::Step { block: subject.block.name.clone(), failure };
        let digest = outputs.get(name).ok_or_else(|| failed(internal(format!("the worker made no `{name}`"))))?;
        let bytes = self.cas.get(digest);
        let bytes = bytes.map_err(|error| failed(Failure::new(FailureKind::MissingBlob, error.to_string())))?;
        serde_json::from_slice(&bytes).map_err(|error| failed(internal(format!("`{name}`: {error}"))))
    }
}

fn internal(message: String) -> Failure {
    Failure::new(FailureKind::Internal, message)
}

/// What a failed trial says about its mutant: one that takes its worker down or holds it up is found out by that.
///
/// # Errors
/// A failure that is not the mutant's.
pub fn from_failure(failure: Failure) -> Result<Judged, Failure> {
    let by = match failure.kind {
        FailureKind::Timeout => KilledBy::Timeout,
        FailureKind::Crash | FailureKind::OutOfMemory => KilledBy::Crash,
        // The verifier gave up on it (an index beyond a tensor): refused, in words that are not a gate's.
        FailureKind::Internal if failure.message.starts_with("the worker panicked") => KilledBy::Crash,
        FailureKind::Codegen | FailureKind::IllegalPlan => KilledBy::Validation,
        _ => return Err(failure),
    };
    let evidence =
        Evidence { gate: None, stage: failure.stage, case: "running it".to_owned(), message: failure.message };
    Ok(Judged { fate: Fate::Killed { by, evidence, gates: Vec::new() }, stages: Vec::new(), witnesses: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_and_a_hang_kill_and_a_broken_store_does_not() {
        let by = |kind| match from_failure(Failure::new(kind, "message")).map(|it| it.fate) {
            Ok(Fate::Killed { by, .. }) => Some(by),
            _ => None,
        };
        assert_eq!(by(FailureKind::Crash), Some(KilledBy::Crash));
        assert_eq!(by(FailureKind::Timeout), Some(KilledBy::Timeout));
        assert_eq!(by(FailureKind::MissingBlob), None);
        assert_eq!(by(FailureKind::Internal), None);
        assert_eq!(by(FailureKind::Cancelled), None);
    }
}
