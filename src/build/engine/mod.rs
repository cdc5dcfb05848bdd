//! Scheduling, leases, the worker pool, cancellation. The only module that starts processes.

pub mod worker;
