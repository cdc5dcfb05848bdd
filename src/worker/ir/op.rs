//! Reading ops: a [`View`] gives an op's operands and attributes by name. Nothing here changes IR, and nothing panics on IR
//! that was never verified: what is absent or of another type is `None`.

use super::dialect::{Op, SEGMENTS};
use kernelforge::manifest::spec::{Activation, Dtype};
use melior::{
    Context,
    ir::{
        Attribute, AttributeLike, OperationRef, ShapedTypeLike, Type, TypeLike, Value, ValueLike,
        attribute::{BoolAttribute, DenseI32ArrayAttribute, FloatAttribute, IntegerAttribute, StringAttribute},
        block::{BlockLike, BlockRef},
        operation::{OperationLike, OperationResult},
        r#type::{DimSize, IntegerType, RankedTensorType},
    },
};

#[derive(Debug, Clone)]
pub struct View<'c, 'a> {
    pub op: Op,
    pub operation: OperationRef<'c, 'a>,
    /// One for each of [`Op::operands`].
    pub operands: Vec<Option<Value<'c, 'a>>>,
}

impl<'c, 'a> View<'c, 'a> {
    /// `None` for ops of other dialects and for ops whose operands do not match their kind (which MLIR's verifier refuses).
    pub fn of(operation: OperationRef<'c, 'a>) -> Option<Self> {
        let op = Op::from_name(operation.name().as_string_ref().as_str().ok()?)?;
        let sizes: Vec<i32> = match operation.attribute(SEGMENTS) {
            Ok(attribute) => {
                let sizes = DenseI32ArrayAttribute::try_from(attribute).ok()?;
                (0..sizes.len()).map(|index| sizes.element(index).ok()).collect::<Option<_>>()?
            }
            Err(_) => vec![1; op.operands().len()],
        };
        let count: i32 = sizes.iter().sum();
        if sizes.len() != op.operands().len() || usize::try_from(count).ok()? != operation.operand_count() {
            return None;
        }
        let mut values = operation.operands();
        let operands = sizes.iter().map(|&size| if size == 1 { values.next() } else { None }).collect();
        Some(Self { op, operation, operands })
    }

    pub fn operand(&self, name: &str) -> Option<Value<'c, 'a>> {
        let index = self.op.operands().iter().position(|it| it.name == name)?;
        *self.operands.get(index)?
    }

    pub fn result(&self) -> Option<Value<'c, 'a>> {
        self.operation.result(0).ok().map(Value::from)
    }

    pub fn stage(&self) -> Option<&'c str> {
        self.string("stage")
    }

    fn string(&self, name: &str) -> Option<&'c str> {
        StringAttribute::try_from(self.attribute(name)?).ok().map(|it| it.value())
    }

    pub fn flag(&self, name: &str) -> Option<bool> {
        BoolAttribute::try_from(self.attribute(name)?).ok().map(|it| it.value())
    }

    pub fn float(&self, name: &str) -> Option<f64> {
        FloatAttribute::try_from(self.attribute(name)?).ok().map(|it| it.value())
    }

    pub fn size(&self, name: &str) -> Option<usize> {
        let value = IntegerAttribute::try_from(self.attribute(name)?).ok()?;
        let width = IntegerType::try_from(value.r#type()).ok()?.width();
        if width == 64 { usize::try_from(value.value()).ok() } else { None }
    }

    /// The activation in the op's epilogue: `Some(None)` is "none".
    pub fn activation(&self) -> Option<Option<Activation>> {
        match self.string("activation")? {
            "none" => Some(None),
            name => Activation::from_name(name).map(Some),
        }
    }

    fn attribute(&self, name: &str) -> Option<Attribute<'c>> {
        self.operation.attribute(name).ok()
    }
}

/// The type of one element.
pub fn element_type(context: &Context, dtype: Dtype) -> Type<'_> {
    match dtype {
        Dtype::F32 => Type::float32(context),
        Dtype::F16 => Type::float16(context),
        Dtype::Bf16 => Type::bfloat16(context),
    }
}

/// How the elements of a tensor are stored; `None` for what no tensor of a block has.
pub fn dtype(value: Value<'_, '_>) -> Option<Dtype> {
    let element = RankedTensorType::try_from(value.r#type()).ok()?.element();
    match element {
        it if it.is_f32() => Some(Dtype::F32),
        it if it.is_f16() => Some(Dtype::F16),
        it if it.is_bf16() => Some(Dtype::Bf16),
        _ => None,
    }
}

/// Rows and columns of a matrix, or whatever else the value's static shape is.
pub fn shape(value: Value<'_, '_>) -> Option<Vec<usize>> {
    let tensor = RankedTensorType::try_from(value.r#type()).ok()?;
    (0..tensor.rank())
        .map(|index| match tensor.dim_size(index).ok()? {
            DimSize::Static(size) => usize::try_from(size).ok(),
            DimSize::Dynamic => None,
        })
        .collect()
}

/// The op that computes `value`, if an op of the dialect does.
pub fn producer<'c, 'a>(value: Value<'c, 'a>) -> Option<View<'c, 'a>> {
    let result = OperationResult::try_from(value).ok()?;
    View::of(result.owner())
}

/// The ops that read `value`, once for each operand that is it.
pub fn users<'c: 'a, 'a>(value: Value<'c, 'a>) -> impl Iterator<Item = OperationRef<'c, 'a>> {
    // SAFETY: a value of a live module has a chain of uses that ends in null; every use belongs to a live op.
    let first = unsafe { mlir_sys::mlirValueGetFirstUse(value.to_raw()) };
    let chain = std::iter::successors(Some(first), |&it| {
        // SAFETY: as above; null, the end, is never asked.
        (!it.ptr.is_null()).then(|| unsafe { mlir_sys::mlirOpOperandGetNextUse(it) })
    });
    chain.take_while(|it| !it.ptr.is_null()).map(|it| {
        // SAFETY: as above.
        unsafe { OperationRef::from_raw(mlir_sys::mlirOpOperandGetOwner(it)) }
    })
}

/// The number of operands that are `value`.
pub fn use_count(value: Value<'_, '_>) -> usize {
    users(value).count()
}

/// The ops of a block, in order.
pub fn operations<'c: 'a, 'a>(block: BlockRef<'c, 'a>) -> impl Iterator<Item = OperationRef<'c, 'a>> {
    std::iter::successors(block.first_operation(), OperationLike::next_in_block)
}
