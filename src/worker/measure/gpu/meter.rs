//! What a GPU can do at best: multiply-adds in registers, products of cooperative matrices in registers where it has them, and
//! reads of memory that no cache holds. They are sampled in the same rounds as the kernels.

use crate::device::gpu::{
    Gpu,
    memory::Region,
    program::{Checks, LoadedProgram},
    run::{Session, Work},
};
use half::f16;
use kernelforge::{
    host::gpu::GpuFacts,
    manifest::spec::Dtype,
    plan::{
        program::{Access, Binding, Buffer, Dispatch, PROGRAM_VERSION, Program, Shader, Step},
        stage::{Role, Stage, StageGraph, StageOp, Tensor, TensorId},
    },
    protocol::{Failure, FailureKind},
};
use minijinja::{Environment, context};
use std::sync::Arc;

/// Operations of one invocation of `fma.wgsl`: 256 steps of eight fused multiply-adds of four lanes.
const FMA_PER_INVOCATION: f64 = (256 * 8 * 4 * 2) as f64;
/// Of one subgroup of `cooperative.wgsl`: 128 steps of 16 products of 16x16x16.
const COOPERATIVE_PER_SUBGROUP: f64 = (128 * 16 * 2 * 16 * 16 * 16) as f64;
/// Invocations of a workgroup of every shader here.
const THREADS: u64 = 256;
/// Bytes that one workgroup of `read.wgsl` reads.
const READ_PER_GROUP: u64 = 4096 * 16;

/// What is sampled, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ceiling {
    Fma,
    Read,
    Cooperative,
}

/// The ceilings' shaders, made ready.
pub struct Meter {
    loaded: LoadedProgram,
    fma_groups: u64,
    cooperative_groups: u64,
    read_groups: u64,
    cooperative: bool,
}

impl Meter {
    /// # Errors
    /// As [`LoadedProgram::load`].
    pub fn new(gpu: &Arc<Gpu>) -> Result<Self, Failure> {
        let (facts, software) = (&gpu.facts, gpu.facts.software());
        // A real device: half a millisecond at 60 TFLOP/s and a multiple of a last cache of 50 MB; a software one: what two cores
        // do in some milliseconds.
        let (fma_groups, read_bytes) = if software { (16, 64 << 20) } else { (8192, 1 << 30) };
        let read_groups = (read_bytes.min(facts.binding_bytes) / READ_PER_GROUP).min(facts.workgroups as u64);
        let cooperative = facts.cooperative_f16().is_some_and(|it| (it.m, it.n, it.k) == (16, 16, 16));
        let cooperative_groups = 4096;
        let mut sources = vec![include_str!("fma.wgsl").to_owned(), include_str!("read.wgsl").to_owned()];
        if cooperative {
            let text = Environment::new().render_str(include_str!("cooperative.wgsl"), context! {});
            sources.push(text.map_err(|it| Failure::new(FailureKind::Internal, it.to_string()))?);
        }
        let groups = [fma_groups, read_groups, cooperative_groups];
        let program = program(read_groups * READ_PER_GROUP, &groups[..sources.len()]);
        let loaded = LoadedProgram::load(gpu, program, &sources, Checks::Off)?;
        Ok(Self { loaded, fma_groups, cooperative_groups, read_groups, cooperative })
    }

    /// Memory for the samples.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn session(&self) -> Result<Session<'_>, Failure> {
        let session = Session::new(&self.loaded, false)?;
        let gpu = &self.loaded.gpu;
        let read: &Region = session.tensor(TensorId(2))?;
        read.fill(gpu, 1e-3f32.to_le_bytes(), true);
        // Chains x = x / 2 + 1 from 0 and up: they converge to 2, whatever the number of steps.
        let chain = [[0.5f32; 4], [1.0; 4], [0.0; 4]].concat();
        session.tensor(TensorId(0))?.write(gpu, bytemuck::cast_slice(&chain));
        let small: Vec<f16> = (0..512u16).map(|it| f16::from_f32(f32::from(it % 13) / 16.0 - 0.375)).collect();
        session.tensor(TensorId(3))?.write(gpu, bytemuck::cast_slice(&small));
        Ok(session)
    }

    pub fn ceilings(&self) -> &'static [Ceiling] {
        let all = &[Ceiling::Fma, Ceiling::Read, Ceiling::Cooperative];
        if self.cooperative { all } else { &all[..2] }
    }

    pub fn work(&self, ceiling: Ceiling) -> Work {
        Work::Stage(ceiling as usize)
    }

    /// Operations of one sample, or bytes.
    pub fn amount(&self, ceiling: Ceiling, facts: &GpuFacts) -> f64 {
        match ceiling {
            Ceiling::Fma => (self.fma_groups * THREADS) as f64 * FMA_PER_INVOCATION,
            Ceiling::Read => (self.read_groups * READ_PER_GROUP) as f64,
            Ceiling::Cooperative => {
                let subgroups = THREADS / facts.subgroup_max.max(1) as u64;
                (self.cooperative_groups * subgroups) as f64 * COOPERATIVE_PER_SUBGROUP
            }
        }
    }
}

/// A program with a stage for each shader: what they compute is no transformer's, but they are run like one.
fn program(read_bytes: u64, groups: &[u64]) -> Program {
    let tensor =
        |name: &str, len: usize, dtype| Tensor { name: name.to_owned(), shape: vec![len], dtype, role: Role::Input };
    let tensors = vec![
        tensor("chain", 12, Dtype::F32),
        tensor("sink", 4096, Dtype::F32),
        tensor("read", (read_bytes / 4) as usize, Dtype::F32),
        tensor("matrices", 512, Dtype::F16),
    ];
    let sources = [0, 2, 3];
    let names = ["fma", "read", "cooperative"];
    let stage = |index: usize| Stage {
        name: names[index].to_owned(),
        op: StageOp::Activation { rows: 1, width: 1, function: kernelforge::manifest::spec::Activation::Relu },
        inputs: vec![TensorId(sources[index])],
        output: TensorId(1),
        scheduled: false,
    };
    let shader = |index: usize| Shader {
        name: names[index].to_owned(),
        template: format!("{}.wgsl", names[index]),
        workgroup: [THREADS as u32, 1, 1],
        workgroup_memory: 0,
        features: Vec::new(),
    };
    let bind = |tensor, access| Binding { buffer: Buffer::Tensor(TensorId(tensor)), access };
    let dispatch = |(index, groups): (usize, &u64)| {
        let bindings = vec![bind(sources[index], Access::Read), bind(1, Access::ReadWrite)];
        vec![Step::Dispatch(Dispatch { shader: index, bindings, workgroups: [*groups as u32, 1, 1] })]
    };
    let count = groups.len();
    Program {
        version: PROGRAM_VERSION,
        graph: StageGraph { block: "ceilings".to_owned(), tensors, stages: (0..count).map(stage).collect() },
        templates: Default::default(),
        shaders: (0..count).map(shader).collect(),
        packed: Vec::new(),
        scratch: Vec::new(),
        stages: groups.iter().enumerate().map(dispatch).collect(),
        shared: Vec::new(),
        placements: Vec::new(),
    }
}
