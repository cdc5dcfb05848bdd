//! `report.json`: one block instance on one target, everything that was found out about it.

use crate::{
    digest::Digest,
    host,
    manifest::spec::BlockSpec,
    plan::{Plan, stage::StageGraph},
    protocol::{Benchmark, Ceilings, Clock, Gate, GateResult, GateStatus, PassReport, StageBenchmark, Timing, Verdict},
};
use serde::{Deserialize, Serialize};

/// The version of `report.json`. A reader refuses a larger one; a field that is only added leaves it as it is.
pub const REPORT_VERSION: u32 = 1;

/// What the steps of a block made.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    pub block: &'a str,
    pub target: &'a str,
    pub spec: &'a BlockSpec,
    pub device: &'a host::Device,
    pub stages: &'a StageGraph,
    pub passes: &'a [PassReport],
    pub plan: &'a Plan,
    /// Of `plan`'s blob.
    pub plan_digest: Digest,
    pub verdict: &'a Verdict,
    pub benchmark: &'a Benchmark,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockReport {
    pub version: u32,
    pub block: String,
    pub target: String,
    pub spec: BlockSpec,
    pub device: Device,
    pub plan: PlanSummary,
    pub passes: Vec<PassReport>,
    pub verification: Verification,
    /// What the times were read off.
    #[serde(default)]
    pub clock: Clock,
    /// The whole block.
    pub measured: Measured,
    /// In execution order.
    pub stages: Vec<StageReport>,
}

/// What was measured on: results of different fingerprints are not comparable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Device {
    pub fingerprint: Digest,
    #[serde(flatten)]
    pub facts: host::Device,
    pub ceilings: Ceilings,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlanSummary {
    /// Of `plan.json`.
    pub digest: Digest,
    pub strategy: String,
    pub trials: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Verification {
    pub accepted: bool,
    pub seed: u64,
    /// The largest |candidate - reference| / bound of all gates that have a bound; at most 1 in an accepted kernel.
    pub worst_ratio: Option<f64>,
    /// In the order of the gates; only those that ran.
    pub gates: Vec<GateSummary>,
}

/// All results of one gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GateSummary {
    pub gate: Gate,
    /// Failed if any result is, else inconclusive if any is.
    pub status: GateStatus,
    /// Stages times input cases.
    pub results: usize,
    /// Elements compared.
    pub checked: u64,
    pub worst_ratio: Option<f64>,
    /// Where the worst ratio was found.
    pub worst_stage: Option<String>,
    /// The results that did not pass, whole.
    pub not_passed: Vec<GateResult>,
}

/// A measured time, and what it means beside the device's ceilings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Measured {
    pub timing: Timing,
    /// Half the distance of the quartiles, as a share of the median.
    pub spread: Option<f64>,
    /// Of matrix products; 0 for a stage that has none.
    pub flops: u64,
    /// That must move at least.
    pub bytes: u64,
    /// Absent without matrix products.
    pub gflops: Option<f64>,
    /// Share of the measured FMA peak, 0..=1.
    pub peak_share: Option<f64>,
    /// `bytes` over the time. Data that stays in a cache moves faster than memory can deliver.
    pub gigabytes_per_s: Option<f64>,
    /// Share of the measured memory bandwidth.
    pub bandwidth_share: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StageReport {
    pub name: String,
    pub op: String,
    /// The schedule was searched for; otherwise it is the plain one.
    pub scheduled: bool,
    pub measured: Measured,
    /// Share of the sum of all stages' times, 0..=1.
    pub time_share: Option<f64>,
}

impl BlockReport {
    pub fn new(inputs: &Inputs<'_>) -> Self {
        let Inputs { device, plan, benchmark, .. } = *inputs;
        let ceilings = &benchmark.ceilings;
        let total: f64 = benchmark.stages.iter().map(|it| it.timing.median_ns).sum();
        let stage = |it: &StageBenchmark| StageReport {
            name: it.name.clone(),
            op: it.op.clone(),
            scheduled: inputs.stages.stage(&it.name).is_some_and(|it| it.scheduled),
            measured: Measured::new(it, ceilings),
            time_share: ratio(it.timing.median_ns, total),
        };
        Self {
            version: REPORT_VERSION,
            block: inputs.block.to_owned(),
            target: inputs.target.to_owned(),
            spec: inputs.spec.clone(),
            device: Device { fingerprint: device.fingerprint(), facts: device.clone(), ceilings: ceilings.clone() },
            plan: PlanSummary {
                digest: inputs.plan_digest,
                strategy: plan.provenance.strategy.clone(),
                trials: plan.provenance.trials,
            },
            passes: inputs.passes.to_vec(),
            verification: Verification::new(inputs.verdict, &inputs.benchmark.checks),
            clock: benchmark.clock,
            measured: Measured::new(&benchmark.block, ceilings),
            stages: benchmark.stages.iter().map(stage).collect(),
        }
    }
}

impl Verification {
    /// `checks`: gate V7, which looks at the measurement; nothing where there is none.
    pub fn new(verdict: &Verdict, checks: &[GateResult]) -> Self {
        let results: Vec<&GateResult> = verdict.gates.iter().chain(checks).collect();
        let mut gates: Vec<Gate> = results.iter().map(|it| it.gate).collect();
        gates.sort();
        gates.dedup();
        let gates: Vec<_> = gates
            .into_iter()
            .map(|gate| GateSummary::new(gate, results.iter().copied().filter(|it| it.gate == gate)))
            .collect();
        // V3's is no share of a bound, but of what plain code's errors allow.
        let bounded = gates.iter().filter(|it| it.gate != Gate::V3ErrorRatio);
        let worst_ratio = bounded.filter_map(|it| it.worst_ratio).max_by(f64::total_cmp);
        let accepted = verdict.accepted && checks.iter().all(|it| it.status == GateStatus::Passed);
        Self { accepted, seed: verdict.seed, worst_ratio, gates }
    }
}

impl GateSummary {
    fn new<'a>(gate: Gate, results: impl Iterator<Item = &'a GateResult>) -> Self {
        let mut summary = Self {
            gate,
            status: GateStatus::Passed,
            results: 0,
            checked: 0,
            worst_ratio: None,
            worst_stage: None,
            not_passed: Vec::new(),
        };
        for result in results {
            summary.results += 1;
            summary.checked += result.checked;
            if result.worst_ratio.is_some_and(|it| summary.worst_ratio.is_none_or(|worst| it > worst)) {
                summary.worst_ratio = result.worst_ratio;
                summary.worst_stage.clone_from(&result.stage);
            }
            if result.status != GateStatus::Passed {
                summary.not_passed.push(result.clone());
            }
        }
        let any = |status| summary.not_passed.iter().any(|it| it.status == status);
        summary.status = if any(GateStatus::Failed) {
            GateStatus::Failed
        } else if any(GateStatus::Inconclusive) {
            GateStatus::Inconclusive
        } else {
            GateStatus::Passed
        };
        summary
    }
}

impl Measured {
    fn new(benchmark: &StageBenchmark, ceilings: &Ceilings) -> Self {
        let StageBenchmark { timing, flops, bytes, .. } = benchmark;
        // Operations per nanosecond are 1e9 operations per second, and so are bytes.
        let gflops = ratio(*flops as f64, timing.median_ns).filter(|_| *flops > 0);
        let gigabytes_per_s = ratio(*bytes as f64, timing.median_ns);
        Self {
            spread: ratio((timing.q3_ns - timing.q1_ns) / 2.0, timing.median_ns),
            timing: timing.clone(),
            flops: *flops,
            bytes: *bytes,
            gflops,
            peak_share: gflops.and_then(|it| ratio(it, ceilings.gflops)),
            gigabytes_per_s,
            bandwidth_share: gigabytes_per_s.and_then(|it| ratio(it, ceilings.gigabytes_per_s)),
        }
    }
}

/// A quotient that is a number: JSON has no infinity.
fn ratio(numerator: f64, denominator: f64) -> Option<f64> {
    Some(numerator / denominator).filter(|it| denominator > 0.0 && it.is_finite())
}
