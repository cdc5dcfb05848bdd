//! A deliberately naive f32 interpreter of stages: what the gates' own tests judge. It can be made wrong in each way that a
//! kernel can be; right, it shows that the bounds raise no false alarm.

use super::{
    bounds::Arithmetic,
    candidate::{Candidate, Tensors},
    emulation::activate,
};
use kernelforge::{
    half,
    manifest::spec::{Activation, Dtype},
    plan::stage::{Role, StageGraph, StageOp, TensorId},
};

/// One way to be wrong. `stage` mistakes apply to every stage of their kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// K read as if it were stored [head_dim, seq].
    UntransposedKeys,
    AllNan,
    UniformAttention,
    NoScale,
    /// A query sees the key after it.
    MaskLate,
    /// A query does not see its own key, except the first.
    MaskEarly,
    NoGainAndBias,
    EpsTimesTen,
    VarianceOverNMinusOne,
    OnePassVariance,
    NoBias,
    ExtraGelu,
    NoActivation,
    ActivationTwice,
    NoResidual,
    FewerTerms,
    TanhForErf,
    /// Adds a value of the workspace that nothing wrote, times 0.
    StaleWorkspace,
    KvHeadByRemainder,
    InputModified,
    RotarySign,
    NoMaxSubtraction,
    LastRowSkipped,
    /// The product of half precision: 11 bits of each operand.
    HalfPrecision,
    /// The block entry alone returns something else.
    BlockDiffers,
    /// The output depends on what it held before.
    ReadsOutput,
    NoDownBias,
    GateAndUpSwapped,
    /// Off by one part in 2^20: within the bound of any product.
    ScaleSlightlyOff,
    /// The last row is computed in another order, and so is a little different.
    LastRowInAnotherOrder,
    /// The mean's quotient is corrected from the dividend instead of from a first quotient: exact where the sum has few bits,
    /// else off by n roundings. Not among [`Self::ALL`]: rows of less than a hundred elements do not show it.
    MeanFromDividend,
}

impl Wrong {
    pub const ALL: [Self; 30] = [
        Self::UntransposedKeys,
        Self::AllNan,
        Self::UniformAttention,
        Self::NoScale,
        Self::MaskLate,
        Self::MaskEarly,
        Self::NoGainAndBias,
        Self::EpsTimesTen,
        Self::VarianceOverNMinusOne,
        Self::OnePassVariance,
        Self::NoBias,
        Self::ExtraGelu,
        Self::NoActivation,
        Self::ActivationTwice,
        Self::NoResidual,
        Self::FewerTerms,
        Self::TanhForErf,
        Self::StaleWorkspace,
        Self::KvHeadByRemainder,
        Self::InputModified,
        Self::RotarySign,
        Self::NoMaxSubtraction,
        Self::LastRowSkipped,
        Self::HalfPrecision,
        Self::BlockDiffers,
        Self::ReadsOutput,
        Self::NoDownBias,
        Self::GateAndUpSwapped,
        Self::ScaleSlightlyOff,
        Self::LastRowInAnotherOrder,
    ];
}

/// How sums are taken: every correct kernel is some order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Forward,
    Backward,
    Pairwise,
    /// Sixteen accumulators, fused multiply-adds.
    Lanes,
    /// Forward, on hardware that makes every result below the normal range zero.
    Flushing,
}

impl Order {
    pub const ALL: [Self; 5] = [Self::Forward, Self::Backward, Self::Pairwise, Self::Lanes, Self::Flushing];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Pairwise => "pairwise",
            Self::Lanes => "lanes",
            Self::Flushing => "flushing",
        }
    }

    /// What becomes of the result of an operation.
    pub fn result(self, value: f32) -> f32 {
        if self == Self::Flushing && value.is_subnormal() { 0.0 } else { value }
    }

    /// The sum of `term(0..n)`, each a product of two numbers.
    pub fn dot(self, n: usize, term: &dyn Fn(usize) -> (f32, f32)) -> f32 {
        let product = |it: usize| {
            let (a, b) = term(it);
            a * b
        };
        match self {
            Self::Forward => (0..n).map(product).sum(),
            Self::Backward => (0..n).rev().map(product).sum(),
            Self::Flushing => (0..n).fold(0.0, |sum, it| self.result(sum + self.result(product(it)))),
            Self::Pairwise => Self::pairwise(0, n, &product),
            Self::Lanes => {
                let mut sums = [0f32; 16];
                for it in 0..n {
                    let (a, b) = term(it);
                    sums[it % 16] = a.mul_add(b, sums[it % 16]);
                }
                sums.iter().sum()
            }
        }
    }

    fn pairwise(from: usize, to: usize, product: &dyn Fn(usize) -> f32) -> f32 {
        match to - from {
            0 => 0.0,
            1 => product(from),
            n => Self::pairwise(from, from + n / 2, product) + Self::pairwise(from + n / 2, to, product),
        }
    }
}

pub struct Interpreter {
    graph: StageGraph,
    tensors: Vec<Vec<f32>>,
    workspace: Vec<f32>,
    order: Order,
    wrong: Option<Wrong>,
    arithmetic: Arithmetic,
}

impl Interpreter {
    pub fn new(graph: StageGraph, order: Order, wrong: Option<Wrong>) -> Self {
        let tensors = graph.tensors.iter().map(|it| vec![0.0; it.len()]).collect();
        Self { graph, tensors, workspace: vec![0.0; 16], order, wrong, arithmetic: Arithmetic::cpu() }
    }

    /// With softmax weights and hidden rows stored as this arithmetic says, operands below the normal range zero if it says so.
    pub fn with(self, arithmetic: Arithmetic) -> Self {
        Self { arithmetic, ..self }
    }

    /// A tensor as the operations see it.
    fn read(&self, id: TensorId) -> Vec<f32> {
        let dtype = self.graph.tensor(id).dtype;
        let lost = |x: f32| self.arithmetic.flushed(dtype, f64::from(x)) != 0.0;
        self.tensors[id.0].iter().map(|&it| if lost(it) { 0.0 } else { it }).collect()
    }

    /// Rounds a tensor to what it is stored as.
    fn round(&mut self, id: TensorId) {
        let dtype = self.graph.tensor(id).dtype;
        self.tensors[id.0].iter_mut().for_each(|it| *it = half::nearest(dtype, *it));
    }

    fn is(&self, wrong: Wrong) -> bool {
        self.wrong == Some(wrong)
    }

    fn activation(&self, function: Option<Activation>, h: f32) -> f32 {
        let Some(function) = function else {
            return if self.is(Wrong::ExtraGelu) { activate(Activation::Gelu, h) } else { h };
        };
        match (self.wrong, function) {
            (Some(Wrong::NoActivation), _) => h,
            (Some(Wrong::ActivationTwice), _) => activate(function, activate(function, h)),
            (Some(Wrong::TanhForErf), Activation::Gelu) => activate(Activation::GeluTanh, h),
            // A choice, not an operation that rounds.
            (_, Activation::Relu) => activate(function, h),
            _ => self.order.result(activate(function, h)),
        }
    }

    /// act(a w + b) for every row of a [_, k].
    fn linear(&self, a: &[f32], w: &[f32], bias: Option<&[f32]>, n: usize, f: Option<Option<Activation>>) -> Vec<f32> {
        let k = w.len() / n;
        let terms = if self.is(Wrong::FewerTerms) { k - 1 } else { k };
        let round = |it: f32| match self.is(Wrong::HalfPrecision) {
            true => f32::from_bits((it.to_bits() + 0x1000) & !0x1fff),
            false => it,
        };
        let mut out = Vec::with_capacity(a.len() / k * n);
        let rows = a.len() / k;
        for (index, row) in a.chunks_exact(k).enumerate() {
            let other = self.is(Wrong::LastRowInAnotherOrder) && index + 1 == rows;
            let order = if other { Order::Backward } else { self.order };
            for j in 0..n {
                let mut h = order.dot(terms, &|p| (round(row[p]), round(w[p * n + j])));
                if let (Some(bias), false) = (bias, self.is(Wrong::NoBias)) {
                    h = self.order.result(h + bias[j]);
                }
                out.push(match f {
                    Some(f) => self.activation(f, h),
                    None => h,
                });
            }
        }
        out
    }

    fn compute(&mut self, op: &StageOp, inputs: &[Vec<f32>]) -> Vec<f32> {
        match *op {
            StageOp::Matmul { n, bias, activation, residual, .. } => {
                let bias = bias.then(|| &inputs[2][..]);
                let out = self.linear(&inputs[0], &inputs[1], bias, n, Some(activation));
                self.plus(out, residual.then(|| &inputs[inputs.len() - 1]))
            }
            StageOp::Mlp { d_model, d_ff, activation, gated, bias, residual, .. } => {
                let mut rest = inputs[1..].iter();
                let mut next = || (rest.next().unwrap(), if bias { rest.next() } else { None });
                let mut layers: Vec<_> = (0..2 + usize::from(gated)).map(|_| next()).collect();
                if gated && self.is(Wrong::GateAndUpSwapped) {
                    layers.swap(0, 1);
                }
                let bias_of = |it: Option<&Vec<f32>>| it.cloned();
                let first = layers[0];
                let mut hidden =
                    self.linear(&inputs[0], first.0, bias_of(first.1).as_deref(), d_ff, Some(Some(activation)));
                if gated {
                    let up = self.linear(&inputs[0], layers[1].0, bias_of(layers[1].1).as_deref(), d_ff, None);
                    hidden.iter_mut().zip(up).for_each(|(a, g)| *a = self.order.result(*a * g));
                }
                hidden.iter_mut().for_each(|it| *it = half::nearest(self.arithmetic.hidden, *it));
                let down = layers[layers.len() - 1];
                let bias = if self.is(Wrong::NoDownBias) { None } else { bias_of(down.1) };
                let out = self.linear(&hidden, down.0, bias.as_deref(), d_model, None);
                self.plus(out, residual.then(|| &inputs[inputs.len() - 1]))
            }
            StageOp::Attention { .. } => self.attention(op, inputs),
            StageOp::LayerNorm { width, eps, .. } => self.norm(inputs, width, eps, true),
            StageOp::RmsNorm { width, eps, .. } => self.norm(inputs, width, eps, false),
            StageOp::Rope { seq, heads, head_dim, .. } => self.rope(inputs, seq, heads, head_dim),
            StageOp::Activation { function, .. } => {
                inputs[0].iter().map(|&x| self.activation(Some(function), x)).collect()
            }
            StageOp::Add { .. } => self.plus(inputs[0].clone(), Some(&inputs[1])),
            StageOp::Mul { .. } => inputs[0].iter().zip(&inputs[1]).map(|(a, b)| self.order.result(a * b)).collect(),
            StageOp::Scale { factor, .. } => {
                let factor = if self.is(Wrong::NoScale) { 1.0 } else { factor.value() as f32 };
                inputs[0].iter().map(|x| self.order.result(x * factor)).collect()
            }
        }
    }

    fn plus(&self, mut out: Vec<f32>, residual: Option<&Vec<f32>>) -> Vec<f32> {
        if let (Some(residual), false) = (residual, self.is(Wrong::NoResidual)) {
            out.iter_mut().zip(residual).for_each(|(y, r)| *y = self.order.result(*y + r));
        }
        out
    }

    fn norm(&self, inputs: &[Vec<f32>], width: usize, eps: f64, centred: bool) -> Vec<f32> {
        let n = width as f32;
        let eps = if self.is(Wrong::EpsTimesTen) { 10.0 * eps } else { eps } as f32;
        let mut out = Vec::new();
        let round = |it| self.order.result(it);
        for row in inputs[0].chunks_exact(width) {
            let sum = if centred { self.order.dot(width, &|i| (row[i], 1.0)) } else { 0.0 };
            let mean = match self.wrong {
                Some(Wrong::MeanFromDividend) => sum.mul_add(-n, sum).mul_add(1.0 / n, sum),
                _ => round(sum / n),
            };
            let deviation = |i: usize| if centred { round(row[i] - mean) } else { row[i] };
            let squares = self.order.dot(width, &|i| (deviation(i), deviation(i)));
            let variance = match self.wrong {
                Some(Wrong::OnePassVariance) if centred => {
                    (self.order.dot(width, &|i| (row[i], row[i])) / n - mean * mean).max(0.0)
                }
                Some(Wrong::VarianceOverNMinusOne) => squares / (n - 1.0),
                _ => round(squares / n),
            };
            let rstd = 1.0 / (variance + eps).sqrt();
            for i in 0..width {
                let y = round(deviation(i) * rstd);
                out.push(match (self.is(Wrong::NoGainAndBias), inputs.get(2)) {
                    (true, _) => y,
                    (false, Some(bias)) => round(round(y * inputs[1][i]) + bias[i]),
                    (false, None) => round(y * inputs[1][i]),
                });
            }
        }
        out
    }

    fn rope(&self, inputs: &[Vec<f32>], seq: usize, heads: usize, head_dim: usize) -> Vec<f32> {
        let (half, mut out) = (head_dim / 2, inputs[0].clone());
        let sign = if self.is(Wrong::RotarySign) { -1.0 } else { 1.0 };
        for (index, head) in out.chunks_exact_mut(head_dim).enumerate() {
            let position = index / heads % seq;
            for i in 0..half {
                let (c, s) = (inputs[1][position * half + i], sign * inputs[2][position * half + i]);
                let (p, q) = (head[i], head[i + half]);
                let round = |it| self.order.result(it);
                head[i] = round(round(p * c) - round(q * s));
                head[i + half] = round(round(p * s) + round(q * c));
            }
        }
        out
    }

    fn attention(&self, op: &StageOp, inputs: &[Vec<f32>]) -> Vec<f32> {
        let StageOp::Attention { batch, seq, heads, kv_heads, head_dim, causal, scale } = *op else {
            return Vec::new();
        };
        let scale = match self.wrong {
            Some(Wrong::NoScale) => 1.0,
            Some(Wrong::ScaleSlightlyOff) => scale as f32 * (1.0 + 2f32.powi(-20)),
            _ => scale as f32,
        };
        let round = |it| self.order.result(it);
        let mut out = vec![0.0; batch * seq * heads * head_dim];
        for row in 0..batch * seq {
            let (first, position) = (row / seq * seq, row % seq);
            for head in 0..heads {
                let kv = match self.is(Wrong::KvHeadByRemainder) {
                    true => head % kv_heads,
                    false => head / (heads / kv_heads),
                };
                let at = |row: usize, head: usize, heads: usize| (row * heads + head) * head_dim;
                let q = &inputs[0][at(row, head, heads)..][..head_dim];
                let key = |j: usize, i: usize| match self.is(Wrong::UntransposedKeys) {
                    // Element (i, j) of the [seq, head_dim] matrix where (j, i) is meant, wrapped into its range.
                    true => {
                        let flat = i * seq + j;
                        inputs[1][at(first + flat / head_dim % seq, kv, kv_heads) + flat % head_dim]
                    }
                    false => inputs[1][at(first + j, kv, kv_heads) + i],
                };
                let visible = match (causal, self.wrong) {
                    (true, Some(Wrong::MaskLate)) => (position + 2).min(seq),
                    (true, Some(Wrong::MaskEarly)) => position.max(1),
                    (true, _) => position + 1,
                    (false, _) => seq,
                };
                let mut p: Vec<f32> =
                    (0..visible).map(|j| round(scale * self.order.dot(head_dim, &|i| (q[i], key(j, i))))).collect();
                let max = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let max = if self.is(Wrong::NoMaxSubtraction) { 0.0 } else { max };
                let raised = |s: f32| if self.is(Wrong::UniformAttention) { 1.0 } else { round((s - max).exp()) };
                p.iter_mut().for_each(|s| *s = raised(*s));
                let total = self.order.dot(visible, &|j| (p[j], 1.0));
                p.iter_mut().for_each(|it| *it = half::nearest(self.arithmetic.probabilities, *it));
                for i in 0..head_dim {
                    let sum = self.order.dot(visible, &|j| (p[j], inputs[2][at(first + j, kv, kv_heads) + i]));
                    out[at(row, head, heads) + i] = round(sum / total);
                }
            }
        }
        out
    }
}

impl Tensors for Interpreter {
    fn graph(&self) -> &StageGraph {
        &self.graph
    }

    fn tensor(&self, id: TensorId) -> &[f32] {
        &self.tensors[id.0]
    }

    fn tensor_mut(&mut self, id: TensorId) -> &mut [f32] {
        &mut self.tensors[id.0]
    }
}

impl Candidate for Interpreter {
    fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    fn prepare(&mut self) {}

    fn stage(&mut self, index: usize) {
        let stage = self.graph.stages[index].clone();
        // What tests wrote may be no number of the tensor's type yet.
        stage.inputs.iter().for_each(|it| self.round(*it));
        let inputs: Vec<Vec<f32>> = stage.inputs.iter().map(|it| self.read(*it)).collect();
        let mut out = self.compute(&stage.op, &inputs);
        match self.wrong {
            Some(Wrong::AllNan) => out.fill(f32::NAN),
            Some(Wrong::StaleWorkspace) => out.iter_mut().for_each(|it| *it += self.workspace[0] * 1e-30),
            Some(Wrong::ReadsOutput) => {
                out.iter_mut().zip(&self.tensors[stage.output.0]).for_each(|(it, old)| *it += 0.0 * old)
            }
            Some(Wrong::LastRowSkipped) => {
                let width = *self.graph.tensor(stage.output).shape.last().unwrap();
                let start = out.len() - width;
                out[start..].copy_from_slice(&self.tensors[stage.output.0][start..]);
            }
            Some(Wrong::InputModified) => self.tensors[stage.inputs[0].0][0] *= 1.5,
            _ => {}
        }
        self.tensors[stage.output.0] = out;
        self.round(stage.output);
    }

    fn block(&mut self) {
        let kept = self.tensors.clone();
        (0..self.graph.stages.len()).for_each(|it| self.stage(it));
        for (index, kept) in kept.into_iter().enumerate() {
            if self.graph.tensors[index].role == Role::Value {
                self.tensors[index] = kept;
            }
        }
        if self.is(Wrong::BlockDiffers) {
            let (TensorId(output), _) = self.graph.with_role(Role::Output).next().unwrap();
            let last = self.tensors[output].len() - 1;
            self.tensors[output][last] *= 1.0 + f32::EPSILON;
        }
    }

    fn poison(&mut self, value: f32) {
        for (tensor, data) in self.graph.tensors.iter().zip(&mut self.tensors) {
            if matches!(tensor.role, Role::Value | Role::Output) {
                data.fill(if tensor.dtype == Dtype::F16 && value.is_finite() {
                    value.clamp(-2048.0, 2048.0)
                } else {
                    value
                });
            }
        }
        self.workspace.fill(value);
    }
}
