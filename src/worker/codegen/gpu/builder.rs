//! A program under construction.

use super::Templates;
use kernelforge::{
    host::gpu::{GpuFacts, GpuFeature},
    plan::{
        program::{Access, Binding, Buffer, Dispatch, Packed, Scratch, Shader, Step},
        stage::{StageGraph, TensorId},
    },
    protocol::Failure,
};
use serde::Serialize;

pub struct Builder<'a> {
    pub graph: &'a StageGraph,
    pub gpu: &'a GpuFacts,
    templates: &'a Templates,
    pub shaders: Vec<Shader>,
    /// The WGSL of each shader.
    pub sources: Vec<String>,
    pub packed: Vec<Packed>,
    pub scratch: Vec<Scratch>,
}

/// What a template's text uses beyond its bindings.
pub struct Needs {
    pub workgroup: [u32; 3],
    /// Bytes.
    pub workgroup_memory: usize,
    pub features: Vec<GpuFeature>,
}

impl<'a> Builder<'a> {
    pub fn new(graph: &'a StageGraph, gpu: &'a GpuFacts, templates: &'a Templates) -> Self {
        let (shaders, sources, packed, scratch) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { graph, gpu, templates, shaders, sources, packed, scratch }
    }

    /// One dispatch of the rendered template. Equal texts are one shader.
    ///
    /// # Errors
    /// As [`Templates::render`].
    pub fn dispatch(
        &mut self,
        (template, name): (&str, String),
        context: impl Serialize,
        needs: Needs,
        bindings: &[(Buffer, Access)],
        workgroups: [u32; 3],
    ) -> Result<Dispatch, Failure> {
        let source = self.templates.render(template, context)?;
        let shader = self.sources.iter().position(|it| *it == source).unwrap_or(self.sources.len());
        if shader == self.sources.len() {
            let Needs { workgroup, workgroup_memory, features } = needs;
            self.shaders.push(Shader { name, template: template.to_owned(), workgroup, workgroup_memory, features });
            self.sources.push(source);
        }
        let bindings = bindings.iter().map(|&(buffer, access)| Binding { buffer, access }).collect();
        Ok(Dispatch { shader, bindings, workgroups })
    }

    /// Working memory of the stage at hand.
    pub fn scratch(&mut self, bytes: u64) -> Buffer {
        self.scratch.push(Scratch { bytes });
        Buffer::Scratch(self.scratch.len() - 1)
    }

    /// A weight, or several, in another layout; `prepare` gets the index of the packed buffer and writes it. Equal dispatches of
    /// equal weights are one packed buffer.
    ///
    /// # Errors
    /// As `prepare`.
    pub fn packed(
        &mut self,
        weights: Vec<TensorId>,
        bytes: u64,
        prepare: impl FnOnce(&mut Self, Buffer) -> Result<Dispatch, Failure>,
    ) -> Result<Buffer, Failure> {
        let index = self.packed.len();
        let prepare = prepare(self, Buffer::Packed(index))?;
        let same = |it: &Packed| it.weights == weights && it.bytes == bytes && it.prepare.shader == prepare.shader;
        if let Some(index) = self.packed.iter().position(same) {
            return Ok(Buffer::Packed(index));
        }
        self.packed.push(Packed { weights, bytes, prepare });
        Ok(Buffer::Packed(index))
    }
}

/// The steps of a stage that is nothing but dispatches.
pub fn dispatches(all: impl IntoIterator<Item = Dispatch>) -> Vec<Step> {
    all.into_iter().map(Step::Dispatch).collect()
}
