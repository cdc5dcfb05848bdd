//! Every row of a large product without computing it: for a vector v of signs on a group of columns, (A W) v = A (W v),
//! which costs one product with a thin matrix (Freivalds, Probabilistic machines can use less running time, 1977). The f64
//! side is summed the other way round, so an element that is wrong by more than the group's bound shows in its row.

use super::{
    bounds::{self, Precision},
    inputs::Source,
    tally::Tally,
};
use kernelforge::manifest::spec::Dtype;
use ndarray::{Array2, Axis};

/// A linear stage: c = a w + bias + residual, all as the candidate received them.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: &'a [f32],
    pub w: &'a [f32],
    pub bias: Option<&'a [f32]>,
    pub residual: Option<&'a [f32]>,
    pub output: &'a [f32],
    pub precision: Precision,
}

/// Whether the inputs were chosen so that every sum is exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sums {
    Rounded,
    Exact,
}

/// Columns that share one projection: their bounds add up, so fewer see smaller errors and cost more.
const GROUP: usize = 64;

/// Largest coefficient in front of a column where sums are exact: two wrong elements cancel with a chance of 1 in 1000.
/// |c| < 2^24 quanta, 64 columns and these coefficients stay below 2^53. (Results that are rounded to a narrower type are not
/// exact here: a sum of them is compared within the sum of their roundings.)
const COEFFICIENT: u32 = 512;

impl Linear<'_> {
    /// Compares the projections of all rows. Bound of one: the sum of the bounds of its elements, which is what
    /// `Arithmetic::product` and a rounding each for bias and residual add up to; 0 where sums are exact. On top of either what
    /// storing the elements adds.
    pub fn check(&self, sums: Sums, seed: u64, tally: &mut Tally) {
        let groups = self.n.div_ceil(GROUP);
        let mut source = Source::new(seed, 0xf7e1_7a1d);
        let v: Vec<f64> = match sums {
            Sums::Rounded => (0..self.n).map(|_| f64::from(source.sign())).collect(),
            Sums::Exact => (0..self.n)
                .map(|_| f64::from(source.sign() * (1 + source.below(COEFFICIENT as usize)) as f32))
                .collect(),
        };
        let a = self.matrix(self.a, self.m, self.k);
        // W v and |W| 1, group by group.
        let signed = self.grouped(self.w, self.k, &v, |it| it);
        let reference = a.dot(&signed);
        let output = self.grouped(self.output, self.m, &v, |it| it);
        let flat = |data: Option<&[f32]>, rows| data.map(|it| self.grouped(it, rows, &v, |it| it));
        let (bias, residual) = (flat(self.bias, 1), flat(self.residual, self.m));
        let mut bound = match sums {
            Sums::Exact => Array2::zeros((self.m, groups)),
            Sums::Rounded => self.bound(&a, &v),
        };
        bound += &self.stored(&v);
        for row in 0..self.m {
            for group in 0..groups {
                let given = |it: &Option<Array2<f64>>, row| it.as_ref().map_or(0.0, |it| it[[row, group]]);
                let expected = reference[[row, group]] + given(&bias, 0) + given(&residual, row);
                tally.compare(&[row, group * GROUP], output[[row, group]], expected, bound[[row, group]]);
            }
        }
    }

    /// The errors of storing the elements of each group, each times its coefficient.
    fn stored(&self, v: &[f64]) -> Array2<f64> {
        let Precision { arithmetic, storage } = self.precision;
        if storage == Dtype::F32 {
            return Array2::zeros((self.m, self.n.div_ceil(GROUP)));
        }
        let sizes: Vec<f64> = v.iter().map(|it| it.abs()).collect();
        let mut error = self.grouped(self.output, self.m, &sizes, f64::abs);
        // Of the stored value instead of the exact one: up to errors of second order, for which there is half as much again.
        error *= 1.5 * arithmetic.rounding * storage.roundoff();
        let least: Vec<f64> =
            sizes.chunks(GROUP).map(|it| it.iter().sum::<f64>() * arithmetic.least(storage)).collect();
        error
            .rows_mut()
            .into_iter()
            .for_each(|mut row| row.iter_mut().zip(&least).for_each(|(it, least)| *it += least));
        error
    }

    fn bound(&self, a: &Array2<f64>, v: &[f64]) -> Array2<f64> {
        let it = self.precision.arithmetic;
        let ones = vec![1.0; v.len()];
        let magnitude = a.mapv(f64::abs).dot(&self.grouped(self.w, self.k, &ones, f64::abs));
        let output = self.grouped(self.output, self.m, &ones, f64::abs);
        let residual = self.residual.map(|it| self.grouped(it, self.m, &ones, f64::abs));
        let bias = self.bias.map(|it| self.grouped(it, 1, &ones, f64::abs));
        let bound = Array2::from_shape_fn(magnitude.raw_dim(), |(row, group)| {
            let given = |of: &Option<Array2<f64>>, row| of.as_ref().map_or(0.0, |of| of[[row, group]]);
            // |a w| <= |c| + |residual| + |bias|, |h| <= |c| + |residual|, each up to errors of second order: twice u.
            let (c, r, b) = (output[[row, group]], given(&residual, row), given(&bias, 0));
            let roundings = 2.0 * it.unit * ((c + r + b) + (c + r) + c);
            it.gamma(self.k) * magnitude[[row, group]] + roundings + (self.k * GROUP) as f64 * bounds::ETA
        });
        bound + self.flushed(a)
    }

    /// What taking operands below the normal range for zero can change.
    fn flushed(&self, a: &Array2<f64>) -> Array2<f64> {
        let Precision { arithmetic: it, storage } = self.precision;
        let groups = self.n.div_ceil(GROUP);
        if !it.flushes {
            return Array2::zeros((self.m, groups));
        }
        let (ones, lost) = (vec![1.0; self.n], |data: &[f32]| -> Vec<f32> {
            data.iter().map(|x| it.flushed(storage, f64::from(*x)) as f32).collect()
        });
        let grouped = |data: &[f32], rows| self.grouped(data, rows, &ones, f64::abs);
        let mut error = a.mapv(|a| it.flushed(storage, a)).dot(&grouped(self.w, self.k));
        error += &a.mapv(f64::abs).dot(&grouped(&lost(self.w), self.k));
        if let Some(bias) = self.bias {
            error += &grouped(&lost(bias), 1);
        }
        if let Some(residual) = self.residual {
            error += &grouped(&lost(residual), self.m);
        }
        error
    }

    fn matrix(&self, data: &[f32], rows: usize, columns: usize) -> Array2<f64> {
        Array2::from_shape_fn((rows, columns), |(i, j)| f64::from(data[i * columns + j]))
    }

    /// The [rows, groups] sums of f(element) times its column's coefficient.
    fn grouped(&self, data: &[f32], rows: usize, v: &[f64], f: fn(f64) -> f64) -> Array2<f64> {
        let mut out = Array2::zeros((rows, self.n.div_ceil(GROUP)));
        for (mut out, row) in out.axis_iter_mut(Axis(0)).zip(data.chunks_exact(self.n)) {
            for ((out, columns), v) in out.iter_mut().zip(row.chunks(GROUP)).zip(v.chunks(GROUP)) {
                *out = columns.iter().zip(v).map(|(&x, v)| f(f64::from(x)) * v).sum();
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernelforge::protocol::{Gate, GateStatus};

    const SHAPE: (usize, usize, usize) = (5, 130, 37);

    /// The verdict over a naive product to whose element `at` `error` is added.
    fn verdict(sums: Sums, at: usize, error: f32) -> GateStatus {
        let (m, n, k) = SHAPE;
        let mut source = Source::new(3, 0);
        let mut draw = |len| -> Vec<f32> {
            let whole = sums == Sums::Exact;
            (0..len).map(|_| if whole { source.integer(8) } else { source.normal() }).collect()
        };
        let (a, w, bias, residual) = (draw(m * k), draw(k * n), draw(n), draw(m * n));
        let mut output = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                let sum = (0..k).map(|p| a[i * k + p] * w[p * n + j]).sum::<f32>();
                output[i * n + j] = sum + bias[j] + residual[i * n + j];
            }
        }
        output[at] += error;
        let mut tally = Tally::default();
        let (bias, residual) = (Some(&bias[..]), Some(&residual[..]));
        let precision = Precision::cpu(Dtype::F32);
        Linear { m, n, k, a: &a, w: &w, bias, residual, output: &output, precision }.check(sums, 11, &mut tally);
        tally.result(Gate::V2Bound, None, "").status
    }

    #[test]
    fn a_correct_product_passes() {
        assert_eq!(verdict(Sums::Rounded, 0, 0.0), GateStatus::Passed);
        assert_eq!(verdict(Sums::Exact, 0, 0.0), GateStatus::Passed);
    }

    #[test]
    fn one_wrong_element_anywhere_fails() {
        for at in 0..SHAPE.0 * SHAPE.1 {
            assert_eq!(verdict(Sums::Exact, at, 1.0), GateStatus::Failed, "element {at}");
            assert_eq!(verdict(Sums::Rounded, at, 0.01), GateStatus::Failed, "element {at}");
        }
    }

    #[test]
    fn nan_anywhere_fails() {
        assert_eq!(verdict(Sums::Rounded, 77, f32::NAN), GateStatus::Failed);
        assert_eq!(verdict(Sums::Exact, 77, f32::NAN), GateStatus::Failed);
    }
}
