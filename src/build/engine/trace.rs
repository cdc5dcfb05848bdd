//! `--trace FILE`: a build as a picture in time, in Chrome's trace event format
//! (<https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>), which <https://ui.perfetto.dev> and
//! `chrome://tracing` show.
//!
//! One track for what the build does as a whole, one for each seat: on it the steps, the starts of its worker, the waits for the
//! device. Steps that wait for their turn are asynchronous slices, because any number of them wait at once.

use super::{
    events::Subject,
    observe::{Event, Observer, Wait},
    sink::{Sink, SinkError, micros},
};
use crate::build::graph::{Step, StepId};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// The track of the build as a whole; the seats count from 1.
const BUILD: usize = 0;

/// One entry of `traceEvents`, by the format's names.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    name: &'a str,
    cat: &'a str,
    ph: Phase,
    /// Microseconds since the file was created.
    ts: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<u64>,
    pid: u32,
    tid: usize,
    /// Joins the begin and the end of an asynchronous slice.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    #[serde(skip_serializing_if = "Value::is_null")]
    args: Value,
}

#[derive(Debug, Clone, Copy, Serialize)]
enum Phase {
    #[serde(rename = "M")]
    Metadata,
    #[serde(rename = "X")]
    Slice,
    #[serde(rename = "b")]
    Begin,
    #[serde(rename = "e")]
    End,
    #[serde(rename = "i")]
    Instant,
}

/// A step on its seat, until its outcome is known.
struct Running {
    step: String,
    kind: &'static str,
    seat: usize,
    start: u64,
    /// When the seat had done with it.
    end: Option<u64>,
    reason: String,
    worker: Option<u32>,
}

pub struct Trace(Mutex<State>);

struct State {
    sink: Sink,
    seats: BTreeSet<usize>,
    /// Number and identity of the asynchronous slice of each step that waits for its turn.
    queued: BTreeMap<StepId, (u64, String)>,
    running: BTreeMap<StepId, Running>,
    /// Number of the last asynchronous slice: a step may be queued more than once.
    last: u64,
}

impl Trace {
    pub fn create(path: &Path, subject: &Subject<'_>) -> Result<Self, SinkError> {
        let Subject { project, directory, command } = *subject;
        let about = json!({ "project": project, "directory": directory, "command": command });
        let head = format!("{{\"displayTimeUnit\":\"ms\",\"otherData\":{about},\"traceEvents\":[\n");
        let process = json!({ "name": format!("kforge: {project}") });
        let first = entry(&metadata("process_name", BUILD, process));
        let head = [head.as_bytes(), &first].concat();
        Ok(Self(Mutex::new(State::new(Sink::create(path, &head)?))))
    }

    /// Ends what is still open, and the file. Whether everything is in it.
    pub fn finish(self) -> Result<(), SinkError> {
        let mut state = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.close();
        state.sink.write(b"\n]}\n");
        state.sink.finish()
    }
}

impl Observer for Trace {
    fn event(&self, event: Event<'_>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).tell(&event);
    }
}

impl State {
    fn new(sink: Sink) -> Self {
        let (seats, queued, running) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
        let mut state = Self { sink, seats, queued, running, last: 0 };
        state.write(&metadata("thread_name", BUILD, json!({ "name": "build" })));
        state
    }

    fn tell(&mut self, event: &Event<'_>) {
        let now = self.sink.now();
        match *event {
            // A wait is one slice; it is written when it is over.
            Event::Waiting { .. } => {}
            Event::Acquired { what: Wait::Directory, waited } => {
                self.past(BUILD, "lock of the directory", "wait", waited, Value::Null);
            }
            Event::Acquired { what: Wait::Device { step, seat }, waited } => {
                self.dequeue(step.id, now.saturating_sub(micros(waited)));
                self.past(seat, "lease of the device", "wait", waited, json!({ "step": step.identity() }));
            }
            Event::Acquired { what: Wait::Step { step, seat }, waited } => {
                self.dequeue(step.id, now.saturating_sub(micros(waited)));
                self.past(seat, "another process makes it", "wait", waited, json!({ "step": step.identity() }));
            }
            Event::Begun { steps, deciding } => {
                self.past(BUILD, "decide", "decide", deciding, json!({ "steps": steps }));
            }
            Event::Queued { step, reason } => {
                self.last += 1;
                let name = step.identity().to_owned();
                let args = json!({ "step": name, "reason": reason.to_string() });
                self.write(&queue(Phase::Begin, &name, now, self.last, args));
                self.queued.insert(step.id, (self.last, name));
            }
            Event::WorkerStarted { seat, process, wall } => {
                self.past(seat, "start a worker", "worker", wall, json!({ "worker": process }));
            }
            Event::Started { step, reason, seat, worker } => {
                self.dequeue(step.id, now);
                let (kind, reason, name) = (step.kind.name(), reason.to_string(), step.identity().to_owned());
                let running = Running { step: name, kind, seat, start: now, end: None, reason, worker };
                self.running.insert(step.id, running);
            }
            Event::Searching { .. } => {}
            Event::Done { step, .. } => {
                if let Some(running) = self.running.get_mut(&step.id) {
                    running.end = Some(now);
                }
            }
            Event::Finished { step, unchanged: false, .. } => self.end(step, "finished"),
            Event::Finished { step, unchanged: true, .. } => self.end(step, "finished, unchanged"),
            Event::Failed { step, failure } => self.end(step, &format!("failed: {}", failure.message)),
            Event::Retrying { step, failure } => self.end(step, &format!("tried again: {}", failure.message)),
            Event::Found { step } => self.end(step, "found: another process made it"),
            Event::Interrupted { step } => self.end(step, "interrupted"),
            Event::Repairing { damaged, step, .. } => {
                self.end(step, &format!("waits for {} to be made again", damaged.identity()));
            }
            Event::CutOff { step } => self.instant("cut off", json!({ "step": step.identity() })),
            Event::Skipped { step, because } => {
                self.instant("skipped", json!({ "step": step.identity(), "because": because.identity() }));
            }
            Event::Ended { counts, interrupted } => {
                let (ran, failed) = (counts.ran, counts.failed);
                self.instant("ended", json!({ "ran": ran, "failed": failed, "interrupted": interrupted }));
            }
            Event::Aborted { error } => self.instant("aborted", json!({ "error": error })),
        }
    }

    /// What ended just now and took `wall`.
    fn past(&mut self, track: usize, name: &str, cat: &str, wall: Duration, args: Value) {
        let (now, dur) = (self.sink.now(), micros(wall));
        self.slice(track, (name, cat), (now.saturating_sub(dur), dur.min(now)), args);
    }

    fn slice(&mut self, track: usize, (name, cat): (&str, &str), (ts, dur): (u64, u64), args: Value) {
        if track != BUILD && self.seats.insert(track) {
            self.write(&metadata("thread_name", track, json!({ "name": format!("seat {track}") })));
        }
        self.write(&Entry { name, cat, ph: Phase::Slice, ts, dur: Some(dur), pid: 1, tid: track, id: None, args });
    }

    fn instant(&mut self, name: &str, args: Value) {
        let ts = self.sink.now();
        self.write(&Entry {
            name,
            cat: "build",
            ph: Phase::Instant,
            ts,
            dur: None,
            pid: 1,
            tid: BUILD,
            id: None,
            args,
        });
    }

    fn dequeue(&mut self, step: StepId, at: u64) {
        if let Some((id, name)) = self.queued.remove(&step) {
            self.write(&queue(Phase::End, &name, at, id, Value::Null));
        }
    }

    /// The outcome of a step is known. One that never started (its lease failed) has no slice.
    fn end(&mut self, step: &Step, outcome: &str) {
        let now = self.sink.now();
        self.dequeue(step.id, now);
        if let Some(running) = self.running.remove(&step.id) {
            self.step(&running, outcome, now);
        }
    }

    fn step(&mut self, running: &Running, outcome: &str, now: u64) {
        let Running { step, kind, seat, start, end, reason, worker } = running;
        let args = json!({ "step": step, "reason": reason, "outcome": outcome, "worker": worker });
        self.slice(*seat, (step, kind), (*start, end.unwrap_or(now) - start), args);
    }

    fn close(&mut self) {
        let now = self.sink.now();
        let waiting: Vec<_> = self.queued.keys().copied().collect();
        waiting.into_iter().for_each(|it| self.dequeue(it, now));
        for running in std::mem::take(&mut self.running).into_values() {
            self.step(&running, "given up with the build", now);
        }
    }

    fn write(&mut self, it: &Entry<'_>) {
        let mut text = b",\n".to_vec();
        text.extend(entry(it));
        self.sink.write(&text);
    }
}

fn metadata(name: &str, tid: usize, args: Value) -> Entry<'_> {
    Entry { name, cat: "__metadata", ph: Phase::Metadata, ts: 0, dur: None, pid: 1, tid, id: None, args }
}

fn queue(ph: Phase, name: &str, ts: u64, id: u64, args: Value) -> Entry<'_> {
    Entry { name, cat: "queue", ph, ts, dur: None, pid: 1, tid: BUILD, id: Some(id), args }
}

fn entry(entry: &Entry<'_>) -> Vec<u8> {
    // Plain data with names for keys: there is nothing in it that JSON cannot say.
    serde_json::to_vec(entry).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{super::sink::tests::Memory, *};
    use crate::build::graph::{
        StaleReason,
        tests::{block, graph, transformer},
    };
    use std::sync::Arc;

    #[test]
    fn what_is_open_when_the_build_gives_up_is_closed() {
        let memory = Memory(Arc::default(), usize::MAX);
        let trace = Trace(Mutex::new(State::new(memory.sink())));
        let graph = graph(&[block("gpt2", transformer())]);
        let (first, second) = (&graph.steps()[0], &graph.steps()[1]);
        let reason = &StaleReason::NeverBuilt;
        for step in [first, second] {
            trace.event(Event::Queued { step, reason });
        }
        trace.event(Event::Started { step: first, reason, seat: 1, worker: Some(7) });
        trace.event(Event::Aborted { error: "no room" });
        trace.finish().unwrap();
        let text = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
        let entries: Value = serde_json::from_str(&format!("{{\"traceEvents\":[0{text}")).unwrap();
        let told: Vec<_> = entries["traceEvents"].as_array().unwrap()[1..]
            .iter()
            .map(|it| format!("{} {} {}", it["ph"].as_str().unwrap(), it["name"].as_str().unwrap(), it["args"]))
            .collect();
        insta::assert_snapshot!(told.join("\n"), @r#"
        M thread_name {"name":"build"}
        b gpt2@cpu:ir {"reason":"never built","step":"gpt2@cpu:ir"}
        b gpt2@cpu:plan {"reason":"never built","step":"gpt2@cpu:plan"}
        e gpt2@cpu:ir null
        i aborted {"error":"no room"}
        e gpt2@cpu:plan null
        M thread_name {"name":"seat 1"}
        X gpt2@cpu:ir {"outcome":"given up with the build","reason":"never built","step":"gpt2@cpu:ir","worker":7}
        "#);
    }
}
