//! Stages + schedules -> a dispatch list over WGSL rendered from the templates in `shaders/`.
//!
//! [`compile`] walks the stages; each kind has a file that turns a schedule into [`Step`]s through a [`Builder`], which renders
//! templates, keeps each text once, and hands out scratch and packed weights. Everything that a shader needs to know is in its
//! text: sizes, strides, which edges are ragged. Nothing here touches a device.
//!
//! [`Step`]: kernelforge::plan::program::Step

pub mod attention;
mod builder;
mod compile;
pub mod elementwise;
mod listing;
pub mod matmul;
pub mod mlp;
pub mod norm;
mod placement;
mod templates;
mod text;

pub use builder::Builder;
pub use compile::{Compiled, compile, compile_given};
pub use listing::listing;
pub use templates::Templates;
use text::{float, index, reads_then_writes, real, storage};

#[cfg(test)]
mod tests;
