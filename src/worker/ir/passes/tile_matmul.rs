//! `tile-matmul`: asks for a cache-blocked, packed, register-tiled schedule for every op that is made of matrix products.
//! Code generation gives ops without the mark the plain schedule of their kind.

use super::{
    super::{dialect::Op, op::View},
    driver::{Pattern, Rewriter},
};
use melior::ir::attribute::BoolAttribute;

pub fn patterns() -> Vec<(Op, Pattern)> {
    [Op::Matmul, Op::Attention, Op::Mlp].map(|op| (op, mark as Pattern)).to_vec()
}

fn mark(rewriter: &Rewriter<'_, '_>, view: &View<'_, '_>) -> Option<()> {
    if view.flag("tiled")? {
        return None;
    }
    rewriter.change(view, None, &[("tiled", BoolAttribute::new(rewriter.context(), true).into())]);
    Some(())
}
