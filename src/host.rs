//! Facts about devices: what decides which code is fast and which runs at all.
//!
//! Those of the CPU this process runs on are read from cpuid and sysfs in well under a millisecond, so that a build with
//! nothing to do can compare fingerprints without a worker. Those of a GPU ([`gpu`]) are found out by a worker.

pub mod gpu;

use crate::digest::Digest;
use serde::{Deserialize, Serialize};
use std::{fs, io::Read};

/// What a target's kernels run on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    Cpu(CpuFacts),
    Gpu(gpu::GpuFacts),
}

impl Device {
    /// The identity under which measured results are kept.
    pub fn fingerprint(&self) -> Digest {
        match self {
            Self::Cpu(it) => it.fingerprint(),
            Self::Gpu(it) => it.fingerprint(),
        }
    }

    /// The model or adapter, for people.
    pub fn name(&self) -> &str {
        match self {
            Self::Cpu(it) => &it.model,
            Self::Gpu(it) => &it.name,
        }
    }

    /// [`Self::name`], with a word where figures of it mean nothing: `llvmpipe (software)`.
    pub fn shown(&self) -> String {
        match self {
            Self::Cpu(it) => it.model.clone(),
            Self::Gpu(it) => it.shown(),
        }
    }
}

impl From<CpuFacts> for Device {
    fn from(it: CpuFacts) -> Self {
        Self::Cpu(it)
    }
}

impl From<gpu::GpuFacts> for Device {
    fn from(it: gpu::GpuFacts) -> Self {
        Self::Gpu(it)
    }
}

/// The resolved facts of one CPU. Two machines with equal facts may share measured results; others never do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuFacts {
    /// `x86_64` or `aarch64`.
    pub arch: String,
    pub model: String,
    /// The instruction-set extensions that code generation cares about, sorted.
    pub isa: Vec<String>,
    /// f32 elements of the widest vector.
    pub lanes: usize,
    /// Architectural vector registers of that width.
    pub vector_registers: usize,
    /// Bytes of one core's caches; `l3` is the shared one, 0 where there is none.
    pub l1d: usize,
    pub l2: usize,
    pub l3: usize,
    /// Cores that this process may use.
    pub cores: usize,
}

impl CpuFacts {
    /// The facts of the running CPU. What the system does not tell is filled with the smallest value common today.
    pub fn detect() -> Self {
        let isa = isa();
        let (lanes, vector_registers) = vectors(&isa);
        Self {
            arch: std::env::consts::ARCH.to_owned(),
            model: model(),
            lanes,
            vector_registers,
            isa,
            l1d: cache("1", "Data").unwrap_or(32 << 10),
            l2: cache("2", "Unified").unwrap_or(512 << 10),
            l3: cache("3", "Unified").unwrap_or(0),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// The digest of the facts: the identity under which measured results are kept.
    pub fn fingerprint(&self) -> Digest {
        Digest::of(serde_json::to_string(self).unwrap_or_default().as_bytes())
    }
}

#[cfg(target_arch = "x86_64")]
fn isa() -> Vec<String> {
    macro_rules! present {
        ($($name:tt),*) => {
            [$(($name, std::arch::is_x86_feature_detected!($name))),*]
        };
    }
    let known = present!("avx", "avx2", "avx512bf16", "avx512bw", "avx512dq", "avx512f", "avx512vl", "f16c", "fma");
    known.into_iter().filter(|it| it.1).map(|it| it.0.to_owned()).collect()
}

#[cfg(target_arch = "aarch64")]
fn isa() -> Vec<String> {
    vec!["neon".to_owned()]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn isa() -> Vec<String> {
    Vec::new()
}

/// Lanes of f32 and number of registers for the widest vectors in `isa`.
fn vectors(isa: &[String]) -> (usize, usize) {
    let has = |name: &str| isa.iter().any(|it| it == name);
    if has("avx512f") && has("avx512vl") && has("avx512dq") && has("avx512bw") {
        (16, 32)
    } else if has("avx2") && has("fma") {
        (8, 16)
    } else if has("neon") {
        (4, 32)
    } else {
        (4, 16)
    }
}

fn model() -> String {
    // The first core's part. The kernel makes the text while it is read, and many cores take milliseconds.
    let mut text = Vec::new();
    let read = fs::File::open("/proc/cpuinfo").and_then(|it| it.take(4096).read_to_end(&mut text));
    let text = if read.is_ok() { String::from_utf8_lossy(&text) } else { "".into() };
    let field = |name: &str| {
        let line = text.lines().find(|it| it.starts_with(name))?;
        line.split_once(':').map(|it| it.1.trim().to_owned())
    };
    let name = field("model name").unwrap_or_else(|| "unknown CPU".to_owned());
    // Hypervisors hide the marketing name, so the family, model and stepping that decide speed are part of it.
    match (field("cpu family"), field("model\t"), field("stepping")) {
        (Some(family), Some(model), Some(stepping)) => {
            format!("{name} (family {family} model {model} stepping {stepping})")
        }
        _ => name,
    }
}

/// Size in bytes of the first CPU's cache of this level and type.
fn cache(level: &str, kind: &str) -> Option<usize> {
    (0..8).find_map(|index| {
        let read = |file: &str| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{file}");
            fs::read_to_string(path).ok().map(|it| it.trim().to_owned())
        };
        if read("level")? != level || read("type")? != kind {
            return None;
        }
        let size = read("size")?;
        let (digits, unit) = size.split_at(size.find(|it: char| !it.is_ascii_digit()).unwrap_or(size.len()));
        let unit = match unit {
            "K" => 1 << 10,
            "M" => 1 << 20,
            _ => 1,
        };
        digits.parse::<usize>().ok().map(|it| it * unit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_stable_and_plausible() {
        let facts = CpuFacts::detect();
        assert_eq!(facts, CpuFacts::detect());
        assert_eq!(facts.fingerprint(), CpuFacts::detect().fingerprint());
        assert!(facts.lanes.is_power_of_two() && facts.l1d >= 8 << 10 && facts.cores >= 1, "{facts:?}");
    }

    #[test]
    fn every_fact_is_in_the_fingerprint() {
        let facts = CpuFacts::detect();
        let mut other = facts.clone();
        other.l2 += 1;
        assert_ne!(facts.fingerprint(), other.fingerprint());
    }
}
