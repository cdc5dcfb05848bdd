//! What each kind of block is made of. Names of tensors and stages are part of kforge's interface (`kforge run`, reports).

use super::{super::dialect::Op, Builder};
use kernelforge::{
    manifest::spec::{AttentionSpec, BlockSpec, MlpSpec, NormKind, NormSpec, OperandB, RowsSpec},
    protocol::Failure,
};
use melior::ir::{Type, Value, ValueLike, r#type::RankedTensorType};

/// Emits the block; gives what it returns.
pub fn emit<'c: 'a, 'a>(builder: &mut Builder<'c, 'a, '_>, spec: &BlockSpec) -> Result<Value<'c, 'a>, Failure> {
    match *spec {
        BlockSpec::Transformer { rows, ref attention, norm, ref mlp, dtype: _ } => {
            let x = builder.input("x", &[rows_of(rows), attention.d_model], "d-model")?;
            let normed = builder.norm("norm1", x, attention.d_model, norm)?;
            let core = builder.attention(normed, rows, attention)?;
            let out = builder.attention_out(core, attention)?;
            let h = builder.binary(Op::Add, "attn.residual", "", x, out)?;
            let normed = builder.norm("norm2", h, attention.d_model, norm)?;
            let out = builder.mlp(normed, mlp)?;
            builder.binary(Op::Add, "mlp.residual", "", h, out)
        }
        BlockSpec::TransformerMicroblock { rows, ref attention, norm, dtype: _ } => {
            let x = builder.input("x", &[rows_of(rows), attention.d_model], "d-model")?;
            let core = builder.attention(x, rows, attention)?;
            builder.norm("norm", core, attention.heads.saturating_mul(attention.head_dim), norm)
        }
        BlockSpec::Microblock { m, n, k, bias, norm, dtype: _ } => {
            let product = builder.product((m, n, k), OperandB::Weight, bias)?;
            builder.norm("norm", product, n, norm)
        }
        BlockSpec::Attention { rows, ref attention, dtype: _ } => {
            let x = builder.input("x", &[rows_of(rows), attention.d_model], "d-model")?;
            let core = builder.attention(x, rows, attention)?;
            builder.attention_out(core, attention)
        }
        BlockSpec::Mlp { rows, ref mlp, dtype: _ } => {
            let x = builder.input("x", &[rows_of(rows), mlp.d_model], "d-model")?;
            builder.mlp(x, mlp)
        }
        BlockSpec::Matmul { m, n, k, b, bias, activation, dtype: _ } => {
            let product = builder.product((m, n, k), b, bias)?;
            match activation {
                Some(function) => builder.activation("activation", function, product),
                None => Ok(product),
            }
        }
        BlockSpec::LayerNorm { rows, d_model, norm, dtype: _ } => {
            let x = builder.input("x", &[rows_of(rows), d_model], "d-model")?;
            builder.norm("norm", x, d_model, norm)
        }
    }
}

/// Sizes saturate: one that overflows is refused when its tensor is made.
fn rows_of(rows: RowsSpec) -> usize {
    rows.batch.saturating_mul(rows.seq)
}

impl<'c: 'a, 'a> Builder<'c, 'a, '_> {
    /// x w + b of the kinds that are one matmul.
    fn product(&mut self, (m, n, k): (usize, usize, usize), b: OperandB, bias: bool) -> Result<Value<'c, 'a>, Failure> {
        let x = self.input("x", &[m, k], "m")?;
        let w = match b {
            OperandB::Weight => self.weight("w", &[k, n], "n")?,
            OperandB::Input => self.input("w", &[k, n], "b")?,
        };
        let b = self.weight_if(bias, "b", &[n], "bias")?;
        self.matmul("matmul", "n", x, w, b)
    }

    fn norm(&mut self, name: &str, x: Value<'c, 'a>, width: usize, norm: NormSpec) -> Result<Value<'c, 'a>, Failure> {
        let gain = self.weight(&format!("{name}.gain"), &[width], "norm")?;
        let attributes = [("eps", self.float(norm.eps)), ("vectorized", self.flag(false))];
        match norm.kind {
            NormKind::LayerNorm => {
                let bias = self.weight(&format!("{name}.bias"), &[width], "norm")?;
                let operands = [Some(x), Some(gain), Some(bias)];
                self.stage(Op::LayerNorm, name, "norm", &operands, &attributes, x.r#type())
            }
            NormKind::RmsNorm => self.stage(Op::RmsNorm, name, "norm", &[Some(x), Some(gain)], &attributes, x.r#type()),
        }
    }

    /// Projections, rotary embedding, scale and the attention itself, up to (not including) the output projection.
    fn attention(&mut self, x: Value<'c, 'a>, rows: RowsSpec, spec: &AttentionSpec) -> Result<Value<'c, 'a>, Failure> {
        let width = spec.heads.saturating_mul(spec.head_dim);
        let kv_width = spec.kv_heads.saturating_mul(spec.head_dim);
        let q = self.projection("q", "heads", x, spec, width)?;
        let k = self.projection("k", "kv-heads", x, spec, kv_width)?;
        let v = self.projection("v", "kv-heads", x, spec, kv_width)?;
        let (q, k) = if spec.rope_theta > 0.0 { self.rotate(q, k, rows, spec)? } else { (q, k) };

        // 1 / sqrt(head_dim) as the formula says it; `fold-constants` moves it into the attention.
        let scalar = RankedTensorType::new(&[], Type::float32(self.context), None).into();
        let location = self.origins.named("head_dim", "head-dim");
        let head_dim =
            self.append(Op::Constant, &[], &[("value", self.float(spec.head_dim as f64))], scalar, location)?;
        let location = self.origins.named("factor", "head-dim");
        let factor = self.append(Op::Rsqrt, &[Some(head_dim)], &[], scalar, location)?;
        let q = self.stage(Op::Scale, "attn.scale", "head-dim", &[Some(q), Some(factor)], &[], q.r#type())?;

        let attributes = [
            ("batch", self.size(rows.batch)),
            ("seq", self.size(rows.seq)),
            ("heads", self.size(spec.heads)),
            ("kv_heads", self.size(spec.kv_heads)),
            ("head_dim", self.size(spec.head_dim)),
            ("causal", self.flag(spec.causal)),
            ("scale", self.float(1.0)),
            ("tiled", self.flag(false)),
        ];
        let field = if spec.kv_heads == spec.heads { "heads" } else { "kv-heads" };
        self.stage(Op::Attention, "attn.core", field, &[Some(q), Some(k), Some(v)], &attributes, q.r#type())
    }

    fn projection(
        &mut self,
        letter: &str,
        field: &str,
        x: Value<'c, 'a>,
        spec: &AttentionSpec,
        width: usize,
    ) -> Result<Value<'c, 'a>, Failure> {
        let w = self.weight(&format!("attn.w{letter}"), &[spec.d_model, width], field)?;
        let b = self.weight_if(spec.qkv_bias, &format!("attn.b{letter}"), &[width], "bias")?;
        self.matmul(&format!("attn.{letter}"), field, x, w, b)
    }

    fn rotate(
        &mut self,
        q: Value<'c, 'a>,
        k: Value<'c, 'a>,
        rows: RowsSpec,
        spec: &AttentionSpec,
    ) -> Result<(Value<'c, 'a>, Value<'c, 'a>), Failure> {
        const FIELD: &str = "rope-theta";
        let table = [rows.seq, spec.head_dim / 2];
        // f32 in blocks of f16 too: rounded to f16 they would turn the last of 8192 positions by another angle, and every token
        // reads head_dim numbers of them where it reads heads * head_dim of its own.
        let cos = self.table("rope.cos", &table, FIELD)?;
        let sin = self.table("rope.sin", &table, FIELD)?;
        let mut rotate = |name: &str, x: Value<'c, 'a>, heads: usize| {
            let attributes = [
                ("batch", self.size(rows.batch)),
                ("seq", self.size(rows.seq)),
                ("heads", self.size(heads)),
                ("head_dim", self.size(spec.head_dim)),
            ];
            self.stage(Op::Rope, name, FIELD, &[Some(x), Some(cos), Some(sin)], &attributes, x.r#type())
        };
        Ok((rotate("attn.rope_q", q, spec.heads)?, rotate("attn.rope_k", k, spec.kv_heads)?))
    }

    fn attention_out(&mut self, core: Value<'c, 'a>, spec: &AttentionSpec) -> Result<Value<'c, 'a>, Failure> {
        let width = spec.heads.saturating_mul(spec.head_dim);
        let w = self.weight("attn.wo", &[width, spec.d_model], "d-model")?;
        let b = self.weight_if(spec.out_bias, "attn.bo", &[spec.d_model], "bias")?;
        self.matmul("attn.out", "d-model", core, w, b)
    }

    /// `norm2` is not part of it, the residual neither.
    fn mlp(&mut self, x: Value<'c, 'a>, spec: &MlpSpec) -> Result<Value<'c, 'a>, Failure> {
        let hidden = if spec.gated {
            let gate = self.linear("mlp.gate", "mlp.w_gate", "mlp.b_gate", x, [spec.d_model, spec.d_ff], spec.bias)?;
            let gate = self.activation("mlp.gate_act", spec.activation, gate)?;
            let up = self.linear("mlp.up", "mlp.w_up", "mlp.b_up", x, [spec.d_model, spec.d_ff], spec.bias)?;
            self.binary(Op::Mul, "mlp.mul", "gated", gate, up)?
        } else {
            let up = self.linear("mlp.up", "mlp.w_up", "mlp.b_up", x, [spec.d_model, spec.d_ff], spec.bias)?;
            self.activation("mlp.up_act", spec.activation, up)?
        };
        self.linear("mlp.down", "mlp.w_down", "mlp.b_down", hidden, [spec.d_ff, spec.d_model], spec.bias)
    }

    fn linear(
        &mut self,
        stage: &str,
        weight: &str,
        bias: &str,
        x: Value<'c, 'a>,
        shape: [usize; 2],
        biased: bool,
    ) -> Result<Value<'c, 'a>, Failure> {
        let w = self.weight(weight, &shape, "d-ff")?;
        let b = self.weight_if(biased, bias, &shape[1..], "bias")?;
        self.matmul(stage, "d-ff", x, w, b)
    }
}
