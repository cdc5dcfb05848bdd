//! What a manifest may say: one table of keys with their types, ranges and meanings. The checks, the suggestions in error
//! messages and the JSON Schema for editors are derived from it. It must not know where a value was written.

use super::spec::OperandB;
use serde_json::{Map, Value, json};
use std::fmt;

/// The largest size of one dimension.
pub const MAX_SIZE: usize = 1 << 20;
/// The most elements that the tensors of one block instance may have together: 32 GiB of f32.
pub const MAX_ELEMENTS: u128 = 1 << 33;
/// The most values of one list: two lists still make no more than 4,096 instances of a block.
pub const MAX_LIST: usize = 64;
pub const MAX_THREADS: usize = 1024;
/// Names become file names (`out/<block>@<target>`).
pub const MAX_NAME: usize = 80;
const NAME_PATTERN: &str = "^[a-z0-9][a-z0-9-]*$";
/// Of the sizes that `bytesize` reads.
const BYTES_PATTERN: &str = "^[0-9]+(\\.[0-9]+)? *([kKmMgGtTpPeE][iI]?)?[bB]?$";
/// Of the times that `humantime` reads, those that a person writes here.
const TIME_PATTERN: &str = "^([0-9]+ *(ms|s|sec|m|min|h) *)+$";
/// The most schedules of one operation: a day of trials of a tenth of a second.
const MAX_TRIALS: usize = 1_000_000;
/// Integers that every reader of TOML and JSON has.
const MAX_SEED: usize = 1 << 53;

/// What a block computes: the manifest's `kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Transformer,
    TransformerMicroblock,
    Microblock,
    Attention,
    Mlp,
    Matmul,
    LayerNorm,
}

use Kind::{Attention, LayerNorm, Matmul, Microblock, Mlp, Transformer, TransformerMicroblock};

impl Kind {
    pub const ALL: [Self; 7] = [Transformer, TransformerMicroblock, Microblock, Attention, Mlp, Matmul, LayerNorm];
    pub const NAMES: [&str; 7] = [
        Transformer.name(),
        TransformerMicroblock.name(),
        Microblock.name(),
        Attention.name(),
        Mlp.name(),
        Matmul.name(),
        LayerNorm.name(),
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Transformer => "transformer",
            TransformerMicroblock => "transformer-microblock",
            Microblock => "microblock",
            Attention => "attention",
            Mlp => "mlp",
            Matmul => "matmul",
            LayerNorm => "layer-norm",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }
}

/// The values that a key takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Accepts {
    /// A dimension: 1..=[`MAX_SIZE`].
    Size,
    /// A dimension, or a list of them: one instance for each.
    Sizes,
    Threads,
    /// A number in `low..=high`, or 0 where `or_zero`.
    Number {
        low: f64,
        high: f64,
        or_zero: bool,
    },
    Flag,
    /// One of these names.
    Choice {
        names: &'static [&'static str],
    },
    /// One of these names, or a list of them: one instance for each.
    Choices {
        names: &'static [&'static str],
    },
    /// A name that the project gives something.
    Name,
    /// A list of names of things declared elsewhere; at least one.
    References,
    /// A list of passes, possibly none.
    Passes,
    /// A list of file patterns, possibly none.
    Patterns,
    /// A glob on the name of something outside the project.
    Glob,
    /// A file of the project.
    File,
    /// A number of bytes with a unit, in a string: `"20 GiB"`.
    Bytes,
    /// An integer in `low..=high`.
    Count {
        low: usize,
        high: usize,
    },
    /// A time with a unit, in a string: `"20s"`.
    Time,
    /// Any text but none.
    Text,
}

impl Accepts {
    pub const fn takes_list(self) -> bool {
        self.is_list() || matches!(self, Self::Sizes | Self::Choices { .. })
    }

    /// Takes nothing but a list.
    pub const fn is_list(self) -> bool {
        matches!(self, Self::References | Self::Passes | Self::Patterns)
    }

    /// What one value is, for error messages.
    pub const fn item(self) -> &'static str {
        match self {
            Self::Size | Self::Sizes | Self::Threads | Self::Count { .. } => "an integer",
            Self::Number { .. } => "a number",
            Self::Flag => "`true` or `false`",
            _ => "a string",
        }
    }

    /// What the key takes as a whole, for error messages.
    pub const fn expected(self) -> &'static str {
        match self {
            Self::Sizes => "an integer or a list of integers",
            Self::Choices { .. } => "a string or a list of strings",
            Self::References | Self::Passes | Self::Patterns => "a list of strings",
            _ => self.item(),
        }
    }

    fn schema(self) -> Value {
        let size = json!({ "type": "integer", "minimum": 1, "maximum": MAX_SIZE });
        let or_list = |item: Value| json!({ "anyOf": [item.clone(), { "type": "array", "items": item, "minItems": 1, "maxItems": MAX_LIST }] });
        match self {
            Self::Size => size,
            Self::Sizes => or_list(size),
            Self::Threads => json!({ "type": "integer", "minimum": 1, "maximum": MAX_THREADS }),
            Self::Number { low, high, or_zero: false } => json!({ "type": "number", "minimum": low, "maximum": high }),
            Self::Number { low, high, or_zero: true } => {
                json!({ "type": "number", "anyOf": [{ "const": 0 }, { "minimum": low, "maximum": high }] })
            }
            Self::Flag => json!({ "type": "boolean" }),
            Self::Choice { names, .. } => json!({ "enum": names }),
            Self::Choices { names } => or_list(json!({ "enum": names })),
            Self::Name => json!({ "type": "string", "pattern": NAME_PATTERN, "maxLength": MAX_NAME }),
            Self::References => json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 }),
            Self::Passes => json!({ "type": "array", "items": { "enum": PASSES } }),
            Self::Patterns => json!({ "type": "array", "items": { "type": "string" } }),
            Self::File | Self::Glob => json!({ "type": "string" }),
            Self::Bytes => json!({ "type": "string", "pattern": BYTES_PATTERN }),
            Self::Count { low, high } => json!({ "type": "integer", "minimum": low, "maximum": high }),
            Self::Time => json!({ "type": "string", "pattern": TIME_PATTERN }),
            Self::Text => json!({ "type": "string", "minLength": 1 }),
        }
    }
}

/// One key of a table.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub accepts: Accepts,
    /// One line for editors, with the default where there is one.
    pub doc: &'static str,
}

/// A key of a block, and which kinds take it.
struct BlockKey {
    key: Key,
    required: &'static [Kind],
    optional: &'static [Kind],
}

use super::{
    spec::{Activation, Pass},
    tuning::Strategy,
};

const ACTIVATIONS: &[&str] =
    &[Activation::Gelu.name(), Activation::GeluTanh.name(), Activation::Silu.name(), Activation::Relu.name()];

pub const PASSES: &[&str] = &[
    Pass::FoldConstants.name(),
    Pass::FuseMatmulActivation.name(),
    Pass::FuseMlpBlock.name(),
    Pass::EliminateDeadOps.name(),
    Pass::TileMatmul.name(),
    Pass::VectorizeLayernorm.name(),
];

const PROJECT: &[(bool, Key)] = &[
    (true, Key { name: "name", accepts: Accepts::Name, doc: "The project's name, for reports." }),
    (
        false,
        Key {
            name: "workloads",
            accepts: Accepts::Patterns,
            doc: "Files with blocks, relative to the project: paths and globs (`*` stays in one folder, `**` does not). Default: none.",
        },
    ),
    (
        false,
        Key {
            name: "targets",
            accepts: Accepts::References,
            doc: "What a block that names no targets is built for. Default: `[\"cpu\"]`.",
        },
    ),
    (
        false,
        Key {
            name: "corpus",
            accepts: Accepts::File,
            doc: "The regression corpus, relative to the project: inputs that verification replays first. `kforge mutate` adds to it. Default: none.",
        },
    ),
];

const TARGET: &[(bool, Key)] = &[
    (
        true,
        Key {
            name: "backend",
            accepts: Accepts::Choice { names: BACKENDS },
            doc: "What runs the kernels. `metal` and `mps` are other names for `gpu`.",
        },
    ),
    (
        false,
        Key { name: "threads", accepts: Accepts::Threads, doc: "`cpu` only: threads that run a block. Default: 1." },
    ),
    (
        false,
        Key {
            name: "adapter",
            accepts: Accepts::Glob,
            doc: "`gpu` only: which GPU, a pattern for its name (`*H200*`), upper and lower case alike. A real one that matches is taken before a software one, a discrete one before an integrated one. Default: `*`.",
        },
    ),
    (
        false,
        Key {
            name: "hybrid-softmax",
            accepts: Accepts::Flag,
            doc: "`gpu` only: the softmax of attention runs on the CPU, between two dispatches. Default: false.",
        },
    ),
];

/// The values of `backend`; those after the second are aliases of it.
const BACKENDS: &[&str] = &["cpu", "gpu", "metal", "mps"];

/// The keys that only targets of one backend take, with the backend.
pub const BACKEND_KEYS: [(&str, &str); 3] = [("threads", "cpu"), ("adapter", "gpu"), ("hybrid-softmax", "gpu")];

const PIPELINE: &[(bool, Key)] = &[(
    true,
    Key { name: "passes", accepts: Accepts::Passes, doc: "Passes over the transformer dialect, in this order." },
)];

const TUNING: &[(bool, Key)] = &[
    (
        true,
        Key {
            name: "strategy",
            accepts: Accepts::Choice { names: &Strategy::NAMES },
            doc: "How a plan is found. `heuristic` computes it from the device's facts and measures nothing; the others measure what they propose: `grid`, `random`, `evolutionary`, `model` (ranks candidates by a regression of the times so far), `llm` (a language model proposes).",
        },
    ),
    (
        false,
        Key {
            name: "trials",
            accepts: Accepts::Count { low: 1, high: MAX_TRIALS },
            doc: "Schedules of each operation that a search tries, the heuristic's among them. A larger number tries only what is missing. Default: 32.",
        },
    ),
    (
        false,
        Key {
            name: "time",
            accepts: Accepts::Time,
            doc: "How long the search for one block may take, e.g. `20s` or `5m`; what was measured by then decides. Default: no limit.",
        },
    ),
    (
        false,
        Key {
            name: "seed",
            accepts: Accepts::Count { low: 0, high: MAX_SEED },
            doc: "Of what a strategy draws: equal seeds, equal proposals. Default: 1.",
        },
    ),
    (
        false,
        Key {
            name: "fusions",
            accepts: Accepts::Flag,
            doc: "Whether a search also tries the block without each of its fusions. Default: true.",
        },
    ),
];

/// The tables within `[tuning.*]`.
pub const LLM_TABLE: &str = "llm";
pub const KNOBS_TABLE: &str = "knobs";

const LLM: &[(bool, Key)] = &[
    (
        false,
        Key {
            name: "endpoint",
            accepts: Accepts::Text,
            doc: "The base address of an OpenAI-compatible server, e.g. `http://localhost:8000/v1`. The environment's `KERNELFORGE_LLM_ENDPOINT` goes before it. The key is only taken from `KERNELFORGE_LLM_API_KEY`.",
        },
    ),
    (
        false,
        Key {
            name: "model",
            accepts: Accepts::Text,
            doc: "The model's name on the server. The environment's `KERNELFORGE_LLM_MODEL` goes before it.",
        },
    ),
    (false, Key { name: "timeout", accepts: Accepts::Time, doc: "Of one request. Default: `60s`." }),
    (
        false,
        Key {
            name: "requests",
            accepts: Accepts::Count { low: 1, high: MAX_TRIALS },
            doc: "The most requests that the search for one operation may send. Default: 32.",
        },
    ),
    (
        false,
        Key {
            name: "tokens",
            accepts: Accepts::Count { low: 1, high: MAX_SEED },
            doc: "The most tokens, of prompts and answers together, that the search for one operation may spend. Default: 200000.",
        },
    ),
    (
        false,
        Key {
            name: "proposals",
            accepts: Accepts::Count { low: 1, high: 64 },
            doc: "Schedules that are asked for in one request. Default: 8.",
        },
    ),
    (
        false,
        Key {
            name: "temperature",
            accepts: Accepts::Number { low: 0.0, high: 2.0, or_zero: false },
            doc: "How freely the model draws. Default: 0.7.",
        },
    ),
];

const CACHE: &[(bool, Key)] = &[(
    false,
    Key {
        name: "max-size",
        accepts: Accepts::Bytes,
        doc: "What `.kforge-cache` may grow to, e.g. `20 GiB`: after a build the least recently used goes, but nothing that the manifests need. Default: no limit.",
    },
)];

const ANY: &[Kind] = &Kind::ALL;
const ROWS: &[Kind] = &[Transformer, TransformerMicroblock, Attention, Mlp, LayerNorm];
const PRODUCTS: &[Kind] = &[Matmul, Microblock];
const WITH_ATTENTION: &[Kind] = &[Transformer, TransformerMicroblock, Attention];
const WITH_MLP: &[Kind] = &[Transformer, Mlp];
const WITH_NORM: &[Kind] = &[Transformer, TransformerMicroblock, Microblock, LayerNorm];

const BLOCK: &[BlockKey] = &[
    BlockKey {
        key: Key {
            name: "kind",
            accepts: Accepts::Choice { names: &Kind::NAMES },
            doc: "What the block computes; decides which of the other keys it takes.",
        },
        required: ANY,
        optional: &[],
    },
    BlockKey {
        key: Key {
            name: "seq",
            accepts: Accepts::Sizes,
            doc: "Tokens of one sequence. A list makes one instance for each, named `<block>-s<seq>`.",
        },
        required: ROWS,
        optional: &[],
    },
    BlockKey {
        key: Key {
            name: "batch",
            accepts: Accepts::Sizes,
            doc: "Sequences in one call. A list makes one instance for each, named `<block>-b<batch>`. Default: 1.",
        },
        required: &[],
        optional: ROWS,
    },
    BlockKey {
        key: Key {
            name: "m",
            accepts: Accepts::Sizes,
            doc: "Rows of the activations [m, k]. A list makes one instance for each, named `<block>-m<m>`.",
        },
        required: PRODUCTS,
        optional: &[],
    },
    BlockKey {
        key: Key { name: "n", accepts: Accepts::Size, doc: "Columns of the weights [k, n] and of the result." },
        required: PRODUCTS,
        optional: &[],
    },
    BlockKey {
        key: Key { name: "k", accepts: Accepts::Size, doc: "Columns of the activations, rows of the weights [k, n]." },
        required: PRODUCTS,
        optional: &[],
    },
    BlockKey {
        key: Key {
            name: "b",
            accepts: Accepts::Choice { names: &OperandB::NAMES },
            doc: "What the right-hand matrix [k, n] is: a `weight`, which may be packed before the calls, or an `input`, given with every call. Default: `weight`.",
        },
        required: &[],
        optional: &[Matmul],
    },
    BlockKey {
        key: Key { name: "d-model", accepts: Accepts::Size, doc: "Columns of the block's input and output." },
        required: ROWS,
        optional: &[],
    },
    BlockKey {
        key: Key { name: "heads", accepts: Accepts::Size, doc: "Query heads." },
        required: WITH_ATTENTION,
        optional: &[],
    },
    BlockKey {
        key: Key {
            name: "kv-heads",
            accepts: Accepts::Size,
            doc: "Key and value heads; divides `heads`. Fewer than `heads` is grouped-query attention. Default: `heads`.",
        },
        required: &[],
        optional: WITH_ATTENTION,
    },
    BlockKey {
        key: Key { name: "head-dim", accepts: Accepts::Size, doc: "Columns of one head. Default: `d-model / heads`." },
        required: &[],
        optional: WITH_ATTENTION,
    },
    BlockKey {
        key: Key { name: "d-ff", accepts: Accepts::Size, doc: "Columns of the MLP's hidden rows." },
        required: WITH_MLP,
        optional: &[],
    },
    BlockKey {
        key: Key {
            name: "norm",
            accepts: Accepts::Choice { names: &["layer-norm", "rms-norm"] },
            doc: "Layer norm has a gain and a bias, RMS norm a gain. Default: `layer-norm`.",
        },
        required: &[],
        optional: WITH_NORM,
    },
    BlockKey {
        key: Key {
            name: "norm-eps",
            accepts: Accepts::Number { low: 1e-30, high: 1.0, or_zero: false },
            doc: "Added to the variance (RMS norm: the mean square) before the root. Default: 1e-5.",
        },
        required: &[],
        optional: WITH_NORM,
    },
    BlockKey {
        key: Key {
            name: "activation",
            accepts: Accepts::Choice { names: ACTIVATIONS },
            doc: "Default: `gelu-tanh` in an MLP (that of GPT-2), none after a matmul.",
        },
        required: &[],
        optional: &[Transformer, Mlp, Matmul],
    },
    BlockKey {
        key: Key {
            name: "gated",
            accepts: Accepts::Flag,
            doc: "act(x Wg) * (x Wu) instead of act(x Wu), as in SwiGLU. Default: false.",
        },
        required: &[],
        optional: WITH_MLP,
    },
    BlockKey {
        key: Key {
            name: "bias",
            accepts: Accepts::Flag,
            doc: "Add a bias after each matrix product. Default: true; false for a matmul.",
        },
        required: &[],
        optional: &[Transformer, TransformerMicroblock, Microblock, Attention, Mlp, Matmul],
    },
    BlockKey {
        key: Key {
            name: "qkv-bias",
            accepts: Accepts::Flag,
            doc: "The biases of the Q, K and V projections, where they differ from `bias`. Default: `bias`.",
        },
        required: &[],
        optional: &[Transformer, Attention],
    },
    BlockKey {
        key: Key {
            name: "causal",
            accepts: Accepts::Flag,
            doc: "A token sees itself and earlier tokens only. Default: false.",
        },
        required: &[],
        optional: WITH_ATTENTION,
    },
    BlockKey {
        key: Key {
            name: "rope-theta",
            accepts: Accepts::Number { low: 1.0, high: 1e12, or_zero: true },
            doc: "Base of the rotary embedding of queries and keys. Default: 0, none.",
        },
        required: &[],
        optional: WITH_ATTENTION,
    },
    BlockKey {
        key: Key {
            name: "dtype",
            accepts: Accepts::Choices { names: &["f32", "f16", "bf16"] },
            doc: "How activations and weights are stored; sums are f32. A list makes one instance for each. `bf16` is for CPUs: WGSL has none. Default: `f32`.",
        },
        required: &[],
        optional: ANY,
    },
    BlockKey {
        key: Key {
            name: "group",
            accepts: Accepts::Name,
            doc: "Leaves the block out of a plain build; `--group NAME` or the block's name builds it.",
        },
        required: &[],
        optional: ANY,
    },
    BlockKey {
        key: Key {
            name: "targets",
            accepts: Accepts::References,
            doc: "What the block is built for, and nothing else. Default: the project's `targets`, or what `--target` and `BLOCK@TARGET` ask for.",
        },
        required: &[],
        optional: ANY,
    },
    BlockKey {
        key: Key { name: "pipeline", accepts: Accepts::Name, doc: "A `[pipeline.*]`. Default: `default`, every pass." },
        required: &[],
        optional: ANY,
    },
    BlockKey {
        key: Key { name: "tuning", accepts: Accepts::Name, doc: "A `[tuning.*]`. Default: `default`, the heuristic." },
        required: &[],
        optional: ANY,
    },
];

/// A table of a manifest, by its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Project,
    Target(String),
    Pipeline(String),
    Tuning(String),
    /// The `llm` table of a tuning.
    Llm(String),
    Cache,
    /// Without a kind where the manifest gives none that exists: then any block's keys are taken.
    Block(String, Option<Kind>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Project => f.write_str("[project]"),
            Self::Target(name) => write!(f, "[target.{name}]"),
            Self::Pipeline(name) => write!(f, "[pipeline.{name}]"),
            Self::Tuning(name) => write!(f, "[tuning.{name}]"),
            Self::Llm(name) => write!(f, "[tuning.{name}.{LLM_TABLE}]"),
            Self::Cache => f.write_str("[cache]"),
            Self::Block(name, _) => write!(f, "[block.{name}]"),
        }
    }
}

impl Place {
    /// The keys that the table takes, and whether it must have them.
    pub fn keys(&self) -> Vec<(bool, &'static Key)> {
        let fixed = |keys: &'static [(bool, Key)]| keys.iter().map(|it| (it.0, &it.1)).collect();
        match self {
            Self::Project => fixed(PROJECT),
            Self::Target(_) => fixed(TARGET),
            Self::Pipeline(_) => fixed(PIPELINE),
            Self::Tuning(_) => fixed(TUNING),
            Self::Llm(_) => fixed(LLM),
            Self::Cache => fixed(CACHE),
            Self::Block(_, Some(kind)) => keys_of(*kind),
            Self::Block(_, None) => BLOCK.iter().map(|it| (it.key.name == "kind", &it.key)).collect(),
        }
    }

    /// A table within this one, which is read by itself.
    pub fn holds_table(&self, key: &str) -> bool {
        matches!(self, Self::Tuning(_)) && [LLM_TABLE, KNOBS_TABLE].contains(&key)
    }

    /// Whether some block takes `key`, though perhaps not this one.
    pub fn is_block_key(&self, key: &str) -> bool {
        matches!(self, Self::Block(..)) && BLOCK.iter().any(|it| it.key.name == key)
    }
}

fn keys_of(kind: Kind) -> Vec<(bool, &'static Key)> {
    let required = |it: &BlockKey| it.required.contains(&kind);
    BLOCK.iter().filter(|it| required(it) || it.optional.contains(&kind)).map(|it| (required(it), &it.key)).collect()
}

/// The JSON Schema (draft 7, which TOML editors understand) of `kernelforge.toml` and of the workload files: a workload
/// file is one that has blocks only.
pub fn schema() -> Value {
    let named = |description: &str, table: Value| {
        json!({
            "description": description,
            "type": "object",
            "propertyNames": { "pattern": NAME_PATTERN, "maxLength": MAX_NAME },
            "additionalProperties": table,
        })
    };
    let fixed = |place: Place| table_schema(&place.keys());
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "kforge manifest",
        "description": "kernelforge.toml (everything) and workload files (blocks only).",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "project": fixed(Place::Project),
            "target": named("What blocks are built for.", target_schema()),
            "pipeline": named("Passes over the IR.", fixed(Place::Pipeline(String::new()))),
            "tuning": named("How plans are found.", tuning_schema()),
            "cache": fixed(Place::Cache),
            "block": named("What is built.", block_schema()),
        },
    })
}

fn table_schema(keys: &[(bool, &'static Key)]) -> Value {
    let required: Vec<_> = keys.iter().filter(|it| it.0).map(|it| it.1.name).collect();
    json!({ "type": "object", "additionalProperties": false, "properties": properties(keys), "required": required })
}

fn properties(keys: &[(bool, &'static Key)]) -> Value {
    let property = |key: &Key| {
        let mut schema = key.accepts.schema();
        schema["description"] = key.doc.into();
        (key.name.to_owned(), schema)
    };
    Value::Object(keys.iter().map(|it| property(it.1)).collect::<Map<_, _>>())
}

/// Every key of any target, then for each backend which of them it may have.
fn target_schema() -> Value {
    let by_backend = |backend: &str, names: &[&str]| {
        let foreign = |key: &str| BACKEND_KEYS.iter().any(|it| it.0 == key && it.1 != backend);
        let keys: Vec<_> = TARGET.iter().map(|it| it.1.name).filter(|it| !foreign(it)).collect();
        json!({
            "if": { "properties": { "backend": { "enum": names } }, "required": ["backend"] },
            "then": { "propertyNames": { "enum": keys } },
        })
    };
    let mut schema = table_schema(&Place::Target(String::new()).keys());
    schema["allOf"] = json!([by_backend("cpu", &BACKENDS[..1]), by_backend("gpu", &BACKENDS[1..])]);
    schema
}

fn tuning_schema() -> Value {
    let mut schema = table_schema(&Place::Tuning(String::new()).keys());
    let mut llm = table_schema(&Place::Llm(String::new()).keys());
    llm["description"] = "The language model of the strategy `llm`.".into();
    schema["properties"][LLM_TABLE] = llm;
    schema["properties"][KNOBS_TABLE] = super::knobs::schema();
    schema
}

/// Every key of any block, then for each kind which of them it must and may have.
fn block_schema() -> Value {
    let by_kind = |kind: Kind| {
        let keys = keys_of(kind);
        let names: Vec<_> = keys.iter().map(|it| it.1.name).collect();
        let required: Vec<_> = keys.iter().filter(|it| it.0).map(|it| it.1.name).collect();
        json!({
            "if": { "properties": { "kind": { "const": kind.name() } }, "required": ["kind"] },
            "then": { "propertyNames": { "enum": names }, "required": required },
        })
    };
    let mut schema = table_schema(&Place::Block(String::new(), None).keys());
    schema["allOf"] = Kind::ALL.into_iter().map(by_kind).collect();
    schema
}
