//! Naive f32 kernels, in several orders of summation, never exceed the bounds, and somewhere come close enough to them that
//! the bound is worth having. Each test prints the largest error / bound that it saw (`--nocapture`).

use super::*;
use crate::verify::{emulation::activate, functions, inputs::Source, interpreter::Order};
use kernelforge::half;

const CPU: Arithmetic = Arithmetic::cpu();

/// The largest error / bound, after checking that none is above 1.
#[derive(Default)]
struct Worst(f64);

impl Worst {
    #[track_caller]
    fn see(&mut self, value: f32, exact: f64, bound: f64, what: impl std::fmt::Debug) {
        let error = (f64::from(value) - exact).abs();
        assert!(error <= bound, "{what:?}: {value:e} for {exact:e} is off by {error:e}, bound {bound:e}");
        if error > 0.0 {
            self.0 = self.0.max(error / bound);
        }
    }

    /// The bound is useless if correct kernels never come this close.
    #[track_caller]
    fn at_least(self, name: &str, ratio: f64) {
        println!("{name}: largest error / bound {:.3}", self.0);
        assert!(self.0 >= ratio, "{name}: no error comes closer than {:.2e} of its bound", self.0);
    }
}

fn wide(data: &[f32]) -> Vec<f64> {
    data.iter().map(|&it| f64::from(it)).collect()
}

/// Rows that stress sums: normal; all positive; ruled by one element; each term rounded away from the first.
fn rows(n: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut source = Source::new(seed, n as u64);
    let normal: Vec<f32> = (0..n).map(|_| source.normal()).collect();
    let positive: Vec<f32> = normal.iter().map(|it| it.abs() + 0.5).collect();
    let mut ruled = normal.clone();
    ruled[n / 2] = 1e6;
    // Each of these is lost when added to 1: the error of n - 1 roundings in one direction.
    let mut lost = vec![0.99 * (U as f32); n];
    lost[0] = 1.0;
    vec![normal, positive, ruled, lost]
}

#[test]
fn gamma_is_infinite_where_its_own_formula_has_no_meaning() {
    assert_eq!(CPU.gamma(0), 0.0);
    assert!(CPU.gamma(1) > U && CPU.gamma(1) < 1.001 * U);
    assert!(
        CPU.gamma((1 << 24) - 1).is_finite() && CPU.gamma(1 << 24).is_infinite() && CPU.gamma(1 << 30).is_infinite()
    );
}

#[test]
fn a_product_stays_within_its_bound_in_any_order() {
    let mut worst = Worst::default();
    for k in [1, 2, 3, 17, 64, 1000] {
        for (a, b) in rows(k, 1).iter().zip(rows(k, 2)).chain(rows(k, 3).iter().map(|it| (it, vec![1.0; k]))) {
            let terms = || a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b));
            let (exact, magnitude) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
            for order in Order::ALL {
                let value = order.dot(k, &|i| (a[i], b[i]));
                worst.see(value, exact, CPU.product(k, magnitude, exact), (k, order));
            }
        }
    }
    worst.at_least("product", 0.4);
}

#[test]
fn an_activation_stays_within_its_bound_over_the_whole_range() {
    for function in Activation::ALL {
        let mut worst = Worst::default();
        for exponent in -40..40 {
            for step in 0..64u32 {
                for sign in [-1.0, 1.0] {
                    let h = sign * 2f32.powi(exponent) * (1.0 + step as f32 / 64.0);
                    let y = functions::activation(function, f64::from(h));
                    worst.see(activate(function, h), y, CPU.activation(function, f64::from(h), 0.0, y), (function, h));
                    // An argument that is itself off.
                    let off = h * (1.0 + 3.0 * f32::EPSILON);
                    let error = (f64::from(off) - f64::from(h)).abs();
                    worst.see(
                        activate(function, off),
                        y,
                        CPU.activation(function, f64::from(h), error, y),
                        (function, off),
                    );
                }
            }
        }
        worst.at_least(function.name(), 0.1);
    }
}

#[test]
fn no_slope_is_steeper_than_its_lipschitz_constant() {
    for function in Activation::ALL {
        let slope = |x: f64| {
            let f = |x| functions::activation(function, x);
            ((f(x + 1e-4) - f(x - 1e-4)) / 2e-4).abs()
        };
        let steepest = (-8000..8000).map(|it| slope(f64::from(it) * 1e-3)).fold(0.0, f64::max);
        let limit = lipschitz(function);
        assert!(steepest <= limit * (1.0 + 1e-9) && steepest > 0.99 * limit, "{function:?}: {steepest}");
    }
}

#[test]
fn softmax_stays_within_its_bound_for_flat_and_peaky_scores() {
    let mut worst = Worst::default();
    for n in [1, 2, 16, 100, 777] {
        for (seed, spread) in [(1, 0.0), (2, 1e-3), (3, 1.0), (4, 10.0), (5, 60.0), (6, 1e4)] {
            let mut source = Source::new(seed, n as u64);
            let scores: Vec<f32> = (0..n).map(|_| spread * source.normal()).collect();
            let (mut p, mut error) = (wide(&scores), vec![0.0; n]);
            CPU.softmax(&mut p, &mut error);
            assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            for order in Order::ALL {
                let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let raised: Vec<f32> = scores.iter().map(|it| (it - max).exp()).collect();
                let total = order.dot(n, &|i| (raised[i], 1.0));
                for i in 0..n {
                    worst.see(raised[i] / total, p[i], error[i], (n, spread, order, i));
                }
            }
        }
    }
    worst.at_least("softmax", 0.1);
}

#[test]
fn softmax_carries_the_errors_of_its_scores() {
    let mut worst = Worst::default();
    let mut source = Source::new(8, 0);
    for _ in 0..200 {
        let exact: Vec<f64> = (0..20).map(|_| f64::from(source.normal())).collect();
        let off: Vec<f64> = exact.iter().map(|it| it + 1e-3 * f64::from(source.sign())).collect();
        let (mut p, mut error) = (exact.clone(), vec![1e-3; 20]);
        CPU.softmax(&mut p, &mut error);
        let (mut moved, mut ignored) = (off, vec![0.0; 20]);
        CPU.softmax(&mut moved, &mut ignored);
        (0..20).for_each(|i| worst.see(moved[i] as f32, p[i], error[i], i));
    }
    worst.at_least("softmax of scores with errors", 0.5);
}

#[test]
fn norms_stay_within_their_bounds_or_say_that_they_cannot_tell() {
    let mut source = Source::new(3, 0);
    for centred in [true, false] {
        let (mut worst, mut decided) = (Worst::default(), 0);
        for n in [1, 2, 48, 768] {
            for (offset, deviation) in
                [(0.0, 1.0), (1.0, 1e-2), (100.0, 1.0), (0.0, 3e-3), (0.5, 3e-3), (0.0, 0.0), (1e4, 0.0)]
            {
                let row: Vec<f32> = (0..n).map(|_| offset + deviation * source.normal()).collect();
                let (eps, gain, bias) = (1e-5, 1.3f32, if centred { -0.7f32 } else { 0.0 });
                let reference = match centred {
                    true => NormRow::layer_norm(CPU, Dtype::F32, &wide(&row), eps, false),
                    false => NormRow::rms_norm(CPU, Dtype::F32, &wide(&row), eps),
                };
                for order in Order::ALL {
                    let mean = if centred { order.dot(n, &|i| (row[i], 1.0)) / n as f32 } else { 0.0 };
                    let squares = order.dot(n, &|i| (row[i] - mean, row[i] - mean));
                    let rstd = 1.0 / (squares / n as f32 + eps as f32).sqrt();
                    for x in &row {
                        let y = (x - mean) * rstd * gain;
                        let y = if centred { y + bias } else { y };
                        let (exact, bound) =
                            reference.element(Dtype::F32, f64::from(*x), f64::from(gain), f64::from(bias));
                        if bound.is_finite() {
                            decided += 1;
                            worst.see(y, exact, bound, (centred, n, offset, deviation, order));
                        }
                    }
                }
            }
        }
        assert!(decided > 5000, "{decided}");
        worst.at_least(if centred { "layer norm" } else { "RMS norm" }, 0.05);
    }
}

#[test]
fn a_variance_within_its_own_error_has_no_finite_bound() {
    let row: Vec<f64> = (0..768).map(|i| 1e3 + 1e-6 * f64::from(i)).collect();
    let (_, bound) = NormRow::layer_norm(CPU, Dtype::F32, &row, 1e-12, false).element(Dtype::F32, row[0], 1.0, 0.0);
    assert!(!bound.is_finite());
}

#[test]
fn elementwise_results_stay_within_their_bounds() {
    let mut source = Source::new(4, 0);
    let mut worsts: [Worst; 5] = Default::default();
    for _ in 0..20_000 {
        let [a, b, c, d] = [(); 4].map(|()| source.normal());
        let [x, y, p, q] = [a, b, c, d].map(f64::from);
        worsts[0].see(a + b, x + y, CPU.sum(0.0, x + y), "sum");
        worsts[1].see(a * b, x * y, CPU.factors(x, 0.0, y, 0.0), "product of two");
        worsts[2].see(a * 0.3f32, x * 0.3, CPU.scaled(0.0, x * 0.3, false), "scale");
        let rotated = a * c - b * d;
        worsts[3].see(rotated, x * p - y * q, CPU.rotation((x * p).abs() + (y * q).abs(), x * p - y * q), "rotation");
        // Factors that are themselves off by one part in 2^20.
        let (off_a, off_b) = (a * (1.0 + 2f32.powi(-20)), b * (1.0 - 2f32.powi(-20)));
        let (error_a, error_b) = ((f64::from(off_a) - x).abs(), (f64::from(off_b) - y).abs());
        worsts[4].see(off_a * off_b, x * y, CPU.factors(x, error_a, y, error_b), "factors with errors");
    }
    for (worst, (name, ratio)) in worsts.into_iter().zip([
        ("sum", 0.5),
        ("product of two", 0.5),
        ("scale", 0.4),
        ("rotation", 0.3),
        ("factors with errors", 0.05),
    ]) {
        worst.at_least(name, ratio);
    }
}

#[test]
fn a_factor_that_the_kernel_evaluates_itself_may_be_off_by_more() {
    let mut worst = Worst::default();
    for v in 1..300u16 {
        let factor = 1.0 / f32::from(v).sqrt();
        let exact = 3.7 / f64::from(v).sqrt();
        worst.see(
            3.7f64 as f32 * factor,
            f64::from(3.7f64 as f32) / f64::from(v).sqrt(),
            CPU.scaled(0.0, exact, true),
            v,
        );
    }
    worst.at_least("scale by an evaluated root", 0.2);
}

/// An arithmetic of half-precision softmax weights and hidden rows, that may flush and divides badly.
fn loose() -> Arithmetic {
    Arithmetic {
        division: 5.0 * U,
        inverse_sqrt: 4.0 * U,
        probabilities: Dtype::F16,
        hidden: Dtype::F16,
        flushes: true,
        ..CPU
    }
}

#[test]
fn a_result_stored_in_16_bits_stays_within_its_bound_down_to_the_smallest_numbers() {
    for (dtype, exponents) in [(Dtype::F16, -30..15), (Dtype::Bf16, -136..-100)] {
        let mut source = Source::new(6, 0);
        let (mut worst, mut least) = (Worst::default(), Worst::default());
        for exponent in exponents {
            for _ in 0..500 {
                let exact = 2f64.powi(exponent) * f64::from(source.normal());
                // As a kernel has it before it stores it.
                let off = exact * (1.0 + 3e-7 * f64::from(source.sign()));
                let stored = half::nearest(dtype, off as f32);
                let computed = (f64::from(off as f32) - exact).abs();
                let bound = CPU.stored(dtype, computed + U * exact.abs(), exact);
                let normal = exact.abs() >= f64::from(dtype.min_positive());
                if normal { &mut worst } else { &mut least }.see(stored, exact, bound, exact);
                assert_eq!(CPU.stored(Dtype::F32, 0.125, exact), 0.125);
            }
        }
        worst.at_least("stored in 16 bits", 0.95);
        least.at_least("stored below the normal range of 16 bits", 0.95);
    }
}

#[test]
fn softmax_weights_of_half_precision_stay_within_their_bound_normalised_before_or_after() {
    let (mut worst, it) = (Worst::default(), Arithmetic { flushes: false, ..loose() });
    let nearest = |x: f32| half::nearest(Dtype::F16, x);
    for n in [1, 7, 100, 777] {
        for (seed, spread) in [(1, 0.0), (2, 1.0), (3, 4.0), (4, 30.0)] {
            let mut source = Source::new(seed, n as u64);
            let scores: Vec<f32> = (0..n).map(|_| spread * source.normal()).collect();
            let (mut p, mut error) = (wide(&scores), vec![0.0; n]);
            it.softmax(&mut p, &mut error);
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let raised: Vec<f32> = scores.iter().map(|it| (it - max).exp()).collect();
            let total: f32 = raised.iter().sum();
            let of_rounded: f32 = raised.iter().copied().map(nearest).sum();
            for i in 0..n {
                for computed in
                    [nearest(raised[i] / total), nearest(raised[i]) / total, nearest(raised[i]) / of_rounded]
                {
                    worst.see(computed, p[i], error[i], (n, spread, i));
                }
            }
        }
    }
    worst.at_least("softmax in f16", 0.4);
}

#[test]
fn operands_that_may_be_taken_for_zero_change_a_product_by_no_more_than_they_are() {
    let (it, least) = (loose(), f64::from(half::MIN_POSITIVE));
    assert_eq!(it.flushed(Dtype::F16, 0.5 * least), 0.5 * least);
    assert_eq!((it.flushed(Dtype::F16, least), CPU.flushed(Dtype::F16, 0.5 * least)), (0.0, 0.0));
    assert_eq!(it.flushed(Dtype::F32, 0.5 * least), 0.0);
    assert_eq!(it.least(Dtype::F16), least);
    // And a stored result may vanish below the normal range.
    assert!(it.stored(Dtype::F16, 0.0, 0.9 * least) >= 0.9 * least);
}
