//! What needs no device: every text is WGSL, every knob changes it.

use super::super::{
    Templates,
    mlp::{self, MlpOperands},
};
use super::*;
use kernelforge::{
    host::gpu::{CooperativeShape, GpuFacts, GpuKind},
    plan::{
        gpu::matmul::{GpuMlp, MlpShape, check},
        schedule::Schedule,
        space::Space,
        stage::{Role, StageGraph, StageOp, Tensor, TensorId},
    },
};
use std::collections::{BTreeMap, HashSet};
use wgpu::naga;

/// Everything that a large GPU has.
fn gpu() -> GpuFacts {
    GpuFacts {
        name: "a GPU".into(),
        kind: GpuKind::Discrete,
        vendor: 0,
        device: 0,
        api: "vulkan".into(),
        driver: String::new(),
        driver_version: String::new(),
        features: vec![GpuFeature::F16, GpuFeature::Subgroups, GpuFeature::CooperativeMatrix],
        subgroup_min: 32,
        subgroup_max: 32,
        workgroup_memory: 48 << 10,
        workgroup_invocations: 1024,
        workgroup_x: 1024,
        workgroups: 65535,
        buffer_bytes: 1 << 32,
        binding_bytes: 1 << 32,
        bindings: 32,
        binding_alignment: 32,
        cooperative: vec![CooperativeShape { m: 16, n: 16, k: 16, operand_bits: 16, accumulator_bits: 32 }],
    }
}

const fn tensor(index: usize) -> Buffer {
    Buffer::Tensor(TensorId(index))
}

/// Tensors that are weights or not: every third is none.
fn graph() -> StageGraph {
    let role = |index: usize| if index.is_multiple_of(3) { Role::Input } else { Role::Weight };
    let tensor = |index| Tensor { name: format!("t{index}"), shape: vec![1], dtype: Dtype::F16, role: role(index) };
    StageGraph { block: "b".into(), tensors: (0..9).map(tensor).collect(), stages: vec![] }
}

/// The texts of a product with everything that an epilogue can have.
fn texts(product: &Product, schedule: &GpuMatmul) -> Vec<String> {
    let (gpu, templates) = (gpu(), Templates::new(&BTreeMap::new()).unwrap());
    let graph = graph();
    let mut builder = Builder::new(&graph, &gpu, &templates);
    let gated = product.weights == 2;
    let operands = Operands { a: tensor(0), gate: gated.then_some(tensor(1)), w: tensor(2) };
    let epilogue = Epilogue {
        bias: Some(tensor(3)),
        gate_bias: gated.then_some(tensor(4)),
        activation: Some(Activation::Gelu),
        factor: None,
        residual: Some(tensor(5)),
        out: tensor(6),
        out_dtype: product.dtype,
    };
    let steps = emit(&mut builder, product, &operands, &epilogue, schedule).unwrap();
    assert_eq!(steps.len(), if schedule.split_k() > 1 { 2 } else { 1 });
    builder.sources
}

/// Parses and validates like a device with all of the features, and translates for Vulkan.
fn validate(text: &str) {
    let fail = |what: &dyn std::fmt::Display| panic!("{what}\n{text}");
    let options = naga::front::wgsl::Options::new();
    let module = match naga::front::wgsl::Frontend::new_with_options(options).parse(text) {
        Ok(module) => module,
        Err(error) => return fail(&error.emit_to_string(text)),
    };
    let mut validator =
        naga::valid::Validator::new(naga::valid::ValidationFlags::all(), naga::valid::Capabilities::all());
    if let Err(error) = validator.validate(&module) {
        fail(&error.emit_to_string(text));
    }
}

const PRODUCT: Product = Product { m: 128, n: 768, k: 512, weights: 1, dtype: Dtype::F16 };

/// Schedules from all over the declared space; of two weights, from that of a gated MLP.
fn sample(product: &Product, count: usize) -> Vec<GpuMatmul> {
    let Product { m, n, k, weights, dtype } = *product;
    let (activation, bias, residual) = (Activation::Silu, false, false);
    let op = if weights == 1 {
        StageOp::Matmul { m, n, k, bias, activation: None, residual }
    } else {
        StageOp::Mlp { rows: m, d_model: k, d_ff: n, activation, gated: true, bias, residual }
    };
    let own = |schedule| match schedule {
        Schedule::GpuMatmul(it) => Some(it),
        Schedule::GpuMlp(it) => it.fuse_gate.then_some(it.up),
        _ => None,
    };
    let all: Vec<_> = Space::of(&op, dtype, &gpu().into(), false).schedules().filter_map(own).take(count).collect();
    assert_eq!(all.len(), count);
    all
}

#[test]
fn every_text_is_valid_wgsl() {
    let shapes = [(128, 768, 512), (3, 40, 56), (7, 33, 29), (100, 1000, 36)];
    for (index, (m, n, k)) in shapes.into_iter().enumerate() {
        for dtype in [Dtype::F32, Dtype::F16] {
            for weights in [1, 2] {
                let product = Product { m, n, k, weights, dtype };
                for schedule in sample(&product, 23 + index) {
                    texts(&product, &schedule).iter().for_each(|it| validate(it));
                }
                texts(&product, &GpuMatmul::plain(&product, &gpu())).iter().for_each(|it| validate(it));
            }
        }
    }
}

/// Each schedule is legal, and differs from `base` in one knob.
fn every_one_differs(product: &Product, base: &GpuMatmul, changed: &[GpuMatmul]) {
    let mut seen = HashSet::from([texts(product, base)]);
    for schedule in changed {
        check("s", "", product, schedule, &gpu()).unwrap();
        assert!(seen.insert(texts(product, schedule)), "{schedule:?}");
    }
}

#[test]
fn every_knob_of_a_tiled_product_changes_its_text() {
    let base = Tiled {
        tile_m: 64,
        tile_n: 64,
        tile_k: 16,
        thread_m: 4,
        thread_n: 4,
        vector: 4,
        stages: 1,
        prefetch: 0,
        split_k: 1,
        swizzle: 1,
    };
    let changed = [
        Tiled { tile_m: 32, ..base.clone() },
        Tiled { tile_n: 128, ..base.clone() },
        Tiled { tile_k: 8, ..base.clone() },
        Tiled { thread_m: 8, ..base.clone() },
        Tiled { thread_n: 8, ..base.clone() },
        Tiled { vector: 2, ..base.clone() },
        Tiled { stages: 2, ..base.clone() },
        Tiled { prefetch: 1, ..base.clone() },
        Tiled { prefetch: 2, ..base.clone() },
        Tiled { split_k: 2, ..base.clone() },
        Tiled { swizzle: 2, ..base.clone() },
    ];
    every_one_differs(&PRODUCT, &GpuMatmul::Tiled(base), &changed.map(GpuMatmul::Tiled));
}

#[test]
fn every_knob_of_a_cooperative_product_changes_its_text() {
    let base = Cooperative {
        tile_m: 64,
        tile_n: 64,
        tile_k: 32,
        subgroup_m: 32,
        subgroup_n: 32,
        vector: 8,
        transpose: true,
        stages: 1,
        prefetch: 0,
        split_k: 1,
        swizzle: 1,
    };
    let changed = [
        Cooperative { tile_m: 32, ..base.clone() },
        Cooperative { tile_n: 128, ..base.clone() },
        Cooperative { tile_k: 16, ..base.clone() },
        Cooperative { subgroup_m: 16, ..base.clone() },
        Cooperative { subgroup_n: 16, ..base.clone() },
        Cooperative { vector: 4, ..base.clone() },
        Cooperative { transpose: false, ..base.clone() },
        Cooperative { stages: 2, ..base.clone() },
        Cooperative { prefetch: 1, ..base.clone() },
        Cooperative { prefetch: 2, ..base.clone() },
        Cooperative { split_k: 2, ..base.clone() },
        Cooperative { swizzle: 2, ..base.clone() },
    ];
    every_one_differs(&PRODUCT, &GpuMatmul::Cooperative(base), &changed.map(GpuMatmul::Cooperative));
}

#[test]
fn every_knob_of_a_gemv_changes_its_text() {
    let base = Gemv { threads: 128, vector: 4, slices: 8, unroll: 4, split_k: 1 };
    let changed = [
        Gemv { threads: 64, ..base.clone() },
        Gemv { vector: 8, ..base.clone() },
        Gemv { slices: 4, ..base.clone() },
        Gemv { unroll: 2, ..base.clone() },
        Gemv { split_k: 2, ..base.clone() },
    ];
    every_one_differs(&Product { m: 2, ..PRODUCT }, &GpuMatmul::Gemv(base), &changed.map(GpuMatmul::Gemv));
}

#[test]
fn a_gated_mlp_is_two_products_with_its_gate_fused_and_three_without() {
    let (gpu, templates) = (gpu(), Templates::new(&BTreeMap::new()).unwrap());
    let graph = graph();
    let shape = MlpShape { rows: 5, d_model: 24, d_ff: 40, gated: true, dtype: Dtype::F16 };
    let operands = MlpOperands {
        x: tensor(0),
        gate: Some((tensor(1), Some(tensor(2)))),
        up: (tensor(3), Some(tensor(4))),
        down: (tensor(5), Some(tensor(6))),
        residual: Some(tensor(7)),
        out: tensor(8),
    };
    for (fuse_gate, products) in [(true, 2), (false, 3)] {
        let mut builder = Builder::new(&graph, &gpu, &templates);
        let (up, down) = (GpuMatmul::plain(&shape.up(fuse_gate), &gpu), GpuMatmul::plain(&shape.down(), &gpu));
        let schedule = GpuMlp { fuse_gate, up, down };
        let steps = mlp::emit(&mut builder, &shape, Activation::Silu, &operands, &schedule).unwrap();
        assert_eq!((steps.len(), builder.sources.len()), (products, products));
        builder.sources.iter().for_each(|it| validate(it));
        // The gate's rows stay f32 until they have been multiplied.
        let bytes: Vec<_> = builder.scratch.iter().map(|it| it.bytes).collect();
        assert_eq!(bytes, if fuse_gate { vec![400] } else { vec![400, 800] });
    }
}
