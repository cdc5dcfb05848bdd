//! `eliminate-dead-ops`: erases ops whose result nobody reads. MLIR's own clean-up does not touch them, because no op of an
//! IRDL dialect can say that it has no side effects.

use super::{
    super::{
        dialect::Op,
        op::{View, use_count},
    },
    driver::{Pattern, Rewriter},
};

pub fn patterns() -> Vec<(Op, Pattern)> {
    Op::ALL.map(|op| (op, erase_unread as Pattern)).to_vec()
}

fn erase_unread(rewriter: &Rewriter<'_, '_>, view: &View<'_, '_>) -> Option<()> {
    if use_count(view.result()?) > 0 {
        return None;
    }
    rewriter.erase(view);
    Some(())
}
