//! Does steps as the project says, fails and is interrupted as it is told, and notes whatever the engine must never do.

use super::project::Project;
use crate::build::tune::Progress;
use crate::{
    build::{
        engine::{
            action::Workspace,
            control::Control,
            crew::{Executor, Seated},
            observe::{Event, Observer},
            run::is_exclusive,
            worker::{Leash, Token, WorkerError},
        },
        graph::{Outputs, Step, StepId, StepKind},
    },
    digest::Digest,
    protocol::{Failure, FailureKind},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// What all builds of one directory share.
#[derive(Default)]
pub struct Floor(Mutex<State>);

#[derive(Default)]
struct State {
    running: Vec<Running>,
    /// How often each key was made.
    made: HashMap<Digest, usize>,
    wrong: Vec<String>,
}

struct Running {
    build: usize,
    key: Digest,
    exclusive: bool,
    /// Done by the tool itself, in a moment: is not kept from the device where another build measures.
    unleased: bool,
}

impl Floor {
    pub fn wrong(&self, what: String) {
        self.0.lock().unwrap().wrong.push(what);
    }

    pub fn verdict(&self) -> Result<(), String> {
        let state = self.0.lock().unwrap();
        if state.wrong.is_empty() { Ok(()) } else { Err(state.wrong.join("; ")) }
    }

    /// How often each key was made since this was last asked.
    pub fn take_made(&self) -> HashMap<Digest, usize> {
        std::mem::take(&mut self.0.lock().unwrap().made)
    }

    fn enter(&self, build: usize, jobs: usize, step: &Step, key: Digest) {
        let mut state = self.0.lock().unwrap();
        let exclusive = is_exclusive(step);
        let unleased = matches!(step.kind, StepKind::Plan | StepKind::Report);
        let identity = step.identity();
        let mut wrong = Vec::new();
        for other in &state.running {
            let both_leased = !unleased && !other.unleased;
            if (exclusive || other.exclusive) && (other.build == build || both_leased) {
                wrong.push(format!("`{identity}` runs beside a step, and one of them measures"));
            }
            if other.key == key {
                wrong.push(format!("`{identity}` is made twice at once"));
            }
        }
        if state.running.iter().filter(|it| it.build == build).count() >= jobs {
            wrong.push(format!("`{identity}` runs beside {jobs} others"));
        }
        state.wrong.extend(wrong);
        state.running.push(Running { build, key, exclusive, unleased });
    }

    fn leave(&self, build: usize, key: Digest, made: bool) {
        let mut state = self.0.lock().unwrap();
        let at = state.running.iter().position(|it| it.build == build && it.key == key).unwrap();
        state.running.swap_remove(at);
        *state.made.entry(key).or_default() += usize::from(made);
    }
}

/// How a step fails: its first so many attempts in this way.
pub type Faults = HashMap<String, (FailureKind, usize)>;

/// The executor of one build.
pub struct Hands<'a> {
    pub floor: &'a Floor,
    pub project: &'a Project,
    /// Tells the builds on the floor apart.
    pub build: usize,
    pub jobs: usize,
    pub leash: &'a Leash,
    pub faults: &'a Faults,
    /// Decides which of the steps that run at once is finished first, as far as the system's scheduler lets it.
    pub pace: u64,
    pub attempts: Mutex<HashMap<String, usize>>,
}

impl Executor for Hands<'_> {
    fn seat<'a>(&'a self, _: &'a dyn Fn(u32, Duration)) -> Box<dyn Seated + 'a> {
        Box::new(Pair(self))
    }
}

struct Pair<'a>(&'a Hands<'a>);

impl Seated for Pair<'_> {
    fn prepare(&mut self, _: StepKind) -> Result<Option<u32>, WorkerError> {
        Ok(None)
    }

    fn perform(
        &mut self,
        workspace: &Workspace<'_>,
        step: &Step,
        inputs: BTreeMap<String, Digest>,
        token: &Arc<Token>,
        _told: &dyn Fn(&Progress<'_>),
    ) -> Result<Result<Outputs, Failure>, WorkerError> {
        let mut parts = step.params();
        for input in step.inputs.iter().chain(&step.gates) {
            if !inputs.contains_key(input.name) {
                self.0.floor.wrong(format!("`{}` starts without its input `{}`", step.identity(), input.name));
                return Ok(Err(Failure::new(FailureKind::Internal, "an input is missing")));
            }
        }
        step.inputs.iter().for_each(|it| parts.set(it.part.clone(), inputs[it.name].to_string()));
        let key = parts.key();
        self.0.floor.enter(self.0.build, self.0.jobs, step, key);
        let result = self.0.perform(workspace, step, &inputs, token);
        self.0.floor.leave(self.0.build, key, result.is_ok());
        Ok(result)
    }
}

impl Hands<'_> {
    fn perform(
        &self,
        workspace: &Workspace<'_>,
        step: &Step,
        inputs: &BTreeMap<String, Digest>,
        token: &Token,
    ) -> Result<Outputs, Failure> {
        let attempt = {
            let mut attempts = self.attempts.lock().unwrap();
            let count = attempts.entry(step.identity().to_owned()).or_default();
            *count += 1;
            *count
        };
        let turns = Digest::of(format!("{} {} {attempt}", self.pace, step.identity()).as_bytes()).as_bytes()[0] % 16;
        (0..turns).for_each(|_| thread::yield_now());
        if token.is_revoked() || self.leash.is_cancelled() {
            return Err(Failure::new(FailureKind::Cancelled, "interrupted"));
        }
        if let Some((kind, times)) = self.faults.get(step.identity())
            && attempt <= *times
        {
            return Err(Failure::new(*kind, "as the test wants it"));
        }
        let cas = &workspace.store.cas;
        for (name, digest) in inputs {
            let read = cas.get(digest);
            read.map_err(|error| Failure::new(FailureKind::MissingBlob, format!("input `{name}`: {error}")))?;
        }
        let outputs = self.project.make(step, inputs).into_iter();
        Ok(outputs.map(|(name, bytes)| (name, cas.put(&bytes).unwrap())).collect())
    }
}

/// Does something to the build when so many events were told, and notes what was running then and what was finished.
pub struct Watch<'a> {
    pub at: Option<usize>,
    pub act: &'a (dyn Fn(&Watch<'_>) + Sync),
    pub leash: &'a Leash,
    pub control: &'a Control,
    pub seen: AtomicUsize,
    pub running: Mutex<HashSet<String>>,
    /// Ran to its end and is recorded, whatever became of it later.
    pub finished: Mutex<HashSet<StepId>>,
    /// A step has failed, and the steps that started since then.
    pub failed: AtomicBool,
    pub started_late: Mutex<HashSet<StepId>>,
}

impl Observer for Watch<'_> {
    fn event(&self, event: Event<'_>) {
        if let Event::Finished { step, .. } = event {
            self.finished.lock().unwrap().insert(step.id);
        }
        match event {
            Event::Failed { .. } => self.failed.store(true, Ordering::SeqCst),
            Event::Started { step, .. } if self.failed.load(Ordering::SeqCst) => {
                self.started_late.lock().unwrap().insert(step.id);
            }
            _ => {}
        }
        {
            let mut running = self.running.lock().unwrap();
            match event {
                Event::Started { step, .. } => drop(running.insert(step.identity().to_owned())),
                Event::Finished { step, .. } | Event::Failed { step, .. } | Event::Interrupted { step } => {
                    running.remove(step.identity());
                }
                Event::Repairing { step, .. } | Event::Retrying { step, .. } => drop(running.remove(step.identity())),
                _ => {}
            }
        }
        if Some(self.seen.fetch_add(1, Ordering::SeqCst)) == self.at {
            (self.act)(self);
        }
    }
}
