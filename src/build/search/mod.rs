//! Proposers of plans. No IO: a proposer sees stages and facts and returns schedules, which the worker checks before it
//! generates anything. The one strategy so far is the analytic heuristic: [`heuristic`] for CPUs, [`gpu`] for GPUs.
//! [`templates`] says which of a project's own shader templates a plan rests on.

pub mod gpu;
pub mod gpu_attention;
pub mod gpu_matmul;
pub mod gpu_rows;
pub mod heuristic;
pub mod templates;

use crate::{
    host::Device,
    plan::{PLAN_VERSION, Plan, Provenance, stage::StageGraph},
};
use std::collections::BTreeMap;

/// The heuristic's plan for one block on one target. `hybrid_softmax`: attention on a GPU leaves its softmax to the CPU.
/// `shaders` are the project's own templates, by file name.
pub fn plan(
    graph: &StageGraph,
    (block, target): (&str, &str),
    (device, hybrid_softmax): (&Device, bool),
    shaders: &BTreeMap<String, String>,
) -> Plan {
    let stages = match device {
        Device::Cpu(cpu) => heuristic::propose(graph, cpu),
        Device::Gpu(gpu) => gpu::propose(graph, gpu, hybrid_softmax),
    };
    Plan {
        version: PLAN_VERSION,
        block: block.to_owned(),
        target: target.to_owned(),
        provenance: Provenance { strategy: "heuristic".to_owned(), trials: 0 },
        shaders: templates::used(graph, &stages, device, shaders),
        stages,
    }
}
