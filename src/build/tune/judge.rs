//! The end of a search: all gates on the plan that won, and what becomes of one that they reject.

use super::{
    Stop,
    block::{Searched, Tuned, Tuner, Variant, request, with_plan},
    ledger::{Best, recipe_digest},
    operation::Winner,
};
use crate::{
    build::{
        graph::{BlockTarget, StepKind},
        search::{self, templates},
    },
    digest::Digest,
    plan::{
        operation,
        stage::{Stage, StageGraph},
    },
    protocol::{
        ActionKind, Failure, FailureKind,
        audit::{Audit, Ruling},
        blob,
        tuning::Refusal,
    },
};
use std::collections::BTreeMap;

impl Tuner<'_> {
    /// All gates on the plan. Where they reject it, the schedule of the stage at fault is never tried again and the heuristic's takes
    /// its place, until a plan is accepted; the heuristic's own plan is what the steps behind this one judge.
    pub(super) fn verify(&self, tuned: &mut Tuned, searched: &[Searched]) -> Result<(), Stop> {
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
                    *plan = self.heuristics(&variant);
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
        let stages = stages.ok_or_else(|| Stop::defect("no stages".to_owned()))?;
        let compile = self.compile_request(plan, *stages)?;
        let plan = compile.inputs.get(blob::PLAN).copied();
        let inputs = match self.action(compile)? {
            Ok(outputs) => with_plan(outputs, plan),
            Err(failure) => return self.refused(failure),
        };
        let BlockTarget { spec, device, threads, .. } = self.block;
        let (block, device, threads) = (spec.clone(), (**device).clone(), *threads);
        let (seed, corpus) = (self.context.rules.seed, self.context.rules.corpus.clone());
        let verify = ActionKind::Verify { block, device, threads, seed, corpus };
        match self.action(request(verify, inputs, StepKind::Verify))? {
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
