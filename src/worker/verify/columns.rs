//! Every row of a large stage that no projection can cover, because a function follows its product: at a few columns of the
//! output, which need a few columns of the weights.

use super::inputs::Source;
use kernelforge::plan::stage::StageOp;
use std::{borrow::Cow, collections::BTreeSet};

/// Columns of the output that are evaluated.
const COLUMNS: usize = 16;

/// A stage that computes some columns of another, and its operands.
pub struct Narrowed<'a> {
    pub op: StageOp,
    pub inputs: Vec<Cow<'a, [f32]>>,
    /// Columns of the wide stage's output, and where the narrow one computes them.
    pub columns: Vec<(usize, usize)>,
}

/// The last column and some that the seed chooses. `None` where a few columns need as much as all: stages that are no
/// product, and an MLP whose second matrix does not select hidden columns.
pub fn narrow<'a>(op: &StageOp, inputs: &[&'a [f32]], seed: u64) -> Option<Narrowed<'a>> {
    let (all, last) = match *op {
        StageOp::Matmul { n, .. } => (n, n.checked_sub(1)?),
        StageOp::Mlp { d_model, .. } => (d_model, d_model.checked_sub(1)?),
        _ => return None,
    };
    let mut source = Source::new(seed, 0x00c0_1000);
    let chosen: BTreeSet<usize> = (1..COLUMNS).map(|_| source.below(all)).chain([last]).collect();
    let columns: Vec<usize> = chosen.into_iter().collect();
    let (x, weights) = inputs.split_first()?;
    let mut narrow = vec![Cow::Borrowed(*x)];
    match *op {
        StageOp::Matmul { m, n, k, bias, activation, residual } => {
            // Weight, bias and residual all have the output's columns.
            narrow.extend(weights.iter().map(|it| Cow::Owned(gather(it, n, &columns))));
            let op = StageOp::Matmul { m, n: columns.len(), k, bias, activation, residual };
            Some(Narrowed { op, inputs: narrow, columns: columns.into_iter().zip(0..).collect() })
        }
        StageOp::Mlp { rows, d_model, d_ff, activation, gated, bias, residual } => {
            let layers = (1 + usize::from(gated)) * (1 + usize::from(bias));
            let (down, rest) = weights.get(layers..)?.split_first()?;
            let hidden: Vec<usize> =
                (0..d_ff).filter(|row| columns.iter().any(|column| down[row * d_model + column] != 0.0)).collect();
            if hidden.len() > 4 * COLUMNS {
                return None;
            }
            narrow.extend(weights[..layers].iter().map(|it| Cow::Owned(gather(it, d_ff, &hidden))));
            let kept = hidden.iter().flat_map(|row| &down[row * d_model..(row + 1) * d_model]);
            narrow.push(kept.copied().collect());
            narrow.extend(rest.iter().map(|it| Cow::Borrowed(*it)));
            let op = StageOp::Mlp { rows, d_model, d_ff: hidden.len(), activation, gated, bias, residual };
            Some(Narrowed { op, inputs: narrow, columns: columns.into_iter().map(|it| (it, it)).collect() })
        }
        _ => None,
    }
}

/// Some columns of a [_, width] matrix.
fn gather(data: &[f32], width: usize, columns: &[usize]) -> Vec<f32> {
    data.chunks_exact(width).flat_map(|row| columns.iter().map(|&it| row[it])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::reference::{self, Operand};
    use kernelforge::manifest::spec::Activation;

    fn draw(len: usize, lane: u64) -> Vec<f32> {
        let mut source = Source::new(9, lane);
        (0..len).map(|_| source.normal()).collect()
    }

    /// The narrow stage's columns are the wide one's.
    #[track_caller]
    fn check(op: &StageOp, inputs: &[Vec<f32>], rows: usize) {
        let slices: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
        let narrowed = narrow(op, &slices, 4).unwrap();
        let value = |op: &StageOp, inputs: &[&[f32]]| {
            let operands: Vec<Operand> = inputs.iter().map(|it| Operand::F32(it)).collect();
            reference::value(op, &operands, &(0..rows).collect::<Vec<_>>())
        };
        let narrow_inputs: Vec<&[f32]> = narrowed.inputs.iter().map(AsRef::as_ref).collect();
        let (wide, narrow) = (value(op, &slices), value(&narrowed.op, &narrow_inputs));
        assert!(narrowed.columns.len() > 5);
        for row in 0..rows {
            for &(column, at) in &narrowed.columns {
                let error = (wide[[row, column]] - narrow[[row, at]]).abs();
                assert!(error < 1e-12, "row {row}, column {column}: {error}");
            }
        }
    }

    #[test]
    fn columns_of_a_matmul_are_those_of_the_whole() {
        let (m, n, k) = (3, 50, 20);
        let op = StageOp::Matmul { m, n, k, bias: true, activation: Some(Activation::Gelu), residual: true };
        check(&op, &[draw(m * k, 1), draw(k * n, 2), draw(n, 3), draw(m * n, 4)], m);
    }

    #[test]
    fn columns_of_an_mlp_that_selects_are_those_of_the_whole() {
        let (rows, d_model, d_ff) = (3, 40, 300);
        for gated in [false, true] {
            let activation = Activation::Silu;
            let op = StageOp::Mlp { rows, d_model, d_ff, activation, gated, bias: true, residual: true };
            let mut down = vec![0.0; d_ff * d_model];
            (0..d_model).for_each(|column| down[(column * 7 % d_ff) * d_model + column] = 1.0);
            let mut inputs = vec![draw(rows * d_model, 1)];
            for lane in 0..1 + u64::from(gated) {
                inputs.extend([draw(d_model * d_ff, 10 + lane), draw(d_ff, 20 + lane)]);
            }
            inputs.extend([down, draw(d_model, 30), draw(rows * d_model, 31)]);
            check(&op, &inputs, rows);
        }
    }

    #[test]
    fn an_mlp_that_mixes_all_hidden_columns_has_no_narrow_form() {
        let op = StageOp::Mlp {
            rows: 1,
            d_model: 40,
            d_ff: 300,
            activation: Activation::Relu,
            gated: false,
            bias: false,
            residual: false,
        };
        let inputs = [draw(40, 1), draw(40 * 300, 2), draw(300 * 40, 3)];
        let slices: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
        assert!(narrow(&op, &slices, 4).is_none());
    }
}
