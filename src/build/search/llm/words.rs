//! Operations and rules in words. [`crate::plan::constraint`] judges; this only saves a model from finding out by being
//! refused, and so leaves out what depends on too much at once.

use crate::{
    host::Device,
    plan::{
        schedule::Schedule,
        stage::{StageGraph, StageOp},
    },
};

/// What an operation computes.
pub fn operation(operation: &StageGraph) -> String {
    let Some(stage) = operation.stages.first() else { return String::new() };
    let dtype = operation.tensor(stage.output).dtype.name();
    let what = match &stage.op {
        StageOp::Matmul { m, n, k, bias, activation, residual } => {
            let bias = if *bias { " + bias" } else { "" };
            let product = match activation {
                Some(it) => format!("{}(A B{bias})", it.name()),
                None => format!("A B{bias}"),
            };
            let residual = if *residual { " + residual" } else { "" };
            format!("C = {product}{residual}, with A [M, K], the weight B [K, N], M = {m}, N = {n}, K = {k}")
        }
        StageOp::Attention { batch, seq, heads, kv_heads, head_dim, causal, .. } => {
            let mask = if *causal { "causally masked " } else { "" };
            format!(
                "{mask}attention softmax(scale Q K^T) V of {batch} sequences of {seq} tokens, {heads} query heads and {kv_heads} \
                 key and value heads of {head_dim} columns"
            )
        }
        StageOp::LayerNorm { rows, width, .. } => format!("layer norm of each of {rows} rows of {width} elements"),
        StageOp::RmsNorm { rows, width, .. } => format!("RMS norm of each of {rows} rows of {width} elements"),
        StageOp::Rope { batch, seq, heads, head_dim } => {
            format!("rotary embedding of {batch} sequences of {seq} tokens, {heads} heads of {head_dim} columns")
        }
        StageOp::Activation { rows, width, function } => {
            format!("{} of each element of [{rows}, {width}]", function.name())
        }
        StageOp::Add { rows, width } => format!("the sum of two tensors [{rows}, {width}]"),
        StageOp::Mul { rows, width } => format!("the product, element by element, of two tensors [{rows}, {width}]"),
        StageOp::Scale { rows, width, .. } => format!("a tensor [{rows}, {width}] times a constant"),
        StageOp::Mlp { rows, d_model, d_ff, activation, gated, .. } => {
            let hidden = match gated {
                true => format!("{}(X Wgate) * (X Wup)", activation.name()),
                false => format!("{}(X Wup)", activation.name()),
            };
            format!(
                "Y = H Wdown with H = {hidden}, X [{rows}, {d_model}], H [{rows}, {d_ff}]; biases and residual \
                 are fused"
            )
        }
    };
    format!(
        "{what}; tensors are {dtype}, row-major; sums are f32. It takes {} multiply-adds at least.",
        stage.op.flops() / 2
    )
}

/// The device, and how much of it the operation gets.
pub fn device(device: &Device, threads: usize) -> String {
    match device {
        Device::Cpu(it) => {
            let threads = if threads == 1 { "one thread".to_owned() } else { format!("{threads} threads") };
            format!("{threads} of the CPU {}", it.model)
        }
        Device::Gpu(it) => format!("the GPU {}", it.shown()),
    }
}

/// What the constraint check holds schedules of this kind to.
pub fn rules(schedule: &Schedule, device: &Device) -> Vec<String> {
    let rules = match schedule {
        Schedule::Matmul(_) => cpu_matmul(),
        Schedule::Mlp(_) => cpu_matmul()
            .into_iter()
            .chain([
                "These hold for `up` and `down` alike. `down.mr` = `up.mr`, `down.lanes` = `up.lanes`.",
                "`row-block` is a multiple of `up.mr`. All weights are read again for every row block.",
            ])
            .collect(),
        Schedule::Attention(_) => vec![
            "`nr` is a multiple of `lanes`, `row-block` a multiple of `mr`, at most 4096.",
            "mr * (nr / lanes) + nr / lanes + 1 vector registers must exist.",
            "A block of scores, row-block rows as long as the sequence, should stay in L2.",
        ],
        Schedule::Norm(_) | Schedule::Elementwise(_) => vec!["`lanes` is a power of two, `unroll` is 1 to 8."],
        Schedule::GpuMatmul(_) => gpu_matmul(),
        Schedule::GpuMlp(_) => gpu_matmul()
            .into_iter()
            .chain([
                "These hold for `up` and `down` alike. With `fuse-gate` both weights of a gated MLP share the tile: \
             twice the sums.",
            ])
            .collect(),
        Schedule::GpuAttention(_) => vec![
            "online: `tile-q` is a multiple of `thread-q`; `threads` a multiple of tile-q / thread-q; `tile-k` a \
             multiple of 4 and of threads / (tile-q / thread-q).",
            "cooperative: f16 only; `tile-q` and `tile-k` are multiples of 16; `vector` divides the head.",
            "host-softmax: threads / gcd(tile-k, threads) divides `tile-q`; an invocation has at most 64 sums.",
            "Queries, keys and weights of a tile must fit into workgroup memory.",
        ],
        Schedule::GpuNorm(_) => vec![
            "`width` is a power of two; width * rows invocations must fit a workgroup; `vector` is 1, 2 or 4 and \
             divides the row.",
            "With `subgroups`, `width` is a multiple of the largest subgroup.",
        ],
        Schedule::GpuElementwise(_) => vec!["`vector` is 1, 2 or 4 and divides the run; `unroll` is 1 to 16."],
    };
    rules.into_iter().map(str::to_owned).chain([limits(device)]).collect()
}

fn cpu_matmul() -> Vec<&'static str> {
    vec![
        "`lanes` is a power of two; `nr` a multiple of `lanes`; `mc` a multiple of `mr`; `nc` a multiple of `nr`.",
        "mr * (nr / lanes) accumulators + nr / lanes for B + 1 for A must fit the vector registers; `mr` is at \
         most 32.",
        "`kc` is at least 1; `unroll` is 1 to 16.",
        "With `pack-a`, mc * kc * 4 bytes must fit the largest cache. A panel of B, kc * nr * 4 bytes, should \
         stay in L1 or L2.",
        "`pack-b` = during has the kernel copy a block of B, nc * kc * 4 bytes, which must fit the largest cache and should \
         fit L2; `pack-b` = ahead is for weights only.",
        "`prefetch` acts with `pack-b` = during, or with `pack-b` = ahead, `order` = columns-outside and an `unroll` that divides 16.",
    ]
}

fn gpu_matmul() -> Vec<&'static str> {
    vec![
        "tiled: `tile-m` is a multiple of `thread-m`, `tile-n` of `thread-n`, both tiles at most 1024, `tile-k` \
         at most 128; the workgroup has tile-m / thread-m * tile-n / thread-n invocations.",
        "tiled: an invocation has at most 192 sums (thread-m * thread-n); `vector` is 1, 2 or 4, divides K, N, \
         `tile-k` and `thread-n`.",
        "cooperative: f16 only; `subgroup-m`, `subgroup-n` and `tile-k` are multiples of the matrix (8 or 16), \
         tiles multiples of the subgroup's part; `vector` is 2, 4 or 8 and divides K and N.",
        "gemv: at most 8 rows; `vector` divides N; `slices` divides `threads`; `unroll` is 1 to 16.",
        "`stages` is 1 or 2, `prefetch` 0 to 2, `split-k` at most 64 and leaves no part without a step, `swizzle` \
         at most the rows of tiles.",
        "Tiles of all stages of A and B must fit into workgroup memory.",
    ]
}

fn limits(device: &Device) -> String {
    match device {
        Device::Cpu(it) => format!(
            "This CPU has vectors of at most {} f32 lanes, {} vector registers, {} KiB of L1, {} KiB of L2, {} \
             KiB of L3.",
            it.lanes,
            it.vector_registers,
            it.l1d >> 10,
            it.l2 >> 10,
            it.l3 >> 10
        ),
        Device::Gpu(it) => format!(
            "This GPU has workgroups of at most {} invocations, {} bytes of workgroup memory, subgroups of {} to {}.",
            it.workgroup_invocations.min(it.workgroup_x),
            it.workgroup_memory,
            it.subgroup_min,
            it.subgroup_max
        ),
    }
}
