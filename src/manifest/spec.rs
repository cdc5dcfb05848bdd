//! What a manifest says once it is resolved: plain values, no TOML, no spans. This is what crosses to the worker and what
//! step keys are made of, so a field here is a field whose change makes something stale.

use serde::{Deserialize, Serialize};

/// The storage type of activations and weights between stages; accumulation is always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Dtype {
    F32,
    F16,
    /// The upper half of an f32: its range, and 8 bits of its precision.
    Bf16,
}

impl Dtype {
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The manifest's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }

    /// Unit roundoff of a stored element (to nearest): half the distance of two neighbours of 1.
    pub const fn roundoff(self) -> f64 {
        match self {
            Self::F32 => 1.0 / (1u32 << 24) as f64,
            Self::F16 => 1.0 / (1u32 << 11) as f64,
            Self::Bf16 => 1.0 / (1u32 << 8) as f64,
        }
    }

    /// The largest finite element.
    pub const fn max(self) -> f32 {
        match self {
            Self::F32 => f32::MAX,
            Self::F16 => crate::half::MAX,
            Self::Bf16 => crate::half::BRAIN_MAX,
        }
    }

    /// The smallest positive element that is not subnormal.
    pub const fn min_positive(self) -> f32 {
        match self {
            Self::F32 | Self::Bf16 => f32::MIN_POSITIVE,
            Self::F16 => crate::half::MIN_POSITIVE,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// x * Phi(x), through erf.
    Gelu,
    /// The tanh approximation of GELU, as in GPT-2.
    GeluTanh,
    /// x * sigmoid(x).
    Silu,
    Relu,
}

impl Activation {
    pub const ALL: [Self; 4] = [Self::Gelu, Self::GeluTanh, Self::Silu, Self::Relu];

    /// The manifest's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu-tanh",
            Self::Silu => "silu",
            Self::Relu => "relu",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NormKind {
    LayerNorm,
    RmsNorm,
}

/// A normalisation over the last dimension. Layer norm has a gain and a bias, RMS norm a gain.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NormSpec {
    pub kind: NormKind,
    pub eps: f64,
}

/// Rows of the activation matrix: `batch` sequences of `seq` tokens, stored one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RowsSpec {
    pub batch: usize,
    pub seq: usize,
}

impl RowsSpec {
    pub fn rows(self) -> usize {
        self.batch * self.seq
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AttentionSpec {
    pub d_model: usize,
    pub heads: usize,
    /// Divides `heads`; smaller means grouped-query attention: query head h reads key/value head h / (heads / kv-heads).
    pub kv_heads: usize,
    /// Columns of one head; `d-model / heads` unless the manifest says otherwise.
    pub head_dim: usize,
    /// Biases on the Q, K and V projections.
    pub qkv_bias: bool,
    /// Bias on the output projection.
    pub out_bias: bool,
    pub causal: bool,
    /// Base of the rotary embedding; 0 means none. Pairs are (i, i + head_dim/2), as in GPT-NeoX and Llama.
    pub rope_theta: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MlpSpec {
    pub d_model: usize,
    pub d_ff: usize,
    pub activation: Activation,
    /// act(x Wg + bg) * (x Wu + bu) instead of act(x Wu + bu).
    pub gated: bool,
    pub bias: bool,
}

/// Where the right-hand matrix B of a product comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperandB {
    /// A parameter of the block, given once: it may be packed when the kernel is prepared.
    #[default]
    Weight,
    /// Given with every call.
    Input,
}

impl OperandB {
    pub const NAMES: [&'static str; 2] = ["weight", "input"];

    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "weight" => Some(Self::Weight),
            "input" => Some(Self::Input),
            _ => None,
        }
    }
}

/// One block, fully resolved: one value for every field, one instance for every combination of list values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum BlockSpec {
    /// h = x + Wo attention(norm(x)); y = h + mlp(norm(h)).
    Transformer { rows: RowsSpec, attention: AttentionSpec, norm: NormSpec, mlp: MlpSpec, dtype: Dtype },
    /// norm(attention(x Wq, x Wk, x Wv)).
    TransformerMicroblock { rows: RowsSpec, attention: AttentionSpec, norm: NormSpec, dtype: Dtype },
    /// norm(x W + b), x: [m, k], W: [k, n].
    Microblock { m: usize, n: usize, k: usize, bias: bool, norm: NormSpec, dtype: Dtype },
    /// Wo attention(x Wq, x Wk, x Wv): the sub-layer, without norm and residual.
    Attention { rows: RowsSpec, attention: AttentionSpec, dtype: Dtype },
    /// act(x W1 + b1) W2 + b2: the sub-layer, without norm and residual.
    Mlp { rows: RowsSpec, mlp: MlpSpec, dtype: Dtype },
    /// act(x W + bias), x: [m, k], W: [k, n], of which `b` says whether it is a weight.
    Matmul { m: usize, n: usize, k: usize, b: OperandB, bias: bool, activation: Option<Activation>, dtype: Dtype },
    /// norm(x), x: [batch * seq, d-model]. The kind is `layer-norm`; `norm = "rms-norm"` selects the other one.
    LayerNorm { rows: RowsSpec, d_model: usize, norm: NormSpec, dtype: Dtype },
}

impl BlockSpec {
    /// How the block's activations and weights are stored.
    pub const fn dtype(&self) -> Dtype {
        match *self {
            Self::Transformer { dtype, .. }
            | Self::TransformerMicroblock { dtype, .. }
            | Self::Microblock { dtype, .. }
            | Self::Attention { dtype, .. }
            | Self::Mlp { dtype, .. }
            | Self::Matmul { dtype, .. }
            | Self::LayerNorm { dtype, .. } => dtype,
        }
    }

    /// The manifest's name of the kind.
    pub const fn kind_name(&self) -> &'static str {
        match self {
            Self::Transformer { .. } => "transformer",
            Self::TransformerMicroblock { .. } => "transformer-microblock",
            Self::Microblock { .. } => "microblock",
            Self::Attention { .. } => "attention",
            Self::Mlp { .. } => "mlp",
            Self::Matmul { .. } => "matmul",
            Self::LayerNorm { .. } => "layer-norm",
        }
    }
}

/// The passes over the transformer dialect, in the order a default pipeline runs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pass {
    FoldConstants,
    FuseMatmulActivation,
    FuseMlpBlock,
    EliminateDeadOps,
    TileMatmul,
    VectorizeLayernorm,
}

impl Pass {
    pub const ALL: [Self; 6] = [
        Self::FoldConstants,
        Self::FuseMatmulActivation,
        Self::FuseMlpBlock,
        Self::EliminateDeadOps,
        Self::TileMatmul,
        Self::VectorizeLayernorm,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::FoldConstants => "fold-constants",
            Self::FuseMatmulActivation => "fuse-matmul-activation",
            Self::FuseMlpBlock => "fuse-mlp-block",
            Self::EliminateDeadOps => "eliminate-dead-ops",
            Self::TileMatmul => "tile-matmul",
            Self::VectorizeLayernorm => "vectorize-layernorm",
        }
    }

    /// One line for `kforge ir passes` and the manifest's schema.
    pub const fn summary(self) -> &'static str {
        match self {
            Self::FoldConstants => "evaluate scalar constants and fold the attention scale into the attention op",
            Self::FuseMatmulActivation => {
                "move what follows a matmul element by element (activation, residual add) into its epilogue"
            }
            Self::FuseMlpBlock => "make one mlp op of an MLP's matmuls, its hidden rows kept in cache",
            Self::EliminateDeadOps => "erase ops whose results nobody reads",
            Self::TileMatmul => {
                "ask for a cache-blocked, packed, register-tiled schedule for every matmul and attention"
            }
            Self::VectorizeLayernorm => "ask for a vector schedule for every layer norm and RMS norm",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }
}

/// Where in the project something was said; what IR locations point to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// Relative to the project's root, with `/`.
    pub file: String,
    /// 1-based.
    pub line: u32,
    pub column: u32,
}
