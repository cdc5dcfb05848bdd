//! Code generation: stages + schedules in, something that runs out. [`cpu`] emits MLIR (scf, vector, memref) and compiles it to
//! an object file; [`gpu`] renders WGSL. Nothing here runs generated code.

pub mod cpu;
pub mod gpu;

use kernelforge::plan::kernel::Kernel;

/// A compiled block.
pub struct Compiled {
    /// A relocatable object file for the host, without undefined symbols beyond libc's memory functions.
    pub object: Vec<u8>,
    pub kernel: Kernel,
    /// The generated MLIR, before it is lowered to LLVM.
    pub lowered: String,
}
