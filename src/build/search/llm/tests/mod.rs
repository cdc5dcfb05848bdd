//! Against a real HTTP server that does what it is told: [`super::server`].

mod answers;
mod ends;
mod prompts;
mod replays;
mod talks;

use super::{
    exchange::InMemory,
    server::{Behaviour, ChatServer},
    settings::{API_KEY, ENDPOINT, MODEL},
    *,
};
use crate::{
    build::search::heuristic,
    host::{CpuFacts, Device},
    manifest::spec::{Activation, Dtype},
    plan::{
        operation,
        schedule::MatmulSchedule,
        space::{Only, only::tests::only},
        stage::{Role, Stage, StageGraph, StageOp, Tensor, TensorId},
    },
    protocol::{
        FailureKind, Timing,
        tuning::{Measured, Refusal, TRIAL_VERSION, TrialOutcome},
    },
};
use std::{sync::Arc, time::Duration};

const KEY: &str = "sk-the-secret-key";

fn cpu() -> CpuFacts {
    CpuFacts {
        arch: "x86_64".to_owned(),
        model: "a CPU".to_owned(),
        isa: vec!["avx512f".to_owned(), "f16c".to_owned()],
        lanes: 16,
        vector_registers: 32,
        l1d: 32 << 10,
        l2: 1 << 20,
        l3: 32 << 20,
        cores: 4,
    }
}

fn matmul() -> StageGraph {
    let tensor = |name: &str, shape: [usize; 2], role| Tensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        dtype: Dtype::F32,
        role,
    };
    let tensors = vec![
        tensor("x", [128, 768], Role::Input),
        tensor("secret-project.w", [768, 3072], Role::Weight),
        tensor("y", [128, 3072], Role::Output),
    ];
    let op =
        StageOp::Matmul { m: 128, n: 3072, k: 768, bias: false, activation: Some(Activation::Silu), residual: false };
    let inputs = vec![TensorId(0), TensorId(1)];
    let stage = Stage { name: "secret-project".to_owned(), op, inputs, output: TensorId(2), scheduled: true };
    operation::isolate(&StageGraph { block: "b".to_owned(), tensors, stages: vec![stage.clone()] }, &stage)
}

fn problem() -> Problem {
    let operation = matmul();
    let heuristic = heuristic::propose(&operation, &cpu()).remove(operation::NAME).unwrap();
    Problem {
        operation,
        device: Device::from(cpu()),
        threads: 1,
        hybrid_softmax: false,
        heuristic,
        seeds: Vec::new(),
        only: Only::default(),
        seed: 1,
        shaders: [("tiled.wgsl".to_owned(), "// the secret shader".to_owned())].into(),
    }
}

/// A legal schedule, another one for each number.
fn good(number: usize) -> Schedule {
    let Schedule::Matmul(heuristic) = problem().heuristic else { panic!("a matmul") };
    Schedule::Matmul(MatmulSchedule { kc: 64 + number, ..heuristic })
}

fn answer(schedules: &[Schedule]) -> String {
    serde_json::json!({ "reasoning": "deeper", "schedules": schedules }).to_string()
}

fn say(schedules: &[Schedule]) -> Behaviour {
    Behaviour::Say(answer(schedules))
}

/// Without waiting, and never for long.
fn settings() -> LlmSettings {
    LlmSettings { proposals: 4, backoff: Duration::ZERO, timeout: Duration::from_secs(60), ..Default::default() }
}

/// As a shell with the three variables has it.
fn access(url: &str, settings: LlmSettings) -> Access {
    settings.resolve(|name| match name {
        ENDPOINT => Some(url.to_owned()),
        API_KEY => Some(KEY.to_owned()),
        MODEL => Some("small".to_owned()),
        _ => None,
    })
}

fn never() -> Cancelled {
    Arc::new(|| false)
}

fn llm(url: &str, settings: LlmSettings) -> Llm {
    kept(url, settings, &Arc::new(InMemory::default()))
}

fn kept(url: &str, settings: LlmSettings, exchanges: &Arc<InMemory>) -> Llm {
    let exchanges: Store = Arc::<InMemory>::clone(exchanges);
    Llm::new(problem(), Value::Null, access(url, settings), exchanges, never(), Fallback::heuristic())
}

fn schedules(proposals: &[Proposal]) -> Vec<Schedule> {
    proposals.iter().map(|it| it.schedule.clone()).collect()
}

fn measured(schedule: Schedule, relative: f64) -> Trial {
    let median_ns = 1e6 * relative;
    let timing = Timing { samples: 9, median_ns, min_ns: median_ns, q1_ns: median_ns, q3_ns: median_ns };
    let it = Measured { timing, relative, noise: 0.01, floor_ns: 2e5 };
    Trial { version: TRIAL_VERSION, schedule, origin: "o".to_owned(), outcome: TrialOutcome::Measured(it) }
}

fn rejected(schedule: Schedule, message: &str) -> Trial {
    let refusal = Refusal { kind: FailureKind::Crash, gate: None, message: message.to_owned() };
    Trial { version: TRIAL_VERSION, schedule, origin: "o".to_owned(), outcome: TrialOutcome::Rejected(refusal) }
}
