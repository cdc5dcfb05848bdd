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
    rewriter.change(&matmul, None, &[("activation", activation_attribute(rewriter.context, Some(function)))]);
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

#[cfg(test)]
mod tests {
    use crate::ir::samples::{self, counts, step};
    use kernelforge::manifest::spec::{Activation, BlockSpec, Dtype, Pass};

    const PASS: Pass = Pass::FuseMatmulActivation;

    #[test]
    fn activations_and_residuals_move_into_matmuls() {
        insta::assert_snapshot!(step("gpt2", &samples::gpt2(), &[], PASS), @r#"
            %norm1 = layer_norm(%x, %norm1.gain, %norm1.bias) {eps = 1.000000e-05 : f64, stage = "norm1", vectorized = false}
            %attn.q = matmul(%norm1, %attn.wq, %attn.bq) {activation = "none", stage = "attn.q", tiled = false}
            %attn.k = matmul(%norm1, %attn.wk, %attn.bk) {activation = "none", stage = "attn.k", tiled = false}
            %attn.v = matmul(%norm1, %attn.wv, %attn.bv) {activation = "none", stage = "attn.v", tiled = false}
            %head_dim = constant() {value = 4.000000e+00 : f64}
            %factor = rsqrt(%head_dim)
            %attn.scale = scale(%attn.q, %factor) {stage = "attn.scale"}
            %attn.core = attention(%attn.scale, %attn.k, %attn.v) {batch = 1 : i64, causal = true, head_dim = 4 : i64, heads = 2 : i64, kv_heads = 2 : i64, scale = 1.000000e+00 : f64, seq = 4 : i64, stage = "attn.core", tiled = false}
            %attn.out = matmul(%attn.core, %attn.wo, %attn.bo) {activation = "none", stage = "attn.out", tiled = false}
            %attn.residual = add(%x, %attn.out) {stage = "attn.residual"}
            %norm2 = layer_norm(%attn.residual, %norm2.gain, %norm2.bias) {eps = 1.000000e-05 : f64, stage = "norm2", vectorized = false}
            %mlp.up = matmul(%norm2, %mlp.w_up, %mlp.b_up) {activation = "none", stage = "mlp.up", tiled = false}
            %mlp.up_act = gelu_tanh(%mlp.up) {stage = "mlp.up_act"}
            %mlp.down = matmul(%mlp.up_act, %mlp.w_down, %mlp.b_down) {activation = "none", stage = "mlp.down", tiled = false}
            %mlp.residual = add(%attn.residual, %mlp.down) {stage = "mlp.residual"}
            return %mlp.residual
            --- created 0, changed 3, erased 3 ---
            %norm1 = layer_norm(%x, %norm1.gain, %norm1.bias) {eps = 1.000000e-05 : f64, stage = "norm1", vectorized = false}
            %attn.q = matmul(%norm1, %attn.wq, %attn.bq) {activation = "none", stage = "attn.q", tiled = false}
            %attn.k = matmul(%norm1, %attn.wk, %attn.bk) {activation = "none", stage = "attn.k", tiled = false}
            %attn.v = matmul(%norm1, %attn.wv, %attn.bv) {activation = "none", stage = "attn.v", tiled = false}
            %head_dim = constant() {value = 4.000000e+00 : f64}
            %factor = rsqrt(%head_dim)
            %attn.scale = scale(%attn.q, %factor) {stage = "attn.scale"}
            %attn.core = attention(%attn.scale, %attn.k, %attn.v) {batch = 1 : i64, causal = true, head_dim = 4 : i64, heads = 2 : i64, kv_heads = 2 : i64, scale = 1.000000e+00 : f64, seq = 4 : i64, stage = "attn.core", tiled = false}
            %attn.out = matmul(%attn.core, %attn.wo, %attn.bo, %x) {activation = "none", stage = "attn.out", tiled = false}
            %norm2 = layer_norm(%attn.out, %norm2.gain, %norm2.bias) {eps = 1.000000e-05 : f64, stage = "norm2", vectorized = false}
            %mlp.up = matmul(%norm2, %mlp.w_up, %mlp.b_up) {activation = "gelu-tanh", stage = "mlp.up", tiled = false}
            %mlp.down = matmul(%mlp.up, %mlp.w_down, %mlp.b_down, %attn.out) {activation = "none", stage = "mlp.down", tiled = false}
            return %mlp.down
            "#);
    }

    #[test]
    fn every_activation_is_fused_as_itself() {
        for function in Activation::ALL {
            let (m, n, k, activation) = (4, 8, 16, Some(function));
            let spec = BlockSpec::Matmul { m, n, k, b: Default::default(), bias: false, activation, dtype: Dtype::F32 };
            let text = step("m", &spec, &[], PASS);
            assert!(text.contains(&format!("activation = \"{}\"", function.name())), "{text}");
        }
    }

    #[test]
    fn only_an_activation_that_is_there_is_fused() {
        let spec = BlockSpec::Matmul {
            m: 4,
            n: 8,
            k: 16,
            b: Default::default(),
            bias: true,
            activation: None,
            dtype: Dtype::F32,
        };
        assert!(step("m", &spec, &[], PASS).contains("created 0, changed 0, erased 0"));
    }

    const MATMUL: &str = r#"%m = "transformer.matmul"(%x, %w) {stage = "m", activation = "none", tiled = false,
        operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>"#;

    fn unary(result: &str, name: &str, x: &str) -> String {
        format!(r#"{result} = "transformer.{name}"({x}) {{stage = "{name}"}} : (tensor<4x8xf32>) -> tensor<4x8xf32>"#)
    }

    fn add(result: &str, a: &str, b: &str) -> String {
        let types = "(tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>";
        format!(r#"{result} = "transformer.add"({a}, {b}) {{stage = "add"}} : {types}"#)
    }

    fn body(lines: &[&str]) -> String {
        format!("{MATMUL}\n{}\nreturn %y : tensor<4x8xf32>", lines.join("\n"))
    }

    #[test]
    fn an_activation_after_a_residual_stays() {
        let body = body(&[&add("%a", "%x", "%m"), &unary("%y", "relu", "%a")]);
        assert_eq!(counts(PASS, &body), (0, 1, 1), "the residual alone");
    }

    #[test]
    fn a_residual_after_an_activation_goes_with_it() {
        let body = body(&[&unary("%a", "relu", "%m"), &add("%y", "%a", "%x")]);
        assert_eq!(counts(PASS, &body), (0, 1, 2));
    }

    #[test]
    fn a_second_activation_stays() {
        let body = body(&[&unary("%a", "relu", "%m"), &unary("%y", "gelu", "%a")]);
        assert_eq!(counts(PASS, &body), (0, 1, 1), "the first alone");
    }

    #[test]
    fn a_second_residual_stays() {
        let second = add("%y", "%a", "%x").replace("\"add\"}", "\"add2\"}");
        assert_eq!(counts(PASS, &body(&[&add("%a", "%x", "%m"), &second])), (0, 1, 1), "the first alone");
    }

    #[test]
    fn a_matmul_that_others_read_too_keeps_its_result() {
        let both = body(&[&unary("%a", "relu", "%m"), &add("%y", "%a", "%m")]);
        assert_eq!(counts(PASS, &both), (0, 0, 0));
        assert_eq!(counts(PASS, &body(&[&add("%y", "%m", "%m")])), (0, 0, 0));
        let returned = body(&[&unary("%a", "relu", "%m")]).replace("%y :", "%m :");
        assert_eq!(counts(PASS, &returned), (0, 0, 0));
    }

    #[test]
    fn a_residual_that_is_computed_after_the_matmul_stays() {
        assert_eq!(counts(PASS, &body(&[&unary("%r", "relu", "%x"), &add("%y", "%r", "%m")])), (0, 0, 0));
    }

    #[test]
    fn of_two_matmuls_the_later_one_takes_the_other_as_residual() {
        let second = MATMUL.replace("%m", "%n").replace("\"m\"", "\"n\"");
        for (a, b) in [("%m", "%n"), ("%n", "%m")] {
            assert_eq!(counts(PASS, &body(&[&second, &add("%y", a, b)])), (0, 1, 1));
        }
    }

    #[test]
    fn a_fused_mlp_takes_a_residual_too() {
        let before = [Pass::FuseMlpBlock, Pass::EliminateDeadOps];
        let text = step("gpt2", &samples::gpt2(), &before, PASS);
        assert!(text.contains("created 0, changed 2, erased 2"), "{text}");
        assert!(text.contains("%mlp.b_down, %attn.out)"), "{text}");
    }

    #[test]
    fn a_product_of_two_values_is_no_residual() {
        assert_eq!(counts(PASS, &body(&[&add("%y", "%x", "%m").replace(".add", ".mul")])), (0, 0, 0));
    }
}
