//! Wrong proposals: every knob just beyond its limit, schedules of the wrong kind or of none, files that are no plan, and
//! pipelines in another order. The limits are written down here a second time, apart from `plan::constraint`, because a
//! mutant must know by itself that it is wrong.

use super::{Body, Mutation, Subject};
use kernelforge::{
    host::CpuFacts,
    manifest::spec::{Dtype, Pass},
    plan::schedule::{AttentionSchedule, Dot, ElementwiseSchedule, MatmulSchedule, NormSchedule, Schedule},
    protocol::mutation::Family,
};
use serde_json::{Value, json};

/// A knob of a schedule, as a path in its JSON, and a value that it must not have.
type Wrong = (String, &'static str, usize);

pub fn mutations(subject: &Subject) -> Vec<Mutation> {
    let Ok(plan) = serde_json::to_value(subject.plan) else { return Vec::new() };
    let mut all = Vec::new();
    let mut push = |id: String, stage: Option<&str>, description: String, plan: Value| {
        // The same knob and the same reason, in whatever stage and with whatever value.
        let mistake = id.rsplit('/').next().unwrap_or_default();
        let mistake = mistake.split_once('=').map_or(mistake, |it| it.0);
        let reason = description.split_once(": ").map_or("", |it| it.1);
        let kind = (Family::Plan, format!("{mistake} {reason}").trim().to_owned());
        all.push(Mutation::new(kind, format!("plan/{id}"), stage, description, Body::Plan(plan.to_string())));
    };
    for (stage, schedule) in &subject.plan.stages {
        for (knob, what, value) in wrong_knobs(schedule, subject.cpu) {
            let mut plan = plan.clone();
            let path = format!("/stages/{}/{}", stage.replace('~', "~0").replace('/', "~1"), knob.replace('.', "/"));
            if let Some(place) = plan.pointer_mut(&path) {
                *place = json!(value);
                let description = format!("`{knob}` = {value}: {what}");
                push(format!("{stage}/{knob}={value}"), Some(stage), description, plan);
            }
        }
        // Of other types than bf16, or for a CPU without their instruction.
        let brain = subject.kernel.graph.tensors.iter().any(|it| it.dtype == Dtype::Bf16);
        let possible = brain && subject.cpu.isa.iter().any(|it| it == "avx512bf16");
        for knob in ["dot", "up/dot", "down/dot"].into_iter().filter(|_| !possible) {
            let mut plan = plan.clone();
            let path = format!("/stages/{}/{knob}", stage.replace('~', "~0").replace('/', "~1"));
            if let Some(place) = plan.pointer_mut(&path) {
                *place = json!("pairs");
                let (knob, what) = (knob.replace('/', "."), "pairs that cannot be multiplied");
                push(format!("{stage}/{knob}=pairs"), Some(stage), format!("`{knob}` = pairs: {what}"), plan);
            }
        }
        for (name, what, value) in [
            ("nan", "no number", json!("NaN")),
            ("negative", "a negative size", json!(-1)),
            ("huge", "2^64 lanes", json!(18_446_744_073_709_551_615u64)),
        ] {
            let mut plan = plan.clone();
            let knob = if matches!(schedule, Schedule::Mlp(_)) { "row-block" } else { "lanes" };
            plan["stages"][stage][knob] = value;
            push(format!("{stage}/{name}"), Some(stage), format!("`{knob}` is {what}"), plan);
        }
        let mut missing = plan.clone();
        if let Some(stages) = missing["stages"].as_object_mut() {
            stages.remove(stage);
        }
        push(format!("{stage}/missing"), Some(stage), "no schedule".to_owned(), missing);
        let mut other = plan.clone();
        let (norm, elementwise) = (NormSchedule { lanes: 1, unroll: 1 }, ElementwiseSchedule { lanes: 1, unroll: 1 });
        let kind = match schedule {
            Schedule::Norm(_) => Schedule::Elementwise(elementwise),
            _ => Schedule::Norm(norm),
        };
        other["stages"][stage] = json!(kind);
        push(format!("{stage}/kind"), Some(stage), format!("a {} schedule", kind.name()), other);
        let mut unknown = plan.clone();
        unknown["stages"][stage]["prefetch"] = json!(8);
        push(format!("{stage}/unknown-knob"), Some(stage), "a knob that does not exist".to_owned(), unknown);
    }
    let mut stranger = plan.clone();
    stranger["stages"]["attn.sink"] = json!(Schedule::Norm(NormSchedule { lanes: 1, unroll: 1 }));
    push("stage-unknown".to_owned(), None, "a schedule for a stage that does not exist".to_owned(), stranger);
    let mut field = plan.clone();
    field["epsilon"] = json!(0);
    push("field-unknown".to_owned(), None, "a field that plans do not have".to_owned(), field);
    let mut headless = plan.clone();
    if let Some(fields) = headless.as_object_mut() {
        fields.remove("provenance");
    }
    push("field-missing".to_owned(), None, "no `provenance`".to_owned(), headless);
    all.extend(pipelines(subject.passes));
    all
}

fn wrong_knobs(schedule: &Schedule, cpu: &CpuFacts) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    match schedule {
        Schedule::Matmul(it) => matmul("", it, cpu, &mut wrong),
        Schedule::Mlp(it) => {
            matmul("up.", &it.up, cpu, &mut wrong);
            matmul("down.", &it.down, cpu, &mut wrong);
            wrong.push(("row-block".to_owned(), "no rows", 0));
            if it.up.mr > 1 {
                wrong.push(("row-block".to_owned(), "not a multiple of `up.mr`", it.row_block + 1));
                wrong.push(("down.mr".to_owned(), "not `up.mr`", it.down.mr - 1));
            }
        }
        Schedule::Attention(it) => {
            let AttentionSchedule { row_block, mr, nr, lanes, .. } = *it;
            tile("", (mr, nr, lanes), cpu, &mut wrong);
            wrong.push(("row-block".to_owned(), "no rows", 0));
            wrong.push(("row-block".to_owned(), "beyond its limit of 4096", 4096 / mr * mr + mr));
            if mr > 1 {
                wrong.push(("row-block".to_owned(), "not a multiple of `mr`", row_block + 1));
            }
            wrong.push(("unroll".to_owned(), "no step of the body", 0));
            wrong.push(("unroll".to_owned(), "beyond its limit of 16", 17));
            wrong.push(("softmax-rows".to_owned(), "no rows", 0));
            wrong.push(("softmax-rows".to_owned(), "beyond its limit, `mr`", mr + 1));
        }
        Schedule::Norm(NormSchedule { .. }) | Schedule::Elementwise(ElementwiseSchedule { .. }) => {
            lanes("", cpu, &mut wrong);
            wrong.push(("unroll".to_owned(), "no copy of the body", 0));
            wrong.push(("unroll".to_owned(), "beyond its limit of 8", 9));
        }
        // Of no kernel for a CPU.
        Schedule::GpuMatmul(_)
        | Schedule::GpuAttention(_)
        | Schedule::GpuNorm(_)
        | Schedule::GpuElementwise(_)
        | Schedule::GpuMlp(_) => {}
    }
    wrong
}

fn lanes(prefix: &str, cpu: &CpuFacts, wrong: &mut Vec<Wrong>) {
    wrong.push((format!("{prefix}lanes"), "no lanes", 0));
    wrong.push((format!("{prefix}lanes"), "no power of two", 3));
    wrong.push((format!("{prefix}lanes"), "wider than the CPU's vectors", 2 * cpu.lanes));
}

fn tile(prefix: &str, (mr, nr, width): (usize, usize, usize), cpu: &CpuFacts, wrong: &mut Vec<Wrong>) {
    lanes(prefix, cpu, wrong);
    let vectors = nr / width.max(1);
    wrong.push((format!("{prefix}mr"), "no rows", 0));
    wrong.push((format!("{prefix}mr"), "more than any CPU has registers for", 1024));
    // (mr + 1) vectors + 1 registers is the most that fits.
    wrong.push((
        format!("{prefix}mr"),
        "one row more than the registers hold",
        cpu.vector_registers.saturating_sub(1) / vectors.max(1),
    ));
    wrong.push((format!("{prefix}nr"), "no columns", 0));
    wrong.push((format!("{prefix}nr"), "not a multiple of `lanes`", nr + 1));
    wrong.push((format!("{prefix}nr"), "not a multiple of `lanes`", nr - 1));
    wrong.push((format!("{prefix}nr"), "33 vectors wide", 33 * width));
    if !mr.is_multiple_of(width) {
        wrong.push((format!("{prefix}nr"), "`mr` and `nr` swapped", mr));
    }
}

fn matmul(prefix: &str, it: &MatmulSchedule, cpu: &CpuFacts, wrong: &mut Vec<Wrong>) {
    tile(prefix, (it.mr, it.nr, it.lanes), cpu, wrong);
    for (knob, what, value) in [
        ("mc", "no rows", 0),
        ("nc", "no columns", 0),
        ("nc", "not a multiple of `nr`", it.nc + 1),
        ("nc", "not a multiple of `nr`", it.nc - 1),
        ("kc", "no depth", 0),
        ("kc", "beyond its limit of 2^20", (1 << 20) + 1),
        ("unroll", "no copy of the body", 0),
        ("unroll", "beyond its limit of 16", 17),
    ] {
        wrong.push((format!("{prefix}{knob}"), what, value));
    }
    if it.dot == Dot::Pairs {
        wrong.push((format!("{prefix}kc"), "no whole number of pairs", it.kc + 1));
    }
    if it.mr > 1 {
        wrong.push((format!("{prefix}mc"), "not a multiple of `mr`", it.mc + 1));
        wrong.push((format!("{prefix}mc"), "not a multiple of `mr`", it.mc - 1));
    }
}

/// The plan was made for the stages of one pipeline and comes with those of another.
pub fn pipelines(passes: &[Pass]) -> Vec<Mutation> {
    let mut all: Vec<(String, String, Vec<Pass>)> = Vec::new();
    for (index, pass) in passes.iter().enumerate() {
        let name = pass.name();
        let mut dropped = passes.to_vec();
        dropped.remove(index);
        all.push((format!("pass-dropped/{name}"), format!("`{name}` does not run"), dropped));
        let mut doubled = passes.to_vec();
        doubled.insert(index, *pass);
        all.push((format!("pass-doubled/{name}"), format!("`{name}` runs twice"), doubled));
        if index + 1 < passes.len() {
            let mut swapped = passes.to_vec();
            swapped.swap(index, index + 1);
            all.push((
                format!("pass-late/{name}"),
                format!("`{name}` runs after `{}`", passes[index + 1].name()),
                swapped,
            ));
        }
    }
    let mutation = |(id, description, passes): (String, String, Vec<Pass>)| {
        let kind = (Family::Plan, id.clone());
        Mutation::new(kind, format!("plan/{id}"), None, description, Body::Passes(passes))
    };
    all.into_iter().map(mutation).collect()
}
