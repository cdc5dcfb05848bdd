//! Applies patterns with MLIR's greedy driver, and keeps the books: what a pass reports is what its patterns did through
//! their [`Rewriter`], net of ops that the same pass made and erased again.

use super::super::{
    dialect::{self, Op},
    op::View,
};
use kernelforge::protocol::{Failure, FailureKind};
use melior::{
    Context, GreedyRewriteDriverConfig, GreedySimplifyRegionLevel, PatternRewriter, RewritePatternSet, RewriterBase,
    create_op_rewrite_pattern,
    ir::{
        Attribute, Location, Module, OperationRef, Value, ValueLike,
        operation::{OperationLike, OperationMutLike, OperationRefMut},
    },
};
use std::{cell::RefCell, collections::HashSet, rc::Rc};

/// `Some` when it rewrote the op, `None` when it left it (and everything else) alone.
pub type Pattern = for<'c, 'a> fn(&Rewriter<'c, 'a>, &View<'c, 'a>) -> Option<()>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub created: usize,
    /// Ops that existed before and whose own operands or attributes the pass set. Reading a value under a new op is no
    /// change.
    pub changed: usize,
    pub erased: usize,
}

/// Ops by address. An address is forgotten when its op is erased, so one that is used again counts as a new op.
#[derive(Debug, Default)]
struct Ledger {
    created: HashSet<usize>,
    changed: HashSet<usize>,
    erased: usize,
    broken: Option<String>,
}

/// A greedy driver goes on while patterns match. No pass needs more than one rewrite for each op and fact about it; what
/// needs more than this is two patterns that undo each other.
const MAX_ITERATIONS: i64 = 32;
const MAX_REWRITES_PER_ITERATION: i64 = 4096;

/// Applies the patterns, each to the ops of its kind, until none matches.
pub fn apply(
    context: &Context,
    module: &Module<'_>,
    pass: &str,
    patterns: &[(Op, Pattern)],
) -> Result<Counts, Failure> {
    let ledger = Rc::new(RefCell::new(Ledger::default()));
    let set = RewritePatternSet::new(context);
    let pointer = std::ptr::from_ref(context);
    for &(op, pattern) in patterns {
        let ledger = Rc::clone(&ledger);
        let callback = move |_, operation, rewriter| {
            // SAFETY: the driver hands over a live op and its own rewriter, both valid until the callback returns.
            let (operation, rewriter) =
                unsafe { (OperationRef::from_raw(operation), PatternRewriter::from_raw(rewriter)) };
            // SAFETY: the reference that the pointer was made from is borrowed until the driver is done.
            let context = unsafe { &*pointer };
            let rewriter = Rewriter { context, base: rewriter.as_rewriter_base(), ledger: &ledger };
            View::of(operation).and_then(|view| pattern(&rewriter, &view)).is_some()
        };
        set.add(create_op_rewrite_pattern(op.name(), 1, context, callback, &[]));
    }
    let converged = run(module, set);
    let ledger = ledger.take();
    let failure = |message: String| Failure::new(FailureKind::Internal, format!("pass `{pass}`: {message}"));
    if let Some(message) = ledger.broken {
        return Err(failure(message));
    }
    if !converged {
        return Err(failure(format!(
            "no end after {MAX_ITERATIONS} rounds of at most {MAX_REWRITES_PER_ITERATION} rewrites"
        )));
    }
    Ok(Counts { created: ledger.created.len(), changed: ledger.changed.len(), erased: ledger.erased })
}

/// Whether the patterns came to an end.
fn run(module: &Module<'_>, patterns: RewritePatternSet<'_>) -> bool {
    let config = GreedyRewriteDriverConfig::new();
    config.set_max_iterations(MAX_ITERATIONS);
    config.set_max_num_rewrites(MAX_REWRITES_PER_ITERATION);
    config.set_use_top_down_traversal(true);
    // What the driver would do besides applying patterns would be missing from the report.
    config.enable_folding(false);
    config.enable_constant_cse(false);
    config.set_region_simplification_level(GreedySimplifyRegionLevel::Disabled);
    let patterns = patterns.freeze().into_raw();
    // melior's wrapper leaks the frozen set, and with it every callback: the C function only borrows it.
    // SAFETY: module, patterns and configuration are alive; the patterns are destroyed once, after their last use.
    unsafe {
        let result = mlir_sys::mlirApplyPatternsAndFoldGreedily(module.to_raw(), patterns, config.to_raw());
        mlir_sys::mlirFrozenRewritePatternSetDestroy(patterns);
        result.value != 0
    }
}

/// What a pattern may do to the module.
pub struct Rewriter<'c, 'a> {
    /// Not taken from the op: melior's `ContextRef::to_ref` gives a reference into a temporary.
    pub context: &'c Context,
    base: RewriterBase<'c, 'a>,
    ledger: &'a RefCell<Ledger>,
}

impl<'c: 'a, 'a> Rewriter<'c, 'a> {
    /// Puts a new op in the place of `old`, which has the same type of result. `name` is what the new value is printed as.
    pub fn replace(
        &self,
        old: &View<'c, 'a>,
        op: Op,
        name: &str,
        operands: &[Option<Value<'c, 'a>>],
        attributes: &[(&str, Attribute<'c>)],
    ) -> Option<()> {
        let context = self.context;
        let origin = old.operation.location();
        let origin = if origin.is_name() { origin.name_child_location() } else { origin };
        let location = Location::name(context, name, origin);
        let new = dialect::operation(context, op, operands, attributes, old.result()?.r#type(), location);
        let new = match new {
            Ok(new) => new,
            Err(error) => {
                self.ledger.borrow_mut().broken = Some(format!("making a `{}`: {error}", op.name()));
                return None;
            }
        };
        self.base.set_insertion_point_before(old.operation);
        let new = self.base.insert(new);
        self.ledger.borrow_mut().created.insert(address(new));
        self.forget(old.operation);
        self.base.replace_op_with_operation(old.operation, new);
        Some(())
    }

    /// Lets every reader of `old` read `value` instead, and erases `old`.
    pub fn replace_by_value(&self, old: &View<'c, 'a>, value: Value<'c, 'a>) {
        self.forget(old.operation);
        self.base.replace_op_with_values(old.operation, &[value]);
    }

    /// Erases an op that nobody reads.
    pub fn erase(&self, old: &View<'c, 'a>) {
        self.forget(old.operation);
        self.base.erase_op(old.operation);
    }

    /// Sets operands (all of them, one for each that the op can have) and attributes.
    pub fn change(
        &self,
        view: &View<'c, 'a>,
        operands: Option<&[Option<Value<'c, 'a>>]>,
        attributes: &[(&str, Attribute<'c>)],
    ) {
        self.base.start_op_modification(view.operation);
        // SAFETY: the op is alive, and the rewriter has been told that it changes.
        let mut operation = unsafe { OperationRefMut::from_raw(view.operation.to_raw()) };
        for &(name, value) in attributes {
            operation.set_attribute(name, value);
        }
        if let Some(operands) = operands {
            let present: Vec<_> = operands.iter().flatten().copied().collect();
            operation.set_operands(&present);
            if view.op.has_optional_operands() {
                operation.set_attribute(dialect::SEGMENTS, dialect::segments(self.context, operands));
            }
        }
        self.base.finalize_op_modification(view.operation);
        let mut ledger = self.ledger.borrow_mut();
        let address = address(view.operation);
        if !ledger.created.contains(&address) {
            ledger.changed.insert(address);
        }
    }

    /// Books that `old` is about to be erased.
    fn forget(&self, old: OperationRef<'_, '_>) {
        let mut ledger = self.ledger.borrow_mut();
        let address = address(old);
        ledger.changed.remove(&address);
        if !ledger.created.remove(&address) {
            ledger.erased += 1;
        }
    }
}

fn address(operation: OperationRef<'_, '_>) -> usize {
    operation.to_raw().ptr as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{parse, samples::module, with_context};
    use melior::ir::attribute::BoolAttribute;

    const BODY: &str = r#"%0 = "transformer.rms_norm"(%x, %b) {stage = "s", eps = 1.0e-5, vectorized = false}
        : (tensor<4x8xf32>, tensor<8xf32>) -> tensor<4x8xf32>
        return %0 : tensor<4x8xf32>"#;

    fn apply_to_norm(patterns: &[(Op, Pattern)]) -> Result<Counts, Failure> {
        with_context(|context| {
            let module = parse(context, &module(BODY))?;
            apply(context, &module, "test", patterns)
        })
    }

    fn flip(rewriter: &Rewriter<'_, '_>, view: &View<'_, '_>) -> Option<()> {
        let flag = !view.flag("vectorized")?;
        rewriter.change(view, None, &[("vectorized", BoolAttribute::new(rewriter.context, flag).into())]);
        Some(())
    }

    #[test]
    fn patterns_that_undo_each_other_are_an_error() {
        let result = apply_to_norm(&[(Op::RmsNorm, flip)]);
        let message = "pass `test`: no end after 32 rounds of at most 4096 rewrites";
        assert_eq!(result, Err(Failure::new(FailureKind::Internal, message)));
    }

    fn twice(rewriter: &Rewriter<'_, '_>, view: &View<'_, '_>) -> Option<()> {
        if view.flag("vectorized")? {
            rewriter.replace_by_value(view, view.operand("x")?);
            return Some(());
        }
        flip(rewriter, view)
    }

    #[test]
    fn an_op_that_is_changed_and_then_erased_counts_as_erased() {
        let counts = apply_to_norm(&[(Op::RmsNorm, twice)]);
        assert_eq!(counts, Ok(Counts { created: 0, changed: 0, erased: 1 }));
    }

    fn renew(rewriter: &Rewriter<'_, '_>, view: &View<'_, '_>) -> Option<()> {
        let name = match view.stage()? {
            "s" => "t",
            "t" => "u",
            _ => return None,
        };
        let attribute = |name| view.operation.attribute(name).ok();
        let stage = melior::ir::attribute::StringAttribute::new(rewriter.context, name).into();
        let attributes = [("stage", stage), ("eps", attribute("eps")?), ("vectorized", attribute("vectorized")?)];
        rewriter.replace(view, Op::RmsNorm, name, &view.operands, &attributes)
    }

    #[test]
    fn an_op_that_is_made_and_then_replaced_does_not_count() {
        let counts = apply_to_norm(&[(Op::RmsNorm, renew)]);
        assert_eq!(counts, Ok(Counts { created: 1, changed: 0, erased: 1 }));
    }

    #[test]
    fn a_pattern_lives_no_longer_than_its_pass() {
        let alive = Rc::new(());
        with_context(|context| {
            let module = parse(context, &module(BODY))?;
            let set = RewritePatternSet::new(context);
            let captured = Rc::clone(&alive);
            let callback = move |_, _, _| Rc::strong_count(&captured) == 0;
            set.add(create_op_rewrite_pattern(Op::RmsNorm.name(), 1, context, callback, &[]));
            assert!(run(&module, set));
            Ok(())
        })
        .unwrap_or_else(|failure: Failure| panic!("{failure}"));
        assert_eq!(Rc::strong_count(&alive), 1);
    }
}
