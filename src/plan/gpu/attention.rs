//! Attention on a GPU: softmax(scale q k^T + mask) v for each batch and query head.

use crate::{
    host::gpu::{GpuFacts, GpuFeature},
    manifest::spec::Dtype,
    plan::constraint::{Knobs, Violation},
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case")]
pub enum GpuAttention {
    Online(Online),
    Cooperative(CooperativeAttention),
    HostSoftmax(HostSoftmax),
}

/// Online softmax: the scores of a tile of queries and keys stay in registers and workgroup memory, and masked tiles of keys
/// are skipped.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Online {
    /// Query rows of a workgroup.
    pub tile_q: usize,
    /// Keys of a tile.
    pub tile_k: usize,
    /// Query rows of one invocation. The `threads / (tile_q / thread_q)` invocations that share them deal out keys and columns
    /// among each other.
    pub thread_q: usize,
    /// Invocations of a workgroup.
    pub threads: usize,
    /// Elements of one load from buffers: 1, 2 or 4. Divides the head's width.
    pub vector: usize,
    /// Copy the query tile into workgroup memory instead of reading it through the cache for every tile of keys.
    pub share_q: bool,
}

/// Online softmax with both products on cooperative matrices: f16 only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CooperativeAttention {
    /// Query rows of a workgroup.
    pub tile_q: usize,
    /// Query rows of a subgroup, a multiple of 16. With more of them each matrix of keys and values is loaded for more products, and
    /// each invocation holds more accumulators.
    pub subgroup_q: usize,
    /// Keys of a tile.
    pub tile_k: usize,
    /// Keys whose scores, and then weights, are in workgroup memory at a time. Divides `tile_k`.
    pub chunk: usize,
    /// Rows of scores and weights lie 16 bytes further apart, against bank conflicts. That is memory, and devices run as many
    /// workgroups side by side as there is memory for.
    pub padded: bool,
    /// Elements of one load from buffers: 1, 2, 4 or 8. Divides the head's width.
    pub vector: usize,
    /// Ask for a tile's values before its scores are computed and for the next tile's keys before its softmax, and hold them in
    /// registers till then.
    pub prefetch: bool,
}

/// Scores in a buffer, softmax on the CPU: what the original tool did. Three submissions instead of one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct HostSoftmax {
    pub tile_q: usize,
    pub tile_k: usize,
    pub threads: usize,
}

/// The operation that a schedule is for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    pub batch: usize,
    pub seq: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub causal: bool,
    pub scale: f64,
    pub dtype: Dtype,
}

/// Rows, columns and keys of a cooperative matrix that the generated code is written for.
pub const FRAGMENT: usize = 16;
/// Columns of q and k that the kernels of [`HostSoftmax`] have in workgroup memory at a time.
pub const SCORE_DEPTH: usize = 16;
/// Accumulators that are written out for one invocation. With more, compilers spill: 255 registers is what a large GPU has.
const ACCUMULATORS: usize = 192;

impl AttentionShape {
    /// Elements of q and of the result.
    fn elements(&self) -> usize {
        self.batch * self.seq * self.heads * self.head_dim
    }

    /// Bytes of all scores, f32.
    pub fn score_bytes(&self) -> usize {
        self.batch * self.heads * self.seq * self.seq * 4
    }
}

/// What follows from an [`Online`] schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnlineLayout {
    /// The workgroup as a grid: `ty` groups of rows by `tx` invocations.
    pub ty: usize,
    pub tx: usize,
    /// Keys of one invocation.
    pub keys: usize,
    /// Vectors of four columns of a head, and of one invocation.
    pub groups: usize,
    pub columns: usize,
    /// Vectors of four from row to row of a tile of queries, keys or values: odd, so that neighbouring rows lie in other banks.
    pub stride: usize,
    /// Likewise of a row of weights.
    pub weight_stride: usize,
    pub workgroup_memory: usize,
}

impl Online {
    /// For a schedule whose knobs divide each other.
    pub fn layout(&self, head_dim: usize) -> OnlineLayout {
        let ty = self.tile_q / self.thread_q;
        let tx = self.threads / ty;
        let groups = head_dim.div_ceil(4);
        let (stride, weight_stride) = (groups | 1, self.tile_k / 4 + 1);
        let rows = self.tile_k + if self.share_q { self.tile_q } else { 0 };
        let vectors = rows * stride + self.tile_q * weight_stride;
        OnlineLayout {
            ty,
            tx,
            keys: self.tile_k / tx,
            groups,
            columns: groups.div_ceil(tx),
            stride,
            weight_stride,
            workgroup_memory: vectors * 16 + self.tile_q * tx * 4,
        }
    }

    fn check(&self, shape: &AttentionShape, knobs: &Knobs<'_, GpuFacts>) -> Result<(), Violation> {
        knobs.vector(self.vector, 4, "a head", shape.head_dim)?;
        knobs.invocations("threads", self.threads)?;
        knobs.range("tile-q", self.tile_q, 1, 1024, "query rows of a workgroup")?;
        knobs.range("tile-k", self.tile_k, 4, 1024, "keys of a tile")?;
        knobs.multiple("tile-q", self.tile_q, "thread-q", self.thread_q)?;
        knobs.multiple("threads", self.threads, "tile-q / thread-q", self.tile_q / self.thread_q)?;
        let layout = self.layout(shape.head_dim);
        knobs.multiple("tile-k", self.tile_k, "threads / (tile-q / thread-q)", layout.tx)?;
        knobs.multiple("tile-k", self.tile_k, "keys of a vector of weights", 4)?;
        let accumulators = self.thread_q * (layout.keys + 4 * layout.columns);
        if accumulators > ACCUMULATORS {
            let rule = format!(
                "gives each invocation {accumulators} accumulators ({} keys and {} columns of each row): more than \
                 {ACCUMULATORS} do not stay in registers",
                layout.keys,
                4 * layout.columns
            );
            return Err(knobs.violation("thread-q", self.thread_q, rule));
        }
        knobs.workgroup_memory("tile-k", self.tile_k, layout.workgroup_memory)
    }
}

/// What follows from a [`CooperativeAttention`] schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CooperativeLayout {
    pub subgroups: usize,
    pub threads: usize,
    /// Invocations that share a row.
    pub lanes: usize,
    /// Elements from row to row of a tile of keys or values, 16 bytes more than the row, so that neighbouring rows lie in other banks and
    /// matrices begin where the widest loads may; of a subgroup's scores; and of its weights.
    pub stride: usize,
    pub score_stride: usize,
    pub weight_stride: usize,
    pub workgroup_memory: usize,
}

impl CooperativeAttention {
    /// For a schedule whose knobs divide each other.
    pub fn layout(&self, shape: &AttentionShape, subgroup: usize) -> CooperativeLayout {
        let subgroups = self.tile_q / self.subgroup_q;
        let stride = shape.head_dim + 8;
        // Scores of neighbouring rows that are read at once lie in other banks either way; their writing, and weights, want more.
        let (score_pad, weight_pad) = if self.padded { (8, 8) } else { (4, 0) };
        let (score_stride, weight_stride) = (self.chunk + score_pad, self.chunk + weight_pad);
        // The flags, which are two, fill 16 bytes: nothing may lie behind them that begins anywhere else.
        let workgroup_memory = self.tile_k * stride * 2 + self.tile_q * (score_stride * 4 + weight_stride * 2) + 16;
        CooperativeLayout {
            subgroups,
            threads: subgroups * subgroup,
            lanes: subgroup / self.subgroup_q,
            stride,
            score_stride,
            weight_stride,
            workgroup_memory,
        }
    }

    fn check(&self, shape: &AttentionShape, knobs: &Knobs<'_, GpuFacts>) -> Result<(), Violation> {
        let gpu = knobs.device;
        if shape.dtype != Dtype::F16 {
            return Err(knobs.violation("method", "cooperative", "multiplies f16: the block is f32"));
        }
        knobs.feature("method", "cooperative", GpuFeature::CooperativeMatrix)?;
        knobs.feature("method", "cooperative", GpuFeature::Subgroups)?;
        let fits = |it: &&crate::host::gpu::CooperativeShape| [it.m, it.n, it.k] == [FRAGMENT; 3];
        if !gpu.cooperative.iter().filter(fits).any(|it| it.operand_bits == 16 && it.accumulator_bits == 32) {
            let rule = format!("needs products of 16 x 16 x 16, f16 to f32: {} has no such", gpu.name);
            return Err(knobs.violation("method", "cooperative", rule));
        }
        if gpu.subgroup_min != gpu.subgroup_max || !gpu.subgroup_max.is_multiple_of(FRAGMENT) {
            let rule = format!(
                "needs subgroups of one size, a multiple of 16: {} has {} to {}",
                gpu.name, gpu.subgroup_min, gpu.subgroup_max
            );
            return Err(knobs.violation("method", "cooperative", rule));
        }
        if !shape.head_dim.is_multiple_of(FRAGMENT) {
            let rule = format!("needs heads of a multiple of 16 columns: these have {}", shape.head_dim);
            return Err(knobs.violation("method", "cooperative", rule));
        }
        knobs.vector(self.vector, 8, "a head", shape.head_dim)?;
        knobs.range("tile-q", self.tile_q, FRAGMENT, 1024, "query rows of a workgroup")?;
        knobs.range("tile-k", self.tile_k, FRAGMENT, 1024, "keys of a tile")?;
        knobs.multiple("subgroup-q", self.subgroup_q, "rows of a cooperative matrix", FRAGMENT)?;
        knobs.multiple("tile-q", self.tile_q, "subgroup-q", self.subgroup_q)?;
        knobs.multiple("chunk", self.chunk, "columns of a cooperative matrix", FRAGMENT)?;
        knobs.multiple("tile-k", self.tile_k, "chunk", self.chunk)?;
        if !gpu.subgroup_max.is_multiple_of(self.subgroup_q) {
            let rule = format!("gives no invocation of a subgroup of {} a whole row", gpu.subgroup_max);
            return Err(knobs.violation("subgroup-q", self.subgroup_q, rule));
        }
        let layout = self.layout(shape, gpu.subgroup_max);
        knobs.multiple("chunk", self.chunk, "keys of all invocations of a row", 4 * layout.lanes)?;
        knobs.invocations("tile-q", layout.threads)?;
        // Eight registers of each invocation for one accumulator of 16 x 16 in a subgroup of 32.
        let accumulators = (shape.head_dim + self.tile_k) * self.subgroup_q / gpu.subgroup_max;
        if accumulators > ACCUMULATORS {
            let rule = format!(
                "and heads of {} columns need {accumulators} accumulators of each invocation: more than {ACCUMULATORS} do \
                 not stay in registers",
                shape.head_dim
            );
            return Err(knobs.violation("tile-k", self.tile_k, rule));
        }
        knobs.workgroup_memory("tile-k", self.tile_k, layout.workgroup_memory)
    }
}

/// What follows from a [`HostSoftmax`] schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostSoftmaxLayout {
    /// The workgroup of the first kernel as a grid, and each invocation's rows and keys.
    pub ty: usize,
    pub tx: usize,
    pub rows: usize,
    pub keys: usize,
    /// Elements of the result of each invocation of the second kernel.
    pub owned: usize,
    /// Bytes of either kernel.
    pub score_memory: usize,
    pub weight_memory: usize,
}

impl HostSoftmax {
    pub fn layout(&self, head_dim: usize) -> HostSoftmaxLayout {
        let tx = greatest_common_divisor(self.tile_k, self.threads);
        let ty = self.threads / tx;
        HostSoftmaxLayout {
            ty,
            tx,
            rows: self.tile_q / ty,
            keys: self.tile_k / tx,
            owned: (self.tile_q * head_dim).div_ceil(self.threads),
            score_memory: (self.tile_q + self.tile_k) * (SCORE_DEPTH + 1) * 4,
            weight_memory: self.tile_q * self.tile_k * 4,
        }
    }

    fn check(&self, shape: &AttentionShape, knobs: &Knobs<'_, GpuFacts>) -> Result<(), Violation> {
        knobs.invocations("threads", self.threads)?;
        knobs.range("tile-q", self.tile_q, 1, 1024, "query rows of a workgroup")?;
        knobs.range("tile-k", self.tile_k, 1, 1024, "keys of a tile")?;
        let layout = self.layout(shape.head_dim);
        let grid = format!("threads / {} invocations side by side", layout.tx);
        knobs.multiple("tile-q", self.tile_q, &grid, layout.ty)?;
        let why = "accumulators that are written out for one invocation";
        knobs.range("tile-q * tile-k / threads", layout.rows * layout.keys, 1, 64, why)?;
        knobs.range("tile-q * head-dim / threads", layout.owned, 1, 64, why)?;
        knobs.workgroup_memory("tile-q", self.tile_q, layout.score_memory.max(layout.weight_memory))?;
        knobs.workgroups("batch * heads", shape.batch * shape.heads, shape.batch * shape.heads)?;
        knobs.workgroups("tile-k", self.tile_k, shape.seq.div_ceil(self.tile_k))?;
        knobs.bytes("score-bytes", shape.score_bytes())
    }
}

const fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

impl GpuAttention {
    /// Checks every constraint of the schedule for stage `stage`.
    ///
    /// # Errors
    /// The first knob outside its limits.
    pub fn check(&self, stage: &str, shape: &AttentionShape, gpu: &GpuFacts) -> Result<(), Violation> {
        let knobs = Knobs::new(stage, gpu);
        knobs.tensors(shape.dtype, 4, shape.elements())?;
        let tile_q = match self {
            Self::Online(it) => it.check(shape, &knobs).map(|()| it.tile_q),
            Self::Cooperative(it) => it.check(shape, &knobs).map(|()| it.tile_q),
            Self::HostSoftmax(it) => it.check(shape, &knobs).map(|()| it.tile_q),
        }?;
        knobs.workgroups("batch * heads", shape.batch * shape.heads, shape.batch * shape.heads)?;
        knobs.workgroups("tile-q", tile_q, shape.seq.div_ceil(tile_q))
    }

    /// The schedule of an op that no pass marked: legal wherever attention is, and slow.
    pub fn plain(shape: &AttentionShape, gpu: &GpuFacts) -> Self {
        let plain = |threads| {
            let online = Online { tile_q: 1, tile_k: threads, thread_q: 1, threads, vector: 1, share_q: false };
            Self::Online(online)
        };
        // Wide heads need more invocations for their columns, and tiles of fewer keys.
        let legal = [32, 16, 8, 4, 64, 128].map(plain).into_iter().find(|it| it.check("", shape, gpu).is_ok());
        legal.unwrap_or_else(|| plain(32))
    }
}
