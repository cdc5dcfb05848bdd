//! How far a correct f32 kernel may be from the exact result: pure functions, evaluated in f64, element by element or row by
//! row. Every bound holds for any order of summation and with or without fused multiply-adds, so it says nothing about how
//! a kernel works, only what it may not get wrong. Nothing here knows a stage, a tensor or a regime.
//!
//! The model (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 2.2 and 2.8): each operation returns
//! (a op b)(1 + d) + e with |d| <= u and |e| <= eta. `reference` in what follows is the exact value, computed in f64, whose
//! own error (2^-29 times smaller) is not counted.

use kernelforge::manifest::spec::Activation;

/// Unit roundoff of f32.
pub const U: f64 = 1.0 / (1u64 << 24) as f64;

/// Absolute error of one operation whose result is below the normal range: the smallest normal number, so that a kernel that
/// flushes subnormals to zero is right too.
pub const ETA: f64 = f32::MIN_POSITIVE as f64;

/// Relative error of the generated code's exponential, on its whole range (tested beside its implementation).
pub const EPS_EXP: f64 = 4.0 * U;

/// What the generated exponential may return instead of anything smaller: it clamps its argument.
pub const EXP_FLOOR: f64 = 2.0 * ETA;

/// Division by the sum of a softmax, or multiplication by its reciprocal: three roundings at most.
pub const EPS_DIV: f64 = 3.0 * U;

/// gamma_n = n u / (1 - n u): the relative error of n roundings in a row (Higham, lemma 3.1); infinite once n u >= 1.
pub fn gamma(n: usize) -> f64 {
    let nu = n as f64 * U;
    if nu < 1.0 { nu / (1.0 - nu) } else { f64::INFINITY }
}

/// One more rounding of a result that already has an error: u |computed| on top of it.
pub fn rounded(error: f64, reference: f64) -> f64 {
    error + U * (reference.abs() + error) + ETA
}

/// c = a b with `k` terms: gamma_k (|a| |b|) + u |c| (Higham, section 3.1 and 3.5). `magnitude` is the element of |a| |b|.
pub fn product(k: usize, magnitude: f64, reference: f64) -> f64 {
    gamma(k) * magnitude + U * reference.abs() + k as f64 * ETA
}

/// A sum of two operands that have errors.
pub fn sum(error: f64, reference: f64) -> f64 {
    rounded(error, reference)
}

/// a g, where both factors have errors (the gated MLP): |a| E_g + |g| E_a + E_a E_g + u |a g|.
pub fn factors(a: f64, error_a: f64, g: f64, error_g: f64) -> f64 {
    rounded(a.abs() * error_g + g.abs() * error_a + error_a * error_g, a * g)
}

/// x times a constant: one rounding of the constant, one of the product, two more where the generated code evaluates the
/// constant's 1 / sqrt(v) itself.
pub fn scaled(reference: f64, evaluated: bool) -> f64 {
    let roundings = if evaluated { 4 } else { 2 };
    gamma(roundings) * reference.abs() + ETA
}

/// Rotation of a pair: p c - q s or p s + q c, `magnitude` = |p c| + |q s|: two products, one sum.
pub fn rotation(magnitude: f64, reference: f64) -> f64 {
    product(2, magnitude, reference)
}

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

/// y = f(h), where h has an error: L E_h + eps_f, eps_f at the largest argument and value that the error allows.
pub fn activation(function: Activation, h: f64, error: f64, y: f64) -> f64 {
    let carried = lipschitz(function) * error;
    carried + ActivationError::of(function).at(h.abs() + error, y.abs() + carried)
}

/// One row of softmax(s) for the visible keys alone: overwrites the scores with the probabilities p, and their errors E_s
/// with E_p.
///
/// With z = s - max(s) and rho_j = E_s + u |z_j| + eps_exp, each computed exponential is exp(z_j) times a factor within
/// exp(+-rho_j), and so E_p = p_j expm1(rho_j + log sum_k p_k exp(rho_k) + gamma_n + eps_div). The logarithm is at least the
/// first-order term sum_k p_k rho_k of Blanchard, Higham, Higham (Accurately computing the log-sum-exp and softmax
/// functions, 2021) and bounds both directions. The maximum that the kernel subtracts may differ from max(s), which changes
/// nothing but |z|, by at most the largest E_s.
pub fn softmax(scores: &mut [f64], errors: &mut [f64]) {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let shift = errors.iter().copied().fold(0.0, f64::max);
    let (mut total, mut raised) = (0.0, 0.0);
    for (score, error) in scores.iter_mut().zip(errors.iter_mut()) {
        let z = *score - max;
        *error += U * (z.abs() + *error + shift) + EPS_EXP / (1.0 - EPS_EXP);
        *score = z.exp();
        total += *score;
        raised += *score * error.exp_m1();
    }
    let common = (raised / total).ln_1p() + gamma(scores.len()) + EPS_DIV;
    for (score, error) in scores.iter_mut().zip(errors) {
        *score /= total;
        // The sum is at least 1, so an exponential that was clamped moves its probability by no more than the floor.
        *error = *score * (*error + common).exp_m1() + EXP_FLOOR;
    }
}

/// The errors of a score s = c q.k over `depth` terms: |c| gamma_(d+2) (|q| |k|) + 2u |s|. The two more roundings let the
/// kernel scale q, or the score, by the rounded c.
pub fn score(depth: usize, scale: f64, magnitude: f64, reference: f64) -> f64 {
    scale.abs() * gamma(depth + 2) * magnitude + 2.0 * U * reference.abs() + depth as f64 * ETA
}

/// What is multiplied by |V| to bound o = p V over `keys` visible keys: E_p + gamma_n (p + E_p).
pub fn weight_error(keys: usize, p: f64, error: f64) -> f64 {
    error + gamma(keys) * (p + error)
}

/// o = p V over at most `keys` keys, `magnitude` the sum of [`weight_error`] |v|: the last rounding, and what any of the
/// products leaves below the normal range.
pub fn weighted(keys: usize, magnitude: f64, reference: f64) -> f64 {
    rounded(magnitude, reference) + keys as f64 * ETA
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
}

impl NormRow {
    /// E_mu = gamma_n mean|x| + u |mu|; d = x - mu, E_d = E_mu + u (|d| + E_mu);
    /// E_v = mean(2 |d| E_d + E_d^2) + gamma_(n+2) mean((|d| + E_d)^2) for the two-pass variance. A one-pass variance,
    /// mean(x^2) - mu^2, is no correct kernel here and breaks the bound on near-constant rows.
    pub fn layer_norm(row: &[f64], eps: f64) -> Self {
        let n = row.len() as f64;
        let mean = row.iter().sum::<f64>() / n;
        let mean_error = match row.len() {
            // A single element is its own mean. Without this no row of one large element could be judged.
            1 => 0.0,
            // Each step of the sum may vanish, n eta in all, and so may the quotient.
            count => gamma(count) * row.iter().map(|it| it.abs()).sum::<f64>() / n + U * mean.abs() + 2.0 * ETA,
        };
        let (mut variance, mut carried, mut squares) = (0.0, 0.0, 0.0);
        for x in row {
            let d = (x - mean).abs();
            let error = Self::deviation_error(mean_error, d);
            variance += d * d;
            carried += 2.0 * d * error + error * error;
            squares += (d + error) * (d + error);
        }
        let variance_error = (carried + gamma(row.len() + 2) * squares) / n;
        Self::new(mean, mean_error, variance / n, variance_error, eps)
    }

    /// As layer norm with mu = 0, known exactly.
    pub fn rms_norm(row: &[f64], eps: f64) -> Self {
        let square = row.iter().map(|it| it * it).sum::<f64>() / row.len() as f64;
        Self::new(0.0, 0.0, square, gamma(row.len() + 2) * square, eps)
    }

    /// E_d = E_mu + u (|d| + E_mu) + eta. Without a mean nothing is subtracted.
    fn deviation_error(mean_error: f64, d: f64) -> f64 {
        if mean_error == 0.0 { 0.0 } else { rounded(mean_error, d) }
    }

    /// E_r = (v + eps - E_v)^(-1/2) - r + 3u (r + E_r): square root, division, and the sum v + eps with its rounded eps,
    /// which halve under the root.
    fn new(mean: f64, mean_error: f64, variance: f64, variance_error: f64, eps: f64) -> Self {
        let rstd = (variance + eps).sqrt().recip();
        let least = variance + eps - variance_error - 2.0 * ETA;
        let carried = if least > 0.0 { least.sqrt().recip() - rstd } else { f64::INFINITY };
        let rstd_error = carried + 3.0 * U * (rstd + carried);
        Self { mean, rstd, mean_error, rstd_error }
    }

    /// The element's value and its bound: E_y = |g| (E_d (r + E_r) + |d| E_r) + 3u |d r g| + 2u |y|, b = 0 for RMS norm.
    /// The three roundings of the product are relative to the product, because a bias can cancel it. What vanishes before
    /// the gain is multiplied by it.
    pub fn element(&self, x: f64, gain: f64, bias: f64) -> (f64, f64) {
        let d = x - self.mean;
        let error_d = Self::deviation_error(self.mean_error, d);
        let scaled = d * self.rstd * gain;
        let value = scaled + bias;
        let carried = gain.abs() * (error_d * (self.rstd + self.rstd_error) + d.abs() * self.rstd_error);
        (value, carried + gamma(3) * (scaled.abs() + carried) + 2.0 * U * value.abs() + (gain.abs() + 2.0) * ETA)
    }
}

#[cfg(test)]
#[path = "bounds_tests.rs"]
mod tests;
