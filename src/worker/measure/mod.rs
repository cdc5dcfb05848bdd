//! Measures: what a kernel takes ([`benchmark`], on a GPU [`gpu`]), how several of them compare ([`race`]),
//! what the hand-written matrix products take beside one ([`matmul`]), and what the machine can do at best ([`ceilings`]). Nothing here judges results or chooses between kernels.

pub mod benchmark;
pub mod ceilings;
pub mod gpu;
pub mod heats;
pub mod matmul;
pub mod race;
pub mod sampling;
pub mod stats;
pub mod tamper;
