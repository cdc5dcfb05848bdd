//! `kforge-worker`, the toolchain: IR, passes, code generation, devices, verification, measurement.
//!
//! It imports only the ground (`kernelforge::{manifest::spec, plan, protocol, store, host, digest}`), never the build tool.

mod codegen;
mod device;
mod ir;
mod kernels;
mod measure;
mod verify;

fn main() {
    let context = melior::Context::new();
    println!("{}", context.registered_dialect_count());
}
