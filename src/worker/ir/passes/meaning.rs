//! Passes keep the meaning of a block: whatever passes run in whatever order, the stages compute the same numbers. The
//! evaluator here is f64 and as plain as the formulas of `StageOp`; its inputs are drawn from the tensors' names, so that
//! graphs of the same block see the same inputs.

use crate::ir::{
    apply,
    build::build,
    extract::extract,
    print,
    samples::{blocks, brief, origins},
    with_context,
};
use kernelforge::{
    manifest::spec::{Activation, BlockSpec, Pass},
    plan::stage::{Role, StageGraph, StageOp},
};
use proptest::prelude::*;

/// In [-1, 1), from the tensor's name and the element's index.
fn fill(name: &str, len: usize) -> Vec<f64> {
    let seed = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let element = |index: u64| {
        let mixed = (seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ (mixed >> 29)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len as u64).map(element).collect()
}

/// The block's output.
fn evaluate(graph: &StageGraph) -> Vec<f64> {
    let given = |role| matches!(role, Role::Input | Role::Weight);
    let mut values: Vec<Vec<f64>> =
        graph.tensors.iter().map(|it| if given(it.role) { fill(&it.name, it.len()) } else { Vec::new() }).collect();
    for stage in &graph.stages {
        let inputs: Vec<&[f64]> = stage.inputs.iter().map(|id| values[id.0].as_slice()).collect();
        let output = stage_output(&stage.op, &inputs);
        assert_eq!(output.len(), graph.tensor(stage.output).len(), "{}", stage.name);
        values[stage.output.0] = output;
    }
    let output = graph.with_role(Role::Output).next().map(|(id, _)| id.0);
    output.map(|id| values.swap_remove(id)).unwrap_or_default()
}

fn stage_output(op: &StageOp, inputs: &[&[f64]]) -> Vec<f64> {
    let mut inputs = inputs.iter().copied();
    let mut next = || inputs.next().expect("as many inputs as the op says");
    let zip =
        |a: &[f64], b: &[f64], f: fn(f64, f64) -> f64| a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect::<Vec<_>>();
    match *op {
        StageOp::Matmul { m, n, k, bias, activation, residual } => {
            let (a, w) = (next(), next());
            let y = linear(a, w, bias.then(&mut next), [m, n, k]);
            let y = activation.map_or(y.clone(), |function| y.iter().map(|&x| activate(function, x)).collect());
            if residual { zip(&y, next(), |a, b| a + b) } else { y }
        }
        StageOp::Attention { batch, seq, heads, kv_heads, head_dim, causal, scale } => {
            let sizes = Attention { seq, heads, kv_heads, head_dim, causal, scale };
            let (q, k, v) = (next(), next(), next());
            let per_sequence = |x: &[f64], index: usize| {
                let size = x.len() / batch;
                x[index * size..(index + 1) * size].to_vec()
            };
            (0..batch)
                .flat_map(|it| attention(&sizes, &per_sequence(q, it), &per_sequence(k, it), &per_sequence(v, it)))
                .collect()
        }
        StageOp::LayerNorm { width, eps, .. } => {
            let (x, gain, bias) = (next(), next(), next());
            rows(x, width, |row| {
                let mean = row.iter().sum::<f64>() / width as f64;
                let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                (0..width).map(|i| (row[i] - mean) / (variance + eps).sqrt() * gain[i] + bias[i]).collect()
            })
        }
        StageOp::RmsNorm { width, eps, .. } => {
            let (x, gain) = (next(), next());
            rows(x, width, |row| {
                let square = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
                (0..width).map(|i| row[i] / (square + eps).sqrt() * gain[i]).collect()
            })
        }
        StageOp::Rope { seq, heads, head_dim, .. } => {
            let (x, cos, sin) = (next(), next(), next());
            let half = head_dim / 2;
            let mut y = x.to_vec();
            for (head, values) in y.chunks_mut(head_dim).enumerate() {
                let position = head / heads % seq;
                for i in 0..half {
                    let (c, s) = (cos[position * half + i], sin[position * half + i]);
                    let (a, b) = (values[i], values[i + half]);
                    (values[i], values[i + half]) = (a * c - b * s, b * c + a * s);
                }
            }
            y
        }
        StageOp::Activation { function, .. } => next().iter().map(|&x| activate(function, x)).collect(),
        StageOp::Add { .. } => zip(next(), next(), |a, b| a + b),
        StageOp::Mul { .. } => zip(next(), next(), |a, b| a * b),
        StageOp::Scale { factor, .. } => next().iter().map(|x| x * factor.value()).collect(),
        StageOp::Mlp { rows: m, d_model, d_ff, activation, gated, bias, residual } => {
            let x = next();
            let wide = [m, d_ff, d_model];
            let gate = gated.then(|| linear(x, next(), bias.then(&mut next), wide));
            let up = linear(x, next(), bias.then(&mut next), wide);
            let activated = |x: &[f64]| x.iter().map(|&x| activate(activation, x)).collect::<Vec<_>>();
            let hidden = gate.map_or_else(|| activated(&up), |gate| zip(&activated(&gate), &up, |a, b| a * b));
            let y = linear(&hidden, next(), bias.then(&mut next), [m, d_model, d_ff]);
            if residual { zip(&y, next(), |a, b| a + b) } else { y }
        }
    }
}

fn rows(x: &[f64], width: usize, f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    x.chunks(width).flat_map(f).collect()
}

fn linear(a: &[f64], w: &[f64], bias: Option<&[f64]>, [m, n, k]: [usize; 3]) -> Vec<f64> {
    let element = |row: usize, column: usize| -> f64 {
        let product: f64 = (0..k).map(|i| a[row * k + i] * w[i * n + column]).sum();
        product + bias.map_or(0.0, |it| it[column])
    };
    (0..m).flat_map(|row| (0..n).map(move |column| (row, column))).map(|(row, column)| element(row, column)).collect()
}

fn activate(function: Activation, x: f64) -> f64 {
    match function {
        // Abramowitz and Stegun 7.1.26, good to 1.5e-7: enough to be told from the tanh form, and the same on both sides.
        Activation::Gelu => {
            let z = x.abs() / std::f64::consts::SQRT_2;
            let t = 1.0 / (1.0 + 0.327_591_1 * z);
            let terms = [0.254_829_592, -0.284_496_736, 1.421_413_741, -1.453_152_027, 1.061_405_429];
            let series = terms.iter().rev().fold(0.0, |sum, it| (sum + it) * t);
            0.5 * x * (1.0 + x.signum() * (1.0 - series * (-z * z).exp()))
        }
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Relu => x.max(0.0),
    }
}

struct Attention {
    seq: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    causal: bool,
    scale: f64,
}

/// One sequence.
fn attention(sizes: &Attention, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let Attention { seq, heads, kv_heads, head_dim, causal, scale } = *sizes;
    let at = |x: &[f64], heads: usize, row: usize, head: usize, i: usize| x[(row * heads + head) * head_dim + i];
    let mut y = vec![0.0; seq * heads * head_dim];
    for row in 0..seq {
        for head in 0..heads {
            let kv = head / (heads / kv_heads);
            let keys = if causal { row + 1 } else { seq };
            let score = |key| -> f64 {
                scale * (0..head_dim).map(|i| at(q, heads, row, head, i) * at(k, kv_heads, key, kv, i)).sum::<f64>()
            };
            let weights: Vec<f64> = (0..keys).map(|key| score(key).exp()).collect();
            let total: f64 = weights.iter().sum();
            for i in 0..head_dim {
                let sum: f64 = (0..keys).map(|key| weights[key] * at(v, kv_heads, key, kv, i)).sum();
                y[(row * heads + head) * head_dim + i] = sum / total;
            }
        }
    }
    y
}

/// Runs the passes and checks after each that its report adds up and that the block still computes `expected`.
fn check(name: &str, spec: &BlockSpec, passes: &[Pass]) {
    let result = with_context(|context| {
        let module = build(context, name, spec, &origins())?;
        let expected = evaluate(&extract(&module)?);
        assert!(expected.iter().all(|it| it.is_finite()) && expected.iter().any(|&it| it != 0.0));
        let mut count = brief(&print(&module, false)?).lines().count();
        for &pass in passes {
            let report = apply(context, &module, pass)?;
            let text = brief(&print(&module, false)?);
            assert_eq!(text.lines().count(), count + report.created - report.erased, "{name}: {passes:?}\n{text}");
            count = text.lines().count();
            let output = evaluate(&extract(&module)?);
            let far = |(a, b): (&f64, &f64)| (a - b).abs() > 1e-10 * a.abs().max(1.0);
            assert!(!expected.iter().zip(&output).any(far), "{name}: {} in {passes:?}\n{text}", pass.name());
        }
        Ok(())
    });
    assert_eq!(result, Ok(()), "{name}: {passes:?}");
}

#[test]
fn the_default_pipeline_keeps_the_meaning_of_every_block() {
    for (name, spec) in blocks() {
        check(name, &spec, &Pass::ALL);
    }
}

#[test]
fn the_evaluator_sees_a_change_of_meaning() {
    let graph = with_context(|context| {
        let module = build(context, "gpt2", &crate::ir::samples::gpt2(), &origins())?;
        extract(&module)
    });
    let Ok(graph) = graph else { panic!("{graph:?}") };
    let expected = evaluate(&graph);
    for stage in 0..graph.stages.len() {
        let mut wrong = graph.clone();
        match &mut wrong.stages[stage].op {
            StageOp::LayerNorm { eps, .. } => *eps *= 10.0,
            StageOp::Matmul { activation, .. } => *activation = Some(Activation::Gelu),
            StageOp::Attention { scale, .. } => *scale = 0.9,
            StageOp::Activation { function, .. } => *function = Activation::Gelu,
            StageOp::Scale { factor, .. } => *factor = kernelforge::plan::stage::Factor::Value(1.0),
            StageOp::Add { rows, width } => wrong.stages[stage].op = StageOp::Mul { rows: *rows, width: *width },
            other => panic!("{other:?}"),
        }
        assert_ne!(evaluate(&wrong), expected, "{}", graph.stages[stage].name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn any_passes_in_any_order_keep_the_meaning(
        block in 0..blocks().len(),
        passes in prop::collection::vec(prop::sample::select(Pass::ALL.to_vec()), 1..9),
    ) {
        let (name, spec) = &blocks()[block];
        check(name, spec, &passes);
    }
}
