//! The whole block in f64, straight from its specification: what the manifest's words mean, written a second time and
//! without looking at stages. It shares no code with `reference.rs`, so that a mistake in the passes, in the stages or in
//! the reference shows as a difference (gate V2Meaning).

use kernelforge::manifest::spec::{Activation, AttentionSpec, BlockSpec, MlpSpec, NormKind, NormSpec, RowsSpec};
use ndarray::{Array1, Array2, ArrayView2, Axis, s};

/// The tensors of the block by their documented names.
pub trait Named {
    fn get(&self, name: &str) -> Option<&[f32]>;
}

/// The block's inputs do not fit its specification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OracleError {
    #[error("the stages have no tensor `{0}`, which the block needs")]
    Missing(String),
    #[error("tensor `{name}` has {len} elements where the block's specification makes it {expected}")]
    Shape { name: String, len: usize, expected: usize },
}

type Matrix = Array2<f64>;

/// The rows `wanted` of the block's output `y`. Whatever other rows need not be known (Q, the output projection, the MLP)
/// is not computed for them; attention sees every key and value.
pub fn evaluate(block: &BlockSpec, tensors: &dyn Named, wanted: &[usize]) -> Result<Matrix, OracleError> {
    let it = Oracle { tensors };
    match *block {
        BlockSpec::Transformer { rows, attention, norm, mlp, .. } => {
            let x = it.matrix("x", rows.rows(), attention.d_model)?;
            let attended = it.attention(&it.norm(&x, norm, "norm1")?, rows, attention, wanted)?;
            let h = x.select(Axis(0), wanted)
                + it.project(&attended, "attn.wo", "attn.bo", attention.d_model, attention.out_bias)?;
            let ff = it.mlp(&it.norm(&h, norm, "norm2")?, mlp)?;
            Ok(h + ff)
        }
        BlockSpec::TransformerMicroblock { rows, attention, norm, .. } => {
            let x = it.matrix("x", rows.rows(), attention.d_model)?;
            it.norm(&it.attention(&x, rows, attention, wanted)?, norm, "norm")
        }
        BlockSpec::Attention { rows, attention, .. } => {
            let x = it.matrix("x", rows.rows(), attention.d_model)?;
            let attended = it.attention(&x, rows, attention, wanted)?;
            it.project(&attended, "attn.wo", "attn.bo", attention.d_model, attention.out_bias)
        }
        BlockSpec::Mlp { rows, mlp, .. } => {
            it.mlp(&it.matrix("x", rows.rows(), mlp.d_model)?.select(Axis(0), wanted), mlp)
        }
        BlockSpec::Microblock { m, n, k, bias, norm, .. } => {
            let x = it.matrix("x", m, k)?.select(Axis(0), wanted);
            it.norm(&it.project(&x, "w", "b", n, bias)?, norm, "norm")
        }
        BlockSpec::Matmul { m, n, k, bias, activation, .. } => {
            let x = it.matrix("x", m, k)?.select(Axis(0), wanted);
            let y = it.project(&x, "w", "b", n, bias)?;
            Ok(match activation {
                Some(function) => y.mapv(|it| apply(function, it)),
                None => y,
            })
        }
        BlockSpec::LayerNorm { rows, d_model, norm, .. } => {
            it.norm(&it.matrix("x", rows.rows(), d_model)?.select(Axis(0), wanted), norm, "norm")
        }
    }
}

/// Rows and columns of `y`.
pub fn output_shape(block: &BlockSpec) -> (usize, usize) {
    match *block {
        BlockSpec::Transformer { rows, attention, .. } | BlockSpec::Attention { rows, attention, .. } => {
            (rows.rows(), attention.d_model)
        }
        BlockSpec::TransformerMicroblock { rows, attention, .. } => (rows.rows(), attention.heads * attention.head_dim),
        BlockSpec::Mlp { rows, mlp, .. } => (rows.rows(), mlp.d_model),
        BlockSpec::Microblock { m, n, .. } | BlockSpec::Matmul { m, n, .. } => (m, n),
        BlockSpec::LayerNorm { rows, d_model, .. } => (rows.rows(), d_model),
    }
}

/// Not the forms of `functions.rs`: erf and tanh as the definitions have them.
fn apply(function: Activation, x: f64) -> f64 {
    match function {
        Activation::Gelu => x * (1.0 + libm::erf(x / 2f64.sqrt())) / 2.0,
        Activation::GeluTanh => {
            x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh()) / 2.0
        }
        Activation::Silu => x * (1.0 + (-x).exp()).recip(),
        Activation::Relu => {
            if x > 0.0 {
                x
            } else {
                0.0
            }
        }
    }
}

struct Oracle<'a> {
    tensors: &'a dyn Named,
}

impl Oracle<'_> {
    fn slice(&self, name: &str, expected: usize) -> Result<&[f32], OracleError> {
        let data = self.tensors.get(name).ok_or_else(|| OracleError::Missing(name.to_owned()))?;
        match data.len() == expected {
            true => Ok(data),
            false => Err(OracleError::Shape { name: name.to_owned(), len: data.len(), expected }),
        }
    }

    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Matrix, OracleError> {
        let data = self.slice(name, rows * columns)?;
        Ok(Matrix::from_shape_fn((rows, columns), |(i, j)| f64::from(data[i * columns + j])))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Array1<f64>, OracleError> {
        Ok(self.slice(name, len)?.iter().map(|&it| f64::from(it)).collect())
    }

    /// x w + b, a slab of rows of w at a time.
    fn project(&self, x: &Matrix, w: &str, b: &str, n: usize, bias: bool) -> Result<Matrix, OracleError> {
        const SLAB: usize = 256;
        let k = x.ncols();
        let weight = self.slice(w, k * n)?;
        let mut y = Matrix::zeros((x.nrows(), n));
        for (index, slab) in weight.chunks(SLAB * n).enumerate() {
            let depth = slab.len() / n;
            let slab = Matrix::from_shape_fn((depth, n), |(i, j)| f64::from(slab[i * n + j]));
            y += &x.slice(s![.., index * SLAB..index * SLAB + depth]).dot(&slab);
        }
        if bias {
            y += &self.vector(b, n)?;
        }
        Ok(y)
    }

    fn norm(&self, x: &Matrix, spec: NormSpec, name: &str) -> Result<Matrix, OracleError> {
        let n = x.ncols();
        let gain = self.vector(&format!("{name}.gain"), n)?;
        let centred = match spec.kind {
            NormKind::LayerNorm => {
                let mean = x.sum_axis(Axis(1)) / n as f64;
                x - &mean.insert_axis(Axis(1))
            }
            NormKind::RmsNorm => x.clone(),
        };
        let variance = centred.mapv(|it| it * it).sum_axis(Axis(1)) / n as f64;
        let deviation = variance.mapv(|it| (it + spec.eps).sqrt()).insert_axis(Axis(1));
        let y = centred / deviation * &gain;
        Ok(match spec.kind {
            NormKind::LayerNorm => y + &self.vector(&format!("{name}.bias"), n)?,
            NormKind::RmsNorm => y,
        })
    }

    /// Heads side by side for the rows `wanted`, before the output projection.
    fn attention(
        &self,
        x: &Matrix,
        rows: RowsSpec,
        spec: AttentionSpec,
        wanted: &[usize],
    ) -> Result<Matrix, OracleError> {
        let AttentionSpec { heads, kv_heads, head_dim, qkv_bias, .. } = spec;
        let everyone: Vec<usize> = (0..rows.rows()).collect();
        let mut q = self.project(&x.select(Axis(0), wanted), "attn.wq", "attn.bq", heads * head_dim, qkv_bias)?;
        let mut k = self.project(x, "attn.wk", "attn.bk", kv_heads * head_dim, qkv_bias)?;
        let v = self.project(x, "attn.wv", "attn.bv", kv_heads * head_dim, qkv_bias)?;
        if spec.rope_theta != 0.0 {
            self.rotate(&mut q, wanted, rows.seq, head_dim)?;
            self.rotate(&mut k, &everyone, rows.seq, head_dim)?;
        }
        let mut out = Matrix::zeros((wanted.len(), heads * head_dim));
        for (index, &row) in wanted.iter().enumerate() {
            let first = row - row % rows.seq;
            let end = if spec.causal { row + 1 } else { first + rows.seq };
            for head in 0..heads {
                let kv = head * kv_heads / heads * head_dim;
                let query = q.slice(s![index, head * head_dim..(head + 1) * head_dim]);
                let logits = k.slice(s![first..end, kv..kv + head_dim]).dot(&query) / (head_dim as f64).sqrt();
                let max = logits.fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                let weights = logits.mapv(|it| (it - max).exp());
                let total = weights.sum();
                let values: ArrayView2<f64> = v.slice(s![first..end, kv..kv + head_dim]);
                out.slice_mut(s![index, head * head_dim..(head + 1) * head_dim])
                    .assign(&(weights.dot(&values) / total));
            }
        }
        Ok(out)
    }

    /// Turns every pair (i, i + head_dim/2) of every head, as a complex number, by the angle in the given tables: those are
    /// f32, so the angle's own formula would differ by their rounding.
    fn rotate(&self, x: &mut Matrix, rows: &[usize], seq: usize, head_dim: usize) -> Result<(), OracleError> {
        let half = head_dim / 2;
        let (cos, sin) = (self.matrix("rope.cos", seq, half)?, self.matrix("rope.sin", seq, half)?);
        for (mut x, row) in x.rows_mut().into_iter().zip(rows) {
            for mut head in x.exact_chunks_mut(head_dim) {
                for i in 0..half {
                    let (re, im) = (head[i], head[i + half]);
                    let (c, s) = (cos[[row % seq, i]], sin[[row % seq, i]]);
                    head[i] = re * c - im * s;
                    head[i + half] = im * c + re * s;
                }
            }
        }
        Ok(())
    }

    fn mlp(&self, x: &Matrix, spec: MlpSpec) -> Result<Matrix, OracleError> {
        let up = self.project(x, "mlp.w_up", "mlp.b_up", spec.d_ff, spec.bias)?;
        let hidden = match spec.gated {
            true => {
                let gate = self.project(x, "mlp.w_gate", "mlp.b_gate", spec.d_ff, spec.bias)?;
                gate.mapv(|it| apply(spec.activation, it)) * up
            }
            false => up.mapv(|it| apply(spec.activation, it)),
        };
        self.project(&hidden, "mlp.w_down", "mlp.b_down", spec.d_model, spec.bias)
    }
}
