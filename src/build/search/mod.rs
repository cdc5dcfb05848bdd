//! Proposers of plans. No IO: a proposer sees stages and facts and returns schedules, which the worker checks before it
//! generates anything. What a plan begins with is the analytic heuristic: [`heuristic`] for CPUs, [`gpu`] for GPUs; [`strategy`] has those
//! that learn from trials.
//! [`templates`] says which of a project's own shader templates a plan rests on.

pub mod gpu;
pub mod gpu_attention;
pub mod gpu_matmul;
pub mod gpu_rows;
pub mod heuristic;
pub mod llm;
pub mod propose;
pub mod strategy;
pub mod templates;

use crate::{
    host::Device,
    plan::{PLAN_VERSION, Plan, Provenance, schedule::Schedule, stage::StageGraph},
};
use std::collections::BTreeMap;

/// The heuristic's schedules for every stage that a pass asked one for, by stage. `hybrid_softmax`: attention on a GPU leaves its
/// softmax to the CPU.
pub fn heuristics(graph: &StageGraph, (device, hybrid_softmax): (&Device, bool)) -> BTreeMap<String, Schedule> {
    match device {
        Device::Cpu(cpu) => heuristic::propose(graph, cpu),
        Device::Gpu(gpu) => gpu::propose(graph, gpu, hybrid_softmax),
    }
}

/// The heuristic's plan for one block on one target. `shaders` are the project's own templates, by file name.
pub fn plan(
    graph: &StageGraph,
    (block, target): (&str, &str),
    device: (&Device, bool),
    shaders: &BTreeMap<String, String>,
) -> Plan {
    let stages = heuristics(graph, device);
    Plan {
        version: PLAN_VERSION,
        block: block.to_owned(),
        target: target.to_owned(),
        provenance: Provenance::new("heuristic"),
        without: Vec::new(),
        shaders: templates::used(graph, &stages, device.0, shaders),
        stages,
    }
}
