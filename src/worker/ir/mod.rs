//! The `ir` step: from a block's manifest values to the stages that are generated. A module of the `transformer` dialect is
//! built, the passes rewrite it, and the stage graph is read off the result.
//!
//! Nothing here knows schedules, targets or machine code. No failure is printed: MLIR's diagnostics become part of the
//! returned failure, with places in the manifest. MLIR contexts belong to one thread, so each thread keeps one.

mod build;
pub mod context;
pub mod diagnostics;
mod dialect;
mod extract;
mod function;
mod op;
mod passes;
#[cfg(test)]
mod samples;
mod shapes;
#[cfg(test)]
mod tests;

pub use context::context;

use kernelforge::{
    manifest::spec::{BlockSpec, Origin, Pass},
    plan::stage::StageGraph,
    protocol::{Failure, FailureKind, IrView, PassReport},
};
use melior::{
    Context,
    ir::{
        Module,
        operation::{OperationLike, OperationPrintingFlags},
    },
};
use std::{cell::OnceCell, collections::BTreeMap};

/// What the `ir` step puts into the store. The texts have no locations, so that moving a block in its file changes nothing.
#[derive(Debug, Clone)]
pub struct Products {
    pub module: String,
    pub optimized: String,
    pub stages: StageGraph,
    pub passes: Vec<PassReport>,
}

/// Builds the block's module and runs the passes over it.
pub fn build(
    name: &str,
    spec: &BlockSpec,
    passes: &[Pass],
    origins: &BTreeMap<String, Origin>,
) -> Result<Products, Failure> {
    with_context(|context| {
        let module = checked(build::build(context, name, spec, origins)?)?;
        let before = print(&module, false)?;
        let mut reports = Vec::with_capacity(passes.len());
        for &pass in passes {
            reports.push(apply(context, &module, pass)?);
        }
        Ok(Products {
            module: before,
            optimized: print(&module, false)?,
            stages: extract::extract(&module)?,
            passes: reports,
        })
    })
}

/// The module's text as `kforge ir` shows it.
pub fn text(
    name: &str,
    spec: &BlockSpec,
    passes: &[Pass],
    origins: &BTreeMap<String, Origin>,
    view: IrView,
) -> Result<String, Failure> {
    with_context(|context| {
        let module = checked(build::build(context, name, spec, origins)?)?;
        if view == IrView::Emit {
            return print(&module, true);
        }
        let mut steps = vec![("built", print(&module, false)?)];
        for &pass in passes {
            apply(context, &module, pass)?;
            steps.push((pass.name(), print(&module, false)?));
        }
        if view == IrView::Optimized {
            return print(&module, true);
        }
        serde_json::to_string(&steps).map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))
    })
}

/// Reads a module from text; MLIR's verifier has passed it.
pub fn parse<'c>(context: &'c Context, text: &str) -> Result<Module<'c>, Failure> {
    if text.contains('\0') {
        return Err(Failure::new(FailureKind::InvalidIr, "the text of a module holds a NUL character"));
    }
    diagnostics::capture(context, || Module::parse(context, text).ok_or_else(diagnostics::refused))
}

/// Runs `action` in this thread's context. Making one takes 2 ms, as long as building a block and running its passes
/// (`cargo test --bin kforge-worker ir::tests::costs -- --ignored --nocapture`), so it is kept. What it keeps for ever are
/// uniqued types, attributes and places: a few kilobytes for a block that was not seen before.
fn with_context<T>(action: impl FnOnce(&Context) -> Result<T, Failure>) -> Result<T, Failure> {
    thread_local! {
        static CONTEXT: OnceCell<Result<Context, Failure>> = const { OnceCell::new() };
    }
    CONTEXT.with(|cell| {
        let context = cell.get_or_init(|| {
            let context = context();
            dialect::load(&context).map(|()| context)
        });
        let context = context.as_ref().map_err(Clone::clone)?;
        diagnostics::capture(context, || action(context))
    })
}

/// Runs one pass; what it leaves must be as sound as what it got.
fn apply(context: &Context, module: &Module<'_>, pass: Pass) -> Result<PassReport, Failure> {
    let report = passes::run(context, module, pass)?;
    check(module).map_err(|failure| {
        let message = format!("pass `{}` left a broken module: {}", pass.name(), failure.message);
        Failure { message, kind: FailureKind::Internal, ..failure }
    })?;
    Ok(report)
}

fn checked(module: Module<'_>) -> Result<Module<'_>, Failure> {
    check(&module).map(|()| module)
}

/// Both verifiers. The first mistake is the message, the others the detail.
fn check(module: &Module<'_>) -> Result<(), Failure> {
    if !module.as_operation().verify() {
        return Err(diagnostics::refused());
    }
    shapes::check(module).map_err(|failures| {
        let mut failures = failures.into_iter();
        let first = failures.next().unwrap_or_else(diagnostics::refused);
        first.with_detail(failures.map(|it| it.message).collect::<Vec<_>>().join("\n"))
    })
}

/// The module's text; values are named after their stages and tensors.
fn print(module: &Module<'_>, locations: bool) -> Result<String, Failure> {
    let flags = OperationPrintingFlags::new().use_local_scope().enable_debug_info(locations, false);
    // SAFETY: the flags are alive; melior has no method for this one.
    unsafe { mlir_sys::mlirOpPrintingFlagsPrintNameLocAsPrefix(flags.to_raw()) };
    let text = module.as_operation().to_string_with_flags(flags);
    text.map_err(|error| Failure::new(FailureKind::Internal, format!("printing the module: {error}")))
}
