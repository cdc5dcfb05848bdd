//! What works on rows or single elements on a GPU: norms, rotary embedding, activations, sums.

use serde::{Deserialize, Serialize};

/// Layer norm, RMS norm: one row for each group of `width` invocations.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GpuNorm {
    /// Invocations that share a row; they add up across subgroups where there is more than one.
    pub width: usize,
    /// Rows of a workgroup, which has `width * rows` invocations.
    pub rows: usize,
    /// Elements of one load: 1, 2 or 4. Divides the row.
    pub vector: usize,
    /// Add up with subgroup operations instead of through workgroup memory alone.
    pub subgroups: bool,
}

/// Rotary embedding, activations, add, mul, scale.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GpuElementwise {
    /// Invocations of a workgroup.
    pub threads: usize,
    /// Elements of one load: 1, 2 or 4.
    pub vector: usize,
    /// Vectors of one invocation.
    pub unroll: usize,
}
