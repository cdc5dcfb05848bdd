//! A small project in a temporary directory, and the tool run in it.
#![cfg_attr(not(feature = "worker"), allow(dead_code))]

use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

pub const KFORGE: &str = env!("CARGO_BIN_EXE_kforge");

/// Two blocks that build in a moment.
pub const BLOCKS: &str = r#"
[block.first]
kind = "layer-norm"
seq = 4
d-model = 32
norm = "layer-norm"
norm-eps = 1e-5

[block.second]
kind = "matmul"
m = 8
n = 32
k = 16
"#;

pub struct Project {
    pub folder: TempDir,
}

impl Project {
    pub fn new() -> Self {
        Self::with(BLOCKS)
    }

    pub fn with(blocks: &str) -> Self {
        let project = Self { folder: TempDir::new().unwrap() };
        fs::create_dir(project.path("workloads")).unwrap();
        fs::create_dir(project.path("run")).unwrap();
        fs::write(project.path("workloads/blocks.toml"), blocks).unwrap();
        let passes = r#"["fold-constants", "fuse-matmul-activation", "fuse-mlp-block", "eliminate-dead-ops", "tile-matmul", "vectorize-layernorm"]"#;
        let text = format!(
            "[project]\nname = \"test\"\nworkloads = [\"workloads/*.toml\"]\ntargets = [\"cpu\"]\n\n\
             [target.cpu]\nbackend = \"cpu\"\nthreads = 1\n\n[pipeline.default]\npasses = {passes}\n"
        );
        fs::write(project.path("kernelforge.toml"), text).unwrap();
        project
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces text in a file of the project; the text must be there.
    pub fn edit(&self, file: &str, old: &str, new: &str) {
        let path = self.path(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(old), "`{old}` is not in {text}");
        fs::write(path, text.replacen(old, new, 1)).unwrap();
    }

    /// The tool, to be run in this project. Devices are leased among the runs of one project only, so that tests that run
    /// side by side do not wait for each other.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(KFORGE);
        command
            .args(args)
            .current_dir(self.folder.path())
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Run {
        Run::of(self.command(args).output().unwrap())
    }

    /// Runs and expects exit code 0.
    pub fn done(&self, args: &[&str]) -> Run {
        let run = self.run(args);
        assert_eq!(run.code, Some(0), "{args:?}: {}{}", run.stdout, run.stderr);
        run
    }

    /// `build --json` with more arguments; expects exit code 0.
    pub fn build(&self, args: &[&str]) -> Built {
        let args: Vec<_> = ["build", "--json"].iter().chain(args).copied().collect();
        Built(self.done(&args).json())
    }

    /// The digests of what a step made, by output name.
    pub fn outputs(&self, step: &str) -> BTreeMap<String, String> {
        let steps = self.done(&["build", "-n", "--json"]).json();
        let steps = steps["steps"].as_array().unwrap();
        let step = steps.iter().find(|it| it["step"] == step).unwrap();
        serde_json::from_value(step["status"]["outputs"].clone()).unwrap()
    }

    pub fn blob(&self, step: &str, output: &str) -> PathBuf {
        let cas = kernelforge::store::cas::Cas::open(&self.path(".kforge-cache")).unwrap();
        cas.path(&self.outputs(step)[output].parse().unwrap())
    }

    /// What a build made, without what contains times.
    pub fn artefacts(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let out = self.path(".kforge-cache/out");
        let mut files = BTreeMap::new();
        for block in fs::read_dir(&out).unwrap().map(|it| it.unwrap().path()) {
            for file in fs::read_dir(block).unwrap().map(|it| it.unwrap().path()) {
                let name = file.file_name().unwrap().to_str().unwrap();
                if !name.starts_with('.') && name != "report.json" && name != "audit.json" {
                    files.insert(file.strip_prefix(&out).unwrap().to_owned(), fs::read(&file).unwrap());
                }
            }
        }
        files
    }
}

/// One finished run of the tool.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {}{}", self.stdout, self.stderr))
    }
}

/// What `build --json` says.
pub struct Built(pub Value);

impl Built {
    /// The steps with this result (`ran`, `up-to-date`, ...), sorted.
    pub fn steps(&self, result: &str) -> Vec<String> {
        let steps = self.0["steps"].as_array().unwrap().iter().filter(|it| it["result"] == result);
        let mut names: Vec<_> = steps.map(|it| it["step"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    pub fn ran(&self) -> Vec<String> {
        self.steps("ran")
    }
}

pub fn signal(name: &str, pid: u32) {
    // The process may have ended in the meantime.
    Command::new("kill").args(["-s", name]).arg(pid.to_string()).stderr(Stdio::null()).status().unwrap();
}

/// The live processes whose parent is `pid`.
pub fn children(pid: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|it| it.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let parent = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    processes.filter(|it| parent(it) == Some(pid)).collect()
}

/// The live processes whose command line mentions `path`.
pub fn processes_on(path: &Path) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|it| it.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let path = path.to_str().unwrap();
    let mentions = |pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|it| String::from_utf8_lossy(&it).contains(path))
    };
    processes.filter(mentions).collect()
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whoever was killed, no worker goes on by itself.
pub fn no_worker_is_left(project: &Project) {
    let store = project.path(".kforge-cache");
    wait_until("no worker is left", || processes_on(&store).is_empty());
}

/// A generator small enough to be here; only its being the same in each run matters.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit
    }

    pub fn unit(&mut self) -> f64 {
        self.next() as f64 / (1u64 << 31) as f64
    }
}
