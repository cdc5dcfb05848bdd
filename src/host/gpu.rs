//! Facts about a GPU as its driver tells them.

use crate::{digest::Digest, manifest::spec::Dtype};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What kind of device stands behind an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GpuKind {
    Discrete,
    Integrated,
    Virtual,
    /// The CPU pretends: right for tests, meaningless for speed, and named so wherever its figures are shown.
    Software,
    Other,
}

impl GpuKind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Software => "software",
            Self::Other => "unknown kind",
        }
    }
}

/// What generated code may use beyond WebGPU's core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GpuFeature {
    /// 16-bit floats in shaders and buffers.
    F16,
    /// Operations across a subgroup.
    Subgroups,
    /// Matrix products of a whole subgroup; the shapes are in [`GpuFacts::cooperative`].
    CooperativeMatrix,
    /// Timestamps at the edges of a pass.
    Timestamps,
    /// Timestamps between the dispatches of a pass.
    TimestampsInPasses,
    /// Compiled pipelines can be kept.
    PipelineCache,
}

impl GpuFeature {
    pub const ALL: [Self; 6] = [
        Self::F16,
        Self::Subgroups,
        Self::CooperativeMatrix,
        Self::Timestamps,
        Self::TimestampsInPasses,
        Self::PipelineCache,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Subgroups => "subgroups",
            Self::CooperativeMatrix => "cooperative-matrix",
            Self::Timestamps => "timestamps",
            Self::TimestampsInPasses => "timestamps-in-passes",
            Self::PipelineCache => "pipeline-cache",
        }
    }
}

/// One product that a subgroup computes at once: C [m, n] += A [m, k] B [k, n].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CooperativeShape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Bits of the elements of A and B, and of C.
    pub operand_bits: usize,
    pub accumulator_bits: usize,
}

/// The resolved facts of one GPU. Two devices with equal facts may share measured results; others never do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GpuFacts {
    /// The adapter's name, e.g. `NVIDIA H200`.
    pub name: String,
    pub kind: GpuKind,
    /// PCI ids.
    pub vendor: u32,
    pub device: u32,
    /// `vulkan`, `metal`, `dx12`.
    pub api: String,
    pub driver: String,
    pub driver_version: String,
    /// Sorted.
    pub features: Vec<GpuFeature>,
    /// Invocations of a subgroup: equal where the device has one size.
    pub subgroup_min: usize,
    pub subgroup_max: usize,
    /// Bytes of memory that the invocations of a workgroup share.
    pub workgroup_memory: usize,
    /// Invocations of a workgroup, in all and in its first dimension.
    pub workgroup_invocations: usize,
    pub workgroup_x: usize,
    /// Workgroups of a dispatch in each dimension.
    pub workgroups: usize,
    /// Bytes of one buffer, and of what a shader sees of it.
    pub buffer_bytes: u64,
    pub binding_bytes: u64,
    /// Storage buffers of one shader.
    pub bindings: usize,
    /// Bytes; where a shader's view of a buffer may begin.
    pub binding_alignment: usize,
    /// Sorted; empty without the feature.
    pub cooperative: Vec<CooperativeShape>,
}

impl GpuFacts {
    /// The digest of the facts: the identity under which measured results are kept.
    pub fn fingerprint(&self) -> Digest {
        Digest::of(serde_json::to_string(self).unwrap_or_default().as_bytes())
    }

    pub fn has(&self, feature: GpuFeature) -> bool {
        self.features.contains(&feature)
    }

    /// The name as lists and reports show it: `llvmpipe (software)`.
    pub fn shown(&self) -> String {
        if self.software() { format!("{} (software)", self.name) } else { self.name.clone() }
    }

    pub fn software(&self) -> bool {
        self.kind == GpuKind::Software
    }

    /// Whether tensors of this type can be read and written.
    pub fn stores(&self, dtype: Dtype) -> bool {
        match dtype {
            Dtype::F32 => true,
            Dtype::F16 => self.has(GpuFeature::F16),
            // WGSL has no such type.
            Dtype::Bf16 => false,
        }
    }

    /// The largest square matrix product of a subgroup on f16 operands with an f32 accumulator: WGSL knows no other. Devices list
    /// others too (an H100 first one of 16x8x8).
    pub fn cooperative_f16(&self) -> Option<CooperativeShape> {
        let half = |it: &CooperativeShape| it.operand_bits == 16 && it.accumulator_bits == 32;
        let square = |it: &CooperativeShape| it.m == it.n && it.n == it.k;
        self.cooperative.iter().copied().filter(|it| half(it) && square(it)).max_by_key(|it| it.k)
    }
}

impl fmt::Display for GpuFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {} {})", self.name, self.kind.name(), self.driver, self.driver_version)
    }
}
