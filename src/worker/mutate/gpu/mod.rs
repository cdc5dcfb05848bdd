//! Wrong programs for a GPU, through the same verifier. Families: the plan's knobs ([`plans`]) and the passes, the stages (those
//! that blocks for a CPU have too), the WGSL of the shaders ([`code`]), how they are dispatched ([`host`]), the measurement. The
//! verifier's own weaknesses are tried on the CPU: it is the same verifier.

mod code;
mod host;
mod plans;

use super::{Body, Mutation, equivalence, from_gates, from_verdict, judged, plans::pipelines, refused, stages};
use crate::{
    codegen::gpu::compile,
    device::gpu::{
        Gpu,
        program::{Checks, LoadedProgram},
    },
    ir, measure,
    measure::tamper::{self, Tamper},
    verify::{
        candidate::{Candidate, Tensors},
        gpu::{Request, candidate::OnGpu, verify},
        inputs::{self, Regime},
    },
};
use kernelforge::{
    digest::Digest,
    host::gpu::GpuFacts,
    manifest::spec::{BlockSpec, Pass},
    plan::{
        Plan,
        program::Program,
        stage::{StageGraph, TensorId},
    },
    protocol::{
        Failure, FailureKind, Gate,
        corpus::Case,
        mutation::{Evidence, Family, Fate, Judged, KilledBy, Mutant, Proof},
    },
};
use std::{collections::BTreeMap, sync::Arc};

/// Places that one rule is tried at in one shader, counted from the first and from the last.
const PLACES: usize = 1;
/// How long a tampered measurement measures.
const MEASURED_MS: u64 = 10;

/// A right program: what is mutated, and what mutants are judged by.
pub struct Subject<'a> {
    pub block: &'a BlockSpec,
    pub passes: &'a [Pass],
    pub gpu: &'a GpuFacts,
    pub plan: &'a Plan,
    pub program: &'a Program,
    pub sources: &'a [String],
}

/// How the verifier is called.
#[derive(Clone, Copy)]
pub struct Trial<'a> {
    pub seed: u64,
    pub corpus: &'a [Case],
}

enum What {
    /// A plan, a pipeline, or other stages.
    Shared(Body),
    Code {
        shader: usize,
        rule: &'static code::Rule,
        place: code::Place,
    },
    Host(Box<Program>),
    Measured(Tamper),
}

impl Subject<'_> {
    fn mutations(&self) -> Vec<(Mutant, What)> {
        let mut all = Vec::new();
        for (id, stage, description, text) in plans::wrong(self.plan, self.gpu) {
            // The same knob and the same reason, in whatever stage and with whatever value.
            let mistake = id.rsplit('/').next().unwrap_or_default().split('=').next().unwrap_or_default();
            let reason = description.split_once(": ").map_or("", |it| it.1);
            let kind = format!("plan/gpu {}", format!("{mistake} {reason}").trim());
            let mutant = Mutant { id: format!("plan/{id}"), family: Family::Plan, kind, stage, description };
            all.push((mutant, What::Shared(Body::Plan(text))));
        }
        let shared = pipelines(self.passes).into_iter().chain(stages::mutations(&self.program.graph));
        all.extend(shared.map(|Mutation { mutant, body }| (mutant, What::Shared(body))));
        for (shader, (described, source)) in self.program.shaders.iter().zip(self.sources).enumerate() {
            let template = described.template.trim_end_matches(".wgsl");
            for rule in code::RULES {
                for place in code::places(source, rule, PLACES) {
                    let id = format!("wgsl/{template}-{shader}/{}@{}.{}", rule.name, place.line + 1, place.choice);
                    let description =
                        format!("shader `{}`, line {}: {}", described.name, place.line + 1, rule.description);
                    let kind = format!("wgsl/{template}/{}", rule.name);
                    let mutant = Mutant { id, family: Family::Code, kind, stage: None, description };
                    all.push((mutant, What::Code { shader, rule, place }));
                }
            }
        }
        for (id, stage, description, program) in host::edits(self.program) {
            let kind = format!("host/gpu {description}");
            let mutant = Mutant {
                id: format!("host/{id}"),
                family: Family::Host,
                kind,
                stage,
                description: description.to_owned(),
            };
            all.push((mutant, What::Host(Box::new(program))));
        }
        for (id, description, tamper) in [
            ("slow-clock", "the clock counts one nanosecond of a thousand", Tamper::SlowClock),
            ("half-the-work", "half of the workgroups are timed", Tamper::HalfTheUnits),
            ("first-result-kept", "only the first timed run computes anything", Tamper::FirstResultKept),
        ] {
            let (id, kind) = (format!("host/measured/{id}"), format!("host/gpu measured {id}"));
            let mutant = Mutant { id, family: Family::Host, kind, stage: None, description: description.to_owned() };
            all.push((mutant, What::Measured(tamper)));
        }
        all
    }
}

/// The program's mutants, the same ones in the same order every time.
pub fn list(subject: &Subject) -> Vec<Mutant> {
    subject.mutations().into_iter().map(|it| it.0).collect()
}

/// Makes one mutant and puts it through the verifier.
///
/// # Errors
/// `BadInput` when the block has no such mutant; whatever the verifier fails with that is not the mutant's fault.
pub fn judge(subject: &Subject, trial: Trial, id: &str) -> Result<Judged, Failure> {
    let found = subject.mutations().into_iter().find(|it| it.0.id == id);
    let unknown = || Failure::new(FailureKind::BadInput, format!("the block has no mutant `{id}`"));
    let (_, what) = found.ok_or_else(unknown)?;
    let graph = matches!(what, What::Shared(Body::Graph(_)));
    let sources = match &what {
        What::Code { shader, rule, place } => {
            let mut sources = subject.sources.to_vec();
            let Some(text) = code::apply(&sources[*shader], rule, place) else {
                return Ok(judged(Fate::Stillborn { message: "the rule does not fit its place".to_owned() }));
            };
            sources[*shader] = text;
            Some(sources)
        }
        _ => None,
    };
    let mut judged = match what {
        What::Shared(body) => judge_shared(subject, trial, body)?,
        What::Code { .. } => {
            subject.verify(trial, (subject.program, sources.as_deref().unwrap_or_default(), subject.plan))?
        }
        What::Host(program) => subject.verify(trial, (&program, subject.sources, subject.plan))?,
        What::Measured(tamper) => {
            let gpu = Gpu::open(subject.gpu, None)?;
            let measure = || measure::gpu::benchmark(&gpu, subject.program, subject.sources, MEASURED_MS);
            from_gates(&tamper::with(tamper, measure)?.checks, &subject.program.graph)
        }
    };
    if judged.fate == Fate::Survived
        && let Some(reason) = equivalence::reviewed(&subject.program.graph.block, id)
    {
        // Other stages that mean the same need not compute the same bits; other code must.
        let same = match &sources {
            Some(sources) => subject.results(trial, sources)? == subject.results(trial, subject.sources)?,
            None => graph,
        };
        if same {
            judged.fate = Fate::Equivalent { proof: Proof::Reviewed(reason.to_owned()) };
        }
    }
    Ok(judged)
}

fn judge_shared(subject: &Subject, trial: Trial, body: Body) -> Result<Judged, Failure> {
    match body {
        Body::Plan(text) => match serde_json::from_str::<Plan>(&text) {
            Ok(plan) => subject.generate(trial, &subject.program.graph, &plan, None),
            Err(error) => Ok(refused("reading the plan", error.to_string())),
        },
        Body::Passes(passes) => {
            let (name, block) = (&subject.program.graph.block, subject.block);
            match ir::build(name, block, &passes, &BTreeMap::new()) {
                Ok(products) => subject.generate(trial, &products.stages, subject.plan, None),
                Err(failure) => Ok(refused("running the passes", failure.message)),
            }
        }
        // Judged as if it were the block's stages, and as what it is.
        Body::Ir(graph) => subject.generate(trial, &graph, subject.plan, Some(&subject.program.graph)),
        Body::Graph(graph) => subject.generate(trial, &graph, subject.plan, None),
        _ => Err(Failure::new(FailureKind::Internal, "a mutant for a CPU")),
    }
}

impl Subject<'_> {
    /// Generates a program and judges it, as the program of `claimed` where it claims to be another one's.
    fn generate(
        &self,
        trial: Trial,
        graph: &StageGraph,
        plan: &Plan,
        claimed: Option<&StageGraph>,
    ) -> Result<Judged, Failure> {
        // The gate of legality says what is wrong with each knob; nothing illegal is generated.
        if let Some(message) = crate::verify::illegal(graph, plan, self.gpu) {
            let (gate, case) = (Some(Gate::V0Legality), "schedule".to_owned());
            let evidence = Evidence { gate, stage: None, case, message };
            let gates = vec![Gate::V0Legality];
            return Ok(judged(Fate::Killed { by: KilledBy::Validation, evidence, gates }));
        }
        let mut compiled = match compile(graph, plan, self.gpu, &self.program.templates) {
            Ok(compiled) => compiled,
            Err(failure) => return Ok(refused("generating the code", failure.message)),
        };
        if let Some(claimed) = claimed {
            compiled.program.graph = claimed.clone();
        }
        if compiled.program == *self.program && compiled.sources == self.sources {
            return Ok(judged(Fate::Equivalent { proof: Proof::IdenticalCode }));
        }
        self.verify(trial, (&compiled.program, &compiled.sources, plan))
    }

    fn verify(&self, trial: Trial, (program, sources, plan): (&Program, &[String], &Plan)) -> Result<Judged, Failure> {
        let Trial { seed, corpus } = trial;
        let request = Request {
            program,
            sources,
            plan,
            block: self.block,
            facts: self.gpu,
            seed,
            corpus,
            templates: None,
            store: None,
        };
        match verify(&request) {
            Ok(verdict) => from_verdict(&verdict, &self.program.graph, || Ok(false)),
            // A shader that is none was never a program; one that the device's limits refuse was refused.
            Err(failure) if failure.kind == FailureKind::Codegen && failure.message.contains("shader `") => {
                Ok(judged(Fate::Stillborn { message: failure.message }))
            }
            Err(failure) if matches!(failure.kind, FailureKind::Codegen | FailureKind::IllegalPlan) => {
                Ok(refused("running the program", failure.message))
            }
            Err(failure) => Err(failure),
        }
    }

    /// Digests of the bits of everything that these shaders compute, on usual and on extreme numbers, in poisoned memory.
    fn results(&self, trial: Trial, sources: &[String]) -> Result<Vec<Digest>, Failure> {
        let gpu: Arc<Gpu> = Gpu::open(self.gpu, None)?;
        let loaded = LoadedProgram::load(&gpu, self.program.clone(), sources, Checks::On)?;
        let mut candidate = OnGpu::new(&loaded, true)?;
        let mut digests = Vec::new();
        let stages = self.program.graph.stages.clone();
        for (seed, regime) in (trial.seed..).zip([Regime::Normal, Regime::Peaky, Regime::NearConstant]) {
            inputs::fill(&mut candidate, inputs::rope_theta(self.block), seed);
            candidate.prepare();
            for poison in [f32::NAN, 2f32.powi(100)] {
                candidate.poison(poison);
                candidate.block();
                let mut keep = |candidate: &OnGpu, id: TensorId| {
                    let bytes: Vec<u8> =
                        candidate.tensor(id).iter().flat_map(|it| it.to_bits().to_le_bytes()).collect();
                    digests.push(Digest::of(&bytes));
                };
                crate::verify::outputs(&candidate).iter().for_each(|&id| keep(&candidate, id));
                for (index, stage) in stages.iter().enumerate() {
                    if regime != Regime::Normal {
                        inputs::fill_stage(&mut candidate, stage, regime, seed);
                    }
                    candidate.stage(index);
                    keep(&candidate, stage.output);
                }
            }
        }
        candidate.failure().map_or(Ok(()), Err)?;
        digests.push(Digest::of(&[candidate.escapes().len() as u8]));
        Ok(digests)
    }
}
