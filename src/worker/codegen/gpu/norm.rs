//! Layer norm and RMS norm: the template `norm.wgsl`.

use super::{Builder, builder::Needs, float, index, real, storage};
use kernelforge::{
    host::gpu::GpuFeature,
    manifest::spec::Dtype,
    plan::{
        gpu::rows::{GpuNorm, NormShape, grid},
        program::{Buffer, Step},
    },
    protocol::{Failure, FailureKind},
};
use minijinja::context;

/// The steps of one norm whose schedule was found legal. `operands`: x, gain, bias of a layer norm, the result.
///
/// # Errors
/// As [`Builder::dispatch`]; `IllegalPlan` if the device cannot dispatch so many workgroups.
pub fn emit(
    builder: &mut Builder<'_>,
    shape: &NormShape,
    operands: &[Buffer],
    schedule: &GpuNorm,
) -> Result<Vec<Step>, Failure> {
    let NormShape { rows, columns, eps, centred, dtype } = *shape;
    let GpuNorm { width, rows: rows_of_group, vector, subgroups } = *schedule;
    let too_many = || Failure::new(FailureKind::IllegalPlan, format!("norm of {rows} rows: too many workgroups"));
    let [x, y] = grid(rows.div_ceil(rows_of_group), builder.gpu).ok_or_else(too_many)?;
    let chunks = schedule.chunks(columns);
    let context = context! {
        math_widths => [1],
        rows, columns, centred, width, rows_of_group, vector, subgroups, chunks,
        eps => float(eps),
        dtype => dtype.name(),
        storage => storage(dtype, vector),
        real => real(vector),
        vectors => columns / vector,
        slots => schedule.slots(),
        kept => schedule.keeps(columns),
        ragged => columns / vector != chunks * width,
        ragged_rows => x * y * rows_of_group != rows,
        grid_x => x,
    };
    let mut features = Vec::new();
    if dtype == Dtype::F16 {
        features.push(GpuFeature::F16);
    }
    if subgroups {
        features.push(GpuFeature::Subgroups);
    }
    let workgroup = [index(width * rows_of_group)?, 1, 1];
    let needs = Needs { workgroup, workgroup_memory: schedule.slots() * 4, features };
    let kind = if centred { "layer" } else { "rms" };
    let template = ("norm.wgsl", format!("{kind}-norm {rows}x{columns}"));
    let bindings = super::reads_then_writes(operands);
    Ok(vec![Step::Dispatch(builder.dispatch(template, context, needs, &bindings, [index(x)?, index(y)?, 1])?)])
}
