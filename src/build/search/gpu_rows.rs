//! The analytic proposer of what works on rows or single elements on a GPU.

use crate::{
    host::gpu::{GpuFacts, GpuFeature},
    plan::gpu::rows::{ElementShape, GpuElementwise, GpuNorm, NormShape},
};

/// The widest load that divides `of` elements.
fn widest(of: usize) -> usize {
    [4, 2].into_iter().find(|it| of.is_multiple_of(*it)).unwrap_or(1)
}

/// Workgroups that occupy a large device.
const WORKGROUPS: usize = 256;

/// Eight vectors of a row for each invocation, whole subgroups where the device has them. 2048 rows of 4096 f32 took 20.1 us on an
/// H200 with 128 invocations (3.3 TB/s), 35.5 with 32; of 768 f16 they took 4.1 us with 32, 5.0 with 128.
pub fn norm(shape: &NormShape, gpu: &GpuFacts) -> GpuNorm {
    let vector = widest(shape.columns);
    let subgroups = gpu.has(GpuFeature::Subgroups);
    let least = if subgroups { gpu.subgroup_max } else { 1 };
    let width = (shape.columns / vector).div_ceil(8).next_power_of_two().clamp(1, 256).max(least);
    let rows = if shape.rows * width >= 128 * WORKGROUPS { (128 / width).max(1) } else { 1 };
    let wanted = GpuNorm { width, rows, vector, subgroups };
    let legal = |it: &GpuNorm| it.check("", shape, gpu).is_ok();
    if legal(&wanted) { wanted } else { GpuNorm::plain(shape, gpu) }
}

/// A vector or two for each invocation.
pub fn elementwise(shape: &ElementShape, gpu: &GpuFacts) -> GpuElementwise {
    let vector = widest(shape.run);
    let wanted = GpuElementwise { threads: 128, vector, unroll: if shape.count >= 1 << 22 { 2 } else { 1 } };
    let legal = |it: &GpuElementwise| it.check("", shape, gpu).is_ok();
    if legal(&wanted) { wanted } else { GpuElementwise::plain(shape, gpu) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{build::graph::tests::gpu, manifest::spec::Dtype};
    use proptest::prelude::*;

    fn devices() -> [GpuFacts; 2] {
        let (subgroup_min, subgroup_max, workgroup_memory) = (8, 8, 32 << 10);
        [gpu(), GpuFacts { features: vec![GpuFeature::F16], subgroup_min, subgroup_max, workgroup_memory, ..gpu() }]
    }

    proptest! {
        #![proptest_config(crate::testing::cases(128))]
        /// Proposals and plain schedules pass gate V0 on a large and a small device.
        #[test]
        fn norms_are_legal(rows in 1usize..100_000, columns in 1usize..5000, centred in any::<bool>()) {
            let shape = NormShape { rows, columns, eps: 1e-5, centred, dtype: Dtype::F16 };
            for gpu in devices() {
                prop_assert_eq!(norm(&shape, &gpu).check("s", &shape, &gpu), Ok(()));
                prop_assert_eq!(GpuNorm::plain(&shape, &gpu).check("s", &shape, &gpu), Ok(()));
            }
        }

        #[test]
        fn elementwise_stages_are_legal(count in 1usize..10_000_000, run in 1usize..64) {
            let shape = ElementShape { run, count: count * run, elements: count * run, bindings: 3, dtype: Dtype::F32 };
            for gpu in devices() {
                if shape.elements * 4 > gpu.binding_bytes as usize {
                    continue;
                }
                prop_assert_eq!(elementwise(&shape, &gpu).check("s", &shape, &gpu), Ok(()));
                prop_assert_eq!(GpuElementwise::plain(&shape, &gpu).check("s", &shape, &gpu), Ok(()));
            }
        }
    }
}
