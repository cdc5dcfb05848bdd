//! Buffers for a program, and running it: a stage alone, or the block in one submission.

use super::{
    Gpu,
    memory::{self, Region},
    program::LoadedProgram,
};
use crate::device::host_softmax;
use kernelforge::{
    host::gpu::GpuFeature,
    plan::{
        program::{Buffer, Dispatch, Program, Step},
        stage::TensorId,
    },
    protocol::{Failure, FailureKind},
};
use std::{collections::BTreeMap, time::Instant};
use wgpu::{
    BindGroup, BindGroupDescriptor, BindGroupEntry, BindingResource, BufferDescriptor, BufferUsages, CommandEncoder,
    CommandEncoderDescriptor, ComputePassDescriptor, ComputePassTimestampWrites, QuerySet, QuerySetDescriptor,
    QueryType,
};

/// A program with memory to run in. Every tensor has a buffer of its own, which the stages use; a run of the block has its
/// values in buffers that are shared as the program plans it.
pub struct Session<'a> {
    loaded: &'a LoadedProgram,
    regions: BTreeMap<Buffer, Region>,
    shared: Vec<Region>,
    packing: Vec<BindGroup>,
    /// By stage, by step; none for a step of the host.
    stages: Vec<Vec<Option<BindGroup>>>,
    block: Vec<Vec<Option<BindGroup>>>,
}

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Packing,
    Stage(usize),
    Block,
}

/// Dispatches of one pass, and what the host does after them.
type Part<'a> = (Vec<(&'a Dispatch, &'a BindGroup)>, Option<&'a Step>);

impl<'a> Session<'a> {
    /// # Errors
    /// As [`Region::new`]; `Codegen` where a program's dispatches do not fit its shaders or buffers.
    pub fn new(loaded: &'a LoadedProgram, guarded: bool) -> Result<Self, Failure> {
        let (gpu, program) = (&*loaded.gpu, &loaded.program);
        let mut regions = BTreeMap::new();
        for buffer in buffers(program) {
            regions.insert(buffer, Region::new(gpu, bytes(program, buffer), guarded)?);
        }
        let shared = program.shared.iter().map(|it| Region::new(gpu, *it, false)).collect::<Result<_, _>>()?;
        let mut session = Self { loaded, regions, shared, packing: Vec::new(), stages: Vec::new(), block: Vec::new() };
        let groups = |placed: bool| -> Result<Vec<Vec<Option<BindGroup>>>, Failure> {
            let step = |step: &Step| match step {
                Step::Dispatch(dispatch) => session.group(dispatch, placed).map(Some),
                Step::HostSoftmax { .. } => Ok(None),
            };
            program.stages.iter().map(|it| it.iter().map(step).collect()).collect()
        };
        let (stages, block) = (groups(false)?, groups(true)?);
        let packing = program.packed.iter().map(|it| session.group(&it.prepare, false)).collect::<Result<_, _>>()?;
        (session.stages, session.block, session.packing) = (stages, block, packing);
        Ok(session)
    }

    pub fn gpu(&self) -> &Gpu {
        &self.loaded.gpu
    }

    pub fn program(&self) -> &Program {
        &self.loaded.program
    }

    pub fn tensor(&self, id: TensorId) -> Result<&Region, Failure> {
        self.region(Buffer::Tensor(id))
    }

    pub fn region(&self, buffer: Buffer) -> Result<&Region, Failure> {
        let missing = || Failure::new(FailureKind::Codegen, format!("the program has no buffer {buffer:?}"));
        self.regions.get(&buffer).ok_or_else(missing)
    }

    /// Every buffer of its own, and the shared ones.
    pub fn regions(&self) -> impl Iterator<Item = (Option<Buffer>, &Region)> {
        let own = self.regions.iter().map(|it| (Some(*it.0), it.1));
        own.chain(self.shared.iter().map(|it| (None, it)))
    }

    /// The buffers that this work binds, those that the block shares left out.
    pub fn bound(&self, work: Work) -> Vec<Buffer> {
        let program = self.program();
        let dispatches: Vec<&Dispatch> = match work {
            Work::Packing => program.packed.iter().map(|it| &it.prepare).collect(),
            Work::Stage(index) => program.stages.get(index).into_iter().flatten().filter_map(dispatch).collect(),
            Work::Block => program.stages.iter().flatten().filter_map(dispatch).collect(),
        };
        let mut all: Vec<_> = dispatches.iter().flat_map(|it| &it.bindings).map(|it| it.buffer).collect();
        all.sort();
        all.dedup();
        if work == Work::Block {
            all.retain(|it| !program.placements.iter().any(|(placed, _)| placed == it));
        }
        all
    }

    fn group(&self, dispatch: &Dispatch, placed: bool) -> Result<BindGroup, Failure> {
        let program = self.program();
        let refuse = |message: String| Failure::new(FailureKind::Codegen, message);
        let pipeline = self.loaded.pipelines.get(dispatch.shader);
        let pipeline = pipeline.ok_or_else(|| refuse(format!("the program has no shader {}", dispatch.shader)))?;
        let limit = self.gpu().facts.workgroups;
        if let Some(count) = dispatch.workgroups.iter().find(|it| **it as usize > limit) {
            let name = &program.shaders[dispatch.shader].name;
            let message = format!("shader `{name}`: {count} workgroups in one dimension, the device takes {limit}");
            return Err(Failure::new(FailureKind::IllegalPlan, message));
        }
        let mut entries = Vec::with_capacity(dispatch.bindings.len());
        for (binding, bound) in (0u32..).zip(&dispatch.bindings) {
            let slot = program.placements.iter().find(|it| placed && it.0 == bound.buffer);
            let resource = match slot {
                None => self.region(bound.buffer)?.binding(),
                Some((_, slot)) => {
                    let region = self.shared.get(*slot);
                    let region = region.ok_or_else(|| refuse(format!("the program shares no buffer {slot}")))?;
                    region.binding()
                }
            };
            entries.push(BindGroupEntry { binding, resource: BindingResource::Buffer(resource) });
        }
        let descriptor = BindGroupDescriptor { label: None, layout: &pipeline.layout, entries: &entries };
        self.gpu().scoped(|| self.gpu().device.create_bind_group(&descriptor))
    }

    /// Runs it and waits for its end.
    ///
    /// # Errors
    /// As [`Gpu::wait`].
    pub fn run(&self, work: Work) -> Result<(), Failure> {
        let mut encoder = self.encoder();
        self.encode(&mut encoder, work, None)?;
        self.gpu().queue.submit([encoder.finish()]);
        self.gpu().wait()
    }

    fn encoder(&self) -> CommandEncoder {
        self.gpu().device.create_command_encoder(&CommandEncoderDescriptor::default())
    }

    /// The steps of some work with their bind groups, cut where the host has something to do.
    fn parts(&self, work: Work) -> Vec<Part<'_>> {
        let program = self.program();
        let groups: Vec<_> = match work {
            Work::Packing => {
                let packed = program.packed.iter().zip(&self.packing);
                return vec![(packed.map(|(it, group)| (&it.prepare, group)).collect(), None)];
            }
            Work::Stage(index) => program.stages[index].iter().zip(&self.stages[index]).collect(),
            Work::Block => program.stages.iter().flatten().zip(self.block.iter().flatten()).collect(),
        };
        let mut parts = vec![(Vec::new(), None)];
        for (step, group) in groups {
            match (step, group) {
                (Step::Dispatch(dispatch), Some(group)) => {
                    if let Some(last) = parts.last_mut() {
                        last.0.push((dispatch, group));
                    }
                }
                (host, _) => {
                    if let Some(last) = parts.last_mut() {
                        last.1 = Some(host);
                    }
                    parts.push((Vec::new(), None));
                }
            }
        }
        parts
    }

    /// Writes the commands of one run; where the host has something to do, submits what was written so far, waits, and does it.
    fn encode(
        &self,
        encoder: &mut CommandEncoder,
        work: Work,
        timestamps: Option<(&QuerySet, u32)>,
    ) -> Result<(), Failure> {
        let parts = self.parts(work);
        let last = parts.len() - 1;
        for (index, (dispatches, host)) in parts.into_iter().enumerate() {
            let timestamp_writes = timestamps.map(|(query_set, first)| ComputePassTimestampWrites {
                query_set,
                beginning_of_pass_write_index: (index == 0).then_some(first),
                end_of_pass_write_index: (index == last).then_some(first + 1),
            });
            let mut pass = encoder.begin_compute_pass(&ComputePassDescriptor { label: None, timestamp_writes });
            for (dispatch, group) in dispatches {
                pass.set_pipeline(&self.loaded.pipelines[dispatch.shader].pipeline);
                pass.set_bind_group(0, group, &[]);
                let [x, y, z] = dispatch.workgroups;
                pass.dispatch_workgroups(x, y, z);
            }
            drop(pass);
            if let Some(step) = host {
                let before = std::mem::replace(encoder, self.encoder());
                self.gpu().queue.submit([before.finish()]);
                self.host(step, work == Work::Block)?;
            }
        }
        Ok(())
    }

    /// What the CPU does between two dispatches.
    fn host(&self, step: &Step, placed: bool) -> Result<(), Failure> {
        let Step::HostSoftmax { scores, batch, heads, rows, keys, causal } = *step else { return Ok(()) };
        let slot = self.program().placements.iter().find(|it| placed && it.0 == scores).map(|it| it.1);
        let region = match slot {
            None => self.region(scores)?,
            Some(slot) => &self.shared[slot],
        };
        let bytes = (batch * heads * rows * keys * 4) as u64;
        let read = memory::download(self.gpu(), &[(&region.buffer, region.offset, bytes)])?;
        let mut values: Vec<f32> = read.iter().flat_map(|it| bytemuck::pod_collect_to_vec::<u8, f32>(it)).collect();
        host_softmax::softmax(&mut values, rows, keys, causal);
        region.write(self.gpu(), bytemuck::cast_slice(&values));
        Ok(())
    }

    /// Nanoseconds of each of `runs` runs, one after another in one submission; by the device's timestamps where it has them. A
    /// device without them is timed by the host's clock, from the submission to its end, and all runs are said to take the same.
    ///
    /// # Errors
    /// As [`Gpu::wait`].
    pub fn time(&self, work: Work, runs: u32) -> Result<Vec<f64>, Failure> {
        let gpu = self.gpu();
        if !gpu.facts.has(GpuFeature::Timestamps) || self.parts(work).len() > 1 {
            return self.time_by_host(work, runs);
        }
        let count = 2 * runs;
        let queries = gpu.device.create_query_set(&QuerySetDescriptor { label: None, ty: QueryType::Timestamp, count });
        let usage = BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC;
        let size = u64::from(count) * 8;
        let resolved =
            gpu.device.create_buffer(&BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
        let mut encoder = self.encoder();
        for run in 0..runs {
            self.encode(&mut encoder, work, Some((&queries, 2 * run)))?;
        }
        encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
        gpu.queue.submit([encoder.finish()]);
        let bytes = memory::download(gpu, &[(&resolved, 0, size)])?;
        let ticks: Vec<u64> = bytes.iter().flat_map(|it| bytemuck::pod_collect_to_vec::<u8, u64>(it)).collect();
        let period = f64::from(gpu.queue.get_timestamp_period());
        Ok(ticks.chunks_exact(2).map(|it| it[1].wrapping_sub(it[0]) as f64 * period).collect())
    }

    /// As [`Self::time`], by the host's clock whatever the device has: for what is compared with a program that it cannot time.
    ///
    /// # Errors
    /// As [`Gpu::wait`].
    pub fn time_by_host(&self, work: Work, runs: u32) -> Result<Vec<f64>, Failure> {
        let start = Instant::now();
        let mut encoder = self.encoder();
        for _ in 0..runs {
            self.encode(&mut encoder, work, None)?;
        }
        self.gpu().queue.submit([encoder.finish()]);
        self.gpu().wait()?;
        let one = start.elapsed().as_nanos() as f64 / f64::from(runs.max(1));
        Ok(vec![one; runs as usize])
    }
}

fn dispatch(step: &Step) -> Option<&Dispatch> {
    match step {
        Step::Dispatch(dispatch) => Some(dispatch),
        Step::HostSoftmax { .. } => None,
    }
}

/// All buffers of a program.
fn buffers(program: &Program) -> Vec<Buffer> {
    let tensors = (0..program.graph.tensors.len()).map(|it| Buffer::Tensor(TensorId(it)));
    let packed = (0..program.packed.len()).map(Buffer::Packed);
    tensors.chain(packed).chain((0..program.scratch.len()).map(Buffer::Scratch)).collect()
}

/// Bytes of one of them.
pub fn bytes(program: &Program, buffer: Buffer) -> u64 {
    match buffer {
        Buffer::Tensor(id) => program.graph.tensor(id).bytes() as u64,
        Buffer::Packed(index) => program.packed[index].bytes,
        Buffer::Scratch(index) => program.scratch[index].bytes,
    }
}
