//! Which rows of a stage are evaluated: all of them where the f64 reference fits the budget, else a sample drawn from the
//! seed, always with the first and the last row.

use super::inputs::Source;
use kernelforge::plan::stage::StageOp;

/// f64 operations that a stage's check may cost on the inputs it received in the block. About a second of one core.
pub const FULL: u64 = 20_000_000_000;

/// The same for each further input regime, and for the exact cases.
pub const LIGHT: u64 = 50_000_000;

/// Never fewer rows than this: the first, the last, and two that a wrong kernel cannot know.
const FEWEST: usize = 4;

/// Rows and columns of the output.
pub fn output_shape(op: &StageOp) -> (usize, usize) {
    match *op {
        StageOp::Matmul { m, n, .. } => (m, n),
        StageOp::Attention { batch, seq, heads, head_dim, .. } => (batch * seq, heads * head_dim),
        StageOp::Rope { batch, seq, heads, head_dim } => (batch * seq, heads * head_dim),
        StageOp::LayerNorm { rows, width, .. }
        | StageOp::RmsNorm { rows, width, .. }
        | StageOp::Activation { rows, width, .. }
        | StageOp::Add { rows, width }
        | StageOp::Mul { rows, width }
        | StageOp::Scale { rows, width, .. } => (rows, width),
        StageOp::Mlp { rows, d_model, .. } => (rows, d_model),
    }
}

/// Rows to evaluate for at most `budget` f64 operations; in increasing order.
pub fn rows(op: &StageOp, budget: u64, seed: u64) -> Vec<usize> {
    let (all, width) = output_shape(op);
    // A bound is one more product for every product; what is not a product counts as 32 operations for each element.
    let cost = (2 * op.flops() / all.max(1) as u64 + 32 * width as u64).max(1);
    sample(all, usize::try_from(budget / cost).unwrap_or(usize::MAX), seed)
}

/// `count` of `all` indices (at least [`FEWEST`]), in increasing order, without repetition.
pub fn sample(all: usize, count: usize, seed: u64) -> Vec<usize> {
    let count = count.max(FEWEST);
    if count >= all {
        return (0..all).collect();
    }
    let mut source = Source::new(seed, 0x0007_0075);
    let mut chosen = std::collections::BTreeSet::from([0, all - 1]);
    while chosen.len() < count {
        chosen.insert(source.below(all));
    }
    chosen.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_within_the_budget_is_checked_at_every_row() {
        let op = StageOp::Matmul { m: 128, n: 768, k: 768, bias: true, activation: None, residual: false };
        assert_eq!(rows(&op, FULL, 1), (0..128).collect::<Vec<_>>());
    }

    #[test]
    fn a_sample_has_the_first_and_the_last_row_and_depends_on_the_seed() {
        let op = StageOp::Matmul { m: 4096, n: 4096, k: 4096, bias: true, activation: None, residual: false };
        let (one, two) = (rows(&op, LIGHT, 1), rows(&op, LIGHT, 2));
        assert!(one.len() >= FEWEST && one.len() < 100 && one.is_sorted(), "{one:?}");
        assert_eq!((one.first(), one.last()), (Some(&0), Some(&4095)));
        assert_ne!(one, two);
    }
}
