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
        ("matmul", BlockSpec::Matmul { m, n, k, b: Default::default(), bias: false, activation: None, dtype }),
        ("matmul-gelu", BlockSpec::Matmul { m, n, k, b: Default::default(), bias: true, activation: gelu, dtype }),
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

/// Parses and checks a module, runs passes over it, and gives what is left in short form and what each pass reports.
pub fn rewrite(text: &str, passes: &[Pass]) -> Result<(String, Vec<PassReport>), Failure> {
    with_context(|context| {
        let module = parse(context, text)?;
        check(&module)?;
        let reports = passes.iter().map(|&it| super::apply(context, &module, it)).collect::<Result<_, _>>()?;
        Ok((brief(&print(&module, false)?), reports))
    })
}

/// Why a module with this body is refused, without MLIR's notes. Line 1 of the body is line 8 of the text, whose name is `-`.
pub fn refusal(body: &str) -> String {
    match rewrite(&module(body), &[]) {
        Ok((text, _)) => format!("accepted:\n{text}"),
        Err(failure) => {
            let notes = failure.detail.lines().filter(|it| !it.trim_start().starts_with("note: "));
            std::iter::once(failure.message.as_str()).chain(notes).collect::<Vec<_>>().join("\n")
        }
    }
}

/// Before and after a pass, in short form, and its report; then that running it again does nothing.
pub fn step(name: &str, spec: &BlockSpec, before: &[Pass], pass: Pass) -> String {
    with_context(|context| {
        let module = super::build::build(context, name, spec, &origins())?;
        for &it in before {
            super::apply(context, &module, it)?;
        }
        let text = brief(&print(&module, false)?);
        let PassReport { created, changed, erased, .. } = super::apply(context, &module, pass)?;
        let rewritten = brief(&print(&module, false)?);
        let again = super::apply(context, &module, pass)?;
        assert_eq!(again, PassReport { pass, created: 0, changed: 0, erased: 0 }, "a second run of {}", pass.name());
        assert_eq!(brief(&print(&module, false)?), rewritten);
        Ok(format!("{text}\n--- created {created}, changed {changed}, erased {erased} ---\n{rewritten}"))
    })
    .unwrap_or_else(|failure| format!("{failure:?}"))
}

/// The ops of a printed module, one a line, without types and segment sizes.
pub fn brief(text: &str) -> String {
    let op = |line: &str| {
        let line = line.trim().replace("\"transformer.", "").replacen('"', "", 1);
        let line =
            line.split(" : (").next().unwrap_or_default().split(" : tensor").next().unwrap_or_default().to_owned();
        match line.split_once("operandSegmentSizes = ") {
            Some((head, tail)) => format!("{head}{}", tail.split_once(">, ").map_or(tail, |it| it.1)),
            None => line,
        }
    };
    let lines = text.lines().map(str::trim).filter(|it| it.starts_with('%') || it.starts_with("return"));
    lines.map(op).collect::<Vec<_>>().join("\n")
}

/// What a pass does to a module with this body: ops created, changed, erased.
pub fn counts(pass: Pass, body: &str) -> (usize, usize, usize) {
    match rewrite(&module(body), &[pass]).map(|it| it.1).as_deref() {
        Ok([PassReport { created, changed, erased, .. }]) => (*created, *changed, *erased),
        other => panic!("{other:?}"),
    }
}
