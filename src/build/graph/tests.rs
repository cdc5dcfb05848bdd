//! The graph against a naive model, and everything that people read of it as snapshots.

mod causes;
mod keys;
pub mod model;
mod text;

use super::{BlockTarget, Built, Graph, History, Outputs, Recorded, Rules, StepId, plan_build};
use crate::{
    digest::Digest,
    host::{
        CpuFacts,
        gpu::{CooperativeShape, GpuFacts, GpuFeature, GpuKind},
    },
    manifest::{
        Tuning,
        spec::{Activation, AttentionSpec, BlockSpec, Dtype, MlpSpec, NormKind, NormSpec, Pass, RowsSpec},
    },
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// A history in maps, with the same meaning as the store.
#[derive(Default, Clone)]
pub struct Past {
    pub records: HashMap<Digest, Built>,
    pub steps: HashMap<String, (Digest, Option<Digest>)>,
    pub damaged: HashMap<Digest, super::Damage>,
}

impl Past {
    pub fn record(&mut self, step: &str, parts: super::KeyParts, outputs: Outputs) {
        let key = parts.key();
        self.records.insert(key, Built { key, parts, outputs });
        self.current(step, key);
    }

    pub fn current(&mut self, step: &str, key: Digest) {
        match self.steps.get_mut(step) {
            Some((latest, _)) if *latest == key => {}
            Some((latest, before)) => *before = Some(std::mem::replace(latest, key)),
            None => drop(self.steps.insert(step.to_owned(), (key, None))),
        }
    }
}

impl History for Past {
    fn recorded(&self, key: &Digest) -> Recorded {
        let Some(built) = self.records.get(key) else { return Recorded::Absent };
        let damaged = built.outputs.iter().find_map(|(name, blob)| Some((name, blob, *self.damaged.get(blob)?)));
        match damaged {
            Some((output, &blob, damage)) => Recorded::Damaged { output: output.to_owned(), blob, damage },
            None => Recorded::Intact(built.outputs.clone()),
        }
    }

    fn latest(&self, step: &str) -> Option<Built> {
        self.records.get(&self.steps.get(step)?.0).cloned()
    }

    fn before(&self, step: &str) -> Option<Built> {
        self.records.get(&self.steps.get(step)?.1?).cloned()
    }
}

/// Runs what must run, as the engine does: a stale step's outputs come from `run`. Returns the steps that ran.
pub fn build(graph: &Graph, past: &mut Past, run: impl Fn(&super::Step, &super::KeyParts) -> Outputs) -> Vec<StepId> {
    let mut outputs: BTreeMap<StepId, Outputs> = BTreeMap::new();
    let mut ran = Vec::new();
    for step in graph.steps() {
        let made = match graph.decide(step.id, |it| outputs.get(&it), past, false) {
            super::Decision::UpToDate { key, outputs } => {
                past.current(step.identity(), key);
                outputs
            }
            super::Decision::Stale { parts, .. } => {
                let made = run(step, &parts);
                for blob in made.values() {
                    past.damaged.remove(blob);
                }
                past.record(step.identity(), parts, made.clone());
                ran.push(step.id);
                made
            }
            super::Decision::Unknown { .. } => panic!("`{}` was reached before its inputs", step.identity()),
        };
        outputs.insert(step.id, made);
    }
    ran
}

/// What a step would make if every part of its key decided every output, minus the parts in `ignored`.
pub fn outputs(step: &super::Step, parts: &super::KeyParts, ignored: &[&str]) -> Outputs {
    use super::StepKind::*;
    let names: &[&str] = match step.kind {
        Ir => &["module", "optimized", "stages", "passes"],
        Plan => &["plan", "stages", "passes"],
        Compile => &["object", "kernel", "lowered"],
        Verify => &["audit"],
        Benchmark => &["benchmark"],
        Report => &["report"],
    };
    let read: super::KeyParts = parts.iter().filter(|it| !ignored.contains(&it.0)).collect();
    names.iter().map(|name| ((*name).to_owned(), read.clone().with("output", name).key())).collect()
}

pub fn transformer() -> BlockSpec {
    BlockSpec::Transformer {
        rows: RowsSpec { batch: 1, seq: 128 },
        attention: AttentionSpec {
            d_model: 768,
            heads: 12,
            kv_heads: 12,
            head_dim: 64,
            qkv_bias: true,
            out_bias: true,
            causal: true,
            rope_theta: 0.0,
        },
        norm: NormSpec { kind: NormKind::LayerNorm, eps: 1e-5 },
        mlp: MlpSpec { d_model: 768, d_ff: 3072, activation: Activation::GeluTanh, gated: false, bias: true },
        dtype: Dtype::F32,
    }
}

pub fn block(name: &str, spec: BlockSpec) -> BlockTarget {
    BlockTarget {
        name: name.to_owned(),
        spec,
        passes: Pass::ALL.to_vec(),
        tuning: Tuning::heuristic("default".to_owned()),
        target: "cpu".to_owned(),
        threads: 1,
        device: Arc::new(cpu().into()),
        hybrid_softmax: false,
    }
}

pub fn cpu() -> CpuFacts {
    CpuFacts {
        arch: "x86_64".to_owned(),
        model: "Test CPU (family 1 model 2 stepping 3)".to_owned(),
        isa: vec!["avx2".to_owned(), "fma".to_owned()],
        lanes: 8,
        vector_registers: 16,
        l1d: 32 << 10,
        l2: 1 << 20,
        l3: 32 << 20,
        cores: 4,
    }
}

pub fn gpu() -> GpuFacts {
    GpuFacts {
        name: "Test GPU".to_owned(),
        kind: GpuKind::Discrete,
        vendor: 1,
        device: 2,
        api: "vulkan".to_owned(),
        driver: "test".to_owned(),
        driver_version: "1.0".to_owned(),
        features: vec![GpuFeature::F16, GpuFeature::Subgroups],
        subgroup_min: 32,
        subgroup_max: 32,
        workgroup_memory: 48 << 10,
        workgroup_invocations: 1024,
        workgroup_x: 1024,
        workgroups: 65535,
        buffer_bytes: 1 << 40,
        binding_bytes: 1 << 31,
        bindings: 16,
        binding_alignment: 32,
        cooperative: vec![CooperativeShape { m: 16, n: 16, k: 16, operand_bits: 16, accumulator_bits: 32 }],
    }
}

/// A block for a GPU.
pub fn gpu_block(name: &str, spec: BlockSpec) -> BlockTarget {
    BlockTarget { target: "gpu".to_owned(), device: Arc::new(gpu().into()), ..block(name, spec) }
}

pub fn graph(blocks: &[BlockTarget]) -> Graph {
    plan_build(blocks, &Rules::default())
}

/// Identities of the steps that ran.
pub fn names(graph: &Graph, ran: &[StepId]) -> Vec<String> {
    ran.iter().map(|it| graph.step(*it).identity().to_owned()).collect()
}
