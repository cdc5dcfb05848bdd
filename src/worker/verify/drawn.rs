//! What a graph's kernels are given, on the host only: drawn before there is a kernel, and once for several.

use super::candidate::Tensors;
use kernelforge::plan::stage::{Role, StageGraph, TensorId};

/// Inputs and weights; nothing has a place for what a kernel computes.
pub struct Drawn {
    graph: StageGraph,
    values: Vec<Vec<f32>>,
}

impl Drawn {
    pub fn new(graph: StageGraph) -> Self {
        let values = graph.tensors.iter().map(|it| if given(it.role) { vec![0.0; it.len()] } else { Vec::new() });
        Self { values: values.collect(), graph }
    }

    /// What is given, by tensor.
    pub fn given(&self) -> impl Iterator<Item = (TensorId, &[f32])> {
        let tensors = self.graph.tensors.iter().enumerate().filter(|it| given(it.1.role));
        tensors.map(|it| (TensorId(it.0), self.values[it.0].as_slice()))
    }
}

const fn given(role: Role) -> bool {
    matches!(role, Role::Input | Role::Weight)
}

impl Tensors for Drawn {
    fn graph(&self) -> &StageGraph {
        &self.graph
    }

    fn tensor(&self, id: TensorId) -> &[f32] {
        &self.values[id.0]
    }

    fn tensor_mut(&mut self, id: TensorId) -> &mut [f32] {
        &mut self.values[id.0]
    }
}
