//! Stages that touch each element once: the templates `elementwise.wgsl` and `rope.wgsl`.

use super::{Builder, builder::Needs, float, index, real, storage};
use kernelforge::{
    host::gpu::GpuFeature,
    manifest::spec::{Activation, Dtype},
    plan::{
        gpu::rows::{ElementShape, GpuElementwise, grid},
        program::{Buffer, Step},
        stage::{Factor, StageOp},
    },
    protocol::{Failure, FailureKind},
};
use minijinja::context;

/// The steps of one rotary embedding, activation, sum, product or scaling whose schedule was found legal. `operands`: the
/// stage's inputs in order, then the result.
///
/// # Errors
/// As [`Builder::dispatch`]; `Internal` for another kind of stage; `IllegalPlan` if the device cannot dispatch so many workgroups.
pub fn emit(
    builder: &mut Builder<'_>,
    op: &StageOp,
    dtype: Dtype,
    operands: &[Buffer],
    schedule: &GpuElementwise,
) -> Result<Vec<Step>, Failure> {
    let wrong = || Failure::new(FailureKind::Internal, format!("a {} is not elementwise", op.name()));
    let shape = ElementShape::of(op, dtype).ok_or_else(wrong)?;
    let GpuElementwise { threads, vector, unroll } = *schedule;
    let too_many = || Failure::new(FailureKind::IllegalPlan, format!("{}: too many workgroups", op.name()));
    let [x, y] = grid(schedule.workgroups(&shape), builder.gpu).ok_or_else(too_many)?;
    let count = shape.count / vector;
    let common = context! {
        math_widths => [vector],
        threads, vector, unroll, count,
        dtype => dtype.name(),
        storage => storage(dtype, vector),
        real => real(vector),
        grid_x => x,
        ragged => x * y * threads * unroll != count,
    };
    let (template, own) = match *op {
        StageOp::Rope { seq, heads, .. } => ("rope.wgsl", context! { seq, heads, half => shape.run / vector }),
        StageOp::Scale { factor, .. } => {
            // The inverse root is evaluated here where no pass has folded it.
            let factor = match factor {
                Factor::Value(value) => float(value),
                Factor::InverseSqrt(value) => format!("inverse_root_1({})", float(value)),
            };
            let math_widths = if vector == 1 { vec![1] } else { vec![1, vector] };
            ("elementwise.wgsl", context! { what => "scale", binary => false, factor, math_widths })
        }
        StageOp::Activation { function, .. } => {
            ("elementwise.wgsl", context! { what => function_name(function), binary => false })
        }
        _ => ("elementwise.wgsl", context! { what => op.name(), binary => true }),
    };
    let features = if dtype == Dtype::F16 { vec![GpuFeature::F16] } else { vec![] };
    let needs = Needs { workgroup: [index(threads)?, 1, 1], workgroup_memory: 0, features };
    let bindings = super::reads_then_writes(operands);
    let name = format!("{} {}", op.name(), shape.count);
    let context = context! { ..own, ..common };
    let workgroups = [index(x)?, index(y)?, 1];
    Ok(vec![Step::Dispatch(builder.dispatch((template, name), context, needs, &bindings, workgroups)?)])
}

/// What `math.wgsl` calls it.
fn function_name(function: Activation) -> &'static str {
    match function {
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_tanh",
        Activation::Silu => "silu",
        Activation::Relu => "relu",
    }
}
