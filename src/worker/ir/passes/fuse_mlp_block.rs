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
//!
//! An MLP of one row, without a gate, stays as it is. A fused MLP is shared among threads by its row tiles, so its one row would be one
//! thread's, while each product alone is shared by its columns. There is nothing to be kept either: the hidden values are 12 KB
//! beside 19 MB of weights (768 to 3072 and back). A gated one is fused all the same: on a GPU its gate and its up product are then
//! one dispatch.

use super::{
    super::{
        dialect::{Op, activation_attribute},
        op::{View, operations, producer, shape, use_count},
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
    if gate.is_none() && *shape(x)?.first()? == 1 {
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
    let context = rewriter.context;
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

#[cfg(test)]
mod tests {
    use crate::ir::samples::{self, GATED_MLP, PLAIN_MLP, ROWS, counts, step};
    use kernelforge::manifest::spec::{BlockSpec, Dtype, MlpSpec, Pass, RowsSpec};

    const PASS: Pass = Pass::FuseMlpBlock;

    fn mlp(mlp: MlpSpec) -> BlockSpec {
        BlockSpec::Mlp { rows: ROWS, mlp, dtype: Dtype::F32 }
    }

    #[test]
    fn a_plain_mlp_becomes_one_op() {
        insta::assert_snapshot!(step("mlp", &mlp(PLAIN_MLP), &[], PASS), @r#"
            %mlp.up = matmul(%x, %mlp.w_up, %mlp.b_up) {activation = "none", stage = "mlp.up", tiled = false}
            %mlp.up_act = gelu_tanh(%mlp.up) {stage = "mlp.up_act"}
            %mlp.down = matmul(%mlp.up_act, %mlp.w_down, %mlp.b_down) {activation = "none", stage = "mlp.down", tiled = false}
            return %mlp.down
            --- created 1, changed 0, erased 1 ---
            %mlp.up = matmul(%x, %mlp.w_up, %mlp.b_up) {activation = "none", stage = "mlp.up", tiled = false}
            %mlp.up_act = gelu_tanh(%mlp.up) {stage = "mlp.up_act"}
            %mlp = mlp(%x, %mlp.w_up, %mlp.b_up, %mlp.w_down, %mlp.b_down) {activation = "gelu-tanh", stage = "mlp", tiled = false}
            return %mlp
            "#);
    }

    #[test]
    fn a_gated_mlp_becomes_one_op() {
        let gated = MlpSpec { bias: true, ..GATED_MLP };
        insta::assert_snapshot!(step("mlp", &mlp(gated), &[], PASS), @r#"
            %mlp.gate = matmul(%x, %mlp.w_gate, %mlp.b_gate) {activation = "none", stage = "mlp.gate", tiled = false}
            %mlp.gate_act = silu(%mlp.gate) {stage = "mlp.gate_act"}
            %mlp.up = matmul(%x, %mlp.w_up, %mlp.b_up) {activation = "none", stage = "mlp.up", tiled = false}
            %mlp.mul = mul(%mlp.gate_act, %mlp.up) {stage = "mlp.mul"}
            %mlp.down = matmul(%mlp.mul, %mlp.w_down, %mlp.b_down) {activation = "none", stage = "mlp.down", tiled = false}
            return %mlp.down
            --- created 1, changed 0, erased 1 ---
            %mlp.gate = matmul(%x, %mlp.w_gate, %mlp.b_gate) {activation = "none", stage = "mlp.gate", tiled = false}
            %mlp.gate_act = silu(%mlp.gate) {stage = "mlp.gate_act"}
            %mlp.up = matmul(%x, %mlp.w_up, %mlp.b_up) {activation = "none", stage = "mlp.up", tiled = false}
            %mlp.mul = mul(%mlp.gate_act, %mlp.up) {stage = "mlp.mul"}
            %mlp = mlp(%x, %mlp.w_gate, %mlp.b_gate, %mlp.w_up, %mlp.b_up, %mlp.w_down, %mlp.b_down) {activation = "silu", stage = "mlp", tiled = false}
            return %mlp
            "#);
    }

    #[test]
    fn an_mlp_with_fused_epilogues_becomes_one_op_with_the_residual() {
        let text = step("qwen", &samples::qwen(), &[Pass::FuseMatmulActivation], PASS);
        let mlp: Vec<_> = text.lines().filter(|it| it.contains("mlp") || it.starts_with("---")).collect();
        insta::assert_snapshot!(mlp.join("\n"), @r#"
            %mlp.gate = matmul(%norm2, %mlp.w_gate) {activation = "silu", stage = "mlp.gate", tiled = false}
            %mlp.up = matmul(%norm2, %mlp.w_up) {activation = "none", stage = "mlp.up", tiled = false}
            %mlp.mul = mul(%mlp.gate, %mlp.up) {stage = "mlp.mul"}
            %mlp.down = matmul(%mlp.mul, %mlp.w_down, %attn.out) {activation = "none", stage = "mlp.down", tiled = false}
            return %mlp.down
            --- created 1, changed 0, erased 1 ---
            %mlp.gate = matmul(%norm2, %mlp.w_gate) {activation = "silu", stage = "mlp.gate", tiled = false}
            %mlp.up = matmul(%norm2, %mlp.w_up) {activation = "none", stage = "mlp.up", tiled = false}
            %mlp.mul = mul(%mlp.gate, %mlp.up) {stage = "mlp.mul"}
            %mlp = mlp(%norm2, %mlp.w_gate, %mlp.w_up, %mlp.w_down, %attn.out) {activation = "silu", stage = "mlp", tiled = false}
            return %mlp
            "#);
    }

    /// An ungated MLP of single ops. `%h` are the hidden rows, `%y` is the result.
    const PLAIN: &str = r#"
        %u = "transformer.matmul"(%x, %up) {stage = "u", activation = "none", tiled = false,
            operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<4x8xf32>, tensor<8x16xf32>) -> tensor<4x16xf32>
        %h = "transformer.gelu"(%u) {stage = "h"} : (tensor<4x16xf32>) -> tensor<4x16xf32>
        %y = "transformer.matmul"(%h, %down) {stage = "y2", activation = "none", tiled = false,
            operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<4x16xf32>, tensor<16x8xf32>) -> tensor<4x8xf32>
        return %y : tensor<4x8xf32>"#;

    #[test]
    fn the_plain_form_is_fused() {
        assert_eq!(counts(PASS, PLAIN), (1, 0, 1));
    }

    #[test]
    fn one_row_prevents_it_without_a_gate() {
        let fused = |seq, mlp| {
            let block = BlockSpec::Mlp { rows: RowsSpec { batch: 1, seq }, mlp, dtype: Dtype::F32 };
            !step("mlp", &block, &[], PASS).contains("created 0")
        };
        assert_eq!([1, 2, 4].map(|seq| fused(seq, PLAIN_MLP)), [false, true, true]);
        assert!(fused(1, GATED_MLP));
    }

    #[test]
    fn hidden_rows_that_something_else_reads_prevent_it() {
        for hidden in ["%u", "%h"] {
            let reader = format!(
                r#"%z = "transformer.relu"({hidden}) {{stage = "z"}} : (tensor<4x16xf32>) -> tensor<4x16xf32>
                return"#
            );
            assert_eq!(counts(PASS, &PLAIN.replace("return", &reader)), (0, 0, 0), "{hidden}");
        }
    }

    #[test]
    fn an_activation_behind_the_last_matmul_prevents_it() {
        let body = PLAIN.replace(r#"{stage = "y2", activation = "none""#, r#"{stage = "y2", activation = "relu""#);
        assert_eq!(counts(PASS, &body), (0, 0, 0));
    }

    #[test]
    fn two_matmuls_without_an_activation_are_no_mlp() {
        assert_eq!(counts(PASS, &PLAIN.replace("(%h, %down)", "(%u, %down)")), (0, 0, 0));
    }

    #[test]
    fn two_activations_prevent_it() {
        let body = PLAIN.replace(r#"{stage = "u", activation = "none""#, r#"{stage = "u", activation = "relu""#);
        assert_eq!(counts(PASS, &body), (0, 0, 0));
    }

    #[test]
    fn a_bias_on_one_matmul_alone_prevents_it() {
        let body = PLAIN
            .replace("(%x, %up)", "(%x, %up, %c)")
            .replacen("array<i32: 1, 1, 0, 0>", "array<i32: 1, 1, 1, 0>", 1)
            .replacen("tensor<8x16xf32>)", "tensor<8x16xf32>, tensor<16xf32>)", 1);
        assert_eq!(counts(PASS, &body), (0, 0, 0));
    }

    #[test]
    fn a_residual_inside_prevents_it() {
        let body = PLAIN
            .replace("(%x, %up)", "(%x, %up, %r)")
            .replacen("array<i32: 1, 1, 0, 0>", "array<i32: 1, 1, 0, 1>", 1)
            .replacen("tensor<8x16xf32>)", "tensor<8x16xf32>, tensor<4x16xf32>)", 1);
        let r = r#"%r = "transformer.matmul"(%x, %up) {stage = "r", activation = "none", tiled = false,
            operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<4x8xf32>, tensor<8x16xf32>) -> tensor<4x16xf32>"#;
        assert_eq!(counts(PASS, &format!("{r}{body}")), (0, 0, 0));
    }

    /// act(x w_gate) * (x w_up), with the operands of the product in this order.
    fn gated(a: &str, b: &str, up_input: &str) -> String {
        let up = r#"%v = "transformer.matmul"(INPUT, %up) {stage = "v", activation = "none", tiled = false,
            operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<4x8xf32>, tensor<8x16xf32>) -> tensor<4x16xf32>"#;
        let r = r#"%r = "transformer.relu"(%x) {stage = "r"} : (tensor<4x8xf32>) -> tensor<4x8xf32>"#;
        let mul = format!(
            r#"%p = "transformer.mul"({a}, {b}) {{stage = "p"}}
                : (tensor<4x16xf32>, tensor<4x16xf32>) -> tensor<4x16xf32>
            %y ="#
        );
        let body = PLAIN.replace("%y =", &mul).replace("(%h, %down)", "(%p, %down)");
        format!("{r}\n{}\n{body}", up.replace("INPUT", up_input))
    }

    #[test]
    fn the_gate_may_be_either_operand() {
        assert_eq!(counts(PASS, &gated("%h", "%v", "%x")), (1, 0, 1));
        assert_eq!(counts(PASS, &gated("%v", "%h", "%x")), (1, 0, 1));
    }

    #[test]
    fn a_gate_of_another_input_prevents_it() {
        assert_eq!(counts(PASS, &gated("%h", "%v", "%r")), (0, 0, 0));
    }

    #[test]
    fn a_square_of_the_gate_is_no_gated_mlp() {
        assert_eq!(counts(PASS, &gated("%h", "%h", "%x")), (0, 0, 0));
    }

    #[test]
    fn matmuls_that_are_tiled_become_a_tiled_mlp() {
        let text = step("mlp", &mlp(PLAIN_MLP), &[Pass::TileMatmul], PASS);
        assert!(text.contains(r#"mlp(%x, %mlp.w_up, %mlp.b_up, %mlp.w_down, %mlp.b_down)"#), "{text}");
        let fused = text.lines().find(|it| it.starts_with("%mlp =")).unwrap_or_default();
        assert!(fused.contains("tiled = true"), "{fused}");
    }

    #[test]
    fn a_taken_stage_name_is_not_taken_again() {
        let body = PLAIN.replace(r#""y2""#, r#""u.down""#);
        let text = samples::rewrite(&samples::module(&body), &[PASS]).map(|it| it.0).unwrap_or_default();
        assert!(text.contains(r#"stage = "u.down""#), "{text}");
    }
}
