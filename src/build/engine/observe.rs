//! What a build tells while it runs. The engine knows nothing of terminals; whoever shows progress implements [`Observer`].

use crate::{
    build::{
        graph::{StaleReason, Step},
        tune::Progress,
    },
    protocol::Failure,
    store::lock::Holder,
};
use std::time::Duration;

#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// Another process cleans this directory, makes the step, or measures on this device.
    Waiting {
        what: Wait<'a>,
        holder: &'a Holder,
    },
    /// The lock on the directory, or the lease of the device, is this build's from now on. Told where nobody was in the way, too.
    Acquired {
        what: Wait<'a>,
        waited: Duration,
    },
    /// At most this many steps will run; early cutoff can only make them fewer. `deciding` is how long it took to find out.
    Begun {
        steps: usize,
        deciding: Duration,
    },
    /// All that the step reads is there, and it must run: it waits for its turn.
    Queued {
        step: &'a Step,
        reason: &'a StaleReason,
    },
    /// A worker process came up on a seat, the first there or in place of one that broke.
    WorkerStarted {
        seat: usize,
        process: u32,
        wall: Duration,
    },
    /// `worker`: the process that does it; none for a step that the tool does itself.
    Started {
        step: &'a Step,
        reason: &'a StaleReason,
        seat: usize,
        worker: Option<u32>,
    },
    /// How far the search of a plan is.
    Searching {
        step: &'a Step,
        progress: &'a Progress<'a>,
    },
    /// The seat has done with the step and may take the next one. What became of the step is told when it is recorded.
    Done {
        step: &'a Step,
        seat: usize,
        wall: Duration,
    },
    /// `unchanged`: it made again what it had made before, so nothing that only reads it will run.
    Finished {
        step: &'a Step,
        wall: Duration,
        unchanged: bool,
    },
    /// Stale at the beginning, but what it reads turned out the same.
    CutOff {
        step: &'a Step,
    },
    Failed {
        step: &'a Step,
        failure: &'a Failure,
    },
    /// It failed in a way that need not come again, and is tried again: of itself, or for want of a blob that is there by now.
    Retrying {
        step: &'a Step,
        failure: &'a Failure,
    },
    /// Another process made it while this one waited for its turn.
    Found {
        step: &'a Step,
    },
    Skipped {
        step: &'a Step,
        because: &'a Step,
    },
    /// Its turn had come when the build was interrupted.
    Interrupted {
        step: &'a Step,
    },
    /// `damaged`, made earlier, cannot be read any more; it is made again for `step`.
    Repairing {
        damaged: &'a Step,
        step: &'a Step,
        failure: &'a Failure,
    },
    Ended {
        counts: Counts,
        interrupted: bool,
    },
    /// The build itself cannot go on, or, after [`Event::Ended`], what it made cannot be put where people open it.
    Aborted {
        error: &'a str,
    },
}

/// How many steps ended in which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub ran: usize,
    /// Of those that ran, how many failed at first.
    pub flaky: usize,
    pub up_to_date: usize,
    pub failed: usize,
    pub skipped: usize,
    pub not_reached: usize,
}

/// What only one process has at a time.
#[derive(Debug, Clone, Copy)]
pub enum Wait<'a> {
    Directory,
    /// The step, which another process is making.
    Step {
        step: &'a Step,
        seat: usize,
    },
    /// Wanted by a step that measures, or kept from one that does not by one that does. The step already has its seat.
    Device {
        step: &'a Step,
        seat: usize,
    },
}

/// Called from several threads.
pub trait Observer: Sync {
    fn event(&self, event: Event<'_>);
}

/// Tells everyone in it, in order.
pub struct FanOut<'a>(pub Vec<&'a dyn Observer>);

impl Observer for FanOut<'_> {
    fn event(&self, event: Event<'_>) {
        self.0.iter().for_each(|it| it.event(event));
    }
}

/// Shows nothing.
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _: Event<'_>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    struct Heard<'a>(&'a str, &'a Mutex<Vec<String>>);

    impl Observer for Heard<'_> {
        fn event(&self, event: Event<'_>) {
            self.1.lock().unwrap().push(format!("{} {event:?}", self.0));
        }
    }

    #[test]
    fn everyone_hears_every_event_in_order() {
        let heard = Mutex::default();
        let (one, two) = (Heard("one", &heard), Heard("two", &heard));
        let all = FanOut(vec![&one, &Silent, &two]);
        all.event(Event::Aborted { error: "first" });
        all.event(Event::Aborted { error: "second" });
        let expected = ["one", "two"].map(|it| {
            [format!("{it} Aborted {{ error: \"first\" }}"), format!("{it} Aborted {{ error: \"second\" }}")]
        });
        let [[a, c], [b, d]] = expected;
        assert_eq!(*heard.lock().unwrap(), [a, b, c, d]);
    }
}
