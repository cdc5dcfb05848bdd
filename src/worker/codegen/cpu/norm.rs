//! Layer norm and RMS norm, a row at a time: the row stays in L1 between its passes (sum, squared deviations, result), so
//! memory is read once. The variance is taken of the deviations from the mean, not as a difference of sums, which cancels.

use super::emit::{Code, Lanes, Mem, Val};
use kernelforge::plan::schedule::NormSchedule;

pub struct Norm<'a> {
    pub width: usize,
    pub eps: f32,
    /// Subtract the mean and add a bias: layer norm. Otherwise RMS norm.
    pub centred: bool,
    pub schedule: &'a NormSchedule,
}

pub struct Buffers {
    pub x: Mem,
    pub gain: Mem,
    pub bias: Option<Mem>,
    pub y: Mem,
}

impl Norm<'_> {
    /// Emits the rows `begin..end`.
    pub fn emit_units(&self, code: &mut Code, buffers: &Buffers, begin: Val, end: Val) {
        code.with_lanes(self.schedule.lanes, |code| {
            code.for_(begin, end, 1, |code, row| {
                let at = code.times(row, self.width);
                let mean = self.centred.then(|| {
                    let sum = self.sum(code, at, |code, at, lanes| code.load(buffers.x, at, lanes));
                    let mean = self.over_width(code, sum);
                    code.broadcast(mean)
                });
                let deviation = |code: &mut Code, at: Val, lanes: Lanes| {
                    let value = code.load(buffers.x, at, lanes);
                    let Some(mean) = mean else { return value };
                    let deviation = code.vsub(value, mean);
                    match lanes {
                        Lanes::All => deviation,
                        Lanes::Masked(mask) => {
                            let zero = code.splat(0.0);
                            code.select(mask, deviation, zero)
                        }
                    }
                };
                let squares = self.sum(code, at, |code, at, lanes| {
                    let value = deviation(code, at, lanes);
                    code.vmul(value, value)
                });
                let variance = self.over_width(code, squares);
                let eps = code.scalar(self.eps);
                let variance = code.scalar_op("addf", variance, eps);
                let deviation_size = code.sqrt(variance);
                let one = code.scalar(1.0);
                let factor = code.scalar_op("divf", one, deviation_size);
                let factor = code.broadcast(factor);
                self.each(code, |code, column, lanes| {
                    let at = code.add(at, column);
                    let value = deviation(code, at, lanes);
                    let value = code.vmul(value, factor);
                    let gain = code.load(buffers.gain, column, lanes);
                    let value = match buffers.bias {
                        Some(bias) => {
                            let bias = code.load(bias, column, lanes);
                            code.fma(value, gain, bias)
                        }
                        None => code.vmul(value, gain),
                    };
                    code.store(value, buffers.y, at, lanes);
                });
            });
        });
    }

    fn over_width(&self, code: &mut Code, sum: Val) -> Val {
        let width = code.scalar(self.width as f32);
        code.scalar_op("divf", sum, width)
    }

    /// Columns covered by whole steps of `unroll` vectors, and by whole vectors.
    fn whole(&self) -> (usize, usize) {
        let NormSchedule { lanes, unroll } = *self.schedule;
        (self.width / (lanes * unroll) * lanes * unroll, self.width / lanes * lanes)
    }

    /// The sum over a row of `term(address, lanes)`, in `unroll` independent accumulators.
    fn sum(&self, code: &mut Code, row: Val, mut term: impl FnMut(&mut Code, Val, Lanes) -> Val) -> Val {
        let NormSchedule { lanes, unroll } = *self.schedule;
        let (steps, vectors) = self.whole();
        let (zero, high, none) = (code.index(0), code.index(steps), code.splat(0.0));
        let mut sums = code.fold((zero, high, lanes * unroll), &vec![none; unroll], |code, column, carried| {
            let at = code.add(row, column);
            let add = |(index, &sum): (usize, &Val)| {
                let at = code.offset(at, index * lanes);
                let value = term(code, at, Lanes::All);
                code.vadd(sum, value)
            };
            carried.iter().enumerate().map(add).collect()
        });
        for column in (steps..self.width).step_by(lanes) {
            let at = code.offset(row, column);
            let mask = if column < vectors { Lanes::All } else { code.first_lanes(self.width - column) };
            let value = term(code, at, mask);
            let index = (column - steps) / lanes % unroll;
            sums[index] = code.vadd(sums[index], value);
        }
        let total = sums.into_iter().reduce(|a, b| code.vadd(a, b)).unwrap_or(none);
        code.reduce("add", total)
    }

    fn each(&self, code: &mut Code, mut body: impl FnMut(&mut Code, Val, Lanes)) {
        let lanes = self.schedule.lanes;
        let (_, vectors) = self.whole();
        let (zero, high) = (code.index(0), code.index(vectors));
        code.for_(zero, high, lanes, |code, column| body(code, column, Lanes::All));
        if vectors < self.width {
            let (column, mask) = (code.index(vectors), code.first_lanes(self.width - vectors));
            body(code, column, mask);
        }
    }
}
