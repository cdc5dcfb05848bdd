//! What crosses the boundary between `kforge` and `kforge-worker`: one action in, one outcome out.
//!
//! On a pipe both are JSON, one message a line; `kforge-worker run ACTION --store DIR` reads the same JSON from a file.
//! Blobs never cross: an action names its inputs by digest and the worker reads and writes the store's `cas/` itself. An
//! action is self-contained, so the same message can be executed on another machine that has the same blobs.

use crate::{
    digest::Digest,
    host::{Device, gpu::GpuFacts},
    manifest::spec::{BlockSpec, Origin, Pass},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Bumped whenever a message changes shape; a worker of another version is refused at the handshake.
pub const PROTOCOL_VERSION: u32 = 4;

/// The first line a worker writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Hello {
    pub protocol: u32,
    /// The digest of the sources this worker was built from ([`recipe`]); must equal the tool's.
    pub recipe: Digest,
    pub pid: u32,
}

/// Names of action inputs and outputs.
pub mod blob {
    /// The transformer-dialect module as built from the manifest.
    pub const MODULE: &str = "module";
    /// The module after the passes.
    pub const OPTIMIZED: &str = "optimized";
    /// [`crate::plan::stage::StageGraph`] of the optimised module.
    pub const STAGES: &str = "stages";
    /// `Vec<`[`super::PassReport`]`>`.
    pub const PASSES: &str = "passes";
    /// [`crate::plan::Plan`].
    pub const PLAN: &str = "plan";
    /// A relocatable object file for the host.
    pub const OBJECT: &str = "object";
    /// [`crate::plan::kernel::Kernel`].
    pub const KERNEL: &str = "kernel";
    /// The generated MLIR, before it is lowered to LLVM.
    pub const LOWERED: &str = "lowered";
    /// [`super::audit::Audit`].
    pub const AUDIT: &str = "audit";
    /// [`super::Benchmark`].
    pub const BENCHMARK: &str = "benchmark";
    /// A safetensors file of tensors given to `run`.
    pub const TENSORS: &str = "tensors";
    /// One block: what `report.json` shows.
    pub const REPORT: &str = "report";
    /// `Vec<`[`super::mutation::Mutant`]`>`.
    pub const MUTANTS: &str = "mutants";
    /// [`super::mutation::Judged`].
    pub const JUDGED: &str = "judged";
    /// What a search found, operation by operation ([`crate::build::tune::block::Tuned`]).
    pub const SEARCH: &str = "search";
    /// [`super::tuning::Race`].
    pub const RACE: &str = "race";
    /// [`super::tuning::Trial`].
    pub const TRIAL: &str = "trial";
    /// [`super::Gpus`].
    pub const GPUS: &str = "gpus";
    /// [`super::Smoke`].
    pub const SMOKE: &str = "smoke";
    /// UTF-8, what `kforge ir` prints.
    pub const TEXT: &str = "text";
}

/// Content digests by name ([`blob`]), as an action reads or makes them.
pub type Blobs = BTreeMap<String, Digest>;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Action {
    /// Chosen by the sender; echoed in the outcome.
    pub id: u64,
    pub kind: ActionKind,
    pub inputs: Blobs,
    pub limits: Limits,
}

/// Beyond these the action fails with [`FailureKind::Timeout`] or [`FailureKind::OutOfMemory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Limits {
    pub wall_ms: u64,
    /// Address space that the action may add to the worker's own.
    pub memory_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum ActionKind {
    /// Build the module and run the passes. Out: `module`, `optimized`, `stages`, `passes`.
    Ir {
        /// The block instance's name: the module's symbol.
        name: String,
        block: BlockSpec,
        passes: Vec<Pass>,
        /// Where each manifest field of the block was written, by key (`heads`, `d-model`, ...); the table itself under "".
        /// Decides only locations in error messages, so it is no part of the key and no output contains it.
        origins: BTreeMap<String, Origin>,
    },
    /// In: `stages`, `plan`, optionally `lowered`: MLIR to assemble instead of what the generator writes for the plan.
    /// Out: `object`, `kernel`, `lowered`. `shaders`: the project's own templates that the plan names, by file name.
    Compile { device: Device, shaders: BTreeMap<String, String> },
    /// In: `object`, `kernel`, `plan`. Out: `audit`, of a rejected kernel too. The inputs that the gates draw follow from `seed`
    /// and the object; the cases of `corpus` are replayed first.
    Verify { block: BlockSpec, device: Device, threads: usize, seed: u64, corpus: Vec<corpus::Case> },
    /// In: `object`, `kernel`, and what says that it was verified: `plan`, `audit`. Out: `benchmark`. Measures for about
    /// `time_ms`.
    Benchmark { device: Device, threads: usize, time_ms: u64 },
    /// In: `object`, `kernel`, `plan`, `audit`, optionally `tensors`. Out: `tensors`: the outputs, and every stage's output if
    /// `stages`.
    Run { block: BlockSpec, device: Device, threads: usize, seed: u64, stages: bool },
    /// Compile one schedule of one operation and put it through the gates that cost little. In: `stages`, `plan`, optionally
    /// `lowered`, as for `compile`. Out: as `compile`. What the gates draw follows from `seed` and the operation alone, so that
    /// the references are evaluated once for all of its schedules; a schedule that wins goes through all gates of `verify`, on
    /// inputs that follow from its object. A failure of a gate names it ([`Failure::gate`]).
    Try { device: Device, threads: usize, seed: u64, shaders: BTreeMap<String, String> },
    /// Measure several compiled kernels of one operation, or of one block, against each other, each for as long as `runs` runs
    /// of the first one take ([`tuning::race_time`]). In: of
    /// entrant 0.. `object-0`, `kernel-0`, ... ([`tuning::entrant_object`]). Out: `race`. With `variants`, hand-written kernels run
    /// beside a matmul of f32 on a CPU: they do its product, without what follows it.
    Race { device: Device, threads: usize, entrants: usize, runs: u32, variants: bool },
    /// Measure the hand-written matmuls and the generated one. In: `object`, `kernel` of a matmul block. Out: `benchmark`.
    BenchMatmul { cpu: crate::host::CpuFacts, threads: usize, time_ms: u64 },
    /// Print IR. Out: `text`. With `each`, a unified diff for every pass; without, the module before the passes.
    IrText { name: String, block: BlockSpec, passes: Vec<Pass>, origins: BTreeMap<String, Origin>, view: IrView },
    /// What could be wrong with this block. In: `stages`, `plan`, `kernel`, `lowered`. Out: `mutants`.
    ListMutants { block: BlockSpec, passes: Vec<Pass>, device: Device },
    /// Build one mutant and put it through the verifier. In: as `list-mutants`, and `object`. Out: `judged`.
    Mutant {
        block: BlockSpec,
        passes: Vec<Pass>,
        device: Device,
        threads: usize,
        seed: u64,
        corpus: Vec<corpus::Case>,
        mutant: String,
    },
    /// Look for GPUs. Out: `gpus`, a [`Gpus`].
    Probe,
    /// Compute something known on a GPU. Out: `smoke`, a [`Smoke`].
    SmokeTest { gpu: GpuFacts },
    /// For tests of the limits only; refused unless the worker was started with `--allow-faults`.
    Fault { fault: Fault },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IrView {
    /// The module as built, with locations.
    Emit,
    /// The module after the passes, with locations.
    Optimized,
    /// The modules as (title, text) pairs in JSON: before, then after each pass.
    Steps,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    Segfault,
    LoopForever,
    AllocateForever,
    Panic,
    Exit,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Outcome {
    pub id: u64,
    pub result: Result<Done, Failure>,
    /// Wall time of the action in the worker.
    pub wall_us: u64,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Done {
    /// Content digests by output name ([`blob`]); the blobs are in `cas/`.
    pub outputs: Blobs,
}

/// Why an action produced nothing. The worker makes the first group, the tool (which sees processes die) the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The IR is malformed, or shapes do not fit; the message has a location.
    InvalidIr,
    /// A schedule breaks a constraint; never generated.
    IllegalPlan,
    /// LLVM or MLIR refused what was generated: a defect of kforge.
    Codegen,
    /// A gate of the verifier failed. The audit blob is still written.
    NumericMismatch,
    /// The gate that failed is V4: the kernel reads or writes what it must not.
    Memory,
    /// A measured time that the device cannot reach, or results that differ under measurement.
    Implausible,
    /// The action, or the audit of its kernel, is for another device than the one that is here.
    DeviceUnavailable,
    /// The kernel was not accepted, or the audit that was given with it is of another one.
    NotVerified,
    /// Tensors given by the user are missing or have the wrong shape or type.
    BadInput,
    /// An input blob is missing or corrupt.
    MissingBlob,
    Io,
    Internal,

    Timeout,
    OutOfMemory,
    Crash,
    Cancelled,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
#[error("{message}")]
pub struct Failure {
    pub kind: FailureKind,
    /// The stage that failed, where one did.
    pub stage: Option<String>,
    /// The gate that did not pass, where one did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
    /// One line: what is wrong, with place, value and limit.
    pub message: String,
    /// Further lines: stderr of a crashed worker, MLIR diagnostics.
    pub detail: String,
    pub hint: Option<String>,
    /// Blobs that exist all the same (the audit of a rejected kernel).
    pub outputs: Blobs,
}

impl Failure {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        let (message, detail, outputs) = (message.into(), String::new(), BTreeMap::new());
        Self { kind, stage: None, gate: None, message, detail, hint: None, outputs }
    }

    pub const fn by_gate(mut self, gate: Gate) -> Self {
        self.gate = Some(gate);
        self
    }

    pub fn at_stage(mut self, stage: impl Into<String>) -> Self {
        self.stage = Some(stage.into());
        self
    }

    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The GPUs of this machine, as their drivers tell them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Gpus {
    pub found: Vec<GpuFacts>,
    /// Adapters that are there and of no use, each with the reason; or why none could be looked for.
    pub problems: Vec<String>,
}

/// A small known computation on a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Smoke {
    /// What went wrong, if anything did.
    pub error: Option<String>,
    /// Largest difference from the exact result, as a share of its bound.
    pub worst_ratio: f64,
    /// From opening the device to the result.
    pub wall_us: u64,
}

/// What one pass did to the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PassReport {
    pub pass: Pass,
    pub created: usize,
    pub changed: usize,
    pub erased: usize,
}

/// What the machine can do at best on `threads` threads, each the median of its samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ceilings {
    pub threads: usize,
    /// f32 fused multiply-adds in registers, 2 operations each.
    pub gflops: f64,
    /// Reading memory that no cache holds.
    pub gigabytes_per_s: f64,
}

/// Order statistics of one measured quantity, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Timing {
    pub samples: usize,
    pub median_ns: f64,
    pub min_ns: f64,
    /// 25th and 75th percentile.
    pub q1_ns: f64,
    pub q3_ns: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StageBenchmark {
    pub name: String,
    pub op: String,
    pub timing: Timing,
    pub flops: u64,
    /// Bytes that must move at least.
    pub bytes: u64,
}

/// What a time was read off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    /// The host's clock around the calls.
    #[default]
    Host,
    /// The device's own timestamps around the run.
    Device,
    /// The host's clock from the submission to its end, because the device has no timestamps or the host has a part in the run.
    HostAroundSubmission,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Benchmark {
    pub version: u32,
    pub threads: usize,
    #[serde(default)]
    pub clock: Clock,
    /// Measured in the same interleaved rounds, so that a share of them says something on a machine whose clock drifts.
    pub ceilings: Ceilings,
    pub block: StageBenchmark,
    pub stages: Vec<StageBenchmark>,
    /// Whether the measurement is to be believed: gate V7, for the block and each stage.
    pub checks: Vec<GateResult>,
}

/// A gate of the verification protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// The plan is within the operation's and the device's limits.
    V0Legality,
    /// Inputs for which floating point is exact, bit for bit.
    V1Exactness,
    /// Each stage within its rounding bound, on the inputs it really received.
    V2Bound,
    /// The optimised stages mean what the manifest says: two independent f64 evaluations agree.
    V2Meaning,
    /// No less accurate than plain code of the same precision.
    V3ErrorRatio,
    /// Nothing unwritten is read, nothing outside of a buffer is touched, runs repeat bit for bit.
    V4Memory,
    /// The same schedule, generated for other shapes.
    V5Shapes,
    /// What must hold between two runs of the same kernel.
    V6Relations,
    /// The kernel does under measurement what it did under verification, in a time that is possible.
    V7NoGaming,
}

impl Gate {
    pub const ALL: [Self; 9] = [
        Self::V0Legality,
        Self::V1Exactness,
        Self::V2Bound,
        Self::V2Meaning,
        Self::V3ErrorRatio,
        Self::V4Memory,
        Self::V5Shapes,
        Self::V6Relations,
        Self::V7NoGaming,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::V0Legality => "v0-legality",
            Self::V1Exactness => "v1-exactness",
            Self::V2Bound => "v2-bound",
            Self::V2Meaning => "v2-meaning",
            Self::V3ErrorRatio => "v3-error-ratio",
            Self::V4Memory => "v4-memory",
            Self::V5Shapes => "v5-shapes",
            Self::V6Relations => "v6-relations",
            Self::V7NoGaming => "v7-no-gaming",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GateStatus {
    Passed,
    Failed,
    /// The bound itself is not finite: counts as not passed.
    Inconclusive,
}

/// What one gate found at one stage (or, without a stage, for the whole block).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GateResult {
    pub gate: Gate,
    pub stage: Option<String>,
    /// Input regime or case, e.g. `normal`, `small integers`.
    pub case: String,
    pub status: GateStatus,
    /// Elements compared.
    pub checked: u64,
    /// Largest |candidate - reference| / bound over the elements, for gates that have a bound.
    pub worst_ratio: Option<f64>,
    pub mismatch: Option<Mismatch>,
    /// A line that says what failed, empty when passed.
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Mismatch {
    /// Index of the element in its tensor.
    pub element: Vec<usize>,
    /// As text, because JSON has no NaN.
    pub value: String,
    pub expected: String,
    pub bound: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Verdict {
    pub version: u32,
    pub accepted: bool,
    pub seed: u64,
    pub gates: Vec<GateResult>,
}

pub mod audit;
pub mod corpus;
pub mod mutation;
pub mod tuning;

/// What decides the outputs of each kind of action: digests, taken at build time, of the source folders and library versions.
pub mod recipe {
    use crate::digest::Digest;

    /// All of the worker's sources: what the handshake compares.
    pub const WORKER: Digest = Digest::from_bytes(include!(concat!(env!("OUT_DIR"), "/recipe-worker.in")));
    pub const IR: Digest = Digest::from_bytes(include!(concat!(env!("OUT_DIR"), "/recipe-ir.in")));
    pub const PLAN: Digest = Digest::from_bytes(include!(concat!(env!("OUT_DIR"), "/recipe-plan.in")));
    pub const COMPILE: Digest = Digest::from_bytes(include!(concat!(env!("OUT_DIR"), "/recipe-compile.in")));
    pub const VERIFY: Digest = Digest::from_bytes(include!(concat!(env!("OUT_DIR"), "/recipe-verify.in")));
    pub const BENCHMARK: Digest = Digest::from_bytes(include!(concat!(env!("OUT_DIR"), "/recipe-benchmark.in")));
    /// Of all sources: what one kforge found out, another one finds out for itself.
    pub const TOOL: Digest = Digest::from_bytes(include!(concat!(env!("OUT_DIR"), "/recipe-tool.in")));
    pub const REPORT: Digest = Digest::from_bytes(include!(concat!(env!("OUT_DIR"), "/recipe-report.in")));
}
