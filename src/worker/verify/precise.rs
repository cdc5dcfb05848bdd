//! What a stage computes, in 192-bit arithmetic: the exact result as far as any f32 or f64 can tell. Far too slow for a gate;
//! tests hold the f64 references and the bounds against it.

use dashu_float::{FBig, round::mode::HalfEven};
use kernelforge::{
    manifest::spec::Activation,
    plan::stage::{Factor, StageOp},
};

pub type Big = FBig<HalfEven, 2>;

/// 192 bits are 58 decimal digits: what is left after the worst cancellation of two f32 products, and still more than f64.
const PRECISION: usize = 192;

/// The number itself. Results of arithmetic have the precision of their operands, so every operand is made here.
pub fn big(value: f64) -> Big {
    Big::try_from(value).expect("a finite number").with_precision(PRECISION).value()
}

/// Rounded to the nearest f32, once, subnormals included.
pub fn nearest(exact: &Big) -> f32 {
    exact.to_f32().value()
}

/// |value - exact|, itself rounded to f64.
pub fn distance(value: f64, exact: &Big) -> f64 {
    let difference = big(value) - exact;
    difference.to_f64().value().abs()
}

fn wide(data: &[f32]) -> Vec<Big> {
    data.iter().map(|&it| big(f64::from(it))).collect()
}

fn sum(terms: impl Iterator<Item = Big>) -> Big {
    terms.fold(big(0.0), |sum, it| sum + it)
}

/// 2 / sqrt(pi) exp(-z^2) sum_n 2^n z^(2n+1) / (1 3 5 ... (2n+1)): Abramowitz and Stegun, Handbook of Mathematical Functions,
/// 7.1.6 (DLMF 7.6.2). All its terms have one sign, so nothing cancels.
pub fn erf(z: &Big) -> Big {
    let (one, limit) = (big(1.0), big(12.0));
    // erfc(12) < 2^-212.
    if z.clone() >= limit {
        return one;
    }
    if z.clone() <= -limit {
        return -one;
    }
    let square = z * z;
    let twice = big(2.0) * &square;
    let (mut term, mut total, mut odd) = (z.clone(), z.clone(), 1.0);
    let least = big(2f64.powi(-(PRECISION as i32) - 8));
    while term.clone() * term.clone() > total.clone() * total.clone() * least.clone() * least.clone() {
        odd += 2.0;
        term = term * &twice / big(odd);
        total += &term;
    }
    let pi = Big::pi(PRECISION);
    big(2.0) / pi.sqrt() * (-square).exp() * total
}

/// Beyond +-100000 the result at the edge: 0 and infinity as far as any sum with f32 can tell.
fn exp(x: &Big) -> Big {
    x.clone().clamp(big(-1e5), big(1e5)).exp()
}

pub fn activation(function: Activation, x: &Big) -> Big {
    let (one, half) = (big(1.0), big(0.5));
    match function {
        Activation::Relu => x.clone().max(big(0.0)),
        Activation::Silu => x / (one + exp(&-x.clone())),
        Activation::Gelu => half.clone() * x * (one + erf(&(x * half.sqrt()))),
        // tanh(a) = 1 - 2 / (1 + exp(2a)).
        Activation::GeluTanh => {
            let cubic = big(44_715.0) / big(1e6) * x * x * x;
            let a = (big(2.0) / Big::pi(PRECISION)).sqrt() * (x + cubic);
            let tanh = one.clone() - big(2.0) / (one.clone() + exp(&(big(2.0) * a)));
            half * x * (one + tanh)
        }
    }
}

/// The whole output of `op`, row by row. `inputs` in the order of the stage's inputs.
pub fn evaluate(op: &StageOp, inputs: &[&[f32]]) -> Vec<Big> {
    let mut rest = inputs.iter().copied();
    let mut next = || rest.next().expect("an input for each operand");
    match *op {
        StageOp::Matmul { n, k, bias, activation: function, residual, .. } => {
            let (a, w) = (wide(next()), next());
            let mut y = layer(&a, w, bias.then(&mut next), k, n);
            if let Some(function) = function {
                y.iter_mut().for_each(|it| *it = activation(function, it));
            }
            plus(y, residual.then(next))
        }
        StageOp::Mlp { d_model, d_ff, activation: function, gated, bias, residual, .. } => {
            let x = wide(next());
            let first = next();
            let mut hidden = layer(&x, first, bias.then(&mut next), d_model, d_ff);
            hidden.iter_mut().for_each(|it| *it = activation(function, it));
            if gated {
                let up = next();
                let up = layer(&x, up, bias.then(&mut next), d_model, d_ff);
                hidden = hidden.iter().zip(&up).map(|(a, b)| a * b).collect();
            }
            let down = next();
            let y = layer(&hidden, down, bias.then(&mut next), d_ff, d_model);
            plus(y, residual.then(next))
        }
        StageOp::Attention { seq, heads, kv_heads, head_dim, causal, scale, .. } => {
            let shape = Heads { seq, heads, kv_heads, head_dim, causal };
            attention(shape, &big(scale), [wide(inputs[0]), wide(inputs[1]), wide(inputs[2])])
        }
        StageOp::LayerNorm { width, eps, .. } => norm(inputs, width, eps, true),
        StageOp::RmsNorm { width, eps, .. } => norm(inputs, width, eps, false),
        StageOp::Rope { seq, heads, head_dim, .. } => {
            let [x, cos, sin] = [wide(inputs[0]), wide(inputs[1]), wide(inputs[2])];
            let (half, mut y) = (head_dim / 2, x.clone());
            for (index, head) in x.chunks_exact(head_dim).enumerate() {
                let table = index / heads % seq * half;
                for i in 0..half {
                    let ((c, s), (p, q)) = ((&cos[table + i], &sin[table + i]), (&head[i], &head[half + i]));
                    y[index * head_dim + i] = p * c - q * s;
                    y[index * head_dim + half + i] = p * s + q * c;
                }
            }
            y
        }
        StageOp::Activation { function, .. } => wide(next()).iter().map(|it| activation(function, it)).collect(),
        StageOp::Add { .. } => plus(wide(next()), Some(next())),
        StageOp::Mul { .. } => wide(next()).iter().zip(wide(next())).map(|(a, b)| a * b).collect(),
        StageOp::Scale { factor, .. } => {
            let factor = match factor {
                Factor::Value(value) => big(value),
                Factor::InverseSqrt(value) => big(1.0) / big(value).sqrt(),
            };
            wide(next()).iter().map(|it| it * &factor).collect()
        }
    }
}

/// x w + b for every row of a [_, k].
fn layer(x: &[Big], w: &[f32], bias: Option<&[f32]>, k: usize, n: usize) -> Vec<Big> {
    let (w, bias) = (wide(w), bias.map(wide));
    let element = |row: &[Big], j: usize| {
        let dot = sum((0..k).map(|p| &row[p] * &w[p * n + j]));
        bias.as_ref().map_or_else(|| dot.clone(), |it| &dot + &it[j])
    };
    x.chunks_exact(k).flat_map(|row| (0..n).map(|j| element(row, j)).collect::<Vec<_>>()).collect()
}

fn plus(y: Vec<Big>, residual: Option<&[f32]>) -> Vec<Big> {
    match residual {
        Some(residual) => y.into_iter().zip(wide(residual)).map(|(a, b)| a + b).collect(),
        None => y,
    }
}

#[derive(Clone, Copy)]
struct Heads {
    seq: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    causal: bool,
}

fn attention(shape: Heads, scale: &Big, [q, k, v]: [Vec<Big>; 3]) -> Vec<Big> {
    let Heads { seq, heads, kv_heads, head_dim, causal } = shape;
    let mut out = Vec::with_capacity(q.len());
    for (index, query) in q.chunks_exact(head_dim).enumerate() {
        let (row, kv_head) = (index / heads, index % heads / (heads / kv_heads));
        let (first, visible) = (row / seq * seq, if causal { row % seq + 1 } else { seq });
        let at = |key: usize| ((first + key) * kv_heads + kv_head) * head_dim;
        let score = |key: usize| scale * sum((0..head_dim).map(|i| &query[i] * &k[at(key) + i]));
        let scores: Vec<Big> = (0..visible).map(score).collect();
        let max = scores.iter().max().expect("a visible key").clone();
        let raised: Vec<Big> = scores.iter().map(|it| exp(&(it - &max))).collect();
        let total = sum(raised.iter().cloned());
        out.extend((0..head_dim).map(|i| sum((0..visible).map(|key| &raised[key] * &v[at(key) + i])) / &total));
    }
    out
}

fn norm(inputs: &[&[f32]], width: usize, eps: f64, centred: bool) -> Vec<Big> {
    let (x, gain, n) = (wide(inputs[0]), wide(inputs[1]), big(width as f64));
    let bias = inputs.get(2).map(|it| wide(it));
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(width) {
        let mean = if centred { sum(row.iter().cloned()) / &n } else { big(0.0) };
        let deviations: Vec<Big> = row.iter().map(|it| it - &mean).collect();
        let variance = sum(deviations.iter().map(|it| it * it)) / &n;
        let deviation = (variance + big(eps)).sqrt();
        for (i, d) in deviations.iter().enumerate() {
            let y = d / &deviation * &gain[i];
            out.push(bias.as_ref().map_or_else(|| y.clone(), |it| &y + &it[i]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digits(text: &str) -> Big {
        let (whole, fraction) = text.split_once('.').expect("a decimal point");
        let shift = (0..fraction.len()).fold(big(1.0), |it, _| it * big(10.0));
        let number = format!("{whole}{fraction}");
        let number = number.bytes().filter(u8::is_ascii_digit);
        let size = number.fold(big(0.0), |it, digit| it * big(10.0) + big(f64::from(digit - b'0'))) / shift;
        if text.starts_with('-') { -size } else { size }
    }

    /// Published digits: OEIS A001113 (e), A002161 (sqrt(pi)); erf from Abramowitz and Stegun's table 7.1 and DLMF 7.
    #[test]
    fn functions_have_their_published_digits() {
        let close = |value: Big, text: &str, digits_given: i32| {
            let error = (value - digits(text)).to_f64().value().abs();
            assert!(error < 10f64.powi(-digits_given), "{text}: off by {error:e}");
        };
        close(big(1.0).exp(), "2.71828182845904523536028747135266249775724709369995", 49);
        close(Big::pi(PRECISION).sqrt(), "1.77245385090551602729816748334114518279754945612238", 49);
        close(erf(&big(0.5)), "0.5204998778130465", 15);
        close(erf(&big(1.0)), "0.8427007929497148693412206350826092592960669979663", 48);
        close(erf(&big(-2.0)), "-0.9953222650189527", 15);
    }

    /// erf is odd, rises to 1, and its derivative is 2 / sqrt(pi) exp(-z^2): a check that does not depend on the series.
    #[test]
    fn the_series_of_erf_has_the_right_derivative_and_limit() {
        let h = 2f64.powi(-60);
        for z in [0.1, 0.9, 2.5, 5.0, 7.0] {
            let slope = (erf(&big(z)) - erf(&(big(z) - big(h)))) / big(h);
            let expected = big(2.0) / Big::pi(PRECISION).sqrt() * (-(big(z) * big(z))).exp();
            let relative = ((slope - &expected) / expected).to_f64().value().abs();
            assert!(relative < 1e-14, "z = {z}: {relative:e}");
            assert_eq!(erf(&big(-z)), -erf(&big(z)));
        }
        assert!(distance(1.0, &erf(&big(11.9))) < 1e-50 && erf(&big(50.0)) == big(1.0));
    }

    #[test]
    fn activations_agree_with_each_other() {
        // x sigmoid(1.702 x) is within 0.0203 of GELU (Hendrycks and Gimpel 2016); the tanh form within 5e-4.
        for x in (-60..60).map(|it| f64::from(it) / 10.0) {
            let gelu = activation(Activation::Gelu, &big(x));
            let tanh = activation(Activation::GeluTanh, &big(x));
            let silu = activation(Activation::Silu, &(big(x) * big(1.702))) / big(1.702);
            assert!(distance(0.0, &(gelu.clone() - tanh)) < 5e-4, "{x}");
            assert!(distance(0.0, &(gelu - silu)) < 0.0204, "{x}");
        }
    }
}
