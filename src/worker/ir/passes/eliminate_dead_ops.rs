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

#[cfg(test)]
mod tests {
    use crate::ir::samples::{counts, gpt2, step};
    use kernelforge::manifest::spec::Pass;

    const PASS: Pass = Pass::EliminateDeadOps;

    #[test]
    fn what_fusing_and_folding_leave_behind_is_erased() {
        let before = [Pass::FoldConstants, Pass::FuseMatmulActivation, Pass::FuseMlpBlock];
        insta::assert_snapshot!(step("gpt2", &gpt2(), &before, PASS), @r#"
            %norm1 = layer_norm(%x, %norm1.gain, %norm1.bias) {eps = 1.000000e-05 : f64, stage = "norm1", vectorized = false}
            %attn.q = matmul(%norm1, %attn.wq, %attn.bq) {activation = "none", stage = "attn.q", tiled = false}
            %attn.k = matmul(%norm1, %attn.wk, %attn.bk) {activation = "none", stage = "attn.k", tiled = false}
            %attn.v = matmul(%norm1, %attn.wv, %attn.bv) {activation = "none", stage = "attn.v", tiled = false}
            %head_dim = constant() {value = 4.000000e+00 : f64}
            %factor = constant() {value = 5.000000e-01 : f64}
            %attn.scale = scale(%attn.q, %factor) {stage = "attn.scale"}
            %attn.core = attention(%attn.q, %attn.k, %attn.v) {batch = 1 : i64, causal = true, head_dim = 4 : i64, heads = 2 : i64, kv_heads = 2 : i64, scale = 5.000000e-01 : f64, seq = 4 : i64, stage = "attn.core", tiled = false}
            %attn.out = matmul(%attn.core, %attn.wo, %attn.bo, %x) {activation = "none", stage = "attn.out", tiled = false}
            %norm2 = layer_norm(%attn.out, %norm2.gain, %norm2.bias) {eps = 1.000000e-05 : f64, stage = "norm2", vectorized = false}
            %mlp.up = matmul(%norm2, %mlp.w_up, %mlp.b_up) {activation = "gelu-tanh", stage = "mlp.up", tiled = false}
            %mlp = mlp(%norm2, %mlp.w_up, %mlp.b_up, %mlp.w_down, %mlp.b_down, %attn.out) {activation = "gelu-tanh", stage = "mlp", tiled = false}
            return %mlp
            --- created 0, changed 0, erased 4 ---
            %norm1 = layer_norm(%x, %norm1.gain, %norm1.bias) {eps = 1.000000e-05 : f64, stage = "norm1", vectorized = false}
            %attn.q = matmul(%norm1, %attn.wq, %attn.bq) {activation = "none", stage = "attn.q", tiled = false}
            %attn.k = matmul(%norm1, %attn.wk, %attn.bk) {activation = "none", stage = "attn.k", tiled = false}
            %attn.v = matmul(%norm1, %attn.wv, %attn.bv) {activation = "none", stage = "attn.v", tiled = false}
            %attn.core = attention(%attn.q, %attn.k, %attn.v) {batch = 1 : i64, causal = true, head_dim = 4 : i64, heads = 2 : i64, kv_heads = 2 : i64, scale = 5.000000e-01 : f64, seq = 4 : i64, stage = "attn.core", tiled = false}
            %attn.out = matmul(%attn.core, %attn.wo, %attn.bo, %x) {activation = "none", stage = "attn.out", tiled = false}
            %norm2 = layer_norm(%attn.out, %norm2.gain, %norm2.bias) {eps = 1.000000e-05 : f64, stage = "norm2", vectorized = false}
            %mlp = mlp(%norm2, %mlp.w_up, %mlp.b_up, %mlp.w_down, %mlp.b_down, %attn.out) {activation = "gelu-tanh", stage = "mlp", tiled = false}
            return %mlp
            "#);
    }

    #[test]
    fn a_block_as_built_has_no_dead_ops() {
        assert!(step("gpt2", &gpt2(), &[], PASS).contains("created 0, changed 0, erased 0"));
    }

    /// Each op only becomes dead when the next one is erased.
    #[test]
    fn a_long_chain_dies_in_one_run() {
        let relu = |index: usize| {
            let x = if index == 0 { "%x".to_owned() } else { format!("%{}", index - 1) };
            let types = "(tensor<4x8xf32>) -> tensor<4x8xf32>";
            format!(r#"%{index} = "transformer.relu"({x}) {{stage = "r{index}"}} : {types}"#)
        };
        let chain: Vec<_> = (0..200).map(relu).collect();
        assert_eq!(counts(PASS, &format!("{}\nreturn %0 : tensor<4x8xf32>", chain.join("\n"))), (0, 0, 199));
        assert_eq!(counts(PASS, &format!("{}\nreturn %199 : tensor<4x8xf32>", chain.join("\n"))), (0, 0, 0));
    }
}
