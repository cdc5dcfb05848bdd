//! `kforge init`: a project that builds at once.

use super::{
    error::{Error, Outcome},
    print,
};
use crate::manifest::PROJECT_FILE;
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where; made if it does not exist
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,
}

const WORKLOAD: &str = "workloads/first-block.toml";

const WORKLOAD_TEXT: &str = r#"# One small transformer block. `kforge build` compiles, verifies and measures it.
[block.first-block]
kind = "transformer"
seq = 32
d-model = 128
heads = 4
d-ff = 512
norm = "layer-norm"
activation = "gelu-tanh"
causal = true
"#;

pub fn main(directory: &Path, args: Args) -> Result<Outcome, Error> {
    let root = directory.join(&args.folder);
    let failed =
        |path: &Path, error: &io::Error| Error::environment(format!("cannot write `{}`: {error}", path.display()));
    fs::create_dir_all(root.join("workloads")).map_err(|error| failed(&root, &error))?;
    let root = root.canonicalize().unwrap_or(root);
    let name = root.file_name().map(|it| it.to_string_lossy().into_owned());
    let name = name.unwrap_or_else(|| "kernels".to_owned());
    let project = format!(
        "[project]\nname = {}\nworkloads = [\"workloads/*.toml\"]\ntargets = [\"cpu\"]\n\n\
         [target.cpu]\nbackend = \"cpu\"\nthreads = 1\n\n\
         # For a GPU (`kforge doctor` says which there are), built with `kforge build --target gpu`:\n\
         # [target.gpu]\n# backend = \"gpu\"\n",
        toml::Value::String(name)
    );
    for (file, text) in
        [(PROJECT_FILE, project.as_str()), (WORKLOAD, WORKLOAD_TEXT), (".gitignore", ".kforge-cache/\n")]
    {
        let path = root.join(file);
        match File::create_new(&path).and_then(|mut it| it.write_all(text.as_bytes())) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && file == ".gitignore" => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::input(format!("`{}` exists already", path.display())));
            }
            Err(error) => return Err(failed(&path, &error)),
        }
    }
    print::out(&format!("made a project in `{}`; next: `kforge build`\n", root.display()))?;
    Ok(Outcome::Done)
}
