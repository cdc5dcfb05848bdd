//! The scalar functions of the blocks in f64, accurate to a few units in the last place of f64
//! near zero and to 1e-12 far out, where the argument's own rounding is magnified.

use kernelforge::manifest::spec::Activation;
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

/// f(x). GELU goes through erfc so that the negative side keeps its relative accuracy.
pub fn activation(function: Activation, x: f64) -> f64 {
    match function {
        Activation::Gelu => 0.5 * x * libm::erfc(-x * FRAC_1_SQRT_2),
        // x/2 (1 + tanh(a)) = x / (1 + exp(-2a)), a = sqrt(2/pi) (x + 0.044715 x^3): no cancellation.
        Activation::GeluTanh => x / (1.0 + (-2.0 * FRAC_2_PI.sqrt() * (x + 0.044_715 * x * x * x)).exp()),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Relu => x.max(0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_have_their_published_values() {
        // From 40-digit evaluations.
        let cases = [
            (Activation::Gelu, 1.0, 0.841_344_746_068_542_9),
            (Activation::Gelu, -3.0, -0.004_049_694_094_890_284),
            (Activation::GeluTanh, 1.0, 0.841_191_990_608_276_8),
            (Activation::Silu, 1.0, 0.731_058_578_630_004_9),
            (Activation::Silu, -2.0, -0.238_405_844_044_235_12),
            (Activation::Relu, -2.0, 0.0),
        ];
        for (function, x, expected) in cases {
            let y = activation(function, x);
            assert!(
                (y - expected).abs() <= 4e-15 * f64::abs(expected),
                "{function:?}({x}) = {y:.17}, not {expected:.17}"
            );
        }
    }

    #[test]
    fn activations_stay_finite_for_every_magnitude_of_f32() {
        for function in Activation::ALL {
            for x in [-1e38, -1e9, -1e-40, 0.0, 1e-40, 1e9, 1e38] {
                assert!(activation(function, x).is_finite(), "{function:?}({x})");
            }
        }
    }
}
