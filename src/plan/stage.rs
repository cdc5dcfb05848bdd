//! The stages of a block: one node for each op of the optimised module, in execution order, with every shape resolved.
//! The worker extracts it from the IR after the passes; the search proposes a schedule for each stage; code generation,
//! verification and reports all walk it.

use crate::manifest::spec::{Activation, Dtype};
use serde::{Deserialize, Serialize};

/// Index into [`StageGraph::tensors`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TensorId(pub usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Given with every call.
    Input,
    /// Given once: a parameter of the block.
    Weight,
    /// Computed by a stage and read by later ones.
    Value,
    /// Computed by a stage and returned.
    Output,
}

/// A dense row-major tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tensor {
    /// Unique in the graph. Inputs and weights have their documented names (`x`, `attn.wq`, ...); the rest the stage's name.
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    pub role: Role,
}

impl Tensor {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.bytes()
    }
}

/// A factor of a `scale` stage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Factor {
    Value(f64),
    /// 1 / sqrt(v), evaluated by the generated code: what `fold-constants` removes.
    InverseSqrt(f64),
}

impl Factor {
    pub fn value(self) -> f64 {
        match self {
            Self::Value(value) => value,
            Self::InverseSqrt(value) => 1.0 / value.sqrt(),
        }
    }
}

/// What a stage computes. Operands are listed in the order of [`Stage::inputs`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum StageOp {
    /// act(a w + bias) + residual. Inputs: a [m, k], w [k, n], then bias [n] if `bias`, residual [m, n] if `residual`.
    Matmul { m: usize, n: usize, k: usize, bias: bool, activation: Option<Activation>, residual: bool },
    /// For each batch and query head: softmax(scale q k^T + mask) v. Inputs: q [batch*seq, heads*head_dim],
    /// k and v [batch*seq, kv_heads*head_dim]; output like q.
    Attention { batch: usize, seq: usize, heads: usize, kv_heads: usize, head_dim: usize, causal: bool, scale: f64 },
    /// Inputs: x [rows, width], gain [width], bias [width].
    LayerNorm { rows: usize, width: usize, eps: f64 },
    /// Inputs: x [rows, width], gain [width].
    RmsNorm { rows: usize, width: usize, eps: f64 },
    /// Rotary embedding of every head of x [batch*seq, heads*head_dim]: with p the token's position in its sequence and
    /// f_i = theta^(-2i/head_dim), the pair (x_i, x_{i+head_dim/2}) turns by the angle p f_i.
    /// Inputs: x, cos [seq, head_dim/2], sin [seq, head_dim/2] (tables: weights named `rope.cos`, `rope.sin`).
    Rope { batch: usize, seq: usize, heads: usize, head_dim: usize },
    /// Inputs: x [rows, width].
    Activation { rows: usize, width: usize, function: Activation },
    /// Inputs: a, b [rows, width].
    Add { rows: usize, width: usize },
    /// Inputs: a, b [rows, width].
    Mul { rows: usize, width: usize },
    /// Inputs: x [rows, width].
    Scale { rows: usize, width: usize, factor: Factor },
    /// The fused MLP: y = h w_down + b_down (+ residual), h = act(x w_up + b_up), or when gated
    /// h = act(x w_gate + b_gate) * (x w_up + b_up).
    /// Inputs: x [rows, d_model]; if `gated`: w_gate [d_model, d_ff], then b_gate [d_ff] if `bias`; w_up [d_model, d_ff],
    /// b_up [d_ff] if `bias`; w_down [d_ff, d_model], b_down [d_model] if `bias`; residual [rows, d_model] if `residual`.
    Mlp { rows: usize, d_model: usize, d_ff: usize, activation: Activation, gated: bool, bias: bool, residual: bool },
}

impl StageOp {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Matmul { .. } => "matmul",
            Self::Attention { .. } => "attention",
            Self::LayerNorm { .. } => "layer-norm",
            Self::RmsNorm { .. } => "rms-norm",
            Self::Rope { .. } => "rope",
            Self::Activation { .. } => "activation",
            Self::Add { .. } => "add",
            Self::Mul { .. } => "mul",
            Self::Scale { .. } => "scale",
            Self::Mlp { .. } => "mlp",
        }
    }

    /// Floating-point operations that the mathematics needs: 2 for each multiply-add of a matrix product (causal attention
    /// counts the visible keys only); elementwise work is not counted, as is the custom of the field.
    pub fn flops(&self) -> u64 {
        let product = |m: usize, n: usize, k: usize| 2 * m as u64 * n as u64 * k as u64;
        match *self {
            Self::Matmul { m, n, k, .. } => product(m, n, k),
            Self::Attention { batch, seq, heads, head_dim, causal, .. } => {
                let pairs = if causal { seq * (seq + 1) / 2 } else { seq * seq };
                4 * (batch * heads * pairs * head_dim) as u64
            }
            Self::Mlp { rows, d_model, d_ff, gated, .. } => {
                product(rows, d_ff, d_model) * if gated { 2 } else { 1 } + product(rows, d_model, d_ff)
            }
            _ => 0,
        }
    }
}

/// One op of the optimised module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Stage {
    /// Unique in the graph; a C identifier once `.` and `-` become `_`. E.g. `attn.q`, `mlp.up`, `norm1`.
    pub name: String,
    #[serde(flatten)]
    pub op: StageOp,
    pub inputs: Vec<TensorId>,
    pub output: TensorId,
    /// A tiling or vectorising pass marked the op: it gets a searched schedule. Unmarked ops get the plain schedule of
    /// their kind ([`crate::plan::schedule::Schedule::plain`]).
    pub scheduled: bool,
}

/// The stages of one block in execution order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StageGraph {
    /// The module's symbol: the block instance's name.
    pub block: String,
    pub tensors: Vec<Tensor>,
    pub stages: Vec<Stage>,
}

impl StageGraph {
    pub fn tensor(&self, id: TensorId) -> &Tensor {
        &self.tensors[id.0]
    }

    pub fn with_role(&self, role: Role) -> impl Iterator<Item = (TensorId, &Tensor)> {
        self.tensors.iter().enumerate().filter(move |(_, it)| it.role == role).map(|(index, it)| (TensorId(index), it))
    }

    pub fn stage(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|it| it.name == name)
    }

    pub fn flops(&self) -> u64 {
        self.stages.iter().map(|it| it.op.flops()).sum()
    }

    /// Bytes that one call of `stage` must move at least: each operand read once, the result written once.
    pub fn bytes(&self, stage: &Stage) -> u64 {
        let ids = stage.inputs.iter().chain([&stage.output]);
        ids.map(|&id| self.tensor(id).bytes() as u64).sum()
    }
}
