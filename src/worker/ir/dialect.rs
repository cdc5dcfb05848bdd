//! The ops of the `transformer` dialect: loading its IRDL definition into a context, and the one table of names that the
//! builder, the verifier, the passes and the extraction share. What an op may look like stands in `transformer.irdl.mlir`;
//! a test holds the two together.

use super::diagnostics;
use kernelforge::{
    manifest::spec::Activation,
    protocol::{Failure, FailureKind},
};
use melior::{
    Context,
    ir::{
        Attribute, Identifier, Location, Operation, Type, Value,
        attribute::{DenseI32ArrayAttribute, StringAttribute},
        operation::OperationBuilder,
    },
    utility::load_irdl_dialects,
};

const DEFINITION: &str = include_str!("transformer.irdl.mlir");

/// Where MLIR keeps which of an op's optional operands are there.
pub const SEGMENTS: &str = "operandSegmentSizes";

/// Teaches `context` the dialect; once for each context.
pub fn load(context: &Context) -> Result<(), Failure> {
    let definition = super::parse(context, DEFINITION)?;
    diagnostics::capture(context, || load_irdl_dialects(&definition).then_some(()).ok_or_else(diagnostics::refused))
        .map_err(|failure| Failure { kind: FailureKind::Internal, ..failure })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    Matmul,
    Attention,
    LayerNorm,
    RmsNorm,
    Rope,
    Activation(Activation),
    Add,
    Mul,
    Scale,
    Constant,
    Rsqrt,
    Mlp,
}

impl Op {
    pub const ALL: [Self; 15] = [
        Self::Matmul,
        Self::Attention,
        Self::LayerNorm,
        Self::RmsNorm,
        Self::Rope,
        Self::Activation(Activation::Gelu),
        Self::Activation(Activation::GeluTanh),
        Self::Activation(Activation::Silu),
        Self::Activation(Activation::Relu),
        Self::Add,
        Self::Mul,
        Self::Scale,
        Self::Constant,
        Self::Rsqrt,
        Self::Mlp,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Matmul => "transformer.matmul",
            Self::Attention => "transformer.attention",
            Self::LayerNorm => "transformer.layer_norm",
            Self::RmsNorm => "transformer.rms_norm",
            Self::Rope => "transformer.rope",
            Self::Activation(Activation::Gelu) => "transformer.gelu",
            Self::Activation(Activation::GeluTanh) => "transformer.gelu_tanh",
            Self::Activation(Activation::Silu) => "transformer.silu",
            Self::Activation(Activation::Relu) => "transformer.relu",
            Self::Add => "transformer.add",
            Self::Mul => "transformer.mul",
            Self::Scale => "transformer.scale",
            Self::Constant => "transformer.constant",
            Self::Rsqrt => "transformer.rsqrt",
            Self::Mlp => "transformer.mlp",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }

    pub const fn operands(self) -> &'static [Operand] {
        const fn one(name: &'static str) -> Operand {
            Operand { name, optional: false }
        }
        const fn optional(name: &'static str) -> Operand {
            Operand { name, optional: true }
        }
        match self {
            Self::Matmul => const { &[one("a"), one("w"), optional("bias"), optional("residual")] },
            Self::Attention => const { &[one("q"), one("k"), one("v")] },
            Self::LayerNorm => const { &[one("x"), one("gain"), one("bias")] },
            Self::RmsNorm => const { &[one("x"), one("gain")] },
            Self::Rope => const { &[one("x"), one("cos"), one("sin")] },
            Self::Activation(_) | Self::Rsqrt => const { &[one("x")] },
            Self::Add | Self::Mul => const { &[one("a"), one("b")] },
            Self::Scale => const { &[one("x"), one("factor")] },
            Self::Constant => &[],
            Self::Mlp => {
                const {
                    &[
                        one("x"),
                        optional("w_gate"),
                        optional("b_gate"),
                        one("w_up"),
                        optional("b_up"),
                        one("w_down"),
                        optional("b_down"),
                        optional("residual"),
                    ]
                }
            }
        }
    }

    /// Every attribute of the op; all are required.
    pub const fn attributes(self) -> &'static [&'static str] {
        match self {
            Self::Matmul => &["activation", SEGMENTS, "stage", "tiled"],
            Self::Attention => &["batch", "causal", "head_dim", "heads", "kv_heads", "scale", "seq", "stage", "tiled"],
            Self::LayerNorm | Self::RmsNorm => &["eps", "stage", "vectorized"],
            Self::Rope => &["batch", "head_dim", "heads", "seq", "stage"],
            Self::Activation(_) | Self::Add | Self::Mul | Self::Scale => &["stage"],
            Self::Constant => &["value"],
            Self::Rsqrt => &[],
            Self::Mlp => &["activation", SEGMENTS, "stage", "tiled"],
        }
    }

    /// Scalars are evaluated where they are used; every other op is a stage of the block.
    pub const fn is_stage(self) -> bool {
        !matches!(self, Self::Constant | Self::Rsqrt)
    }

    pub fn has_optional_operands(self) -> bool {
        self.operands().iter().any(|it| it.optional)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operand {
    pub name: &'static str,
    pub optional: bool,
}

/// An op of the dialect with one result; `operands` has one entry for each of [`Op::operands`].
pub fn operation<'c>(
    context: &'c Context,
    op: Op,
    operands: &[Option<Value<'c, '_>>],
    attributes: &[(&str, Attribute<'c>)],
    result: Type<'c>,
    location: Location<'c>,
) -> Result<Operation<'c>, melior::Error> {
    let present: Vec<_> = operands.iter().flatten().copied().collect();
    let mut attributes: Vec<_> =
        attributes.iter().map(|&(name, value)| (Identifier::new(context, name), value)).collect();
    if op.has_optional_operands() {
        attributes.push((Identifier::new(context, SEGMENTS), segments(context, operands)));
    }
    OperationBuilder::new(op.name(), location)
        .add_operands(&present)
        .add_attributes(&attributes)
        .add_results(&[result])
        .build()
}

/// The value of [`SEGMENTS`] for these operands.
pub fn segments<'c>(context: &'c Context, operands: &[Option<Value<'c, '_>>]) -> Attribute<'c> {
    let sizes: Vec<i32> = operands.iter().map(|it| i32::from(it.is_some())).collect();
    DenseI32ArrayAttribute::new(context, &sizes).into()
}

/// The value of the attribute `activation`.
pub fn activation_attribute(context: &Context, activation: Option<Activation>) -> Attribute<'_> {
    StringAttribute::new(context, activation.map_or("none", Activation::name)).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::samples::refusal;
    use std::collections::BTreeSet;

    /// The text between `start` and the next `end`.
    fn between<'t>(text: &'t str, start: &str, end: &str) -> Option<&'t str> {
        text.split_once(start)?.1.split_once(end).map(|it| it.0)
    }

    #[test]
    fn the_table_of_names_says_what_irdl_says() {
        for op in Op::ALL {
            let name = op.name().trim_start_matches("transformer.");
            let definition = between(DEFINITION, &format!("@{name} {{"), "\n  }\n").unwrap_or_default();
            let operands: Vec<(&str, bool)> = between(definition, "irdl.operands(", "\n    irdl.results")
                .unwrap_or_default()
                .trim_end_matches([')', '\n', ' '])
                .split(',')
                .filter_map(|it| it.split_once(':'))
                .map(|(name, constraint)| (name.trim(), constraint.contains("optional")))
                .collect();
            let expected: Vec<_> = op.operands().iter().map(|it| (it.name, it.optional)).collect();
            assert_eq!(operands, expected, "{name}");

            let attributes: BTreeSet<&str> = between(definition, "irdl.attributes {", "}")
                .unwrap_or_default()
                .split('"')
                .skip(1)
                .step_by(2)
                .collect();
            let expected: BTreeSet<&str> = op.attributes().iter().copied().filter(|it| *it != SEGMENTS).collect();
            assert_eq!(attributes, expected, "{name}");
        }
        assert_eq!(DEFINITION.matches("irdl.operation").count(), Op::ALL.len());
    }

    #[test]
    fn the_dialect_loads_into_more_than_one_context() {
        for _ in 0..2 {
            assert_eq!(load(&crate::ir::context()), Ok(()));
        }
    }

    #[test]
    fn an_op_without_an_attribute_is_refused_by_mlir() {
        insta::assert_snapshot!(refusal(
            r#"%0 = "transformer.matmul"(%x, %w) {activation = "none", tiled = false,
                operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
                return %0 : tensor<4x8xf32>"#
        ), @r#"-:8:6: 'transformer.matmul' op attribute "stage" is expected but not provided"#);
    }

    #[test]
    fn an_unknown_activation_is_refused_by_mlir() {
        insta::assert_snapshot!(refusal(
            r#"%0 = "transformer.matmul"(%x, %w) {stage = "s", activation = "tanh", tiled = false,
                operandSegmentSizes = array<i32: 1, 1, 0, 0>} : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
                return %0 : tensor<4x8xf32>"#
        ), @r#"-:8:6: '"tanh"' does not satisfy the constraint"#);
    }

    #[test]
    fn optional_operands_without_segment_sizes_are_refused_by_mlir() {
        insta::assert_snapshot!(refusal(
            r#"%0 = "transformer.matmul"(%x, %w, %b) {stage = "s", activation = "none", tiled = false}
                : (tensor<4x8xf32>, tensor<8x8xf32>, tensor<8xf32>) -> tensor<4x8xf32>
                return %0 : tensor<4x8xf32>"#
        ), @"-:8:6: 'operandSegmentSizes' attribute is expected but not provided");
    }

    #[test]
    fn segment_sizes_that_do_not_add_up_are_refused_by_mlir() {
        insta::assert_snapshot!(refusal(
            r#"%0 = "transformer.matmul"(%x, %w, %b) {stage = "s", activation = "none", tiled = false,
                operandSegmentSizes = array<i32: 1, 1, 1, 1>}
                : (tensor<4x8xf32>, tensor<8x8xf32>, tensor<8xf32>) -> tensor<4x8xf32>
                return %0 : tensor<4x8xf32>"#
        ), @"-:8:6: sum of elements in 'operandSegmentSizes' attribute must be equal to the number of operands");
    }

    #[test]
    fn a_residual_of_another_type_than_the_result_is_refused_by_mlir() {
        insta::assert_snapshot!(refusal(
            r#"%0 = "transformer.matmul"(%x, %w, %b) {stage = "s", activation = "none", tiled = false,
                operandSegmentSizes = array<i32: 1, 1, 0, 1>}
                : (tensor<4x8xf32>, tensor<8x8xf32>, tensor<8xf32>) -> tensor<4x8xf32>
                return %0 : tensor<4x8xf32>"#
        ), @"-:8:6: expected 'tensor<8xf32>' but got 'tensor<4x8xf32>'");
    }

    #[test]
    fn a_norm_without_its_bias_is_refused_by_mlir() {
        insta::assert_snapshot!(refusal(
            r#"%0 = "transformer.layer_norm"(%x, %b) {stage = "s", eps = 1.0e-5, vectorized = false}
                : (tensor<4x8xf32>, tensor<8xf32>) -> tensor<4x8xf32>
                return %0 : tensor<4x8xf32>"#
        ), @"-:8:6: op expects exactly 3 operands, but got 2");
    }

    #[test]
    fn a_flag_that_is_no_bool_is_refused_by_mlir() {
        insta::assert_snapshot!(refusal(
            r#"%0 = "transformer.rms_norm"(%x, %b) {stage = "s", eps = 1.0e-5, vectorized = "yes"}
                : (tensor<4x8xf32>, tensor<8xf32>) -> tensor<4x8xf32>
                return %0 : tensor<4x8xf32>"#
        ), @r#"-:8:6: '"yes"' does not satisfy the constraint"#);
    }

    #[test]
    fn an_unknown_op_of_the_dialect_is_refused_by_mlir() {
        insta::assert_snapshot!(refusal(
            r#"%0 = "transformer.matmull"(%x) : (tensor<4x8xf32>) -> tensor<4x8xf32> loc("workloads/x.toml":3:5)
                return %0 : tensor<4x8xf32>"#
        ), @"workloads/x.toml:3:5: unregistered operation 'transformer.matmull' found in dialect ('transformer') that does not allow unknown operations");
    }

    #[test]
    fn text_that_is_no_ir_is_refused_with_a_place() {
        insta::assert_snapshot!(refusal("%0 = add %x"), @"-:8:6: custom op 'add' is unknown (tried 'func.add' as well)");
        assert!(refusal("\0").contains("NUL"));
    }

    #[test]
    fn mlir_says_where_in_the_manifest_an_op_came_from() {
        insta::assert_snapshot!(refusal(
            r#"%0 = "transformer.relu"(%x) : (tensor<4x8xf32>) -> tensor<4x8xf32> loc("act"("workloads/x.toml":3:5))
                return %0 : tensor<4x8xf32>"#
        ), @r#"workloads/x.toml:3:5: 'transformer.relu' op attribute "stage" is expected but not provided"#);
    }
}
