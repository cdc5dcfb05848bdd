//! Wrong plans for a GPU: every knob just beyond what any device allows or what it must divide, and files that are no plan. What
//! is wrong is known here apart from `plan::gpu`, because a mutant must know by itself that it is wrong.

use kernelforge::{
    host::gpu::GpuFacts,
    plan::{Plan, schedule::Schedule},
};
use serde_json::{Value, json};

/// A plan file: id, stage, what is wrong, its text.
pub type Wrong = (String, Option<String>, String, String);

/// Knobs that another one must divide, and that one.
const MULTIPLES: &[(&str, &str)] = &[
    ("tile-m", "thread-m"),
    ("tile-n", "thread-n"),
    ("tile-m", "subgroup-m"),
    ("tile-n", "subgroup-n"),
    ("threads", "slices"),
];
/// More than any device has or any shape is.
const HUGE: u64 = 1 << 40;

pub fn wrong(plan: &Plan, gpu: &GpuFacts) -> Vec<Wrong> {
    let Ok(value) = serde_json::to_value(plan) else { return Vec::new() };
    let mut all = Vec::new();
    let mut push = |id: String, stage: Option<&str>, description: String, plan: &Value| {
        all.push((id, stage.map(str::to_owned), description, plan.to_string()));
    };
    for (stage, schedule) in &plan.stages {
        let Ok(written) = serde_json::to_value(schedule) else { continue };
        let with = |pointer: &str, knob: &Value| {
            let mut plan = value.clone();
            let place = format!("/stages/{}{pointer}", stage.replace('~', "~0").replace('/', "~1"));
            plan.pointer_mut(&place).map(|it| *it = knob.clone())?;
            Some(plan)
        };
        for (pointer, knobs) in tables(&written) {
            let prefix = pointer.trim_start_matches('/').replace('/', ".");
            let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}.") };
            for (knob, number) in knobs.iter().filter_map(|it| Some((it.0, it.1.as_u64()?))) {
                let mut values = vec![
                    (json!(HUGE), "more than any device has"),
                    (json!(-1), "a negative size"),
                    (json!("NaN"), "no number"),
                ];
                // Nothing is fetched ahead: that is a schedule like any other.
                if knob != "prefetch" {
                    values.push((json!(0), "nothing"));
                }
                let unit = MULTIPLES.iter().filter(|it| it.0 == knob).filter_map(|it| knobs.get(it.1)?.as_u64());
                if unit.max().is_some_and(|it| it > 1) {
                    values.push((json!(number + 1), "not a multiple of what it is made of"));
                }
                if knob == "vector" {
                    values.push((json!(3), "no power of two"));
                    values.push((json!(16), "wider than any load"));
                }
                if knob == "threads" || knob == "width" {
                    values.push((json!(gpu.workgroup_invocations + 1), "one more than a workgroup may have"));
                }
                if knob == "stages" {
                    values.push((json!(3), "a buffer that no template has"));
                }
                for (knob_value, what) in values {
                    if let Some(plan) = with(&format!("{pointer}/{knob}"), &knob_value) {
                        let description = format!("`{prefix}{knob}` = {knob_value}: {what}");
                        push(format!("{stage}/{prefix}{knob}={knob_value}"), Some(stage), description, &plan);
                    }
                }
            }
            let mut unknown = Value::Object(knobs.clone());
            unknown["warp-size"] = json!(32);
            if let Some(plan) = with(&pointer, &unknown) {
                push(
                    format!("{stage}/{prefix}unknown-knob"),
                    Some(stage),
                    "a knob that does not exist".to_owned(),
                    &plan,
                );
            }
        }
        let mut missing = value.clone();
        if let Some(stages) = missing["stages"].as_object_mut() {
            stages.remove(stage);
        }
        push(format!("{stage}/missing"), Some(stage), "no schedule".to_owned(), &missing);
        let kind = match schedule {
            Schedule::GpuNorm(_) => json!({"kernel": "gpu-elementwise", "threads": 64, "vector": 1, "unroll": 1}),
            _ => json!({"kernel": "gpu-norm", "width": 8, "rows": 1, "vector": 1, "subgroups": false}),
        };
        if let Some(plan) = with("", &kind) {
            push(format!("{stage}/kind"), Some(stage), "a schedule of another kind".to_owned(), &plan);
        }
        if let Some(plan) = with("", &json!({"kernel": "norm", "lanes": 1, "unroll": 1})) {
            push(format!("{stage}/of-a-cpu"), Some(stage), "a schedule for a CPU".to_owned(), &plan);
        }
    }
    let mut stranger = value.clone();
    stranger["stages"]["attn.sink"] = json!({"kernel": "gpu-elementwise", "threads": 64, "vector": 1, "unroll": 1});
    push("stage-unknown".to_owned(), None, "a schedule for a stage that does not exist".to_owned(), &stranger);
    let mut field = value.clone();
    field["epsilon"] = json!(0);
    push("field-unknown".to_owned(), None, "a field that plans do not have".to_owned(), &field);
    all
}

/// The tables of knobs in a schedule: the schedule itself and, in that of an MLP, one for each product; with their pointers.
fn tables(schedule: &Value) -> Vec<(String, serde_json::Map<String, Value>)> {
    let mut all = Vec::new();
    if let Some(knobs) = schedule.as_object() {
        all.push((String::new(), knobs.clone()));
        for (name, inner) in knobs {
            if let Some(inner) = inner.as_object() {
                all.push((format!("/{name}"), inner.clone()));
            }
        }
    }
    all
}
