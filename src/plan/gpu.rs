//! Schedules of GPU kernels: the knobs of the WGSL templates in `shaders/`, one struct for each kind of kernel, with the
//! constraints that device and shape put on them. Every knob changes the rendered text.

pub mod attention;
mod device;
pub mod matmul;
pub mod rows;
mod templates;

pub use templates::{TEMPLATES, templates};

use super::{
    constraint::{PlanError, wrong_kind},
    schedule::Schedule,
    stage::{Stage, StageOp},
};
use crate::{host::gpu::GpuFacts, manifest::spec::Dtype};
use attention::{AttentionShape, GpuAttention};
use matmul::{GpuMatmul, GpuMlp, MlpShape, Product};
use rows::{ElementShape, GpuElementwise, GpuNorm, NormShape};

/// Checks every constraint of `schedule` for `stage`, whose tensors have this type.
pub fn check(stage: &Stage, dtype: Dtype, schedule: &Schedule, gpu: &GpuFacts) -> Result<(), PlanError> {
    let (name, op) = (stage.name.as_str(), &stage.op);
    match (Shape::of(op, dtype), schedule) {
        (Shape::Product(product), Schedule::GpuMatmul(it)) => matmul::check(name, "", &product, it, gpu)?,
        (Shape::Mlp(shape), Schedule::GpuMlp(it)) => matmul::check_mlp(name, &shape, it, gpu)?,
        (Shape::Attention(shape), Schedule::GpuAttention(it)) => it.check(name, &shape, gpu)?,
        (Shape::Norm(shape), Schedule::GpuNorm(it)) => it.check(name, &shape, gpu)?,
        (Shape::Elements(shape), Schedule::GpuElementwise(it)) => it.check(name, &shape, gpu)?,
        _ => return Err(wrong_kind(stage, schedule)),
    }
    Ok(())
}

/// Legal schedules that nothing was computed for.
pub fn plain(op: &StageOp, dtype: Dtype, gpu: &GpuFacts) -> Schedule {
    match Shape::of(op, dtype) {
        Shape::Product(product) => Schedule::GpuMatmul(GpuMatmul::plain(&product, gpu)),
        Shape::Mlp(shape) => {
            let (up, down) = (GpuMatmul::plain(&shape.up(false), gpu), GpuMatmul::plain(&shape.down(), gpu));
            Schedule::GpuMlp(GpuMlp { fuse_gate: false, up, down })
        }
        Shape::Attention(shape) => Schedule::GpuAttention(GpuAttention::plain(&shape, gpu)),
        Shape::Norm(shape) => Schedule::GpuNorm(GpuNorm::plain(&shape, gpu)),
        Shape::Elements(shape) => Schedule::GpuElementwise(GpuElementwise::plain(&shape, gpu)),
    }
}

/// What an operation is to the kernels: a shape of theirs.
pub enum Shape {
    Product(Product),
    Mlp(MlpShape),
    Attention(AttentionShape),
    Norm(NormShape),
    Elements(ElementShape),
}

impl Shape {
    /// Of an operation on tensors of this type.
    pub fn of(op: &StageOp, dtype: Dtype) -> Self {
        let flat = |rows: usize, width: usize, bindings: usize| {
            let count = rows * width;
            Self::Elements(ElementShape { run: count, count, elements: count, bindings, dtype })
        };
        match *op {
            StageOp::Matmul { m, n, k, .. } => Self::Product(Product { m, n, k, weights: 1, dtype }),
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
                let run = head_dim / 2;
                let count = batch * seq * heads * run;
                Self::Elements(ElementShape { run, count, elements: 2 * count, bindings: 4, dtype })
            }
            StageOp::Activation { rows, width, .. } | StageOp::Scale { rows, width, .. } => flat(rows, width, 2),
            StageOp::Add { rows, width } | StageOp::Mul { rows, width } => flat(rows, width, 3),
        }
    }
}
