//! How far a correct kernel may be from the exact result: pure functions of an [`Arithmetic`], evaluated in f64, element by element
//! or row by row. Every bound holds for any order of summation and with or without fused multiply-adds, so it says nothing about how
//! a kernel works, only what it may not get wrong. Nothing here knows a stage, a tensor or a regime.
//!
//! The model (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 2.2 and 2.8): each operation returns
//! (a op b)(1 + d) + e with |d| <= u and |e| <= eta. `reference` in what follows is the exact value, computed in f64, whose
//! own error (2^-29 times smaller) is not counted.

use kernelforge::manifest::spec::{Activation, Dtype};

/// Unit roundoff of f32.
pub const U: f64 = 1.0 / (1u64 << 24) as f64;

/// Absolute error of one operation whose result is below the normal range: the smallest normal number, so that a kernel that
/// flushes subnormals to zero is right too.
pub const ETA: f64 = f32::MIN_POSITIVE as f64;

/// What is known of the operations that a candidate computes with. All errors are relative ones unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arithmetic {
    /// Unit roundoff u of sums and products, which are of f32 whatever tensors are stored as.
    pub unit: f64,
    /// Error of a division.
    pub division: f64,
    /// Error of 1 / sqrt(x), by whatever operations.
    pub inverse_sqrt: f64,
    /// Error of exp(x) and how it grows with |x|.
    pub exp: f64,
    pub exp_slope: f64,
    /// Evaluation errors of the activations, in the order of [`Activation::ALL`].
    pub activations: [ActivationError; 4],
    /// How a result is rounded to its storage, in units of the storage's roundoff: 1 to nearest, 2 where the direction is
    /// not known.
    pub rounding: f64,
    /// How the weights of softmax are stored before they are multiplied by the values.
    pub probabilities: Dtype,
    /// How the hidden rows of a fused MLP are stored between its products.
    pub hidden: Dtype,
    /// Whether an operand or a stored result below the normal range may be taken for zero. Results of f32 below its normal range
    /// may always be: eta is in every bound.
    pub flushes: bool,
}

/// What a stage is computed with, and what its operands and its result are stored as. (Rotary tables may be stored wider, which a
/// bound for narrower ones covers.)
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Precision {
    pub arithmetic: Arithmetic,
    pub storage: Dtype,
}

impl Precision {
    /// Of a stage on the CPU.
    pub const fn cpu(storage: Dtype) -> Self {
        Self { arithmetic: Arithmetic::cpu(), storage }
    }
}

impl Arithmetic {
    /// The code that is generated for CPUs: IEEE 754 operations (x86 and AArch64 round divisions and square roots correctly), its
    /// own exponential, whose error is tested beside its implementation, softmax weights and hidden rows in f32.
    pub const fn cpu() -> Self {
        Self {
            unit: U,
            division: U,
            // A square root and a division.
            inverse_sqrt: 2.0 * U,
            exp: 4.0 * U,
            exp_slope: 0.0,
            activations: [
                ActivationError::of(Activation::Gelu),
                ActivationError::of(Activation::GeluTanh),
                ActivationError::of(Activation::Silu),
                ActivationError::of(Activation::Relu),
            ],
            rounding: 1.0,
            probabilities: Dtype::F32,
            hidden: Dtype::F32,
            flushes: false,
        }
    }

    /// As [`Self::cpu`], with products of bf16 by AVX512-BF16's `vdpbf16ps`. It adds the product of the odd elements to the sum, then
    /// that of the even ones, each by a fused multiply-add that rounds to nearest even whatever MXCSR says, takes subnormal operands
    /// and sums for zero and flushes subnormal results (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2,
    /// VDPBF16PS; held against the instruction in `pairs_tests`, on 12.8 million results of all magnitudes on a Xeon of the fourth
    /// generation without a difference). So a sum of k terms has k roundings as with any order, and nothing else changes but
    /// what is below the normal range. Hidden rows are stored as bf16 between the products of an MLP.
    pub const fn cpu_pairs() -> Self {
        Self { hidden: Dtype::Bf16, flushes: true, ..Self::cpu() }
    }

    /// Code that is generated for GPUs, with tensors stored as `storage`. WGSL promises less than IEEE 754 (section 15.7.4,
    /// floating-point accuracy: 2.5 units for a division, 2 for an inverse square root, 3 + 2 |x| for exp), so the templates
    /// compute these with polynomials and corrected quotients (`shaders/math.wgsl`, held against f64 there); subnormal numbers
    /// may be taken for zero anywhere. `cooperative`: products of whole subgroups, whose sums some devices round towards zero.
    pub const fn gpu(storage: Dtype, cooperative: bool) -> Self {
        Self {
            unit: if cooperative { 2.0 * U } else { U },
            division: 2.0 * U,
            inverse_sqrt: 4.0 * U,
            // Cooperative products take both operands in 16 bits.
            probabilities: if cooperative { storage } else { Dtype::F32 },
            hidden: storage,
            flushes: true,
            ..Self::cpu()
        }
    }

    fn activation_error(&self, function: Activation) -> ActivationError {
        let index = Activation::ALL.into_iter().position(|it| it == function);
        index.map_or(ActivationError::of(function), |it| self.activations[it])
    }

    /// gamma_n = n u / (1 - n u): the relative error of n roundings in a row (Higham, lemma 3.1); infinite once n u >= 1.
    pub fn gamma(&self, n: usize) -> f64 {
        let nu = n as f64 * self.unit;
        if nu < 1.0 { nu / (1.0 - nu) } else { f64::INFINITY }
    }

    /// Absolute error of taking x for zero, where it is below the normal range of its type and the candidate may do that. So
    /// a product a b changes by at most |a| |b| < 2^-126 |b| for f32 (WGSL, section 15.7.2, floating-point evaluation:
    /// implementations may flush inputs and outputs of any operation).
    pub fn flushed(&self, dtype: Dtype, x: f64) -> f64 {
        if self.flushes && x.abs() < f64::from(dtype.min_positive()) { x.abs() } else { 0.0 }
    }

    /// The error of a result that already has one and is now stored: u_s |computed| on top of it, and below the normal range of
    /// the type half a unit in its last place, or all of it where that may be taken for zero. Nothing for f32: it is what
    /// the result was computed in.
    pub fn stored(&self, dtype: Dtype, error: f64, reference: f64) -> f64 {
        match dtype {
            Dtype::F32 => error,
            Dtype::F16 | Dtype::Bf16 => {
                error + self.rounding * dtype.roundoff() * (reference.abs() + error) + self.least(dtype)
            }
        }
    }

    /// The absolute part of the error of storing.
    pub fn least(&self, dtype: Dtype) -> f64 {
        let smallest_normal = f64::from(dtype.min_positive());
        // Half the smallest subnormal number, 2^-25 for f16, 2^-134 for bf16.
        if self.flushes { smallest_normal } else { self.rounding * smallest_normal * dtype.roundoff() }
    }

    /// One more rounding of a result that already has an error: u |computed| on top of it.
    pub fn rounded(&self, error: f64, reference: f64) -> f64 {
        error + self.unit * (reference.abs() + error) + ETA
    }

    /// c = a b with `k` terms: gamma_k (|a| |b|) + u |c| (Higham, section 3.1 and 3.5). `magnitude` is the element of |a| |b|.
    pub fn product(&self, k: usize, magnitude: f64, reference: f64) -> f64 {
        self.gamma(k) * magnitude + self.unit * reference.abs() + k as f64 * ETA
    }

    /// A sum of two operands that have errors.
    pub fn sum(&self, error: f64, reference: f64) -> f64 {
        self.rounded(error, reference)
    }

    /// a g, where both factors have errors (the gated MLP): |a| E_g + |g| E_a + E_a E_g + u |a g|.
    pub fn factors(&self, a: f64, error_a: f64, g: f64, error_g: f64) -> f64 {
        self.rounded(a.abs() * error_g + g.abs() * error_a + error_a * error_g, a * g)
    }

    /// x times a constant, x with an error: one rounding of the constant, one of the product, and the root where the generated code
    /// evaluates the constant's 1 / sqrt(v) itself.
    pub fn scaled(&self, error: f64, reference: f64, evaluated: bool) -> f64 {
        let relative = in_turn(self.gamma(2), if evaluated { self.inverse_sqrt } else { 0.0 });
        error + relative * (reference.abs() + error) + ETA
    }

    /// Rotation of a pair: p c - q s or p s + q c, `magnitude` = |p c| + |q s|: two products, one sum.
    pub fn rotation(&self, magnitude: f64, reference: f64) -> f64 {
        self.product(2, magnitude, reference)
    }

    /// y = f(h), where h has an error: L E_h + eps_f, eps_f at the largest argument and value that the error allows.
    pub fn activation(&self, function: Activation, h: f64, error: f64, y: f64) -> f64 {
        let carried = lipschitz(function) * error;
        carried + self.activation_error(function).at(h.abs() + error, y.abs() + carried)
    }

    /// One row of softmax(s) for the visible keys alone: overwrites the scores with the probabilities p, and their errors E_s
    /// with E_p.
    ///
    /// With z = s - max(s) and rho_j = E_s + u |z_j| + eps_exp, each computed exponential is exp(z_j) times a factor within
    /// exp(+-rho_j), and so E_p = p_j expm1(rho_j + log sum_k p_k exp(rho_k) + gamma_n + eps_div). The logarithm is at least the
    /// first-order term sum_k p_k rho_k of Blanchard, Higham, Higham (Accurately computing the log-sum-exp and softmax
    /// functions, 2021) and bounds both directions. The maximum that the kernel subtracts may differ from max(s), which changes
    /// nothing but |z|, by at most the largest E_s. Weights that are stored in half precision are rounded once more, before
    /// or after they are normalised, and their sum may be one of rounded weights.
    pub fn softmax(&self, scores: &mut [f64], errors: &mut [f64]) {
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let shift = errors.iter().copied().fold(0.0, f64::max);
        let (mut total, mut raised) = (0.0, 0.0);
        for (score, error) in scores.iter_mut().zip(errors.iter_mut()) {
            let z = *score - max;
            let reach = z.abs() + *error + shift;
            let exp = self.exp + self.exp_slope * reach;
            *error += self.unit * reach + if exp < 1.0 { exp / (1.0 - exp) } else { f64::INFINITY };
            *score = z.exp();
            total += *score;
            raised += *score * error.exp_m1();
        }
        let (halves, least) = match self.probabilities {
            Dtype::F32 => (0.0, 0.0),
            it => (self.rounding * it.roundoff(), self.least(it)),
        };
        // Where sums are of rounded weights, each of them is off by the absolute part too; the sum is at least 1.
        let of_sum = halves + scores.len() as f64 * least;
        // Division by the sum, or multiplication by its reciprocal.
        let common = (raised / total).ln_1p() + self.gamma(scores.len()) + self.division + 2.0 * self.unit + of_sum;
        for (score, error) in scores.iter_mut().zip(errors) {
            *score /= total;
            // The sum is at least 1, so an exponential that was clamped moves its probability by no more than the floor.
            *error = *score * (*error + common + halves).exp_m1() + EXP_FLOOR + least;
        }
    }

    /// The errors of a score s = c q.k over `depth` terms: |c| gamma_(d+2) (|q| |k|) + 2u |s|. The two more roundings let the
    /// kernel scale q, or the score, by the rounded c.
    pub fn score(&self, depth: usize, scale: f64, magnitude: f64, reference: f64) -> f64 {
        scale.abs() * self.gamma(depth + 2) * magnitude + 2.0 * self.unit * reference.abs() + depth as f64 * ETA
    }

    /// What is multiplied by |V| to bound o = p V over `keys` visible keys: E_p + gamma_n (p + E_p).
    pub fn weight_error(&self, keys: usize, p: f64, error: f64) -> f64 {
        error + self.gamma(keys) * (p + error)
    }

    /// o = p V over at most `keys` keys, `magnitude` the sum of [`Self::weight_error`] |v|: the last rounding, and what any of
    /// the products leaves below the normal range.
    pub fn weighted(&self, keys: usize, magnitude: f64, reference: f64) -> f64 {
        self.rounded(magnitude, reference) + keys as f64 * ETA
    }
}

/// The relative error of two steps in turn.
fn in_turn(first: f64, second: f64) -> f64 {
    first + second + first * second
}

/// What the generated exponential may return instead of anything smaller: it clamps its argument.
pub const EXP_FLOOR: f64 = 2.0 * ETA;

/// An upper bound of |f'| (GELU: at x = sqrt(2), 1.1290; SiLU: at x = 2.3994, 1.0998).
pub const fn lipschitz(function: Activation) -> f64 {
    match function {
        Activation::Gelu | Activation::GeluTanh => 1.13,
        Activation::Silu => 1.10,
        Activation::Relu => 1.0,
    }
}

/// Evaluation error of an activation of the generated code, given an exact argument: `relative` |f(x)| + `scale` u |x|.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ActivationError {
    pub relative: f64,
    pub scale: f64,
}

impl ActivationError {
    /// GELU is x/2 (1 + t) with t = erf or tanh, whose absolute error of a few u is multiplied by |x|/2: that part does not
    /// shrink with f(x) on the negative side. SiLU is x / (1 + exp(-x)), where the error is relative. ReLU is exact.
    pub const fn of(function: Activation) -> Self {
        match function {
            Activation::Gelu | Activation::GeluTanh => Self { relative: 4.0 * U, scale: 8.0 },
            Activation::Silu => Self { relative: 8.0 * U, scale: 1.0 },
            Activation::Relu => Self { relative: 0.0, scale: 0.0 },
        }
    }

    pub fn at(self, x: f64, y: f64) -> f64 {
        // Only functions with an error of their own can underflow.
        let floor = if self.relative == 0.0 { 0.0 } else { ETA };
        self.relative * y.abs() + self.scale * U * x.abs() + floor
    }
}

impl Arithmetic {
    /// E_d = E_mu + u (|d| + E_mu) + eta, d = x - mu. Without a mean nothing is subtracted.
    fn deviation_error(&self, mean_error: f64, dtype: Dtype, x: f64, d: f64) -> f64 {
        self.flushed(dtype, x) + if mean_error == 0.0 { 0.0 } else { self.rounded(mean_error, d) }
    }
}

/// A normalised row: y = (x - mu) r g + b, without mu and b for RMS norm.
#[derive(Debug, Clone, Copy)]
pub struct NormRow {
    pub mean: f64,
    /// r = (v + eps)^(-1/2).
    pub rstd: f64,
    /// E_mu; E_d of an element is this and one rounding.
    mean_error: f64,
    /// E_r; not finite when the variance is smaller than its own error, which makes a check inconclusive.
    rstd_error: f64,
    arithmetic: Arithmetic,
}

impl NormRow {
    /// E_mu = gamma_n mean|x| + u |mu|; d = x - mu, E_d = E_mu + u (|d| + E_mu);
    /// E_v = mean(2 |d| E_d + E_d^2) + gamma_(n+2) mean((|d| + E_d)^2) for the two-pass variance. A one-pass variance,
    /// mean(x^2) - mu^2, is no correct kernel here and breaks the bound on near-constant rows. `exact_sum`: the elements are
    /// such that their sum is exact in any order, and E_mu = u |mu|.
    pub fn layer_norm(arithmetic: Arithmetic, dtype: Dtype, row: &[f64], eps: f64, exact_sum: bool) -> Self {
        let it = arithmetic;
        let n = row.len() as f64;
        let mean = row.iter().sum::<f64>() / n;
        let mean_error = match row.len() {
            // A single element is its own mean. Without this no row of one large element could be judged.
            1 => 0.0,
            _ if exact_sum => it.division * mean.abs(),
            // Each step of the sum may vanish, n eta in all, and so may the quotient.
            count => {
                let magnitude = row.iter().map(|it| it.abs()).sum::<f64>() / n;
                let flushed = row.iter().map(|x| it.flushed(dtype, *x)).sum::<f64>() / n;
                it.gamma(count) * magnitude + it.division * mean.abs() + 2.0 * ETA + flushed
            }
        };
        let (mut variance, mut carried, mut squares) = (0.0, 0.0, 0.0);
        for x in row {
            let d = (x - mean).abs();
            let error = it.deviation_error(mean_error, dtype, *x, d);
            variance += d * d;
            carried += 2.0 * d * error + error * error;
            squares += (d + error) * (d + error);
        }
        let variance_error = (carried + in_turn(it.gamma(row.len() + 1), it.division) * squares) / n;
        Self::new(it, mean, mean_error, variance / n, variance_error, eps)
    }

    /// As layer norm with mu = 0, known exactly.
    pub fn rms_norm(arithmetic: Arithmetic, dtype: Dtype, row: &[f64], eps: f64) -> Self {
        let it = arithmetic;
        let square = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
        let flushed = row.iter().map(|x| it.flushed(dtype, *x) * x.abs()).sum::<f64>() / row.len() as f64;
        let error = in_turn(it.gamma(row.len() + 1), it.division) * square + flushed;
        Self::new(it, 0.0, 0.0, square, error, eps)
    }

    /// E_r = (v + eps - E_v)^(-1/2) - r + (eps_root + u) (r + E_r): the inverse square root, and the sum v + eps with its rounded
    /// eps, which halve under the root.
    fn new(arithmetic: Arithmetic, mean: f64, mean_error: f64, variance: f64, variance_error: f64, eps: f64) -> Self {
        let rstd = (variance + eps).sqrt().recip();
        let least = variance + eps - variance_error - 2.0 * ETA;
        let carried = if least > 0.0 { least.sqrt().recip() - rstd } else { f64::INFINITY };
        let rstd_error = carried + (arithmetic.inverse_sqrt + arithmetic.unit) * (rstd + carried);
        Self { mean, rstd, mean_error, rstd_error, arithmetic }
    }

    /// The element's value and its bound: E_y = |g| (E_d (r + E_r) + |d| E_r) + 3u |d r g| + 2u |y|, b = 0 for RMS norm.
    /// The three roundings of the product are relative to the product, because a bias can cancel it. What vanishes before
    /// the gain is multiplied by it.
    pub fn element(&self, dtype: Dtype, x: f64, gain: f64, bias: f64) -> (f64, f64) {
        let (d, it) = (x - self.mean, &self.arithmetic);
        let error_d = it.deviation_error(self.mean_error, dtype, x, d);
        let scaled = d * self.rstd * gain;
        let value = scaled + bias;
        let carried = gain.abs() * (error_d * (self.rstd + self.rstd_error) + d.abs() * self.rstd_error);
        let flushed = it.flushed(dtype, gain) * (d * self.rstd).abs() + it.flushed(dtype, bias);
        let rounded = it.gamma(3) * (scaled.abs() + carried) + 2.0 * it.unit * value.abs();
        (value, carried + rounded + flushed + (gain.abs() + 2.0) * ETA)
    }
}

#[cfg(test)]
#[path = "bounds_tests.rs"]
mod tests;
