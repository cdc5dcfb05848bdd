//! Devices that generated code runs on. [`cpu`] loads object files into this process and calls them.

pub mod cpu;
pub mod guard;
pub mod memory;
pub mod threads;
