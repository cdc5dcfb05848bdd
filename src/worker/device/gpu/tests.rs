//! On a software device, which every machine that runs these tests has.

use super::{
    Gpu,
    memory::{self, Region},
    probe,
    program::{Checks, LoadedProgram},
    run::{Session, Work},
    smoke,
};
use kernelforge::{
    host::gpu::{GpuFacts, GpuFeature},
    manifest::spec::{Activation, Dtype},
    plan::{
        program::{Access, Binding, Buffer, Dispatch, PROGRAM_VERSION, Program, Shader, Step},
        stage::{Role, Stage, StageGraph, StageOp, Tensor, TensorId},
    },
    protocol::FailureKind,
    store::cas::Cas,
};

/// The facts of the software device that `script/bootstrap` installs.
pub fn software() -> GpuFacts {
    let found = probe();
    let software = found.found.iter().find(|it| it.software());
    software.unwrap_or_else(|| panic!("no software Vulkan device: {found:?}")).clone()
}

/// y = 2 x + 1 on 100 elements, with this shader.
fn program() -> Program {
    let tensor = |name: &str, role| Tensor { name: name.to_owned(), shape: vec![1, 100], dtype: Dtype::F32, role };
    let op = StageOp::Activation { rows: 1, width: 100, function: Activation::Relu };
    let stage = Stage { name: "twice".to_owned(), op, inputs: vec![TensorId(0)], output: TensorId(1), scheduled: true };
    let bind = |id, access| Binding { buffer: Buffer::Tensor(TensorId(id)), access };
    let bindings = vec![bind(0, Access::Read), bind(1, Access::ReadWrite)];
    let shader = Shader {
        name: "twice 100".to_owned(),
        template: "twice.wgsl".to_owned(),
        workgroup: [64, 1, 1],
        workgroup_memory: 0,
        features: Vec::new(),
    };
    Program {
        version: PROGRAM_VERSION,
        graph: StageGraph {
            block: "twice".to_owned(),
            tensors: vec![tensor("x", Role::Input), tensor("y", Role::Output)],
            stages: vec![stage],
        },
        templates: Default::default(),
        shaders: vec![shader],
        packed: Vec::new(),
        scratch: Vec::new(),
        stages: vec![vec![Step::Dispatch(Dispatch { shader: 0, bindings, workgroups: [2, 1, 1] })]],
        shared: Vec::new(),
        placements: Vec::new(),
    }
}

fn source(guard: &str) -> String {
    format!(
        "@group(0) @binding(0) var<storage, read> x: array<f32>;
         @group(0) @binding(1) var<storage, read_write> y: array<f32>;
         @compute @workgroup_size(64)
         fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
             {guard} {{ y[id.x] = 2.0 * x[id.x] + 1.0; }}
         }}"
    )
}

#[test]
fn a_software_device_says_so_and_passes_the_smoke_test() {
    let facts = software();
    assert!(facts.to_string().contains("software"), "{facts}");
    assert!(facts.workgroup_invocations >= 256 && facts.binding_bytes >= 1 << 27, "{facts:?}");
    let smoke = smoke::test(&facts);
    assert_eq!(smoke.error, None);
    assert_eq!(smoke.worst_ratio, 0.0);
}

#[test]
fn a_device_that_is_not_here_is_unavailable_and_the_message_names_those_that_are() {
    let facts = GpuFacts { name: "Voodoo 2".to_owned(), ..software() };
    let failure = Gpu::open(&facts, None).err().unwrap();
    assert_eq!(failure.kind, FailureKind::DeviceUnavailable);
    assert!(failure.message.contains("Voodoo 2") && failure.message.contains(&software().name), "{failure}");
    assert!(smoke::test(&facts).error.is_some());
}

#[test]
fn a_program_runs_and_is_timed() {
    let gpu = Gpu::open(&software(), None).unwrap();
    for checks in [Checks::On, Checks::Off] {
        let loaded = LoadedProgram::load(&gpu, program(), &[source("if (id.x < 100u)")], checks).unwrap();
        let session = Session::new(&loaded, true).unwrap();
        let given: Vec<f32> = (0..100u8).map(f32::from).collect();
        session.tensor(TensorId(0)).unwrap().write(&gpu, bytemuck::cast_slice(&given));
        session.run(Work::Stage(0)).unwrap();
        let read = memory::read(&gpu, &[session.tensor(TensorId(1)).unwrap()]).unwrap().concat();
        let result: Vec<f32> = bytemuck::pod_collect_to_vec(&read);
        assert!(given.iter().zip(&result).all(|(x, y)| *y == 2.0 * x + 1.0), "{result:?}");
        let times = session.time(Work::Block, 3).unwrap();
        assert!(times.len() == 3 && times.iter().all(|it| *it > 0.0 && *it < 1e9), "{times:?}");
    }
}

#[test]
fn a_device_without_timestamps_is_timed_by_the_host() {
    let mut facts = software();
    let gpu = Gpu::open(&facts, None).unwrap();
    facts.features.retain(|it| *it != GpuFeature::Timestamps && *it != GpuFeature::TimestampsInPasses);
    let without = super::open::tests::with_facts(&gpu, facts);
    let loaded = LoadedProgram::load(&without, program(), &[source("if (id.x < 100u)")], Checks::Off).unwrap();
    let times = Session::new(&loaded, false).unwrap().time(Work::Block, 4).unwrap();
    assert!(times.len() == 4 && times.iter().all(|it| *it == times[0] && *it > 0.0), "{times:?}");
}

#[test]
fn a_shader_that_is_no_program_is_named() {
    let gpu = Gpu::open(&software(), None).unwrap();
    let failure = LoadedProgram::load(&gpu, program(), &["fn main( {".to_owned()], Checks::On).err().unwrap();
    assert_eq!(failure.kind, FailureKind::Codegen);
    assert!(failure.message.contains("twice 100") && failure.message.contains("twice.wgsl"), "{failure}");
    // What came after it is not spoiled.
    LoadedProgram::load(&gpu, program(), &[source("if (id.x < 100u)")], Checks::On).map(|_| ()).unwrap();
}

#[test]
fn a_buffer_beyond_the_device_is_refused_with_the_figures() {
    let gpu = Gpu::open(&software(), None).unwrap();
    let failure = Region::new(&gpu, gpu.facts.binding_bytes + 16, false).err().unwrap();
    assert_eq!(failure.kind, FailureKind::IllegalPlan);
    assert!(failure.message.contains(&gpu.facts.binding_bytes.to_string()), "{failure}");
}

#[test]
fn a_lost_device_fails_what_runs_and_the_next_one_opens_it_anew() {
    // Not the one that other tests of this process share.
    let gpu = super::open::tests::alone(&software());
    let loaded = LoadedProgram::load(&gpu, program(), &[source("if (id.x < 100u)")], Checks::On).unwrap();
    let session = Session::new(&loaded, false).unwrap();
    gpu.lose();
    let failure = session.run(Work::Stage(0)).err().unwrap();
    assert_eq!(failure.kind, FailureKind::Crash);
    assert!(failure.message.contains("lost"), "{failure}");
    assert_eq!(smoke::test(&software()).error, None);
}

#[test]
fn compiled_pipelines_are_kept_in_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let cas = Cas::open(folder.path()).unwrap();
    let gpu = super::open::tests::alone_with(&software(), &cas);
    if !gpu.facts.has(GpuFeature::PipelineCache) {
        return;
    }
    LoadedProgram::load(&gpu, program(), &[source("if (id.x < 100u)")], Checks::On).map(|_| ()).unwrap();
    let name = format!("pipelines-{}", gpu.facts.fingerprint().short());
    assert!(cas.recall(&name).is_some_and(|it| !it.is_empty()));
    // Something else under the name is no pipelines, and no harm.
    cas.remember(&name, b"rubbish").unwrap();
    let gpu = super::open::tests::alone_with(&software(), &cas);
    LoadedProgram::load(&gpu, program(), &[source("if (id.x < 100u)")], Checks::On).map(|_| ()).unwrap();
}
