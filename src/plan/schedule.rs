//! Schedules: the knobs of the generated code, one struct for each kind of kernel. Every knob changes the generated IR.

use super::{
    gpu::{
        attention::GpuAttention,
        matmul::{GpuMatmul, GpuMlp},
        rows::{GpuElementwise, GpuNorm},
    },
    stage::StageOp,
};
use crate::{host::Device, manifest::spec::Dtype};
use serde::{Deserialize, Serialize};

/// How a weight matrix reaches the micro-kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PackB {
    /// Packed into column panels once, by the kernel's prepare entry.
    Ahead,
    /// Packed into column panels by the kernel itself, a block of `nc` columns and `kc` depth at a time; 16 bits as f32.
    During,
    /// Read where it lies, row by row.
    Never,
}

/// Which of the two innermost tile loops is outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TileOrder {
    /// Column panels outside, row tiles inside: a panel of B stays in cache while A streams.
    ColumnsOutside,
    /// Row tiles outside, column panels inside: a row tile of A stays in cache while B streams.
    RowsOutside,
}

/// What a second thread gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    Rows,
    Columns,
}

/// What one step of a product's depth does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dot {
    /// A fused multiply-add of f32, to which operands of 16 bits are widened.
    Fma,
    /// Two products of bf16, added to an f32: AVX512-BF16's `vdpbf16ps`.
    Pairs,
}

impl Dot {
    /// Terms of the sum in one step.
    pub const fn terms(self) -> usize {
        match self {
            Self::Fma => 1,
            Self::Pairs => 2,
        }
    }
}

/// A packed, cache-blocked matrix product (see `worker/codegen/cpu/matmul.rs`). All sizes in elements.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MatmulSchedule {
    /// Rows of the register tile.
    pub mr: usize,
    /// Columns of the register tile: a multiple of `lanes`.
    pub nr: usize,
    /// Elements of one vector.
    pub lanes: usize,
    /// Rows of a cache block of A.
    pub mc: usize,
    /// Columns of a cache block of B, a multiple of `nr`.
    pub nc: usize,
    /// Depth of a cache block.
    pub kc: usize,
    /// Steps of the depth loop written out in the loop body.
    pub unroll: usize,
    /// With pairs `kc` is even, and B packed.
    pub dot: Dot,
    pub order: TileOrder,
    /// Copy each block of A next to each other, rows padded against cache-set conflicts.
    pub pack_a: bool,
    pub pack_b: PackB,
    /// Where B is packed ahead: while the tiles of one panel run, ask for the next. Acts with columns outside and an `unroll`
    /// that divides a cache line of 16 elements. Where the kernel packs B: ask for rows of it before they are copied.
    pub prefetch: bool,
    pub split: Split,
}

/// Attention with the scores of a row block kept in cache.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AttentionSchedule {
    /// Query rows whose scores are in cache at a time; a multiple of `mr`.
    pub row_block: usize,
    /// Rows of the register tile of both products.
    pub mr: usize,
    /// Columns of the register tile of q k^T (keys): a multiple of `lanes`.
    pub nr: usize,
    pub lanes: usize,
    /// Steps of the depth loops of both products written out in the loop body.
    pub unroll: usize,
    /// Copy a head's values next to each other, in panels of `nr` columns.
    pub pack_v: bool,
    /// Rows whose softmax is computed at a time, at most `mr`.
    pub softmax_rows: usize,
}

/// Layer norm, RMS norm.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NormSchedule {
    /// Elements of one vector; 1 is scalar code.
    pub lanes: usize,
    /// Independent accumulators of the reductions.
    pub unroll: usize,
}

/// Rotary embedding, activations, add, mul, scale.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ElementwiseSchedule {
    pub lanes: usize,
    pub unroll: usize,
}

/// The fused MLP: for each block of rows, both products, the hidden rows in a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MlpSchedule {
    /// Rows whose hidden activations are in the workspace at a time.
    pub row_block: usize,
    pub up: MatmulSchedule,
    pub down: MatmulSchedule,
}

/// The schedule of one stage.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kernel", rename_all = "kebab-case")]
pub enum Schedule {
    Matmul(MatmulSchedule),
    Attention(AttentionSchedule),
    Norm(NormSchedule),
    Elementwise(ElementwiseSchedule),
    Mlp(MlpSchedule),
    GpuMatmul(GpuMatmul),
    GpuAttention(GpuAttention),
    GpuNorm(GpuNorm),
    GpuElementwise(GpuElementwise),
    GpuMlp(GpuMlp),
}

impl MatmulSchedule {
    /// What a matmul gets that no pass asked a schedule for: vectors along a row, one row at a time, no blocking, no packing.
    fn plain(m: usize, n: usize, k: usize, lanes: usize) -> Self {
        Self {
            mr: 1,
            nr: lanes,
            lanes,
            mc: m,
            nc: n.next_multiple_of(lanes),
            kc: k,
            unroll: 1,
            dot: Dot::Fma,
            order: TileOrder::RowsOutside,
            pack_a: false,
            pack_b: PackB::Never,
            prefetch: false,
            split: Split::Rows,
        }
    }
}

impl Schedule {
    /// The schedule of an op on tensors of this type that no tiling or vectorising pass marked: legal, and slow. On a CPU it is
    /// vectorised where the kind is not a norm.
    pub fn plain(op: &StageOp, dtype: Dtype, device: &Device) -> Self {
        match device {
            Device::Cpu(cpu) => Self::plain_cpu(op, cpu.lanes),
            Device::Gpu(gpu) => super::gpu::plain(op, dtype, gpu),
        }
    }

    fn plain_cpu(op: &StageOp, lanes: usize) -> Self {
        match *op {
            StageOp::Matmul { m, n, k, .. } => Self::Matmul(MatmulSchedule::plain(m, n, k, lanes)),
            StageOp::Attention { .. } => Self::Attention(AttentionSchedule {
                row_block: 1,
                mr: 1,
                nr: lanes,
                lanes,
                unroll: 1,
                pack_v: false,
                softmax_rows: 1,
            }),
            StageOp::LayerNorm { .. } | StageOp::RmsNorm { .. } => Self::Norm(NormSchedule { lanes: 1, unroll: 1 }),
            StageOp::Mlp { rows, d_model, d_ff, .. } => Self::Mlp(MlpSchedule {
                row_block: rows,
                up: MatmulSchedule::plain(rows, d_ff, d_model, lanes),
                down: MatmulSchedule::plain(rows, d_model, d_ff, lanes),
            }),
            StageOp::Rope { .. }
            | StageOp::Activation { .. }
            | StageOp::Add { .. }
            | StageOp::Mul { .. }
            | StageOp::Scale { .. } => Self::Elementwise(ElementwiseSchedule { lanes, unroll: 1 }),
        }
    }

    /// What the stage's products are computed with; where they differ, the least accurate.
    pub fn dot(&self) -> Dot {
        match self {
            Self::Matmul(it) => it.dot,
            Self::Mlp(it) => it.up.dot.max(it.down.dot),
            _ => Dot::Fma,
        }
    }

    pub const fn name(&self) -> &'static str {
        match self {
            Self::Matmul(_) => "matmul",
            Self::Attention(_) => "attention",
            Self::Norm(_) => "norm",
            Self::Elementwise(_) => "elementwise",
            Self::Mlp(_) => "mlp",
            Self::GpuMatmul(_) => "gpu-matmul",
            Self::GpuAttention(_) => "gpu-attention",
            Self::GpuNorm(_) => "gpu-norm",
            Self::GpuElementwise(_) => "gpu-elementwise",
            Self::GpuMlp(_) => "gpu-mlp",
        }
    }
}
