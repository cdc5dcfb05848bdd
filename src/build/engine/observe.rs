//! What a build tells while it runs. The engine knows nothing of terminals; whoever shows progress implements [`Observer`].

use crate::{
    build::graph::{StaleReason, Step},
    protocol::Failure,
    store::lock::Holder,
};
use std::time::Duration;

#[derive(Debug)]
pub enum Event<'a> {
    /// Another process builds in this directory, or measures on this device.
    Waiting {
        what: Wait,
        holder: &'a Holder,
    },
    /// At most this many steps will run; early cutoff can only make them fewer.
    Begun {
        steps: usize,
    },
    Started {
        step: &'a Step,
        reason: &'a StaleReason,
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
    Skipped {
        step: &'a Step,
        because: &'a Step,
    },
    /// `damaged`, made earlier, cannot be read any more; it is made again for `step`.
    Repairing {
        damaged: &'a Step,
        step: &'a Step,
        failure: &'a Failure,
    },
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    Directory,
    Device,
}

/// Called from several threads.
pub trait Observer: Sync {
    fn event(&self, event: Event<'_>);
}

/// Shows nothing.
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _: Event<'_>) {}
}
