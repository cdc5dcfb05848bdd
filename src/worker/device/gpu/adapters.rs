//! The adapters of this machine and what their drivers tell of them.

use kernelforge::{
    host::gpu::{CooperativeShape, GpuFacts, GpuFeature, GpuKind},
    protocol::Gpus,
};
use wgpu::{
    Adapter, Backends, CooperativeScalarType, DeviceType, Features, Instance, InstanceDescriptor, InstanceFlags,
};

/// What wgpu calls a feature.
const FEATURES: [(GpuFeature, Features); 6] = [
    (GpuFeature::F16, Features::SHADER_F16),
    (GpuFeature::Subgroups, Features::SUBGROUP),
    (GpuFeature::CooperativeMatrix, Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
    (GpuFeature::Timestamps, Features::TIMESTAMP_QUERY),
    (GpuFeature::TimestampsInPasses, Features::TIMESTAMP_QUERY_INSIDE_PASSES),
    (GpuFeature::PipelineCache, Features::PIPELINE_CACHE),
];

/// The features of a device that these facts stand for.
pub fn features(facts: &GpuFacts) -> Features {
    FEATURES.iter().filter(|it| facts.has(it.0)).fold(Features::empty(), |all, it| all | it.1)
}

/// OpenGL is left out: it has no cooperative matrices, no timestamps in passes, and shows every device a second time.
const BACKENDS: Backends = Backends::VULKAN.union(Backends::METAL);

/// The adapters, in the driver's order.
pub fn all() -> Vec<Adapter> {
    let descriptor = InstanceDescriptor {
        backends: BACKENDS,
        // No validation layers, whatever the environment says: they would be measured along.
        flags: InstanceFlags::empty(),
        ..InstanceDescriptor::new_without_display_handle()
    };
    pollster::block_on(Instance::new(descriptor).enumerate_adapters(BACKENDS))
}

/// Looks for GPUs.
pub fn probe() -> Gpus {
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for adapter in all() {
        let (facts, flags) = (facts(&adapter), adapter.get_downlevel_capabilities().flags);
        if flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) {
            found.push(facts);
        } else {
            problems.push(format!("{facts}: has no compute shaders"));
        }
    }
    if found.is_empty() && problems.is_empty() {
        problems.push("no Vulkan driver has a device, or there is no Vulkan loader".to_owned());
    }
    Gpus { found, problems }
}

/// The facts of one adapter.
pub fn facts(adapter: &Adapter) -> GpuFacts {
    let (info, limits, has) = (adapter.get_info(), adapter.limits(), adapter.features());
    let mut features: Vec<_> = FEATURES.iter().filter(|it| has.contains(it.1)).map(|it| it.0).collect();
    features.sort();
    let bits = |it| match it {
        CooperativeScalarType::F32 => Some(32),
        CooperativeScalarType::F16 => Some(16),
        CooperativeScalarType::I32 | CooperativeScalarType::U32 => None,
    };
    let shapes = adapter.cooperative_matrix_properties().into_iter().filter_map(|it| {
        Some(CooperativeShape {
            m: it.m_size as usize,
            n: it.n_size as usize,
            k: it.k_size as usize,
            operand_bits: bits(it.ab_type)?,
            accumulator_bits: bits(it.cr_type)?,
        })
    });
    let mut cooperative: Vec<_> = shapes.filter(|_| features.contains(&GpuFeature::CooperativeMatrix)).collect();
    cooperative.sort();
    cooperative.dedup();
    GpuFacts {
        name: info.name,
        kind: match info.device_type {
            DeviceType::DiscreteGpu => GpuKind::Discrete,
            DeviceType::IntegratedGpu => GpuKind::Integrated,
            DeviceType::VirtualGpu => GpuKind::Virtual,
            DeviceType::Cpu => GpuKind::Software,
            DeviceType::Other => GpuKind::Other,
        },
        vendor: info.vendor,
        device: info.device,
        api: info.backend.to_str().to_owned(),
        driver: info.driver,
        driver_version: info.driver_info,
        features,
        subgroup_min: info.subgroup_min_size as usize,
        subgroup_max: info.subgroup_max_size as usize,
        workgroup_memory: limits.max_compute_workgroup_storage_size as usize,
        workgroup_invocations: limits.max_compute_invocations_per_workgroup as usize,
        workgroup_x: limits.max_compute_workgroup_size_x as usize,
        workgroups: limits.max_compute_workgroups_per_dimension as usize,
        buffer_bytes: limits.max_buffer_size,
        binding_bytes: limits.max_storage_buffer_binding_size,
        bindings: limits.max_storage_buffers_per_shader_stage as usize,
        binding_alignment: limits.min_storage_buffer_offset_alignment as usize,
        cooperative,
    }
}
