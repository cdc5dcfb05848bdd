//! Vector exp, erf and the activations, emitted as plain arithmetic (these packages have no polynomial-approximation pass).
//! The largest errors measured over the whole range are constants in the verifier's bounds and are tested there against f64.

use super::emit::{Code, Val};
use kernelforge::manifest::spec::Activation;

/// c0 + x (c1 + x (c2 + ...)), highest coefficient first in `coefficients`.
fn polynomial(code: &mut Code, x: Val, coefficients: &[f32]) -> Val {
    let mut sum = code.splat(coefficients[0]);
    for &coefficient in &coefficients[1..] {
        let term = code.splat(coefficient);
        sum = code.fma(sum, x, term);
    }
    sum
}

/// exp(x). Above 88.37 it is exp(88.37), from -87.68 down it is 0, NaN stays NaN. See [`exp_up_to_one`].
fn exp(code: &mut Code, x: Val) -> Val {
    let high = code.splat(88.376_26);
    let clamped = code.vmin(x, high);
    exp_up_to_one(code, clamped)
}

/// exp(x) for x <= 88.37, which a softmax's arguments are: none is positive. From -87.68 down it is 0, NaN stays NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite's two-part ln 2), exp(r) = 1 + r + r^2 q(r) with q the polynomial of degree 4
/// of the least relative error (3.1e-9, by Lawson's algorithm), scaled by 2^n. Error below 0.9 ulp.
///
/// Where x log2 e is added to 1.5 * 2^23 + 127, a unit of the last place is 1: the sum is rounded to n + 127, and its lowest bits
/// are the exponent field of 2^n, 0 for n = -127. With a rounding, a conversion, an addition of the bias and a comparison for
/// the low end, as before, it was 20 operations and not 13.
pub fn exp_up_to_one(code: &mut Code, x: Val) -> Val {
    const SHIFT: f32 = 12_582_912.0 + 127.0;
    let lanes = code.lanes();
    let (vector, integers) = (code.vector_type(), format!("vector<{lanes}xi32>"));
    // -127 ln 2.
    let low = code.splat(-88.029_69);
    let clamped = code.vmax(x, low);
    let (log2e, shift) = (code.splat(std::f32::consts::LOG2_E), code.splat(SHIFT));
    let shifted = code.fma(clamped, log2e, shift);
    let n = code.vsub(shifted, shift);
    let (minus_ln2_high, minus_ln2_low) = (code.splat(-355.0 / 512.0), code.splat(2.121_944_4e-4));
    let r = code.fma(n, minus_ln2_high, clamped);
    let r = code.fma(n, minus_ln2_low, r);
    let coefficients = [1.381_454e-3, 8.368_745e-3, 4.166_839e-2, 1.666_652_1e-1, 4.999_999_4e-1, 1.0, 1.0];
    let mantissa = polynomial(code, r, &coefficients);
    let bits = code.op(format_args!("arith.bitcast {shifted} : {vector} to {integers}"));
    let places = code.constant(format!("arith.constant dense<23> : {integers}"));
    let bits = code.op(format_args!("arith.shli {bits}, {places} : {integers}"));
    let power = code.op(format_args!("arith.bitcast {bits} : {integers} to {vector}"));
    code.vmul(mantissa, power)
}

/// erf(x) by the rational minimax approximation x P(x^2) / Q(x^2) that Eigen and XLA use, up to where erf is 1 to half an ulp.
/// There, evaluated in f32 with or without fused products, it is exactly 1. At 4, where they cut it off, it is two units in the last
/// place less: x + x erf(x) then has an error of an ulp of x where it should have vanished.
fn erf(code: &mut Code, x: Val) -> Val {
    let (low, high) = (code.splat(-3.832_575_8), code.splat(3.832_575_8));
    let x = code.vmax(x, low);
    let x = code.vmin(x, high);
    let squared = code.vmul(x, x);
    let p = polynomial(
        code,
        squared,
        &[
            -2.726_142_3e-10,
            2.770_681_4e-8,
            -2.101_024e-6,
            -5.692_506_5e-5,
            -7.349_906e-4,
            -2.954_6e-3,
            -1.609_603_3e-2,
        ],
    );
    let q =
        polynomial(code, squared, &[-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2]);
    let numerator = code.vmul(x, p);
    code.vdiv(numerator, q)
}

/// x sigmoid(t) = x / (1 + exp(-t)).
fn times_sigmoid(code: &mut Code, x: Val, minus_t: Val) -> Val {
    let e = exp(code, minus_t);
    let one = code.splat(1.0);
    let denominator = code.vadd(e, one);
    code.vdiv(x, denominator)
}

pub fn activation(code: &mut Code, function: Activation, x: Val) -> Val {
    match function {
        Activation::Relu => {
            let zero = code.splat(0.0);
            code.vmax(x, zero)
        }
        Activation::Silu => {
            let minus_one = code.splat(-1.0);
            let minus_x = code.vmul(x, minus_one);
            times_sigmoid(code, x, minus_x)
        }
        // 0.5 (1 + tanh z) = sigmoid(2 z), z = sqrt(2/pi) (x + 0.044715 x^3): one exp, no cancellation for x < 0.
        Activation::GeluTanh => {
            let factor = -2.0 * (2.0 / std::f64::consts::PI).sqrt();
            let (linear, cubic) = (code.splat(factor as f32), code.splat((factor * 0.044_715) as f32));
            let squared = code.vmul(x, x);
            let slope = code.fma(squared, cubic, linear);
            let minus_2z = code.vmul(x, slope);
            times_sigmoid(code, x, minus_2z)
        }
        Activation::Gelu => {
            let (root_half, half) = (code.splat(std::f32::consts::FRAC_1_SQRT_2), code.splat(0.5));
            let scaled = code.vmul(x, root_half);
            let e = erf(code, scaled);
            let half_x = code.vmul(x, half);
            code.fma(half_x, e, half_x)
        }
    }
}
