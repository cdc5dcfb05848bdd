//! The arrows of ARCHITECTURE.md, held by reading the `use` lines and paths of the sources.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every `.rs` file under `folder`, with its text up to its own tests.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = walkdir::WalkDir::new(&root).into_iter().filter_map(Result::ok).map(walkdir::DirEntry::into_path);
    let files: Vec<_> = files.filter(|it| it.extension().is_some_and(|it| it == "rs")).collect();
    assert!(!files.is_empty(), "{folder} has no sources");
    let text = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a source is UTF-8");
        (path, text.split("#[cfg(test)]").next().unwrap_or_default().to_owned())
    };
    // Files of tests may look at both sides.
    files.into_iter().filter(|it| !it.to_string_lossy().contains("tests")).map(text).collect()
}

/// No source of `folder` names any of `paths`.
fn never_names(folder: &str, paths: &[&str]) {
    for (path, text) in sources(folder) {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for forbidden in paths {
                assert!(!code.contains(forbidden), "{}:{}: {}", path.display(), number + 1, line.trim());
            }
        }
    }
}

/// The modules right below `root` (`crate::`, `kernelforge::`) that a file names, in groups too.
fn modules(text: &str, root: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for part in text.split(root).skip(1) {
        let inner = part.strip_prefix('{').map_or_else(
            || vec![part],
            |list| {
                // Top-level items of the braces.
                let (mut depth, mut items, mut start) = (0, Vec::new(), 0);
                for (at, it) in list.char_indices() {
                    match it {
                        '{' => depth += 1,
                        '}' if depth == 0 => {
                            items.push(&list[start..at]);
                            break;
                        }
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            items.push(&list[start..at]);
                            start = at + 1;
                        }
                        _ => {}
                    }
                }
                items
            },
        );
        modules.extend(
            inner
                .into_iter()
                .map(|it| it.trim().chars().take_while(|it| it.is_alphanumeric() || *it == '_').collect::<String>()),
        );
    }
    modules
}

#[test]
fn the_ground_knows_neither_tool_nor_toolchain() {
    for folder in ["src/manifest", "src/plan", "src/store"] {
        never_names(folder, &["crate::build", "crate::cli", "melior", "llvm_sys", "mlir_sys"]);
    }
}

#[test]
fn the_tool_knows_nothing_of_the_toolchain() {
    for folder in ["src/build", "src/cli"] {
        never_names(folder, &["crate::worker", "melior", "llvm_sys", "mlir_sys"]);
    }
    never_names("src/build", &["crate::cli"]);
}

#[test]
fn the_toolchain_knows_nothing_of_the_tool() {
    for (path, text) in sources("src/worker") {
        for used in modules(&text, "kernelforge::") {
            assert!(used != "build" && used != "cli", "{} names `kernelforge::{used}`", path.display());
        }
    }
}

#[test]
fn the_graph_does_no_io_and_reads_no_clock() {
    never_names(
        "src/build/graph",
        &["std::fs", "std::io", "std::process", "std::net", "std::time", "crate::store::Store"],
    );
}

#[test]
fn one_module_starts_processes() {
    for (path, text) in sources("src") {
        let starts = text.contains("process::Command") || text.contains("Command::new(");
        let allowed = path.ends_with("src/build/engine/worker.rs");
        assert!(!starts || allowed, "{} starts processes", path.display());
    }
}

/// Within the toolchain: measure -> verify -> device -> codegen -> ir (measuring fills tensors as verifying does). A module may
/// name those after it in this list.
#[test]
fn the_toolchains_arrows_run_downward() {
    const LAYERS: [&str; 8] = ["serve", "run", "mutate", "measure", "verify", "kernels", "device", "codegen"];
    for (level, module) in LAYERS.iter().enumerate() {
        let folder = format!("src/worker/{module}");
        if !Path::new(env!("CARGO_MANIFEST_DIR")).join(&folder).is_dir() {
            continue;
        }
        for (path, text) in sources(&folder) {
            for used in modules(&text, "crate::") {
                let above = LAYERS[..level].contains(&used.as_str());
                assert!(!above, "{} names `{used}`, which is above `{module}`", path.display());
            }
        }
    }
    for (path, text) in sources("src/worker/ir") {
        for used in modules(&text, "crate::") {
            assert!(used == "ir" || used.is_empty(), "{} names `{used}`: the IR is the lowest", path.display());
        }
    }
}
