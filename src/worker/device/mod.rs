//! Devices that generated code runs on. [`cpu`] loads object files into this process and calls them; [`gpu`] runs WGSL.

pub mod cpu;
pub mod gpu;
pub mod guard;
mod host_softmax;
pub mod memory;
pub mod threads;
