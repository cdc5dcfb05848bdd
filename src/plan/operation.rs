//! Operations: one stage alone, with nothing that says which block it is from. Equal operations of different blocks are one
//! operation, and what was measured of it holds for all of them.

use super::stage::{Role, Stage, StageGraph, Tensor, TensorId};
use crate::digest::Digest;

/// What the graph, the stage and the result of an operation are called.
pub const NAME: &str = "op";

/// The graph of `stage` of `graph` alone: what other stages made is an input here, and names are those of positions. The stage
/// keeps how it is computed, the tensors their shapes and types, and two operands that are one tensor remain one.
pub fn isolate(graph: &StageGraph, stage: &Stage) -> StageGraph {
    let mut ids: Vec<TensorId> = Vec::new();
    let inputs = stage.inputs.iter().map(|&id| {
        let known = ids.iter().position(|it| *it == id);
        TensorId(known.unwrap_or_else(|| {
            ids.push(id);
            ids.len() - 1
        }))
    });
    let inputs = inputs.collect();
    let operand = |(position, &id): (usize, &TensorId)| {
        let Tensor { name, shape, dtype, role } = graph.tensor(id);
        let role = if *role == Role::Weight { Role::Weight } else { Role::Input };
        // Seeded tensors are filled by what they are, which these names say (`worker/verify/inputs.rs`).
        let name = match name.rsplit('.').next() {
            Some("gain") => "gain".to_owned(),
            Some("cos" | "sin") if name.starts_with("rope.") => name.clone(),
            _ => format!("in{position}"),
        };
        Tensor { name, shape: shape.clone(), dtype: *dtype, role }
    };
    let mut tensors: Vec<Tensor> = ids.iter().enumerate().map(operand).collect();
    let result = graph.tensor(stage.output);
    tensors.push(Tensor { name: NAME.to_owned(), role: Role::Output, ..result.clone() });
    let output = TensorId(tensors.len() - 1);
    let stage = Stage { name: NAME.to_owned(), op: stage.op.clone(), inputs, output, scheduled: true };
    StageGraph { block: NAME.to_owned(), tensors, stages: vec![stage] }
}

/// What an isolated operation is known by: equal signatures, equal work.
pub fn signature(operation: &StageGraph) -> Digest {
    // Plain data: it is JSON in every store.
    Digest::of(serde_json::to_string(operation).unwrap_or_default().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{manifest::spec::Dtype, plan::stage::StageOp};

    fn tensor(name: &str, role: Role) -> Tensor {
        Tensor { name: name.to_owned(), shape: vec![4, 4], dtype: Dtype::F32, role }
    }

    fn matmul(name: &str, inputs: &[usize], output: usize, residual: bool) -> Stage {
        let op = StageOp::Matmul { m: 4, n: 4, k: 4, bias: false, activation: None, residual };
        let inputs = inputs.iter().map(|it| TensorId(*it)).collect();
        Stage { name: name.to_owned(), op, inputs, output: TensorId(output), scheduled: true }
    }

    fn graph() -> StageGraph {
        let names = [("x", Role::Input), ("wq", Role::Weight), ("wk", Role::Weight), ("q", Role::Value)];
        let mut tensors: Vec<Tensor> = names.iter().map(|it| tensor(it.0, it.1)).collect();
        tensors.extend([tensor("k", Role::Value), tensor("y", Role::Output)]);
        let stages =
            vec![matmul("q", &[0, 1], 3, false), matmul("k", &[3, 2], 4, false), matmul("y", &[4, 1, 4], 5, true)];
        StageGraph { block: "b".to_owned(), tensors, stages }
    }

    #[test]
    fn equal_stages_of_a_block_are_one_operation() {
        let graph = graph();
        let [first, second, third] = [0, 1, 2].map(|it| isolate(&graph, &graph.stages[it]));
        assert_eq!(first, second);
        assert_eq!(signature(&first), signature(&second));
        assert_ne!(signature(&first), signature(&third));
        assert_eq!(
            first.tensors.iter().map(|it| it.role).collect::<Vec<_>>(),
            [Role::Input, Role::Weight, Role::Output]
        );
    }

    #[test]
    fn an_operand_that_is_read_twice_remains_one_tensor() {
        let graph = graph();
        let it = isolate(&graph, &graph.stages[2]);
        assert_eq!(it.stages[0].inputs, [TensorId(0), TensorId(1), TensorId(0)]);
        assert_eq!(it.tensors.len(), 3);
    }
}
