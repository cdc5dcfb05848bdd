//! Devices that generated code runs on. [`cpu`] loads object files into this process and calls them; [`gpu`] runs WGSL.

pub mod cpu;
pub mod gpu;
pub mod guard;
mod host_softmax;
pub mod memory;
pub mod stored;
pub mod threads;

use kernelforge::protocol::{Failure, FailureKind};

/// Threads, started.
///
/// # Errors
/// `Internal` when the system refuses to start a thread.
pub fn started(count: usize) -> Result<threads::Threads, Failure> {
    let refuse = |it| Failure::new(FailureKind::Internal, format!("cannot start {count} threads: {it}"));
    threads::Threads::new(count).map_err(refuse)
}
