//! Knobs against what a GPU's driver tells of its limits.

use crate::{
    host::gpu::{GpuFacts, GpuFeature},
    manifest::spec::Dtype,
    plan::constraint::{Knobs, Violation},
};
impl<'a> Knobs<'a, GpuFacts> {
    pub fn new(stage: &'a str, gpu: &'a GpuFacts) -> Self {
        Self { stage, device: gpu }
    }

    /// Tensors of `dtype` can be stored, and a shader may have `bindings` of them, the largest of `elements`.
    pub fn tensors(&self, dtype: Dtype, bindings: usize, elements: usize) -> Result<(), Violation> {
        if !self.device.stores(dtype) {
            let rule = match dtype {
                Dtype::Bf16 => "cannot be stored: WGSL has no such type".to_owned(),
                _ => format!("cannot be stored: {} lacks `{}`", self.device.name, GpuFeature::F16.name()),
            };
            return Err(self.violation("dtype", dtype.name(), rule));
        }
        let why = format!("storage buffers that a shader of {} may have", self.device.name);
        self.range("bindings", bindings, 1, self.device.bindings, &why)?;
        self.bytes("tensor-bytes", elements.saturating_mul(dtype.bytes()))
    }

    /// A buffer that a shader sees as a whole, and indexes with 32 bits.
    pub fn bytes(&self, knob: &str, bytes: usize) -> Result<(), Violation> {
        let limit = self.device.binding_bytes.min(self.device.buffer_bytes);
        if bytes as u64 <= limit {
            return Ok(());
        }
        let rule = format!("is more than the {limit} bytes that a shader of {} sees of a buffer", self.device.name);
        Err(self.violation(knob, bytes, rule))
    }

    pub fn feature(&self, knob: &str, value: impl ToString, feature: GpuFeature) -> Result<(), Violation> {
        if self.device.has(feature) {
            return Ok(());
        }
        Err(self.violation(knob, value, format!("needs `{}`: {} lacks it", feature.name(), self.device.name)))
    }

    /// Invocations of a workgroup, all in its first dimension.
    pub fn invocations(&self, knob: &str, count: usize) -> Result<(), Violation> {
        let high = self.device.workgroup_invocations.min(self.device.workgroup_x);
        self.range(knob, count, 1, high, &format!("invocations of a workgroup of {}", self.device.name))
    }

    pub fn workgroup_memory(&self, knob: &str, value: usize, bytes: usize) -> Result<(), Violation> {
        if bytes <= self.device.workgroup_memory {
            return Ok(());
        }
        let rule = format!(
            "needs {bytes} bytes of workgroup memory: {} has {}",
            self.device.name, self.device.workgroup_memory
        );
        Err(self.violation(knob, value, rule))
    }

    /// Workgroups of one dimension of a dispatch.
    pub fn workgroups(&self, knob: &str, value: usize, count: usize) -> Result<(), Violation> {
        if count <= self.device.workgroups {
            return Ok(());
        }
        let rule = format!(
            "makes {count} workgroups in one dimension: {} dispatches {}",
            self.device.name, self.device.workgroups
        );
        Err(self.violation(knob, value, rule))
    }

    /// Elements of one load, which must divide rows of `of` elements.
    pub fn vector(&self, vector: usize, widest: usize, what: &str, of: usize) -> Result<(), Violation> {
        if !vector.is_power_of_two() || vector > widest {
            let rule = format!("is not a power of two up to {widest}: WGSL has no other vectors of {what}");
            return Err(self.violation("vector", vector, rule));
        }
        if of.is_multiple_of(vector) {
            return Ok(());
        }
        Err(self.violation("vector", vector, format!("does not divide the {of} elements of {what}")))
    }
}
