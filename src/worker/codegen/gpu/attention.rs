//! Attention: the templates `attention-*.wgsl`.

use super::{Builder, builder::Needs, float, index, storage};
use kernelforge::{
    host::gpu::GpuFeature,
    manifest::spec::Dtype,
    plan::{
        gpu::attention::{AttentionShape, CooperativeAttention, GpuAttention, HostSoftmax, Online, SCORE_DEPTH},
        program::{Access, Buffer, Step},
    },
    protocol::Failure,
};
use minijinja::context;

/// How far a row's maximum may run ahead of the reference that its weights are relative to, and the power of two that weights are
/// multiplied by, both as logarithms to base 2: 2^15 is within f16.
const HEADROOM: u32 = 8;
const BOOST: u32 = 7;

/// q, k, v and the result.
pub struct Operands {
    pub q: Buffer,
    pub k: Buffer,
    pub v: Buffer,
    pub result: Buffer,
}

/// The steps of one attention whose schedule was found legal.
///
/// # Errors
/// As [`Builder::dispatch`].
pub fn emit(
    builder: &mut Builder<'_>,
    shape: &AttentionShape,
    operands: &Operands,
    schedule: &GpuAttention,
) -> Result<Vec<Step>, Failure> {
    match schedule {
        GpuAttention::Online(it) => online(builder, shape, operands, it),
        GpuAttention::Cooperative(it) => cooperative(builder, shape, operands, it),
        GpuAttention::HostSoftmax(it) => host_softmax(builder, shape, operands, it),
    }
}

fn name(kind: &str, shape: &AttentionShape) -> String {
    let AttentionShape { batch, seq, heads, head_dim, .. } = shape;
    format!("attention-{kind} {batch}x{seq}x{heads}x{head_dim}")
}

fn storage_features(dtype: Dtype) -> Vec<GpuFeature> {
    match dtype {
        // Of bf16 there is none: the constraints let no such stage pass.
        Dtype::F32 | Dtype::Bf16 => vec![],
        Dtype::F16 => vec![GpuFeature::F16],
    }
}

fn bindings(operands: &Operands) -> [(Buffer, Access); 4] {
    let read = |buffer| (buffer, Access::Read);
    [read(operands.q), read(operands.k), read(operands.v), (operands.result, Access::ReadWrite)]
}

/// What every attention template knows of the operation.
fn operation(shape: &AttentionShape) -> minijinja::Value {
    let AttentionShape { batch, seq, heads, kv_heads, head_dim, causal, scale, dtype } = *shape;
    context! { math_widths => [1], batch, seq, heads, kv_heads, head_dim, causal, scale => float(scale), dtype => dtype.name() }
}

fn online(
    builder: &mut Builder<'_>,
    shape: &AttentionShape,
    operands: &Operands,
    schedule: &Online,
) -> Result<Vec<Step>, Failure> {
    let Online { tile_q, tile_k, thread_q, threads, vector, share_q } = *schedule;
    let layout = schedule.layout(shape.head_dim);
    let tiles_q = shape.seq.div_ceil(tile_q);
    let ragged_k = !shape.seq.is_multiple_of(tile_k);
    let context = context! {
        tile_q, tile_k, threads, vector, share_q, tiles_q, ragged_k,
        rows => thread_q,
        ty => layout.ty,
        tx => layout.tx,
        keys => layout.keys,
        groups => layout.groups,
        columns => layout.columns,
        stride => layout.stride,
        weight_stride => layout.weight_stride,
        ragged_q => !shape.seq.is_multiple_of(tile_q),
        ragged_columns => !layout.groups.is_multiple_of(layout.tx),
        masked => shape.causal || ragged_k,
        storage => storage(shape.dtype, vector),
        ..operation(shape)
    };
    let needs = Needs {
        workgroup: [index(threads)?, 1, 1],
        workgroup_memory: layout.workgroup_memory,
        features: storage_features(shape.dtype),
    };
    let workgroups = [index(shape.batch * shape.heads)?, index(tiles_q)?, 1];
    let template = ("attention-online.wgsl", name("online", shape));
    Ok(vec![Step::Dispatch(builder.dispatch(template, context, needs, &bindings(operands), workgroups)?)])
}

fn cooperative(
    builder: &mut Builder<'_>,
    shape: &AttentionShape,
    operands: &Operands,
    schedule: &CooperativeAttention,
) -> Result<Vec<Step>, Failure> {
    let CooperativeAttention { tile_q, subgroup_q, tile_k, chunk, padded: _, vector, prefetch } = *schedule;
    let subgroup = builder.gpu.subgroup_max;
    let layout = schedule.layout(shape, subgroup);
    // Distances of the invocations that share a row.
    let steps: Vec<_> = (0..layout.lanes.trailing_zeros()).map(|it| 1_u32 << it).collect();
    let tiles_q = shape.seq.div_ceil(tile_q);
    let context = context! {
        tile_q, subgroup_q, tile_k, chunk, vector, prefetch, tiles_q, subgroup, steps,
        headroom => HEADROOM,
        boost => BOOST,
        // Scores become logarithms to base 2, their sign is seen to before: the largest score is that of the largest product.
        scale => float(shape.scale.abs() * std::f64::consts::LOG2_E),
        negative => shape.scale < 0.0,
        lanes => layout.lanes,
        storage => storage(Dtype::F16, vector.min(4)),
        subgroups => layout.subgroups,
        threads => layout.threads,
        stride => layout.stride,
        score_stride => layout.score_stride,
        weight_stride => layout.weight_stride,
        ragged_q => !shape.seq.is_multiple_of(tile_q),
        ragged_k => !shape.seq.is_multiple_of(tile_k),
        ..operation(shape)
    };
    let needs = Needs {
        workgroup: [index(layout.threads)?, 1, 1],
        workgroup_memory: layout.workgroup_memory,
        features: vec![GpuFeature::F16, GpuFeature::Subgroups, GpuFeature::CooperativeMatrix],
    };
    let workgroups = [index(shape.batch * shape.heads)?, index(tiles_q)?, 1];
    let template = ("attention-cooperative.wgsl", name("cooperative", shape));
    Ok(vec![Step::Dispatch(builder.dispatch(template, context, needs, &bindings(operands), workgroups)?)])
}

fn host_softmax(
    builder: &mut Builder<'_>,
    shape: &AttentionShape,
    operands: &Operands,
    schedule: &HostSoftmax,
) -> Result<Vec<Step>, Failure> {
    let HostSoftmax { tile_q, tile_k, threads } = *schedule;
    let layout = schedule.layout(shape.head_dim);
    let AttentionShape { batch, seq, heads, causal, .. } = *shape;
    let (pairs, tiles_q, tiles_k) = (batch * heads, seq.div_ceil(tile_q), seq.div_ceil(tile_k));
    let scores = builder.scratch(shape.score_bytes() as u64);
    let context = context! {
        tile_q, tile_k, threads,
        ty => layout.ty,
        tx => layout.tx,
        rows => layout.rows,
        keys => layout.keys,
        owned => layout.owned,
        depth => SCORE_DEPTH,
        ..operation(shape)
    };
    let needs = |workgroup_memory| -> Result<Needs, Failure> {
        let workgroup = [index(threads)?, 1, 1];
        Ok(Needs { workgroup, workgroup_memory, features: storage_features(shape.dtype) })
    };
    let first = builder.dispatch(
        ("attention-scores.wgsl", name("scores", shape)),
        context.clone(),
        needs(layout.score_memory)?,
        &[(operands.q, Access::Read), (operands.k, Access::Read), (scores, Access::ReadWrite)],
        [index(tiles_k)?, index(tiles_q)?, index(pairs)?],
    )?;
    let last = builder.dispatch(
        ("attention-weighted.wgsl", name("weighted", shape)),
        context,
        needs(layout.weight_memory)?,
        &[(scores, Access::Read), (operands.v, Access::Read), (operands.result, Access::ReadWrite)],
        [index(pairs)?, index(tiles_q)?, 1],
    )?;
    let softmax = Step::HostSoftmax { scores, batch, heads, rows: seq, keys: seq, causal };
    Ok(vec![Step::Dispatch(first), softmax, Step::Dispatch(last)])
}
