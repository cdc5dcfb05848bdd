//! The frame that every module has: one function whose arguments are named tensors and whose one block computes one named
//! result. Reading it is where malformed frames are refused, so that the shape check and the extraction see only good ones.

use super::{
    build::{NAME, ROLE},
    diagnostics::place,
    op,
};
use kernelforge::{
    plan::stage::Role,
    protocol::{Failure, FailureKind},
};
use melior::ir::{
    Module, OperationRef, RegionLike, Value,
    attribute::{ArrayAttribute, DictionaryAttribute, StringAttribute},
    block::BlockLike,
    operation::OperationLike,
};

pub struct Function<'c, 'a> {
    pub name: &'c str,
    pub operation: OperationRef<'c, 'a>,
    pub arguments: Vec<Argument<'c, 'a>>,
    /// All ops but the return.
    pub operations: Vec<OperationRef<'c, 'a>>,
    pub output: &'c str,
    pub returned: Value<'c, 'a>,
}

#[derive(Debug, Clone, Copy)]
pub struct Argument<'c, 'a> {
    pub name: &'c str,
    pub role: Role,
    pub value: Value<'c, 'a>,
}

impl<'c: 'a, 'a> Function<'c, 'a> {
    /// Reads the one function of a module.
    pub fn of(module: &'a Module<'c>) -> Result<Self, Failure> {
        let mut tops = op::operations(module.body());
        let (Some(operation), None) = (tops.next(), tops.next()) else {
            return Err(refuse(module.as_operation(), "a module holds one function, the block"));
        };
        if operation.name().as_string_ref().as_str() != Ok("func.func") {
            return Err(refuse(operation, "a module holds one `func.func`, the block"));
        }
        let name = string(operation.attribute("sym_name").ok()).ok_or_else(|| refuse(operation, "has no name"))?;
        let block = operation.first_region().and_then(|it| it.first_block());
        let Some(block) = block.filter(|it| it.next_in_region().is_none()) else {
            return Err(refuse(operation, "a block is a function with a body of one basic block"));
        };

        let mut operations: Vec<_> = op::operations(block).collect();
        let last = operations.pop().filter(|it| it.name().as_string_ref().as_str() == Ok("func.return"));
        let Some(last) = last else { return Err(refuse(operation, "does not end in `func.return`")) };
        let (Ok(returned), 1) = (last.operand(0), last.operand_count()) else {
            return Err(refuse(last, "a block returns one tensor"));
        };

        let attributes = |list: &str, index: usize| -> Option<DictionaryAttribute<'c>> {
            let list = ArrayAttribute::try_from(operation.attribute(list).ok()?).ok()?;
            DictionaryAttribute::try_from(list.element(index).ok()?).ok()
        };
        let arguments = (0..block.argument_count())
            .map(|index| {
                let unnamed = |what: &str| refuse(operation, &format!("argument {index} has no {what}"));
                let value = block.argument(index).map_err(|_| unnamed("value"))?.into();
                let attributes = attributes("arg_attrs", index);
                let get = |key: &str| string(attributes.and_then(|it| it.element_by_name(key)));
                let name = get(NAME).ok_or_else(|| unnamed("`kforge.name`"))?;
                let role = match get(ROLE) {
                    Some("input") => Role::Input,
                    Some("weight") => Role::Weight,
                    _ => return Err(unnamed("`kforge.role` of \"input\" or \"weight\"")),
                };
                Ok(Argument { name, role, value })
            })
            .collect::<Result<_, Failure>>()?;
        let output = string(attributes("res_attrs", 0).and_then(|it| it.element_by_name(NAME)))
            .ok_or_else(|| refuse(operation, "the result has no `kforge.name`"))?;
        Ok(Self { name, operation, arguments, operations, output, returned })
    }
}

fn string<'c>(attribute: Option<melior::ir::Attribute<'c>>) -> Option<&'c str> {
    StringAttribute::try_from(attribute?).ok().map(|it| it.value())
}

/// A failure at the place of an op.
pub fn refuse(operation: OperationRef<'_, '_>, message: &str) -> Failure {
    let name = operation.name();
    let name = name.as_string_ref().as_str().unwrap_or("?");
    let place = place(operation.location());
    Failure::new(FailureKind::InvalidIr, format!("{place}: `{name}`: {message}"))
}
