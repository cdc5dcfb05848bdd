//! Blocks and their stage graphs for the verifier's tests, small enough for the naive interpreter.

use kernelforge::{
    manifest::spec::{Activation, AttentionSpec, BlockSpec, Dtype, MlpSpec, NormKind, NormSpec, OperandB, RowsSpec},
    plan::{
        PLAN_VERSION, Plan, Provenance,
        schedule::Schedule,
        stage::{Role, Stage, StageGraph, StageOp, Tensor, TensorId},
    },
};
use std::collections::BTreeMap;

/// A product of f32 without an activation.
pub fn product((m, n, k): (usize, usize, usize), bias: bool) -> BlockSpec {
    BlockSpec::Matmul { m, n, k, b: OperandB::Weight, bias, activation: None, dtype: Dtype::F32 }
}

/// A plan of these schedules, with every fusion and the built-in templates.
pub fn plan(block: &str, target: &str, stages: BTreeMap<String, Schedule>) -> Plan {
    Plan {
        version: PLAN_VERSION,
        block: block.to_owned(),
        target: target.to_owned(),
        provenance: Provenance::new("test"),
        without: Vec::new(),
        stages,
        shaders: BTreeMap::new(),
    }
}

/// Builds a graph stage by stage.
struct Builder {
    graph: StageGraph,
    dtype: Dtype,
}

impl Builder {
    fn tensor(&mut self, name: &str, shape: &[usize], role: Role) -> TensorId {
        if let Some(at) = self.graph.tensors.iter().position(|it| it.name == name) {
            return TensorId(at);
        }
        let dtype = if name.starts_with("rope.") { Dtype::F32 } else { self.dtype };
        let tensor = Tensor { name: name.to_owned(), shape: shape.to_vec(), dtype, role };
        self.graph.tensors.push(tensor);
        TensorId(self.graph.tensors.len() - 1)
    }

    fn weight(&mut self, name: &str, shape: &[usize]) -> TensorId {
        self.tensor(name, shape, Role::Weight)
    }

    fn stage(&mut self, name: &str, op: StageOp, inputs: Vec<TensorId>) -> TensorId {
        let (rows, width) = super::coverage::output_shape(&op);
        let output = self.tensor(name, &[rows, width], Role::Value);
        self.graph.stages.push(Stage { name: name.to_owned(), op, inputs, output, scheduled: true });
        output
    }

    fn matmul(
        &mut self,
        name: &str,
        x: TensorId,
        (w, b): (&str, Option<&str>),
        (m, n, k): (usize, usize, usize),
    ) -> TensorId {
        let mut inputs = vec![x, self.weight(w, &[k, n])];
        inputs.extend(b.map(|b| self.weight(b, &[n])));
        let op = StageOp::Matmul { m, n, k, bias: b.is_some(), activation: None, residual: false };
        self.stage(name, op, inputs)
    }

    fn norm(&mut self, name: &str, x: TensorId, rows: usize, width: usize, spec: NormSpec) -> TensorId {
        let mut inputs = vec![x, self.weight(&format!("{name}.gain"), &[width])];
        let eps = spec.eps;
        let op = match spec.kind {
            NormKind::LayerNorm => {
                inputs.push(self.weight(&format!("{name}.bias"), &[width]));
                StageOp::LayerNorm { rows, width, eps }
            }
            NormKind::RmsNorm => StageOp::RmsNorm { rows, width, eps },
        };
        self.stage(name, op, inputs)
    }

    fn attention(&mut self, x: TensorId, rows: RowsSpec, spec: AttentionSpec) -> TensorId {
        let AttentionSpec { d_model, heads, kv_heads, head_dim, qkv_bias, causal, .. } = spec;
        let (batch, seq, m) = (rows.batch, rows.seq, rows.rows());
        let bias = |name| qkv_bias.then_some(name);
        let mut q = self.matmul("attn.q", x, ("attn.wq", bias("attn.bq")), (m, heads * head_dim, d_model));
        let mut k = self.matmul("attn.k", x, ("attn.wk", bias("attn.bk")), (m, kv_heads * head_dim, d_model));
        let v = self.matmul("attn.v", x, ("attn.wv", bias("attn.bv")), (m, kv_heads * head_dim, d_model));
        if spec.rope_theta != 0.0 {
            let tables = ["rope.cos", "rope.sin"].map(|it| self.weight(it, &[seq, head_dim / 2]));
            let op = |heads| StageOp::Rope { batch, seq, heads, head_dim };
            q = self.stage("attn.rope_q", op(heads), vec![q, tables[0], tables[1]]);
            k = self.stage("attn.rope_k", op(kv_heads), vec![k, tables[0], tables[1]]);
        }
        let scale = 1.0 / (head_dim as f64).sqrt();
        self.stage(
            "attn.core",
            StageOp::Attention { batch, seq, heads, kv_heads, head_dim, causal, scale },
            vec![q, k, v],
        )
    }

    fn mlp(&mut self, x: TensorId, rows: usize, spec: MlpSpec, residual: Option<TensorId>) -> TensorId {
        let MlpSpec { d_model, d_ff, activation, gated, bias } = spec;
        let mut inputs = vec![x];
        let layers = [("gate", d_model, d_ff), ("up", d_model, d_ff), ("down", d_ff, d_model)];
        for (name, k, n) in layers.into_iter().skip(usize::from(!gated)) {
            inputs.push(self.weight(&format!("mlp.w_{name}"), &[k, n]));
            inputs.extend(bias.then(|| self.weight(&format!("mlp.b_{name}"), &[n])));
        }
        inputs.extend(residual);
        let residual = residual.is_some();
        self.stage("mlp", StageOp::Mlp { rows, d_model, d_ff, activation, gated, bias, residual }, inputs)
    }

    fn add(&mut self, name: &str, a: TensorId, b: TensorId, rows: usize, width: usize) -> TensorId {
        self.stage(name, StageOp::Add { rows, width }, vec![a, b])
    }
}

/// The stages of a block, its MLP fused, nothing else.
pub fn graph(block: &BlockSpec) -> StageGraph {
    let graph = StageGraph { block: "sample".to_owned(), tensors: Vec::new(), stages: Vec::new() };
    let mut it = Builder { graph, dtype: block.dtype() };
    let input = |it: &mut Builder, rows: usize, width: usize| it.tensor("x", &[rows, width], Role::Input);
    let out_bias = |spec: AttentionSpec| spec.out_bias.then_some("attn.bo");
    let y = match *block {
        BlockSpec::Transformer { rows, attention, norm, mlp, .. } => {
            let (m, d) = (rows.rows(), attention.d_model);
            let x = input(&mut it, m, d);
            let normed = it.norm("norm1", x, m, d, norm);
            let core = it.attention(normed, rows, attention);
            let projected = ("attn.wo", out_bias(attention));
            let out = it.matmul("attn.out", core, projected, (m, d, attention.heads * attention.head_dim));
            let h = it.add("attn.residual", x, out, m, d);
            let normed = it.norm("norm2", h, m, d, norm);
            it.mlp(normed, m, mlp, Some(h))
        }
        BlockSpec::TransformerMicroblock { rows, attention, norm, .. } => {
            let x = input(&mut it, rows.rows(), attention.d_model);
            let core = it.attention(x, rows, attention);
            it.norm("norm", core, rows.rows(), attention.heads * attention.head_dim, norm)
        }
        BlockSpec::Attention { rows, attention, .. } => {
            let (m, d) = (rows.rows(), attention.d_model);
            let x = input(&mut it, m, d);
            let core = it.attention(x, rows, attention);
            let projected = ("attn.wo", out_bias(attention));
            it.matmul("attn.out", core, projected, (m, d, attention.heads * attention.head_dim))
        }
        BlockSpec::Mlp { rows, mlp, .. } => {
            let x = input(&mut it, rows.rows(), mlp.d_model);
            it.mlp(x, rows.rows(), mlp, None)
        }
        BlockSpec::Microblock { m, n, k, bias, norm, .. } => {
            let x = input(&mut it, m, k);
            let product = it.matmul("matmul", x, ("w", bias.then_some("b")), (m, n, k));
            it.norm("norm", product, m, n, norm)
        }
        BlockSpec::Matmul { m, n, k, b, bias, activation, .. } => {
            let x = input(&mut it, m, k);
            let y = it.matmul("matmul", x, ("w", bias.then_some("b")), (m, n, k));
            if b == OperandB::Input {
                let w = it.graph.stages.last().map_or(x, |it| it.inputs[1]);
                it.graph.tensors[w.0].role = Role::Input;
            }
            if let Some(StageOp::Matmul { activation: fused, .. }) = it.graph.stages.last_mut().map(|it| &mut it.op) {
                *fused = activation;
            }
            y
        }
        BlockSpec::LayerNorm { rows, d_model, norm, .. } => {
            let x = input(&mut it, rows.rows(), d_model);
            it.norm("norm", x, rows.rows(), d_model, norm)
        }
    };
    it.graph.tensors[y.0].role = Role::Output;
    it.graph
}

pub const DTYPE: Dtype = Dtype::F32;
pub const LAYER_NORM: NormSpec = NormSpec { kind: NormKind::LayerNorm, eps: 1e-5 };
pub const RMS_NORM: NormSpec = NormSpec { kind: NormKind::RmsNorm, eps: 1e-6 };

/// Multi-head, causal, with biases and an erf GELU: GPT-2's kind, with BERT's activation.
pub fn gpt() -> BlockSpec {
    let (d_model, heads, head_dim) = (48, 3, 16);
    BlockSpec::Transformer {
        rows: RowsSpec { batch: 1, seq: 12 },
        attention: AttentionSpec {
            d_model,
            heads,
            kv_heads: heads,
            head_dim,
            qkv_bias: true,
            out_bias: true,
            causal: true,
            rope_theta: 0.0,
        },
        norm: LAYER_NORM,
        mlp: MlpSpec { d_model, d_ff: 80, activation: Activation::Gelu, gated: false, bias: true },
        dtype: DTYPE,
    }
}

/// Two sequences, grouped queries, rotary embedding, RMS norm, gated MLP: Llama's kind.
pub fn llama() -> BlockSpec {
    let (d_model, heads, kv_heads, head_dim) = (64, 4, 2, 32);
    BlockSpec::Transformer {
        rows: RowsSpec { batch: 2, seq: 8 },
        attention: AttentionSpec {
            d_model,
            heads,
            kv_heads,
            head_dim,
            qkv_bias: false,
            out_bias: false,
            causal: true,
            rope_theta: 10_000.0,
        },
        norm: RMS_NORM,
        mlp: MlpSpec { d_model, d_ff: 72, activation: Activation::Silu, gated: true, bias: false },
        dtype: DTYPE,
    }
}

/// The same block, stored as f16.
pub fn halved(block: &BlockSpec) -> BlockSpec {
    stored(block, Dtype::F16)
}

/// The same block, stored as this type.
pub fn stored(block: &BlockSpec, as_type: Dtype) -> BlockSpec {
    let mut block = block.clone();
    let (BlockSpec::Transformer { dtype, .. }
    | BlockSpec::TransformerMicroblock { dtype, .. }
    | BlockSpec::Microblock { dtype, .. }
    | BlockSpec::Attention { dtype, .. }
    | BlockSpec::Mlp { dtype, .. }
    | BlockSpec::Matmul { dtype, .. }
    | BlockSpec::LayerNorm { dtype, .. }) = &mut block;
    *dtype = as_type;
    block
}

/// Every kind of block at least once.
pub fn all() -> Vec<BlockSpec> {
    let BlockSpec::Transformer { attention, mlp, .. } = gpt() else { return Vec::new() };
    let rows = RowsSpec { batch: 2, seq: 16 };
    let bert = AttentionSpec { causal: false, ..attention };
    let dtype = DTYPE;
    let matmul =
        |m, n, k, activation| BlockSpec::Matmul { m, n, k, b: Default::default(), bias: true, activation, dtype };
    let mut blocks = vec![
        gpt(),
        llama(),
        BlockSpec::TransformerMicroblock { rows, attention: bert, norm: LAYER_NORM, dtype },
        BlockSpec::Attention { rows, attention: bert, dtype },
        BlockSpec::Microblock { m: 7, n: 33, k: 65, bias: true, norm: RMS_NORM, dtype },
        BlockSpec::LayerNorm { rows, d_model: 100, norm: NormSpec { eps: 1e-12, ..LAYER_NORM }, dtype },
        BlockSpec::Matmul { m: 1, n: 17, k: 1, b: Default::default(), bias: false, activation: None, dtype },
    ];
    for activation in Activation::ALL {
        blocks.push(matmul(9, 31, 130, Some(activation)));
        blocks.push(BlockSpec::Mlp { rows, mlp: MlpSpec { activation, ..mlp }, dtype });
        blocks.push(BlockSpec::Mlp { rows, mlp: MlpSpec { activation, gated: true, ..mlp }, dtype });
    }
    blocks
}
