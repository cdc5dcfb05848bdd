//! One build: decides what is stale as its inputs become known, runs it, records it.
//!
//! One thread decides; the others (at most `jobs`, started when first needed) each have a seat for a worker and do what they
//! are given. A step is recorded as soon as it is finished, so whatever ends the build loses only what was running.

use super::{
    action::Workspace,
    control::Control,
    crew::{Crew, End, Executor, Job, Over},
    observe::{Counts, Event, Observer},
    queue::Queue,
    worker::{Leash, WorkerError},
};
use crate::{
    build::graph::{Class, Decision, Graph, Input, Outputs, StaleReason, Step, StepId},
    digest::Digest,
    protocol::{Failure, FailureKind},
    store::{StoreError, key::KeyParts, lock::LockError, records::Record},
};
use std::{
    sync::{Mutex, mpsc},
    thread,
    time::{Duration, Instant, SystemTime},
};

/// How to build.
pub struct Options<'a> {
    /// Steps that may run at a time.
    pub jobs: usize,
    /// Go on with what does not depend on a failed step.
    pub keep_going: bool,
    /// How often a step that failed for no fault of its own (a crash, a limit, an implausible measurement) is tried again.
    pub retries: usize,
    /// How long another process is waited for; `None`: as long as it takes.
    pub wait: Option<Duration>,
    /// Steps to run although nothing they read has changed.
    pub forced: &'a dyn Fn(&Step) -> bool,
    /// What to have at the end; what these depend on is built too.
    pub goals: &'a [StepId],
}

/// What became of one step.
#[derive(Debug, Clone, PartialEq)]
pub enum StepResult {
    /// Not asked for, or the build ended before its turn.
    NotReached,
    UpToDate,
    Ran {
        reason: StaleReason,
        wall: Duration,
        /// It made what it had made before.
        unchanged: bool,
        /// How it failed before: a step with any is flaky.
        failures: Vec<Failure>,
    },
    Failed {
        reason: StaleReason,
        failure: Failure,
    },
    /// It reads what this step failed to make.
    Skipped {
        because: StepId,
    },
}

/// The end of a build, by step.
#[derive(Debug)]
pub struct Built {
    pub results: Vec<StepResult>,
    pub outputs: Vec<Option<Outputs>>,
    pub interrupted: bool,
    /// A newer build took its place.
    pub superseded: bool,
}

impl Built {
    pub fn failed(&self) -> usize {
        self.results.iter().filter(|it| matches!(it, StepResult::Failed { .. })).count()
    }

    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for result in &self.results {
            *match result {
                StepResult::NotReached => &mut counts.not_reached,
                StepResult::UpToDate => &mut counts.up_to_date,
                StepResult::Ran { failures, .. } => {
                    counts.flaky += usize::from(!failures.is_empty());
                    &mut counts.ran
                }
                StepResult::Failed { .. } => &mut counts.failed,
                StepResult::Skipped { .. } => &mut counts.skipped,
            } += 1;
        }
        counts
    }
}

/// The build itself cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another process did not let go of a step or of the device in time.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// Builds the goals. The caller holds the lock on the directory.
pub fn run(
    workspace: &Workspace<'_>,
    options: &Options<'_>,
    executor: &dyn Executor,
    (leash, control): (&Leash, &Control),
    observer: &dyn Observer,
) -> Result<Built, BuildError> {
    let (jobs, todo) = mpsc::channel();
    let (finished, results) = mpsc::channel();
    let Options { retries, wait, .. } = *options;
    let crew = Crew { workspace, executor, leash, control, observer, retries, wait, todo: Mutex::new(todo) };
    thread::scope(|scope| {
        // Moved in, so that its end is the end of the channel, which is what the threads wait for.
        let jobs = jobs;
        let mut build = Build::begin(workspace, options, (leash, control), observer)?;
        let mut threads = 0;
        loop {
            while let Some(job) = build.next_job() {
                if threads < build.queue.running() {
                    threads += 1;
                    let (crew, finished) = (&crew, finished.clone());
                    let seat = threads;
                    scope.spawn(move || crew.work(seat, &finished));
                }
                // Received by one of the threads, which outlive this loop.
                let _ = jobs.send(job);
            }
            if build.queue.running() == 0 {
                return Ok(build.end());
            }
            let Ok(over) = results.recv() else { return Ok(build.end()) };
            if let Err(error) = build.finish(over) {
                // What still runs would only be waited for.
                leash.cancel();
                return Err(error);
            }
        }
    })
}

/// Measures, and therefore wants the machine for itself.
pub fn is_exclusive(step: &Step) -> bool {
    step.class() == (Class::Device { exclusive: true })
}

/// Why and under which key a step runs.
struct Cause {
    key: Digest,
    parts: KeyParts,
    reason: StaleReason,
}

enum State {
    /// Waits for the steps it reads.
    Waiting,
    /// In the queue or running.
    Due(Cause),
    Over(StepResult),
}

impl State {
    /// What depends on the step may go on.
    const fn is_done(&self) -> bool {
        matches!(self, Self::Over(StepResult::UpToDate | StepResult::Ran { .. }))
    }
}

/// The deciding thread's view.
struct Build<'a> {
    workspace: &'a Workspace<'a>,
    options: &'a Options<'a>,
    leash: &'a Leash,
    control: &'a Control,
    observer: &'a dyn Observer,
    queue: Queue,
    states: Vec<State>,
    /// Of how many steps that it depends on each step waits for the end.
    pending: Vec<usize>,
    outputs: Vec<Option<Outputs>>,
    /// What was known of each step when the build began. Taken when its turn comes; a step that comes again is decided anew.
    known: Vec<Option<Decision>>,
    /// Announced as possibly running.
    announced: Vec<bool>,
    /// Had an input made again for it once; a second loss is a failure, or two builds could undo each other for ever.
    repaired: Vec<bool>,
}

impl<'a> Build<'a> {
    fn begin(
        workspace: &'a Workspace<'a>,
        options: &'a Options<'a>,
        (leash, control): (&'a Leash, &'a Control),
        observer: &'a dyn Observer,
    ) -> Result<Self, BuildError> {
        let start = Instant::now();
        let graph = workspace.graph;
        let wanted = closure(graph, options.goals);
        let known = graph.status(workspace.store, options.forced);
        let announced: Vec<bool> =
            known.iter().zip(&wanted).map(|(it, wanted)| *wanted && !it.is_up_to_date()).collect();
        let steps = announced.iter().filter(|it| **it).count();
        observer.event(Event::Begun { steps, deciding: start.elapsed() });
        let state = |wanted: &bool| if *wanted { State::Waiting } else { State::Over(StepResult::NotReached) };
        let mut build = Self {
            workspace,
            options,
            leash,
            control,
            observer,
            queue: Queue::new(options.jobs),
            states: wanted.iter().map(state).collect(),
            pending: graph.steps().iter().map(|it| it.deps.len()).collect(),
            known: known.into_iter().map(Some).collect(),
            outputs: vec![None; wanted.len()],
            announced,
            repaired: vec![false; wanted.len()],
        };
        for step in graph.steps().iter().filter(|it| it.deps.is_empty()) {
            build.settle(step.id)?;
        }
        Ok(build)
    }

    /// Changes the state of a step, and what its dependents still wait for.
    fn set(&mut self, id: StepId, state: State) {
        let before = self.states[id.index()].is_done();
        let after = state.is_done();
        self.states[id.index()] = state;
        for dependent in self.workspace.graph.dependents(id) {
            let pending = &mut self.pending[dependent.index()];
            match (before, after) {
                (false, true) => *pending = pending.saturating_sub(1),
                (true, false) => *pending += 1,
                _ => {}
            }
        }
    }

    /// Decides about `first` if all that it depends on is done, and then about everything that this makes decidable.
    fn settle(&mut self, first: StepId) -> Result<(), BuildError> {
        let graph = self.workspace.graph;
        let mut undecided = vec![first];
        while let Some(id) = undecided.pop() {
            let ready = self.pending[id.index()] == 0 && matches!(self.states[id.index()], State::Waiting);
            if ready && self.decide(graph.step(id))? {
                undecided.extend(graph.dependents(id).iter().rev());
            }
        }
        Ok(())
    }

    /// Gives up everything that waits for a step that failed.
    fn skip_dependents(&mut self, failed: StepId) {
        let graph = self.workspace.graph;
        let mut undecided: Vec<StepId> = graph.dependents(failed).iter().rev().copied().collect();
        while let Some(id) = undecided.pop() {
            if matches!(self.states[id.index()], State::Waiting) {
                self.observer.event(Event::Skipped { step: graph.step(id), because: graph.step(failed) });
                self.set(id, State::Over(StepResult::Skipped { because: failed }));
                undecided.extend(graph.dependents(id).iter().rev());
            }
        }
    }

    /// Whether the step is now done.
    fn decide(&mut self, step: &Step) -> Result<bool, BuildError> {
        let Workspace { graph, store, .. } = *self.workspace;
        let decision = match self.known[step.id.index()].take() {
            // Still so: a record that is there is never changed, and a blob that went away since is repaired by who misses it.
            Some(it @ Decision::UpToDate { .. }) => it,
            _ => {
                let forced = (self.options.forced)(step);
                graph.decide(step.id, |it| self.outputs[it.index()].as_ref(), store, forced)
            }
        };
        match decision {
            Decision::UpToDate { key, outputs } => {
                store.records.set_latest(step.identity(), &key)?;
                if self.announced[step.id.index()] {
                    self.observer.event(Event::CutOff { step });
                }
                self.outputs[step.id.index()] = Some(outputs);
                self.set(step.id, State::Over(StepResult::UpToDate));
                Ok(true)
            }
            Decision::Stale { key, parts, reason } => {
                self.observer.event(Event::Queued { step, reason: &reason });
                self.queue.push(step.id.index(), is_exclusive(step));
                self.set(step.id, State::Due(Cause { key, parts, reason }));
                Ok(false)
            }
            // All it waits for is over, so this is only reached by a graph that contradicts itself.
            Decision::Unknown { .. } => Ok(false),
        }
    }

    fn next_job(&mut self) -> Option<Job> {
        if self.leash.is_cancelled() || self.control.is_superseded() {
            self.queue.close();
        }
        let step = &self.workspace.graph.steps()[self.queue.start()?];
        let State::Due(Cause { key, reason, .. }) = &self.states[step.id.index()] else {
            self.queue.finish(); // only steps that are due are queued
            return None;
        };
        let inputs = step.inputs.iter().chain(&step.gates).filter_map(|it| {
            let digest = self.outputs[it.step.index()].as_ref()?.get(it.name)?;
            Some((it.name.to_owned(), *digest))
        });
        Some(Job { step: step.id, key: *key, reason: reason.clone(), inputs: inputs.collect() })
    }

    fn finish(&mut self, over: Over) -> Result<(), BuildError> {
        self.queue.finish();
        let step = self.workspace.graph.step(over.step);
        let state = &mut self.states[step.id.index()];
        let State::Due(cause) = std::mem::replace(state, State::Over(StepResult::NotReached)) else { return Ok(()) };
        let result = match over.end {
            End::Made(outputs) => self.record(step, cause, outputs, over.wall, over.failures)?,
            End::Found(outputs) => {
                self.workspace.store.records.set_latest(step.identity(), &cause.key)?;
                self.observer.event(Event::Found { step });
                self.outputs[step.id.index()] = Some(outputs);
                StepResult::UpToDate
            }
            End::Cancelled => {
                self.observer.event(Event::Interrupted { step });
                return Ok(());
            }
            End::Broken(error) => return Err(error),
            End::Failed(failure) => {
                if failure.kind == FailureKind::MissingBlob && self.repair(step, &failure)? {
                    return Ok(());
                }
                self.observer.event(Event::Failed { step, failure: &failure });
                if !self.options.keep_going {
                    self.queue.close();
                }
                StepResult::Failed { reason: cause.reason, failure }
            }
        };
        let failed = matches!(result, StepResult::Failed { .. });
        self.set(step.id, State::Over(result));
        if failed {
            self.skip_dependents(step.id);
            return Ok(());
        }
        for &dependent in self.workspace.graph.dependents(step.id) {
            self.settle(dependent)?;
        }
        Ok(())
    }

    fn record(
        &mut self,
        step: &Step,
        cause: Cause,
        outputs: Outputs,
        wall: Duration,
        failures: Vec<Failure>,
    ) -> Result<StepResult, BuildError> {
        let records = &self.workspace.store.records;
        let identity = step.identity();
        let unchanged = records.latest(identity).is_some_and(|it| it.outputs == outputs);
        let record = Record {
            key: cause.key,
            parts: cause.parts,
            outputs: outputs.clone(),
            finished_unix: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |it| it.as_secs()),
            wall_us: u64::try_from(wall.as_micros()).unwrap_or(u64::MAX),
        };
        records.put(identity, &record)?;
        self.observer.event(Event::Finished { step, wall, unchanged });
        self.outputs[step.id.index()] = Some(outputs);
        Ok(StepResult::Ran { reason: cause.reason, wall, unchanged, failures })
    }

    /// A blob that `step` reads was lost behind its record's back: decides anew about the steps that made what is lost, and
    /// lets `step` wait for them. Where all of it is there again, because another step or another build had it made meanwhile,
    /// `step` is just due again. False where this was done for `step` before.
    fn repair(&mut self, step: &Step, failure: &Failure) -> Result<bool, BuildError> {
        let Workspace { graph, store, .. } = *self.workspace;
        if std::mem::replace(&mut self.repaired[step.id.index()], true) {
            return Ok(false);
        }
        // Reads all of them, so that a second one that only looks intact is not found by a second failure.
        let is_lost = |it: &&Input| {
            let digest = self.outputs[it.step.index()].as_ref().and_then(|outputs| outputs.get(it.name));
            digest.is_some_and(|digest| store.cas.get(digest).is_err())
        };
        let read = step.inputs.iter().chain(&step.gates);
        let mut producers: Vec<StepId> = read.filter(is_lost).map(|it| it.step).collect();
        producers.sort();
        producers.dedup();
        self.set(step.id, State::Waiting);
        if producers.is_empty() {
            self.observer.event(Event::Retrying { step, failure });
        }
        for &producer in &producers {
            self.observer.event(Event::Repairing { damaged: graph.step(producer), step, failure });
            self.set(producer, State::Waiting);
            self.outputs[producer.index()] = None;
            // Others that read it and have not started wait as well. Those that have started may come here too.
            for &reader in graph.dependents(producer) {
                if self.queue.withdraw(reader.index()) {
                    self.set(reader, State::Waiting);
                }
            }
        }
        for producer in producers {
            self.settle(producer)?;
        }
        self.settle(step.id)?;
        Ok(true)
    }

    fn end(self) -> Built {
        let result = |state| match state {
            State::Over(result) => result,
            State::Waiting | State::Due(_) => StepResult::NotReached,
        };
        let built = Built {
            results: self.states.into_iter().map(result).collect(),
            outputs: self.outputs,
            interrupted: self.leash.is_cancelled(),
            superseded: self.control.is_superseded(),
        };
        self.observer.event(Event::Ended { counts: built.counts(), interrupted: built.interrupted });
        built
    }
}

/// The goals and everything they depend on, by index.
pub fn closure(graph: &Graph, goals: &[StepId]) -> Vec<bool> {
    let mut wanted = vec![false; graph.steps().len()];
    let mut open = goals.to_vec();
    while let Some(id) = open.pop() {
        if !std::mem::replace(&mut wanted[id.index()], true) {
            open.extend(&graph.step(id).deps);
        }
    }
    wanted
}
