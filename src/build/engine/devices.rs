//! The devices of a build's targets. The CPU tells its facts at once; which GPUs there are is asked of a worker, because only it
//! links a GPU library, and remembered in the store under what the answer rests on ([`ground`]), so that a build with nothing
//! to do starts no worker.

pub mod ground;
#[cfg(test)]
mod tests;

use super::{
    action,
    worker::{Leash, Request, Seat, Toolchain, WorkerError},
};
use crate::{
    build::graph::StepKind,
    digest::Digest,
    host::{
        CpuFacts, Device,
        gpu::{GpuFacts, GpuKind},
    },
    manifest::{Backend, Target, error::list},
    protocol::{ActionKind, Blobs, Failure, FailureKind, Gpus, blob, recipe},
    store::{Store, cas::Cas, memo},
};
use globset::GlobBuilder;
use ground::Ground;
use serde::{Deserialize, Serialize};
use std::{cell::OnceCell, collections::BTreeMap, fmt, path::Path, sync::Arc, time::SystemTime};

/// The name of the memo.
const MEMO: &str = "gpus";

/// Why a target has no device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("target `{target}` needs a GPU, and there is none that kernels can run on")]
    NoAdapter { target: String, problems: Vec<String> },
    #[error("no GPU has a name that matches `{pattern}`, the `adapter` of target `{target}`: there {} {}", are(.found.len()), list(.found))]
    NoMatch { target: String, pattern: String, found: Vec<String> },
    /// The worker that would look for GPUs.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error("the GPUs cannot be looked for: {0}")]
    Probe(Failure),
}

impl DeviceError {
    /// What was found beside the point, a line each.
    pub fn detail(&self) -> String {
        match self {
            Self::NoAdapter { problems, .. } => problems.join("\n"),
            Self::Probe(failure) => failure.detail.clone(),
            Self::NoMatch { .. } | Self::Worker(_) => String::new(),
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoAdapter { .. } => Some(MISSING.to_owned()),
            Self::NoMatch { target, .. } => {
                Some(format!("change `adapter` in `[target.{target}]`; `kforge doctor` says what each GPU can do"))
            }
            Self::Worker(error) => error.hint(),
            Self::Probe(failure) => failure.hint.clone().or_else(|| Some("`kforge doctor` says more".to_owned())),
        }
    }
}

/// How to get a GPU.
pub const MISSING: &str = "install the GPU's Vulkan driver, or a software GPU, which is right for tests and slow: the packages \
                           libvulkan1 and mesa-vulkan-drivers of Debian and Ubuntu; `kforge doctor` says more";

const fn are(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

/// The GPU for a target: of those whose names match the pattern, upper and lower case alike, a real one before a software one,
/// a discrete one before an integrated one, the driver's first before its second. `None` if none matches.
pub fn choose<'a>(found: &'a [GpuFacts], pattern: &str) -> Option<&'a GpuFacts> {
    // `[`, `{` and the like are checked when the manifest is read; a pattern that is none matches nothing.
    let glob = GlobBuilder::new(pattern).case_insensitive(true).build().ok()?.compile_matcher();
    found.iter().filter(|it| glob.is_match(&it.name)).min_by_key(|it| rank(it.kind))
}

/// A virtual GPU is a real one seen through a hypervisor; one of an unknown kind may be anything.
const fn rank(kind: GpuKind) -> usize {
    match kind {
        GpuKind::Discrete => 0,
        GpuKind::Integrated => 1,
        GpuKind::Virtual => 2,
        GpuKind::Other => 3,
        GpuKind::Software => 4,
    }
}

/// What a probe said, as the store keeps it.
#[derive(Serialize, Deserialize)]
struct Memo {
    ground: Digest,
    worker: Digest,
    gpus: Gpus,
}

/// Finds the devices of targets; looks for GPUs at most once, and only where a target needs one.
pub struct Finder<'a> {
    pub cpu: CpuFacts,
    probe: Box<dyn Fn() -> Result<Gpus, DeviceError> + 'a>,
    gpus: OnceCell<Gpus>,
    devices: std::cell::RefCell<BTreeMap<String, Arc<Device>>>,
}

impl fmt::Debug for Finder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finder").field("cpu", &self.cpu).finish_non_exhaustive()
    }
}

impl<'a> Finder<'a> {
    /// `probe` says which GPUs there are.
    pub fn new(cpu: CpuFacts, probe: impl Fn() -> Result<Gpus, DeviceError> + 'a) -> Self {
        Self { cpu, probe: Box::new(probe), gpus: OnceCell::new(), devices: Default::default() }
    }

    /// Asks what the project's store remembers, and a worker where that no longer holds.
    pub fn of_store(store: &'a Store, root: &'a Path) -> Self {
        Self::new(CpuFacts::detect(), move || remembered(store, root))
    }

    /// For those who must name what was built and build nothing: takes what the store remembers, whether it still holds or not, and
    /// otherwise a GPU that matches no key. They look at records by the names of their steps.
    pub fn of_records(root: &'a Path) -> Self {
        Self::new(CpuFacts::detect(), move || {
            let bytes = memo::recall(root, MEMO);
            let gpus = bytes.and_then(|it| serde_json::from_slice::<Memo>(&it).ok()).map(|it| it.gpus);
            Ok(gpus.unwrap_or(Gpus { found: Vec::new(), problems: Vec::new() }))
        })
    }

    /// The target's device.
    ///
    /// # Errors
    /// Where the target needs a GPU and none is there, none matches, or nobody can look.
    pub fn device(&self, target: &Target) -> Result<Arc<Device>, DeviceError> {
        if let Some(device) = self.devices.borrow().get(&target.name) {
            return Ok(Arc::clone(device));
        }
        let device = Arc::new(match &target.backend {
            Backend::Cpu { .. } => Device::Cpu(self.cpu.clone()),
            Backend::Gpu { adapter, .. } => Device::Gpu(pick(self.gpus()?, &target.name, adapter)?.clone()),
        });
        self.devices.borrow_mut().insert(target.name.clone(), Arc::clone(&device));
        Ok(device)
    }

    /// [`Finder::device`]; where there is none, a GPU that matches no key.
    pub fn device_or_none(&self, target: &Target) -> Arc<Device> {
        self.device(target).unwrap_or_else(|_| Arc::new(Device::Gpu(nowhere())))
    }

    fn gpus(&self) -> Result<&Gpus, DeviceError> {
        if let Some(gpus) = self.gpus.get() {
            return Ok(gpus);
        }
        let gpus = (self.probe)()?;
        Ok(self.gpus.get_or_init(|| gpus))
    }
}

/// The GPU for a target, or why there is none.
pub fn pick<'a>(gpus: &'a Gpus, target: &str, pattern: &str) -> Result<&'a GpuFacts, DeviceError> {
    let target = || target.to_owned();
    if gpus.found.is_empty() {
        return Err(DeviceError::NoAdapter { target: target(), problems: gpus.problems.clone() });
    }
    choose(&gpus.found, pattern).ok_or_else(|| DeviceError::NoMatch {
        target: target(),
        pattern: pattern.to_owned(),
        found: gpus.found.iter().map(GpuFacts::shown).collect(),
    })
}

/// Facts that no GPU has: no key has them either.
fn nowhere() -> GpuFacts {
    GpuFacts {
        name: "no GPU".to_owned(),
        kind: GpuKind::Other,
        vendor: 0,
        device: 0,
        api: String::new(),
        driver: String::new(),
        driver_version: String::new(),
        features: Vec::new(),
        subgroup_min: 0,
        subgroup_max: 0,
        workgroup_memory: 0,
        workgroup_invocations: 0,
        workgroup_x: 0,
        workgroups: 0,
        buffer_bytes: 0,
        binding_bytes: 0,
        bindings: 0,
        binding_alignment: 0,
        cooperative: Vec::new(),
    }
}

/// What the store remembers if it still holds, and otherwise what a worker finds.
fn remembered(store: &Store, root: &Path) -> Result<Gpus, DeviceError> {
    let start = SystemTime::now();
    let ground = Ground::now();
    let memo = memo::recall(root, MEMO).and_then(|it| serde_json::from_slice::<Memo>(&it).ok());
    if let Some(memo) = memo.filter(|it| it.ground == ground.digest() && it.worker == recipe::WORKER) {
        return Ok(memo.gpus);
    }
    let gpus = probe(&Toolchain::new(store.dir()), &Leash::default(), &store.cas)?;
    // An answer that names no GPU is asked for again each time: who installs a driver is not to be told of the old one.
    if ground.lasts(start) && !gpus.found.is_empty() {
        let memo = Memo { ground: ground.digest(), worker: recipe::WORKER, gpus: gpus.clone() };
        // Losing it costs a probe.
        let _ = serde_json::to_vec(&memo).map(|it| store.remember(MEMO, &it));
    }
    Ok(gpus)
}

/// Has a worker look for GPUs.
pub fn probe(toolchain: &Toolchain, leash: &Leash, cas: &Cas) -> Result<Gpus, DeviceError> {
    let kind = ActionKind::Probe;
    let limits = action::with_driver(action::limits(StepKind::Ir), &kind);
    let request = Request { kind, inputs: Blobs::new(), limits };
    let done = Seat::new(toolchain, leash).execute(&request)?.map_err(DeviceError::Probe)?;
    let failed = |kind, text: String| DeviceError::Probe(Failure::new(kind, text));
    let missing = || failed(FailureKind::Internal, "the worker made no list of them".to_owned());
    let digest = done.outputs.get(blob::GPUS).ok_or_else(missing)?;
    let bytes = cas.get(digest).map_err(|error| failed(FailureKind::MissingBlob, error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| failed(FailureKind::Internal, error.to_string()))
}
