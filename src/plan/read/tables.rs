//! What the objects of a plan file take: a table for each schedule. A test holds them against the types that serde reads.

/// What a field's value must be.
pub enum Shape {
    /// A whole number from 0; which ones are legal depends on the stage.
    Count,
    Flag,
    Word(&'static [&'static str]),
    Object(Table),
    /// An object whose field `method` names the table of the others.
    OneOf(Methods),
}

use Shape::{Count, Flag, Object, OneOf, Word};

/// The fields of an object; it must have all of them.
pub type Table = &'static [(&'static str, Shape)];
pub type Methods = &'static [(&'static str, Table)];

const MATMUL: Table = &[
    ("mr", Count),
    ("nr", Count),
    ("lanes", Count),
    ("mc", Count),
    ("nc", Count),
    ("kc", Count),
    ("unroll", Count),
    ("dot", Word(&["fma", "pairs"])),
    ("order", Word(&["columns-outside", "rows-outside"])),
    ("pack-a", Flag),
    ("pack-b", Word(&["ahead", "during", "never"])),
    ("prefetch", Flag),
    ("split", Word(&["rows", "columns"])),
];

const ATTENTION: Table = &[
    ("row-block", Count),
    ("mr", Count),
    ("nr", Count),
    ("lanes", Count),
    ("unroll", Count),
    ("pack-v", Flag),
    ("softmax-rows", Count),
];
const NORM: Table = &[("lanes", Count), ("unroll", Count)];
const ELEMENTWISE: Table = NORM;
const MLP: Table = &[("row-block", Count), ("up", Object(MATMUL)), ("down", Object(MATMUL))];

const GPU_MATMUL: Methods = &[
    (
        "tiled",
        &[
            ("tile-m", Count),
            ("tile-n", Count),
            ("tile-k", Count),
            ("thread-m", Count),
            ("thread-n", Count),
            ("vector", Count),
            ("stages", Count),
            ("prefetch", Count),
            ("split-k", Count),
            ("swizzle", Count),
        ],
    ),
    (
        "cooperative",
        &[
            ("tile-m", Count),
            ("tile-n", Count),
            ("tile-k", Count),
            ("subgroup-m", Count),
            ("subgroup-n", Count),
            ("vector", Count),
            ("transpose", Flag),
            ("stages", Count),
            ("prefetch", Count),
            ("split-k", Count),
            ("swizzle", Count),
        ],
    ),
    ("gemv", &[("threads", Count), ("vector", Count), ("slices", Count), ("unroll", Count), ("split-k", Count)]),
];

const GPU_ATTENTION: Methods = &[
    (
        "online",
        &[
            ("tile-q", Count),
            ("tile-k", Count),
            ("thread-q", Count),
            ("threads", Count),
            ("vector", Count),
            ("share-q", Flag),
        ],
    ),
    (
        "cooperative",
        &[
            ("tile-q", Count),
            ("subgroup-q", Count),
            ("tile-k", Count),
            ("chunk", Count),
            ("padded", Flag),
            ("vector", Count),
            ("prefetch", Flag),
        ],
    ),
    ("host-softmax", &[("tile-q", Count), ("tile-k", Count), ("threads", Count)]),
];

const GPU_NORM: Table = &[("width", Count), ("rows", Count), ("vector", Count), ("subgroups", Flag)];
const GPU_ELEMENTWISE: Table = &[("threads", Count), ("vector", Count), ("unroll", Count)];
const GPU_MLP: Table = &[("fuse-gate", Flag), ("up", OneOf(GPU_MATMUL)), ("down", OneOf(GPU_MATMUL))];

/// The schedules by the name of their kernel.
pub const KERNELS: [(&str, Shape); 10] = [
    ("matmul", Object(MATMUL)),
    ("attention", Object(ATTENTION)),
    ("norm", Object(NORM)),
    ("elementwise", Object(ELEMENTWISE)),
    ("mlp", Object(MLP)),
    ("gpu-matmul", OneOf(GPU_MATMUL)),
    ("gpu-attention", OneOf(GPU_ATTENTION)),
    ("gpu-norm", Object(GPU_NORM)),
    ("gpu-elementwise", Object(GPU_ELEMENTWISE)),
    ("gpu-mlp", Object(GPU_MLP)),
];
