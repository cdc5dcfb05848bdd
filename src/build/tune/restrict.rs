//! What a restriction of the search ([`crate::plan::space::only`]) leaves of a block, found out before anything is measured.

use super::{
    Stop,
    block::Variant,
    ledger::{On, Scope},
};
use crate::{
    build::graph::BlockTarget,
    manifest::schema::KNOBS_TABLE,
    plan::{
        operation,
        space::{NoneLeft, Space},
        stage::StageGraph,
    },
    protocol::{Failure, FailureKind},
};
use std::collections::HashSet;

/// The variants whose operations all have schedules that the search may choose. The first, the pipeline's own, must be one; without
/// a fusion a block has other operations, of which nobody may have thought who restricted the search.
///
/// # Errors
/// The first variant has an operation without such a schedule.
pub(super) fn possible(variants: Vec<Variant>, block: &BlockTarget) -> Result<Vec<Variant>, Stop> {
    if block.tuning.knobs.is_empty() {
        return Ok(variants);
    }
    let (mut fine, mut kept) = (HashSet::new(), Vec::new());
    for variant in variants {
        match check(&variant.graph, block, &mut fine) {
            Ok(()) => kept.push(variant),
            Err(failure) if kept.is_empty() => return Err(Stop::Failed(failure)),
            Err(_) => {}
        }
    }
    Ok(kept)
}

/// Whether something is left of every operation. `fine`: the signatures of those of which that is known.
fn check(graph: &StageGraph, block: &BlockTarget, fine: &mut HashSet<String>) -> Result<(), Failure> {
    let BlockTarget { device, hybrid_softmax, tuning, .. } = block;
    for stage in graph.stages.iter().filter(|it| it.scheduled) {
        let operation = operation::isolate(graph, stage);
        let signature = operation::signature(&operation);
        if fine.contains(&signature.to_string()) {
            continue;
        }
        let space = Space::of_operation(&operation, device, *hybrid_softmax).only(&tuning.knobs);
        if let Some(none) = space.none_left() {
            let scope = Scope::new((signature, &stage.op), On::of(block));
            return Err(nothing_left(none, &tuning.name, &scope.operation).at_stage(&stage.name));
        }
        fine.insert(signature.to_string());
    }
    Ok(())
}

fn nothing_left(none: &NoneLeft, tuning: &str, operation: &str) -> Failure {
    let message = format!("[tuning.{tuning}.{KNOBS_TABLE}] leaves no schedule for {operation}: {none}");
    let hint = "list more values, or other ones; a knob that is not named may be anything";
    Failure::new(FailureKind::IllegalPlan, message).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::graph::tests::{block, transformer},
        manifest::spec::{Dtype, Pass},
        plan::{
            space::{only::tests::only, tests::matmul},
            stage::{Role, Stage, StageOp, Tensor, TensorId},
        },
        protocol::Blobs,
    };

    fn variant(without: &[Pass], ops: &[StageOp]) -> Variant {
        let tensor = |name: &str, role| Tensor { name: name.to_owned(), shape: vec![8, 8], dtype: Dtype::F32, role };
        let stage = |(at, op): (usize, &StageOp)| Stage {
            name: format!("stage{at}"),
            op: op.clone(),
            inputs: vec![TensorId(0), TensorId(1)],
            output: TensorId(2),
            scheduled: true,
        };
        let tensors = vec![tensor("x", Role::Input), tensor("w", Role::Weight), tensor("y", Role::Output)];
        let stages = ops.iter().enumerate().map(stage).collect();
        let graph = StageGraph { block: "b".to_owned(), tensors, stages };
        Variant { without: without.to_vec(), ir: Blobs::new(), graph }
    }

    #[test]
    fn a_block_of_which_nothing_is_left_names_tuning_operation_stage_and_knobs() {
        let mut block = block("b", transformer());
        let (add, product) = (StageOp::Add { rows: 8, width: 8 }, matmul(8, 8, 8));
        let variants = || {
            vec![
                variant(&[], std::slice::from_ref(&add)),
                variant(&[Pass::FuseMlpBlock], &[add.clone(), product.clone()]),
                variant(&[Pass::FuseMatmulActivation], std::slice::from_ref(&product)),
            ]
        };
        let kept = |block: &BlockTarget| possible(variants(), block).map(|it| it.len()).unwrap();
        assert_eq!(kept(&block), 3);
        // What is only there without a fusion ends nothing.
        block.tuning.knobs = only("mr = 99");
        assert_eq!(kept(&block), 1);
        block.tuning.knobs = only("mr = 4");
        assert_eq!(kept(&block), 3);
        block.tuning.knobs = only("unroll = 7 99; mr = 99");
        let Err(Stop::Failed(it)) = possible(vec![variant(&[], &[add, product])], &block) else { panic!("a failure") };
        assert_eq!((it.kind, it.stage.as_deref()), (FailureKind::IllegalPlan, Some("stage1")));
        assert!(it.message.starts_with("[tuning.default.knobs] leaves no schedule for "), "{}", it.message);
        assert!(it.message.contains("`mr` = 99 (the space has 1, 2, 3, 4, 5, 6, 7, 8)"), "{}", it.message);
    }
}
