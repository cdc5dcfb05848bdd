//! Attention on a GPU: softmax(scale q k^T + mask) v for each batch and query head.

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
    /// Invocations of a workgroup.
    pub threads: usize,
    /// Elements of one load from buffers: 1, 2 or 4. Divides the head's width.
    pub vector: usize,
}

/// Online softmax with both products on cooperative matrices: f16 only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CooperativeAttention {
    /// Query rows of a workgroup; each subgroup has 16 of them.
    pub tile_q: usize,
    pub tile_k: usize,
    pub vector: usize,
}

/// Scores in a buffer, softmax on the CPU: what the original tool did. Three submissions instead of one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct HostSoftmax {
    pub tile_q: usize,
    pub tile_k: usize,
    pub threads: usize,
}
