//! `fuse-mlp-block`: one `mlp` op in the place of an MLP's last matmul, so that the hidden rows stay in cache between the
//! products:
//!
//! ```text
//! matmul(act(matmul(x, w_up)), w_down)                               ->  mlp(x, w_up, w_down)
//! matmul(act(matmul(x, w_gate)) * matmul(x, w_up), w_down)           ->  mlp(x, w_gate, w_up, w_down)
//! ```
//!
//! The activation may be an op or already in the matmul's epilogue; a residual of the last matmul is kept. Hidden values
//! that anything else reads must exist in memory, so they prevent the fusion. The ops that made them stay behind, unread.

use super::{
    super::{
        dialect::{Op, activation_attribute},
        op::{View, operations, producer, use_count},
    },
    driver::{Pattern, Rewriter},
};
use kernelforge::manifest::spec::Activation;
use melior::ir::{
    Value, ValueLike,
    attribute::{BoolAttribute, StringAttribute},
    operation::OperationLike,
};

pub fn patterns() -> Vec<(Op, Pattern)> {
    vec![(Op::Matmul, fuse)]
}

struct Hidden<'c, 'a> {
    gate: Option<View<'c, 'a>>,
    up: View<'c, 'a>,
    activation: Activation,
}

fn fuse<'c, 'a>(rewriter: &Rewriter<'c, 'a>, down: &View<'c, 'a>) -> Option<()> {
    if down.activation()?.is_some() {
        return None;
    }
    let Hidden { gate, up, activation } = hidden(down.operand("a")?)?;
    let x = up.operand("a")?;
    let same_input = gate.as_ref().is_none_or(|it| it.operand("a") == Some(x));
    if !same_input || x.r#type() != down.result()?.r#type() {
        return None;
    }
    let matmuls = || [Some(&up), gate.as_ref(), Some(down)].into_iter().flatten();
    let biased = up.operand("bias").is_some();
    if matmuls().any(|it| it.operand("bias").is_some() != biased) {
        return None;
    }
    let of_gate = |name: &str| gate.as_ref().and_then(|it| it.operand(name));
    let operands = [
        Some(x),
        of_gate("w"),
        of_gate("bias"),
        up.operand("w"),
        up.operand("bias"),
        down.operand("w"),
        down.operand("bias"),
        down.operand("residual"),
    ];
    let name = stage_name(down)?;
    let context = rewriter.context();
    let tiled = matmuls().all(|it| it.flag("tiled") == Some(true));
    let attributes = [
        ("activation", activation_attribute(context, Some(activation))),
        ("stage", StringAttribute::new(context, name).into()),
        ("tiled", BoolAttribute::new(context, tiled).into()),
    ];
    rewriter.replace(down, Op::Mlp, name, &operands, &attributes)
}

fn hidden<'c, 'a>(value: Value<'c, 'a>) -> Option<Hidden<'c, 'a>> {
    if let Some((up, activation)) = activated(value) {
        return Some(Hidden { gate: None, up, activation });
    }
    let mul = only_reader(value).filter(|it| it.op == Op::Mul)?;
    let (a, b) = (mul.operand("a")?, mul.operand("b")?);
    let gated = |gate: Value<'c, 'a>, up: Value<'c, 'a>| {
        let (gate, activation) = activated(gate)?;
        Some(Hidden { gate: Some(gate), up: linear(up)?, activation })
    };
    gated(a, b).or_else(|| gated(b, a))
}

/// act(a w + bias), in one op or in two.
fn activated<'c, 'a>(value: Value<'c, 'a>) -> Option<(View<'c, 'a>, Activation)> {
    let view = only_reader(value)?;
    match view.op {
        Op::Activation(function) => linear(view.operand("x")?).map(|it| (it, function)),
        Op::Matmul if view.operand("residual").is_none() => view.activation()?.map(|function| (view, function)),
        _ => None,
    }
}

/// a w + bias.
fn linear<'c, 'a>(value: Value<'c, 'a>) -> Option<View<'c, 'a>> {
    let view = only_reader(value).filter(|it| it.op == Op::Matmul && it.operand("residual").is_none())?;
    view.activation()?.is_none().then_some(view)
}

/// The op that computes `value` for one reader alone.
fn only_reader<'c, 'a>(value: Value<'c, 'a>) -> Option<View<'c, 'a>> {
    if use_count(value) == 1 { producer(value) } else { None }
}

/// `mlp` for `mlp.down`; the last matmul's own name where that is taken.
fn stage_name<'c, 'a>(down: &View<'c, 'a>) -> Option<&'c str> {
    let own = down.stage()?;
    let Some((group, _)) = own.rsplit_once('.') else { return Some(own) };
    let taken = operations(down.operation.block()?).filter_map(View::of).any(|it| it.stage() == Some(group));
    Some(if taken { own } else { group })
}
