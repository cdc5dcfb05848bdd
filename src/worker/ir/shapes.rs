//! The verifier for what IRDL cannot see: relations between shapes, sizes and attributes, stage names, where scalars come
//! from. It runs after MLIR's own verifier, on every module that kforge builds, rewrites or reads, and it lists every
//! mistake, each with the place in the manifest that the op came from.

use super::{
    dialect::Op,
    function::{Function, refuse},
    op::{self, View},
};
use kernelforge::{plan::stage::Role, protocol::Failure};
use melior::ir::{
    Module, OperationRef, ShapedTypeLike, TypeLike, Value, ValueLike, operation::OperationLike,
    r#type::RankedTensorType,
};
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

/// A non-empty static tensor of f32.
fn tensor(value: Value<'_, '_>) -> Check {
    let r#type = value.r#type();
    let wrong = || format!("`{type}` is not a static, dense tensor of f32");
    let shape = op::shape(value).ok_or_else(wrong)?;
    let tensor = RankedTensorType::try_from(r#type).map_err(|_| wrong())?;
    ensure(tensor.element().is_f32() && tensor.encoding().is_none(), wrong)?;
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
    Some(ensure((value as f32).is_finite(), || format!("{value} is not a finite f32")))
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
