//! The fused MLP: two products, or three, one after the other, with the hidden rows in a scratch buffer.

use super::{
    Builder,
    matmul::{Epilogue, Operands, emit as product},
};
use kernelforge::{
    manifest::spec::{Activation, Dtype},
    plan::{
        gpu::matmul::{GpuMlp, MlpShape},
        program::{Buffer, Step},
    },
    protocol::Failure,
};

/// The tensors of an MLP; biases where it has them.
pub struct MlpOperands {
    /// [rows, d_model].
    pub x: Buffer,
    /// [d_model, d_ff] and [d_ff]; of a gated MLP.
    pub gate: Option<(Buffer, Option<Buffer>)>,
    pub up: (Buffer, Option<Buffer>),
    /// [d_ff, d_model] and [d_model].
    pub down: (Buffer, Option<Buffer>),
    /// [rows, d_model].
    pub residual: Option<Buffer>,
    pub out: Buffer,
}

/// The steps of an MLP with a legal schedule.
///
/// # Errors
/// As [`super::matmul::emit`].
pub fn emit(
    builder: &mut Builder,
    shape: &MlpShape,
    activation: Activation,
    operands: &MlpOperands,
    schedule: &GpuMlp,
) -> Result<Vec<Step>, Failure> {
    let up = shape.up(schedule.fuse_gate);
    let elements = (shape.rows * shape.d_ff) as u64;
    let hidden = builder.scratch(elements * shape.dtype.bytes() as u64);
    let mut epilogue = Epilogue { bias: operands.up.1, ..Epilogue::plain(hidden, shape.dtype) };
    let mut steps = Vec::new();
    let mut gate = None;
    match operands.gate {
        None => epilogue.activation = Some(activation),
        Some((weights, bias)) if schedule.fuse_gate => {
            (epilogue.activation, epilogue.gate_bias, gate) = (Some(activation), bias, Some(weights));
        }
        Some((w, bias)) => {
            // In f32 whatever the tensors are, so that the hidden rows are rounded once.
            let factor = builder.scratch(elements * 4);
            let gate = Epilogue { bias, activation: Some(activation), ..Epilogue::plain(factor, Dtype::F32) };
            let operands = Operands { a: operands.x, gate: None, w };
            steps.extend(product(builder, &up, &operands, &gate, &schedule.up)?);
            epilogue.factor = Some(factor);
        }
    }
    let operands_up = Operands { a: operands.x, gate, w: operands.up.0 };
    steps.extend(product(builder, &up, &operands_up, &epilogue, &schedule.up)?);
    let down = Operands { a: hidden, gate: None, w: operands.down.0 };
    let epilogue =
        Epilogue { bias: operands.down.1, residual: operands.residual, ..Epilogue::plain(operands.out, shape.dtype) };
    steps.extend(product(builder, &shape.down(), &down, &epilogue, &schedule.down)?);
    Ok(steps)
}
