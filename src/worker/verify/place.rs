//! Where something failed, for its message: the stage's shape and the knobs that its code was generated with.

use kernelforge::{
    host::Device,
    plan::{Plan, constraint, one_line, stage::StageGraph},
    protocol::{GateResult, GateStatus},
};

/// Adds shape and knobs to the message of every result of a stage that did not pass.
pub fn locate(results: &mut [GateResult], graph: &StageGraph, plan: &Plan, device: &Device) {
    for result in results.iter_mut().filter(|it| it.status != GateStatus::Passed) {
        let Some(stage) = result.stage.as_deref().and_then(|it| graph.stage(it)) else { continue };
        // An illegal plan has no schedule, and its message names the knob.
        let knobs = constraint::resolve(graph, stage, plan, device).map(|it| format!("; plan: {}", one_line(&it)));
        result.message += &format!(" ({}{})", one_line(&stage.op), knobs.unwrap_or_default());
    }
}
