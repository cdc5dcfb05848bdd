//! End-to-end tests: they drive the real binaries in temporary directories.

#[cfg(feature = "worker")]
mod build;
#[cfg(feature = "worker")]
mod cache;
#[cfg(feature = "worker")]
#[allow(dead_code)]
#[path = "../../src/build/search/llm/testing/server.rs"]
mod chat_server;
#[cfg(feature = "worker")]
mod commands;
#[cfg(feature = "worker")]
mod faults;
#[cfg(feature = "worker")]
mod full_disk;
mod fuzz;
#[cfg(feature = "worker")]
mod gc;
#[cfg(feature = "worker")]
mod gpu;
#[cfg(feature = "worker")]
mod mutate;
mod project;
#[cfg(feature = "worker")]
mod report;
mod structure;
#[cfg(feature = "worker")]
mod telling;
#[cfg(feature = "worker")]
mod together;
#[cfg(feature = "worker")]
mod tune;
#[cfg(feature = "worker")]
mod uptodate;
#[cfg(feature = "worker")]
mod verify;
#[cfg(feature = "worker")]
mod watch;
#[cfg(feature = "worker")]
mod worker;
