//! Somebody's own text of a kernel, in place of what the generator writes: checked for the entries that the plan's kernel
//! has, then lowered like generated text. What the code computes is for the verifier to say.

use super::{Compiled, lower, module};
use crate::ir::diagnostics::place;
use kernelforge::{
    host::CpuFacts,
    plan::{
        Plan,
        kernel::{Entry, Kernel},
        stage::StageGraph,
    },
    protocol::{Failure, FailureKind},
};
use melior::ir::{BlockLike, Module, OperationRef, RegionLike, attribute::StringAttribute, operation::OperationLike};
use std::{collections::BTreeMap, iter};

/// What places in the text are told under: the name that a build gives the file.
const GIVEN: &str = "kernel.mlir";

/// What `kernel.json` promises of every entry.
const SIGNATURE: &str = "(!llvm.ptr, i64, i64) -> ()";

/// The object file of `text`, with the description that the kernel of `plan` has.
///
/// # Errors
/// `IllegalPlan` as [`super::compile`]; `Codegen`, with places in the text, when it does not parse, declares what it does
/// not define, or lacks an entry, and when MLIR or LLVM refuse it.
pub fn compile_given(graph: &StageGraph, plan: &Plan, cpu: &CpuFacts, text: Vec<u8>) -> Result<Compiled, Failure> {
    let (_, kernel) = module::generate(graph, plan, cpu)?;
    let lowered =
        String::from_utf8(text).map_err(|error| refuse(format!("the kernel's text is not UTF-8: {error}")))?;
    if let Some(at) = lowered.find('\0') {
        // MLIR takes C strings.
        let line = lowered[..at].matches('\n').count() + 1;
        let column = at - lowered[..at].rfind('\n').map_or(0, |it| it + 1) + 1;
        return Err(refuse(format!("{GIVEN}:{line}:{column}: a NUL character is no part of a kernel's text")));
    }
    let object = lower::checked_object(&lowered, |module| check(module, &kernel)).map_err(located)?;
    Ok(Compiled { object, kernel, lowered })
}

/// MLIR calls a text that it was handed `-`, and says where in it something is wrong in a diagnostic beside the message. Here
/// the place is what somebody needs first.
fn located(mut failure: Failure) -> Failure {
    let name = |line: &str| line.strip_prefix("-:").map_or_else(|| line.to_owned(), |it| format!("{GIVEN}:{it}"));
    let mut lines: Vec<_> = failure.detail.lines().map(name).collect();
    if lines.first().is_some_and(|it| it.starts_with(GIVEN)) {
        let place = lines.remove(0);
        lines.push(std::mem::replace(&mut failure.message, place));
    }
    failure.message = name(&failure.message);
    failure.detail = lines.join("\n");
    failure
}

fn refuse(message: String) -> Failure {
    Failure::new(FailureKind::Codegen, message)
}

/// Entries with the stage that each belongs to, where it belongs to one.
fn entries(kernel: &Kernel) -> impl Iterator<Item = (&Entry, Option<&str>)> {
    let stages =
        kernel.stages.iter().zip(&kernel.graph.stages).map(|(entry, stage)| (entry, Some(stage.name.as_str())));
    let others = kernel.packed.iter().map(|it| &it.prepare).chain([&kernel.block]);
    stages.chain(others.map(|it| (it, None)))
}

fn check(module: &Module<'_>, kernel: &Kernel) -> Result<(), Failure> {
    let mut functions: BTreeMap<String, OperationRef<'_, '_>> = BTreeMap::new();
    let first = module.body().first_operation();
    for operation in iter::successors(first, |it| it.next_in_block()) {
        let at = place(operation.location());
        let name = operation.name();
        let name = name.as_string_ref().as_str().unwrap_or_default().to_owned();
        if name != "func.func" {
            return Err(refuse(format!("{at}: a kernel consists of functions (`func.func`), this is `{name}`")));
        }
        let symbol = attribute(&operation, "sym_name");
        // What is only declared would be looked for in the worker: a kernel calls nothing outside of itself.
        if operation.region(0).ok().and_then(|it| it.first_block()).is_none() {
            return Err(refuse(format!("{at}: function `{symbol}` is declared and not defined")));
        }
        functions.insert(symbol, operation);
    }
    for (entry, stage) in entries(kernel) {
        let problem = match functions.get(&entry.symbol) {
            None => format!("the kernel has no entry `{}`", entry.symbol),
            Some(function) if attribute(function, "sym_visibility") == "private" => {
                format!("{}: the entry `{}` is private", place(function.location()), entry.symbol)
            }
            Some(function) => {
                let found = function.attribute("function_type").map(|it| it.to_string()).unwrap_or_default();
                if found == SIGNATURE {
                    continue;
                }
                let at = place(function.location());
                format!("{at}: the entry `{}` is {found}: {SIGNATURE} is expected", entry.symbol)
            }
        };
        let failure = refuse(problem);
        return Err(match stage {
            Some(stage) => failure.at_stage(stage),
            None => failure,
        });
    }
    Ok(())
}

/// The string attribute of this name; empty where there is none.
fn attribute(operation: &OperationRef<'_, '_>, name: &str) -> String {
    let value = operation.attribute(name).ok().and_then(|it| StringAttribute::try_from(it).ok());
    value.map(|it| it.value().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ir, verify::samples};

    /// A matmul's stages, a plan that schedules none of them, and the generated text.
    fn built() -> (StageGraph, Plan, CpuFacts, String) {
        let block = samples::product((2, 4, 3), false);
        let graph = ir::build("plain", &block, &[], &BTreeMap::new()).unwrap().stages;
        let plan = samples::plan("plain", "cpu", BTreeMap::new());
        let cpu = CpuFacts::detect();
        let (text, _) = module::generate(&graph, &plan, &cpu).unwrap();
        (graph, plan, cpu, text)
    }

    fn failure(edit: impl FnOnce(&str) -> String) -> Failure {
        let (graph, plan, cpu, text) = built();
        let failure = compile_given(&graph, &plan, &cpu, edit(&text).into_bytes()).err().unwrap();
        assert_eq!(failure.kind, FailureKind::Codegen);
        failure
    }

    #[test]
    fn the_generators_own_text_gives_the_generators_object() {
        let (graph, plan, cpu, text) = built();
        let generated = super::super::compile(&graph, &plan, &cpu).unwrap();
        let given = compile_given(&graph, &plan, &cpu, text.into_bytes()).unwrap();
        assert_eq!((given.object, given.kernel), (generated.object, generated.kernel));
    }

    #[test]
    fn text_that_is_no_mlir_is_refused_with_its_place() {
        let it = failure(|text| text.replacen("arith.constant", "arith.konstant", 1));
        assert_eq!(it.message, "kernel.mlir:4:8: custom op 'arith.konstant' is unknown");
    }

    #[test]
    fn an_entry_that_is_missing_private_or_of_another_type_is_named_with_its_stage() {
        let it = failure(|text| text.replace("@plain__matmul(", "@plain__metmul("));
        assert!(it.message.contains("plain__matmul"), "{it:?}");
        let it = failure(|text| {
            text.replacen(
                "func.func @plain__matmul(",
                "func.func @other(%0: !llvm.ptr, %1: i64, %2: i64) {\n  return\n}\nfunc.func private @plain__matmul(",
                1,
            )
        });
        assert!(it.message.ends_with("the entry `plain__matmul` is private"), "{it:?}");
        assert_eq!(it.stage.as_deref(), Some("matmul"));
        let it = failure(|text| {
            text.replacen(
                "func.func @plain__block(%0: !llvm.ptr,",
                "func.func @plain__block(%0: !llvm.ptr, %x: i64,",
                1,
            )
        });
        assert!(
            it.message.ends_with("is (!llvm.ptr, i64, i64, i64) -> (): (!llvm.ptr, i64, i64) -> () is expected"),
            "{it:?}"
        );
    }

    #[test]
    fn a_kernel_calls_nothing_outside_of_itself() {
        let it = failure(|text| text.replacen("module {\n", "module {\nfunc.func private @abort()\n", 1));
        assert!(it.message.eq("kernel.mlir:2:1: function `abort` is declared and not defined"), "{it:?}");
        let it = failure(|text| text.replacen("module {\n", "module {\nllvm.func @abort()\n", 1));
        assert!(
            it.message.eq("kernel.mlir:2:1: a kernel consists of functions (`func.func`), this is `llvm.func`"),
            "{it:?}"
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        let (graph, plan, cpu, _) = built();
        let failure = compile_given(&graph, &plan, &cpu, vec![b'm', 0xff]).err().unwrap();
        assert!(failure.message.starts_with("the kernel's text is not UTF-8"), "{failure:?}");
        let failure = compile_given(&graph, &plan, &cpu, b"module {\n  \0\n}\n".to_vec()).err().unwrap();
        assert_eq!(failure.message, "kernel.mlir:2:3: a NUL character is no part of a kernel's text");
    }
}
