//! End-to-end tests: they drive the real binaries in temporary directories.

#[cfg(feature = "worker")]
mod build;
#[cfg(feature = "worker")]
mod commands;
#[cfg(feature = "worker")]
mod faults;
#[cfg(feature = "worker")]
mod mutate;
mod project;
#[cfg(feature = "worker")]
mod report;
mod structure;
#[cfg(feature = "worker")]
mod together;
#[cfg(feature = "worker")]
mod uptodate;
#[cfg(feature = "worker")]
mod verify;
#[cfg(feature = "worker")]
mod worker;
