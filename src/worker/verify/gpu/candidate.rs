//! A program on a GPU as the gates want it: tensors on the host that follow the device's.

use crate::{
    device::{
        gpu::{
            memory::{self, Region},
            program::LoadedProgram,
            run::{Session, Work},
        },
        guard::Escape,
        stored,
    },
    verify::{
        bounds::Arithmetic,
        candidate::{Call, Candidate, Left, Tensors},
    },
};
use kernelforge::{
    half::{self, Half},
    host::gpu::GpuFeature,
    manifest::spec::Dtype,
    plan::{
        program::Buffer,
        stage::{Role, StageGraph, TensorId},
    },
    protocol::Failure,
};

/// A program with memory to run in, and the host's copy of every tensor. A run first uploads what the host changed, then
/// downloads what it computed. Where the device fails, results are NaN and [`OnGpu::failure`] has the reason: gates have no
/// errors, and the verification ends with this one.
pub struct OnGpu<'a> {
    session: Session<'a>,
    /// By tensor.
    host: Vec<Vec<f32>>,
    /// Which of them the host changed since they were uploaded.
    changed: Vec<bool>,
    /// Who must not be changed: bands of these buffers hold this.
    band: [u8; 4],
    left: Vec<Left>,
    failure: Option<Failure>,
}

impl<'a> OnGpu<'a> {
    /// `guarded`: between bands that show who leaves the buffers.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn new(loaded: &'a LoadedProgram, guarded: bool) -> Result<Self, Failure> {
        let session = Session::new(loaded, guarded)?;
        let host: Vec<Vec<f32>> = loaded.program.graph.tensors.iter().map(|it| vec![0.0; it.len()]).collect();
        let changed = vec![true; host.len()];
        let band = f32::NAN.to_le_bytes();
        session.regions().for_each(|it| it.1.fill(session.gpu(), band, true));
        Ok(Self { session, host, changed, band, left: Vec::new(), failure: None })
    }

    /// Why the device failed, if it did.
    pub fn failure(&mut self) -> Option<Failure> {
        self.failure.take()
    }

    /// The bytes of a scratch buffer; none where the device failed.
    pub fn scratch(&self, buffer: Buffer) -> Option<Vec<u8>> {
        let region = self.session.region(buffer).ok()?;
        memory::download(self.session.gpu(), &[(&region.buffer, region.offset, region.bytes)])
            .ok()
            .map(|it| it.concat())
    }

    fn dtype(&self, index: usize) -> Dtype {
        self.session.program().graph.tensors[index].dtype
    }

    /// Brings the device's tensors up to date. What is stored in 16 bits is rounded in the host's copy too.
    fn upload(&mut self) -> Result<(), Failure> {
        for index in 0..self.host.len() {
            if !std::mem::take(&mut self.changed[index]) {
                continue;
            }
            let dtype = self.dtype(index);
            let bytes = stored::bytes(dtype, &self.host[index]);
            self.session.tensor(TensorId(index))?.write(self.session.gpu(), &bytes);
            if dtype != Dtype::F32 {
                self.host[index] = stored::values(dtype, &bytes);
            }
        }
        Ok(())
    }

    /// Runs, then fetches `results` and the bands of every buffer that was bound.
    fn attempt(&mut self, work: Work, results: &[TensorId]) -> Result<(), Failure> {
        self.upload()?;
        self.session.run(work)?;
        let bound = self.session.bound(work);
        let regions: Vec<&Region> = bound.iter().map(|it| self.session.region(*it)).collect::<Result<_, _>>()?;
        let bands: Vec<Vec<(u64, u64)>> = regions.iter().map(|it| it.bands()).collect();
        let mut parts: Vec<_> = Vec::new();
        for id in results {
            let region = self.session.tensor(*id)?;
            parts.push((&region.buffer, region.offset, region.bytes));
        }
        for (region, bands) in regions.iter().zip(&bands) {
            parts.extend(bands.iter().map(|(offset, bytes)| (&region.buffer, *offset, *bytes)));
        }
        let mut read = memory::download(self.session.gpu(), &parts)?.into_iter();
        for (id, bytes) in results.iter().zip(&mut read) {
            self.host[id.0] = stored::values(self.dtype(id.0), &bytes);
        }
        let call = match work {
            Work::Packing => Call::Prepare,
            Work::Stage(index) => Call::Stage(index),
            Work::Block => Call::Block,
        };
        let band = self.band;
        let mut left = Vec::new();
        for (buffer, bands) in bound.iter().zip(&bands) {
            for (index, _) in bands.iter().enumerate() {
                let bytes = read.next().unwrap_or_default();
                if bytes.chunks_exact(4).any(|it| it != band) {
                    let escape = if index == 0 { Escape::WroteBefore } else { Escape::WroteAfter };
                    left.push(Left { call, buffer: self.name(*buffer), escape });
                }
            }
        }
        for it in left {
            if !self.left.contains(&it) {
                self.left.push(it);
            }
        }
        Ok(())
    }

    fn name(&self, buffer: Buffer) -> String {
        let program = self.session.program();
        let tensor = |id: TensorId| format!("`{}`", program.graph.tensor(id).name);
        match buffer {
            Buffer::Tensor(id) => tensor(id),
            Buffer::Packed(index) => {
                let names: Vec<_> = program.packed[index].weights.iter().map(|it| tensor(*it)).collect();
                format!("packed {}", names.join(" and "))
            }
            Buffer::Scratch(index) => format!("scratch buffer {index}"),
        }
    }

    fn run(&mut self, work: Work, results: &[TensorId]) {
        if self.failure.is_none()
            && let Err(failure) = self.attempt(work, results)
        {
            let at = match work {
                Work::Stage(index) => failure.clone().at_stage(self.session.program().graph.stages[index].name.clone()),
                Work::Packing | Work::Block => failure,
            };
            self.failure = Some(at);
        }
        if self.failure.is_some() {
            results.iter().for_each(|id| self.host[id.0].fill(f32::NAN));
        }
    }
}

impl Tensors for OnGpu<'_> {
    fn graph(&self) -> &StageGraph {
        &self.session.program().graph
    }

    fn tensor(&self, id: TensorId) -> &[f32] {
        &self.host[id.0]
    }

    fn tensor_mut(&mut self, id: TensorId) -> &mut [f32] {
        self.changed[id.0] = true;
        &mut self.host[id.0]
    }
}

impl Candidate for OnGpu<'_> {
    fn arithmetic(&self) -> Arithmetic {
        let program = self.session.program();
        let storage = program.graph.tensors.iter().map(|it| it.dtype).find(|it| *it != Dtype::F32);
        let cooperative = program.shaders.iter().any(|it| it.features.contains(&GpuFeature::CooperativeMatrix));
        Arithmetic::gpu(storage.unwrap_or(Dtype::F32), cooperative)
    }

    fn prepare(&mut self) {
        self.run(Work::Packing, &[]);
    }

    fn stage(&mut self, index: usize) {
        let output = self.graph().stages[index].output;
        self.run(Work::Stage(index), &[output]);
    }

    fn block(&mut self) {
        let outputs: Vec<TensorId> = self.graph().with_role(Role::Output).map(|it| it.0).collect();
        self.run(Work::Block, &outputs);
    }

    fn poison(&mut self, value: f32) {
        let program = self.session.program();
        let computed: Vec<bool> =
            program.graph.tensors.iter().map(|it| matches!(it.role, Role::Value | Role::Output)).collect();
        // Half of it is a NaN, or a large number, of 16 bits too.
        let finite = if value.is_nan() { value } else { value.min(half::MAX) };
        let half = Half::F16.narrow(finite);
        let pattern = match program.graph.tensors.first().map(|it| it.dtype) {
            Some(Dtype::F16) => [half.to_le_bytes(), half.to_le_bytes()].concat(),
            _ => value.to_le_bytes().to_vec(),
        };
        self.band.copy_from_slice(&pattern);
        let gpu = self.session.gpu();
        for (buffer, region) in self.session.regions() {
            let whole = match buffer {
                Some(Buffer::Tensor(id)) => computed[id.0],
                Some(Buffer::Packed(_)) => false,
                Some(Buffer::Scratch(_)) | None => true,
            };
            region.fill(gpu, self.band, whole);
        }
        for (index, _) in computed.iter().enumerate().filter(|it| *it.1) {
            // The device's tensor is overwritten already; the next upload must not undo it.
            let stored = match self.dtype(index) {
                Dtype::F32 => value,
                Dtype::F16 | Dtype::Bf16 => Half::F16.widen(half),
            };
            self.host[index].fill(stored);
            self.changed[index] = false;
        }
    }

    fn escapes(&mut self) -> Vec<Left> {
        std::mem::take(&mut self.left)
    }
}
