//! Matrix products on a GPU: c = act(a w + bias) + residual, a [m, k], w [k, n].

use serde::{Deserialize, Serialize};

/// How a matrix product is cut up. All sizes in elements unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case")]
pub enum GpuMatmul {
    Tiled(Tiled),
    Cooperative(Cooperative),
    Gemv(Gemv),
}

/// A tile of C for each workgroup, a two-dimensional register tile for each invocation, tiles of A and B in workgroup memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Tiled {
    pub tile_m: usize,
    pub tile_n: usize,
    pub tile_k: usize,
    /// The register tile of one invocation; the workgroup has `tile_m / thread_m * tile_n / thread_n` invocations.
    pub thread_m: usize,
    pub thread_n: usize,
    /// Elements of one load from and store to buffers: 1, 2 or 4. Divides k and n.
    pub vector: usize,
    /// Buffers of workgroup memory: with 2 the next tile is loaded while this one is multiplied.
    pub stages: usize,
    /// Parts of K that different workgroups sum; a second dispatch adds them up.
    pub split_k: usize,
    /// Rows of workgroups that are walked together, so that neighbours share tiles of B in the last cache.
    pub swizzle: usize,
}

/// Matrix products of whole subgroups (`coop_mat`): f16 operands, f32 accumulators.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Cooperative {
    pub tile_m: usize,
    pub tile_n: usize,
    pub tile_k: usize,
    /// The part of the tile that one subgroup computes; the workgroup has `tile_m / subgroup_m * tile_n / subgroup_n` subgroups.
    pub subgroup_m: usize,
    pub subgroup_n: usize,
    /// Elements of one load from buffers: 1, 2, 4 or 8. Divides k and n.
    pub vector: usize,
    pub stages: usize,
    pub split_k: usize,
    pub swizzle: usize,
}

/// Few rows: every weight is read once, straight into registers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Gemv {
    /// Invocations of a workgroup.
    pub threads: usize,
    /// Consecutive columns of one invocation, loaded at once: 1, 2, 4 (f16: or 8). Divides n.
    pub vector: usize,
    /// Parts of K that invocations of one workgroup sum side by side and add up in workgroup memory: a workgroup covers
    /// `threads / slices * vector` columns.
    pub slices: usize,
    /// Steps of the loop over K written out: loads in flight.
    pub unroll: usize,
    pub split_k: usize,
}

/// The fused MLP: y = h w_down + b_down (+ residual), h = act(x w_up + b_up) (* gate), h in a scratch buffer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GpuMlp {
    /// Both weights of a gated MLP in one kernel that multiplies the results in registers, instead of a kernel each.
    pub fuse_gate: bool,
    pub up: GpuMatmul,
    pub down: GpuMatmul,
}
