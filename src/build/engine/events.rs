//! `--events FILE`: everything that a build tells as JSON lines, for programs that follow a build or look at it later.
//!
//! Each line is one object `{ "at-us": ..., "event": ..., ... }`, written whole. The first is [`Told::Opened`] and has the version:
//! within one version, events and fields are only ever added. Steps are named as everywhere (`gpt2-small-s128@cpu:verify`).
//! A step that runs goes through `queued`, `started`, `done` and one of `finished`, `failed`, `interrupted`, `repairing`;
//! one that fails and is tried again is `retrying`, and then `started` again. One that another process made is `found`.

use super::{
    observe::{Event, Observer, Wait},
    sink::{Sink, SinkError, micros},
};
use crate::{build::graph::StaleReason, protocol::Failure, store::lock::Holder};
use serde::Serialize;
use std::{
    path::Path,
    process,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

/// Version of the lines' shape.
pub const EVENTS_VERSION: u32 = 1;

/// One line.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Line<'a> {
    /// Microseconds of a clock that never goes back, since the first line; never less than in the line before.
    at_us: u64,
    #[serde(flatten)]
    told: Told<'a>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
enum Told<'a> {
    /// The first line.
    Opened {
        /// [`EVENTS_VERSION`].
        version: u32,
        /// The version of kforge.
        kforge: &'a str,
        /// `[project] name`.
        project: &'a str,
        /// The project's folder.
        directory: &'a str,
        /// The command line, the program included.
        command: &'a [String],
        /// kforge's process id.
        process: u32,
        /// Microseconds since 1970 by the wall clock, when this line was written.
        started_unix_us: u64,
    },
    /// Another process has what this build needs.
    Waiting {
        /// `directory`: somebody cleans it; `step`: somebody makes the step; `device`: somebody uses the device.
        what: &'static str,
        /// The step that waits, and its seat; null for the directory.
        step: Option<&'a str>,
        seat: Option<usize>,
        /// Who has it: process id, command line, since when in seconds since 1970. Process id 0: not known.
        holder: &'a Holder,
    },
    /// The lock or the lease is this build's; told also where nobody was in the way.
    Acquired {
        what: &'static str,
        step: Option<&'a str>,
        seat: Option<usize>,
        waited_us: u64,
    },
    /// It is known what is stale.
    Begun {
        /// At most so many steps will run.
        steps: usize,
        /// How long it took to find out.
        deciding_us: u64,
    },
    /// All that the step reads is there, and it must run.
    Queued {
        step: &'a str,
        /// Why, as in `build --json`, and the same as a sentence.
        reason: &'a StaleReason,
        text: String,
    },
    WorkerStarted {
        seat: usize,
        process: u32,
        /// Until it could be asked.
        wall_us: u64,
    },
    Started {
        step: &'a str,
        /// From 1. A seat does one step at a time and has at most one worker.
        seat: usize,
        /// The process id of the worker that does it; null where the tool does it itself.
        worker: Option<u32>,
    },
    /// The search of a plan goes on.
    Searching {
        step: &'a str,
        /// The stage that is searched, or `the whole block`.
        what: &'a str,
        /// Schedules that the strategy was told of, and how many it may be.
        trials: usize,
        budget: usize,
        /// Of these, how many were tried now.
        new: usize,
        /// The best time so far as a share of that of the heuristic's schedule.
        best: f64,
    },
    /// The seat has done with the step; what became of it is told when it is recorded.
    Done {
        step: &'a str,
        seat: usize,
        wall_us: u64,
    },
    /// Succeeded, and the record is on disk.
    Finished {
        step: &'a str,
        /// From the lease of the device, or else from the seat's turning to it, to the end.
        wall_us: u64,
        /// It made what it had made before.
        unchanged: bool,
    },
    Failed {
        step: &'a str,
        failure: &'a Failure,
    },
    /// Failed in a way that need not come again; it is `started` again.
    Retrying {
        step: &'a str,
        failure: &'a Failure,
    },
    /// Another process made it while this one waited for its turn.
    Found {
        step: &'a str,
    },
    /// Not run, because the step `because` failed.
    Skipped {
        step: &'a str,
        because: &'a str,
    },
    /// Counted as one that may run, and then what it reads turned out the same.
    CutOff {
        step: &'a str,
    },
    /// Its turn had come when the build was interrupted.
    Interrupted {
        step: &'a str,
    },
    /// What `step` reads of `damaged` cannot be read any more: `damaged` is made again, and `step` queued again after it.
    Repairing {
        damaged: &'a str,
        step: &'a str,
        failure: &'a Failure,
    },
    /// The build is over. Each step is counted once.
    Ended {
        ran: usize,
        /// Of those that ran, how many failed at first.
        flaky: usize,
        up_to_date: usize,
        failed: usize,
        skipped: usize,
        not_reached: usize,
        interrupted: bool,
    },
    /// The build could not go on: no worker, no room on the disk. Instead of `ended`, or after it if only `out/` is not complete.
    Aborted {
        error: &'a str,
    },
}

impl<'a> Told<'a> {
    fn of(event: &Event<'a>) -> Self {
        match *event {
            Event::Waiting { what, holder } => {
                let (what, step, seat) = subject(what);
                Self::Waiting { what, step, seat, holder }
            }
            Event::Acquired { what, waited } => {
                let (what, step, seat) = subject(what);
                Self::Acquired { what, step, seat, waited_us: micros(waited) }
            }
            Event::Begun { steps, deciding } => Self::Begun { steps, deciding_us: micros(deciding) },
            Event::Queued { step, reason } => Self::Queued { step: step.identity(), reason, text: reason.to_string() },
            Event::WorkerStarted { seat, process, wall } => {
                Self::WorkerStarted { seat, process, wall_us: micros(wall) }
            }
            Event::Started { step, reason: _, seat, worker } => Self::Started { step: step.identity(), seat, worker },
            Event::Searching { step, progress } => Self::Searching {
                step: step.identity(),
                what: progress.what,
                trials: progress.trials.0,
                budget: progress.trials.1,
                new: progress.new,
                best: progress.best,
            },
            Event::Done { step, seat, wall } => Self::Done { step: step.identity(), seat, wall_us: micros(wall) },
            Event::Finished { step, wall, unchanged } => {
                Self::Finished { step: step.identity(), wall_us: micros(wall), unchanged }
            }
            Event::CutOff { step } => Self::CutOff { step: step.identity() },
            Event::Failed { step, failure } => Self::Failed { step: step.identity(), failure },
            Event::Retrying { step, failure } => Self::Retrying { step: step.identity(), failure },
            Event::Found { step } => Self::Found { step: step.identity() },
            Event::Skipped { step, because } => Self::Skipped { step: step.identity(), because: because.identity() },
            Event::Interrupted { step } => Self::Interrupted { step: step.identity() },
            Event::Repairing { damaged, step, failure } => {
                Self::Repairing { damaged: damaged.identity(), step: step.identity(), failure }
            }
            Event::Ended { counts, interrupted } => Self::Ended {
                ran: counts.ran,
                flaky: counts.flaky,
                up_to_date: counts.up_to_date,
                failed: counts.failed,
                skipped: counts.skipped,
                not_reached: counts.not_reached,
                interrupted,
            },
            Event::Aborted { error } => Self::Aborted { error },
        }
    }
}

fn subject(what: Wait<'_>) -> (&'static str, Option<&str>, Option<usize>) {
    match what {
        Wait::Directory => ("directory", None, None),
        Wait::Step { step, seat } => ("step", Some(step.identity()), Some(seat)),
        Wait::Device { step, seat } => ("device", Some(step.identity()), Some(seat)),
    }
}

/// What a file about a build says first.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    pub project: &'a str,
    pub directory: &'a str,
    pub command: &'a [String],
}

/// Writes the lines.
pub struct Events(Mutex<Sink>);

impl Events {
    pub fn create(path: &Path, subject: &Subject<'_>) -> Result<Self, SinkError> {
        Ok(Self::new(Sink::create(path, &first(subject))?))
    }

    /// Goes on in a file that has its first line.
    pub fn new(sink: Sink) -> Self {
        Self(Mutex::new(sink))
    }

    /// Whether everything that was told is in the file.
    pub fn finish(self) -> Result<(), SinkError> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).finish()
    }
}

impl Observer for Events {
    fn event(&self, event: Event<'_>) {
        let told = Told::of(&event);
        // The clock is read under the lock, so that no line is earlier than the one before it.
        let mut sink = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let line = Line { at_us: sink.now(), told };
        sink.write(&text(&line));
    }
}

fn first(subject: &Subject<'_>) -> Vec<u8> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let Subject { project, directory, command } = *subject;
    let told = Told::Opened {
        version: EVENTS_VERSION,
        kforge: env!("CARGO_PKG_VERSION"),
        project,
        directory,
        command,
        process: process::id(),
        started_unix_us: since.map_or(0, micros),
    };
    text(&Line { at_us: 0, told })
}

fn text(line: &Line<'_>) -> Vec<u8> {
    // Plain data with names for keys: there is nothing in it that JSON cannot say.
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text
}
