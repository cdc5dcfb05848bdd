//! Matrix products on a GPU: c = act(a w + bias) + residual, a [m, k], w [k, n].

mod legal;

pub use legal::{GEMV_ROWS, check, check_mlp};

use crate::{host::gpu::GpuFacts, manifest::spec::Dtype};
use serde::{Deserialize, Serialize};

/// What a schedule is for: a [m, k] times `weights` matrices [k, n].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// 2: an up projection and the gate that it is multiplied with.
    pub weights: usize,
    /// Of the operands and the result. Sums are f32.
    pub dtype: Dtype,
}

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
    /// Tiles in workgroup memory: with 2 the next one is written while this one is read, and a step has one barrier instead of two.
    pub stages: usize,
    /// Tiles under way in registers, up to 2, while one is multiplied: the next, and the one after it.
    pub prefetch: usize,
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
    /// Elements of one load from buffers: 2, 4 or 8. Divides k and n.
    pub vector: usize,
    /// Read W from a copy [n, k], made ahead of a weight: matrices are then loaded in pairs of elements, along K.
    pub transpose: bool,
    /// As in [`Tiled`].
    pub stages: usize,
    pub prefetch: usize,
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

/// The shape of a fused MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlpShape {
    pub rows: usize,
    pub d_model: usize,
    pub d_ff: usize,
    pub gated: bool,
    pub dtype: Dtype,
}

impl MlpShape {
    /// The first product, or each of the first two.
    pub const fn up(&self, fuse_gate: bool) -> Product {
        let weights = if fuse_gate { 2 } else { 1 };
        Product { m: self.rows, n: self.d_ff, k: self.d_model, weights, dtype: self.dtype }
    }

    pub const fn down(&self) -> Product {
        Product { m: self.rows, n: self.d_model, k: self.d_ff, weights: 1, dtype: self.dtype }
    }
}

/// The greatest of `widths` that divides both.
fn widest(widths: &[usize], k: usize, n: usize) -> usize {
    widths.iter().copied().filter(|it| k.is_multiple_of(*it) && n.is_multiple_of(*it)).max().unwrap_or(1)
}

impl Product {
    /// The widest loads of A and B from buffers, of at most 16 bytes.
    pub fn vector(&self) -> usize {
        let widths: &[usize] = if self.dtype == Dtype::F16 { &[1, 2, 4, 8] } else { &[1, 2, 4] };
        widest(widths, self.k, self.n)
    }

    /// Bytes of the sums of a split product.
    pub const fn partial_bytes(&self, split_k: usize) -> u64 {
        4 * (split_k * self.weights) as u64 * self.m as u64 * self.n as u64
    }
}

impl Tiled {
    /// Invocations of a workgroup.
    pub const fn threads(&self) -> usize {
        (self.tile_m / self.thread_m) * (self.tile_n / self.thread_n)
    }

    /// Rows of an invocation that lie next to each other, and are one load from workgroup memory.
    pub const fn chunk_m(&self) -> usize {
        chunk(self.thread_m)
    }

    pub const fn chunk_n(&self) -> usize {
        chunk(self.thread_n)
    }

    /// Bytes.
    pub const fn workgroup_memory(&self, weights: usize) -> usize {
        // The rows of A's tile are a chunk longer than they need to be, against bank conflicts.
        4 * self.stages * self.tile_k * (self.tile_m + self.chunk_m() + weights * self.tile_n)
    }
}

/// The largest of 1, 2 and 4 that divides `elements`.
const fn chunk(elements: usize) -> usize {
    match elements % 4 {
        0 => 4,
        2 => 2,
        _ => 1,
    }
}

/// Where things lie in the workgroup memory of a cooperative product. Tiles are made of words of [`Cooperative::word`] f16, sums of
/// as many f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CooperativeLayout {
    /// From row to row of A's tile, [m, k], and of each of B's, [k, n] or transposed [n, k]. 16 bytes longer than the row, against bank conflicts.
    pub stride_a: usize,
    pub stride_b: usize,
    pub a_words: usize,
    /// Of each of B's tiles.
    pub b_words: usize,
    /// Of a tile of A and all of B's.
    pub stage_words: usize,
    /// The f32 sums leave a subgroup `strip` matrices at a time, of each weight: as many as fit beside the tiles.
    pub strip: usize,
    /// From row to row of a strip, 16 bytes longer than the row.
    pub strip_stride: usize,
    /// Of one subgroup.
    pub strip_words: usize,
}

impl Cooperative {
    pub const fn subgroups(&self) -> usize {
        (self.tile_m / self.subgroup_m) * (self.tile_n / self.subgroup_n)
    }

    /// Elements of a word of workgroup memory.
    pub fn word(&self) -> usize {
        self.vector.min(4)
    }

    /// With matrices of `unit` x `unit` and `limit` bytes of workgroup memory.
    pub fn layout(&self, unit: usize, weights: usize, limit: usize) -> CooperativeLayout {
        let word = self.word();
        let (b_rows, b_row) = if self.transpose { (self.tile_n, self.tile_k) } else { (self.tile_k, self.tile_n) };
        let (stride_a, stride_b) = ((self.tile_k + 8) / word, (b_row + 8) / word);
        let (a_words, b_words) = (self.tile_m * stride_a, b_rows * stride_b);
        let layout = |strip: usize| CooperativeLayout {
            stride_a,
            stride_b,
            a_words,
            b_words,
            stage_words: a_words + weights * b_words,
            strip,
            strip_stride: (strip * unit + 4) / word,
            strip_words: weights * unit * ((strip * unit + 4) / word),
        };
        let matrices = self.subgroup_n / unit;
        let strips = (2..=matrices).rev().filter(|it| matrices.is_multiple_of(*it));
        strips.map(layout).find(|it| self.bytes(it) <= limit).unwrap_or_else(|| layout(1))
    }

    fn bytes(&self, layout: &CooperativeLayout) -> usize {
        let word = self.word();
        2 * word * self.stages * layout.stage_words + 4 * word * self.subgroups() * layout.strip_words
    }

    /// Bytes.
    pub fn workgroup_memory(&self, unit: usize, weights: usize, limit: usize) -> usize {
        self.bytes(&self.layout(unit, weights, limit))
    }
}

impl Gemv {
    /// Steps of K of one workgroup: a multiple of what it walks at once.
    pub const fn part(&self, k: usize) -> usize {
        let block = self.slices * self.unroll;
        k.div_ceil(self.split_k).div_ceil(block) * block
    }

    /// Bytes.
    pub const fn workgroup_memory(&self, m: usize, weights: usize) -> usize {
        if self.slices > 1 { 4 * weights * m * self.vector * self.threads } else { 0 }
    }
}

impl GpuMatmul {
    /// What a product gets that no pass asked a schedule for: an element of C for each invocation and for each load, tiles in
    /// workgroup memory, no more.
    pub fn plain(product: &Product, gpu: &GpuFacts) -> Self {
        // Dispatches are bounded in tiles: larger tiles where 8 x 8 would be too many.
        let mut tile = 8;
        while product.m.max(product.n).div_ceil(tile) > gpu.workgroups {
            tile *= 2;
        }
        let thread = tile / 8;
        Self::Tiled(Tiled {
            tile_m: tile,
            tile_n: tile,
            tile_k: 8,
            thread_m: thread,
            thread_n: thread,
            vector: 1,
            stages: 1,
            prefetch: 0,
            split_k: 1,
            swizzle: 1,
        })
    }

    pub const fn split_k(&self) -> usize {
        match self {
            Self::Tiled(it) => it.split_k,
            Self::Cooperative(it) => it.split_k,
            Self::Gemv(it) => it.split_k,
        }
    }
}

/// Steps of the loop over K of one workgroup.
pub const fn steps(k: usize, tile_k: usize, split_k: usize) -> usize {
    k.div_ceil(tile_k).div_ceil(split_k)
}
