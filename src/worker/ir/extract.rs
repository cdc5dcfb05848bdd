//! From a checked module to the stage graph that everything after the `ir` step works on. No decision is made here: an op
//! is a stage, a value is a tensor.

use super::{
    dialect::Op,
    function::{Function, refuse},
    op::{self, View},
};
use kernelforge::{
    plan::stage::{Factor, Role, Stage, StageGraph, StageOp, Tensor, TensorId},
    protocol::{Failure, FailureKind},
};
use melior::ir::{Module, Value};

/// The stages of a module that [`super::shapes`] has passed. Weights that no stage reads any more stay in the graph: they
/// are still part of the block's interface.
pub fn extract(module: &Module<'_>) -> Result<StageGraph, Failure> {
    let function = Function::of(module)?;
    let mut graph = StageGraph { block: function.name.to_owned(), tensors: Vec::new(), stages: Vec::new() };
    let mut values: Vec<(Value<'_, '_>, TensorId)> = Vec::new();
    for argument in &function.arguments {
        let id = push(&mut graph, argument.name, argument.value, argument.role)?;
        values.push((argument.value, id));
    }
    for &operation in &function.operations {
        let unreadable = || refuse(operation, "cannot be read as a stage");
        let view = View::of(operation).ok_or_else(unreadable)?;
        if !view.op.is_stage() {
            continue;
        }
        let (name, result) = (view.stage().ok_or_else(unreadable)?, view.result().ok_or_else(unreadable)?);
        let op = stage_op(&view).ok_or_else(unreadable)?;
        let (tensor, role) =
            if result == function.returned { (function.output, Role::Output) } else { (name, Role::Value) };
        let inputs = tensor_operands(&view)
            .map(|value| values.iter().find(|(it, _)| *it == value).map(|&(_, id)| id))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(unreadable)?;
        let output = push(&mut graph, tensor, result, role)?;
        values.push((result, output));
        graph.stages.push(Stage { name: name.to_owned(), op, inputs, output, scheduled: scheduled(&view) });
    }
    Ok(graph)
}

fn push(graph: &mut StageGraph, name: &str, value: Value<'_, '_>, role: Role) -> Result<TensorId, Failure> {
    let shape = op::shape(value)
        .ok_or_else(|| Failure::new(FailureKind::InvalidIr, format!("tensor `{name}` has no static shape")))?;
    let dtype = op::dtype(value).ok_or_else(|| {
        Failure::new(FailureKind::InvalidIr, format!("tensor `{name}` has no element type of a block"))
    })?;
    graph.tensors.push(Tensor { name: name.to_owned(), shape, dtype, role });
    Ok(TensorId(graph.tensors.len() - 1))
}

/// The operands that are tensors in memory: a scale's factor is part of the stage.
fn tensor_operands<'c, 'a>(view: &View<'c, 'a>) -> impl Iterator<Item = Value<'c, 'a>> {
    let count = if view.op == Op::Scale { 1 } else { view.operands.len() };
    view.operands.iter().take(count).flatten().copied()
}

/// Did a pass ask for a searched schedule? Elementwise ops always get one: nothing marks them, and they have no plain form
/// worth showing.
fn scheduled(view: &View<'_, '_>) -> bool {
    match view.op {
        Op::Matmul | Op::Attention | Op::Mlp => view.flag("tiled") == Some(true),
        Op::LayerNorm | Op::RmsNorm => view.flag("vectorized") == Some(true),
        Op::Rope | Op::Activation(_) | Op::Add | Op::Mul | Op::Scale | Op::Constant | Op::Rsqrt => true,
    }
}

fn stage_op(view: &View<'_, '_>) -> Option<StageOp> {
    let matrix = |value: Value<'_, '_>| -> Option<[usize; 2]> { op::shape(value)?.try_into().ok() };
    let has = |name: &str| view.operand(name).is_some();
    let [rows, width] = matrix(view.result()?).unwrap_or_default();
    Some(match view.op {
        Op::Matmul => {
            let [m, k] = matrix(view.operand("a")?)?;
            let activation = view.activation()?;
            StageOp::Matmul { m, n: width, k, bias: has("bias"), activation, residual: has("residual") }
        }
        Op::Attention => StageOp::Attention {
            batch: view.size("batch")?,
            seq: view.size("seq")?,
            heads: view.size("heads")?,
            kv_heads: view.size("kv_heads")?,
            head_dim: view.size("head_dim")?,
            causal: view.flag("causal")?,
            scale: view.float("scale")?,
        },
        Op::LayerNorm => StageOp::LayerNorm { rows, width, eps: view.float("eps")? },
        Op::RmsNorm => StageOp::RmsNorm { rows, width, eps: view.float("eps")? },
        Op::Rope => StageOp::Rope {
            batch: view.size("batch")?,
            seq: view.size("seq")?,
            heads: view.size("heads")?,
            head_dim: view.size("head_dim")?,
        },
        Op::Activation(function) => StageOp::Activation { rows, width, function },
        Op::Add => StageOp::Add { rows, width },
        Op::Mul => StageOp::Mul { rows, width },
        Op::Scale => StageOp::Scale { rows, width, factor: factor(view.operand("factor")?)? },
        Op::Mlp => {
            let [_, d_ff] = matrix(view.operand("w_up")?)?;
            StageOp::Mlp {
                rows,
                d_model: width,
                d_ff,
                activation: view.activation()??,
                gated: has("w_gate"),
                bias: has("b_up"),
                residual: has("residual"),
            }
        }
        Op::Constant | Op::Rsqrt => return None,
    })
}

fn factor(value: Value<'_, '_>) -> Option<Factor> {
    let view = op::producer(value)?;
    match view.op {
        Op::Constant => view.float("value").map(Factor::Value),
        Op::Rsqrt => op::producer(view.operand("x")?)?.float("value").map(Factor::InverseSqrt),
        _ => None,
    }
}
