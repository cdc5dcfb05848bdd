//! Blocks and modules that the tests of this folder share.

use super::{check, parse, print, with_context};
use kernelforge::{
    manifest::spec::{
        Activation, AttentionSpec, BlockSpec, Dtype, MlpSpec, NormKind, NormSpec, Origin, Pass, RowsSpec,
    },
    protocol::{Failure, PassReport},
};
use std::collections::BTreeMap;

pub const LAYER_NORM: NormSpec = NormSpec { kind: NormKind::LayerNorm, eps: 1e-5 };
pub const RMS_NORM: NormSpec = NormSpec { kind: NormKind::RmsNorm, eps: 1e-6 };
pub const ROWS: RowsSpec = RowsSpec { batch: 1, seq: 4 };

/// Multi-head, with biases, as in GPT-2.
pub const MULTI_HEAD: AttentionSpec = AttentionSpec {
    d_model: 8,
    heads: 2,
    kv_heads: 2,
    head_dim: 4,
    qkv_bias: true,
    out_bias: true,
    causal: true,
    rope_theta: 0.0,
};

/// Grouped queries and rotary embedding, as in Qwen2.
pub const GROUPED: AttentionSpec =
    AttentionSpec { heads: 4, kv_heads: 2, out_bias: false, rope_theta: 10_000.0, ..MULTI_HEAD };

pub const PLAIN_MLP: MlpSpec =
    MlpSpec { d_model: 8, d_ff: 16, activation: Activation::GeluTanh, gated: false, bias: true };
pub const GATED_MLP: MlpSpec = MlpSpec { d_model: 8, d_ff: 16, activation: Activation::Silu, gated: true, bias: false };

pub fn gpt2() -> BlockSpec {
    BlockSpec::Transformer { rows: ROWS, attention: MULTI_HEAD, norm: LAYER_NORM, mlp: PLAIN_MLP, dtype: Dtype::F32 }
}

pub fn qwen() -> BlockSpec {
    BlockSpec::Transformer { rows: ROWS, attention: GROUPED, norm: RMS_NORM, mlp: GATED_MLP, dtype: Dtype::F32 }
}

/// One block of every kind, and more than one where a kind has forms that differ.
pub fn blocks() -> Vec<(&'static str, BlockSpec)> {
    let dtype = Dtype::F32;
    let (m, n, k) = (4, 8, 16);
    let gelu = Some(Activation::Gelu);
    vec![
        ("gpt2", gpt2()),
        ("qwen", qwen()),
        (
            "transformer-microblock",
            BlockSpec::TransformerMicroblock { rows: ROWS, attention: GROUPED, norm: LAYER_NORM, dtype },
        ),
        ("microblock", BlockSpec::Microblock { m, n, k, bias: true, norm: RMS_NORM, dtype }),
        ("attention", BlockSpec::Attention { rows: ROWS, attention: MULTI_HEAD, dtype }),
        ("mlp", BlockSpec::Mlp { rows: ROWS, mlp: PLAIN_MLP, dtype }),
        ("gated-mlp", BlockSpec::Mlp { rows: ROWS, mlp: GATED_MLP, dtype }),
        ("matmul", BlockSpec::Matmul { m, n, k, bias: false, activation: None, dtype }),
        ("matmul-gelu", BlockSpec::Matmul { m, n, k, bias: true, activation: gelu, dtype }),
        ("layer-norm", BlockSpec::LayerNorm { rows: ROWS, d_model: 8, norm: LAYER_NORM, dtype }),
        ("rms-norm", BlockSpec::LayerNorm { rows: ROWS, d_model: 8, norm: RMS_NORM, dtype }),
    ]
}

/// Every field on a line of its own in `workloads/x.toml`; the block's table on line 1.
pub fn origins() -> BTreeMap<String, Origin> {
    let fields = [
        "",
        "kind",
        "seq",
        "d-model",
        "heads",
        "kv-heads",
        "d-ff",
        "norm",
        "activation",
        "gated",
        "bias",
        "rope-theta",
        "m",
        "n",
    ];
    let origin = |line| Origin { file: "workloads/x.toml".to_owned(), line, column: 1 };
    fields.into_iter().zip(1..).map(|(field, line)| (field.to_owned(), origin(line))).collect()
}

/// A module around these lines of a function's body. `%x` is 4x8, `%w` 8x8, `%up` 8x16, `%down` 16x8, `%b` 8, `%c` 16.
pub fn module(body: &str) -> String {
    format!(
        r#"func.func @t(%x: tensor<4x8xf32> {{kforge.name = "x", kforge.role = "input"}},
             %w: tensor<8x8xf32> {{kforge.name = "w", kforge.role = "weight"}},
             %up: tensor<8x16xf32> {{kforge.name = "up", kforge.role = "weight"}},
             %down: tensor<16x8xf32> {{kforge.name = "down", kforge.role = "weight"}},
             %b: tensor<8xf32> {{kforge.name = "b", kforge.role = "weight"}},
             %c: tensor<16xf32> {{kforge.name = "c", kforge.role = "weight"}})
             -> (tensor<4x8xf32> {{kforge.name = "y"}}) {{
{body}
}}"#
    )
}

/// Parses and checks a module, runs passes over it, and gives its body's ops and what each pass reports.
pub fn rewrite(text: &str, passes: &[Pass]) -> Result<(String, Vec<PassReport>), Failure> {
    with_context(|context| {
        let module = parse(context, text)?;
        check(&module)?;
        let reports = passes.iter().map(|&it| super::apply(context, &module, it)).collect::<Result<_, _>>()?;
        Ok((body(&print(&module, false)?), reports))
    })
}

/// The lines of a printed module that are ops of the block, without indentation.
pub fn body(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|it| it.starts_with('%') || it.starts_with("return"));
    lines.collect::<Vec<_>>().join("\n")
}
