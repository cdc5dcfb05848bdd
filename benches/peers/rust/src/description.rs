//! What `kernel.json` says, as far as a caller needs it; `src/plan/kernel.rs` is where it is defined. Not that module itself: with
//! the whole crate behind it, the library took 20 minutes to build on two busy cores.

use crate::error::Error;
use serde::Deserialize;
use std::fs;

const VERSION: u32 = 2;

/// One pointer of an entry's argument table.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arg {
    /// Index into [`Graph::tensors`].
    Tensor(usize),
    /// Index into [`Description::packed`].
    Packed(usize),
    Workspace,
}

#[derive(Deserialize)]
pub struct Entry {
    pub symbol: String,
    pub args: Vec<Arg>,
    /// Independent parts of the work.
    pub units: usize,
    /// Bytes of working memory of one thread.
    pub workspace: usize,
}

#[derive(Deserialize)]
pub struct Packed {
    pub bytes: usize,
    pub prepare: Entry,
}

#[derive(Deserialize)]
pub struct Tensor {
    pub name: String,
    shape: Vec<usize>,
    dtype: String,
}

#[derive(Deserialize)]
pub struct Graph {
    pub tensors: Vec<Tensor>,
}

#[derive(Deserialize)]
pub struct Description {
    version: u32,
    pub graph: Graph,
    pub packed: Vec<Packed>,
    /// In order of execution.
    pub stages: Vec<Entry>,
    /// The whole block on one thread.
    pub block: Entry,
}

impl Tensor {
    pub fn bytes(&self) -> usize {
        let element = if self.dtype == "f32" { 4 } else { 2 };
        self.shape.iter().product::<usize>() * element
    }
}

impl Description {
    /// # Errors
    /// When the file cannot be read, is no description, one of another version, or has tensors of a type not known here.
    pub fn read(path: &str) -> Result<Self, Error> {
        let text = fs::read(path).map_err(|it| Error::Read(path.to_owned(), it))?;
        let it: Self = serde_json::from_slice(&text).map_err(|it| Error::Description(path.to_owned(), it))?;
        if it.version != VERSION {
            return Err(Error::Version(path.to_owned(), it.version));
        }
        let strange = |it: &&Tensor| !matches!(it.dtype.as_str(), "f32" | "f16" | "bf16");
        match it.graph.tensors.iter().find(strange) {
            Some(unknown) => Err(Error::Type(unknown.name.clone(), unknown.dtype.clone())),
            None => Ok(it),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_as_kernel_json_writes_them() {
        let text =
            r#"{"symbol": "f", "args": [{"tensor": 3}, {"packed": 0}, "workspace"], "units": 48, "workspace": 64}"#;
        let entry: Entry = serde_json::from_str(text).unwrap();
        assert!(matches!(entry.args.as_slice(), [Arg::Tensor(3), Arg::Packed(0), Arg::Workspace]));
        assert_eq!((entry.units, entry.workspace), (48, 64));
    }
}
