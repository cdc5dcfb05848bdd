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
        Attribute, Identifier, Location, Module, Operation, Type, Value,
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
    diagnostics::capture(context, || {
        let broken =
            || Failure::new(FailureKind::Internal, "the definition of the `transformer` dialect does not load");
        let module = Module::parse(context, DEFINITION).ok_or_else(broken)?;
        load_irdl_dialects(&module).then_some(()).ok_or_else(broken)
    })
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
