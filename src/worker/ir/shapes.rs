//! The verifier for what IRDL cannot see: relations between shapes, sizes and attributes, stage names, where scalars come
//! from. It runs after MLIR's own verifier, on every module that kforge builds, rewrites or reads, and it lists every
//! mistake, each with the place in the manifest that the op came from.

use super::{
    dialect::Op,
    function::{Function, refuse},
    op::{self, View},
};
use kernelforge::{manifest::spec::Dtype, plan::stage::Role, protocol::Failure};
use melior::ir::{Module, OperationRef, Value, ValueLike, operation::OperationLike, r#type::RankedTensorType};
use std::collections::HashSet;

/// Every mistake in the module. Assumes that MLIR's verifier has passed it.
pub fn check(module: &Module<'_>) -> Result<(), Vec<Failure>> {
    let function = Function::of(module).map_err(|failure| vec![failure])?;
    let mut checker = Checker { failures: Vec::new() };
    checker.function(&function);
    if checker.failures.is_empty() { Ok(()) } else { Err(checker.failures) }
}

/// No tensor is larger than what a pointer can span, so that later sizes in bytes never overflow.
const MAX_ELEMENTS: usize = isize::MAX as usize / 8;

struct Checker {
    failures: Vec<Failure>,
}

impl Checker {
    fn function(&mut self, function: &Function<'_, '_>) {
        let mut names = HashSet::from([identifier(function.output)]);
        for argument in &function.arguments {
            let name = argument.name;
            if !names.insert(identifier(name)) {
                self.failures.push(refuse(function.operation, &format!("two tensors are named `{name}`")));
            }
            if let Err(message) = tensor(argument.value) {
                self.failures.push(refuse(function.operation, &format!("argument `{name}`: {message}")));
            }
        }
        if !function.arguments.iter().any(|it| it.role == Role::Input) {
            self.failures.push(refuse(function.operation, "a block has an argument with the role \"input\""));
        }
        for &operation in &function.operations {
            let message = match View::of(operation) {
                Some(view) => self::operation(&view, &mut names),
                None => Err("is no op of the `transformer` dialect".to_owned()),
            };
            if let Err(message) = message {
                self.failures.push(refuse(operation, &message));
            }
        }
        if !op::producer(function.returned).is_some_and(|it| it.op.is_stage()) {
            self.failures.push(refuse(function.operation, "the result is not computed by a stage"));
        }
    }
}

/// Names that become the same C identifier are the same name.
fn identifier(name: &str) -> String {
    name.replace(['.', '-'], "_")
}

type Check = Result<(), String>;

fn ensure(holds: bool, message: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(message()) }
}

fn operation(view: &View<'_, '_>, names: &mut HashSet<String>) -> Check {
    known_attributes(view.operation, view.op)?;
    if view.op.is_stage() {
        let stage = view.stage().unwrap_or_default();
        let legal = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || matches!(it, '.' | '_' | '-');
        ensure(stage.starts_with(|it: char| it.is_ascii_lowercase()) && stage.chars().all(legal), || {
            format!("stage name `{stage}` is not of the form `attn.q`")
        })?;
        ensure(names.insert(identifier(stage)), || format!("stage name `{stage}` is already taken"))?;
    }
    if let Some(result) = view.result() {
        tensor(result).map_err(|message| format!("result: {message}"))?;
    }
    elements(view)?;
    relations(view).unwrap_or_else(|| Err("operands or attributes are not of the kinds that the op takes".to_owned()))
}

/// MLIR accepts attributes that IRDL does not name; a misspelt one would silently mean nothing.
fn known_attributes(operation: OperationRef<'_, '_>, op: Op) -> Check {
    for index in 0..operation.attribute_count() {
        let Ok((name, _)) = operation.attribute_at(index) else { continue };
        let name = name.as_string_ref().as_str().unwrap_or_default();
        ensure(op.attributes().contains(&name), || format!("has no attribute `{name}`"))?;
    }
    Ok(())
}

/// Every tensor of a stage is stored alike, but for f32 tables and scalars.
fn elements(view: &View<'_, '_>) -> Check {
    let Some(result) = view.result().and_then(op::dtype) else { return Ok(()) };
    for (operand, value) in view.op.operands().iter().zip(&view.operands) {
        let Some(found) = value.and_then(op::dtype) else { continue };
        let expected = if matches!(operand.name, "cos" | "sin" | "factor") { Dtype::F32 } else { result };
        ensure(found == expected, || format!("`{}` is {}, must be {}", operand.name, found.name(), expected.name()))?;
    }
    Ok(())
}

/// A non-empty static tensor of f32, f16 or bf16.
fn tensor(value: Value<'_, '_>) -> Check {
    let r#type = value.r#type();
    let wrong = || format!("`{type}` is not a static, dense tensor of f32, f16 or bf16");
    let shape = op::shape(value).ok_or_else(wrong)?;
    let tensor = RankedTensorType::try_from(r#type).map_err(|_| wrong())?;
    ensure(op::dtype(value).is_some() && tensor.encoding().is_none(), wrong)?;
    let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    ensure(elements != Some(0), || format!("`{type}` has no elements"))?;
    ensure(elements.is_some_and(|it| it <= MAX_ELEMENTS), || format!("`{type}` is larger than memory can be"))
}

/// The relations of one op; `None` where an operand or attribute cannot be read at all.
fn relations(view: &View<'_, '_>) -> Option<Check> {
    match view.op {
        Op::Matmul => matmul(view),
        Op::Attention => attention(view),
        Op::LayerNorm | Op::RmsNorm => norm(view),
        Op::Rope => rope(view),
        Op::Activation(_) | Op::Add | Op::Mul => matrix(view.result()?).map(|_| Ok(())),
        Op::Scale => scale(view),
        Op::Constant => constant(view),
        Op::Rsqrt => rsqrt(view),
        Op::Mlp => mlp(view),
    }
}

fn matrix(value: Value<'_, '_>) -> Option<[usize; 2]> {
    op::shape(value)?.try_into().ok()
}

/// `name` is a vector of `width` elements, or absent.
fn vector(view: &View<'_, '_>, name: &str, width: usize) -> Check {
    let Some(shape) = view.operand(name).map(op::shape) else { return Ok(()) };
    ensure(shape.as_deref() == Some(&[width]), || format!("`{name}` is {}, must be {width}", text(shape.as_deref())))
}

/// `name` is a matrix of this shape, or absent.
fn sized(view: &View<'_, '_>, name: &str, expected: [usize; 2], because: &str) -> Check {
    let Some(shape) = view.operand(name).map(op::shape) else { return Ok(()) };
    ensure(shape.as_deref() == Some(&expected), || {
        format!("`{name}` is {}, must be {} ({because})", text(shape.as_deref()), text(Some(&expected)))
    })
}

fn text(shape: Option<&[usize]>) -> String {
    match shape {
        Some([]) => "a scalar".to_owned(),
        Some(shape) => shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x"),
        None => "no static tensor".to_owned(),
    }
}

fn matmul(view: &View<'_, '_>) -> Option<Check> {
    view.activation()?;
    view.flag("tiled")?;
    let [m, k] = matrix(view.operand("a")?)?;
    let [w_rows, n] = matrix(view.operand("w")?)?;
    let y = op::shape(view.result()?)?;
    let check = ensure(w_rows == k, || format!("`w` has {w_rows} rows, but `a` has {k} columns"))
        .and_then(|()| vector(view, "bias", n))
        .and_then(|()| ensure(y == [m, n], || format!("the result is {}, must be {m}x{n}", text(Some(&y)))));
    Some(check)
}

fn attention(view: &View<'_, '_>) -> Option<Check> {
    view.flag("causal")?;
    view.flag("tiled")?;
    let scale = view.float("scale")?;
    Some(heads(view, &["batch", "seq", "heads", "kv_heads", "head_dim"]).and_then(|sizes| {
        let [batch, seq, heads, kv_heads, head_dim] = sizes;
        ensure(heads % kv_heads == 0, || format!("{heads} heads are not a multiple of {kv_heads} kv_heads"))?;
        let rows = product(batch, seq)?;
        sized(view, "q", [rows, product(heads, head_dim)?], "batch*seq x heads*head_dim")?;
        sized(view, "k", [rows, product(kv_heads, head_dim)?], "batch*seq x kv_heads*head_dim")?;
        ensure(scale.is_finite(), || format!("scale {scale} is not finite"))
    }))
}

fn rope(view: &View<'_, '_>) -> Option<Check> {
    Some(heads(view, &["batch", "seq", "heads", "head_dim"]).and_then(|sizes| {
        let [batch, seq, heads, head_dim] = sizes;
        ensure(head_dim % 2 == 0, || format!("head_dim {head_dim} is odd, but rotary embedding turns pairs"))?;
        sized(view, "x", [product(batch, seq)?, product(heads, head_dim)?], "batch*seq x heads*head_dim")?;
        sized(view, "cos", [seq, head_dim / 2], "seq x head_dim/2")
    }))
}

/// Positive integer attributes.
fn heads<const N: usize>(view: &View<'_, '_>, names: &[&str; N]) -> Result<[usize; N], String> {
    let mut sizes = [0; N];
    for (size, name) in sizes.iter_mut().zip(names) {
        *size = view.size(name).filter(|&it| it > 0).ok_or_else(|| format!("`{name}` is not a positive i64"))?;
    }
    Ok(sizes)
}

fn product(a: usize, b: usize) -> Result<usize, String> {
    a.checked_mul(b).ok_or_else(|| format!("{a} * {b} is larger than memory can be"))
}

fn norm(view: &View<'_, '_>) -> Option<Check> {
    view.flag("vectorized")?;
    let eps = view.float("eps")?;
    let [_, width] = matrix(view.operand("x")?)?;
    let check = vector(view, "gain", width)
        .and_then(|()| vector(view, "bias", width))
        .and_then(|()| ensure(eps.is_finite() && eps >= 0.0, || format!("eps {eps} is not a finite number from 0 up")));
    Some(check)
}

fn scale(view: &View<'_, '_>) -> Option<Check> {
    matrix(view.operand("x")?)?;
    let factor = op::producer(view.operand("factor")?);
    Some(ensure(factor.is_some_and(|it| matches!(it.op, Op::Constant | Op::Rsqrt)), || {
        "the factor is neither a constant nor its rsqrt".to_owned()
    }))
}

fn constant(view: &View<'_, '_>) -> Option<Check> {
    let value = view.float("value")?;
    Some(ensure((value as f32).is_finite(), || format!("{value:e} is not a finite f32")))
}

fn rsqrt(view: &View<'_, '_>) -> Option<Check> {
    let value = op::producer(view.operand("x")?).filter(|it| it.op == Op::Constant).and_then(|it| it.float("value"));
    Some(match value {
        Some(value) => ensure(value > 0.0, || format!("{value} has no inverse square root")),
        None => Err("the operand is not a constant".to_owned()),
    })
}

fn mlp(view: &View<'_, '_>) -> Option<Check> {
    view.activation()??;
    view.flag("tiled")?;
    let [_, d_model] = matrix(view.operand("x")?)?;
    let [_, d_ff] = matrix(view.operand("w_up")?)?;
    let has = |name: &str| view.operand(name).is_some();
    let check = sized(view, "w_up", [d_model, d_ff], "d_model x d_ff")
        .and_then(|()| sized(view, "w_gate", [d_model, d_ff], "d_model x d_ff"))
        .and_then(|()| sized(view, "w_down", [d_ff, d_model], "d_ff x d_model"))
        .and_then(|()| vector(view, "b_gate", d_ff))
        .and_then(|()| vector(view, "b_up", d_ff))
        .and_then(|()| vector(view, "b_down", d_model))
        .and_then(|()| {
            let biased = has("b_up");
            ensure(has("b_down") == biased && has("b_gate") == (biased && has("w_gate")), || {
                "either all of its matrices have a bias or none".to_owned()
            })
        });
    Some(check)
}

#[cfg(test)]
mod tests {
    use crate::ir::samples::{module, refusal, rewrite};

    /// A matmul of `%x` and `w`, whose location is a place in a manifest.
    fn matmul(w: &str, shape: &str, result: &str) -> String {
        format!(
            r#"%0 = "transformer.matmul"(%x, {w}) {{stage = "s", activation = "none", tiled = false,
                operandSegmentSizes = array<i32: 1, 1, 0, 0>}}
                : (tensor<4x8xf32>, tensor<{shape}xf32>) -> tensor<{result}xf32> loc("s"("workloads/x.toml":3:5))
                return %x : tensor<4x8xf32>"#
        )
    }

    #[test]
    fn the_rows_of_a_weight_must_be_the_columns_of_the_activations() {
        insta::assert_snapshot!(refusal(&matmul("%down", "16x8", "4x8")), @"
            workloads/x.toml:3:5: `transformer.matmul`: `w` has 16 rows, but `a` has 8 columns
            -:1:1: `func.func`: the result is not computed by a stage
            ");
    }

    #[test]
    fn a_result_must_have_the_product_s_shape() {
        insta::assert_snapshot!(refusal(&matmul("%up", "8x16", "4x8")), @"
            workloads/x.toml:3:5: `transformer.matmul`: the result is 4x8, must be 4x16
            -:1:1: `func.func`: the result is not computed by a stage
            ");
    }

    #[test]
    fn a_bias_must_be_as_long_as_a_row() {
        insta::assert_snapshot!(refusal(
            r#"%0 = "transformer.matmul"(%x, %w, %c) {stage = "s", activation = "none", tiled = false,
                operandSegmentSizes = array<i32: 1, 1, 1, 0>}
                : (tensor<4x8xf32>, tensor<8x8xf32>, tensor<16xf32>) -> tensor<4x8xf32>
                return %0 : tensor<4x8xf32>"#
        ), @"-:8:6: `transformer.matmul`: `bias` is 16, must be 8");
    }

    #[test]
    fn every_mistake_is_listed() {
        insta::assert_snapshot!(refusal(
            r#"%0 = "transformer.layer_norm"(%x, %c, %c) {stage = "norm", eps = -1.0, vectorized = false}
                : (tensor<4x8xf32>, tensor<16xf32>, tensor<16xf32>) -> tensor<4x8xf32> loc("a.toml":1:1)
            %1 = "transformer.rms_norm"(%0, %b) {stage = "norm", eps = 1.0, vectorized = false}
                : (tensor<4x8xf32>, tensor<8xf32>) -> tensor<4x8xf32> loc("a.toml":2:1)
            %2 = "transformer.rms_norm"(%1, %b) {stage = "norm2", eps = 0x7FF0000000000000 : f64, vectorized = false}
                : (tensor<4x8xf32>, tensor<8xf32>) -> tensor<4x8xf32> loc("a.toml":3:1)
            %3 = "transformer.gelu"(%2) {stage = "Act", color = "red"}
                : (tensor<4x8xf32>) -> tensor<4x8xf32> loc("a.toml":4:1)
            %4 = "transformer.gelu"(%3) {stage = "Act"} : (tensor<4x8xf32>) -> tensor<4x8xf32> loc("a.toml":5:1)
            return %4 : tensor<4x8xf32>"#
        ), @"
            a.toml:1:1: `transformer.layer_norm`: `gain` is 16, must be 8
            a.toml:2:1: `transformer.rms_norm`: stage name `norm` is already taken
            a.toml:3:1: `transformer.rms_norm`: eps inf is not a finite number from 0 up
            a.toml:4:1: `transformer.gelu`: has no attribute `color`
            a.toml:5:1: `transformer.gelu`: stage name `Act` is not of the form `attn.q`
            ");
    }

    fn attention(attributes: &str) -> String {
        format!(
            r#"%0 = "transformer.attention"(%x, %x, %x) {{stage = "core", causal = true, tiled = false, {attributes}}}
                : (tensor<4x8xf32>, tensor<4x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>
                return %0 : tensor<4x8xf32>"#
        )
    }

    #[test]
    fn heads_must_fit_the_rows() {
        let fitting = "batch = 2, seq = 2, heads = 2, kv_heads = 2, head_dim = 4, scale = 1.0";
        assert!(refusal(&attention(fitting)).starts_with("accepted"));
        let cases = [
            ("batch = 2", "batch = 3"),
            ("seq = 2", "seq = 0"),
            ("kv_heads = 2", "kv_heads = 3"),
            ("kv_heads = 2", "kv_heads = 1"),
            ("head_dim = 4", "head_dim = 4 : i32"),
            ("heads = 2,", "heads = 9223372036854775807,"),
            ("scale = 1.0", "scale = 0x7FF0000000000000 : f64"),
        ];
        let refusals: Vec<_> = cases.map(|(from, to)| refusal(&attention(&fitting.replacen(from, to, 1)))).into();
        insta::assert_snapshot!(refusals.join("\n"), @"
            -:8:6: `transformer.attention`: `q` is 4x8, must be 6x8 (batch*seq x heads*head_dim)
            -:8:6: `transformer.attention`: `seq` is not a positive i64
            -:8:6: `transformer.attention`: 2 heads are not a multiple of 3 kv_heads
            -:8:6: `transformer.attention`: `k` is 4x8, must be 4x4 (batch*seq x kv_heads*head_dim)
            -:8:6: `transformer.attention`: `head_dim` is not a positive i64
            -:8:6: `transformer.attention`: 9223372036854775807 heads are not a multiple of 2 kv_heads
            -:8:6: `transformer.attention`: scale inf is not finite
            ");
    }

    #[test]
    fn rotary_embedding_turns_pairs() {
        let rope = |seq: usize, head_dim: usize| {
            refusal(&format!(
                r#"%0 = "transformer.rope"(%x, %w, %w) {{stage = "r", batch = 1, seq = {seq}, heads = 1,
                    head_dim = {head_dim}}} : (tensor<4x8xf32>, tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
                    return %0 : tensor<4x8xf32>"#
            ))
        };
        insta::assert_snapshot!([rope(4, 7), rope(5, 8), rope(4, 8)].join("\n"), @"
            -:8:6: `transformer.rope`: head_dim 7 is odd, but rotary embedding turns pairs
            -:8:6: `transformer.rope`: `x` is 4x8, must be 5x8 (batch*seq x heads*head_dim)
            -:8:6: `transformer.rope`: `cos` is 8x8, must be 4x4 (seq x head_dim/2)
            ");
    }

    #[test]
    fn scalars_come_from_constants() {
        let scaled = |scalar: &str| {
            refusal(&format!(
                r#"{scalar}
                %0 = "transformer.scale"(%x, %f) {{stage = "s"}} : (tensor<4x8xf32>, tensor<f32>) -> tensor<4x8xf32>
                return %0 : tensor<4x8xf32>"#
            ))
        };
        let constant = |value: &str| {
            let constant = r#"%c1 = "transformer.constant"() {value = VALUE} : () -> tensor<f32>"#;
            constant.replace("VALUE", value)
        };
        let rsqrt = |of: &str, result: &str| {
            format!(r#"%{result} = "transformer.rsqrt"(%{of}) : (tensor<f32>) -> tensor<f32>"#)
        };
        let refusals = [
            scaled(&format!("{}\n{}", constant("0.0"), rsqrt("c1", "f"))),
            scaled(&format!("{}\n{}\n{}", constant("4.0"), rsqrt("c1", "c2"), rsqrt("c2", "f"))),
            scaled(&constant("1.0e300 : f64").replace("c1", "f")),
        ];
        insta::assert_snapshot!(refusals.join("\n"), @"
            -:9:6: `transformer.rsqrt`: 0 has no inverse square root
            -:10:6: `transformer.rsqrt`: the operand is not a constant
            -:8:6: `transformer.constant`: 1e300 is not a finite f32
            ");
    }

    #[test]
    fn an_mlp_has_all_of_its_biases_or_none() {
        insta::assert_snapshot!(refusal(
            r#"%0 = "transformer.mlp"(%x, %up, %c, %down) {stage = "s", activation = "gelu", tiled = false,
                operandSegmentSizes = array<i32: 1, 0, 0, 1, 1, 1, 0, 0>}
                : (tensor<4x8xf32>, tensor<8x16xf32>, tensor<16xf32>, tensor<16x8xf32>) -> tensor<4x8xf32>
            %1 = "transformer.mlp"(%x, %up, %up) {stage = "t", activation = "gelu", tiled = false,
                operandSegmentSizes = array<i32: 1, 0, 0, 1, 0, 1, 0, 0>}
                : (tensor<4x8xf32>, tensor<8x16xf32>, tensor<8x16xf32>) -> tensor<4x8xf32>
            return %0 : tensor<4x8xf32>"#
        ), @"
            -:8:6: `transformer.mlp`: either all of its matrices have a bias or none
            -:11:18: `transformer.mlp`: `w_down` is 8x16, must be 16x8 (d_ff x d_model)
            ");
    }

    #[test]
    fn tensors_are_static_and_floating_point_and_not_empty() {
        let text = |r#type: &str| {
            let text = r#"func.func @t(%x: TYPE {kforge.name = "x", kforge.role = "input"})
                -> (TYPE {kforge.name = "y"}) {
                %0 = "transformer.relu"(%x) {stage = "s"} : (TYPE) -> TYPE
                return %0 : TYPE }"#;
            text.replace("TYPE", r#type)
        };
        let types = [
            "tensor<4x8xf64>",
            "tensor<?x8xf32>",
            "tensor<0x8xf32>",
            "tensor<4x8xf32, 1>",
            "tensor<4611686018427387904x2xf32>",
            "tensor<8xf32>",
        ];
        let refusals = types.map(|it| rewrite(&text(it), &[]).map_or_else(|it| it.message, |it| it.0));
        insta::assert_snapshot!(refusals.join("\n"), @"
            -:1:1: `func.func`: argument `x`: `tensor<4x8xf64>` is not a static, dense tensor of f32, f16 or bf16
            -:1:1: `func.func`: argument `x`: `tensor<?x8xf32>` is not a static, dense tensor of f32, f16 or bf16
            -:1:1: `func.func`: argument `x`: `tensor<0x8xf32>` has no elements
            -:1:1: `func.func`: argument `x`: `tensor<4x8xf32, 1 : i64>` is not a static, dense tensor of f32, f16 or bf16
            -:1:1: `func.func`: argument `x`: `tensor<4611686018427387904x2xf32>` is larger than memory can be
            -:3:22: `transformer.relu`: operands or attributes are not of the kinds that the op takes
            ");
    }

    #[test]
    fn the_tensors_of_a_stage_are_stored_alike_but_for_tables() {
        let mixed = |x: &str, table: &str| {
            let text = r#"func.func @t(%x: tensor<4x8xX> {kforge.name = "x", kforge.role = "input"},
                %t: tensor<4x4xT> {kforge.name = "t", kforge.role = "weight"}) -> (tensor<4x8xX> {kforge.name = "y"}) {
                %0 = "transformer.rope"(%x, %t, %t) {stage = "r", batch = 1, seq = 4, heads = 1, head_dim = 8}
                : (tensor<4x8xX>, tensor<4x4xT>, tensor<4x4xT>) -> tensor<4x8xX>
                return %0 : tensor<4x8xX> }"#;
            let text = text.replace("xX>", &format!("x{x}>")).replace("xT>", &format!("x{table}>"));
            rewrite(&text, &[]).map_or_else(|it| it.message, |it| it.0)
        };
        assert!(!mixed("f16", "f32").starts_with("-:"), "{}", mixed("f16", "f32"));
        let refused = "-:3:22: `transformer.rope`: `cos` is f16, must be f32";
        assert_eq!([mixed("f16", "f16"), mixed("f32", "f16")], [refused, refused]);
    }

    #[test]
    fn a_module_is_one_function_with_named_arguments_that_computes_what_it_returns() {
        let good = module(
            r#"%0 = "transformer.relu"(%x) {stage = "s"} : (tensor<4x8xf32>) -> tensor<4x8xf32>
            return %0 : tensor<4x8xf32>"#,
        );
        let changes = [
            ("return %0", "return %x"),
            (r#"kforge.name = "w""#, r#"kforge.name = "x""#),
            (r#"kforge.name = "y""#, r#"kforge.name = "s""#),
            (r#"kforge.role = "input""#, r#"kforge.role = "output""#),
            (r#"kforge.role = "input""#, r#"kforge.role = "weight""#),
            (r#"{kforge.name = "x", kforge.role = "input"}"#, ""),
            (r#" {kforge.name = "y"}"#, ""),
            ("return", "%k = arith.constant 0 : index return"),
        ];
        assert!(rewrite(&good, &[]).is_ok());
        let mut refusals: Vec<String> = changes
            .iter()
            .map(|(from, to)| good.replacen(from, to, 1))
            .chain([String::new(), format!("{good}{}", good.replace("@t", "@u")), "func.func private @t()".to_owned()])
            .map(|text| rewrite(&text, &[]).map_or_else(|it| it.message, |it| it.0))
            .collect();
        refusals.dedup();
        insta::assert_snapshot!(refusals.join("\n"), @r#"
            -:1:1: `func.func`: the result is not computed by a stage
            -:1:1: `func.func`: two tensors are named `x`
            -:8:6: `transformer.relu`: stage name `s` is already taken
            -:1:1: `func.func`: argument 0 has no `kforge.role` of "input" or "weight"
            -:1:1: `func.func`: a block has an argument with the role "input"
            -:1:1: `func.func`: argument 0 has no `kforge.name`
            -:1:1: `func.func`: the result has no `kforge.name`
            -:9:18: `arith.constant`: is no op of the `transformer` dialect
            -:0:0: `builtin.module`: a module holds one function, the block
            -:1:1: `func.func`: a block is a function with a body of one basic block
            "#);
    }
}
