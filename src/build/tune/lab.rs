//! Where candidates are compiled, checked and raced: the search's side of the actions `try` and `race`.

use super::{Stop, pool::Pool};
use crate::{
    build::{
        engine::{
            action::{limits, with_driver},
            worker::Request,
        },
        graph::StepKind,
        search::templates,
    },
    digest::Digest,
    host::Device,
    plan::{
        PLAN_VERSION, Plan, Provenance, operation,
        schedule::Schedule,
        stage::{Role, StageGraph},
    },
    protocol::{
        ActionKind, Blobs, Ceilings, Failure, FailureKind, Gate, blob,
        tuning::{Entrant, Measured, Race, Refusal, TrialOutcome, Variant, entrant_kernel, entrant_object},
    },
    store::Store,
};
use std::collections::BTreeMap;

/// A canary that moves by more than this between begin and end says that the machine was another one meanwhile. Only the one of what
/// bounds the operation counts: on a virtual machine, whose memory others use, reading drifted by more in 10 of 18 races of a product
/// whose operands stay in caches, arithmetic in 5.
const MOST_DRIFT: f64 = 0.03;
/// How often a race is run before the steadiest is taken: on a machine that others use none might pass.
const RACES: usize = 2;
/// What a candidate that hangs costs. The slowest that ended in the lab, 4096 rows of a fused MLP, took 9 s beside other load.
const TRY_MS: u64 = 60_000;

/// One operation on one device, with all that trying a schedule of it needs.
pub struct Bench<'a> {
    pub store: &'a Store,
    pub pool: &'a Pool,
    pub device: &'a Device,
    pub threads: usize,
    /// Of the inputs that are tried.
    pub seed: u64,
    /// The project's own templates, by file name.
    pub shaders: &'a BTreeMap<String, String>,
    /// What must be computed at least, and moved where no cache holds it.
    pub work: Work,
}

/// What no schedule can do without.
#[derive(Debug, Clone, Copy, Default)]
pub struct Work {
    pub flops: u64,
    /// That come from memory in every run; 0 where a cache may hold them.
    pub bytes: u64,
}

impl Work {
    /// Of all stages of `graph` together. Operands that fit into half of the last cache may be there from the run before; of GPUs
    /// the drivers do not tell how large that is, so that for them only arithmetic counts.
    pub fn of(graph: &StageGraph, device: &Device) -> Self {
        let bytes = graph.tensors.iter().filter(|it| it.role != Role::Value).map(|it| it.bytes() as u64).sum();
        let from_memory = match device {
            Device::Cpu(cpu) => bytes > (cpu.l3.max(cpu.l2) / 2) as u64,
            Device::Gpu(_) => false,
        };
        Self { flops: graph.flops(), bytes: if from_memory { bytes } else { 0 } }
    }

    /// Nanoseconds that its arithmetic and its bytes take at these rates.
    fn ns(self, ceilings: &Ceilings) -> [f64; 2] {
        let share = |amount: u64, rate: f64| if rate > 0.0 { amount as f64 / rate } else { 0.0 };
        [share(self.flops, ceilings.gflops), share(self.bytes, ceilings.gigabytes_per_s)]
    }

    /// Whether the bytes take longer.
    fn is_by_memory(self, ceilings: &Ceilings) -> bool {
        let [arithmetic, memory] = self.ns(ceilings);
        memory > arithmetic
    }
}

/// An operation, as the worker is given it.
pub struct Operation {
    pub graph: StageGraph,
    /// Of the blob.
    stages: Digest,
}

/// How a race ended.
#[derive(Debug, Default)]
pub struct Raced {
    /// Where all ran together.
    pub reference: Option<TrialOutcome>,
    /// Of those raced against it, in order.
    pub outcomes: Vec<TrialOutcome>,
    /// The hand-written kernels, where they were asked for.
    pub variants: Vec<Variant>,
}

/// The failures of compiling, checking or measuring that are the candidate's own fault.
fn is_refusal(kind: FailureKind) -> bool {
    use FailureKind as K;
    matches!(
        kind,
        K::IllegalPlan
            | K::Codegen
            | K::NumericMismatch
            | K::Memory
            | K::Implausible
            | K::Timeout
            | K::OutOfMemory
            | K::Crash
    )
}

/// The failure as a reason not to try the schedule again, where it is one.
fn refusal(failure: Failure) -> Result<Refusal, Stop> {
    if !is_refusal(failure.kind) {
        return Err(Stop::Failed(failure));
    }
    let legality = (failure.kind == FailureKind::IllegalPlan).then_some(Gate::V0Legality);
    Ok(Refusal { kind: failure.kind, gate: failure.gate.or(legality), message: failure.message })
}

impl Bench<'_> {
    /// By the better of the canaries.
    fn floor_ns(&self, race: &Race) -> f64 {
        race.canaries.iter().map(|it| self.work.ns(it).into_iter().fold(0.0, f64::max)).fold(f64::INFINITY, f64::min)
    }

    pub fn operation(&self, graph: StageGraph) -> Result<Operation, Stop> {
        let bytes = serde_json::to_vec(&graph).map_err(|error| Stop::defect(error.to_string()))?;
        Ok(Operation { stages: self.store.cas.put(&bytes)?, graph })
    }

    /// The digests of the project's own templates that a schedule of the operation is rendered from.
    pub fn own_templates(&self, operation: &Operation, schedule: &Schedule) -> BTreeMap<String, Digest> {
        let stages = BTreeMap::from([(operation::NAME.to_owned(), schedule.clone())]);
        templates::used(&operation.graph, &stages, self.device, self.shaders)
    }

    /// Compiles these and puts them through the gates that cost little.
    pub fn try_all(&self, operation: &Operation, schedules: &[&Schedule]) -> Result<Vec<Result<Blobs, Refusal>>, Stop> {
        let requests = schedules.iter().map(|it| self.try_request(operation, it)).collect::<Result<Vec<_>, Stop>>()?;
        let replies = self.pool.all(requests).into_iter();
        replies.map(|reply| reply?.map_or_else(|it| refusal(it).map(Err), |done| Ok(Ok(done.outputs)))).collect()
    }

    fn try_request(&self, operation: &Operation, schedule: &Schedule) -> Result<Request, Stop> {
        let plan = Plan {
            version: PLAN_VERSION,
            block: operation::NAME.to_owned(),
            target: operation::NAME.to_owned(),
            provenance: Provenance::new("trial"),
            without: Vec::new(),
            stages: BTreeMap::from([(operation::NAME.to_owned(), schedule.clone())]),
            shaders: self.own_templates(operation, schedule),
        };
        let shaders = templates::of_plan(&plan, self.shaders).map_err(|it| Stop::Failed(it.into()))?;
        let bytes = serde_json::to_vec(&plan).map_err(|error| Stop::defect(error.to_string()))?;
        let (stages, plan) = (operation.stages, self.store.cas.put(&bytes)?);
        let inputs = BTreeMap::from([(blob::STAGES.to_owned(), stages), (blob::PLAN.to_owned(), plan)]);
        let kind = ActionKind::Try { device: self.device.clone(), threads: self.threads, seed: self.seed, shaders };
        let limits = with_driver(limits(StepKind::Verify), &kind);
        let limits = crate::protocol::Limits { wall_ms: TRY_MS, ..limits };
        Ok(Request { kind, inputs, limits })
    }

    /// Races `others` against `reference`, each for as long as so many runs of that one take. An entrant that ends the race for all
    /// is found by racing each alone. The outcomes of the others, and of all the race itself where there was one.
    pub fn race(&self, reference: &Blobs, others: &[&Blobs], (runs, variants): (u32, bool)) -> Result<Raced, Stop> {
        let mut steadiest: Option<(f64, Race)> = None;
        for _ in 0..RACES {
            let race = match self.race_once(reference, others, runs, variants)? {
                Ok(race) => race,
                Err(failure) if others.len() <= 1 => {
                    let refusal = refusal(failure)?;
                    if others.is_empty() {
                        return Err(Stop::Failed(Failure::new(refusal.kind, refusal.message)));
                    }
                    return Ok(Raced { outcomes: vec![TrialOutcome::Rejected(refusal)], ..Raced::default() });
                }
                Err(failure) => {
                    refusal(failure)?;
                    let mut raced = Raced::default();
                    for other in others {
                        raced.outcomes.extend(self.race(reference, &[other], (runs, false))?.outcomes);
                    }
                    return Ok(raced);
                }
            };
            let drift = race.drift(self.work.is_by_memory(&race.canaries[0]));
            if steadiest.as_ref().is_none_or(|it| drift < it.0) {
                steadiest = Some((drift, race));
            }
            if drift <= MOST_DRIFT {
                break;
            }
        }
        let (_, race) = steadiest.ok_or_else(|| Stop::defect("no race was run".to_owned()))?;
        let floor_ns = self.floor_ns(&race);
        let outcomes = race.entrants.iter().skip(1).map(|it| outcome(it, floor_ns)).collect();
        let reference = race.entrants.first().map(|it| outcome(it, floor_ns));
        let variants = race.variants;
        Ok(Raced { reference, outcomes, variants })
    }

    fn race_once(
        &self,
        reference: &Blobs,
        others: &[&Blobs],
        runs: u32,
        variants: bool,
    ) -> Result<Result<Race, Failure>, Stop> {
        let mut inputs = Blobs::new();
        for (number, blobs) in std::iter::once(&reference).chain(others).enumerate() {
            for (from, to) in [(blob::OBJECT, entrant_object(number)), (blob::KERNEL, entrant_kernel(number))] {
                let digest = blobs.get(from).ok_or_else(|| Stop::defect(format!("a candidate has no `{from}`")))?;
                inputs.insert(to, *digest);
            }
        }
        let entrants = others.len() + 1;
        let (device, threads) = (self.device.clone(), self.threads);
        let kind = ActionKind::Race { device, threads, entrants, runs, variants };
        let limits = with_driver(limits(StepKind::Benchmark), &kind);
        let outputs = match self.pool.one(Request { kind, inputs, limits })? {
            Ok(done) => done.outputs,
            Err(failure) => return Ok(Err(failure)),
        };
        let digest = outputs.get(blob::RACE).ok_or_else(|| Stop::defect("a race without a result".to_owned()))?;
        let race: Race = serde_json::from_slice(&self.store.cas.get(digest).map_err(Stop::unreadable)?)
            .map_err(|error| Stop::defect(error.to_string()))?;
        if race.entrants.len() != entrants {
            return Err(Stop::defect(format!("a race of {entrants} that {} ended", race.entrants.len())));
        }
        Ok(Ok(race))
    }
}

/// An entrant's trial.
fn outcome(entrant: &Entrant, floor_ns: f64) -> TrialOutcome {
    if let Some(failed) = entrant.failed.first() {
        let (kind, gate) = (FailureKind::Implausible, Some(failed.gate));
        return TrialOutcome::Rejected(Refusal { kind, gate, message: failed.message.clone() });
    }
    let Entrant { timing, relative, noise, .. } = entrant.clone();
    TrialOutcome::Measured(Measured { timing, relative, noise, floor_ns })
}
