//! Stages that touch each element once: activations, sums, products and scalings on their own, and the rotary embedding.
//! They exist where no fusion took them away.

use super::{
    emit::{Code, Lanes, Mem, Val},
    math,
};
use kernelforge::{
    manifest::spec::Activation,
    plan::{schedule::ElementwiseSchedule, stage::Factor},
};

#[derive(Clone, Copy)]
pub enum Function {
    Activation(Activation),
    Add,
    Mul,
    Scale(Factor),
}

/// y = f(a) or f(a, b) over `len` elements, cut into chunks of `lanes * unroll`.
pub struct Map<'a> {
    pub len: usize,
    pub function: Function,
    pub schedule: &'a ElementwiseSchedule,
}

impl Map<'_> {
    fn chunk(&self) -> usize {
        self.schedule.lanes * self.schedule.unroll
    }

    pub fn units(&self) -> usize {
        self.len.div_ceil(self.chunk())
    }

    pub fn emit_units(&self, code: &mut Code, inputs: &[Mem], output: Mem, begin: Val, end: Val) {
        let chunk = self.chunk();
        code.with_lanes(self.schedule.lanes, |code| {
            let factor = self.factor(code);
            let run = |code: &mut Code, first: Val, count: usize| {
                for offset in (0..count).step_by(self.schedule.lanes) {
                    let at = code.offset(first, offset);
                    let lanes = code.first_lanes((count - offset).min(self.schedule.lanes));
                    self.vector(code, inputs, output, at, lanes, factor);
                }
            };
            code.for_(begin, end, 1, |code, unit| {
                let first = code.times(unit, chunk);
                match self.len % chunk {
                    0 => run(code, first, chunk),
                    tail => code.if_equal(
                        unit,
                        self.len / chunk,
                        |code| run(code, first, tail),
                        |code| run(code, first, chunk),
                    ),
                }
            });
        });
    }

    /// The factor of a scale, evaluated here where no pass has folded it.
    fn factor(&self, code: &mut Code) -> Option<Val> {
        let Function::Scale(factor) = self.function else { return None };
        Some(match factor {
            Factor::Value(value) => code.splat(value as f32),
            Factor::InverseSqrt(value) => {
                let (one, value) = (code.scalar(1.0), code.scalar(value as f32));
                let root = code.sqrt(value);
                let factor = code.scalar_op("divf", one, root);
                code.broadcast(factor)
            }
        })
    }

    fn vector(&self, code: &mut Code, inputs: &[Mem], output: Mem, at: Val, lanes: Lanes, factor: Option<Val>) {
        let a = code.load(inputs[0], at, lanes);
        let value = match (self.function, factor) {
            (Function::Activation(function), _) => math::activation(code, function, a),
            (Function::Scale(_), Some(factor)) => code.vmul(a, factor),
            (Function::Scale(_), None) => a,
            (Function::Add, _) => {
                let b = code.load(inputs[1], at, lanes);
                code.vadd(a, b)
            }
            (Function::Mul, _) => {
                let b = code.load(inputs[1], at, lanes);
                code.vmul(a, b)
            }
        };
        code.store(value, output, at, lanes);
    }
}

/// Rotary embedding of [batch * seq, heads * head_dim], one unit for each token.
pub struct Rope<'a> {
    pub seq: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub schedule: &'a ElementwiseSchedule,
}

impl Rope<'_> {
    /// `inputs`: x, cos, sin.
    pub fn emit_units(&self, code: &mut Code, inputs: &[Mem], output: Mem, begin: Val, end: Val) {
        let half = self.head_dim / 2;
        let ElementwiseSchedule { lanes, unroll } = *self.schedule;
        code.with_lanes(lanes, |code| {
            code.for_(begin, end, 1, |code, token| {
                let position = code.remainder(token, self.seq);
                let table = code.times(position, half);
                let row = code.times(token, self.heads * self.head_dim);
                let (zero, heads) = (code.index(0), code.index(self.heads));
                code.for_(zero, heads, 1, |code, head| {
                    let column = code.times(head, self.head_dim);
                    let first = code.add(row, column);
                    let turn = |code: &mut Code, i: Val, lanes: Lanes| {
                        let (at, table) = (code.add(first, i), code.add(table, i));
                        let partner = code.offset(at, half);
                        let (a, b) = (code.load(inputs[0], at, lanes), code.load(inputs[0], partner, lanes));
                        let (cos, sin) = (code.load(inputs[1], table, lanes), code.load(inputs[2], table, lanes));
                        let (b_sin, a_sin) = (code.vmul(b, sin), code.vmul(a, sin));
                        let a_cos = code.vmul(a, cos);
                        let turned = code.vsub(a_cos, b_sin);
                        code.store(turned, output, at, lanes);
                        let turned = code.fma(b, cos, a_sin);
                        code.store(turned, output, partner, lanes);
                    };
                    let step = lanes * unroll;
                    let whole = half / step * step;
                    let (low, high) = (code.index(0), code.index(whole));
                    code.for_(low, high, step, |code, i| {
                        for vector in 0..unroll {
                            let i = code.offset(i, vector * lanes);
                            turn(code, i, Lanes::All);
                        }
                    });
                    for i in (whole..half).step_by(lanes) {
                        let (at, mask) = (code.index(i), code.first_lanes((half - i).min(lanes)));
                        turn(code, at, mask);
                    }
                });
            });
        });
    }
}
