//! What plain code of the same precision computes: f32 but for what the arithmetic stores as less, one loop after another, sums from the first term to the
//! last, the functions of libm. It is the yardstick of gate V3 and knows nothing of the generated code.

use super::{
    bounds::{Arithmetic, Precision},
    coverage,
};
use kernelforge::{
    half,
    manifest::spec::{Activation, Dtype},
    plan::stage::{Factor, StageOp},
};
use std::borrow::Cow;

/// `rows` of the output of `op`, row after row, as they are stored. `inputs` in the order of the stage's inputs.
pub fn emulate(op: &StageOp, inputs: &[&[f32]], rows: &[usize], precision: Precision) -> Vec<f32> {
    let Precision { arithmetic, storage } = precision;
    let width = coverage::output_shape(op).1;
    // Who may take an operand for zero is held against code that does.
    let flushed = |it: &&[f32]| -> Cow<'_, [f32]> {
        let lost = |x: f32| arithmetic.flushed(storage, f64::from(x)) != 0.0;
        it.iter().map(|&x| if lost(x) { 0.0 } else { x }).collect()
    };
    let inputs: Vec<Cow<'_, [f32]>> = match arithmetic.flushes {
        true => inputs.iter().map(flushed).collect(),
        false => inputs.iter().map(|it| Cow::Borrowed(*it)).collect(),
    };
    let inputs: Vec<&[f32]> = inputs.iter().map(AsRef::as_ref).collect();
    let mut y: Vec<f32> = rows.iter().flat_map(|&row| one_row(op, &inputs, row, width, arithmetic)).collect();
    store(&mut y, storage);
    y
}

fn store(values: &mut [f32], dtype: Dtype) {
    if dtype != Dtype::F32 {
        values.iter_mut().for_each(|it| *it = half::nearest(dtype, *it));
    }
}

fn one_row(op: &StageOp, inputs: &[&[f32]], row: usize, width: usize, arithmetic: Arithmetic) -> Vec<f32> {
    let at = |input: usize, width: usize| &inputs[input][row * width..(row + 1) * width];
    match *op {
        StageOp::Matmul { n, k, bias, activation, residual, .. } => {
            let bias = bias.then(|| inputs[2]);
            let mut y = product(at(0, k), inputs[1], n);
            add(&mut y, bias);
            apply(&mut y, activation);
            add(&mut y, residual.then(|| at(inputs.len() - 1, n)));
            y
        }
        StageOp::Mlp { d_model, d_ff, activation, gated, bias, residual, .. } => {
            let mut operands = inputs[1..].iter().copied();
            let mut layer = |x: &[f32], n: usize| {
                let mut y = product(x, operands.next().unwrap_or_default(), n);
                add(&mut y, if bias { operands.next() } else { None });
                y
            };
            let x = at(0, d_model);
            let mut hidden = layer(x, d_ff);
            apply(&mut hidden, Some(activation));
            if gated {
                let up = layer(x, d_ff);
                hidden.iter_mut().zip(up).for_each(|(gate, up)| *gate *= up);
            }
            store(&mut hidden, arithmetic.hidden);
            let mut y = layer(&hidden, d_model);
            add(&mut y, residual.then(|| at(inputs.len() - 1, d_model)));
            y
        }
        StageOp::Attention { seq, heads, kv_heads, head_dim, causal, scale, .. } => {
            let first = row / seq * seq;
            let visible = if causal { row - first + 1 } else { seq };
            let (q, kv_width) = (at(0, heads * head_dim), kv_heads * head_dim);
            let mut y = Vec::with_capacity(width);
            for head in 0..heads {
                let column = head / (heads / kv_heads) * head_dim;
                let part = |input: usize, key: usize| {
                    let start = (first + key) * kv_width + column;
                    &inputs[input][start..start + head_dim]
                };
                let q = &q[head * head_dim..(head + 1) * head_dim];
                y.extend(attend(q, visible, scale as f32, arithmetic.probabilities, part));
            }
            y
        }
        StageOp::LayerNorm { eps, .. } => norm(at(0, width), inputs[1], Some(inputs[2]), eps as f32),
        StageOp::RmsNorm { eps, .. } => norm(at(0, width), inputs[1], None, eps as f32),
        StageOp::Rope { seq, head_dim, .. } => {
            let (half, mut y) = (head_dim / 2, at(0, width).to_vec());
            let tables = row % seq * half;
            for head in y.chunks_exact_mut(head_dim) {
                for i in 0..half {
                    let (c, s, p, q) = (inputs[1][tables + i], inputs[2][tables + i], head[i], head[i + half]);
                    (head[i], head[i + half]) = (p * c - q * s, p * s + q * c);
                }
            }
            y
        }
        StageOp::Activation { function, .. } => {
            let mut y = at(0, width).to_vec();
            apply(&mut y, Some(function));
            y
        }
        StageOp::Add { .. } => at(0, width).iter().zip(at(1, width)).map(|(a, b)| a + b).collect(),
        StageOp::Mul { .. } => at(0, width).iter().zip(at(1, width)).map(|(a, b)| a * b).collect(),
        StageOp::Scale { factor, .. } => {
            let factor = match factor {
                Factor::Value(value) => value as f32,
                Factor::InverseSqrt(value) => 1.0 / (value as f32).sqrt(),
            };
            at(0, width).iter().map(|x| x * factor).collect()
        }
    }
}

/// x w: every element is summed from the first term to the last. The loop over columns is inside, so that w is read in order.
fn product(x: &[f32], w: &[f32], n: usize) -> Vec<f32> {
    let mut y = vec![0.0; n];
    for (x, w) in x.iter().zip(w.chunks_exact(n)) {
        y.iter_mut().zip(w).for_each(|(y, w)| *y += x * w);
    }
    y
}

fn add(y: &mut [f32], other: Option<&[f32]>) {
    y.iter_mut().zip(other.unwrap_or_default()).for_each(|(y, it)| *y += it);
}

fn apply(y: &mut [f32], function: Option<Activation>) {
    if let Some(function) = function {
        y.iter_mut().for_each(|it| *it = activate(function, *it));
    }
}

fn attend<'a>(
    q: &[f32],
    visible: usize,
    scale: f32,
    weights: Dtype,
    part: impl Fn(usize, usize) -> &'a [f32],
) -> Vec<f32> {
    let score = |key: usize| scale * q.iter().zip(part(1, key)).map(|(q, k)| q * k).sum::<f32>();
    let mut p: Vec<f32> = (0..visible).map(score).collect();
    let max = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    p.iter_mut().for_each(|it| *it = (*it - max).exp());
    let total: f32 = p.iter().sum();
    store(&mut p, weights);
    let mut y = vec![0.0; q.len()];
    for (key, p) in p.iter().enumerate() {
        y.iter_mut().zip(part(2, key)).for_each(|(y, v)| *y += p / total * v);
    }
    y
}

/// Two passes: the variance of what is left after the mean is subtracted. Without a bias the mean is not subtracted (RMS
/// norm).
fn norm(x: &[f32], gain: &[f32], bias: Option<&[f32]>, eps: f32) -> Vec<f32> {
    let n = x.len() as f32;
    let mean = if bias.is_some() { x.iter().sum::<f32>() / n } else { 0.0 };
    let variance = x.iter().map(|it| (it - mean) * (it - mean)).sum::<f32>() / n;
    let rstd = 1.0 / (variance + eps).sqrt();
    let mut y: Vec<f32> = x.iter().zip(gain).map(|(x, gain)| (x - mean) * rstd * gain).collect();
    add(&mut y, bias);
    y
}

/// f(x) in f32, by the plain formulas and the libm of f32.
pub fn activate(function: Activation, x: f32) -> f32 {
    match function {
        Activation::Gelu => 0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => 0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x * x * x)).tanh()),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Relu => x.max(0.0),
    }
}
