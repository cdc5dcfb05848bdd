//! What a stage computes, in f64, from the inputs it is given; and beside it, when asked, how far a correct kernel may
//! be away. Any subset of the output's rows can be asked for, because no stage needs another row's output.
//!
//! Matrix products go through ndarray's f64 `dot`; a weight matrix is widened a panel of columns at a time, so that a
//! weight of 500 MB never exists as 1 GB.

use super::{
    bounds::{self, Arithmetic, Precision},
    functions::activation,
};
use kernelforge::{
    half,
    manifest::spec::{Activation, Dtype},
    plan::stage::{Factor, StageOp},
};
use ndarray::{Array1, Array2, ArrayView1, Axis, Dim, Zip, linalg::general_mat_mul, s};
use rayon::prelude::*;
use std::ops::Range;

/// A tensor that a stage reads: the candidate's own f32, or the f64 of an evaluation that never rounds to f32.
#[derive(Debug, Clone, Copy)]
pub enum Operand<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
}

impl Operand<'_> {
    fn copy(self, range: Range<usize>, to: &mut Vec<f64>) {
        match self {
            Self::F32(data) => to.extend(data[range].iter().map(|&it| f64::from(it))),
            Self::F64(data) => to.extend_from_slice(&data[range]),
        }
    }

    /// The part of a [_, width] matrix where `rows` and `columns` cross.
    fn part(self, width: usize, rows: impl ExactSizeIterator<Item = usize>, columns: Range<usize>) -> Array2<f64> {
        let shape = (rows.len(), columns.len());
        let mut data = Vec::with_capacity(shape.0 * shape.1);
        rows.for_each(|row| self.copy(row * width + columns.start..row * width + columns.end, &mut data));
        dense(shape, data)
    }

    pub fn rows(self, width: usize, rows: &[usize]) -> Array2<f64> {
        self.part(width, rows.iter().copied(), 0..width)
    }

    fn vector(self, len: usize) -> Array1<f64> {
        let mut data = Vec::with_capacity(len);
        self.copy(0..len, &mut data);
        Array1::from_vec(data)
    }
}

fn dense(shape: (usize, usize), data: Vec<f64>) -> Array2<f64> {
    // Callers fill shape.0 * shape.1 elements by construction; an empty result would fail every comparison loudly.
    Array2::from_shape_vec(shape, data).unwrap_or_default()
}

/// How much is evaluated beside the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    Value,
    /// The bound for any order of operations of the precision.
    Bound,
    /// The bound where every sum of products is exact by the choice of inputs: what inexact functions add, and what is
    /// computed from that, through weights that select (one term in a sum, so that the sum itself rounds nothing). Zero for
    /// stages without an inexact function, and for norms of rows of one value; of other rows layer norm has an exact sum and
    /// a mean that is off by one division. Where the result's type cannot hold an exact result, that is rounded to it.
    ExactSums,
}

impl Detail {
    /// The error of one rounding, or of a product, that exact sums do not have.
    fn unless_exact(self, error: impl FnOnce() -> f64) -> f64 {
        if self == Self::Bound { error() } else { 0.0 }
    }
}

/// The rows of a stage's output that were asked for, in that order.
#[derive(Debug, Clone)]
pub struct Reference {
    pub value: Array2<f64>,
    /// Element by element; all zero when only the value was asked for.
    pub bound: Array2<f64>,
}

/// The values of `rows` of the output of `op`, never rounded.
pub fn value(op: &StageOp, inputs: &[Operand], rows: &[usize]) -> Array2<f64> {
    evaluate(op, inputs, rows, Detail::Value, Precision::cpu(Dtype::F32)).value
}

/// Evaluates `rows` of the output of `op`. `inputs` in the order of the stage's inputs.
pub fn evaluate(op: &StageOp, inputs: &[Operand], rows: &[usize], detail: Detail, precision: Precision) -> Reference {
    computed(op, inputs, rows, detail, precision).stored(detail, precision)
}

/// [`evaluate`] of a result that is still in the registers.
fn computed(op: &StageOp, inputs: &[Operand], rows: &[usize], detail: Detail, precision: Precision) -> Reference {
    let Precision { arithmetic: it, storage } = precision;
    let given = |input: Operand, width: usize| Reference::given(input.rows(width, rows), detail, precision);
    match *op {
        StageOp::Matmul { n, k, bias, activation, residual, .. } => {
            let bias = bias.then(|| inputs[2]);
            let layer = Layer { w: inputs[1], bias, k, n };
            let linear = layer.apply(&given(inputs[0], k), detail, precision);
            let done = linear.activated(activation, detail, it);
            done.plus(residual.then(|| given(inputs[inputs.len() - 1], n)), detail, it)
        }
        StageOp::Mlp { d_model, d_ff, activation, gated, bias, residual, .. } => {
            let mut layers = inputs[1..].iter().copied();
            let mut next = |k, n| Layer {
                w: layers.next().unwrap_or(Operand::F64(&[])),
                bias: if bias { layers.next() } else { None },
                k,
                n,
            };
            let x = given(inputs[0], d_model);
            let mut linear = |k, n, x: &Reference| next(k, n).apply(x, detail, precision);
            let gate = gated.then(|| linear(d_model, d_ff, &x).activated(Some(activation), detail, it));
            let up = linear(d_model, d_ff, &x);
            let hidden = match gate {
                // Whole numbers of 12 bits have sums that are exact, and products of sums that are not.
                Some(gate) => gate.times(&up, if detail == Detail::ExactSums { Detail::Bound } else { detail }, it),
                None => up.activated(Some(activation), detail, it),
            };
            // Selected and added to later, so an exact one does not stay exact where it is stored.
            let hidden = hidden.kept(detail, Precision { storage: it.hidden, ..precision });
            let down = linear(d_ff, d_model, &hidden);
            down.plus(residual.then(|| given(inputs[inputs.len() - 1], d_model)), detail, it)
        }
        StageOp::Attention { seq, heads, kv_heads, head_dim, causal, scale, .. } => {
            let shape = AttentionShape { seq, heads, kv_heads, head_dim, causal, scale };
            attention(shape, inputs, rows, detail, precision)
        }
        StageOp::LayerNorm { width, eps, .. } => {
            let exact = detail == Detail::ExactSums;
            norm(inputs, width, rows, detail, storage, |row| bounds::NormRow::layer_norm(it, storage, row, eps, exact))
        }
        StageOp::RmsNorm { width, eps, .. } => {
            norm(inputs, width, rows, detail, storage, |row| bounds::NormRow::rms_norm(it, storage, row, eps))
        }
        StageOp::Rope { seq, heads, head_dim, .. } => {
            let shape = RopeShape { seq, heads, head_dim };
            rope(shape, inputs, rows, detail, precision)
        }
        StageOp::Activation { width, function, .. } => given(inputs[0], width).activated(Some(function), detail, it),
        StageOp::Add { width, .. } => given(inputs[0], width).plus(Some(given(inputs[1], width)), detail, it),
        StageOp::Mul { width, .. } => given(inputs[0], width).times(&given(inputs[1], width), detail, it),
        StageOp::Scale { width, factor, .. } => {
            let (mut y, evaluated) = (given(inputs[0], width), matches!(factor, Factor::InverseSqrt(_)));
            Zip::from(&mut y.value).and(&mut y.bound).for_each(|value, bound| {
                *value *= factor.value();
                *bound = detail.unless_exact(|| it.scaled(*bound * factor.value().abs(), *value, evaluated));
            });
            y
        }
    }
}

impl Reference {
    /// Given values: no error.
    fn exact(value: Array2<f64>) -> Self {
        let bound = Array2::zeros(value.raw_dim());
        Self { value, bound }
    }

    /// Operands as they are stored: no error, but where they may be taken for zero.
    fn given(value: Array2<f64>, detail: Detail, Precision { arithmetic, storage }: Precision) -> Self {
        let mut given = Self::exact(value);
        if detail == Detail::Bound && arithmetic.flushes {
            Zip::from(&mut given.bound).and(&given.value).for_each(|bound, &x| *bound = arithmetic.flushed(storage, x));
        }
        given
    }

    /// The results once they are stored.
    fn stored(mut self, detail: Detail, Precision { arithmetic, storage }: Precision) -> Self {
        if detail == Detail::Value || storage == Dtype::F32 {
            return self;
        }
        Zip::from(&mut self.value).and(&mut self.bound).for_each(|value, bound| {
            let nearest = nearest(storage, *value);
            if detail == Detail::ExactSums && *bound == 0.0 && (nearest == *value || arithmetic.rounding == 1.0) {
                *value = nearest;
            } else {
                *bound = arithmetic.stored(storage, *bound, *value);
            }
        });
        self
    }

    /// Results that are stored and read again: never a rounded value, which what follows may turn into another.
    fn kept(mut self, detail: Detail, Precision { arithmetic, storage }: Precision) -> Self {
        if detail != Detail::Value && storage != Dtype::F32 {
            Zip::from(&mut self.bound)
                .and(&self.value)
                .for_each(|bound, &h| *bound = arithmetic.stored(storage, *bound, h));
        }
        self
    }

    fn activated(mut self, function: Option<Activation>, detail: Detail, arithmetic: Arithmetic) -> Self {
        let Some(function) = function else { return self };
        Zip::from(&mut self.value).and(&mut self.bound).for_each(|value, bound| {
            let h = *value;
            *value = activation(function, h);
            if detail != Detail::Value {
                *bound = arithmetic.activation(function, h, *bound, *value);
            }
        });
        self
    }

    /// Whether the next operation rounds: sums of exact numbers do not where inputs were chosen so.
    fn rounds(&self, detail: Detail) -> bool {
        match detail {
            Detail::Value => false,
            Detail::Bound => true,
            Detail::ExactSums => self.bound.iter().any(|&it| it != 0.0),
        }
    }

    fn plus(mut self, residual: Option<Self>, detail: Detail, arithmetic: Arithmetic) -> Self {
        let Some(residual) = residual else { return self };
        self.value += &residual.value;
        if self.rounds(detail) {
            self.bound += &residual.bound;
            Zip::from(&mut self.bound).and(&self.value).for_each(|bound, &y| *bound = arithmetic.sum(*bound, y));
        }
        self
    }

    fn times(mut self, other: &Self, detail: Detail, arithmetic: Arithmetic) -> Self {
        Zip::from(&mut self.value).and(&mut self.bound).and(&other.value).and(&other.bound).for_each(
            |value, bound, &g, &error_g| {
                let a = *value;
                *bound = detail.unless_exact(|| arithmetic.factors(a, *bound, g, error_g));
                *value = a * g;
            },
        );
        self
    }
}

/// The nearest number of the type; infinite beyond its range.
fn nearest(storage: Dtype, value: f64) -> f64 {
    match storage {
        Dtype::F32 => f64::from(value as f32),
        // By way of f32 only where that holds the value: else the first rounding could decide a tie of the second.
        Dtype::F16 | Dtype::Bf16 if f64::from(value as f32) == value => f64::from(half::nearest(storage, value as f32)),
        Dtype::F16 | Dtype::Bf16 => {
            let (low, high) = (half::nearest(storage, (value as f32).next_down()), (value as f32).next_up());
            let (low, high) = (f64::from(low), f64::from(half::nearest(storage, high)));
            if (value - low).abs() <= (high - value).abs() { low } else { high }
        }
    }
}

/// x w + b.
struct Layer<'a> {
    w: Operand<'a>,
    bias: Option<Operand<'a>>,
    k: usize,
    n: usize,
}

/// Columns of a weight matrix that are widened at a time: 16 MB of them. Narrow panels cost: each packs x again, with 128
/// columns a sixth of the verifier's time.
fn panel(k: usize) -> usize {
    ((1 << 21) / k.max(1)).clamp(64, 512)
}

impl Layer<'_> {
    /// The product of x, which has errors of its own: bound E_x |w| + gamma_k (|x| + E_x) |w| + u |y|, then the bias.
    fn apply(&self, x: &Reference, detail: Detail, Precision { arithmetic: it, storage }: Precision) -> Reference {
        let rows = x.value.nrows();
        let mut value = Array2::zeros((rows, self.n));
        let mut bound = Array2::zeros((rows, self.n));
        // Multiplied by |w|: |x| alone where x is exact, so that `bounds::product` sees the plain magnitude.
        let exact = x.bound.iter().all(|&it| it == 0.0);
        let weight = match (detail, exact) {
            (Detail::Value, _) | (Detail::ExactSums, true) => None,
            (Detail::Bound, true) => Some(x.value.mapv(f64::abs)),
            (Detail::Bound, false) => {
                Some(Zip::from(&x.value).and(&x.bound).map_collect(|&x, &e| it.weight_error(self.k, x.abs(), e)))
            }
            (Detail::ExactSums, false) => Some(x.bound.clone()),
        };
        let bias = self.bias.map(|bias| bias.vector(self.n));
        let flushes = detail == Detail::Bound && it.flushes;
        let panel = panel(self.k);
        let panels: Vec<_> = value
            .axis_chunks_iter_mut(Axis(1), panel)
            .zip(bound.axis_chunks_iter_mut(Axis(1), panel))
            .enumerate()
            .collect();
        panels.into_par_iter().for_each(|(index, (mut value, mut bound))| {
            let columns = index * panel..index * panel + value.ncols();
            let mut w = self.w.part(self.n, 0..self.k, columns.clone());
            general_mat_mul(1.0, &x.value, &w, 0.0, &mut value);
            if let Some(weight) = &weight {
                let lost = flushes.then(|| w.mapv(|w| it.flushed(storage, w)));
                let flushed = lost.filter(|it| it.iter().any(|&lost| lost != 0.0)).map(|lost| {
                    let mut carried = Array2::zeros(bound.raw_dim());
                    let size = Zip::from(&x.value).and(&x.bound).map_collect(|x, e| x.abs() + e);
                    general_mat_mul(1.0, &size, &lost, 0.0, &mut carried);
                    carried
                });
                w.mapv_inplace(f64::abs);
                general_mat_mul(1.0, weight, &w, 0.0, &mut bound);
                Zip::from(&mut bound).and(&value).for_each(|bound, &c| {
                    *bound = match exact {
                        true => it.product(self.k, *bound, c),
                        false => it.rounded(*bound, c) + self.k as f64 * bounds::ETA,
                    };
                });
                if let Some(flushed) = flushed {
                    bound += &flushed;
                }
            }
            if let Some(bias) = &bias {
                value += &bias.slice(s![columns]);
                if weight.is_some() {
                    let bias = bias.slice(s![index * panel..index * panel + value.ncols()]);
                    Zip::from(&mut bound).and(&value).and_broadcast(&bias).for_each(|bound, &h, &b| {
                        *bound = it.sum(*bound + if flushes { it.flushed(storage, b) } else { 0.0 }, h);
                    });
                }
            }
        });
        Reference { value, bound }
    }
}

#[derive(Clone, Copy)]
struct AttentionShape {
    seq: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    causal: bool,
    scale: f64,
}

/// softmax(scale q k^T + mask) v, head by head: four f64 products where the value alone needs two.
fn attention(
    shape: AttentionShape,
    inputs: &[Operand],
    rows: &[usize],
    detail: Detail,
    precision: Precision,
) -> Reference {
    let Precision { arithmetic: it, storage } = precision;
    let AttentionShape { seq, heads, kv_heads, head_dim, .. } = shape;
    let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
    let mut out = Reference::exact(Array2::zeros((rows.len(), width)));
    let heads_out: Vec<_> = out
        .value
        .axis_chunks_iter_mut(Axis(1), head_dim)
        .zip(out.bound.axis_chunks_iter_mut(Axis(1), head_dim))
        .enumerate()
        .collect();
    heads_out.into_par_iter().for_each(|(head, (mut value, mut bound))| {
        let kv_head = head / (heads / kv_heads);
        let (columns, kv_columns) = (head * head_dim, kv_head * head_dim);
        for batch in batches(rows, seq) {
            let wanted = &rows[batch.clone()];
            let first = wanted[0] / seq * seq;
            let q = inputs[0].part(width, wanted.iter().copied(), columns..columns + head_dim);
            let k = inputs[1].part(kv_width, first..first + seq, kv_columns..kv_columns + head_dim);
            let v = inputs[2].part(kv_width, first..first + seq, kv_columns..kv_columns + head_dim);
            let visible: Vec<usize> =
                wanted.iter().map(|row| if shape.causal { row - first + 1 } else { seq }).collect();
            let (p, error) = probabilities(shape, &q, &k, &visible, detail, precision);
            let here = s![batch, ..];
            general_mat_mul(1.0, &p, &v, 0.0, &mut value.slice_mut(here));
            if detail == Detail::Bound {
                general_mat_mul(1.0, &error, &v.mapv(f64::abs), 0.0, &mut bound.slice_mut(here));
                if it.flushes {
                    let flushed = v.mapv(|v| it.flushed(storage, v));
                    general_mat_mul(1.0, &(p + error), &flushed, 1.0, &mut bound.slice_mut(here));
                }
            }
        }
    });
    if detail == Detail::Bound {
        Zip::from(&mut out.bound).and(&out.value).for_each(|bound, &o| *bound = it.weighted(seq, *bound, o));
    }
    out
}

/// The probabilities, and what multiplies |v| in the bound; 0 where masked. Row i sees the first `visible[i]` keys.
fn probabilities(
    shape: AttentionShape,
    q: &Array2<f64>,
    k: &Array2<f64>,
    visible: &[usize],
    detail: Detail,
    Precision { arithmetic: it, storage }: Precision,
) -> (Array2<f64>, Array2<f64>) {
    // Not `dot`, whose result is column-major where both operands may be read so (heads of one column): rows are slices here.
    let mut p = Array2::zeros((q.nrows(), k.nrows()));
    let mut error = Array2::zeros(p.raw_dim());
    general_mat_mul(shape.scale, q, &k.t(), 0.0, &mut p);
    if detail == Detail::Bound {
        general_mat_mul(1.0, &q.mapv(f64::abs), &k.mapv(f64::abs).t(), 0.0, &mut error);
    }
    let mut flushed = Array2::zeros(if it.flushes { p.raw_dim() } else { Dim([0, 0]) });
    if it.flushes && detail == Detail::Bound {
        let (lost_q, lost_k) = (q.mapv(|q| it.flushed(storage, q)), k.mapv(|k| it.flushed(storage, k)));
        general_mat_mul(shape.scale.abs(), &lost_q, &k.mapv(f64::abs).t(), 0.0, &mut flushed);
        general_mat_mul(shape.scale.abs(), &q.mapv(f64::abs), &lost_k.t(), 1.0, &mut flushed);
    }
    for (row, ((mut p, mut error), &keys)) in p.rows_mut().into_iter().zip(error.rows_mut()).zip(visible).enumerate() {
        p.slice_mut(s![keys..]).fill(0.0);
        error.slice_mut(s![keys..]).fill(0.0);
        let (Some(p), Some(error)) = (p.as_slice_mut(), error.as_slice_mut()) else { continue };
        let (p, error) = (&mut p[..keys], &mut error[..keys]);
        for (error, s) in error.iter_mut().zip(p.iter()) {
            *error = it.score(shape.head_dim, shape.scale, *error, *s);
        }
        if it.flushes {
            error.iter_mut().zip(flushed.row(row)).for_each(|(error, lost)| *error += lost);
        }
        it.softmax(p, error);
        for (error, p) in error.iter_mut().zip(p) {
            *error = it.weight_error(keys, *p, *error);
        }
    }
    (p, error)
}

/// Ranges of `rows` that lie in one sequence.
fn batches(rows: &[usize], seq: usize) -> Vec<Range<usize>> {
    let mut start = 0;
    let groups = rows.chunk_by(|a, b| a / seq == b / seq);
    groups
        .map(|group| {
            start += group.len();
            start - group.len()..start
        })
        .collect()
}

/// Both norms: x, gain, and the bias that only layer norm has.
fn norm(
    inputs: &[Operand],
    width: usize,
    rows: &[usize],
    detail: Detail,
    storage: Dtype,
    measure: impl Fn(&[f64]) -> bounds::NormRow,
) -> Reference {
    let gain = inputs[1].vector(width);
    let bias = inputs.get(2).map_or_else(|| Array1::zeros(width), |it| it.vector(width));
    let mut out = Reference::exact(inputs[0].rows(width, rows));
    for (mut value, mut bound) in out.value.rows_mut().into_iter().zip(out.bound.rows_mut()) {
        let given = value.to_vec();
        let row = measure(&given);
        // No deviation: the result is the bias, whatever is computed in which order.
        let constant = given.iter().all(|x| *x == given[0]);
        for (((value, bound), &gain), &bias) in value.iter_mut().zip(bound.iter_mut()).zip(&gain).zip(&bias) {
            let (y, error) = row.element(storage, *value, gain, bias);
            *value = y;
            *bound = match detail {
                Detail::Value => 0.0,
                Detail::ExactSums if constant => 0.0,
                Detail::Bound | Detail::ExactSums => error,
            };
        }
    }
    out
}

#[derive(Clone, Copy)]
struct RopeShape {
    seq: usize,
    heads: usize,
    head_dim: usize,
}

fn rope(shape: RopeShape, inputs: &[Operand], rows: &[usize], detail: Detail, precision: Precision) -> Reference {
    let RopeShape { seq, heads, head_dim } = shape;
    let (half, it) = (head_dim / 2, precision.arithmetic);
    let lost = |x: f64| it.flushed(precision.storage, x);
    let mut out = Reference::exact(inputs[0].rows(heads * head_dim, rows));
    let positions: Vec<usize> = rows.iter().map(|row| row % seq).collect();
    let (cos, sin) = (inputs[1].rows(half, &positions), inputs[2].rows(half, &positions));
    for (index, (mut value, mut bound)) in out.value.rows_mut().into_iter().zip(out.bound.rows_mut()).enumerate() {
        let (cos, sin): (ArrayView1<f64>, ArrayView1<f64>) = (cos.row(index), sin.row(index));
        for head in 0..heads {
            for i in 0..half {
                let (low, high) = (head * head_dim + i, head * head_dim + half + i);
                let (p, q, c, s) = (value[low], value[high], cos[i], sin[i]);
                value[low] = p * c - q * s;
                value[high] = p * s + q * c;
                let flushed = (lost(p) + lost(q)) * c.abs().max(s.abs()) + (lost(c) + lost(s)) * p.abs().max(q.abs());
                let error = |magnitude: f64, y: f64| detail.unless_exact(|| it.rotation(magnitude, y) + flushed);
                bound[low] = error((p * c).abs() + (q * s).abs(), value[low]);
                bound[high] = error((p * s).abs() + (q * c).abs(), value[high]);
            }
        }
    }
    out
}
