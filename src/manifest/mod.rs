//! The manifest: `kernelforge.toml` and `workloads/*.toml`, loaded with spans, validated as a whole, resolved to [`spec`].
//!
//! [`schema`] is one table of keys: what each table takes, of which type and range, and why. The checks ([`table`]), the
//! suggestions and the JSON Schema that editors use are all read from it, so they cannot disagree. [`load`] reads files and
//! globs, [`shaders`] the project's own shader templates, [`knobs`] what searches are restricted to, [`resolve`] and [`block`] turn checked tables into values, [`error`] says what is wrong and where.
//!
//! A manifest is data: loading one starts nothing and writes nothing. All problems of a project are found in one run; a
//! project with any problem is not returned at all.

mod block;
mod corpus;
pub mod error;
mod knobs;
mod load;
mod resolve;
pub mod schema;
mod shaders;
pub mod sources;
pub mod spec;
mod syntax;
mod table;
mod tuning;

#[cfg(test)]
mod tests;

pub use error::{ProjectErrors, render};
pub use load::{load, load_corpus, load_with_sources};
pub use schema::schema;
pub use sources::Sources;
pub use tuning::{Llm, Strategy, Tuning};

use crate::protocol::corpus::Case;
use serde::{Deserialize, Serialize};
use spec::{BlockSpec, Origin, Pass};
use std::{collections::BTreeMap, path::PathBuf};

/// The project file, at the root of every project.
pub const PROJECT_FILE: &str = "kernelforge.toml";

/// The pipeline, tuning and target that a block gets when the manifest names none. Each exists without being declared.
pub const DEFAULT: &str = "default";
pub const DEFAULT_TARGET: &str = "cpu";

/// A project that has no problems.
#[derive(Debug, Clone, PartialEq)]
pub struct Project {
    /// Absolute, symbolic links resolved.
    pub root: PathBuf,
    pub name: String,
    /// Every file that was read, relative to `root`: the project file, then the workloads in order of their names.
    pub files: Vec<PathBuf>,
    pub targets: BTreeMap<String, Target>,
    /// What a block that names no targets is built for.
    pub default_targets: Vec<String>,
    pub pipelines: BTreeMap<String, Vec<Pass>>,
    pub tunings: BTreeMap<String, Tuning>,
    pub cache: Cache,
    /// The regression corpus, relative to `root`; the file need not exist.
    pub corpus: Option<PathBuf>,
    /// What it has.
    pub cases: Vec<Case>,
    /// The project's own shader templates, by file name; each replaces the built-in one of that name.
    pub shaders: BTreeMap<String, String>,
    /// In the order of the files and of the declarations in them; the instances of a list in the list's order.
    pub blocks: Vec<BlockInstance>,
}

/// One value for every field of a declared block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockInstance {
    /// Unique in the project: `declared`, then `-s128`, `-m128`, `-b4`, `-f32` for each key that was given as a list.
    pub name: String,
    /// The name in the manifest.
    pub declared: String,
    /// A block in a group is left out of a plain build.
    pub group: Option<String>,
    pub spec: BlockSpec,
    /// Keys of [`Project::targets`], never empty.
    pub targets: Vec<String>,
    /// The block names its targets itself: it is built for no other, whatever is asked for.
    pub own_targets: bool,
    /// A key of [`Project::pipelines`].
    pub pipeline: String,
    /// A key of [`Project::tunings`].
    pub tuning: String,
    /// Where each key that was given is written; the table itself under "".
    pub origins: BTreeMap<String, Origin>,
}

/// How the project keeps what was built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cache {
    /// Bytes.
    pub max_size: Option<u64>,
}

/// What a block is built for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Target {
    pub name: String,
    pub backend: Backend,
}

/// What runs the kernels of a target, with the keys that only it has.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Backend {
    Cpu {
        /// That run the block; 1..=1024, and at most the machine's cores when it is measured.
        threads: usize,
    },
    /// `gpu` in the manifest, or its aliases `metal` and `mps`: there is one GPU backend, and the driver says what it is.
    Gpu {
        /// Which adapter: a glob on its name, upper and lower case alike.
        adapter: String,
        /// The softmax of attention on the CPU, between two dispatches, as the original tool did.
        hybrid_softmax: bool,
    },
}

impl Backend {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Cpu { .. } => "cpu",
            Self::Gpu { .. } => "gpu",
        }
    }

    /// Threads of the CPU that run the block.
    pub const fn threads(&self) -> usize {
        match self {
            Self::Cpu { threads } => *threads,
            Self::Gpu { .. } => 1,
        }
    }

    pub const fn hybrid_softmax(&self) -> bool {
        matches!(self, Self::Gpu { hybrid_softmax: true, .. })
    }
}
