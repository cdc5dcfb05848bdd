//! `fuse-matmul-activation`: moves what follows a matmul element by element into its epilogue, where the values are still
//! in registers. A matmul means act(a w + bias) + residual, so an activation goes in only before a residual does; a fused
//! mlp takes a residual likewise.

use super::{
    super::{
        dialect::{Op, activation_attribute},
        op::{View, producer, use_count},
    },
    driver::{Pattern, Rewriter},
};
use kernelforge::manifest::spec::Activation;
use melior::ir::{OperationRef, Value, operation::OperationResult};

pub fn patterns() -> Vec<(Op, Pattern)> {
    let activations = Activation::ALL.map(|it| (Op::Activation(it), absorb_activation as Pattern));
    activations.into_iter().chain([(Op::Add, absorb_residual as Pattern)]).collect()
}

/// act(matmul) becomes the matmul, when nothing else reads the matmul and its epilogue is empty.
fn absorb_activation(rewriter: &Rewriter<'_, '_>, view: &View<'_, '_>) -> Option<()> {
    let Op::Activation(function) = view.op else { return None };
    let x = view.operand("x")?;
    let matmul = producer(x).filter(|it| it.op == Op::Matmul && use_count(x) == 1)?;
    if matmul.activation()?.is_some() || matmul.operand("residual").is_some() {
        return None;
    }
    rewriter.change(&matmul, None, &[("activation", activation_attribute(rewriter.context(), Some(function)))]);
    rewriter.replace_by_value(view, x);
    Some(())
}

/// add(matmul, other) becomes the matmul, when nothing else reads the matmul and `other` is known before it.
fn absorb_residual(rewriter: &Rewriter<'_, '_>, view: &View<'_, '_>) -> Option<()> {
    let (a, b) = (view.operand("a")?, view.operand("b")?);
    absorb_one_side(rewriter, view, a, b).or_else(|| absorb_one_side(rewriter, view, b, a))
}

fn absorb_one_side<'c, 'a>(
    rewriter: &Rewriter<'c, 'a>,
    add: &View<'c, 'a>,
    product: Value<'c, 'a>,
    other: Value<'c, 'a>,
) -> Option<()> {
    let matmul = producer(product).filter(|it| matches!(it.op, Op::Matmul | Op::Mlp) && use_count(product) == 1)?;
    if matmul.operand("residual").is_some() || !is_known_before(other, matmul.operation) {
        return None;
    }
    let mut operands = matmul.operands.clone();
    *operands.last_mut()? = Some(other);
    rewriter.change(&matmul, Some(&operands), &[]);
    rewriter.replace_by_value(add, product);
    Some(())
}

fn is_known_before<'c, 'a>(value: Value<'c, 'a>, operation: OperationRef<'c, 'a>) -> bool {
    use melior::ir::operation::OperationLike;
    OperationResult::try_from(value).map_or(true, |it| it.owner().is_before_in_block(operation))
}
