//! Rendered texts without a device: every knob shows in them, and naga accepts them.

use super::{Builder, Templates, attention, elementwise, norm};
use kernelforge::{
    host::gpu::{CooperativeShape, GpuFacts, GpuFeature, GpuKind},
    manifest::spec::{Activation, Dtype},
    plan::{
        gpu::{
            attention::{AttentionShape, CooperativeAttention, GpuAttention, HostSoftmax, Online},
            rows::{ElementShape, GpuElementwise, GpuNorm, NormShape},
        },
        program::{Buffer, Step},
        schedule::Schedule,
        space::Space,
        stage::{Factor, StageGraph, StageOp, TensorId},
    },
};
use std::collections::BTreeMap;
use wgpu::naga;

fn facts() -> GpuFacts {
    GpuFacts {
        name: "test".into(),
        kind: GpuKind::Discrete,
        vendor: 0,
        device: 0,
        api: "vulkan".into(),
        driver: String::new(),
        driver_version: String::new(),
        features: GpuFeature::ALL.to_vec(),
        subgroup_min: 32,
        subgroup_max: 32,
        workgroup_memory: 48 << 10,
        workgroup_invocations: 1024,
        workgroup_x: 1024,
        workgroups: 65535,
        buffer_bytes: 1 << 31,
        binding_bytes: 1 << 31,
        bindings: 16,
        binding_alignment: 256,
        cooperative: vec![CooperativeShape { m: 16, n: 16, k: 16, operand_bits: 16, accumulator_bits: 32 }],
    }
}

/// The texts and steps that `emit` makes.
fn emitted(emit: impl FnOnce(&mut Builder<'_>) -> Vec<Step>) -> (Vec<String>, Vec<Step>) {
    let graph = StageGraph { block: "b".into(), tensors: vec![], stages: vec![] };
    let (gpu, templates) = (facts(), Templates::new(&BTreeMap::new()).unwrap());
    let mut builder = Builder::new(&graph, &gpu, &templates);
    let steps = emit(&mut builder);
    for (source, shader) in builder.sources.iter().zip(&builder.shaders) {
        validate(source, shader.workgroup_memory);
    }
    (builder.sources, steps)
}

fn tensors(count: usize) -> Vec<Buffer> {
    (0..count).map(|it| Buffer::Tensor(TensorId(it))).collect()
}

/// naga parses the text and finds it valid, and it has as much workgroup memory as its schedule says.
fn validate(source: &str, workgroup_memory: usize) {
    let module = naga::front::wgsl::parse_str(source)
        .unwrap_or_else(|it| panic!("{}\n{}", it.emit_to_string(source), numbered(source)));
    let mut validator =
        naga::valid::Validator::new(naga::valid::ValidationFlags::all(), naga::valid::Capabilities::all());
    if let Err(it) = validator.validate(&module) {
        panic!("{}{:?}\n{}", it.emit_to_string(source), it.as_inner(), numbered(source));
    }
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).unwrap();
    let shared = module.global_variables.iter().filter(|it| it.1.space == naga::AddressSpace::WorkGroup);
    let sizes: Vec<u32> = shared.map(|it| layouter[it.1.ty].size).collect();
    assert_eq!(sizes.iter().sum::<u32>() as usize, workgroup_memory, "{source}");
    // In whichever order a driver places them, matrices begin at multiples of 16 bytes.
    let matrices = source.contains("enable wgpu_cooperative_matrix;");
    assert!(!matrices || sizes.iter().all(|it| it.is_multiple_of(16)), "{sizes:?}");
}

fn numbered(source: &str) -> String {
    source.lines().enumerate().map(|(index, line)| format!("{:4} {line}\n", index + 1)).collect()
}

fn shape(seq: usize, head_dim: usize, causal: bool, dtype: Dtype) -> AttentionShape {
    AttentionShape { batch: 2, seq, heads: 4, kv_heads: 2, head_dim, causal, scale: 0.125, dtype }
}

fn attention(shape: &AttentionShape, schedule: &GpuAttention) -> (Vec<String>, Vec<Step>) {
    schedule.check("s", shape, &facts()).unwrap();
    let all = tensors(4);
    let operands = attention::Operands { q: all[0], k: all[1], v: all[2], result: all[3] };
    emitted(|builder| attention::emit(builder, shape, &operands, schedule).unwrap())
}

fn norm(shape: &NormShape, schedule: &GpuNorm) -> Vec<String> {
    schedule.check("s", shape, &facts()).unwrap();
    let operands = tensors(if shape.centred { 4 } else { 3 });
    emitted(|builder| norm::emit(builder, shape, &operands, schedule).unwrap()).0
}

fn elementwise(op: &StageOp, dtype: Dtype, schedule: &GpuElementwise) -> Vec<String> {
    let shape = ElementShape::of(op, dtype).unwrap();
    schedule.check("s", &shape, &facts()).unwrap();
    emitted(|builder| elementwise::emit(builder, op, dtype, &tensors(shape.bindings), schedule).unwrap()).0
}

fn all_differ(texts: &[Vec<String>]) {
    for (index, text) in texts.iter().enumerate() {
        for (other_index, other) in texts[..index].iter().enumerate() {
            assert_ne!(text, other, "schedules {other_index} and {index} make the same text");
        }
    }
}

/// The first schedules of the declared space, which are from all over it.
fn some(op: &StageOp, dtype: Dtype, hybrid_softmax: bool, count: usize) -> Vec<Schedule> {
    Space::of(op, dtype, &facts().into(), hybrid_softmax).schedules().take(count).collect()
}

fn attentions(shape: &AttentionShape, hybrid_softmax: bool, count: usize) -> Vec<GpuAttention> {
    let AttentionShape { batch, seq, heads, kv_heads, head_dim, causal, scale, dtype } = *shape;
    let op = StageOp::Attention { batch, seq, heads, kv_heads, head_dim, causal, scale };
    let own = |it| if let Schedule::GpuAttention(it) = it { it } else { panic!("{it:?}") };
    some(&op, dtype, hybrid_softmax, count).into_iter().map(own).collect()
}

#[test]
fn every_knob_of_online_attention_shows_in_the_text() {
    let base = Online { tile_q: 32, tile_k: 32, thread_q: 4, threads: 64, vector: 4, share_q: false };
    let texts: Vec<_> = [
        base.clone(),
        Online { tile_q: 16, threads: 32, ..base.clone() },
        Online { tile_q: 64, threads: 128, ..base.clone() },
        Online { tile_k: 64, ..base.clone() },
        Online { thread_q: 8, ..base.clone() },
        Online { threads: 128, ..base.clone() },
        Online { vector: 2, ..base.clone() },
        Online { share_q: true, ..base },
    ]
    .into_iter()
    .map(|it| attention(&shape(100, 64, true, Dtype::F32), &GpuAttention::Online(it)).0)
    .collect();
    all_differ(&texts);
}

#[test]
fn every_knob_of_cooperative_attention_shows_in_the_text() {
    let (tile_q, subgroup_q, tile_k, chunk, padded) = (64, 16, 32, 16, true);
    let base = CooperativeAttention { tile_q, subgroup_q, tile_k, chunk, padded, vector: 8, prefetch: false };
    let texts: Vec<_> = [
        base.clone(),
        CooperativeAttention { tile_q: 32, ..base.clone() },
        CooperativeAttention { subgroup_q: 32, ..base.clone() },
        CooperativeAttention { tile_k: 64, ..base.clone() },
        CooperativeAttention { chunk: 32, ..base.clone() },
        CooperativeAttention { padded: false, ..base.clone() },
        CooperativeAttention { vector: 4, ..base.clone() },
        CooperativeAttention { prefetch: true, ..base },
    ]
    .into_iter()
    .map(|it| attention(&shape(100, 64, true, Dtype::F16), &GpuAttention::Cooperative(it)).0)
    .collect();
    all_differ(&texts);
}

#[test]
fn every_knob_of_the_softmax_on_the_host_shows_in_the_text() {
    let base = HostSoftmax { tile_q: 32, tile_k: 32, threads: 128 };
    let texts: Vec<_> = [
        base.clone(),
        HostSoftmax { tile_q: 16, ..base.clone() },
        HostSoftmax { tile_k: 16, ..base.clone() },
        HostSoftmax { threads: 64, ..base },
    ]
    .into_iter()
    .map(|it| attention(&shape(100, 64, true, Dtype::F32), &GpuAttention::HostSoftmax(it)).0)
    .collect();
    all_differ(&texts);
}

#[test]
fn every_knob_of_a_norm_shows_in_the_text() {
    let shape = NormShape { rows: 128, columns: 768, eps: 1e-5, centred: true, dtype: Dtype::F32 };
    let base = GpuNorm { width: 64, rows: 2, vector: 4, subgroups: true };
    let texts: Vec<_> = [
        base.clone(),
        GpuNorm { width: 32, ..base.clone() },
        GpuNorm { rows: 1, ..base.clone() },
        GpuNorm { vector: 2, ..base.clone() },
        GpuNorm { subgroups: false, ..base },
    ]
    .iter()
    .map(|it| norm(&shape, it))
    .collect();
    all_differ(&texts);
}

#[test]
fn every_knob_of_an_elementwise_stage_shows_in_the_text() {
    let base = GpuElementwise { threads: 64, vector: 4, unroll: 1 };
    let all = [
        base.clone(),
        GpuElementwise { threads: 128, ..base.clone() },
        GpuElementwise { vector: 2, ..base.clone() },
        GpuElementwise { unroll: 2, ..base },
    ];
    let rope = StageOp::Rope { batch: 1, seq: 64, heads: 4, head_dim: 64 };
    for op in [StageOp::Add { rows: 64, width: 256 }, rope] {
        let texts: Vec<_> = all.iter().map(|it| elementwise(&op, Dtype::F32, it)).collect();
        all_differ(&texts);
    }
}

#[test]
fn attention_of_every_kind_and_shape_is_valid() {
    for dtype in [Dtype::F32, Dtype::F16] {
        for (seq, head_dim) in [(1, 64), (33, 7), (100, 20), (128, 128), (70, 6)] {
            for causal in [false, true] {
                let shape = shape(seq, head_dim, causal, dtype);
                for schedule in attentions(&shape, false, 12).into_iter().chain(attentions(&shape, true, 4)) {
                    let (_, steps) = attention(&shape, &schedule);
                    let on_host = steps.iter().filter(|it| matches!(it, Step::HostSoftmax { .. })).count();
                    assert_eq!(on_host, usize::from(matches!(schedule, GpuAttention::HostSoftmax(_))));
                }
                attention(&shape, &GpuAttention::plain(&shape, &facts()));
            }
        }
    }
}

#[test]
fn cooperative_attention_of_every_shape_is_valid() {
    for (seq, head_dim) in [(1, 64), (33, 16), (2048, 128), (100, 80), (64, 64)] {
        for causal in [false, true] {
            let shape = shape(seq, head_dim, causal, Dtype::F16);
            let all = attentions(&shape, false, 16);
            let all: Vec<_> = all.into_iter().filter(|it| matches!(it, GpuAttention::Cooperative(_))).collect();
            assert!(all.len() > 4);
            for schedule in all {
                attention(&shape, &schedule);
            }
        }
    }
}

#[test]
fn norms_of_every_shape_are_valid() {
    for dtype in [Dtype::F32, Dtype::F16] {
        for (rows, columns) in [(1, 1), (3, 5), (128, 768), (2, 4096), (70000, 36)] {
            for centred in [false, true] {
                let shape = NormShape { rows, columns, eps: 1e-5, centred, dtype };
                let width = columns;
                let op = if centred {
                    StageOp::LayerNorm { rows, width, eps: 1e-5 }
                } else {
                    StageOp::RmsNorm { rows, width, eps: 1e-5 }
                };
                for schedule in some(&op, dtype, false, 12) {
                    let Schedule::GpuNorm(schedule) = schedule else { panic!("{schedule:?}") };
                    norm(&shape, &schedule);
                }
                norm(&shape, &GpuNorm::plain(&shape, &facts()));
            }
        }
    }
}

#[test]
fn elementwise_stages_of_every_kind_are_valid() {
    let (rows, width) = (7, 36);
    let mut ops = vec![
        StageOp::Add { rows, width },
        StageOp::Mul { rows, width },
        StageOp::Scale { rows, width, factor: Factor::Value(0.3) },
        StageOp::Scale { rows, width, factor: Factor::InverseSqrt(48.0) },
        StageOp::Rope { batch: 2, seq: 9, heads: 3, head_dim: 24 },
        StageOp::Rope { batch: 1, seq: 1, heads: 1, head_dim: 2 },
    ];
    ops.extend(Activation::ALL.map(|function| StageOp::Activation { rows, width, function }));
    for dtype in [Dtype::F32, Dtype::F16] {
        for op in &ops {
            for schedule in some(op, dtype, false, 6) {
                let Schedule::GpuElementwise(schedule) = schedule else { panic!("{schedule:?}") };
                elementwise(op, dtype, &schedule);
            }
        }
    }
}
