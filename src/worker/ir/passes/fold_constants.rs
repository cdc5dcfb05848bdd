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
    let context = rewriter.context;
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
    let context = rewriter.context;
    let factor = FloatAttribute::new(context, Type::float64(context), factor).into();
    rewriter.change(view, Some(&[scale.operand("x"), view.operand("k"), view.operand("v")]), &[("scale", factor)]);
    Some(())
}

#[cfg(test)]
mod tests {
    use crate::ir::samples::{MULTI_HEAD, ROWS, counts, step};
    use kernelforge::manifest::spec::{BlockSpec, Dtype, Pass};

    const PASS: Pass = Pass::FoldConstants;

    #[test]
    fn the_scale_of_an_attention_moves_into_it() {
        let spec = BlockSpec::Attention { rows: ROWS, attention: MULTI_HEAD, dtype: Dtype::F32 };
        insta::assert_snapshot!(step("a", &spec, &[], PASS), @r#"
            %attn.q = matmul(%x, %attn.wq, %attn.bq) {activation = "none", stage = "attn.q", tiled = false}
            %attn.k = matmul(%x, %attn.wk, %attn.bk) {activation = "none", stage = "attn.k", tiled = false}
            %attn.v = matmul(%x, %attn.wv, %attn.bv) {activation = "none", stage = "attn.v", tiled = false}
            %head_dim = constant() {value = 4.000000e+00 : f64}
            %factor = rsqrt(%head_dim)
            %attn.scale = scale(%attn.q, %factor) {stage = "attn.scale"}
            %attn.core = attention(%attn.scale, %attn.k, %attn.v) {batch = 1 : i64, causal = true, head_dim = 4 : i64, heads = 2 : i64, kv_heads = 2 : i64, scale = 1.000000e+00 : f64, seq = 4 : i64, stage = "attn.core", tiled = false}
            %attn.out = matmul(%attn.core, %attn.wo, %attn.bo) {activation = "none", stage = "attn.out", tiled = false}
            return %attn.out
            --- created 1, changed 1, erased 1 ---
            %attn.q = matmul(%x, %attn.wq, %attn.bq) {activation = "none", stage = "attn.q", tiled = false}
            %attn.k = matmul(%x, %attn.wk, %attn.bk) {activation = "none", stage = "attn.k", tiled = false}
            %attn.v = matmul(%x, %attn.wv, %attn.bv) {activation = "none", stage = "attn.v", tiled = false}
            %head_dim = constant() {value = 4.000000e+00 : f64}
            %factor = constant() {value = 5.000000e-01 : f64}
            %attn.scale = scale(%attn.q, %factor) {stage = "attn.scale"}
            %attn.core = attention(%attn.q, %attn.k, %attn.v) {batch = 1 : i64, causal = true, head_dim = 4 : i64, heads = 2 : i64, kv_heads = 2 : i64, scale = 5.000000e-01 : f64, seq = 4 : i64, stage = "attn.core", tiled = false}
            %attn.out = matmul(%attn.core, %attn.wo, %attn.bo) {activation = "none", stage = "attn.out", tiled = false}
            return %attn.out
            "#);
    }

    /// A scale of `%x` by `factor`, then these lines.
    fn scaled(factor: &str, rest: &str) -> String {
        format!(
            r#"%f = "transformer.constant"() {{value = {factor} : f64}} : () -> tensor<f32>
            %s = "transformer.scale"(%x, %f) {{stage = "s"}} : (tensor<4x8xf32>, tensor<f32>) -> tensor<4x8xf32>
            {rest}"#
        )
    }

    fn attention(q: &str, k: &str) -> String {
        format!(
            r#"%0 = "transformer.attention"({q}, {k}, %x) {{stage = "core", batch = 1, seq = 4, heads = 2, kv_heads = 2,
                head_dim = 4, causal = true, scale = 1.0, tiled = false}}
                : (tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>"#
        )
    }

    const RETURN: &str = "return %0 : tensor<4x8xf32>";
    const RELU: &str = r#"%0 = "transformer.relu"(%s) {stage = "r"} : (tensor<4x8xf32>) -> tensor<4x8xf32>"#;

    #[test]
    fn a_scale_by_one_is_its_operand() {
        assert_eq!(counts(PASS, &scaled("1.0", &format!("{RELU} {RETURN}"))), (0, 0, 1));
    }

    #[test]
    fn any_other_scale_stays() {
        assert_eq!(counts(PASS, &scaled("1.0000000001", &format!("{RELU} {RETURN}"))), (0, 0, 0));
    }

    #[test]
    fn a_scale_that_makes_the_result_from_an_argument_stays() {
        assert_eq!(counts(PASS, &scaled("1.0", "return %s : tensor<4x8xf32>")), (0, 0, 0));
    }

    #[test]
    fn a_scale_of_keys_stays() {
        let body = scaled("0.5", &format!("{} {RETURN}", attention("%x", "%s")));
        assert_eq!(counts(PASS, &body), (0, 0, 0));
    }

    #[test]
    fn a_scale_that_others_read_too_stays() {
        for other in [attention("%s", "%s"), format!("{} {}", attention("%s", "%x"), RELU.replace("%0", "%1"))] {
            assert_eq!(counts(PASS, &scaled("0.5", &format!("{other} {RETURN}"))), (0, 0, 0), "{other}");
        }
    }

    #[test]
    fn scales_multiply() {
        let body = scaled("0.5", &attention("%s", "%x").replace("scale = 1.0", "scale = 0.25"));
        let text = crate::ir::samples::rewrite(&crate::ir::samples::module(&format!("{body} {RETURN}")), &[PASS]);
        assert!(text.is_ok_and(|it| it.0.contains("scale = 1.250000e-01")));
    }
}
