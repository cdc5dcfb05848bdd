//! The gates of the verification protocol, one file each. A gate fills what it needs, runs the candidate, and hands every
//! comparison to a `Tally`; it decides nothing itself. Names V0..V8 are used by reports, messages and tests.

pub mod bound;
pub mod exactness;
pub mod gaming;
pub mod guard;
pub mod legality;
pub mod meaning;
pub mod memory;
pub mod ratio;
pub mod regression;
pub mod relations;
pub mod shapes;
pub mod split;

use super::{
    bounds::Precision,
    candidate::{Candidate, precision},
    columns, coverage,
    projection::{Linear, Sums},
    reference::{self, Detail, Operand, Reference},
    tally::Tally,
};
use kernelforge::{
    plan::stage::{Stage, StageOp},
    protocol::{Gate, GateResult},
};

/// What is judged: a stage's output in one case.
#[derive(Clone, Copy)]
struct Judged<'a> {
    gate: Gate,
    stage: &'a Stage,
    case: &'a str,
    detail: Detail,
    seed: u64,
}

impl Judged<'_> {
    /// Compares `rows` of the stage's output, as the candidate holds it, with the reference of the inputs that it holds. Where
    /// those are not all rows, every row is covered too: by a projection where the stage is linear, at some columns where a
    /// function follows its product.
    fn judge(self, candidate: &dyn Candidate, rows: &[usize]) -> Vec<GateResult> {
        self.judge_and_keep(candidate, rows).0
    }

    /// As [`Self::judge`]; the reference is returned too, for who needs it again.
    fn judge_and_keep(self, candidate: &dyn Candidate, rows: &[usize]) -> (Vec<GateResult>, Reference) {
        let Self { gate, stage, case, detail, .. } = self;
        let inputs: Vec<&[f32]> = stage.inputs.iter().map(|&id| candidate.tensor(id)).collect();
        let output = candidate.tensor(stage.output);
        let operands: Vec<Operand> = inputs.iter().map(|it| Operand::F32(it)).collect();
        let precision = precision(candidate, stage);
        let reference = reference::evaluate(&stage.op, &operands, rows, detail, precision);
        let mut tally = Tally::of(precision.storage);
        tally.compare_rows(output, rows, &reference.value, &reference.bound);
        let (all, width) = coverage::output_shape(&stage.op);
        if rows.len() == all {
            return (vec![tally.result(gate, Some(&stage.name), case)], reference);
        }
        let sampled = tally.result(gate, Some(&stage.name), format!("{case}, {} of {all} rows", rows.len()));
        let mut results = vec![sampled];
        if let Some(linear) = linear(stage, &inputs, output, precision) {
            // Sums of many results, which no tensor stores: their range is not the type's.
            let mut tally = Tally::default();
            linear.check(if detail == Detail::Bound { Sums::Rounded } else { Sums::Exact }, self.seed, &mut tally);
            results.push(tally.result(gate, Some(&stage.name), format!("{case}, all rows by projection")));
        } else if let Some(narrow) = columns::narrow(&stage.op, &inputs, self.seed) {
            let operands: Vec<Operand> = narrow.inputs.iter().map(|it| Operand::F32(it)).collect();
            let rows: Vec<usize> = (0..all).collect();
            let narrowed = reference::evaluate(&narrow.op, &operands, &rows, detail, precision);
            let mut tally = Tally::of(precision.storage);
            for row in rows {
                for &(column, at) in &narrow.columns {
                    let value = output.get(row * width + column).copied().unwrap_or(f32::NAN);
                    let (expected, bound) = (narrowed.value[[row, at]], narrowed.bound[[row, at]]);
                    tally.compare(&[row, column], f64::from(value), expected, bound);
                }
            }
            let case = format!("{case}, all rows at {} of {width} columns", narrow.columns.len());
            results.push(tally.result(gate, Some(&stage.name), case));
        }
        (results, reference)
    }
}

/// The stage as a linear one, where it is.
fn linear<'a>(stage: &Stage, inputs: &[&'a [f32]], output: &'a [f32], precision: Precision) -> Option<Linear<'a>> {
    let StageOp::Matmul { m, n, k, bias, activation: None, residual } = stage.op else { return None };
    let (bias, residual) = (bias.then(|| inputs[2]), residual.then(|| inputs[inputs.len() - 1]));
    Some(Linear { m, n, k, a: inputs[0], w: inputs[1], bias, residual, output, precision })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::{
        candidate::Tensors,
        inputs,
        interpreter::{Interpreter, Order},
        samples,
    };
    use kernelforge::{
        manifest::spec::{Activation, BlockSpec},
        protocol::GateStatus,
    };

    /// The cases that fail when two rows of ten are sampled and a row that is not among them is wrong by `factor`.
    fn failing_cases(activation: Option<Activation>, factor: f32) -> Vec<String> {
        let block = BlockSpec::Matmul {
            m: 10,
            n: 70,
            k: 50,
            b: Default::default(),
            bias: true,
            activation,
            dtype: samples::DTYPE,
        };
        let mut candidate = Interpreter::new(samples::graph(&block), Order::Lanes, None);
        inputs::fill(&mut candidate, 0.0, 5);
        candidate.stage(0);
        let stage = candidate.graph().stages[0].clone();
        candidate.tensor_mut(stage.output)[4 * 70..5 * 70].iter_mut().for_each(|it| *it *= factor);
        let judged = Judged { gate: Gate::V2Bound, stage: &stage, case: "case", detail: Detail::Bound, seed: 6 };
        let results = judged.judge(&candidate, &[0, 9]);
        assert_eq!(results.len(), 2);
        results.into_iter().filter(|it| it.status != GateStatus::Passed).map(|it| it.case).collect()
    }

    #[test]
    fn a_wrong_row_outside_the_sample_fails_in_the_projection() {
        assert!(failing_cases(None, 1.0).is_empty());
        assert_eq!(failing_cases(None, 1.001), ["case, all rows by projection"]);
    }

    #[test]
    fn a_wrong_row_outside_the_sample_fails_at_some_columns_where_a_function_follows() {
        assert!(failing_cases(Some(Activation::GeluTanh), 1.0).is_empty());
        let failing = failing_cases(Some(Activation::GeluTanh), 1.001);
        assert!(failing.len() == 1 && failing[0].starts_with("case, all rows at "), "{failing:?}");
    }
}
