//! `fold-constants`: evaluates scalars, in f64, and moves the scale of the queries into the attention:
//! attention(c q, k, v) = attention(q, k, v) with its scores scaled by c. A scale by 1 is its operand.

use super::{
    super::{
        dialect::Op,
        op::{View, producer, use_count, users},
    },
    driver::{Pattern, Rewriter},
};
use melior::ir::{Type, Value, attribute::FloatAttribute, operation::OperationLike};

pub fn patterns() -> Vec<(Op, Pattern)> {
    vec![(Op::Rsqrt, evaluate_rsqrt), (Op::Scale, drop_scale_by_one), (Op::Attention, absorb_scale_of_queries)]
}

fn constant(value: Value<'_, '_>) -> Option<f64> {
    producer(value).filter(|it| it.op == Op::Constant)?.float("value")
}

fn evaluate_rsqrt(rewriter: &Rewriter<'_, '_>, view: &View<'_, '_>) -> Option<()> {
    let value = 1.0 / constant(view.operand("x")?)?.sqrt();
    if !value.is_finite() {
        return None;
    }
    let context = rewriter.context();
    let value = FloatAttribute::new(context, Type::float64(context), value).into();
    rewriter.replace(view, Op::Constant, "factor", &[], &[("value", value)])
}

#[expect(clippy::float_cmp, reason = "only exactly 1 changes nothing")]
fn drop_scale_by_one(rewriter: &Rewriter<'_, '_>, view: &View<'_, '_>) -> Option<()> {
    let x = view.operand("x")?;
    if constant(view.operand("factor")?)? != 1.0 {
        return None;
    }
    // A block must compute what it returns: an argument cannot be its result.
    let returned = users(view.result()?).any(|it| it.name().as_string_ref().as_str() == Ok("func.return"));
    if returned && producer(x).is_none() {
        return None;
    }
    rewriter.replace_by_value(view, x);
    Some(())
}

/// The scale op stays behind, unread. One that others read too stays useful, so nothing would be saved.
fn absorb_scale_of_queries(rewriter: &Rewriter<'_, '_>, view: &View<'_, '_>) -> Option<()> {
    let q = view.operand("q")?;
    let scale = producer(q).filter(|it| it.op == Op::Scale && use_count(q) == 1)?;
    let factor = view.float("scale")? * constant(scale.operand("factor")?)?;
    if !factor.is_finite() {
        return None;
    }
    let context = rewriter.context();
    let factor = FloatAttribute::new(context, Type::float64(context), factor).into();
    rewriter.change(view, Some(&[scale.operand("x"), view.operand("k"), view.operand("v")]), &[("scale", factor)]);
    Some(())
}
