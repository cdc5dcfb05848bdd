//! A program made ready: its shaders compiled to pipelines.

use super::Gpu;
use kernelforge::{
    plan::program::{Access, Dispatch, Program, Step},
    protocol::{Failure, FailureKind},
};
use std::{borrow::Cow, sync::Arc};
use wgpu::{
    BindGroupLayoutDescriptor, BindGroupLayoutEntry, BindingType, BufferBindingType, ComputePipelineDescriptor,
    PipelineCompilationOptions, PipelineLayoutDescriptor, ShaderModuleDescriptor, ShaderRuntimeChecks, ShaderSource,
    ShaderStages,
};

/// Whether the driver's shaders check their indices and bound their loops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checks {
    /// For code that is not known to be right.
    On,
    /// For measurement and use, after verification.
    Off,
}

/// A program on its device.
pub struct LoadedProgram {
    pub gpu: Arc<Gpu>,
    pub program: Program,
    /// By shader.
    pub pipelines: Vec<Pipeline>,
}

pub struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

impl LoadedProgram {
    /// Compiles the shaders: `sources` are their texts.
    ///
    /// # Errors
    /// `Codegen` with the shader's name and the compiler's message; `IllegalPlan` for a shader beyond the device's limits.
    pub fn load(gpu: &Arc<Gpu>, program: Program, sources: &[String], checks: Checks) -> Result<Self, Failure> {
        let accesses = accesses(&program);
        if sources.len() != program.shaders.len() {
            let message = format!("{} shaders are described and {} given", program.shaders.len(), sources.len());
            return Err(Failure::new(FailureKind::Codegen, message));
        }
        let mut pipelines = Vec::with_capacity(sources.len());
        for (index, (shader, source)) in program.shaders.iter().zip(sources).enumerate() {
            let access = accesses.get(index).map_or(&[][..], Vec::as_slice);
            let pipeline = pipeline(gpu, source, access, checks);
            gpu.check().map_err(|it| Failure {
                message: format!("shader `{}` ({}): {}", shader.name, shader.template, it.message),
                ..it
            })?;
            pipelines.push(pipeline);
        }
        gpu.keep_pipelines();
        Ok(Self { gpu: Arc::clone(gpu), program, pipelines })
    }
}

/// How each shader uses its bindings, as its first dispatch says.
fn accesses(program: &Program) -> Vec<Vec<Access>> {
    let mut all = vec![Vec::new(); program.shaders.len()];
    let steps = program.stages.iter().flatten().filter_map(|it| match it {
        Step::Dispatch(dispatch) => Some(dispatch),
        Step::HostSoftmax { .. } => None,
    });
    let dispatches: Vec<&Dispatch> = steps.chain(program.packed.iter().map(|it| &it.prepare)).collect();
    for dispatch in dispatches {
        if let Some(access) = all.get_mut(dispatch.shader) {
            *access = dispatch.bindings.iter().map(|it| it.access).collect();
        }
    }
    all
}

fn pipeline(gpu: &Gpu, source: &str, accesses: &[Access], checks: Checks) -> Pipeline {
    let source = ShaderSource::Wgsl(Cow::Borrowed(source));
    let descriptor = ShaderModuleDescriptor { label: None, source };
    let checks = match checks {
        Checks::On => ShaderRuntimeChecks::checked(),
        Checks::Off => ShaderRuntimeChecks::unchecked(),
    };
    // SAFETY: without checks a shader must neither index out of bounds nor loop for ever. Only the verifier's own run beside the
    // checked shader and what it accepted come here unchecked, and generated code runs in this process only.
    let module = unsafe { gpu.device.create_shader_module_trusted(descriptor, checks) };
    let entries: Vec<_> = (0u32..)
        .zip(accesses)
        .map(|(binding, access)| BindGroupLayoutEntry {
            binding,
            visibility: ShaderStages::COMPUTE,
            ty: BindingType::Buffer {
                ty: BufferBindingType::Storage { read_only: *access == Access::Read },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    let layout = gpu.device.create_bind_group_layout(&BindGroupLayoutDescriptor { label: None, entries: &entries });
    let layouts = [Some(&layout)];
    let all = PipelineLayoutDescriptor { label: None, bind_group_layouts: &layouts, immediate_size: 0 };
    let all = gpu.device.create_pipeline_layout(&all);
    let pipeline = gpu.device.create_compute_pipeline(&ComputePipelineDescriptor {
        label: None,
        layout: Some(&all),
        module: &module,
        entry_point: Some("main"),
        // What a kernel does not write to workgroup memory it must not read; zeros would hide that, and cost time.
        compilation_options: PipelineCompilationOptions { constants: &[], zero_initialize_workgroup_memory: false },
        cache: gpu.pipeline_cache(),
    });
    Pipeline { pipeline, layout }
}
