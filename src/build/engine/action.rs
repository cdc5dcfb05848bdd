//! What a step is in terms of actions: which request it sends to a worker, or what the tool does itself.

use super::{
    crew::{Executor, Seated},
    worker::{Leash, Request, Seat, Token, Toolchain, WorkerError},
};
use crate::{
    build::{
        graph::{BlockTarget, Graph, Outputs, Rules, Step, StepKind},
        report::{self, BlockReport},
        search::{self, templates},
        tune::{
            self, Progress, Stop,
            block::{Context, Tuned},
            ledger::{Ledger, On, Scope},
        },
    },
    digest::Digest,
    host::{CpuFacts, Device},
    manifest::spec::Origin,
    plan::{Plan, operation, stage::StageGraph},
    protocol::{
        ActionKind, Done, Failure, FailureKind, Limits, PassReport,
        audit::{Audit, Rejection, Subject},
        blob,
    },
    store::Store,
};
use serde::de::DeserializeOwned;
use std::{
    collections::BTreeMap,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

/// Everything that a build reads and nothing that it changes but the store.
#[derive(Clone, Copy)]
pub struct Workspace<'a> {
    pub store: &'a Store,
    pub graph: &'a Graph,
    /// What the graph was planned from.
    pub blocks: &'a [BlockTarget],
    /// Where the fields of each of `blocks` are written.
    pub origins: &'a [BTreeMap<String, Origin>],
    /// That the build runs on, whatever its targets run on.
    pub cpu: &'a CpuFacts,
    pub rules: &'a Rules,
}

/// Whether a worker does the steps of this kind; the tool does the others itself.
pub const fn needs_worker(kind: StepKind) -> bool {
    !matches!(kind, StepKind::Plan | StepKind::Report)
}

/// Wall time of one action. Generous: these end what hangs, they do not tune anything.
const fn wall_ms(kind: StepKind) -> u64 {
    match kind {
        StepKind::Ir => 60_000,
        StepKind::Compile => 300_000,
        StepKind::Verify => 900_000,
        StepKind::Benchmark => 300_000,
        StepKind::Plan | StepKind::Report => 0,
    }
}

/// Address space that compiling may add; LLVM needs a small part of it.
const COMPILER_MEMORY: u64 = 8 << 30;

/// The limits of an action of this kind on this machine.
pub fn limits(kind: StepKind) -> Limits {
    let physical = physical_memory();
    let memory_bytes = match kind {
        StepKind::Ir | StepKind::Compile => physical.min(COMPILER_MEMORY),
        _ => physical,
    };
    Limits { wall_ms: wall_ms(kind), memory_bytes }
}

/// Address space that a GPU's driver reserves for the memory of host and devices, most of which it never touches.
const DRIVER_RESERVES: u64 = 4 << 40;

/// `limits`, with the address space that a driver needs where the action loads one.
pub fn with_driver(limits: Limits, action: &ActionKind) -> Limits {
    let gpu = match action {
        ActionKind::Probe | ActionKind::SmokeTest { .. } => true,
        ActionKind::Verify { device, .. }
        | ActionKind::Benchmark { device, .. }
        | ActionKind::Run { device, .. }
        | ActionKind::Mutant { device, .. }
        | ActionKind::Try { device, .. }
        | ActionKind::Race { device, .. } => matches!(device, Device::Gpu(_)),
        _ => false,
    };
    let memory_bytes = limits.memory_bytes.saturating_add(if gpu { DRIVER_RESERVES } else { 0 });
    Limits { memory_bytes, ..limits }
}

/// Bytes of the machine's memory; 16 GiB where the system does not say.
fn physical_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|it| it.strip_prefix("MemTotal:"));
    let kib = line.and_then(|it| it.trim().strip_suffix(" kB")).and_then(|it| it.trim().parse::<u64>().ok());
    kib.map_or(16 << 30, |it| it << 10)
}

/// Has steps done by worker processes, and by the tool itself where that is a moment's work.
pub struct Workers<'a> {
    pub toolchain: &'a Toolchain,
    pub leash: &'a Leash,
}

impl Executor for Workers<'_> {
    fn seat<'a>(&'a self, on_start: &'a dyn Fn(u32, Duration)) -> Box<dyn Seated + 'a> {
        Box::new(Seat::new(self.toolchain, self.leash).on_start(on_start))
    }
}

impl Seated for Seat<'_> {
    fn prepare(&mut self, kind: StepKind) -> Result<Option<u32>, WorkerError> {
        if needs_worker(kind) { self.fill().map(Some) } else { Ok(None) }
    }

    fn perform(
        &mut self,
        workspace: &Workspace<'_>,
        step: &Step,
        inputs: BTreeMap<String, Digest>,
        token: &Arc<Token>,
        told: &dyn Fn(&Progress<'_>),
    ) -> Result<Result<Outputs, Failure>, WorkerError> {
        if step.searches {
            return search(workspace, step, inputs, (self, token), told);
        }
        perform(workspace, step, inputs, (self, token))
    }
}

/// Does a step whose inputs exist. The outer error is about having a worker, the inner one about the step.
fn perform(
    workspace: &Workspace<'_>,
    step: &Step,
    inputs: BTreeMap<String, Digest>,
    (seat, token): (&mut Seat<'_>, &Token),
) -> Result<Result<Outputs, Failure>, WorkerError> {
    let kind = match action(workspace, step, &inputs) {
        Some(Ok(kind)) => kind,
        Some(Err(failure)) => return Ok(Err(failure)),
        None => return Ok(in_process(workspace, step, &inputs)),
    };
    let limits = with_driver(limits(step.kind), &kind);
    let request = Request { kind, inputs, limits };
    let start = Instant::now();
    let result = seat.execute_revocably(&request, token)?.map(|Done { outputs }| outputs.into_iter().collect());
    Ok(result.map_err(|failure| audited(workspace.store, &request, failure, start.elapsed())))
}

/// What `kernel.json` of every device has: [`crate::plan::kernel::Kernel`] and [`crate::plan::program::Program`].
#[derive(serde::Deserialize)]
struct Called {
    graph: StageGraph,
}

/// A failed verification with its audit. Where the kernel took the worker with it, nobody else is left to write one.
fn audited(store: &Store, request: &Request, failure: Failure, wall: Duration) -> Failure {
    let ActionKind::Verify { block, device, threads, seed, .. } = &request.kind else { return failure };
    let (plan_digest, object) = (request.inputs.get(blob::PLAN), request.inputs.get(blob::OBJECT));
    let (Some(&plan_digest), false) = (plan_digest, failure.outputs.contains_key(blob::AUDIT)) else { return failure };
    let Some(rejection) = Rejection::of(&failure, None) else { return failure };
    let write = || -> Result<Digest, Failure> {
        let plan: Plan = read(store, &request.inputs, blob::PLAN)?;
        let Called { graph } = read(store, &request.inputs, blob::KERNEL)?;
        let (plan, stages, object, threads, seed) = (&plan, &graph, object.copied(), *threads, Some(*seed));
        let subject = Subject { plan, plan_digest, block, stages, object, device, threads, seed };
        let bytes = pretty(&subject.audit(None, Some(rejection), wall))?;
        store.cas.put(&bytes).map_err(|error| Failure::new(FailureKind::Io, error.to_string()))
    };
    match write() {
        Ok(digest) => {
            let mut failure = failure;
            failure.outputs.insert(blob::AUDIT.to_owned(), digest);
            failure
        }
        // Why the kernel failed matters more than that the record of it cannot be kept.
        Err(lost) => {
            let detail = format!("{}\nthe audit cannot be written: {lost}", failure.detail);
            failure.with_detail(detail.trim_start())
        }
    }
}

/// The action of a step that a worker does; `None` for the steps that the tool does itself.
fn action(
    workspace: &Workspace<'_>,
    step: &Step,
    inputs: &BTreeMap<String, Digest>,
) -> Option<Result<ActionKind, Failure>> {
    let Workspace { store, blocks, origins, rules, .. } = *workspace;
    let threads = step.threads;
    let subject = step.subject.and_then(|it| Some((blocks.get(it)?, origins.get(it)?)));
    let block = |make: &dyn Fn(&BlockTarget, &BTreeMap<String, Origin>) -> ActionKind| {
        subject
            .map(|(block, origins)| make(block, origins))
            .ok_or_else(|| Failure::new(FailureKind::Internal, format!("step `{}` is about no block", step.identity())))
    };
    let device = |it: &BlockTarget| Device::clone(&it.device);
    Some(match step.kind {
        StepKind::Ir => block(&|it, origins| ActionKind::Ir {
            name: it.name.clone(),
            block: it.spec.clone(),
            passes: it.passes.clone(),
            origins: origins.clone(),
        }),
        StepKind::Compile => read::<Plan>(store, inputs, blob::PLAN)
            .and_then(|plan| templates::of_plan(&plan, &rules.shaders).map_err(Failure::from))
            .and_then(|shaders| block(&|it, _| ActionKind::Compile { device: device(it), shaders: shaders.clone() })),
        StepKind::Verify => {
            let (seed, corpus) = (rules.seed, &rules.corpus);
            block(&|it, _| ActionKind::Verify {
                block: it.spec.clone(),
                device: device(it),
                threads,
                seed,
                corpus: corpus.clone(),
            })
        }
        StepKind::Benchmark => {
            let time_ms = rules.benchmark_ms;
            block(&|it, _| ActionKind::Benchmark { device: device(it), threads, time_ms })
        }
        StepKind::Plan | StepKind::Report => return None,
    })
}

fn in_process(workspace: &Workspace<'_>, step: &Step, inputs: &BTreeMap<String, Digest>) -> Result<Outputs, Failure> {
    let block = step.subject.and_then(|it| workspace.blocks.get(it));
    let block = block.ok_or_else(|| Failure::new(FailureKind::Internal, "a step of the tool is about no block"))?;
    let (name, bytes) = match step.kind {
        StepKind::Plan => {
            let stages: StageGraph = read(workspace.store, inputs, blob::STAGES)?;
            (blob::PLAN, pretty(&plan(workspace.store, &stages, block, workspace.rules))?)
        }
        StepKind::Report => (blob::REPORT, pretty(&report(workspace, step, block, inputs)?)?),
        _ => return Err(Failure::new(FailureKind::Internal, format!("nobody does `{}`", step.identity()))),
    };
    let digest = workspace.store.cas.put(&bytes);
    let digest = digest.map_err(|error| Failure::new(FailureKind::Io, error.to_string()))?;
    let mut outputs = Outputs::from([(name.to_owned(), digest)]);
    if step.kind == StepKind::Plan {
        // Of the heuristic's plans the pipeline decides.
        for name in [blob::STAGES, blob::PASSES] {
            outputs.insert(name, *inputs.get(name).ok_or_else(|| no_input(name))?);
        }
    }
    Ok(outputs)
}

/// The heuristic's plan for this block on its target, with the best schedules that searches found on this device.
fn plan(store: &Store, stages: &StageGraph, block: &BlockTarget, rules: &Rules) -> Plan {
    let device = (&*block.device, block.hybrid_softmax);
    let mut plan = search::plan(stages, (&block.name, &block.target), device, &rules.shaders);
    if !rules.best.contains_key(&(block.device.fingerprint(), block.threads)) {
        return plan;
    }
    for stage in stages.stages.iter().filter(|it| it.scheduled) {
        let signature = operation::signature(&operation::isolate(stages, stage));
        let scope = Scope::new((signature, &stage.op), On::of(block));
        if let Some(best) = (Ledger { store }).best(&scope) {
            plan.provenance.origins.insert(stage.name.clone(), format!("the best known: {}", best.origin));
            plan.stages.insert(stage.name.clone(), best.schedule);
        }
    }
    plan.shaders = templates::used(stages, &plan.stages, &block.device, &rules.shaders);
    plan
}

/// A plan that is found by measuring.
fn search(
    workspace: &Workspace<'_>,
    step: &Step,
    inputs: BTreeMap<String, Digest>,
    (seat, token): (&mut Seat<'_>, &Arc<Token>),
    told: &dyn Fn(&Progress<'_>),
) -> Result<Result<Outputs, Failure>, WorkerError> {
    let subject = step.subject.and_then(|it| Some((workspace.blocks.get(it)?, workspace.origins.get(it)?)));
    let Some(subject) = subject else {
        return Ok(Err(Failure::new(FailureKind::Internal, "a search is about no block")));
    };
    let cancelled = Arc::clone(token);
    let context = Context {
        store: workspace.store,
        toolchain: seat.toolchain(),
        leash: seat.leash(),
        token,
        cpu: workspace.cpu,
        rules: workspace.rules,
        cancelled: Arc::new(move || cancelled.is_revoked()),
    };
    let tuned = match tune::block::tune(&context, subject, inputs, told) {
        Ok(tuned) => tuned,
        Err(Stop::Worker(error)) => return Err(error),
        Err(Stop::Failed(failure)) => return Ok(Err(failure)),
        Err(Stop::Store(error)) => return Ok(Err(Failure::new(FailureKind::Io, error.to_string()))),
    };
    Ok(kept(workspace.store, &tuned))
}

fn kept(store: &Store, tuned: &Tuned) -> Result<Outputs, Failure> {
    let mut outputs = Outputs::default();
    for (name, bytes) in [(blob::PLAN, pretty(&tuned.plan)?), (blob::SEARCH, pretty(tuned)?)] {
        let digest = store.cas.put(&bytes).map_err(|error| Failure::new(FailureKind::Io, error.to_string()))?;
        outputs.insert(name, digest);
    }
    for name in [blob::STAGES, blob::PASSES] {
        outputs.insert(name, *tuned.ir.get(name).ok_or_else(|| no_input(name))?);
    }
    Ok(outputs)
}

fn report(
    workspace: &Workspace<'_>,
    step: &Step,
    block: &BlockTarget,
    inputs: &BTreeMap<String, Digest>,
) -> Result<BlockReport, Failure> {
    let store = workspace.store;
    let plan_digest = inputs.get(blob::PLAN).copied();
    let verdict = read::<Audit>(store, inputs, blob::AUDIT)?.verdict;
    let verdict =
        verdict.ok_or_else(|| Failure::new(FailureKind::Internal, "the audit of an accepted kernel has no verdict"))?;
    Ok(BlockReport::new(&report::Inputs {
        block: &block.name,
        target: &step.target,
        spec: &block.spec,
        device: &block.device,
        stages: &read(store, inputs, blob::STAGES)?,
        passes: &read::<Vec<PassReport>>(store, inputs, blob::PASSES)?,
        plan: &read(store, inputs, blob::PLAN)?,
        plan_digest: plan_digest.ok_or_else(|| no_input(blob::PLAN))?,
        verdict: &verdict,
        benchmark: &read(store, inputs, blob::BENCHMARK)?,
    }))
}

/// An input as the value it stands for.
fn read<T: DeserializeOwned>(store: &Store, inputs: &BTreeMap<String, Digest>, name: &str) -> Result<T, Failure> {
    let digest = inputs.get(name).ok_or_else(|| no_input(name))?;
    let bytes = store.cas.get(digest);
    let bytes = bytes.map_err(|error| Failure::new(FailureKind::MissingBlob, format!("input `{name}`: {error}")))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Failure::new(FailureKind::Internal, format!("input `{name}` is not what its name says: {error}"))
    })
}

fn no_input(name: &str) -> Failure {
    Failure::new(FailureKind::Internal, format!("the step has no input `{name}`"))
}

/// Indented and newline-ended: people open these files.
fn pretty(value: &impl serde::Serialize) -> Result<Vec<u8>, Failure> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
    Ok((text + "\n").into_bytes())
}
