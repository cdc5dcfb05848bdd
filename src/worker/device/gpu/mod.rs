//! GPUs through wgpu: which there are ([`adapters`]), one opened ([`open`]), its memory ([`memory`]), programs made ready to run
//! on it ([`program`]) and run ([`run`]).
//!
//! Everything that the driver or wgpu refuses becomes a [`Failure`]; nothing here panics over a device that is lost.
//!
//! [`Failure`]: kernelforge::protocol::Failure

mod adapters;
pub mod memory;
pub mod open;
pub mod program;
pub mod run;
pub mod smoke;
#[cfg(test)]
pub mod tests;

pub use adapters::probe;
pub use open::Gpu;
