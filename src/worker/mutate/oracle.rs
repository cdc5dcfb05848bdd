//! A wrong verifier. Each way to weaken it must change a verdict: if no kernel of a standing set of wrong ones is accepted by
//! the weakened verifier and rejected by the real one, that part of the verifier does nothing.

use super::{Body, Mutation, Subject, Trial, code, judged, killed_by, module::Module, recorded, stages};
use crate::{
    codegen::cpu::{assemble, generate},
    device::cpu::LoadedKernel,
    verify::weakness::{self, Weakness},
};
use kernelforge::{
    manifest::spec::Dtype,
    plan::{
        kernel::Kernel,
        stage::{StageGraph, StageOp},
    },
    protocol::{
        Failure, GateResult, GateStatus,
        mutation::{Evidence, Family, Fate, Judged},
    },
};

pub fn mutations(subject: &Subject) -> Vec<Mutation> {
    let mut all = vec![
        ("tolerance-times-10".to_owned(), "every bound is ten times as large".to_owned(), Weakness::ToleranceTimes10),
        ("unbounded".to_owned(), "every finite value is near enough".to_owned(), Weakness::Unbounded),
        ("nan-ignored".to_owned(), "NaN is as good as any number".to_owned(), Weakness::NanIgnored),
        (
            "compared-with-itself".to_owned(),
            "the candidate is compared with itself".to_owned(),
            Weakness::ComparedWithItself,
        ),
        ("fixed-seed".to_owned(), "the inputs are the same every time".to_owned(), Weakness::FixedSeed),
    ];
    for stage in &subject.kernel.graph.stages {
        let weakness = Weakness::StageSkipped(stage.name.clone());
        all.push((format!("skipped/{}", stage.name), "nothing is looked at in this stage".to_owned(), weakness));
    }
    let mutation = |(id, description, weakness): (String, String, Weakness)| {
        let stage = if let Weakness::StageSkipped(stage) = &weakness { Some(stage.clone()) } else { None };
        let kind = match stage.as_deref().and_then(|it| subject.kernel.graph.stage(it)) {
            Some(stage) => format!("skipped/{}", stage.op.name()),
            None => id.clone(),
        };
        let (kind, id) = ((Family::Oracle, kind), format!("oracle/{id}"));
        Mutation::new(kind, id, stage.as_deref(), description, Body::Oracle(weakness))
    };
    all.into_iter().map(mutation).collect()
}

/// Wrong code for the subject's stages.
struct Wrong {
    what: String,
    module: Module,
    kernel: Kernel,
}

pub fn judge(subject: &Subject, weakness: &Weakness, trial: Trial) -> Result<Judged, Failure> {
    if *weakness == Weakness::FixedSeed {
        return recorded::judge(subject, trial);
    }
    for wrong in standing(subject, weakness) {
        let changed = wrong.module.changed(subject.module);
        let Ok(patch) = assemble(&wrong.module.patch(&changed)) else { continue };
        let verify = || {
            let load = || LoadedKernel::load_patched(trial.object, &patch, wrong.kernel.clone());
            subject.verify(&wrong.kernel, subject.plan, trial, load)
        };
        if !weakness::with(weakness.clone(), verify)?.accepted {
            continue;
        }
        let real = verify()?;
        if let Some(killed) = unmasked(&wrong.what, &real.gates) {
            return Ok(killed);
        }
    }
    Ok(judged(Fate::Survived))
}

/// The weakness is found out: the weakened verifier accepts `what`, and by these results the real one does not.
pub fn unmasked(what: &str, real: &[GateResult]) -> Option<Judged> {
    let failed = real.iter().find(|it| it.status != GateStatus::Passed)?;
    let evidence = Evidence {
        gate: Some(failed.gate),
        stage: failed.stage.clone(),
        case: failed.case.clone(),
        message: format!("the weakened verifier accepts {what}; the real one: {}", failed.message),
    };
    // Not a gate's merit: the list of gates stays empty.
    Some(judged(Fate::Killed { by: killed_by(failed.gate), evidence, gates: Vec::new() }))
}

/// Wrong kernels tried for one weakness. The first one shows most of them.
const TRIED: usize = 24;

/// The wrong kernels that can show this weakness.
fn standing<'a>(subject: &'a Subject, weakness: &'a Weakness) -> Box<dyn Iterator<Item = Wrong> + 'a> {
    match weakness {
        // Only what the block returns can be NaN: with NaN among its inputs no stage has a reference.
        Weakness::NanIgnored => {
            let wrong = |module| Wrong { what: "NaN as its result".to_owned(), module, kernel: subject.kernel.clone() };
            Box::new(code::nan_stores(subject).into_iter().map(wrong).take(TRIED))
        }
        Weakness::StageSkipped(stage) => Box::new(other_stages(subject, Some(stage)).take(TRIED)),
        Weakness::ToleranceTimes10 => Box::new(slightly_off(subject)),
        _ => Box::new(other_stages(subject, None).take(TRIED)),
    }
}

/// Kernels of other stages: all of one stage, or all there are.
fn other_stages<'a>(subject: &'a Subject, stage: Option<&'a str>) -> impl Iterator<Item = Wrong> + 'a {
    let wanted = move |it: &Mutation| stage.is_none() || it.mutant.stage.as_deref() == stage;
    stages::mutations(&subject.kernel.graph).into_iter().filter(wanted).filter_map(|it| match it.body {
        Body::Ir(graph) => generated(subject, &graph, it.mutant.id),
        _ => None,
    })
}

fn generated(subject: &Subject, graph: &StageGraph, what: String) -> Option<Wrong> {
    let (text, kernel) = generate(graph, subject.plan, subject.cpu).ok()?;
    Some(Wrong { what, module: Module::parse(&text), kernel: Kernel { graph: subject.kernel.graph.clone(), ..kernel } })
}

/// The same stages with one constant off by powers of two, from what is far within any bound to what is far beyond. Blocks
/// without such a constant get results in a narrower accumulator, and results that are off by powers of two.
fn slightly_off<'a>(subject: &'a Subject) -> impl Iterator<Item = Wrong> + 'a {
    let graph = &subject.kernel.graph;
    let count = graph.stages.len();
    // Below half a unit in the last place of the results nothing shows.
    let (coarsest, bits) = match graph.tensors.iter().map(|it| it.dtype).find(|it| *it != Dtype::F32) {
        None | Some(Dtype::F32) => (8, 24),
        Some(Dtype::F16) => (8, 11),
        Some(Dtype::Bf16) => (3, 8),
    };
    let ladder = (coarsest..bits).rev().flat_map(move |power| (0..count).map(move |it| (it, 1.0 + 2f64.powi(-power))));
    let constants = ladder.filter_map(|(index, factor)| with_factor(subject, index, factor));
    let narrow = code::mutations(subject).into_iter().filter(|it| it.mutant.id.contains("/fma-in-"));
    let narrow = narrow.filter_map(|it| match it.body {
        Body::Code { function, line, rule } => {
            let module = code::apply(subject.module, &function, line, rule)?;
            Some(Wrong { what: it.mutant.id, module, kernel: subject.kernel.clone() })
        }
        _ => None,
    });
    let scaled = (coarsest..bits).rev().flat_map(move |power| {
        let factor = 1.0 + 2f32.powi(-power);
        code::scaled_stores(subject, factor).take(2).map(move |module| Wrong {
            what: format!("results times {factor}"),
            module,
            kernel: subject.kernel.clone(),
        })
    });
    constants.chain(narrow).chain(scaled)
}

fn with_factor(subject: &Subject, index: usize, factor: f64) -> Option<Wrong> {
    let mut graph: StageGraph = subject.kernel.graph.clone();
    let stage = &mut graph.stages[index];
    match &mut stage.op {
        StageOp::Attention { scale, .. } => *scale *= factor,
        StageOp::LayerNorm { eps, .. } | StageOp::RmsNorm { eps, .. } => *eps *= factor,
        _ => return None,
    }
    let what = format!("`{}` with its constant times {factor}", stage.name);
    generated(subject, &graph, what)
}
