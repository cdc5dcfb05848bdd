//! Scheduling, leases, the worker pool, cancellation. The only module that starts processes.
//!
//! [`run`] is one build: which steps are stale, in which order they run, what is recorded. [`action`] turns a step into what a
//! worker is asked, [`worker`] is one such process, [`queue`] says what may run beside what, [`lease`] keeps two builds off
//! one device, [`devices`] finds what the targets run on, [`interrupt`] is Ctrl-C, [`out`] is what a person opens, [`observe`] is how all this is told, [`events`] writes it as
//! JSON lines and [`trace`] as a picture in time, both to a [`sink`].

pub mod action;
pub mod control;
pub mod crew;
pub mod devices;
pub mod events;
pub mod interrupt;
pub mod lease;
pub mod observe;
pub mod out;
pub mod queue;
pub mod run;
pub mod sink;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod worker;
