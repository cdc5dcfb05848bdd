//! The analytic proposer for matrix products on GPUs: from the shape and the device's limits alone, without a trial.

use crate::{
    host::gpu::GpuFacts,
    plan::gpu::matmul::{GpuMatmul, Product},
};

/// A schedule of `product` that is legal on `gpu`.
pub fn propose(product: &Product, gpu: &GpuFacts) -> GpuMatmul {
    GpuMatmul::plain(product, gpu)
}
