//! From a block's manifest values to a module of the `transformer` dialect: one function, named like the block, whose
//! arguments are the input and the weights under their documented names, and one op for each step of the block, nothing
//! fused and nothing folded. This module says how ops and arguments are written down; `blocks` says which.

mod blocks;

use super::{
    dialect::{self, Op, activation_attribute},
    op,
};
use kernelforge::{
    manifest::spec::{Activation, BlockSpec, Dtype, Origin},
    protocol::{Failure, FailureKind},
};
use melior::{
    Context,
    dialect::func,
    ir::{
        Attribute, Block, BlockLike, BlockRef, Identifier, Location, Module, Region, RegionLike, Type, Value,
        ValueLike,
        attribute::{ArrayAttribute, BoolAttribute, DictionaryAttribute, FloatAttribute, IntegerAttribute},
        attribute::{StringAttribute, TypeAttribute},
        r#type::{FunctionType, IntegerType, RankedTensorType},
    },
};
use std::collections::BTreeMap;

/// The argument attributes that carry a tensor's documented name, and whether it is given once or with every call.
pub const NAME: &str = "kforge.name";
pub const ROLE: &str = "kforge.role";

/// No tensor is larger than what a pointer can span, so that sizes in elements and bytes never overflow later.
const MAX_ELEMENTS: usize = isize::MAX as usize / 8;

/// The module of one block. Fails where a tensor could not exist; relations between shapes are checked by
/// [`super::shapes`].
pub fn build<'c>(
    context: &'c Context,
    name: &str,
    spec: &BlockSpec,
    origins: &BTreeMap<String, Origin>,
) -> Result<Module<'c>, Failure> {
    let origins = Origins { context, origins };
    let module = Module::new(origins.of(""));
    let region = Region::new();
    let (signature, arguments, results) = {
        let mut builder = Builder {
            context,
            origins,
            dtype: spec.dtype(),
            block: region.append_block(Block::new(&[])),
            arguments: vec![],
        };
        let y = blocks::emit(&mut builder, spec)?;
        builder.block.append_operation(func::r#return(&[y], origins.of("")));
        let types = (0..builder.block.argument_count())
            .map(|index| builder.block.argument(index).map(|it| it.r#type()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(internal)?;
        let result = DictionaryAttribute::new(context, &[builder.string(NAME, "y")]);
        (FunctionType::new(context, &types, &[y.r#type()]), builder.arguments, result)
    };
    module.body().append_operation(func::func(
        context,
        StringAttribute::new(context, name),
        TypeAttribute::new(signature.into()),
        region,
        &[
            (Identifier::new(context, "arg_attrs"), ArrayAttribute::new(context, &arguments).into()),
            (Identifier::new(context, "res_attrs"), ArrayAttribute::new(context, &[results.into()]).into()),
        ],
        origins.of(""),
    ));
    Ok(module)
}

fn internal(error: melior::Error) -> Failure {
    Failure::new(FailureKind::Internal, format!("building the module: {error}"))
}

/// Where in the manifest each field was written.
#[derive(Clone, Copy)]
struct Origins<'c, 'o> {
    context: &'c Context,
    origins: &'o BTreeMap<String, Origin>,
}

impl<'c> Origins<'c, '_> {
    /// The place of a field; the block's own table when the field was left to its default.
    fn of(&self, field: &str) -> Location<'c> {
        match self.origins.get(field).or_else(|| self.origins.get("")) {
            Some(it) => Location::new(self.context, &it.file, it.line as usize, it.column as usize),
            None => Location::unknown(self.context),
        }
    }

    /// The same, with the name that MLIR prints the value under.
    fn named(&self, name: &str, field: &str) -> Location<'c> {
        Location::name(self.context, name, self.of(field))
    }
}

struct Builder<'c, 'a, 'o> {
    context: &'c Context,
    origins: Origins<'c, 'o>,
    /// Of all tensors but tables and scalars.
    dtype: Dtype,
    block: BlockRef<'c, 'a>,
    /// The attributes of the arguments so far.
    arguments: Vec<Attribute<'c>>,
}

impl<'c: 'a, 'a> Builder<'c, 'a, '_> {
    /// The tensor given with every call.
    fn input(&mut self, name: &str, shape: &[usize], field: &str) -> Result<Value<'c, 'a>, Failure> {
        self.argument(name, "input", shape, self.dtype, field)
    }

    /// A tensor given once.
    fn weight(&mut self, name: &str, shape: &[usize], field: &str) -> Result<Value<'c, 'a>, Failure> {
        self.argument(name, "weight", shape, self.dtype, field)
    }

    /// A weight that is f32 whatever the block is: values of a formula, not learned ones.
    fn table(&mut self, name: &str, shape: &[usize], field: &str) -> Result<Value<'c, 'a>, Failure> {
        self.argument(name, "weight", shape, Dtype::F32, field)
    }

    fn weight_if(
        &mut self,
        present: bool,
        name: &str,
        shape: &[usize],
        field: &str,
    ) -> Result<Option<Value<'c, 'a>>, Failure> {
        present.then(|| self.weight(name, shape, field)).transpose()
    }

    fn argument(
        &mut self,
        name: &str,
        role: &str,
        shape: &[usize],
        dtype: Dtype,
        field: &str,
    ) -> Result<Value<'c, 'a>, Failure> {
        let r#type = self.tensor(name, shape, dtype, field)?;
        let attributes = DictionaryAttribute::new(self.context, &[self.string(NAME, name), self.string(ROLE, role)]);
        self.arguments.push(attributes.into());
        Ok(self.block.add_argument(r#type, self.origins.named(name, field)))
    }

    fn tensor(&self, name: &str, shape: &[usize], dtype: Dtype, field: &str) -> Result<Type<'c>, Failure> {
        let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        if !elements.is_some_and(|it| (1..=MAX_ELEMENTS).contains(&it)) {
            let place = super::diagnostics::place(self.origins.of(field));
            let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
            let message = format!("{place}: tensor `{name}` of {shape} has no elements, or more than memory can hold");
            return Err(Failure::new(FailureKind::InvalidIr, message));
        }
        let shape: Vec<u64> = shape.iter().map(|&it| it as u64).collect();
        Ok(RankedTensorType::new(&shape, op::element_type(self.context, dtype), None).into())
    }

    /// Appends an op that is a stage.
    fn stage(
        &mut self,
        op: Op,
        name: &str,
        field: &str,
        operands: &[Option<Value<'c, 'a>>],
        attributes: &[(&str, Attribute<'c>)],
        result: Type<'c>,
    ) -> Result<Value<'c, 'a>, Failure> {
        let mut all = vec![("stage", StringAttribute::new(self.context, name).into())];
        all.extend_from_slice(attributes);
        self.append(op, operands, &all, result, self.origins.named(name, field))
    }

    fn append(
        &mut self,
        op: Op,
        operands: &[Option<Value<'c, 'a>>],
        attributes: &[(&str, Attribute<'c>)],
        result: Type<'c>,
        location: Location<'c>,
    ) -> Result<Value<'c, 'a>, Failure> {
        let operation = dialect::operation(self.context, op, operands, attributes, result, location);
        let operation = self.block.append_operation(operation.map_err(internal)?);
        Ok(operation.result(0).map_err(internal)?.into())
    }

    /// a w + bias.
    fn matmul(
        &mut self,
        name: &str,
        field: &str,
        a: Value<'c, 'a>,
        w: Value<'c, 'a>,
        bias: Option<Value<'c, 'a>>,
    ) -> Result<Value<'c, 'a>, Failure> {
        let (Some([rows, _]), Some([_, columns])) =
            (op::shape(a).as_deref().and_then(matrix), op::shape(w).as_deref().and_then(matrix))
        else {
            return Err(Failure::new(FailureKind::Internal, format!("operands of `{name}` are no matrices")));
        };
        let result = self.tensor(name, &[rows, columns], self.dtype, field)?;
        let attributes = [("activation", activation_attribute(self.context, None)), ("tiled", self.flag(false))];
        self.stage(Op::Matmul, name, field, &[Some(a), Some(w), bias, None], &attributes, result)
    }

    fn activation(&mut self, name: &str, function: Activation, x: Value<'c, 'a>) -> Result<Value<'c, 'a>, Failure> {
        self.stage(Op::Activation(function), name, "activation", &[Some(x)], &[], x.r#type())
    }

    /// `add` or `mul`.
    fn binary(
        &mut self,
        op: Op,
        name: &str,
        field: &str,
        a: Value<'c, 'a>,
        b: Value<'c, 'a>,
    ) -> Result<Value<'c, 'a>, Failure> {
        self.stage(op, name, field, &[Some(a), Some(b)], &[], a.r#type())
    }

    fn string(&self, name: &str, value: &str) -> (Identifier<'c>, Attribute<'c>) {
        (Identifier::new(self.context, name), StringAttribute::new(self.context, value).into())
    }

    fn flag(&self, value: bool) -> Attribute<'c> {
        BoolAttribute::new(self.context, value).into()
    }

    fn float(&self, value: f64) -> Attribute<'c> {
        FloatAttribute::new(self.context, Type::float64(self.context), value).into()
    }

    fn size(&self, value: usize) -> Attribute<'c> {
        // What does not fit is refused by the shape check, as any other size that does not fit the operands.
        IntegerAttribute::new(IntegerType::new(self.context, 64).into(), i64::try_from(value).unwrap_or(i64::MAX))
            .into()
    }
}

fn matrix(shape: &[usize]) -> Option<[usize; 2]> {
    shape.try_into().ok()
}
