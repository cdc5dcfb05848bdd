//! A small known computation: whether a device does what it says before anything depends on it.

use super::{Gpu, memory, memory::Region};
use kernelforge::{
    host::gpu::GpuFacts,
    protocol::{Failure, Smoke},
};
use std::time::Instant;
use wgpu::{CommandEncoderDescriptor, ComputePassDescriptor};

/// y[i] = 3 x[i] + i, exact in f32.
const SOURCE: &str = "
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < 1000u) {
        y[id.x] = fma(3.0, x[id.x], f32(id.x));
    }
}
";

/// Opens the device and computes. An error is a result here.
pub fn test(gpu: &GpuFacts) -> Smoke {
    let start = Instant::now();
    let (error, worst_ratio) = match compute(gpu) {
        Ok(wrong) => (None, wrong),
        Err(failure) => (Some(failure.to_string()), f64::INFINITY),
    };
    let error = error.or_else(|| (worst_ratio > 0.0).then(|| format!("a result is off by {worst_ratio}")));
    let wall_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    Smoke { error, worst_ratio: if worst_ratio.is_finite() { worst_ratio } else { f64::MAX }, wall_us }
}

/// The largest difference from the exact results.
fn compute(facts: &GpuFacts) -> Result<f64, Failure> {
    let gpu = Gpu::open(facts, None)?;
    let given: Vec<f32> = (0..1000u16).map(|it| f32::from(it % 17) - 8.0).collect();
    let (x, y) = (Region::new(&gpu, 4000, true)?, Region::new(&gpu, 4000, true)?);
    x.write(&gpu, bytemuck::cast_slice(&given));
    y.fill(&gpu, f32::NAN.to_le_bytes(), true);
    let source = wgpu::ShaderSource::Wgsl(SOURCE.into());
    let module = gpu.device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
    let pipeline = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let layout = pipeline.get_bind_group_layout(0);
    let entries = [&x, &y].map(|it| wgpu::BindingResource::Buffer(it.binding()));
    let entries: Vec<_> =
        (0u32..).zip(entries).map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource }).collect();
    let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries };
    let group = gpu.device.create_bind_group(&descriptor);
    let mut encoder = gpu.device.create_command_encoder(&CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(16, 1, 1);
    }
    gpu.queue.submit([encoder.finish()]);
    let read = memory::read(&gpu, &[&y])?;
    let computed: Vec<f32> = read.iter().flat_map(|it| bytemuck::pod_collect_to_vec::<u8, f32>(it)).collect();
    let wrong = given.iter().zip(&computed).enumerate().map(|(index, (x, y))| {
        let off = (f64::from(*y) - (3.0 * f64::from(*x) + index as f64)).abs();
        // NaN: never written.
        if off.is_nan() { f64::INFINITY } else { off }
    });
    Ok(if computed.len() == given.len() { wrong.fold(0.0, f64::max) } else { f64::INFINITY })
}
