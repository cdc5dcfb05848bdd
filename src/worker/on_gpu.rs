//! Actions for a GPU. What [`crate::serve`] does itself for the CPU is here for programs of WGSL.

use crate::{
    audit,
    codegen::{self, gpu::Compiled},
    device::gpu::{
        Gpu,
        program::{Checks, LoadedProgram},
    },
    measure, mutate, run as run_kernel,
    serve::{Blobs, Inputs, Rejected, drawn, json, judged, one},
    tries,
    verify::{self, gpu::candidate::OnGpu},
};
use kernelforge::{
    host::{Device, gpu::GpuFacts},
    manifest::spec::{BlockSpec, Pass},
    plan::{Plan, program::Program, stage::StageGraph},
    protocol::{Failure, FailureKind, audit::Audit, audit::Subject, blob, corpus::Case},
};
use std::collections::BTreeMap;

/// Renders the shaders of a plan: the object is their texts, and `lowered` all of them for people.
pub fn compile(inputs: &Inputs<'_>, gpu: &GpuFacts, own: &BTreeMap<String, String>) -> Result<Blobs, Failure> {
    let (stages, plan) = (inputs.parse::<StageGraph>(blob::STAGES)?, inputs.parse::<Plan>(blob::PLAN)?);
    compiled(&match inputs.optional(blob::LOWERED)? {
        None => codegen::gpu::compile(&stages, &plan, gpu, own)?,
        Some(text) => codegen::gpu::compile_given(&stages, &plan, gpu, own, &text)?,
    })
}

fn compiled(Compiled { program, sources }: &Compiled) -> Result<Blobs, Failure> {
    let lowered = codegen::gpu::listing(program, sources).into_bytes();
    Ok(Blobs::from([(blob::OBJECT, json(sources)?), (blob::KERNEL, json(program)?), (blob::LOWERED, lowered)]))
}

pub fn attempt(
    inputs: &Inputs<'_>,
    gpu: &GpuFacts,
    seed: u64,
    own: &BTreeMap<String, String>,
) -> Result<Blobs, Failure> {
    let (graph, plan) = (&inputs.parse::<StageGraph>(blob::STAGES)?, &inputs.parse::<Plan>(blob::PLAN)?);
    let request = tries::Request { graph, plan, given: inputs.optional(blob::LOWERED)?, seed };
    compiled(&tries::on_gpu(request, gpu, own, Some(inputs.cas))?)
}

pub fn race(inputs: &Inputs<'_>, gpu: &GpuFacts, entrants: usize, runs: u32) -> Result<Blobs, Failure> {
    let entrants = inputs.entrants::<Program>(entrants)?.into_iter().map(|(object, program)| {
        let sources = serde_json::from_slice::<Vec<String>>(&object);
        let sources = sources.map_err(|error| {
            Failure::new(FailureKind::Internal, format!("an entrant's object is no list of shaders: {error}"))
        })?;
        Ok((sources, program))
    });
    let entrants = entrants.collect::<Result<Vec<_>, Failure>>()?;
    let gpu = Gpu::open(gpu, Some(inputs.cas))?;
    Ok(one(blob::RACE, json(&measure::gpu::race::race(&gpu, &entrants, runs)?)?))
}

pub fn verify(
    inputs: &Inputs<'_>,
    gpu: &GpuFacts,
    block: &BlockSpec,
    asked: u64,
    corpus: &[Case],
) -> Result<Blobs, Rejected> {
    let (program, plan) = (inputs.parse::<Program>(blob::KERNEL)?, inputs.parse::<Plan>(blob::PLAN)?);
    let (object, sources) = (inputs.bytes(blob::OBJECT)?, inputs.parse::<Vec<String>>(blob::OBJECT)?);
    let (plan_digest, object_digest) = (inputs.digest(blob::PLAN)?, inputs.digest(blob::OBJECT)?);
    let request = verify::gpu::Request {
        program: &program,
        sources: &sources,
        plan: &plan,
        block,
        facts: gpu,
        seed: drawn(&object, asked),
        corpus,
        templates: Some(&program.templates),
        store: Some(inputs.cas),
    };
    let device = Device::Gpu(gpu.clone());
    let subject = Subject {
        plan: &plan,
        plan_digest,
        block,
        stages: &program.graph,
        object: Some(object_digest),
        device: &device,
        threads: 1,
        seed: Some(request.seed),
    };
    let (audit, failure) = audit::judge(&subject, || verify::gpu::verify(&request))?;
    // What was asked for is what makes the verification repeatable; the verdict has what was drawn from it.
    let audit = Audit { seed: Some(asked), ..audit };
    judged(one(blob::AUDIT, json(&audit)?), failure)
}

pub fn benchmark(inputs: &Inputs<'_>, gpu: &GpuFacts, time_ms: u64) -> Result<Blobs, Rejected> {
    let (program, sources) = (inputs.parse::<Program>(blob::KERNEL)?, inputs.parse::<Vec<String>>(blob::OBJECT)?);
    inputs.require_audit(&gpu.fingerprint())?;
    let gpu = Gpu::open(gpu, Some(inputs.cas))?;
    let benchmark = measure::gpu::benchmark(&gpu, &program, &sources, time_ms)?;
    judged(one(blob::BENCHMARK, json(&benchmark)?), audit::rejection(&benchmark.checks))
}

pub fn run(inputs: &Inputs<'_>, gpu: &GpuFacts, block: &BlockSpec, seed: u64, stages: bool) -> Result<Blobs, Rejected> {
    let (program, sources) = (inputs.parse::<Program>(blob::KERNEL)?, inputs.parse::<Vec<String>>(blob::OBJECT)?);
    inputs.require_audit(&gpu.fingerprint())?;
    let gpu = Gpu::open(gpu, Some(inputs.cas))?;
    let loaded = LoadedProgram::load(&gpu, program, &sources, Checks::Off)?;
    let mut candidate = OnGpu::new(&loaded, false)?;
    let tensors = inputs.optional(blob::TENSORS)?;
    let result = run_kernel::run_on(&mut candidate, block, seed, tensors.as_deref(), stages)?;
    candidate.failure().map_or(Ok(()), Err)?;
    Ok(one(blob::TENSORS, result))
}

pub fn list_mutants(
    inputs: &Inputs<'_>,
    gpu: &GpuFacts,
    block: &BlockSpec,
    passes: &[Pass],
) -> Result<Blobs, Rejected> {
    let mutants = with_built(inputs, gpu, (block, passes), |subject| Ok(mutate::gpu::list(subject)))?;
    Ok(one(blob::MUTANTS, json(&mutants)?))
}

pub fn mutant(
    inputs: &Inputs<'_>,
    gpu: &GpuFacts,
    block: (&BlockSpec, &[Pass]),
    (seed, corpus): (u64, &[Case]),
    id: &str,
) -> Result<Blobs, Rejected> {
    let trial = mutate::gpu::Trial { seed, corpus };
    let judged = with_built(inputs, gpu, block, |subject| mutate::gpu::judge(subject, trial, id))?;
    Ok(one(blob::JUDGED, json(&judged)?))
}

/// Calls `act` with the files of a built block.
fn with_built<T>(
    inputs: &Inputs<'_>,
    gpu: &GpuFacts,
    (block, passes): (&BlockSpec, &[Pass]),
    act: impl FnOnce(&mutate::gpu::Subject<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let (program, plan) = (inputs.parse::<Program>(blob::KERNEL)?, inputs.parse::<Plan>(blob::PLAN)?);
    let sources = inputs.parse::<Vec<String>>(blob::OBJECT)?;
    act(&mutate::gpu::Subject { block, passes, gpu, plan: &plan, program: &program, sources: &sources })
}
