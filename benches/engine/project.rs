//! Projects of any number of steps that look built: their manifests, a store that holds what a build would have left, and the
//! same graph for ninja.

use kernelforge::{
    build::graph::{self, BlockTarget, Graph, Outputs, Rules, Step, StepKind},
    digest::Digest,
    host::{CpuFacts, Device},
    manifest,
    protocol::blob,
    store::{Store, records::Record},
};
use rayon::prelude::*;
use std::{
    fmt::Write as _,
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Of a real build; only the names in it are replaced.
const REPORT: &str = include_str!("report.json");

/// Blocks declared in one file.
const BLOCKS_PER_FILE: usize = 100;

pub struct Generated {
    pub kforge: PathBuf,
    pub ninja: PathBuf,
    pub steps: usize,
}

impl Generated {
    pub fn edit_one_field(&self) {
        let path = self.kforge.join("workloads/w0000.toml");
        let text = fs::read_to_string(&path).expect("the workload");
        fs::write(&path, text.replacen("norm-eps = 1e-5", "norm-eps = 1e-6", 1)).expect("the workload");
    }
}

/// A project of at least so many steps.
pub fn generate(folder: &Path, steps: usize) -> Generated {
    let (kforge, ninja) = (folder.join("kforge"), folder.join("ninja"));
    manifests(&kforge, steps.div_ceil(StepKind::ALL.len()));
    let graph = fill(&kforge);
    fs::create_dir_all(&ninja).expect("a folder");
    for_ninja(&ninja, &graph);
    Generated { kforge, ninja, steps: graph.len() }
}

fn manifests(folder: &Path, blocks: usize) {
    fs::create_dir_all(folder.join("workloads")).expect("a folder");
    let project = "[project]\nname = \"scale\"\nworkloads = [\"workloads/*.toml\"]\n";
    fs::write(folder.join("kernelforge.toml"), project).expect("the project file");
    let declarations: Vec<_> = (0..blocks).map(declaration).collect();
    for (index, some) in declarations.chunks(BLOCKS_PER_FILE).enumerate() {
        fs::write(folder.join(format!("workloads/w{index:04}.toml")), some.concat()).expect("a workload");
    }
}

fn declaration(index: usize) -> String {
    let (name, size) = (format!("[block.block{index:05}]\n"), 16 * (1 + index % 61));
    name + &match index % 4 {
        0 => format!(
            "kind = \"transformer\"\nseq = 128\nd-model = {}\nheads = 4\nd-ff = {size}\nnorm = \"layer-norm\"\n\
             norm-eps = 1e-5\nactivation = \"gelu-tanh\"\nbias = true\ncausal = true\n",
            4 * size
        ),
        1 => format!("kind = \"mlp\"\nseq = 64\nd-model = {size}\nd-ff = 256\nactivation = \"silu\"\ngated = true\n"),
        2 => format!("kind = \"matmul\"\nm = 128\nn = {size}\nk = 768\nbias = true\n"),
        _ => format!("kind = \"layer-norm\"\nseq = 128\nd-model = {size}\nnorm-eps = 1e-5\n"),
    }
}

/// Puts into the store what a build of the project would have left.
fn fill(root: &Path) -> Graph {
    let project = manifest::load(root).expect("a project");
    let (cpu, rules) = (Arc::new(Device::Cpu(CpuFacts::detect())), Rules::default());
    let blocks: Vec<_> = project
        .blocks
        .iter()
        .map(|it| BlockTarget {
            name: it.name.clone(),
            spec: it.spec.clone(),
            passes: project.pipelines[&it.pipeline].clone(),
            tuning: manifest::Tuning::heuristic("default".to_owned()),
            target: "cpu".to_owned(),
            threads: 1,
            device: Arc::clone(&cpu),
            hybrid_softmax: false,
        })
        .collect();
    let graph = graph::plan_build(&blocks, &rules);
    let (store, _) = Store::open(root).expect("a store");
    let mut outputs: Vec<Outputs> = Vec::new();
    let mut records = Vec::new();
    for step in graph.steps() {
        let parts = graph.parts(step.id, |it| outputs.get(it.index())).expect("known inputs");
        let made = outputs_of(step).map(|it| (it.to_owned(), Digest::of(content(step, it).as_bytes()))).collect();
        outputs.push(made);
        let outputs = outputs[step.id.index()].clone();
        records.push((step.identity(), Record { key: parts.key(), parts, outputs, finished_unix: 0, wall_us: 0 }));
    }
    // As the store writes them but for the synchronisation, which for 200,000 blobs takes minutes and is not what is measured.
    graph.steps().par_iter().for_each(|step| {
        for name in outputs_of(step) {
            let content = content(step, name);
            let path = store.cas.path(&Digest::of(content.as_bytes()));
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(&path, content).expect("a blob");
            let file = File::open(&path).expect("a blob");
            file.set_permissions(Permissions::from_mode(0o444)).expect("a mode");
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1)).expect("a time");
        }
    });
    for some in records.chunks(1000) {
        let some: Vec<_> = some.iter().map(|it| (it.0, &it.1)).collect();
        store.records.put_all(&some).expect("the records");
    }
    graph
}

fn outputs_of(step: &Step) -> impl Iterator<Item = &'static str> + use<> {
    let names: &[&str] = match step.kind {
        StepKind::Ir => &[blob::MODULE, blob::OPTIMIZED, blob::STAGES, blob::PASSES],
        StepKind::Plan => &[blob::PLAN],
        StepKind::Compile => &[blob::OBJECT, blob::KERNEL, blob::LOWERED],
        StepKind::Verify => &[blob::AUDIT],
        StepKind::Benchmark => &[blob::BENCHMARK],
        StepKind::Report => &[blob::REPORT],
    };
    names.iter().copied()
}

fn content(step: &Step, name: &str) -> String {
    if name == blob::REPORT {
        return REPORT.replacen(
            "\"block\": \"tiny\"",
            &format!("\"block\": \"{}\"", step.block.as_deref().unwrap_or_default()),
            1,
        );
    }
    format!("{name} of {}\n", step.identity())
}

/// One file for each step, made by a command that does nothing.
fn for_ninja(folder: &Path, graph: &Graph) {
    let mut text = "rule step\n  command = :\n".to_owned();
    let files: Vec<_> = graph.steps().iter().map(|it| it.identity().replace(['@', ':'], "_")).collect();
    for step in graph.steps() {
        let inputs: Vec<_> = step.deps.iter().map(|it| files[it.index()].as_str()).collect();
        let inputs = if inputs.is_empty() { "manifest".to_owned() } else { inputs.join(" ") };
        writeln!(text, "build {}: step {inputs}", files[step.id.index()]).expect("a string grows");
    }
    fs::write(folder.join("manifest"), "").expect("a file");
    fs::write(folder.join("build.ninja"), text).expect("the build file");
    for file in &files {
        fs::write(folder.join(file), "").expect("a file");
    }
}
