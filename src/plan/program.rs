//! What runs on a GPU: shaders, and for each stage the dispatches that compute it. `kernel.json` of a GPU target is a
//! [`Program`]; the shaders' WGSL is the object, a JSON list of texts in the order of [`Program::shaders`].
//!
//! Everything that a shader needs to know is written into its text; it has no uniforms. Its buffers are the bindings
//! `@group(0) @binding(i)`, in the order of [`Dispatch::bindings`].

use super::stage::{StageGraph, TensorId};
use crate::host::gpu::GpuFeature;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const PROGRAM_VERSION: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Buffer {
    Tensor(TensorId),
    /// Index into [`Program::packed`].
    Packed(usize),
    /// Index into [`Program::scratch`].
    Scratch(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    Read,
    ReadWrite,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Binding {
    pub buffer: Buffer,
    pub access: Access,
}

/// One text of WGSL with an entry point `main`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Shader {
    /// The template and what tells its uses apart, e.g. `matmul-tiled 128x768x768`.
    pub name: String,
    /// The template's file name.
    pub template: String,
    pub workgroup: [u32; 3],
    /// Bytes of workgroup memory.
    pub workgroup_memory: usize,
    /// What the device must have.
    pub features: Vec<GpuFeature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Dispatch {
    /// Index into [`Program::shaders`].
    pub shader: usize,
    pub bindings: Vec<Binding>,
    pub workgroups: [u32; 3],
}

/// One thing that is done for a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    Dispatch(Dispatch),
    /// The softmax of attention on the CPU, between two dispatches: what the original tool did. `scores` holds
    /// [batch, heads, rows, keys] f32 logits, scaled, and gets the weights in their place.
    HostSoftmax {
        scores: Buffer,
        batch: usize,
        heads: usize,
        rows: usize,
        keys: usize,
        causal: bool,
    },
}

/// A weight in the layout that its stages want.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Packed {
    /// What it is made from; all weights.
    pub weights: Vec<TensorId>,
    pub bytes: u64,
    pub prepare: Dispatch,
}

/// Working memory of one stage: contents undefined before and after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Scratch {
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Program {
    pub version: u32,
    pub graph: StageGraph,
    /// The project's own templates among those that the shaders were rendered from, by file name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub templates: BTreeMap<String, String>,
    pub shaders: Vec<Shader>,
    pub packed: Vec<Packed>,
    pub scratch: Vec<Scratch>,
    /// By stage of the graph, in order.
    pub stages: Vec<Vec<Step>>,
    /// Bytes of the buffers that values and scratch share in a run of the block, and which of them each has: two of one buffer
    /// are never needed at the same time.
    pub shared: Vec<u64>,
    pub placements: Vec<(Buffer, usize)>,
}
