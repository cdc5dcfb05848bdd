//! The `ir` step as a whole: what it makes of every kind of block.

use super::*;
use kernelforge::{
    manifest::spec::{AttentionSpec, Dtype, NormSpec, RowsSpec},
    plan::stage::Role,
};
use samples::{GATED_MLP, GROUPED, LAYER_NORM, MULTI_HEAD, RMS_NORM, ROWS, blocks, brief, gpt2, origins, qwen};
use std::fmt::Write;

/// One line for each stage: what it is, what it reads, what it writes.
fn stages(products: &Products) -> String {
    let graph = &products.stages;
    let mut text = String::new();
    for stage in &graph.stages {
        let inputs: Vec<_> = stage.inputs.iter().map(|&id| graph.tensor(id).name.as_str()).collect();
        let output = &graph.tensor(stage.output).name;
        let plain = if stage.scheduled { "" } else { " (plain)" };
        let _ = writeln!(text, "{}: {}({}) -> {output}{plain}", stage.name, stage.op.name(), inputs.join(", "));
    }
    text
}

fn built(name: &str, spec: &BlockSpec, passes: &[Pass]) -> Products {
    build(name, spec, passes, &origins()).unwrap_or_else(|failure| panic!("{name}: {failure:?}"))
}

#[test]
fn every_kind_has_its_documented_stages_and_tensors() {
    let text: Vec<_> =
        blocks().iter().map(|(name, spec)| format!("# {name}\n{}", stages(&built(name, spec, &[])))).collect();
    insta::assert_snapshot!(text.join("\n"), @"
        # gpt2
        norm1: layer-norm(x, norm1.gain, norm1.bias) -> norm1 (plain)
        attn.q: matmul(norm1, attn.wq, attn.bq) -> attn.q (plain)
        attn.k: matmul(norm1, attn.wk, attn.bk) -> attn.k (plain)
        attn.v: matmul(norm1, attn.wv, attn.bv) -> attn.v (plain)
        attn.scale: scale(attn.q) -> attn.scale
        attn.core: attention(attn.scale, attn.k, attn.v) -> attn.core (plain)
        attn.out: matmul(attn.core, attn.wo, attn.bo) -> attn.out (plain)
        attn.residual: add(x, attn.out) -> attn.residual
        norm2: layer-norm(attn.residual, norm2.gain, norm2.bias) -> norm2 (plain)
        mlp.up: matmul(norm2, mlp.w_up, mlp.b_up) -> mlp.up (plain)
        mlp.up_act: activation(mlp.up) -> mlp.up_act
        mlp.down: matmul(mlp.up_act, mlp.w_down, mlp.b_down) -> mlp.down (plain)
        mlp.residual: add(attn.residual, mlp.down) -> y

        # qwen
        norm1: rms-norm(x, norm1.gain) -> norm1 (plain)
        attn.q: matmul(norm1, attn.wq, attn.bq) -> attn.q (plain)
        attn.k: matmul(norm1, attn.wk, attn.bk) -> attn.k (plain)
        attn.v: matmul(norm1, attn.wv, attn.bv) -> attn.v (plain)
        attn.rope_q: rope(attn.q, rope.cos, rope.sin) -> attn.rope_q
        attn.rope_k: rope(attn.k, rope.cos, rope.sin) -> attn.rope_k
        attn.scale: scale(attn.rope_q) -> attn.scale
        attn.core: attention(attn.scale, attn.rope_k, attn.v) -> attn.core (plain)
        attn.out: matmul(attn.core, attn.wo) -> attn.out (plain)
        attn.residual: add(x, attn.out) -> attn.residual
        norm2: rms-norm(attn.residual, norm2.gain) -> norm2 (plain)
        mlp.gate: matmul(norm2, mlp.w_gate) -> mlp.gate (plain)
        mlp.gate_act: activation(mlp.gate) -> mlp.gate_act
        mlp.up: matmul(norm2, mlp.w_up) -> mlp.up (plain)
        mlp.mul: mul(mlp.gate_act, mlp.up) -> mlp.mul
        mlp.down: matmul(mlp.mul, mlp.w_down) -> mlp.down (plain)
        mlp.residual: add(attn.residual, mlp.down) -> y

        # transformer-microblock
        attn.q: matmul(x, attn.wq, attn.bq) -> attn.q (plain)
        attn.k: matmul(x, attn.wk, attn.bk) -> attn.k (plain)
        attn.v: matmul(x, attn.wv, attn.bv) -> attn.v (plain)
        attn.rope_q: rope(attn.q, rope.cos, rope.sin) -> attn.rope_q
        attn.rope_k: rope(attn.k, rope.cos, rope.sin) -> attn.rope_k
        attn.scale: scale(attn.rope_q) -> attn.scale
        attn.core: attention(attn.scale, attn.rope_k, attn.v) -> attn.core (plain)
        norm: layer-norm(attn.core, norm.gain, norm.bias) -> y (plain)

        # microblock
        matmul: matmul(x, w, b) -> matmul (plain)
        norm: rms-norm(matmul, norm.gain) -> y (plain)

        # attention
        attn.q: matmul(x, attn.wq, attn.bq) -> attn.q (plain)
        attn.k: matmul(x, attn.wk, attn.bk) -> attn.k (plain)
        attn.v: matmul(x, attn.wv, attn.bv) -> attn.v (plain)
        attn.scale: scale(attn.q) -> attn.scale
        attn.core: attention(attn.scale, attn.k, attn.v) -> attn.core (plain)
        attn.out: matmul(attn.core, attn.wo, attn.bo) -> y (plain)

        # mlp
        mlp.up: matmul(x, mlp.w_up, mlp.b_up) -> mlp.up (plain)
        mlp.up_act: activation(mlp.up) -> mlp.up_act
        mlp.down: matmul(mlp.up_act, mlp.w_down, mlp.b_down) -> y (plain)

        # gated-mlp
        mlp.gate: matmul(x, mlp.w_gate) -> mlp.gate (plain)
        mlp.gate_act: activation(mlp.gate) -> mlp.gate_act
        mlp.up: matmul(x, mlp.w_up) -> mlp.up (plain)
        mlp.mul: mul(mlp.gate_act, mlp.up) -> mlp.mul
        mlp.down: matmul(mlp.mul, mlp.w_down) -> y (plain)

        # matmul
        matmul: matmul(x, w) -> y (plain)

        # matmul-gelu
        matmul: matmul(x, w, b) -> matmul (plain)
        activation: activation(matmul) -> y

        # layer-norm
        norm: layer-norm(x, norm.gain, norm.bias) -> y (plain)

        # rms-norm
        norm: rms-norm(x, norm.gain) -> y (plain)
        ");
}

#[test]
fn the_default_pipeline_leaves_the_stages_that_are_generated() {
    let text = [("gpt2", gpt2()), ("qwen", qwen())]
        .map(|(name, spec)| format!("# {name}\n{}", stages(&built(name, &spec, &Pass::ALL))));
    insta::assert_snapshot!(text.join("\n"), @"
        # gpt2
        norm1: layer-norm(x, norm1.gain, norm1.bias) -> norm1
        attn.q: matmul(norm1, attn.wq, attn.bq) -> attn.q
        attn.k: matmul(norm1, attn.wk, attn.bk) -> attn.k
        attn.v: matmul(norm1, attn.wv, attn.bv) -> attn.v
        attn.core: attention(attn.q, attn.k, attn.v) -> attn.core
        attn.out: matmul(attn.core, attn.wo, attn.bo, x) -> attn.out
        norm2: layer-norm(attn.out, norm2.gain, norm2.bias) -> norm2
        mlp: mlp(norm2, mlp.w_up, mlp.b_up, mlp.w_down, mlp.b_down, attn.out) -> y

        # qwen
        norm1: rms-norm(x, norm1.gain) -> norm1
        attn.q: matmul(norm1, attn.wq, attn.bq) -> attn.q
        attn.k: matmul(norm1, attn.wk, attn.bk) -> attn.k
        attn.v: matmul(norm1, attn.wv, attn.bv) -> attn.v
        attn.rope_q: rope(attn.q, rope.cos, rope.sin) -> attn.rope_q
        attn.rope_k: rope(attn.k, rope.cos, rope.sin) -> attn.rope_k
        attn.core: attention(attn.rope_q, attn.rope_k, attn.v) -> attn.core
        attn.out: matmul(attn.core, attn.wo, x) -> attn.out
        norm2: rms-norm(attn.out, norm2.gain) -> norm2
        mlp: mlp(norm2, mlp.w_gate, mlp.w_up, mlp.w_down, attn.out) -> y
        ");
}

#[test]
fn the_optimised_module_has_the_shapes_and_attributes_of_the_manifest() {
    insta::assert_snapshot!(built("llama-s4", &qwen(), &Pass::ALL).optimized, @r#"
        module {
          func.func @"llama-s4"(%x: tensor<4x8xf32> {kforge.name = "x", kforge.role = "input"}, %norm1.gain: tensor<8xf32> {kforge.name = "norm1.gain", kforge.role = "weight"}, %attn.wq: tensor<8x16xf32> {kforge.name = "attn.wq", kforge.role = "weight"}, %attn.bq: tensor<16xf32> {kforge.name = "attn.bq", kforge.role = "weight"}, %attn.wk: tensor<8x8xf32> {kforge.name = "attn.wk", kforge.role = "weight"}, %attn.bk: tensor<8xf32> {kforge.name = "attn.bk", kforge.role = "weight"}, %attn.wv: tensor<8x8xf32> {kforge.name = "attn.wv", kforge.role = "weight"}, %attn.bv: tensor<8xf32> {kforge.name = "attn.bv", kforge.role = "weight"}, %rope.cos: tensor<4x2xf32> {kforge.name = "rope.cos", kforge.role = "weight"}, %rope.sin: tensor<4x2xf32> {kforge.name = "rope.sin", kforge.role = "weight"}, %attn.wo: tensor<16x8xf32> {kforge.name = "attn.wo", kforge.role = "weight"}, %norm2.gain: tensor<8xf32> {kforge.name = "norm2.gain", kforge.role = "weight"}, %mlp.w_gate: tensor<8x16xf32> {kforge.name = "mlp.w_gate", kforge.role = "weight"}, %mlp.w_up: tensor<8x16xf32> {kforge.name = "mlp.w_up", kforge.role = "weight"}, %mlp.w_down: tensor<16x8xf32> {kforge.name = "mlp.w_down", kforge.role = "weight"}) -> (tensor<4x8xf32> {kforge.name = "y"}) {
            %norm1 = "transformer.rms_norm"(%x, %norm1.gain) {eps = 9.9999999999999995E-7 : f64, stage = "norm1", vectorized = true} : (tensor<4x8xf32>, tensor<8xf32>) -> tensor<4x8xf32>
            %attn.q = "transformer.matmul"(%norm1, %attn.wq, %attn.bq) {activation = "none", operandSegmentSizes = array<i32: 1, 1, 1, 0>, stage = "attn.q", tiled = true} : (tensor<4x8xf32>, tensor<8x16xf32>, tensor<16xf32>) -> tensor<4x16xf32>
            %attn.k = "transformer.matmul"(%norm1, %attn.wk, %attn.bk) {activation = "none", operandSegmentSizes = array<i32: 1, 1, 1, 0>, stage = "attn.k", tiled = true} : (tensor<4x8xf32>, tensor<8x8xf32>, tensor<8xf32>) -> tensor<4x8xf32>
            %attn.v = "transformer.matmul"(%norm1, %attn.wv, %attn.bv) {activation = "none", operandSegmentSizes = array<i32: 1, 1, 1, 0>, stage = "attn.v", tiled = true} : (tensor<4x8xf32>, tensor<8x8xf32>, tensor<8xf32>) -> tensor<4x8xf32>
            %attn.rope_q = "transformer.rope"(%attn.q, %rope.cos, %rope.sin) {batch = 1 : i64, head_dim = 4 : i64, heads = 4 : i64, seq = 4 : i64, stage = "attn.rope_q"} : (tensor<4x16xf32>, tensor<4x2xf32>, tensor<4x2xf32>) -> tensor<4x16xf32>
            %attn.rope_k = "transformer.rope"(%attn.k, %rope.cos, %rope.sin) {batch = 1 : i64, head_dim = 4 : i64, heads = 2 : i64, seq = 4 : i64, stage = "attn.rope_k"} : (tensor<4x8xf32>, tensor<4x2xf32>, tensor<4x2xf32>) -> tensor<4x8xf32>
            %attn.core = "transformer.attention"(%attn.rope_q, %attn.rope_k, %attn.v) {batch = 1 : i64, causal = true, head_dim = 4 : i64, heads = 4 : i64, kv_heads = 2 : i64, scale = 5.000000e-01 : f64, seq = 4 : i64, stage = "attn.core", tiled = true} : (tensor<4x16xf32>, tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<4x16xf32>
            %attn.out = "transformer.matmul"(%attn.core, %attn.wo, %x) {activation = "none", operandSegmentSizes = array<i32: 1, 1, 0, 1>, stage = "attn.out", tiled = true} : (tensor<4x16xf32>, tensor<16x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>
            %norm2 = "transformer.rms_norm"(%attn.out, %norm2.gain) {eps = 9.9999999999999995E-7 : f64, stage = "norm2", vectorized = true} : (tensor<4x8xf32>, tensor<8xf32>) -> tensor<4x8xf32>
            %mlp = "transformer.mlp"(%norm2, %mlp.w_gate, %mlp.w_up, %mlp.w_down, %attn.out) {activation = "silu", operandSegmentSizes = array<i32: 1, 1, 0, 1, 0, 1, 0, 1>, stage = "mlp", tiled = true} : (tensor<4x8xf32>, tensor<8x16xf32>, tensor<8x16xf32>, tensor<16x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>
            return %mlp : tensor<4x8xf32>
          }
        }
        "#);
}

#[test]
fn places_in_the_manifest_reach_no_product() {
    for (name, spec) in blocks() {
        let with = built(name, &spec, &Pass::ALL);
        let without = build(name, &spec, &Pass::ALL, &BTreeMap::new());
        let without = without.unwrap_or_else(|failure| panic!("{failure:?}"));
        assert_eq!((with.module, with.optimized), (without.module, without.optimized));
        assert_eq!(with.stages, without.stages);
    }
}

#[test]
fn a_printed_module_reads_back_as_the_same_stages() {
    for (name, spec) in blocks() {
        let Products { module, optimized, stages, .. } = built(name, &spec, &Pass::ALL);
        let read = |text: &str| with_context(|context| extract::extract(&checked(parse(context, text)?)?));
        assert_eq!(read(&optimized), Ok(stages), "{name}");
        assert_eq!(read(&module), Ok(built(name, &spec, &[]).stages), "{name}");
    }
}

#[test]
fn a_pass_that_finds_nothing_leaves_the_same_text() {
    let passes = [Pass::FoldConstants, Pass::EliminateDeadOps];
    let more = [Pass::FoldConstants, Pass::EliminateDeadOps, Pass::FoldConstants, Pass::EliminateDeadOps];
    assert_eq!(built("gpt2", &gpt2(), &passes).optimized, built("gpt2", &gpt2(), &more).optimized);
}

#[test]
fn weights_that_no_stage_reads_stay_in_the_graph() {
    let text = samples::module(
        r#"%0 = "transformer.relu"(%x) {stage = "s"} : (tensor<4x8xf32>) -> tensor<4x8xf32>
        return %0 : tensor<4x8xf32>"#,
    );
    let graph = with_context(|context| {
        let module = checked(parse(context, &text)?)?;
        Pass::ALL.iter().try_for_each(|&pass| apply(context, &module, pass).map(drop))?;
        extract::extract(&module)
    });
    let weights = graph.map(|it| it.with_role(Role::Weight).map(|(_, it)| it.name.clone()).collect::<Vec<_>>());
    assert_eq!(weights, Ok(["w", "up", "down", "b", "c"].map(str::to_owned).into()));
}

#[test]
fn emitted_ir_says_where_each_op_comes_from() {
    let text = text("gpt2", &gpt2(), &[], &origins(), IrView::Emit).unwrap_or_default();
    let locations: Vec<_> = text
        .lines()
        .filter(|it| it.trim_start().starts_with('%'))
        .filter_map(|it| Some(it.rsplit_once(" loc(")?.1.trim_end_matches(')')))
        .collect();
    insta::assert_snapshot!(locations.join("\n"), @r#"
        "norm1"("workloads/x.toml":8:1
        "attn.q"("workloads/x.toml":5:1
        "attn.k"("workloads/x.toml":6:1
        "attn.v"("workloads/x.toml":6:1
        "head_dim"("workloads/x.toml":1:1
        "factor"("workloads/x.toml":1:1
        "attn.scale"("workloads/x.toml":1:1
        "attn.core"("workloads/x.toml":5:1
        "attn.out"("workloads/x.toml":4:1
        "attn.residual"("workloads/x.toml":1:1
        "norm2"("workloads/x.toml":8:1
        "mlp.up"("workloads/x.toml":7:1
        "mlp.up_act"("workloads/x.toml":9:1
        "mlp.down"("workloads/x.toml":7:1
        "mlp.residual"("workloads/x.toml":1:1
        "#);
}

#[test]
fn optimised_ir_keeps_the_places() {
    let text = text("gpt2", &gpt2(), &Pass::ALL, &origins(), IrView::Optimized).unwrap_or_default();
    assert!(text.contains(r#"loc("mlp"("workloads/x.toml":7:1))"#), "{text}");
}

#[test]
fn steps_are_a_title_and_a_text_for_each_pass() {
    let text = text("gpt2", &gpt2(), &Pass::ALL, &origins(), IrView::Steps).unwrap_or_default();
    let steps: Vec<(String, String)> = serde_json::from_str(&text).unwrap_or_default();
    let titles: Vec<_> = steps.iter().map(|(title, _)| title.as_str()).collect();
    let expected: Vec<_> = std::iter::once("built").chain(Pass::ALL.map(Pass::name)).collect();
    assert_eq!(titles, expected);
    let products = built("gpt2", &gpt2(), &Pass::ALL);
    assert_eq!(steps.first().map(|it| &it.1), Some(&products.module));
    assert_eq!(steps.last().map(|it| &it.1), Some(&products.optimized));
}

#[test]
fn every_pass_of_the_default_pipeline_changes_a_block() {
    let reports = built("gpt2", &gpt2(), &Pass::ALL).passes;
    let text = reports
        .iter()
        .map(|it| format!("{}: created {}, changed {}, erased {}", it.pass.name(), it.created, it.changed, it.erased));
    insta::assert_snapshot!(text.collect::<Vec<_>>().join("\n"), @"
        fold-constants: created 1, changed 1, erased 1
        fuse-matmul-activation: created 0, changed 3, erased 3
        fuse-mlp-block: created 1, changed 0, erased 1
        eliminate-dead-ops: created 0, changed 0, erased 4
        tile-matmul: created 0, changed 6, erased 0
        vectorize-layernorm: created 0, changed 2, erased 0
        ");
}

#[test]
fn a_block_that_does_not_fit_is_refused_at_its_place_in_the_manifest() {
    let dtype = Dtype::F32;
    let attention = |attention| BlockSpec::Attention { rows: ROWS, attention, dtype };
    let huge = usize::MAX / 2;
    let cases = [
        attention(AttentionSpec { kv_heads: 3, ..GROUPED }),
        attention(AttentionSpec { head_dim: 5, ..GROUPED }),
        attention(AttentionSpec { heads: 0, kv_heads: 0, ..MULTI_HEAD }),
        attention(AttentionSpec { heads: huge, kv_heads: huge, ..MULTI_HEAD }),
        BlockSpec::Mlp { rows: RowsSpec { batch: huge, seq: huge }, mlp: GATED_MLP, dtype },
        BlockSpec::LayerNorm { rows: ROWS, d_model: 8, norm: NormSpec { eps: f64::NAN, ..LAYER_NORM }, dtype },
        BlockSpec::Microblock { m: 4, n: 0, k: 8, bias: true, norm: RMS_NORM, dtype },
    ];
    let failures =
        cases.map(|spec| build("b", &spec, &Pass::ALL, &origins()).map_or_else(|it| it.message, |it| it.module));
    insta::assert_snapshot!(failures.join("\n"), @"
        workloads/x.toml:6:1: `transformer.attention`: 4 heads are not a multiple of 3 kv_heads
        workloads/x.toml:12:1: `transformer.rope`: head_dim 5 is odd, but rotary embedding turns pairs
        workloads/x.toml:5:1: tensor `attn.wq` of 8x0 has no elements, or more than memory can hold
        workloads/x.toml:5:1: tensor `attn.wq` of 8x18446744073709551615 has no elements, or more than memory can hold
        workloads/x.toml:4:1: tensor `x` of 18446744073709551615x8 has no elements, or more than memory can hold
        workloads/x.toml:8:1: `transformer.layer_norm`: eps NaN is not a finite number from 0 up
        workloads/x.toml:14:1: tensor `w` of 8x0 has no elements, or more than memory can hold
        ");
}

#[test]
fn a_block_of_halves_has_tensors_of_halves_but_for_its_rotary_tables() {
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let spec = crate::verify::samples::stored(&crate::verify::samples::llama(), dtype);
        assert_eq!(spec.dtype(), dtype);
        let products = built("llama", &spec, &Pass::ALL);
        for tensor in &products.stages.tensors {
            let expected = if tensor.name.starts_with("rope.") { Dtype::F32 } else { dtype };
            assert_eq!(tensor.dtype, expected, "{}", tensor.name);
        }
        let stored = format!("tensor<16x64x{}>", dtype.name());
        assert!(products.module.contains(&stored) && products.module.contains("tensor<8x16xf32>"));
    }
}

#[test]
fn threads_have_contexts_of_their_own() {
    let expected = built("gpt2", &gpt2(), &Pass::ALL).optimized;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| built("gpt2", &gpt2(), &Pass::ALL).optimized)).collect();
        for thread in threads {
            assert_eq!(thread.join().ok().as_deref(), Some(expected.as_str()));
        }
    });
}

#[test]
fn a_name_that_is_no_identifier_is_quoted() {
    let products = built("gpt2-small-s128", &gpt2(), &[]);
    assert!(products.module.contains(r#"@"gpt2-small-s128""#));
    assert_eq!(products.stages.block, "gpt2-small-s128");
    assert!(!brief(&products.module).is_empty());
}

/// `cargo test --bin kforge-worker ir::tests::costs -- --ignored --nocapture`
#[test]
#[ignore = "prints times"]
fn costs() {
    let timed = |what: &str, action: &mut dyn FnMut()| {
        let start = std::time::Instant::now();
        action();
        println!("{what}: {:?}", start.elapsed());
    };
    for _ in 0..3 {
        let mut fresh = None;
        timed("making a context", &mut || fresh = Some(context()));
        timed("loading the dialect", &mut || assert!(fresh.as_ref().is_some_and(|it| dialect::load(it).is_ok())));
        timed("building a block and running the passes", &mut || drop(built("gpt2", &gpt2(), &Pass::ALL)));
    }
}
