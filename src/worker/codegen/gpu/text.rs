//! Words of WGSL.

use kernelforge::{
    manifest::spec::Dtype,
    plan::program::{Access, Buffer},
    protocol::{Failure, FailureKind},
};

/// The f32 nearest to `value` as a literal.
pub fn float(value: f64) -> String {
    format!("{:e}f", value as f32)
}

/// The type of `vector` elements as they are stored.
pub fn storage(dtype: Dtype, vector: usize) -> String {
    if vector == 1 { dtype.name().to_owned() } else { format!("vec{vector}<{}>", dtype.name()) }
}

/// The type of `vector` elements as they are computed with.
pub fn real(vector: usize) -> String {
    storage(Dtype::F32, vector)
}

/// A size of a dispatch.
///
/// # Errors
/// `IllegalPlan` beyond 32 bits.
pub fn index(value: usize) -> Result<u32, Failure> {
    let wide = |_| Failure::new(FailureKind::IllegalPlan, format!("{value} does not fit into 32 bits"));
    u32::try_from(value).map_err(wide)
}

/// Operands that are read, and a result, the last.
pub fn reads_then_writes(operands: &[Buffer]) -> Vec<(Buffer, Access)> {
    let last = operands.len().saturating_sub(1);
    let access = |index| if index == last { Access::ReadWrite } else { Access::Read };
    operands.iter().enumerate().map(|(index, &buffer)| (buffer, access(index))).collect()
}
