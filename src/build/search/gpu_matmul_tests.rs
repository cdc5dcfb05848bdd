use super::*;
use crate::host::gpu::{CooperativeShape, GpuFeature};
use crate::plan::gpu::matmul::{candidates, check_mlp};
use proptest::prelude::*;

fn facts(kind: GpuKind, features: Vec<GpuFeature>, subgroup: usize, workgroup_memory: usize) -> GpuFacts {
    let unit = CooperativeShape { m: 16, n: 16, k: 16, operand_bits: 16, accumulator_bits: 32 };
    let cooperative = if features.contains(&GpuFeature::CooperativeMatrix) { vec![unit] } else { vec![] };
    GpuFacts {
        name: "a GPU".into(),
        kind,
        vendor: 0,
        device: 0,
        api: "vulkan".into(),
        driver: String::new(),
        driver_version: String::new(),
        features,
        subgroup_min: subgroup,
        subgroup_max: subgroup,
        workgroup_memory,
        workgroup_invocations: 1024,
        workgroup_x: 1024,
        workgroups: 65535,
        buffer_bytes: 1 << 31,
        binding_bytes: 1 << 31,
        bindings: 32,
        binding_alignment: 32,
        cooperative,
    }
}

/// Like an H200, and like Mesa's software device.
fn devices() -> [GpuFacts; 2] {
    let all = vec![GpuFeature::F16, GpuFeature::Subgroups, GpuFeature::CooperativeMatrix];
    [
        facts(GpuKind::Discrete, all, 32, 48 << 10),
        facts(GpuKind::Software, vec![GpuFeature::F16, GpuFeature::Subgroups], 8, 32 << 10),
    ]
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..20, 1usize..6000, (1usize..500).prop_map(|it| it * 8), (0u32..13).prop_map(|it| 1 << it)]
}

fn products() -> impl Strategy<Value = Product> {
    let dtype = prop_oneof![Just(Dtype::F32), Just(Dtype::F16)];
    (size(), size(), size(), 1usize..3, dtype).prop_map(|(m, n, k, weights, dtype)| Product { m, n, k, weights, dtype })
}

proptest! {
    #![proptest_config(crate::testing::cases(512))]
    /// Whatever the shape and the device, what is proposed passes gate V0, and so does the plain schedule.
    #[test]
    fn every_proposal_is_legal(product in products(), device in 0usize..2) {
        let gpu = &devices()[device];
        prop_assert_eq!(check("s", "", &product, &propose(&product, gpu), gpu), Ok(()));
        prop_assert_eq!(check("s", "", &product, &GpuMatmul::plain(&product, gpu), gpu), Ok(()));
    }

    #[test]
    fn every_proposed_mlp_is_legal(up in products(), gated in any::<bool>(), device in 0usize..2) {
        let gpu = &devices()[device];
        let shape = MlpShape { rows: up.m, d_model: up.k, d_ff: up.n, gated, dtype: up.dtype };
        prop_assert_eq!(check_mlp("s", &shape, &propose_mlp(&shape, gpu), gpu), Ok(()));
    }
}

proptest! {
    #![proptest_config(crate::testing::cases(8))]
    /// The declared space is not empty, and holds nothing twice.
    #[test]
    fn a_search_has_candidates_for_every_shape(product in products(), device in 0usize..2) {
        let gpu = &devices()[device];
        let all: Vec<_> = candidates(&product, gpu).collect();
        prop_assert!(all.iter().all(|it| check("s", "", &product, it, gpu).is_ok()));
        let different: std::collections::HashSet<_> = all.iter().collect();
        prop_assert!(!all.is_empty() && different.len() == all.len(), "{} of {}", different.len(), all.len());
    }
}

#[test]
fn large_products_of_half_precision_run_on_matrices_and_few_rows_do_not() {
    let [gpu, software] = devices();
    let product = Product { m: 4096, n: 4096, k: 4096, weights: 1, dtype: Dtype::F16 };
    assert!(matches!(propose(&product, &gpu), GpuMatmul::Cooperative(_)));
    assert!(matches!(propose(&product, &software), GpuMatmul::Tiled(_)));
    assert!(matches!(propose(&Product { dtype: Dtype::F32, ..product }, &gpu), GpuMatmul::Tiled(_)));
    assert!(matches!(propose(&Product { m: 1, ..product }, &gpu), GpuMatmul::Gemv(_)));
}
