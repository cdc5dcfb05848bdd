//! The analytic proposer of what works on rows or single elements on a GPU.

use crate::{
    host::gpu::{GpuFacts, GpuFeature},
    plan::gpu::rows::{ElementShape, GpuElementwise, GpuNorm, NormShape},
};

/// The widest load that divides `of` elements.
fn widest(of: usize) -> usize {
    [4, 2].into_iter().find(|it| of.is_multiple_of(*it)).unwrap_or(1)
}

/// As many invocations for a row as there are vectors in it, up to a limit; whole subgroups where the device has them.
pub fn norm(shape: &NormShape, gpu: &GpuFacts) -> GpuNorm {
    let vector = widest(shape.columns);
    let vectors = shape.columns / vector;
    let subgroups = gpu.has(GpuFeature::Subgroups);
    let least = if subgroups { gpu.subgroup_max } else { 1 };
    let fitting = (vectors.div_ceil(2)).next_power_of_two().clamp(1, 256);
    let width = fitting.max(least).next_power_of_two();
    let rows = (128 / width).clamp(1, 4).min(shape.rows.next_power_of_two());
    let wanted = GpuNorm { width, rows, vector, subgroups };
    let legal = |it: &GpuNorm| it.check("", shape, gpu).is_ok();
    if legal(&wanted) { wanted } else { GpuNorm::space(*shape, gpu).next().unwrap_or(wanted) }
}

/// A vector or two for each invocation.
pub fn elementwise(shape: &ElementShape, gpu: &GpuFacts) -> GpuElementwise {
    let vector = widest(shape.run);
    let wanted = GpuElementwise { threads: 128, vector, unroll: if shape.count >= 1 << 22 { 2 } else { 1 } };
    let legal = |it: &GpuElementwise| it.check("", shape, gpu).is_ok();
    if legal(&wanted) { wanted } else { GpuElementwise::space(*shape, gpu).next().unwrap_or(wanted) }
}
