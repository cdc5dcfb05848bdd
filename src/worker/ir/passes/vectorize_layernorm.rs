//! `vectorize-layernorm`: asks for a vector schedule for every layer norm and RMS norm. Without the mark they are scalar
//! loops.

use super::{
    super::{dialect::Op, op::View},
    driver::{Pattern, Rewriter},
};
use melior::ir::attribute::BoolAttribute;

pub fn patterns() -> Vec<(Op, Pattern)> {
    [Op::LayerNorm, Op::RmsNorm].map(|op| (op, mark as Pattern)).to_vec()
}

fn mark(rewriter: &Rewriter<'_, '_>, view: &View<'_, '_>) -> Option<()> {
    if view.flag("vectorized")? {
        return None;
    }
    rewriter.change(view, None, &[("vectorized", BoolAttribute::new(rewriter.context, true).into())]);
    Some(())
}

#[cfg(test)]
mod tests {
    use crate::ir::samples::{LAYER_NORM, MULTI_HEAD, RMS_NORM, ROWS, step};
    use kernelforge::manifest::spec::{BlockSpec, Dtype, Pass};

    const PASS: Pass = Pass::VectorizeLayernorm;

    #[test]
    fn every_norm_is_marked() {
        let norms = [LAYER_NORM, RMS_NORM].map(|norm| {
            let spec = BlockSpec::LayerNorm { rows: ROWS, d_model: 8, norm, dtype: Dtype::F32 };
            step("norm", &spec, &[], PASS)
        });
        insta::assert_snapshot!(norms.join("\n\n"), @r#"
            %norm = layer_norm(%x, %norm.gain, %norm.bias) {eps = 1.000000e-05 : f64, stage = "norm", vectorized = false}
            return %norm
            --- created 0, changed 1, erased 0 ---
            %norm = layer_norm(%x, %norm.gain, %norm.bias) {eps = 1.000000e-05 : f64, stage = "norm", vectorized = true}
            return %norm

            %norm = rms_norm(%x, %norm.gain) {eps = 9.9999999999999995E-7 : f64, stage = "norm", vectorized = false}
            return %norm
            --- created 0, changed 1, erased 0 ---
            %norm = rms_norm(%x, %norm.gain) {eps = 9.9999999999999995E-7 : f64, stage = "norm", vectorized = true}
            return %norm
            "#);
    }

    #[test]
    fn other_ops_are_left_alone() {
        let spec = BlockSpec::Attention { rows: ROWS, attention: MULTI_HEAD, dtype: Dtype::F32 };
        assert!(step("a", &spec, &[], PASS).contains("created 0, changed 0, erased 0"));
    }
}
