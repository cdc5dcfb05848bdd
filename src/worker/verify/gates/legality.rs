//! V0: the plan is one that the operation's shape and the device's limits allow. An illegal plan never runs.

use kernelforge::{
    host::Device,
    plan::{Plan, constraint, stage::StageGraph},
    protocol::{Gate, GateResult, GateStatus},
};

/// One result for each stage, and one for each name in the plan that is no stage.
pub fn check(graph: &StageGraph, plan: &Plan, device: &Device) -> Vec<GateResult> {
    let stages = graph.stages.iter().map(|stage| {
        let violation = constraint::resolve(graph, stage, plan, device).err().map(|it| it.to_string());
        result(&stage.name, violation)
    });
    let unknown = plan.stages.keys().filter(|name| graph.stage(name).is_none());
    let unknown = unknown.map(|name| result(name, Some(format!("the plan schedules `{name}`, which is no stage"))));
    // A knob that silently does nothing: the stage would be generated with its plain schedule.
    let idle = graph.stages.iter().filter(|it| !it.scheduled && plan.stages.contains_key(&it.name));
    let idle = idle.map(|it| {
        result(&it.name, Some(format!("the plan schedules `{}`, for which no pass asked a schedule", it.name)))
    });
    stages.chain(unknown).chain(idle).collect()
}

fn result(stage: &str, violation: Option<String>) -> GateResult {
    GateResult {
        gate: Gate::V0Legality,
        stage: Some(stage.to_owned()),
        case: "schedule".to_owned(),
        status: if violation.is_none() { GateStatus::Passed } else { GateStatus::Failed },
        checked: 1,
        worst_ratio: None,
        mismatch: None,
        message: violation.unwrap_or_default(),
    }
}
