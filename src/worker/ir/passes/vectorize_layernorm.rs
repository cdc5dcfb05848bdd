//! `vectorize-layernorm`: asks for a vector schedule for every layer norm and RMS norm. Without the mark they are scalar
//! loops.

use super::{
    super::{dialect::Op, op::View},
    driver::{Pattern, Rewriter},
};
use melior::ir::attribute::BoolAttribute;

pub fn patterns() -> Vec<(Op, Pattern)> {
    [Op::LayerNorm, Op::RmsNorm].map(|op| (op, mark as Pattern)).to_vec()
}

fn mark(rewriter: &Rewriter<'_, '_>, view: &View<'_, '_>) -> Option<()> {
    if view.flag("vectorized")? {
        return None;
    }
    rewriter.change(view, None, &[("vectorized", BoolAttribute::new(rewriter.context(), true).into())]);
    Some(())
}
