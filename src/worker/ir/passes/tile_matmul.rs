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
    rewriter.change(view, None, &[("tiled", BoolAttribute::new(rewriter.context, true).into())]);
    Some(())
}

#[cfg(test)]
mod tests {
    use crate::ir::samples::{counts, gpt2, step};
    use kernelforge::manifest::spec::Pass;

    const PASS: Pass = Pass::TileMatmul;

    #[test]
    fn every_op_of_matrix_products_is_marked() {
        let text = step("gpt2", &gpt2(), &[Pass::FuseMlpBlock, Pass::EliminateDeadOps], PASS);
        insta::assert_snapshot!(text, @r#"
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
            %mlp = mlp(%norm2, %mlp.w_up, %mlp.b_up, %mlp.w_down, %mlp.b_down) {activation = "gelu-tanh", stage = "mlp", tiled = false}
            %mlp.residual = add(%attn.residual, %mlp) {stage = "mlp.residual"}
            return %mlp.residual
            --- created 0, changed 6, erased 0 ---
            %norm1 = layer_norm(%x, %norm1.gain, %norm1.bias) {eps = 1.000000e-05 : f64, stage = "norm1", vectorized = false}
            %attn.q = matmul(%norm1, %attn.wq, %attn.bq) {activation = "none", stage = "attn.q", tiled = true}
            %attn.k = matmul(%norm1, %attn.wk, %attn.bk) {activation = "none", stage = "attn.k", tiled = true}
            %attn.v = matmul(%norm1, %attn.wv, %attn.bv) {activation = "none", stage = "attn.v", tiled = true}
            %head_dim = constant() {value = 4.000000e+00 : f64}
            %factor = rsqrt(%head_dim)
            %attn.scale = scale(%attn.q, %factor) {stage = "attn.scale"}
            %attn.core = attention(%attn.scale, %attn.k, %attn.v) {batch = 1 : i64, causal = true, head_dim = 4 : i64, heads = 2 : i64, kv_heads = 2 : i64, scale = 1.000000e+00 : f64, seq = 4 : i64, stage = "attn.core", tiled = true}
            %attn.out = matmul(%attn.core, %attn.wo, %attn.bo) {activation = "none", stage = "attn.out", tiled = true}
            %attn.residual = add(%x, %attn.out) {stage = "attn.residual"}
            %norm2 = layer_norm(%attn.residual, %norm2.gain, %norm2.bias) {eps = 1.000000e-05 : f64, stage = "norm2", vectorized = false}
            %mlp = mlp(%norm2, %mlp.w_up, %mlp.b_up, %mlp.w_down, %mlp.b_down) {activation = "gelu-tanh", stage = "mlp", tiled = true}
            %mlp.residual = add(%attn.residual, %mlp) {stage = "mlp.residual"}
            return %mlp.residual
            "#);
    }

    #[test]
    fn other_ops_are_left_alone() {
        let body = r#"%0 = "transformer.rms_norm"(%x, %b) {stage = "s", eps = 1.0e-5, vectorized = false}
            : (tensor<4x8xf32>, tensor<8xf32>) -> tensor<4x8xf32>
            return %0 : tensor<4x8xf32>"#;
        assert_eq!(counts(PASS, body), (0, 0, 0));
    }
}
