//! Schedules of GPU kernels: the knobs of the WGSL templates in `shaders/`, one struct for each kind of kernel, with the
//! constraints that device and shape put on them. Every knob changes the rendered text.

pub mod attention;
mod device;
pub mod matmul;
pub mod rows;
mod templates;

pub use templates::{TEMPLATES, templates};

use super::{
    constraint::{PlanError, Violation, wrong_kind},
    schedule::Schedule,
    stage::{Stage, StageOp},
};
use crate::{host::gpu::GpuFacts, manifest::spec::Dtype};
use attention::{AttentionShape, GpuAttention};
use matmul::{GpuMatmul, GpuMlp, MlpShape, Product};
use rows::{ElementShape, GpuElementwise, GpuNorm, NormShape};

/// A stage as its kind of kernel sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    Matmul(Product),
    Mlp(MlpShape),
    Attention(AttentionShape),
    Norm(NormShape),
    Elementwise(ElementShape),
}

impl Shape {
    /// Of an op on tensors of this type.
    pub fn of(op: &StageOp, dtype: Dtype) -> Self {
        match *op {
            StageOp::Matmul { m, n, k, .. } => Self::Matmul(Product { m, n, k, weights: 1, dtype }),
            StageOp::Mlp { rows, d_model, d_ff, gated, .. } => {
                Self::Mlp(MlpShape { rows, d_model, d_ff, gated, dtype })
            }
            StageOp::Attention { batch, seq, heads, kv_heads, head_dim, causal, scale } => {
                Self::Attention(AttentionShape { batch, seq, heads, kv_heads, head_dim, causal, scale, dtype })
            }
            StageOp::LayerNorm { rows, width, eps } => {
                Self::Norm(NormShape { rows, columns: width, eps, centred: true, dtype })
            }
            StageOp::RmsNorm { rows, width, eps } => {
                Self::Norm(NormShape { rows, columns: width, eps, centred: false, dtype })
            }
            StageOp::Rope { batch, seq, heads, head_dim } => {
                let half = head_dim / 2;
                let count = batch * seq * heads * half;
                Self::Elementwise(ElementShape { run: half, count, elements: 2 * count, bindings: 4, dtype })
            }
            StageOp::Activation { rows, width, .. } | StageOp::Scale { rows, width, .. } => {
                Self::Elementwise(ElementShape::flat(rows, width, 2, dtype))
            }
            StageOp::Add { rows, width } | StageOp::Mul { rows, width } => {
                Self::Elementwise(ElementShape::flat(rows, width, 3, dtype))
            }
        }
    }
}

/// Checks every constraint of `schedule` for `stage`, whose tensors have this type.
///
/// # Errors
/// A schedule of another kind of kernel, or the first knob outside its limits.
pub fn check(stage: &Stage, dtype: Dtype, schedule: &Schedule, gpu: &GpuFacts) -> Result<(), PlanError> {
    let name = stage.name.as_str();
    let checked: Result<(), Violation> = match (Shape::of(&stage.op, dtype), schedule) {
        (Shape::Matmul(shape), Schedule::GpuMatmul(it)) => matmul::check(name, "", &shape, it, gpu),
        (Shape::Mlp(shape), Schedule::GpuMlp(it)) => matmul::check_mlp(name, &shape, it, gpu),
        (Shape::Attention(shape), Schedule::GpuAttention(it)) => it.check(name, &shape, gpu),
        (Shape::Norm(shape), Schedule::GpuNorm(it)) => it.check(name, &shape, gpu),
        (Shape::Elementwise(shape), Schedule::GpuElementwise(it)) => it.check(name, &shape, gpu),
        (_, schedule) => return Err(wrong_kind(stage, schedule)),
    };
    Ok(checked?)
}

/// The schedule of an op that no pass marked: legal wherever the op can run at all, and slow.
pub fn plain(op: &StageOp, dtype: Dtype, gpu: &GpuFacts) -> Schedule {
    match Shape::of(op, dtype) {
        Shape::Matmul(shape) => Schedule::GpuMatmul(GpuMatmul::plain(&shape, gpu)),
        Shape::Mlp(shape) => Schedule::GpuMlp(GpuMlp {
            fuse_gate: false,
            up: GpuMatmul::plain(&shape.up(false), gpu),
            down: GpuMatmul::plain(&shape.down(), gpu),
        }),
        Shape::Attention(shape) => Schedule::GpuAttention(GpuAttention::plain(&shape, gpu)),
        Shape::Norm(shape) => Schedule::GpuNorm(GpuNorm::plain(&shape, gpu)),
        Shape::Elementwise(shape) => Schedule::GpuElementwise(GpuElementwise::plain(&shape, gpu)),
    }
}
