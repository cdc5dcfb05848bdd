//! The search for the plan of a whole block: each of its operations once, whichever of its stages and fusions it is in; then the
//! plans that come of it, each with other fusions, measured whole; then all gates on the winner.

use super::{
    Progress, Stop,
    lab::{self, Bench, Work},
    ledger::{Ledger, On, Scope},
    operation::{Budget, FINAL_RUNS, Found, HEURISTIC, Search, Winner, best_of},
    pool::{self, Pool},
    proposers, restrict, time,
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
        ActionKind, Blobs, Failure, blob,
        tuning::{Measured, TrialOutcome},
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

/// A block without one of its fusions, and with heuristic schedules, that takes more than this share of the fastest one's time is not
/// searched: the searches so far found up to 9 % in an operation.
const STILL_WORTHWHILE: f64 = 1.1;

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
pub(super) struct Variant {
    pub(super) without: Vec<Pass>,
    pub(super) ir: Blobs,
    pub(super) graph: StageGraph,
}

/// An operation of the block, before it is searched.
struct Prepared<'a> {
    scope: Scope,
    bench: Bench<'a>,
    operation: lab::Operation,
    problem: Problem,
    /// One that is this operation, and how many are.
    stage: &'a str,
    stages: usize,
}

/// An operation of the block, and what was found.
pub(super) struct Searched {
    pub(super) signature: Digest,
    pub(super) scope: Scope,
    pub(super) winner: Winner,
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

pub(super) struct Tuner<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) block: &'a BlockTarget,
    origins: &'a BTreeMap<String, Origin>,
    pool: &'a Pool,
    pub(super) ledger: Ledger<'a>,
    observe: &'a dyn Fn(&Progress<'_>),
}

impl Tuner<'_> {
    fn tuning(&self) -> &Tuning {
        &self.block.tuning
    }

    fn run(&self, ir: Blobs) -> Result<Tuned, Stop> {
        let until = self.tuning().time_ms.map(|it| Instant::now() + Duration::from_millis(it));
        let variants = self.worthwhile(restrict::possible(self.variants(ir)?, self.block)?)?;
        let (operations, searched) = self.operations(&variants, until)?;
        let mut plans = vec![(self.heuristics(&variants[0]), &variants[0])];
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

    pub(super) fn heuristics(&self, variant: &Variant) -> Plan {
        self.plan(variant, &|_| None)
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

    /// Those whose operations are worth searching: the pipeline's own, and what the heuristic's plans of are not much slower than
    /// the fastest.
    fn worthwhile(&self, variants: Vec<Variant>) -> Result<Vec<Variant>, Stop> {
        if variants.len() < 2 {
            return Ok(variants);
        }
        let plans: Vec<(Plan, &Variant)> = variants.iter().map(|it| (self.heuristics(it), it)).collect();
        let (scope, compared) = self.comparison(&plans, "fusions");
        let relative: Vec<Option<f64>> = match self.ledger.choice(&scope, &compared) {
            Some(known) => known,
            None => {
                let measured = self.race(&plans)?.into_iter();
                let relative = measured.map(|it| it.map(|it| it.relative)).collect();
                self.ledger.record_choice(&scope, &compared, &relative)?;
                relative
            }
        };
        let best = relative.iter().flatten().copied().fold(1.0, f64::min);
        // Where the time is limited, operations of other forms of the block take it from those of the best one.
        let most = if self.tuning().time_ms.is_some() { best } else { best * STILL_WORTHWHILE };
        let keep = |index: usize| index == 0 || relative.get(index).copied().flatten().is_some_and(|it| it <= most);
        Ok(variants.into_iter().enumerate().filter(|it| keep(it.0)).map(|it| it.1).collect())
    }

    pub(super) fn ir(&self, without: &[Pass]) -> Result<Blobs, Stop> {
        let passes = self.block.passes.iter().filter(|it| !without.contains(it)).copied().collect();
        let (name, block, origins) = (self.block.name.clone(), self.block.spec.clone(), self.origins.clone());
        let ir = ActionKind::Ir { name, block, passes, origins };
        self.action(request(ir, Blobs::new(), StepKind::Ir))?.map_err(Stop::Failed)
    }

    /// One action of a step. The inner error is the action's.
    pub(super) fn action(&self, request: Request) -> Result<Result<Blobs, Failure>, Stop> {
        Ok(self.pool.one(request)?.map(|it| it.outputs))
    }

    pub(super) fn read<T: DeserializeOwned>(&self, blobs: &Blobs, name: &str) -> Result<T, Stop> {
        let digest = blobs.get(name).ok_or_else(|| Stop::defect(format!("there is no `{name}`")))?;
        let bytes = self.context.store.cas.get(digest).map_err(Stop::unreadable)?;
        serde_json::from_slice(&bytes).map_err(|error| Stop::defect(format!("`{name}`: {error}")))
    }

    /// Searches every operation of all variants, those first that have most to gain. Where the time is limited, each has the more
    /// of it the more that is.
    fn operations(&self, variants: &[Variant], until: Option<Instant>) -> Result<(Vec<Found>, Vec<Searched>), Stop> {
        let mut prepared: Vec<Prepared<'_>> = Vec::new();
        for variant in variants {
            for stage in variant.graph.stages.iter().filter(|it| it.scheduled) {
                let graph = operation::isolate(&variant.graph, stage);
                let signature = operation::signature(&graph);
                match prepared.iter_mut().find(|it| it.scope.signature == signature) {
                    // Stages of the pipeline's own variant are counted.
                    Some(known) if variant.without.is_empty() => known.stages += 1,
                    Some(_) => {}
                    None => prepared.push(self.prepare(signature, graph, stage)?),
                }
            }
        }
        prepared.sort_by_key(|it| std::cmp::Reverse(it.operation.graph.flops()));
        let count = prepared.len();
        let mut begun = Vec::with_capacity(count);
        for (index, it) in prepared.iter().enumerate() {
            let begins = self.search(it, (index + 1, count)).begin()?;
            begun.push((begins.gain() * it.stages as f64, it, begins));
        }
        begun.sort_by(|a, b| b.0.total_cmp(&a.0));
        let gains: Vec<f64> = begun.iter().map(|it| it.0).collect();
        let until = until.map(|it| {
            let now = Instant::now();
            now + time::of_operations(it.saturating_duration_since(now))
        });
        let (mut found, mut searched) = (Vec::new(), Vec::new());
        for (index, (_, prepared, begun)) in begun.into_iter().enumerate() {
            let until = until.map(|it| {
                let now = Instant::now();
                now + time::of_first(it.saturating_duration_since(now), &gains[index..])
            });
            let budget = Budget { trials: self.tuning().trials, until };
            let mut proposer = proposers::proposer(self.tuning(), &prepared.problem, self.context)?;
            let one = self.search(prepared, (index + 1, count)).finish(begun, &mut *proposer, budget)?;
            let scope = prepared.scope.clone();
            searched.push(Searched { signature: scope.signature, scope, winner: one.winner.clone() });
            found.push(Found { stages: prepared.stages, ..one });
        }
        Ok((found, searched))
    }

    fn prepare<'s>(&'s self, signature: Digest, graph: StageGraph, stage: &'s Stage) -> Result<Prepared<'s>, Stop> {
        let BlockTarget { device, threads, hybrid_softmax, tuning, .. } = self.block;
        let scope = Scope::new((signature, &stage.op), On::of(self.block));
        let bench = self.bench(&graph);
        let operation = bench.operation(graph)?;
        let heuristic = search::heuristics(&operation.graph, (device, *hybrid_softmax)).remove(operation::NAME);
        let problem = Problem {
            operation: operation.graph.clone(),
            device: (**device).clone(),
            threads: *threads,
            hybrid_softmax: *hybrid_softmax,
            heuristic: heuristic.ok_or_else(|| Stop::defect("the heuristic proposes nothing".to_owned()))?,
            seeds: self.ledger.transferred(&scope, TRANSFERRED),
            only: tuning.knobs.clone(),
            seed: tuning.seed,
            shaders: self.context.rules.shaders.clone(),
        };
        Ok(Prepared { scope, bench, operation, problem, stage: &stage.name, stages: 1 })
    }

    fn search<'s>(&'s self, it: &'s Prepared<'s>, number: (usize, usize)) -> Search<'s> {
        let Prepared { scope, bench, operation, problem, stage, .. } = it;
        Search { bench, ledger: self.ledger, scope, operation, problem, stage, number, observe: self.observe }
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
    pub(super) fn plan(&self, variant: &Variant, better: &dyn Fn(&Stage) -> Option<Winner>) -> Plan {
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
        let (scope, compared) = self.comparison(&plans, "plans");
        let chosen: Chosen = match self.ledger.choice(&scope, &compared) {
            Some(chosen) => chosen,
            None => {
                let chosen = best_plan(self.race(&plans)?)?;
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

    /// Under what a comparison of these plans is kept.
    fn comparison(&self, plans: &[(Plan, &Variant)], what: &str) -> (Scope, Digest) {
        let texts = plans.iter().map(|it| serde_json::to_string(&(&it.0.stages, &it.0.without)).unwrap_or_default());
        let compared = Digest::of([what.to_owned()].into_iter().chain(texts).collect::<Vec<_>>().join("\n").as_bytes());
        let whole = serde_json::json!({ "op": "block", "name": self.block.name });
        let signature = plans.first().map(|it| operation::signature(&it.1.graph)).unwrap_or(compared);
        (Scope::new((signature, &whole), On::of(self.block)), compared)
    }

    /// Measures the plans whole, against the first. `None`: it is no plan to choose.
    fn race(&self, plans: &[(Plan, &Variant)]) -> Result<Vec<Option<Measured>>, Stop> {
        (self.observe)(&Progress {
            what: "the whole block",
            operation: (1, 1),
            trials: (0, plans.len()),
            new: 0,
            best: 1.0,
            seconds: 0.0,
        });
        let mut compiled: Vec<(usize, Blobs)> = Vec::new();
        for (index, done) in self.compile(plans)?.into_iter().enumerate() {
            match done {
                Ok(blobs) => compiled.push((index, blobs)),
                Err(failure) if index == 0 => return Err(Stop::Failed(failure)),
                Err(_) => {}
            }
        }
        let no_plan = || Stop::defect("no plan was compiled".to_owned());
        let (_, reference) = compiled.first().ok_or_else(no_plan)?;
        let bench = self.bench(&plans.first().ok_or_else(no_plan)?.1.graph);
        let measured = |outcome: TrialOutcome| match outcome {
            TrialOutcome::Measured(it) => Some(it),
            TrialOutcome::Rejected(_) => None,
        };
        let others: Vec<&Blobs> = compiled.iter().skip(1).map(|it| &it.1).collect();
        let raced = bench.race(reference, &others, (FINAL_RUNS, false))?;
        let mut all: Vec<Option<Measured>> = plans.iter().map(|_| None).collect();
        // Where one plan ended the race for all, each ran alone with the first.
        all[0] = match raced.reference {
            Some(it) => measured(it),
            None => bench.race(reference, &[], (FINAL_RUNS, false))?.reference.and_then(measured),
        };
        for ((index, _), outcome) in compiled.iter().skip(1).zip(raced.outcomes) {
            all[*index] = measured(outcome);
        }
        Ok(all)
    }

    /// Compiles these, side by side; each inner error is that plan's own.
    fn compile(&self, plans: &[(Plan, &Variant)]) -> Result<Vec<Result<Blobs, Failure>>, Stop> {
        let requests = plans.iter().map(|(plan, variant)| {
            let stages = variant.ir.get(blob::STAGES).ok_or_else(|| Stop::defect("no stages".to_owned()))?;
            self.compile_request(plan, *stages)
        });
        let requests = requests.collect::<Result<Vec<_>, Stop>>()?;
        let plans: Vec<Option<Digest>> = requests.iter().map(|it| it.inputs.get(blob::PLAN).copied()).collect();
        let replies = self.pool.all(requests).into_iter().zip(plans);
        replies.map(|(reply, plan)| Ok(reply?.map(|done| with_plan(done.outputs, plan)))).collect()
    }

    pub(super) fn compile_request(&self, plan: &Plan, stages: Digest) -> Result<Request, Stop> {
        let shaders = templates::of_plan(plan, &self.context.rules.shaders).map_err(|it| Stop::Failed(it.into()))?;
        let bytes = serde_json::to_vec(plan).map_err(|error| Stop::defect(error.to_string()))?;
        let plan = self.context.store.cas.put(&bytes)?;
        let inputs = Blobs::from([(blob::STAGES.to_owned(), stages), (blob::PLAN.to_owned(), plan)]);
        Ok(request(ActionKind::Compile { device: (*self.block.device).clone(), shaders }, inputs, StepKind::Compile))
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

/// Who of the measured plans is best; the first, the heuristic's, stays where none is better by more than the noise.
fn best_plan(measured: Vec<Option<Measured>>) -> Result<Chosen, Stop> {
    let mut measured = measured.into_iter().enumerate();
    let heuristic = measured.next().and_then(|it| it.1);
    let heuristic = heuristic.ok_or_else(|| Stop::defect("the heuristic's plan was not measured".to_owned()))?;
    let heuristic_ns = heuristic.timing.median_ns;
    let others = measured.filter_map(|(index, it)| Some((index, TrialOutcome::Measured(it?))));
    Ok(best_of(others, (1.0, 0.0)).map_or(
        Chosen { plan: 0, relative: 1.0, block_ns: heuristic_ns, heuristic_ns },
        |(plan, it)| Chosen { plan, relative: it.relative, block_ns: it.timing.median_ns, heuristic_ns },
    ))
}

/// An action with the limits of a step.
pub(super) fn request(kind: ActionKind, inputs: Blobs, like: StepKind) -> Request {
    let limits = with_driver(limits(like), &kind);
    Request { kind, inputs, limits }
}

/// What a compilation returns and the plan that it compiled, which is what other actions need.
pub(super) fn with_plan(mut outputs: Blobs, plan: Option<Digest>) -> Blobs {
    outputs.extend(plan.map(|it| (blob::PLAN.to_owned(), it)));
    outputs
}

fn winner(searched: &[Searched], graph: &StageGraph, stage: &Stage) -> Option<Winner> {
    let signature = operation::signature(&operation::isolate(graph, stage));
    searched.iter().find(|it| it.signature == signature).map(|it| it.winner.clone())
}
