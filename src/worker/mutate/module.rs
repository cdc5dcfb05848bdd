//! A generated module as a list of functions, and the part of it that a change touches.
//!
//! Compiling a whole module takes a second, and a block has hundreds of mutants. A mutation changes one function, so only
//! that function is compiled again, with all that calls it and all that these call; the rest of the original's machine code
//! stays in place ([`crate::device::cpu::LoadedKernel::load_patched`]). The callers are taken along because private
//! functions may be inlined.

use std::collections::{BTreeMap, BTreeSet};

/// One `func.func`, header to closing brace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// The symbol.
    pub name: String,
    pub lines: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    pub functions: Vec<Function>,
}

impl Module {
    /// Splits the text that `codegen::cpu` writes: every function begins at the first column and ends with `}` there.
    pub fn parse(text: &str) -> Self {
        let mut functions: Vec<Function> = Vec::new();
        let mut inside = false;
        for line in text.lines() {
            if line.starts_with("func.func") {
                let name = symbols(line).next().unwrap_or_default().to_owned();
                functions.push(Function { name, lines: Vec::new() });
                inside = true;
            }
            if let (true, Some(function)) = (inside, functions.last_mut()) {
                function.lines.push(line.to_owned());
                inside = line != "}";
            }
        }
        Self { functions }
    }

    pub fn get(&self, name: &str) -> Option<&Function> {
        self.functions.iter().find(|it| it.name == name)
    }

    /// The functions that are not in `original`, or not the same there.
    pub fn changed(&self, original: &Self) -> BTreeSet<String> {
        let changed = self.functions.iter().filter(|it| original.get(&it.name) != Some(it));
        changed.map(|it| it.name.clone()).collect()
    }

    /// A module of the functions `changed`, all that call them, and the private ones that any of these call; other functions
    /// are declared.
    pub fn patch(&self, changed: &BTreeSet<String>) -> String {
        let calls: BTreeMap<&str, BTreeSet<&str>> =
            self.functions.iter().map(|it| (it.name.as_str(), it.calls())).collect();
        let mut defined: BTreeSet<&str> = calls.keys().copied().filter(|it| changed.contains(*it)).collect();
        while let Some(caller) =
            calls.iter().find(|it| !defined.contains(it.0) && it.1.iter().any(|it| defined.contains(it)))
        {
            defined.insert(caller.0);
        }
        let private = |name: &&str| self.get(name).is_some_and(Function::is_private);
        loop {
            let called: Vec<&str> = defined.iter().flat_map(|it| &calls[it]).copied().filter(private).collect();
            let before = defined.len();
            defined.extend(called);
            if defined.len() == before {
                break;
            }
        }
        let declared: BTreeSet<&str> =
            defined.iter().flat_map(|it| &calls[it]).copied().filter(|it| !defined.contains(it)).collect();
        let mut text = String::from("module {\n");
        for name in declared {
            text += &format!("func.func private @{name}(!llvm.ptr, i64, i64)\n");
        }
        for function in self.functions.iter().filter(|it| defined.contains(it.name.as_str())) {
            text += &function.lines.join("\n");
            text.push('\n');
        }
        text + "}\n"
    }
}

impl Function {
    pub fn is_private(&self) -> bool {
        self.lines.first().is_some_and(|it| it.starts_with("func.func private"))
    }

    /// The functions that this one calls.
    pub fn calls(&self) -> BTreeSet<&str> {
        self.lines.iter().skip(1).filter(|it| it.contains("func.call @")).flat_map(|it| symbols(it)).collect()
    }
}

/// The names after `@`.
fn symbols(line: &str) -> impl Iterator<Item = &str> {
    line.split('@').skip(1).map(|it| it.split(|it: char| !it.is_alphanumeric() && it != '_').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "module {\nfunc.func private @tile(%0: index) {\n  return\n}\nfunc.func @a(%0: !llvm.ptr) {\n  \
        func.call @tile(%0) : (index) -> ()\n  return\n}\nfunc.func @b() {\n  func.call @tile(%0) : (index) -> ()\n  \
        return\n}\nfunc.func @c() {\n  return\n}\nfunc.func @block() {\n  func.call @a() : () -> ()\n  \
        func.call @c() : () -> ()\n  return\n}\n}\n";

    fn defined(text: &str) -> Vec<String> {
        Module::parse(text).functions.iter().filter(|it| it.lines.len() > 1).map(|it| it.name.clone()).collect()
    }

    #[test]
    fn a_patch_has_the_changed_function_its_callers_and_what_these_need() {
        let module = Module::parse(TEXT);
        let patch = module.patch(&BTreeSet::from(["a".to_owned()]));
        assert!(patch.contains("func.func private @c(!llvm.ptr, i64, i64)\n"), "{patch}");
        let bodies = patch.replace("func.func private @c(!llvm.ptr, i64, i64)\n", "");
        assert_eq!(defined(&bodies), ["tile", "a", "block"]);
        let whole = module.patch(&BTreeSet::from(["tile".to_owned()]));
        assert_eq!(
            defined(&whole.replace("func.func private @c(!llvm.ptr, i64, i64)\n", "")),
            ["tile", "a", "b", "block"]
        );
    }

    #[test]
    fn what_differs_is_found_by_name() {
        let (one, other) = (Module::parse(TEXT), Module::parse(&TEXT.replace("@c() {\n", "@c() {\n  %1 = x\n")));
        assert_eq!(other.changed(&one), BTreeSet::from(["c".to_owned()]));
        assert!(one.changed(&one).is_empty());
    }
}
