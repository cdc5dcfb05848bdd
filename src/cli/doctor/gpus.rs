//! The GPUs: what each can do, whether it computes, which target of the project would choose it, and what is missing.

use crate::{
    build::{
        engine::devices::{self, MISSING},
        graph::StepKind,
    },
    cli::{error::Error, project, worker::Asked},
    host::gpu::GpuFacts,
    manifest::{Backend, Target},
    protocol::{ActionKind, Blobs, Gpus, Smoke, blob},
};
use serde::Serialize;
use std::path::Path;

/// What there is to say about GPUs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Graphics {
    gpus: Vec<Gpu>,
    /// Adapters that are of no use, and why nothing was found.
    gpu_problems: Vec<String>,
    /// The project's targets that need one.
    gpu_targets: Vec<Chosen>,
    /// What to do where something is missing.
    advice: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Gpu {
    facts: GpuFacts,
    smoke: Smoke,
}

/// A target of the project, and the GPU that it would get.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Chosen {
    target: String,
    adapter: String,
    gpu: Option<String>,
    problem: Option<String>,
}

/// Has the worker look for GPUs and compute something on each.
pub fn look(asked: &mut Asked<'_>) -> Result<(Vec<Gpu>, Vec<String>), Error> {
    let probed = asked.action(ActionKind::Probe, Blobs::new(), StepKind::Ir)?;
    let Gpus { found, problems } = asked.value(&probed, blob::GPUS)?;
    let test = |facts: GpuFacts| -> Result<Gpu, Error> {
        let action = ActionKind::SmokeTest { gpu: facts.clone() };
        let smoke = match asked.action(action, Blobs::new(), StepKind::Ir) {
            Ok(done) => asked.value(&done, blob::SMOKE)?,
            // A driver that takes the worker with it is what this is for.
            Err(error) => Smoke { error: Some(error.to_string()), worst_ratio: 0.0, wall_us: 0 },
        };
        Ok(Gpu { facts, smoke })
    };
    Ok((found.into_iter().map(test).collect::<Result<_, _>>()?, problems))
}

/// The targets of the project in this folder that need a GPU; none without a project, or where it has problems, which a build
/// tells better.
pub fn targets(directory: &Path) -> Vec<Target> {
    let project = project::load(directory);
    let targets = project.map(|it| it.targets.into_values().collect::<Vec<_>>()).unwrap_or_default();
    targets.into_iter().filter(|it| matches!(it.backend, Backend::Gpu { .. })).collect()
}

impl Graphics {
    /// Of what a worker found; `None` where there is no worker.
    pub fn new(found: Option<(Vec<Gpu>, Vec<String>)>, targets: Vec<Target>) -> Self {
        let asked = found.is_some();
        let (gpus, gpu_problems) =
            found.unwrap_or_else(|| (Vec::new(), vec!["not looked for: there is no worker".to_owned()]));
        let all = Gpus { found: gpus.iter().map(|it| it.facts.clone()).collect(), problems: Vec::new() };
        let chosen = |target: Target| {
            let Backend::Gpu { adapter, .. } = target.backend else { return None };
            let picked = devices::pick(&all, &target.name, &adapter);
            let (gpu, problem) = match picked {
                Ok(gpu) => (Some(gpu.shown()), None),
                Err(error) => (None, Some(error.to_string())),
            };
            Some(Chosen { target: target.name, adapter, gpu, problem })
        };
        let gpu_targets = targets.into_iter().filter_map(chosen).collect();
        let mut advice = Vec::new();
        if asked && gpus.is_empty() {
            advice.push(MISSING.trim_end_matches("; `kforge doctor` says more").to_owned());
        } else if asked && gpus.iter().all(|it| it.facts.software()) {
            let text = "no real GPU was found: what runs on the software one is right for tests, and its times mean nothing; for \
                        a real one install its Vulkan driver (Debian: mesa-vulkan-drivers for AMD and Intel, nvidia-driver \
                        for NVIDIA)";
            advice.push(text.to_owned());
        }
        Self { gpus, gpu_problems, gpu_targets, advice }
    }

    /// Whether every target that needs a GPU has one.
    pub fn ok(&self) -> bool {
        self.gpu_targets.iter().all(|it| it.problem.is_none())
    }

    /// Name and value of every line.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
        for Gpu { facts, smoke } in &self.gpus {
            row("gpu", facts.name.clone());
            row("  driver", driver(facts));
            row("  features", features(facts));
            row("  limits", limits(facts));
            row("  smoke test", test(smoke));
        }
        for problem in &self.gpu_problems {
            row("gpu", format!("PROBLEM: {problem}"));
        }
        for Chosen { target, adapter, gpu, problem } in &self.gpu_targets {
            let value = match (gpu, problem) {
                (Some(gpu), _) => format!("ok: `{adapter}` chooses {gpu}"),
                (None, problem) => format!("PROBLEM: {}", problem.as_deref().unwrap_or("no GPU")),
            };
            row(&format!("target {target}"), value);
        }
        self.advice.iter().for_each(|it| row("hint", it.clone()));
        rows
    }
}

fn driver(it: &GpuFacts) -> String {
    let ids = format!("{:04x}:{:04x}", it.vendor, it.device);
    format!("{}, {} {} ({}, {ids})", it.kind.name(), it.driver, it.driver_version, it.api)
}

fn features(it: &GpuFacts) -> String {
    let mut words: Vec<String> = it.features.iter().map(|it| it.name().to_owned()).collect();
    let shapes = it.cooperative.iter().map(|it| {
        let (a, c) = (it.operand_bits, it.accumulator_bits);
        format!("{}x{}x{} f{a} -> f{c}", it.m, it.n, it.k)
    });
    words.extend(shapes);
    if words.is_empty() { "none beyond WebGPU's own".to_owned() } else { words.join(", ") }
}

fn limits(it: &GpuFacts) -> String {
    let subgroup = match (it.subgroup_min, it.subgroup_max) {
        (min, max) if min == max => min.to_string(),
        (min, max) => format!("{min} to {max}"),
    };
    format!(
        "subgroups of {subgroup}, workgroups of {} with {} KiB, {} storage buffers of up to {} MiB",
        it.workgroup_invocations,
        it.workgroup_memory >> 10,
        it.bindings,
        it.binding_bytes >> 20
    )
}

fn test(it: &Smoke) -> String {
    match &it.error {
        Some(error) => format!("PROBLEM: {error}"),
        None => format!("ok: exact results after {:.1} ms", it.wall_us as f64 / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::graph::tests::gpu,
        cli::print,
        host::gpu::{GpuFeature, GpuKind},
    };

    fn works(facts: GpuFacts) -> Gpu {
        Gpu { facts, smoke: Smoke { error: None, worst_ratio: 0.0, wall_us: 12_340 } }
    }

    fn llvmpipe() -> GpuFacts {
        let name = "llvmpipe (LLVM 15.0.6, 256 bits)".to_owned();
        let features = vec![GpuFeature::F16, GpuFeature::Timestamps];
        GpuFacts { name, kind: GpuKind::Software, subgroup_min: 8, subgroup_max: 8, features, ..gpu() }
    }

    fn target(adapter: &str) -> Vec<Target> {
        let backend = Backend::Gpu { adapter: adapter.to_owned(), hybrid_softmax: false };
        vec![Target { name: "gpu".to_owned(), backend }]
    }

    fn shown(it: &Graphics) -> String {
        print::columns(&it.rows(), false)
    }

    #[test]
    fn a_machine_with_gpus_shows_what_each_can_do() {
        let broken = Smoke { error: Some("the device was lost".to_owned()), worst_ratio: 0.0, wall_us: 1 };
        let software = GpuFacts { cooperative: Vec::new(), ..llvmpipe() };
        let found = vec![works(gpu()), Gpu { facts: software, smoke: broken }];
        let graphics = Graphics::new(Some((found, Vec::new())), target("*"));
        assert!(graphics.ok());
        insta::assert_snapshot!(shown(&graphics));
    }

    #[test]
    fn a_machine_with_a_software_gpu_says_what_it_is_good_for() {
        let graphics = Graphics::new(Some((vec![works(llvmpipe())], Vec::new())), target("*"));
        assert!(graphics.ok());
        insta::assert_snapshot!(shown(&graphics));
    }

    #[test]
    fn a_target_whose_pattern_matches_nothing_is_a_problem() {
        let graphics = Graphics::new(Some((vec![works(gpu())], Vec::new())), target("*h200*"));
        assert!(!graphics.ok());
        insta::assert_snapshot!(shown(&graphics));
    }

    #[test]
    fn a_machine_without_a_gpu_says_what_to_install_and_fails_only_a_project_that_needs_one() {
        let none = || Some((Vec::new(), vec!["no Vulkan loader".to_owned()]));
        assert!(Graphics::new(none(), Vec::new()).ok());
        let graphics = Graphics::new(none(), target("*"));
        assert!(!graphics.ok());
        insta::assert_snapshot!(shown(&graphics));
    }
}
