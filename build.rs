//! Takes the recipe digests: for each kind of action, one BLAKE3 over the sources and locked library versions that decide
//! its output, so that changing the tool makes stale exactly what it can change.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

/// Recipe name, and the files and folders (from the package root) that decide the action's output.
const RECIPES: &[(&str, &[&str])] = &[
    (
        "worker",
        &[
            "src/worker",
            "src/plan",
            "src/protocol.rs",
            "src/protocol",
            "src/manifest/spec.rs",
            "src/digest.rs",
            "src/store",
            "src/host.rs",
            "src/host",
            "shaders",
            "Cargo.lock",
        ],
    ),
    ("ir", &["src/worker/ir", "src/manifest/spec.rs", "src/plan/stage.rs", "Cargo.lock"]),
    ("plan", &["src/build/search", "src/plan"]),
    ("compile", &["src/worker/codegen", "src/plan", "src/host/gpu.rs", "shaders", "Cargo.lock"]),
    // Gate V0 is the plan's constraints; the references stand on ndarray and libm.
    (
        "verify",
        &[
            "src/worker/verify",
            "src/worker/device",
            "src/worker/audit.rs",
            "src/protocol/audit.rs",
            "src/plan",
            "src/manifest/spec.rs",
            "Cargo.lock",
        ],
    ),
    (
        "benchmark",
        &[
            "src/worker/measure",
            "src/worker/device",
            "src/worker/kernels",
            "src/worker/verify/inputs.rs",
            "src/worker/verify/candidate.rs",
            "src/worker/verify/gpu/candidate.rs",
        ],
    ),
    ("report", &["src/build/report"]),
    ("tool", &["src", "Cargo.lock"]),
];

fn main() -> io::Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo:rerun-if-changed=build.rs");
    for (name, sources) in RECIPES {
        let mut hasher = blake3::Hasher::new();
        for source in *sources {
            println!("cargo:rerun-if-changed={source}");
            hash(Path::new(source), &mut hasher)?;
        }
        fs::write(out.join(format!("recipe-{name}.in")), format!("{:?}", hasher.finalize().as_bytes()))?;
    }
    Ok(())
}

/// Hashes path, length and content of every file under `path`, in name order.
fn hash(path: &Path, hasher: &mut blake3::Hasher) -> io::Result<()> {
    if path.is_dir() {
        let mut entries = fs::read_dir(path)?.map(|it| it.map(|it| it.path())).collect::<io::Result<Vec<_>>>()?;
        entries.sort();
        return entries.iter().try_for_each(|it| hash(it, hasher));
    }
    let Ok(content) = fs::read(path) else { return Ok(()) }; // a file of a half that is not packaged
    hasher.update(path.to_string_lossy().as_bytes());
    hasher.update(&(content.len() as u64).to_le_bytes());
    hasher.update(&content);
    Ok(())
}
