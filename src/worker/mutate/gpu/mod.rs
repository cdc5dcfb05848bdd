//! Wrong programs for a GPU, through the same verifier. Families: the plan's knobs ([`plans`]) and the passes, the stages (those
//! that blocks for a CPU have too), the WGSL of the shaders ([`code`]), how they are dispatched ([`host`]), the measurement. The
//! verifier's own weaknesses are tried on the CPU: it is the same verifier.

mod code;
mod host;
mod plans;

use super::{
    Body, Mutation,
    equivalence::{self, Review},
    from_gates, from_verdict, judged,
    plans::pipelines,
    refused, stages,
};
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
    host::gpu::GpuFacts,
    manifest::spec::{BlockSpec, Dtype, Pass},
    plan::{
        Plan,
        program::{Access, Binding, Buffer, Program, Scratch, Step},
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
    let place = match &what {
        What::Code { shader, place, .. } => Some((*shader, place.line)),
        _ => None,
    };
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
        && let Some((shader, line)) = place
        && subject.never_reached(trial, shader, line)?
    {
        judged.fate = Fate::Equivalent { proof: Proof::NeverExecuted };
    }
    if judged.fate == Fate::Survived
        && let Some(Review { reason, rounded }) = equivalence::reviewed(&subject.program.graph.block, id)
    {
        // Other stages that mean the same need not compute the same bits; other code must.
        let same = match &sources {
            Some(sources) => subject.computes_the_same(trial, sources, rounded)?,
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

    /// Runs the original with a probe before the line. Which lines a shader reaches depends on its constants, on where an
    /// invocation is, and now and then on a tensor: it runs on usual and on extreme numbers.
    fn never_reached(&self, trial: Trial, shader: usize, line: usize) -> Result<bool, Failure> {
        let mut program = self.program.clone();
        program.scratch.push(Scratch { bytes: 16 });
        let probe = Buffer::Scratch(program.scratch.len() - 1);
        let mut bindings = 0;
        let packing = program.packed.iter_mut().map(|it| &mut it.prepare);
        let steps = program.stages.iter_mut().flatten().filter_map(|it| match it {
            Step::Dispatch(dispatch) => Some(dispatch),
            Step::HostSoftmax { .. } => None,
        });
        for dispatch in steps.chain(packing).filter(|it| it.shader == shader) {
            bindings = dispatch.bindings.len();
            dispatch.bindings.push(Binding { buffer: probe, access: Access::ReadWrite });
        }
        let mut sources = self.sources.to_vec();
        let Some(probed) = code::probed(&sources[shader], line, bindings) else { return Ok(false) };
        sources[shader] = probed;
        let gpu = Gpu::open(self.gpu, None)?;
        // A place that cannot be probed (the middle of a statement) proves nothing.
        let Ok(loaded) = LoadedProgram::load(&gpu, program, &sources, Checks::On) else { return Ok(false) };
        let mut candidate = OnGpu::new(&loaded, true)?;
        let mut reached = false;
        self.run_all(trial, &mut candidate, &mut |candidate, _| {
            // Poison is neither of the numbers that the probe writes.
            reached |= candidate.scratch(probe).is_none_or(|it| it.starts_with(&1u32.to_le_bytes()));
        })?;
        Ok(!reached)
    }

    /// Whether these shaders compute what the original's do, all bits of it, or where `rounded`, but for how results of 16 bits are
    /// rounded: on usual and on extreme numbers, in poisoned memory.
    fn computes_the_same(&self, trial: Trial, sources: &[String], rounded: bool) -> Result<bool, Failure> {
        let (mutant, original) = (self.results(trial, sources)?, self.results(trial, self.sources)?);
        if mutant.escapes != original.escapes || mutant.tensors.len() != original.tensors.len() {
            return Ok(false);
        }
        let mut tensors = mutant.tensors.iter().zip(&original.tensors);
        Ok(tensors.all(|((_, a), (dtype, b))| match dtype {
            Dtype::F16 | Dtype::Bf16 if rounded => is_rounding(a, b, *dtype),
            _ => a.iter().map(|it| it.to_bits()).eq(b.iter().map(|it| it.to_bits())),
        }))
    }

    fn results(&self, trial: Trial, sources: &[String]) -> Result<Results, Failure> {
        let gpu: Arc<Gpu> = Gpu::open(self.gpu, None)?;
        let loaded = LoadedProgram::load(&gpu, self.program.clone(), sources, Checks::On)?;
        let mut candidate = OnGpu::new(&loaded, true)?;
        let mut tensors = Vec::new();
        self.run_all(trial, &mut candidate, &mut |candidate, ids| {
            let dtype = |id: &TensorId| candidate.graph().tensor(*id).dtype;
            tensors.extend(ids.iter().map(|id| (dtype(id), candidate.tensor(*id).to_vec())));
        })?;
        Ok(Results { tensors, escapes: candidate.escapes().len() })
    }

    /// Runs packing, the block and every stage on usual and on extreme numbers, in poisoned memory, and calls `look` after each with
    /// the tensors that it computed.
    fn run_all(
        &self,
        trial: Trial,
        candidate: &mut OnGpu,
        look: &mut dyn FnMut(&OnGpu, &[TensorId]),
    ) -> Result<(), Failure> {
        let stages = self.program.graph.stages.clone();
        let outputs = crate::verify::outputs(candidate);
        for (seed, regime) in (trial.seed..).zip([Regime::Normal, Regime::Peaky, Regime::NearConstant]) {
            inputs::fill(candidate, inputs::rope_theta(self.block), seed);
            candidate.prepare();
            look(candidate, &[]);
            for poison in [f32::NAN, 2f32.powi(100)] {
                candidate.poison(poison);
                candidate.block();
                look(candidate, &outputs);
                for (index, stage) in stages.iter().enumerate() {
                    if regime != Regime::Normal {
                        inputs::fill_stage(candidate, stage, regime, seed);
                    }
                    candidate.stage(index);
                    look(candidate, &[stage.output]);
                }
            }
        }
        candidate.failure().map_or(Ok(()), Err)
    }
}

/// What shaders computed, tensor by tensor, and how often they left their buffers.
struct Results {
    tensors: Vec<(Dtype, Vec<f32>)>,
    escapes: usize,
}

/// Of so many results of 16 bits one may be another after a change that rounding hides: its error is a quarter of a unit then.
const ROUNDED_ONE_IN: usize = 4;

/// Whether these differ by no more than roundings to a type of 16 bits: few of them, and those by one unit in the last place, of
/// themselves or, where terms cancel, of what the others are like.
fn is_rounding(a: &[f32], b: &[f32], dtype: Dtype) -> bool {
    let differs = |it: &(&f32, &f32)| it.0.to_bits() != it.1.to_bits();
    let differing: Vec<(&f32, &f32)> = a.iter().zip(b).filter(differs).collect();
    let squares = |it: &[f32]| it.iter().map(|it| f64::from(*it).powi(2)).sum::<f64>();
    let usual = (squares(b) / b.len().max(1) as f64).sqrt() as f32;
    let unit = 2.0 * dtype.roundoff() as f32;
    let beside = |(a, b): &(&f32, &f32)| (*a - *b).abs() <= unit * a.abs().max(b.abs()).max(usual);
    a.len() == b.len() && differing.len() * ROUNDED_ONE_IN <= a.len() && differing.iter().all(beside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rounding_is_one_unit_of_few_results() {
        let original = vec![1.0; 64];
        let with = |changes: &[f32]| [changes, &original[changes.len()..]].concat();
        let is = |changes: &[f32]| is_rounding(&with(changes), &original, Dtype::F16);
        let next = 1.0 + 2f32.powi(-10);
        assert!(is(&[]) && is(&[next]) && is(&[next; 16]));
        assert!(!is(&[next; 17]), "too many");
        assert!(!is(&[1.0 + 2f32.powi(-9)]) && !is(&[f32::NAN]) && !is(&[-1.0]));
        assert!(!is_rounding(&original[1..], &original, Dtype::F16));
        // What nearly cancelled is as exact as the terms were.
        let small = [&[1e-4], &original[1..]].concat();
        assert!(is_rounding(&[&[4e-4], &original[1..]].concat(), &small, Dtype::F16));
    }
}
