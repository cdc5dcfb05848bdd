//! The walk over the stages.

use super::{
    Builder, Templates, attention, elementwise, listing,
    matmul::{self, Epilogue},
    mlp::{self, MlpOperands},
    norm, placement,
};
use kernelforge::{
    host::{Device, gpu::GpuFacts},
    plan::{
        Plan, constraint,
        gpu::Shape,
        program::{Buffer, PROGRAM_VERSION, Program, Step},
        schedule::Schedule,
        stage::{Stage, StageGraph, StageOp},
    },
    protocol::{Failure, FailureKind},
};
use std::{collections::BTreeMap, ops::Range};

/// A program and the WGSL of its shaders.
#[derive(Debug)]
pub struct Compiled {
    pub program: Program,
    pub sources: Vec<String>,
}

/// Renders the program of `graph` under `plan` for the device. `own`: the project's own templates, by file name.
///
/// # Errors
/// `IllegalPlan` when a schedule breaks a constraint or a stage has none; `BadInput` for a template that is none, with its line.
pub fn compile(
    graph: &StageGraph,
    plan: &Plan,
    gpu: &GpuFacts,
    own: &BTreeMap<String, String>,
) -> Result<Compiled, Failure> {
    let templates = Templates::new(own)?;
    let mut builder = Builder::new(graph, gpu, &templates);
    let device = Device::Gpu(gpu.clone());
    let (mut stages, mut scratch): (Vec<Vec<Step>>, Vec<Range<usize>>) = (Vec::new(), Vec::new());
    for stage in &graph.stages {
        let schedule = constraint::resolve(graph, stage, plan, &device)
            .map_err(|it| Failure::new(FailureKind::IllegalPlan, it.to_string()).at_stage(&stage.name))?;
        let first = builder.scratch.len();
        stages.push(emit(&mut builder, stage, &schedule).map_err(|it| it.at_stage(&stage.name))?);
        scratch.push(first..builder.scratch.len());
    }
    let bytes: Vec<u64> = builder.scratch.iter().map(|it| it.bytes).collect();
    let (shared, placements) = placement::place(graph, &scratch, &bytes);
    let Builder { shaders, sources, packed, scratch, .. } = builder;
    let (version, graph, templates) = (PROGRAM_VERSION, graph.clone(), own.clone());
    let program = Program { version, graph, templates, shaders, packed, scratch, stages, shared, placements };
    Ok(Compiled { program, sources })
}

/// As [`compile`], with the shaders of an edited listing in place of the rendered ones.
///
/// # Errors
/// As [`compile`]; `BadInput` for a listing of other shaders.
pub fn compile_given(
    graph: &StageGraph,
    plan: &Plan,
    gpu: &GpuFacts,
    own: &BTreeMap<String, String>,
    text: &[u8],
) -> Result<Compiled, Failure> {
    let compiled = compile(graph, plan, gpu, own)?;
    let text = std::str::from_utf8(text)
        .map_err(|it| Failure::new(FailureKind::BadInput, format!("the shaders are not UTF-8: {it}")))?;
    let sources = listing::parse(&compiled.program, text)?;
    Ok(Compiled { sources, ..compiled })
}

fn emit(builder: &mut Builder, stage: &Stage, schedule: &Schedule) -> Result<Vec<Step>, Failure> {
    let mut inputs = stage.inputs.iter().map(|it| Buffer::Tensor(*it));
    let out = Buffer::Tensor(stage.output);
    let dtype = builder.graph.tensor(stage.output).dtype;
    // The IR's shape verifier has checked the number of operands.
    let mut next = || inputs.next().ok_or_else(|| Failure::new(FailureKind::Internal, "a stage lacks an operand"));
    match (Shape::of(&stage.op, dtype), &stage.op, schedule) {
        (
            Shape::Product(product),
            &StageOp::Matmul { bias, activation, residual, .. },
            Schedule::GpuMatmul(schedule),
        ) => {
            let operands = matmul::Operands { a: next()?, gate: None, w: next()? };
            let bias = bias.then(&mut next).transpose()?;
            let residual = residual.then(&mut next).transpose()?;
            let epilogue = Epilogue { bias, activation, residual, ..Epilogue::plain(out, dtype) };
            matmul::emit(builder, &product, &operands, &epilogue, schedule)
        }
        (Shape::Mlp(shape), &StageOp::Mlp { activation, gated, bias, residual, .. }, Schedule::GpuMlp(schedule)) => {
            let x = next()?;
            let mut layer = || -> Result<_, Failure> { Ok((next()?, bias.then(&mut next).transpose()?)) };
            let gate = gated.then(&mut layer).transpose()?;
            let (up, down) = (layer()?, layer()?);
            let residual = residual.then(&mut next).transpose()?;
            let operands = MlpOperands { x, gate, up, down, residual, out };
            mlp::emit(builder, &shape, activation, &operands, schedule)
        }
        (Shape::Attention(shape), _, Schedule::GpuAttention(schedule)) => {
            let operands = attention::Operands { q: next()?, k: next()?, v: next()?, result: out };
            attention::emit(builder, &shape, &operands, schedule)
        }
        (Shape::Norm(shape), _, Schedule::GpuNorm(schedule)) => {
            let operands: Vec<Buffer> = inputs.chain([out]).collect();
            norm::emit(builder, &shape, &operands, schedule)
        }
        (Shape::Elements(_), op, Schedule::GpuElementwise(schedule)) => {
            let operands: Vec<Buffer> = inputs.chain([out]).collect();
            elementwise::emit(builder, op, dtype, &operands, schedule)
        }
        (_, op, schedule) => {
            let (op, schedule) = (op.name(), schedule.name());
            let message = format!("stage `{}` is a {op}: a {schedule} schedule does not fit it", stage.name);
            Err(Failure::new(FailureKind::IllegalPlan, message))
        }
    }
}
