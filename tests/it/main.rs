//! End-to-end tests: they drive the real binaries in temporary directories.

#[cfg(feature = "worker")]
mod worker;
