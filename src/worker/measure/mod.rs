//! Measures: what a kernel takes ([`benchmark`], on a GPU [`gpu`]), what the hand-written matrix products take beside it ([`matmul`]), and
//! what the machine can do at best ([`ceilings`]). Nothing here judges results or chooses between kernels.

pub mod benchmark;
pub mod ceilings;
pub mod gpu;
pub mod matmul;
pub mod sampling;
pub mod stats;
pub mod tamper;
