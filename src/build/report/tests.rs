use super::{
    model::{BlockReport, Inputs, Verification},
    record::{self, Record},
    terminal::{self, Line, State},
};
use crate::{
    build::graph::tests::gpu,
    digest::Digest,
    host::{
        CpuFacts, Device,
        gpu::{GpuFacts, GpuKind},
    },
    manifest::spec::{BlockSpec, Dtype, NormKind, NormSpec, Pass},
    plan::{
        PLAN_VERSION, Plan, Provenance,
        schedule::Schedule,
        stage::{Role, Stage, StageGraph, StageOp, Tensor, TensorId},
    },
    protocol::{
        Benchmark, Ceilings, Clock, Gate, GateResult, GateStatus, Mismatch, PassReport, StageBenchmark, Timing,
        Verdict,
        audit::{Audit, Rejection, Subject},
        mutation::KilledBy,
    },
};
use std::{collections::BTreeMap, time::Duration};

const M: usize = 128;
const N: usize = 256;

fn timing(median_ns: f64) -> Timing {
    let (q1_ns, q3_ns) = (median_ns * 0.98, median_ns * 1.04);
    Timing { samples: 31, median_ns, min_ns: median_ns * 0.95, q1_ns, q3_ns }
}

fn gate(gate: Gate, stage: Option<&str>, status: GateStatus, worst_ratio: Option<f64>) -> GateResult {
    let mismatch = (status == GateStatus::Failed).then(|| Mismatch {
        element: vec![3, 4],
        value: "NaN".to_owned(),
        expected: "1".to_owned(),
        bound: "1e-6".to_owned(),
    });
    let message = if status == GateStatus::Passed { "" } else { "element [3, 4] is NaN" }.to_owned();
    let stage = stage.map(str::to_owned);
    GateResult { gate, stage, case: "normal".to_owned(), status, checked: 1000, worst_ratio, mismatch, message }
}

fn verdict() -> Verdict {
    let gates = vec![
        gate(Gate::V2Bound, Some("matmul"), GateStatus::Passed, Some(0.031)),
        gate(Gate::V2Bound, Some("norm"), GateStatus::Passed, Some(0.25)),
        gate(Gate::V0Legality, None, GateStatus::Passed, None),
    ];
    Verdict { version: 1, accepted: true, seed: 7, gates }
}

fn spec() -> BlockSpec {
    let norm = NormSpec { kind: NormKind::LayerNorm, eps: 1e-5 };
    BlockSpec::Microblock { m: M, n: N, k: N, bias: false, norm, dtype: Dtype::F32 }
}

/// A matmul that a schedule was searched for, and a plain norm.
fn stages() -> StageGraph {
    let tensor = Tensor { name: "y".to_owned(), shape: vec![M, N], dtype: Dtype::F32, role: Role::Output };
    let stage =
        |name: &str, op, scheduled| Stage { name: name.to_owned(), op, inputs: vec![], output: TensorId(0), scheduled };
    let matmul = StageOp::Matmul { m: M, n: N, k: N, bias: false, activation: None, residual: false };
    StageGraph {
        block: "micro".to_owned(),
        tensors: vec![tensor],
        stages: vec![
            stage("matmul", matmul, true),
            stage("norm", StageOp::LayerNorm { rows: M, width: N, eps: 1e-5 }, false),
        ],
    }
}

fn device() -> Device {
    Device::Cpu(CpuFacts {
        arch: "x86_64".to_owned(),
        model: "Example CPU".to_owned(),
        isa: vec!["avx2".to_owned(), "fma".to_owned()],
        lanes: 8,
        vector_registers: 16,
        l1d: 32 << 10,
        l2: 512 << 10,
        l3: 0,
        cores: 2,
    })
}

fn plan() -> Plan {
    Plan {
        version: PLAN_VERSION,
        block: "micro".to_owned(),
        target: "cpu".to_owned(),
        provenance: Provenance::new("heuristic"),
        without: Vec::new(),
        stages: BTreeMap::new(),
        shaders: BTreeMap::new(),
    }
}

/// The report of a microblock.
fn report(verdict: &Verdict) -> BlockReport {
    report_on(&device(), verdict)
}

fn report_on(device: &Device, verdict: &Verdict) -> BlockReport {
    let flops = stages().flops();
    let measured = |name: &str, op: &str, nanoseconds, flops, bytes| StageBenchmark {
        name: name.to_owned(),
        op: op.to_owned(),
        timing: timing(nanoseconds),
        flops,
        bytes,
    };
    let benchmark = Benchmark {
        clock: Default::default(),
        version: 1,
        threads: 1,
        ceilings: Ceilings { threads: 1, gflops: 118.0, gigabytes_per_s: 20.0 },
        block: measured("block", "microblock", 200_000.0, flops, 400_000),
        stages: vec![
            measured("matmul", "matmul", 180_000.0, flops, 400_000),
            measured("norm", "layer-norm", 20_000.0, 0, 262_144),
        ],
        checks: vec![],
    };
    BlockReport::new(&Inputs {
        block: "micro",
        target: "cpu",
        spec: &spec(),
        device,
        stages: &stages(),
        passes: &[PassReport { pass: Pass::TileMatmul, created: 0, changed: 1, erased: 0 }],
        plan: &plan(),
        plan_digest: Digest::of(b"plan"),
        verdict,
        benchmark: &benchmark,
    })
}

#[test]
fn the_report_says_all_of_a_block() {
    insta::assert_json_snapshot!(report(&verdict()));
}

#[test]
fn a_report_survives_its_own_json() {
    let report = report(&verdict());
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<BlockReport>(&text).unwrap(), report);
}

#[test]
fn a_gate_is_as_good_as_its_worst_result() {
    let mut verdict = verdict();
    verdict.gates.push(gate(Gate::V1Exactness, Some("norm"), GateStatus::Inconclusive, None));
    verdict.gates.push(gate(Gate::V2Bound, Some("norm"), GateStatus::Inconclusive, None));
    verdict.gates.push(gate(Gate::V2Bound, Some("matmul"), GateStatus::Failed, Some(12.0)));
    let summary = Verification::new(&Verdict { accepted: false, ..verdict }, &[]);
    let statuses: Vec<_> = summary.gates.iter().map(|it| (it.gate, it.status, it.not_passed.len())).collect();
    assert_eq!(
        statuses,
        [
            (Gate::V0Legality, GateStatus::Passed, 0),
            (Gate::V1Exactness, GateStatus::Inconclusive, 1),
            (Gate::V2Bound, GateStatus::Failed, 2)
        ]
    );
    assert_eq!((summary.worst_ratio, summary.gates[2].worst_stage.as_deref()), (Some(12.0), Some("matmul")));
}

fn lines(good: &BlockReport, rejected: &BlockReport) -> Vec<Line> {
    let line = |report: &BlockReport, state| Line::new(&report.block, &report.target, state, Some(report));
    vec![
        line(good, State::Built),
        line(good, State::UpToDate),
        line(rejected, State::Built),
        Line::new("gpt2-small-s128", "cpu", State::Failed("compile".to_owned()), None),
    ]
}

#[test]
fn the_table_has_a_row_for_each_block_and_target() {
    let (good, rejected) = (report(&verdict()), report(&Verdict { accepted: false, ..verdict() }));
    insta::assert_snapshot!(terminal::table(&lines(&good, &rejected), 120, false));
}

#[test]
fn a_narrow_table_keeps_what_tells_most() {
    let (good, rejected) = (report(&verdict()), report(&Verdict { accepted: false, ..verdict() }));
    let text = terminal::table(&lines(&good, &rejected), 70, false);
    assert!(text.lines().all(|it| it.chars().count() <= 70), "{text}");
    insta::assert_snapshot!(text);
}

#[test]
fn colour_changes_no_column() {
    let (good, rejected) = (report(&verdict()), report(&Verdict { accepted: false, ..verdict() }));
    let lines = lines(&good, &rejected);
    let colored = terminal::table(&lines, 120, true);
    assert!(colored.contains("\u{1b}[32mverified\u{1b}[0m"), "{colored:?}");
    let mut plain = String::new();
    for (index, part) in colored.split('\u{1b}').enumerate() {
        plain.push_str(if index == 0 { part } else { part.split_once('m').unwrap().1 });
    }
    let trimmed: Vec<_> = plain.lines().map(str::trim_end).collect();
    assert_eq!(trimmed.join("\n") + "\n", terminal::table(&lines, 120, false));
}

#[test]
fn times_have_three_digits_and_a_fitting_unit() {
    let shown = [0.5, 999.4, 999.6, 1234.0, 45_678.0, 20_060_000.0, 999_600_000.0, 3.2e9, 4e12].map(terminal::duration);
    assert_eq!(shown, ["0.50 ns", "999 ns", "1.00 µs", "1.23 µs", "45.7 µs", "20.1 ms", "1.00 s", "3.20 s", "4000 s"]);
}

fn software_gpu() -> Device {
    Device::Gpu(GpuFacts { name: "llvmpipe".to_owned(), kind: GpuKind::Software, ..gpu() })
}

#[test]
fn a_row_of_a_gpu_names_it_and_says_if_it_is_none() {
    let on_gpu = report_on(&software_gpu(), &verdict());
    let lines = [
        Line::new("micro", "cpu", State::Built, Some(&report(&verdict()))),
        Line::new("micro", "gpu", State::Built, Some(&on_gpu)),
    ];
    insta::assert_snapshot!(terminal::table(&lines, 160, false), @"
    block@target  status    stages    time  spread  GFLOP/s  of peak  GB/s  of memory  error/bound  device
    micro@cpu     verified       2  200 µs   ±3.0%     83.9      71%   2.0        10%         0.25
    micro@gpu     verified       2  200 µs   ±3.0%     83.9      71%   2.0        10%         0.25  llvmpipe (software)
    ");
    assert!(!terminal::table(&lines[..1], 160, false).contains("device"));
}

#[test]
fn the_record_of_a_gpu_names_it_and_no_threads() {
    let mut audit = audit(verdict(), None);
    audit.device.facts = software_gpu();
    let report = report_on(&software_gpu(), &verdict());
    let text = record::text(&Record { audit: &audit, stages: &stages(), report: Some(&report) }, 120, false);
    assert!(text.contains("device    llvmpipe (software), fingerprint "), "{text}");
    assert!(text.contains("verified  in 12.3 ms, seed 7\n"), "{text}");
    assert!(text.contains("\nllvmpipe (software): 118.0 GFLOP/s peak, 20.0 GB/s memory\n"), "{text}");
    assert!(!text.contains("times are the host's"), "{text}");
    let report = BlockReport { clock: Clock::HostAroundSubmission, ..report };
    let text = record::text(&Record { audit: &audit, stages: &stages(), report: Some(&report) }, 120, false);
    assert!(text.contains("\ntimes are the host's, around a submission: "), "{text}");
}

fn audit(verdict: Verdict, rejection: Option<Rejection>) -> Audit {
    let mut plan = plan();
    let stages = stages();
    plan.stages.insert("matmul".to_owned(), Schedule::plain(&stages.stages[0].op, Dtype::F32, &device()));
    let (object, plan_digest) = (Some(Digest::of(b"object")), Digest::of(b"plan"));
    let (block, device) = (&spec(), &device());
    let subject =
        Subject { plan: &plan, plan_digest, block, stages: &stages, object, device, threads: 1, seed: Some(7) };
    subject.audit(Some(verdict), rejection, Duration::from_micros(12_340))
}

#[test]
fn a_record_shows_the_audit_the_schedules_the_gates_and_the_measured_figures() {
    let (audit, report) = (audit(verdict(), None), report(&verdict()));
    let record = Record { audit: &audit, stages: &stages(), report: Some(&report) };
    insta::assert_snapshot!(record::text(&record, 120, false), @"
    micro@cpu: accepted
    plan      29fde71e3ef2 by heuristic, 0 trials
    workload  microblock, signature 6ab8d97a1357
    object    cb5335a6e2b1
    device    Example CPU, fingerprint 311dc8b63e57
    verified  in 12.3 ms on 1 thread, seed 7

    matmul  matmul dot=fma kc=256 lanes=8 mc=128 mr=1 nc=256 nr=8 order=rows-outside pack-a=false pack-b=never prefetch=false split=rows unroll=1
    norm    norm lanes=1 unroll=1, plain

    gate         status  cases  elements  error/bound  worst at
    V0 legality  passed      1      1000            -  -
    V2 bound     passed      2      2000         0.25  norm

    stage   op          share     time  spread  GFLOP/s  of peak  GB/s  of memory  samples
    matmul  matmul        90%   180 µs   ±3.0%     93.2      79%   2.2        11%       31
    norm    layer-norm    10%  20.0 µs   ±3.0%        -        -  13.1        66%       31
    block   microblock          200 µs   ±3.0%     83.9      71%   2.0        10%       31
    1 thread: 118.0 GFLOP/s peak, 20.0 GB/s memory
    ");
}

#[test]
fn the_record_of_a_rejected_kernel_names_the_reason_and_has_no_figures() {
    let mut verdict = Verdict { accepted: false, ..verdict() };
    verdict.gates.push(gate(Gate::V4Memory, Some("norm"), GateStatus::Failed, None));
    let (gate, stage) = (Some(Gate::V4Memory), Some("norm".to_owned()));
    let rejection = Rejection { kind: KilledBy::Memory, gate, stage, message: "element [3, 4] is NaN".to_owned() };
    let audit = audit(verdict, Some(rejection));
    let record = Record { audit: &audit, stages: &stages(), report: None };
    insta::assert_snapshot!(record::text(&record, 120, false), @"
    micro@cpu: rejected
    reason    Memory, gate v4-memory, stage `norm`: element [3, 4] is NaN
    plan      29fde71e3ef2 by heuristic, 0 trials
    workload  microblock, signature 6ab8d97a1357
    object    cb5335a6e2b1
    device    Example CPU, fingerprint 311dc8b63e57
    verified  in 12.3 ms on 1 thread, seed 7

    matmul  matmul dot=fma kc=256 lanes=8 mc=128 mr=1 nc=256 nr=8 order=rows-outside pack-a=false pack-b=never prefetch=false split=rows unroll=1
    norm    norm lanes=1 unroll=1, plain

    gate         status  cases  elements  error/bound  worst at
    V0 legality  passed      1      1000            -  -
    V2 bound     passed      2      2000         0.25  norm
    V4 memory    failed      1      1000            -  -
    ");
}
