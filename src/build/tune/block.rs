//! The search for the plan of a whole block: each of its operations once, whichever of its stages and fusions it is in; then the
//! plans that come of it, each with other fusions, measured whole; then all gates on the winner.

use super::{
    Progress, Stop,
    lab::{Bench, Raced, Work},
    ledger::{Best, Ledger, On, Scope, recipe_digest},
    operation::{Budget, Found, HEURISTIC, Search, Winner, best_of},
    pool::{self, Pool},
    proposers,
};
use crate::{
    build::{
        engine::{
            action::{limits, with_driver},
            worker::{Leash, Request, Token, Toolchain},
        },
        graph::{BlockTarget, Rules, StepKind},
        search::{self, propose::Problem, templates},
    },
    digest::Digest,
    host::CpuFacts,
    manifest::{
        Tuning,
        spec::{Origin, Pass},
    },
    plan::{
        Plan, operation,
        stage::{Stage, StageGraph},
    },
    protocol::{
        ActionKind, Blobs, Failure, FailureKind,
        audit::Audit,
        audit::Ruling,
        blob,
        tuning::{Measured, Refusal, TrialOutcome},
    },
    store::Store,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// Schedules of other devices that a search begins with.
const TRANSFERRED: usize = 8;

/// All that a search needs beside the block.
pub struct Context<'a> {
    pub store: &'a Store,
    pub toolchain: &'a Toolchain,
    pub leash: &'a Leash,
    /// Ends the search.
    pub token: &'a Token,
    pub cpu: &'a CpuFacts,
    pub rules: &'a Rules,
    /// Whether somebody wants the search to end: asked by what waits for a language model.
    pub cancelled: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// The plan that a search chose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tuned {
    pub plan: Plan,
    pub operations: Vec<Found>,
    /// The whole block's time as a share of what it takes with the heuristic's plan; 1 where that is the plan.
    pub relative: f64,
    /// Nanoseconds; `None` where nothing was measured whole, because no plan but the heuristic's was left.
    pub block_ns: Option<f64>,
    pub heuristic_ns: Option<f64>,
    /// Plans that the gates rejected, with what they say.
    pub rejected: Vec<String>,
    /// What `ir` would have made for the plan ([`blob::STAGES`], [`blob::PASSES`]).
    #[serde(skip)]
    pub ir: Blobs,
    /// Of the plan, by the gates of a build.
    #[serde(skip)]
    pub audit: Option<Digest>,
}

impl Tuned {
    /// Trials that were made now.
    pub fn new_trials(&self) -> usize {
        self.operations.iter().map(|it| it.new).sum()
    }
}

/// The block with some of its fusions.
struct Variant {
    without: Vec<Pass>,
    ir: Blobs,
    graph: StageGraph,
}

/// An operation of the block, and what was found.
struct Searched {
    signature: Digest,
    scope: Scope,
    winner: Winner,
}

/// Searches. `ir` is what the step of this name made of the block.
///
/// # Errors
/// When there is no worker, the store cannot be written, or the heuristic's own plan is refused.
pub fn tune(
    context: &Context<'_>,
    (block, origins): (&BlockTarget, &BTreeMap<String, Origin>),
    ir: Blobs,
    observe: &dyn Fn(&Progress<'_>),
) -> Result<Tuned, Stop> {
    pool::with((context.toolchain, context.leash), context.token, context.cpu.cores, |pool| {
        Tuner { context, block, origins, pool, ledger: Ledger { store: context.store }, observe }.run(ir)
    })
}

struct Tuner<'a> {
    context: &'a Context<'a>,
    block: &'a BlockTarget,
    origins: &'a BTreeMap<String, Origin>,
    pool: &'a Pool,
    ledger: Ledger<'a>,
    observe: &'a dyn Fn(&Progress<'_>),
}

impl Tuner<'_> {
    fn tuning(&self) -> &Tuning {
        &self.block.tuning
    }

    fn run(&self, ir: Blobs) -> Result<Tuned, Stop> {
        let until = self.tuning().time_ms.map(|it| Instant::now() + Duration::from_millis(it));
        let variants = self.variants(ir)?;
        let (operations, searched) = self.operations(&variants, until)?;
        let heuristic = self.plan(&variants[0], &|_| None);
        let mut plans: Vec<(Plan, &Variant)> = vec![(heuristic, &variants[0])];
        for variant in &variants {
            let plan = self.plan(variant, &|stage| winner(&searched, &variant.graph, stage));
            if !plans.iter().any(|it| it.0.stages == plan.stages && it.0.without == plan.without) {
                plans.push((plan, variant));
            }
        }
        let mut tuned = self.choose(plans)?;
        tuned.plan.provenance.trials =
            u32::try_from(operations.iter().map(|it| it.trials).sum::<usize>()).unwrap_or(u32::MAX);
        let mut remarks: Vec<String> = operations.iter().flat_map(|it| it.remarks.clone()).collect();
        remarks.dedup();
        tuned.plan.provenance.remarks = remarks;
        tuned.operations = operations;
        self.verify(&mut tuned, &searched)?;
        Ok(tuned)
    }

    /// As the pipeline says first; then, each with one fusion less, where that makes other stages.
    fn variants(&self, ir: Blobs) -> Result<Vec<Variant>, Stop> {
        let graph = self.read(&ir, blob::STAGES)?;
        let mut variants = vec![Variant { without: Vec::new(), ir, graph }];
        if !self.tuning().fusions || !self.tuning().strategy.searches() {
            return Ok(variants);
        }
        // The MLP is made of the products that the other fusion made: without it, both are.
        for without in [
            vec![Pass::FuseMlpBlock],
            vec![Pass::FuseMatmulActivation],
            vec![Pass::FuseMlpBlock, Pass::FuseMatmulActivation],
        ] {
            if !without.iter().all(|it| self.block.passes.contains(it)) {
                continue;
            }
            let ir = self.ir(&without)?;
            let graph: StageGraph = self.read(&ir, blob::STAGES)?;
            if !variants.iter().any(|it| it.graph.stages == graph.stages) {
                variants.push(Variant { without, ir, graph });
            }
        }
        Ok(variants)
    }

    fn ir(&self, without: &[Pass]) -> Result<Blobs, Stop> {
        let passes = self.block.passes.iter().filter(|it| !without.contains(it)).copied().collect();
        let (name, block, origins) = (self.block.name.clone(), self.block.spec.clone(), self.origins.clone());
        self.action(ActionKind::Ir { name, block, passes, origins }, Blobs::new(), StepKind::Ir)?.map_err(Stop::Failed)
    }

    /// One action of a step. The inner error is the action's.
    fn action(&self, kind: ActionKind, inputs: Blobs, like: StepKind) -> Result<Result<Blobs, Failure>, Stop> {
        let limits = with_driver(limits(like), &kind);
        Ok(self.pool.one(Request { kind, inputs, limits })?.map(|it| it.outputs))
    }

    fn read<T: DeserializeOwned>(&self, blobs: &Blobs, name: &str) -> Result<T, Stop> {
        let digest = blobs.get(name).ok_or_else(|| Stop::defect(format!("there is no `{name}`")))?;
        let bytes = self.context.store.cas.get(digest).map_err(Stop::unreadable)?;
        serde_json::from_slice(&bytes).map_err(|error| Stop::defect(format!("`{name}`: {error}")))
    }

    /// Searches every operation of all variants, those with most to compute first: what is left of the time is the others'.
    fn operations(&self, variants: &[Variant], until: Option<Instant>) -> Result<(Vec<Found>, Vec<Searched>), Stop> {
        let mut operations: Vec<(Digest, StageGraph, &Stage, usize)> = Vec::new();
        for variant in variants {
            for stage in variant.graph.stages.iter().filter(|it| it.scheduled) {
                let graph = operation::isolate(&variant.graph, stage);
                let signature = operation::signature(&graph);
                match operations.iter_mut().find(|it| it.0 == signature) {
                    // Stages of the pipeline's own variant are counted.
                    Some(known) if variant.without.is_empty() => known.3 += 1,
                    Some(_) => {}
                    None => operations.push((signature, graph, stage, 1)),
                }
            }
        }
        operations.sort_by_key(|it| std::cmp::Reverse(it.1.flops()));
        let (count, mut found, mut searched) = (operations.len(), Vec::new(), Vec::new());
        for (index, (signature, graph, stage, stages)) in operations.into_iter().enumerate() {
            let share = u32::try_from(count - index).unwrap_or(1);
            let until = until.map(|it| Instant::now() + it.saturating_duration_since(Instant::now()) / share);
            let scope = Scope::new((signature, &stage.op), On::of(self.block));
            let one = self.operation((&scope, graph), &stage.name, (index + 1, count), until)?;
            searched.push(Searched { signature, scope, winner: one.winner.clone() });
            found.push(Found { stages, ..one });
        }
        Ok((found, searched))
    }

    fn operation(
        &self,
        (scope, graph): (&Scope, StageGraph),
        stage: &str,
        number: (usize, usize),
        until: Option<Instant>,
    ) -> Result<Found, Stop> {
        let BlockTarget { device, threads, hybrid_softmax, tuning, .. } = self.block;
        let bench = self.bench(&graph);
        let operation = bench.operation(graph)?;
        let heuristic = search::heuristics(&operation.graph, (device, *hybrid_softmax)).remove(operation::NAME);
        let problem = Problem {
            operation: operation.graph.clone(),
            device: (**device).clone(),
            threads: *threads,
            hybrid_softmax: *hybrid_softmax,
            heuristic: heuristic.ok_or_else(|| Stop::defect("the heuristic proposes nothing".to_owned()))?,
            seeds: self.ledger.transferred(scope, TRANSFERRED),
            seed: tuning.seed,
            shaders: self.context.rules.shaders.clone(),
        };
        let mut proposer = proposers::proposer(tuning, &problem, self.context)?;
        let budget = Budget { trials: tuning.trials, until };
        let (ledger, observe) = (self.ledger, self.observe);
        let search =
            Search { bench: &bench, ledger, scope, operation: &operation, problem: &problem, stage, number, observe };
        search.run(&mut *proposer, budget)
    }

    fn bench<'b>(&'b self, graph: &StageGraph) -> Bench<'b> {
        Bench {
            store: self.context.store,
            pool: self.pool,
            device: &self.block.device,
            threads: self.block.threads,
            seed: self.context.rules.seed,
            shaders: &self.context.rules.shaders,
            work: Work::of(graph, &self.block.device),
        }
    }

    /// The plan of a variant with the heuristic's schedules, but for those stages that something better was found for.
    fn plan(&self, variant: &Variant, better: &dyn Fn(&Stage) -> Option<Winner>) -> Plan {
        let BlockTarget { name, target, device, hybrid_softmax, .. } = self.block;
        let mut stages = search::heuristics(&variant.graph, (device, *hybrid_softmax));
        let mut plan =
            search::plan(&variant.graph, (name, target), (device, *hybrid_softmax), &self.context.rules.shaders);
        plan.provenance.strategy = self.tuning().strategy.name().to_owned();
        plan.without.clone_from(&variant.without);
        for stage in &variant.graph.stages {
            if let Some(winner) = better(stage).filter(|it| it.origin != HEURISTIC) {
                stages.insert(stage.name.clone(), winner.schedule);
                plan.provenance.origins.insert(stage.name.clone(), winner.origin);
            }
        }
        plan.shaders = templates::used(&variant.graph, &stages, device, &self.context.rules.shaders);
        plan.stages = stages;
        plan
    }

    /// Measures the plans whole; the first, the heuristic's, stays where none is better by more than the noise.
    fn choose(&self, plans: Vec<(Plan, &Variant)>) -> Result<Tuned, Stop> {
        let tuned = |plan: &Plan, variant: &Variant| Tuned {
            plan: plan.clone(),
            operations: Vec::new(),
            relative: 1.0,
            block_ns: None,
            heuristic_ns: None,
            rejected: Vec::new(),
            ir: variant.ir.clone(),
            audit: None,
        };
        let (first, others) = plans.split_first().ok_or_else(|| Stop::defect("no plan".to_owned()))?;
        if others.is_empty() {
            return Ok(tuned(&first.0, first.1));
        }
        let texts = plans.iter().map(|it| serde_json::to_string(&(&it.0.stages, &it.0.without)).unwrap_or_default());
        let compared = Digest::of(texts.collect::<Vec<_>>().join("\n").as_bytes());
        let signature = operation::signature(&first.1.graph);
        let whole = serde_json::json!({ "op": "block", "name": self.block.name });
        let scope = Scope::new((signature, &whole), On::of(self.block));
        let chosen: Chosen = match self.ledger.choice(&scope, &compared) {
            Some(chosen) => chosen,
            None => {
                let chosen = self.race(&plans)?;
                self.ledger.record_choice(&scope, &compared, &chosen)?;
                chosen
            }
        };
        let (plan, variant) = plans.get(chosen.plan).unwrap_or(first);
        Ok(Tuned {
            relative: chosen.relative,
            block_ns: Some(chosen.block_ns),
            heuristic_ns: Some(chosen.heuristic_ns),
            ..tuned(plan, variant)
        })
    }

    fn race(&self, plans: &[(Plan, &Variant)]) -> Result<Chosen, Stop> {
        (self.observe)(&Progress {
            what: "the whole block",
            operation: (1, 1),
            trials: (0, plans.len()),
            new: 0,
            best: 1.0,
            seconds: 0.0,
        });
        let bench = self.bench(&plans[0].1.graph);
        let mut compiled: Vec<(usize, Blobs)> = Vec::new();
        for (index, (plan, variant)) in plans.iter().enumerate() {
            match self.compile(plan, variant)? {
                Ok(blobs) => compiled.push((index, blobs)),
                Err(failure) if index == 0 => return Err(Stop::Failed(failure)),
                Err(_) => {} // not a plan to choose
            }
        }
        let (_, reference) = compiled.first().ok_or_else(|| Stop::defect("no plan was compiled".to_owned()))?;
        let measured = |raced: &Raced| match &raced.reference {
            Some(TrialOutcome::Measured(it)) => Ok(it.clone()),
            _ => Err(Stop::defect("the heuristic's plan was not measured".to_owned())),
        };
        let first: Measured = measured(&bench.race(reference, &[], (0.0, false))?)?;
        let others: Vec<&Blobs> = compiled.iter().skip(1).map(|it| &it.1).collect();
        let raced = bench.race(reference, &others, (first.timing.median_ns * 2.0, false))?;
        let heuristic_ns = raced.reference.as_ref().map_or(first.timing.median_ns, |it| match it {
            TrialOutcome::Measured(it) => it.timing.median_ns,
            TrialOutcome::Rejected(_) => first.timing.median_ns,
        });
        let stays = Chosen { plan: 0, relative: 1.0, block_ns: heuristic_ns, heuristic_ns };
        let indices = compiled.iter().skip(1).map(|it| it.0);
        let best = best_of(indices.zip(raced.outcomes), (1.0, 0.0));
        Ok(best.map_or(stays, |(plan, it)| Chosen {
            plan,
            relative: it.relative,
            block_ns: it.timing.median_ns,
            heuristic_ns,
        }))
    }

    fn compile(&self, plan: &Plan, variant: &Variant) -> Result<Result<Blobs, Failure>, Stop> {
        let shaders = templates::of_plan(plan, &self.context.rules.shaders).map_err(|it| Stop::Failed(it.into()))?;
        let stages = variant.ir.get(blob::STAGES).ok_or_else(|| Stop::defect("no stages".to_owned()))?;
        self.compile_stages(plan, *stages, shaders)
    }

    fn compile_stages(
        &self,
        plan: &Plan,
        stages: Digest,
        shaders: BTreeMap<String, String>,
    ) -> Result<Result<Blobs, Failure>, Stop> {
        let bytes = serde_json::to_vec(plan).map_err(|error| Stop::defect(error.to_string()))?;
        let plan = self.context.store.cas.put(&bytes)?;
        let inputs = Blobs::from([(blob::STAGES.to_owned(), stages), (blob::PLAN.to_owned(), plan)]);
        let kind = ActionKind::Compile { device: (*self.block.device).clone(), shaders };
        Ok(self.action(kind, inputs, StepKind::Compile)?.map(|mut outputs| {
            outputs.insert(blob::PLAN.to_owned(), plan);
            outputs
        }))
    }

    /// All gates on the plan. Where they reject it, the schedule of the stage at fault is never tried again and the heuristic's takes
    /// its place, until a plan is accepted; the heuristic's own plan is what the steps behind this one judge.
    fn verify(&self, tuned: &mut Tuned, searched: &[Searched]) -> Result<(), Stop> {
        while !tuned.plan.provenance.origins.is_empty() || !tuned.plan.without.is_empty() {
            let graph: StageGraph = self.read(&tuned.ir, blob::STAGES)?;
            let failure = match self.judge(tuned)? {
                Ok(audit) => {
                    tuned.audit = Some(audit);
                    return self.keep(tuned, &graph, searched, audit);
                }
                Err(failure) => failure,
            };
            tuned.rejected.push(failure.message.clone());
            let at_fault = failure.stage.as_ref().filter(|it| tuned.plan.provenance.origins.contains_key(*it));
            match at_fault.and_then(|it| graph.stage(it)) {
                Some(stage) => self.replace(tuned, &graph, stage, searched, &failure)?,
                None => {
                    // Nobody knows which stage it was.
                    let (plan, ir) = (&mut tuned.plan, self.ir(&[])?);
                    let graph: StageGraph = self.read(&ir, blob::STAGES)?;
                    let variant = Variant { without: Vec::new(), ir, graph };
                    let provenance = plan.provenance.clone();
                    *plan = self.plan(&variant, &|_| None);
                    plan.provenance = crate::plan::Provenance { origins: BTreeMap::new(), ..provenance };
                    tuned.ir = variant.ir;
                }
            }
            (tuned.relative, tuned.block_ns) = (1.0, None);
        }
        Ok(())
    }

    fn replace(
        &self,
        tuned: &mut Tuned,
        graph: &StageGraph,
        stage: &Stage,
        searched: &[Searched],
        failure: &Failure,
    ) -> Result<(), Stop> {
        let signature = operation::signature(&operation::isolate(graph, stage));
        if let (Some(it), Some(schedule)) =
            (searched.iter().find(|it| it.signature == signature), tuned.plan.stages.get(&stage.name))
        {
            let refusal = Refusal { kind: failure.kind, gate: failure.gate, message: failure.message.clone() };
            self.ledger.refute(&it.scope, schedule, &tuned.plan.shaders, refusal)?;
        }
        let BlockTarget { device, hybrid_softmax, .. } = self.block;
        let heuristic = search::heuristics(graph, (device, *hybrid_softmax));
        // Equal stages have equal schedules, all of which are at fault.
        for other in &graph.stages {
            if operation::signature(&operation::isolate(graph, other)) == signature
                && let Some(schedule) = heuristic.get(&other.name)
            {
                tuned.plan.stages.insert(other.name.clone(), schedule.clone());
                tuned.plan.provenance.origins.remove(&other.name);
            }
        }
        tuned.plan.shaders = templates::used(graph, &tuned.plan.stages, device, &self.context.rules.shaders);
        Ok(())
    }

    /// The audit of a plan that is accepted; else why it is not.
    fn judge(&self, tuned: &Tuned) -> Result<Result<Digest, Failure>, Stop> {
        let (plan, stages) = (&tuned.plan, tuned.ir.get(blob::STAGES));
        let shaders = templates::of_plan(plan, &self.context.rules.shaders).map_err(|it| Stop::Failed(it.into()))?;
        let stages = stages.ok_or_else(|| Stop::defect("no stages".to_owned()))?;
        let inputs = match self.compile_stages(plan, *stages, shaders)? {
            Ok(outputs) => outputs,
            Err(failure) => return self.refused(failure),
        };
        let BlockTarget { spec, device, threads, .. } = self.block;
        let (block, device, threads) = (spec.clone(), (**device).clone(), *threads);
        let (seed, corpus) = (self.context.rules.seed, self.context.rules.corpus.clone());
        let verify = ActionKind::Verify { block, device, threads, seed, corpus };
        match self.action(verify, inputs, StepKind::Verify)? {
            Ok(outputs) => {
                let audit: Audit = self.read(&outputs, blob::AUDIT)?;
                match (audit.ruling, outputs.get(blob::AUDIT)) {
                    (Ruling::Accepted, Some(digest)) => Ok(Ok(*digest)),
                    _ => Err(Stop::defect("a verification ended without a ruling".to_owned())),
                }
            }
            Err(failure) => self.refused(failure),
        }
    }

    /// A failure that is the plan's; others end the search.
    fn refused(&self, failure: Failure) -> Result<Result<Digest, Failure>, Stop> {
        match failure.kind {
            FailureKind::Cancelled | FailureKind::Io | FailureKind::MissingBlob | FailureKind::DeviceUnavailable => {
                Err(Stop::Failed(failure))
            }
            _ => Ok(Err(failure)),
        }
    }

    /// What was accepted is the best known of its operation, where nothing better is.
    fn keep(&self, tuned: &Tuned, graph: &StageGraph, searched: &[Searched], audit: Digest) -> Result<(), Stop> {
        for stage in &graph.stages {
            let signature = operation::signature(&operation::isolate(graph, stage));
            let Some(it) = searched.iter().find(|it| it.signature == signature) else { continue };
            if tuned.plan.provenance.origins.contains_key(&stage.name) {
                let Winner { schedule, relative, median_ns, origin, .. } = it.winner.clone();
                let (block, recipes) = (self.block.name.clone(), recipe_digest());
                self.ledger.record_best(
                    &it.scope,
                    &Best { schedule, relative, median_ns, origin, block, recipes },
                    audit,
                )?;
            }
        }
        Ok(())
    }
}

/// Which of the plans was best.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Chosen {
    plan: usize,
    relative: f64,
    block_ns: f64,
    heuristic_ns: f64,
}

fn winner(searched: &[Searched], graph: &StageGraph, stage: &Stage) -> Option<Winner> {
    let signature = operation::signature(&operation::isolate(graph, stage));
    searched.iter().find(|it| it.signature == signature).map(|it| it.winner.clone())
}
