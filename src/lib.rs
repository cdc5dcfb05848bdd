//! The build tool's library and the ground that both processes stand on.
//!
//! Arrows run downward only: `cli` -> `build` -> the ground (`manifest`, `plan`, `store`, `protocol`, `host`, `facts`, `digest`, `half`).
//! The toolchain (IR, code generation, verification, measuring) is not here: it is the binary `kforge-worker`, whose root is
//! `src/worker/main.rs` and which uses only the ground. So the tool cannot link MLIR by accident, and the toolchain cannot
//! reach into the build.

pub mod build;
pub mod cli;
pub mod digest;
pub mod facts;
pub mod half;
pub mod host;
pub mod manifest;
pub mod plan;
pub mod protocol;
pub mod store;
#[cfg(test)]
mod testing;
