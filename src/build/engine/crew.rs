//! The threads that do steps. Each has a seat for a worker and does one job after another: waits until no other process does the
//! same step or measures, does it, and does it again where it failed for no fault of its own and retries are allowed.

use super::{
    action::Workspace,
    control::Control,
    lease::{self, Patience},
    observe::{Event, Observer, Wait},
    run::{BuildError, is_exclusive},
    worker::{Leash, Token, WorkerError},
};
use crate::{
    build::{
        graph::{History, Outputs, Recorded, StaleReason, Step, StepId, StepKind},
        tune::Progress,
    },
    digest::Digest,
    protocol::{Failure, FailureKind},
    store::lock::{Holder, Lock, LockError},
};
use std::{
    collections::BTreeMap,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

/// Does steps. The engine has workers for it; a test of the engine itself has something that takes no time.
pub trait Executor: Sync {
    /// A place for one thread, which is its only user. `on_start` is told the process and start-up time of each worker.
    fn seat<'a>(&'a self, on_start: &'a dyn Fn(u32, Duration)) -> Box<dyn Seated + 'a>;
}

/// What [`Executor::seat`] gives out.
pub trait Seated {
    /// Makes ready for a step of this kind. The worker process that will do it, if one does.
    fn prepare(&mut self, kind: StepKind) -> Result<Option<u32>, WorkerError>;

    /// Does the step, and tells how far it is where that takes long. The outer error is about having a worker at all, the inner one
    /// about the step.
    fn perform(
        &mut self,
        workspace: &Workspace<'_>,
        step: &Step,
        inputs: BTreeMap<String, Digest>,
        token: &Arc<Token>,
        told: &dyn Fn(&Progress<'_>),
    ) -> Result<Result<Outputs, Failure>, WorkerError>;
}

/// A step with all that doing it needs.
pub struct Job {
    pub step: StepId,
    pub key: Digest,
    pub reason: StaleReason,
    pub inputs: BTreeMap<String, Digest>,
}

/// A job that is over.
pub struct Over {
    pub step: StepId,
    pub end: End,
    /// Of the last attempt.
    pub wall: Duration,
    /// How the attempts before it failed.
    pub failures: Vec<Failure>,
    /// Keeps other processes from the step until it is recorded.
    pub lock: Option<Lock>,
}

pub enum End {
    Made(Outputs),
    /// Another process made it meanwhile.
    Found(Outputs),
    Failed(Failure),
    /// The build was interrupted, or a newer one does not want the step.
    Cancelled,
    /// The build cannot go on.
    Broken(BuildError),
}

/// What the threads share.
pub struct Crew<'a> {
    pub workspace: &'a Workspace<'a>,
    pub executor: &'a dyn Executor,
    pub leash: &'a Leash,
    pub control: &'a Control,
    pub observer: &'a dyn Observer,
    pub retries: usize,
    /// How long another process is waited for.
    pub wait: Option<Duration>,
    pub todo: Mutex<mpsc::Receiver<Job>>,
}

impl Crew<'_> {
    /// One thread: does jobs until there are no more.
    pub fn work(&self, number: usize, finished: &mpsc::Sender<Over>) {
        let started = |process, wall| self.observer.event(Event::WorkerStarted { seat: number, process, wall });
        let mut seat = self.executor.seat(&started);
        loop {
            let job = self.todo.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = job else { return };
            let token = self.control.begin(job.step, job.key);
            let mut over =
                Over { step: job.step, end: End::Cancelled, wall: Duration::ZERO, failures: Vec::new(), lock: None };
            // The deciding thread waits for this message, whatever happens here.
            let attend = AssertUnwindSafe(|| self.attend(&job, &token, number, &mut *seat, &mut over));
            let end = panic::catch_unwind(attend);
            over.end = end.map_or_else(|_| defect(), |it| it.unwrap_or_else(|early| early));
            self.control.end(job.step);
            if finished.send(over).is_err() {
                return;
            }
        }
    }

    /// The error is an end as well, only an early one.
    fn attend(
        &self,
        job: &Job,
        token: &Arc<Token>,
        number: usize,
        seat: &mut dyn Seated,
        over: &mut Over,
    ) -> Result<End, End> {
        let step = self.workspace.graph.step(job.step);
        let patience = Patience { cancelled: &|| self.leash.is_cancelled() || token.is_revoked(), limit: self.wait };
        let path = self.workspace.store.step_lock_path(&job.key);
        let what = Wait::Step { step, seat: number };
        over.lock = Some(self.wait_for(what, |told| lease::lock(&path, &patience, told))?);
        if job.reason != StaleReason::Forced
            && let Some(outputs) = self.made_meanwhile(&job.key)
        {
            return Ok(End::Found(outputs));
        }
        loop {
            let lease = self.lease(step, number, &patience)?;
            let start = Instant::now();
            let result = self.perform(job, step, token, number, seat);
            over.wall = start.elapsed();
            drop(lease);
            match result {
                Ok(Ok(outputs)) => return Ok(End::Made(outputs)),
                Ok(Err(failure)) if failure.kind == FailureKind::Cancelled => return Ok(End::Cancelled),
                Err(WorkerError::Interrupted) => return Ok(End::Cancelled),
                Err(error) => return Ok(End::Broken(error.into())),
                Ok(Err(failure)) if over.failures.len() < self.retries && may_pass(failure.kind) => {
                    self.observer.event(Event::Retrying { step, failure: &failure });
                    over.failures.push(failure);
                }
                Ok(Err(failure)) => return Ok(End::Failed(failure)),
            }
        }
    }

    /// What another process recorded under this key since this one decided that the step is stale.
    fn made_meanwhile(&self, key: &Digest) -> Option<Outputs> {
        let store = self.workspace.store;
        // Records that cannot be read are as good as absent, and whoever writes the next one says what is wrong.
        store.records.refresh().ok()?;
        match store.recorded(key) {
            Recorded::Intact(outputs) => Some(outputs),
            Recorded::Absent | Recorded::Damaged { .. } => None,
        }
    }

    /// Tells that the step starts once the worker that it needs is there.
    fn perform(
        &self,
        job: &Job,
        step: &Step,
        token: &Arc<Token>,
        number: usize,
        seat: &mut dyn Seated,
    ) -> Result<Result<Outputs, Failure>, WorkerError> {
        let worker = seat.prepare(step.kind)?;
        self.observer.event(Event::Started { step, reason: &job.reason, seat: number, worker });
        let start = Instant::now();
        let told = |progress: &Progress<'_>| self.observer.event(Event::Searching { step, progress });
        let result = seat.perform(self.workspace, step, job.inputs.clone(), token, &told);
        self.observer.event(Event::Done { step, seat: number, wall: start.elapsed() });
        result
    }

    /// What the step needs of the devices: all of one to measure, a part of it to be where others measure.
    fn lease(&self, step: &Step, number: usize, patience: &Patience<'_>) -> Result<Option<lease::Lease>, End> {
        let block = step.subject.and_then(|it| self.workspace.blocks.get(it));
        let needs = lease::needs(step.kind, self.workspace.cpu, block);
        if needs.is_empty() {
            return Ok(None);
        }
        let what = Wait::Device { step, seat: number };
        self.wait_for(what, |told| lease::devices(&needs, patience, told)).map(Some)
    }

    /// Tells of a wait if there is one, and of its end.
    fn wait_for<T>(
        &self,
        what: Wait<'_>,
        take: impl FnOnce(&mut dyn FnMut(&Holder)) -> Result<Option<T>, LockError>,
    ) -> Result<T, End> {
        let (start, mut waited) = (Instant::now(), false);
        let taken = take(&mut |holder| {
            waited = true;
            self.observer.event(Event::Waiting { what, holder });
        });
        match taken {
            Ok(Some(taken)) => {
                if waited || matches!(what, Wait::Device { step, .. } if is_exclusive(step)) {
                    self.observer.event(Event::Acquired { what, waited: start.elapsed() });
                }
                Ok(taken)
            }
            Ok(None) => Err(End::Cancelled),
            Err(error) => Err(End::Broken(error.into())),
        }
    }
}

/// The end of a step in which kforge itself panicked; what it said is on stderr.
fn defect() -> End {
    End::Failed(Failure::new(FailureKind::Internal, "kforge itself failed while it did this step: a defect"))
}

/// A failure that need not come again with the same inputs. What a gate rejected is not among them: a kernel that is wrong
/// once is wrong.
const fn may_pass(kind: FailureKind) -> bool {
    matches!(
        kind,
        FailureKind::Crash
            | FailureKind::Timeout
            | FailureKind::OutOfMemory
            | FailureKind::Io
            | FailureKind::Implausible
    )
}
