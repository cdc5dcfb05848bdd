//! Which steps a build has, what each reads, and what its key is made of.
//!
//! A part must be here exactly if the step's output depends on it: one too few is a wrong result that is never rebuilt, one
//! too many is work done again for nothing. The tests at the end hold this for every field of a block and every fact of a device.

use super::{Graph, KeyParts, StepId, StepKind};
use crate::{
    digest::Digest,
    host::Device,
    manifest::{
        Llm, Strategy, Tuning,
        spec::{BlockSpec, Pass},
    },
    protocol::{blob, corpus::Case, recipe},
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

/// One block instance for one target: the unit that gets a row of steps.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockTarget {
    /// The instance's name, e.g. `gpt2-small-s128`.
    pub name: String,
    pub spec: BlockSpec,
    pub passes: Vec<Pass>,
    pub tuning: Tuning,
    pub target: String,
    pub threads: usize,
    /// What the target's kernels run on; blocks of one target share it.
    pub device: Arc<Device>,
    /// The target wants the softmax of attention on the CPU.
    pub hybrid_softmax: bool,
}

/// What all blocks have in common: how verify and benchmark work where the manifest does not say, and the project's own files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Of the random inputs that verify makes.
    pub seed: u64,
    /// How long one benchmark action measures.
    pub benchmark_ms: u64,
    /// The project's regression corpus, which verify replays.
    pub corpus: Vec<Case>,
    /// The project's own shader templates, by file name.
    pub shaders: BTreeMap<String, String>,
    /// The best known schedules of a device and a number of threads, where there are some, by digest: what plans of the heuristic
    /// depend on.
    pub best: BTreeMap<(Digest, usize), Digest>,
    /// What the environment says of a language model.
    pub llm: EnvironmentLlm,
}

/// What the environment says of a language model, instead of the manifest. Another model makes other plans; so does none, and a
/// plan that was made without one must not outlive the moment when there is one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnvironmentLlm {
    pub model: Option<String>,
    /// Whether it names an endpoint. Which one decides nothing.
    pub endpoint: bool,
}

impl Default for Rules {
    fn default() -> Self {
        let (corpus, shaders, best) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { seed: 1, benchmark_ms: 500, corpus, shaders, best, llm: EnvironmentLlm::default() }
    }
}

/// The steps of a build of these blocks: for each block a row `ir -> plan -> compile -> verify -> benchmark -> report`.
pub fn plan_build(blocks: &[BlockTarget], rules: &Rules) -> Graph {
    let mut graph = Graph::default();
    let mut devices: Vec<(Arc<Device>, DeviceParts)> = Vec::new();
    // Which of the project's own templates a block uses is found out by planning; the plan has the digests of those alone.
    let mut shaders = KeyParts::new();
    for (name, text) in &rules.shaders {
        shaders.set(format!("shaders/{name}"), Digest::of(text.as_bytes()).to_string());
    }
    let (shaders, no_shaders) = (Arc::new(shaders), Arc::new(KeyParts::new()));
    let mut corpus = KeyParts::new();
    corpus.set_fields("corpus", &rules.corpus);
    let corpus = Arc::new(corpus);
    let mut texts = Texts::default();

    let mut targets: BTreeMap<&str, Arc<str>> = BTreeMap::new();
    for (subject, block) in blocks.iter().enumerate() {
        let spec = Arc::new(texts.share(block_parts(&block.spec)));
        let name: Arc<str> = block.name.as_str().into();
        let target = targets.entry(&block.target).or_insert_with(|| block.target.as_str().into()).clone();
        let gpu = matches!(*block.device, Device::Gpu(_));
        type Reads<'a> = &'a [(StepId, &'static str)];
        type Groups<'a> = &'a [&'a Arc<KeyParts>];
        let mut push = |kind: StepKind, reads: Reads<'_>, gates: Reads<'_>, (own, shared): (KeyParts, Groups<'_>)| {
            let own = (texts.share(own), shared);
            graph.push(kind, (Some(subject), Some(name.clone())), (&target, block.threads, gpu), reads, gates, own)
        };
        let threads = block.threads;
        let known = devices.iter().position(|it| Arc::ptr_eq(&it.0, &block.device) || it.0 == block.device);
        let known = known.unwrap_or_else(|| {
            devices.push((Arc::clone(&block.device), DeviceParts::new(&block.device)));
            devices.len() - 1
        });
        let DeviceParts { identity, fingerprint, code, plans } = &devices[known].1;

        let mut own = params(StepKind::Ir, &recipe::IR).with("name", &name);
        own.set_fields("passes", &block.passes);
        let ir = push(StepKind::Ir, &[], &[], (own, &[&spec]));

        let mut own = params(StepKind::Plan, &recipe::PLAN)
            .with("name", &name)
            .with("strategy", block.tuning.strategy.name())
            .with("target", &target)
            .with("threads", threads);
        if block.tuning.strategy.searches() {
            searched(&mut own, &block.tuning, &rules.llm);
            own.set("seed", rules.seed.to_string());
            own.extend(&spec);
            own.set_fields("passes", &block.passes);
        } else if let Some(best) = rules.best.get(&(*identity, block.threads)) {
            own.set("best", best.to_string());
        }
        if gpu {
            own.set("target.hybrid-softmax", block.hybrid_softmax.to_string());
        }
        let shaders = if gpu { &shaders } else { &no_shaders };
        let searches = block.tuning.strategy.searches();
        // What is measured depends on all facts of the device.
        let device = if searches { fingerprint } else { plans };
        let plan = push(StepKind::Plan, &[(ir, blob::STAGES), (ir, blob::PASSES)], &[], (own, &[device, shaders]));

        let own = params(StepKind::Compile, &recipe::COMPILE);
        // The plan says which fusions its stages are made with.
        let compile = push(StepKind::Compile, &[(plan, blob::STAGES), (plan, blob::PLAN)], &[], (own, &[code]));

        // The oracle evaluates the block as the manifest says, not as the IR says: it reads every field.
        let own = params(StepKind::Verify, &recipe::VERIFY).with("seed", rules.seed).with("threads", threads);
        let reads = [(compile, blob::OBJECT), (compile, blob::KERNEL), (plan, blob::PLAN)];
        let verify = push(StepKind::Verify, &reads, &[], (own, &[&spec, fingerprint, &corpus]));

        // Verify is a gate: a kernel whose audit does not cover it is not measured, but what the audit says in detail does not
        // change the measured times. The plan goes with it, because the audit is of one plan.
        let own = params(StepKind::Benchmark, &recipe::BENCHMARK)
            .with("threads", threads)
            .with("time-ms", rules.benchmark_ms);
        let reads = [(compile, blob::OBJECT), (compile, blob::KERNEL)];
        let benchmark =
            push(StepKind::Benchmark, &reads, &[(plan, blob::PLAN), (verify, blob::AUDIT)], (own, &[fingerprint]));

        let own = params(StepKind::Report, &recipe::REPORT)
            .with("name", &name)
            .with("target", &target)
            .with("threads", threads);
        let reads = [
            (plan, blob::PASSES),
            (plan, blob::STAGES),
            (plan, blob::PLAN),
            (verify, blob::AUDIT),
            (benchmark, blob::BENCHMARK),
        ];
        push(StepKind::Report, &reads, &[], (own, &[&spec, fingerprint]));
        if searches {
            graph.search(plan);
        }
    }
    graph
}

/// The parts that every step of a kind has.
fn params(kind: StepKind, recipe: &Digest) -> KeyParts {
    KeyParts::new().with("step", kind.name()).with("recipe", recipe)
}

/// What a searched plan depends on beside the operations: the budget, and all that a trial's verdict and time depend on.
fn searched(own: &mut KeyParts, tuning: &Tuning, environment: &EnvironmentLlm) {
    let recipes = [
        ("compile", recipe::COMPILE),
        ("verify", recipe::VERIFY),
        ("benchmark", recipe::BENCHMARK),
        ("ir", recipe::IR),
    ];
    for (name, recipe) in recipes {
        own.set(format!("recipe.{name}"), recipe.to_string());
    }
    own.set("tuning.trials", tuning.trials.to_string());
    own.set("tuning.seed", tuning.seed.to_string());
    own.set("tuning.fusions", tuning.fusions.to_string());
    own.set_fields("tuning.knobs", &tuning.knobs);
    if let Some(time) = tuning.time_ms {
        own.set("tuning.time-ms", time.to_string());
    }
    if tuning.strategy == Strategy::Llm {
        let has_endpoint = environment.endpoint || tuning.llm.endpoint.is_some();
        let model = environment.model.clone().or_else(|| tuning.llm.model.clone());
        own.set_fields("tuning.llm", &Llm { endpoint: None, model, ..tuning.llm.clone() });
        own.set("tuning.llm.endpoint", if has_endpoint { "known" } else { "none" });
    }
}

/// Keeps each name and value once: the steps of many blocks have few different ones.
#[derive(Default)]
struct Texts(HashSet<Arc<str>>);

impl Texts {
    fn share(&mut self, parts: KeyParts) -> KeyParts {
        parts.map_texts(|it| match self.0.get(&*it) {
            Some(known) => Arc::clone(known),
            None => {
                self.0.insert(Arc::clone(&it));
                it
            }
        })
    }
}

/// The block's fields under the names that the manifest gives them (`block.d-model`, `block.norm-eps`), so that a stale
/// reason names what a person edited.
pub fn block_parts(spec: &BlockSpec) -> KeyParts {
    serialized_block_parts(spec)
}

/// [`block_parts`] of anything that serialises like a block, so that a test can try values no block has.
pub(super) fn serialized_block_parts(spec: &impl Serialize) -> KeyParts {
    let mut nested = KeyParts::new();
    nested.set_fields("block", spec);
    let mut parts = KeyParts::new();
    for (long, value) in nested.iter() {
        let short = match long {
            "block.norm.kind" => "block.norm".to_owned(),
            "block.norm.eps" => "block.norm-eps".to_owned(),
            _ => ["block.rows.", "block.attention.", "block.mlp."]
                .iter()
                .find_map(|group| long.strip_prefix(group))
                .map_or_else(|| long.to_owned(), |field| format!("block.{field}")),
        };
        // Two groups may have a field of one name, as attention and MLP have `d-model`. A different value is a different part.
        let taken = parts.get(&short).is_some_and(|it| it != value);
        parts.set(if taken { long.to_owned() } else { short }, value);
    }
    parts
}

/// A device's facts as parts of keys: `cpu.<fact>` or `gpu.<fact>`, by their serde names.
struct DeviceParts {
    identity: Digest,
    /// All of them, for what runs on it.
    fingerprint: Arc<KeyParts>,
    /// Those that the generated code depends on.
    code: Arc<KeyParts>,
    /// Those that schedules are computed from.
    plans: Arc<KeyParts>,
}

impl DeviceParts {
    fn new(device: &Device) -> Self {
        let mut all = KeyParts::new();
        match device {
            Device::Cpu(cpu) => all.set_fields("cpu", cpu),
            Device::Gpu(gpu) => all.set_fields("gpu", gpu),
        }
        let only = |wanted: fn(&str) -> bool| Arc::new(all.iter().filter(|it| wanted(it.0)).collect());
        let (code, plans, identity) = (only(decides_code), only(decides_plan), device.fingerprint());
        Self { identity, code, plans, fingerprint: Arc::new(all) }
    }
}

/// What the generator of code may look at. The number of cores decides how work is spread when it runs, not the code. WGSL is
/// generated from features and limits, whatever the GPU is called: the driver compiles it when it runs.
fn decides_code(fact: &str) -> bool {
    fact != "cpu.cores" && !names_a_gpu(fact)
}

/// What the schedules are computed from. A GPU's name decides no schedule: equal features and limits get equal plans. A CPU's does:
/// who made it says what a product of pairs of bf16 costs.
fn decides_plan(fact: &str) -> bool {
    !names_a_gpu(fact)
}

/// Which model of its maker the GPU is, and which driver it has.
fn names_a_gpu(fact: &str) -> bool {
    matches!(fact, "gpu.name" | "gpu.device" | "gpu.driver" | "gpu.driver-version")
}
