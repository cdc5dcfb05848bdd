//! What only one process has at a time: a step while it is made, and the device while it is measured on, which is kept from every
//! other build of this user, in whatever project. All waits end when the build is interrupted.
//!
//! While somebody measures, no step of another build runs on the device either: those hold it together (shared), a measurement
//! holds it alone. Who wants it alone closes a gate first, so that the others let it in.
//!
//! A step for a GPU needs the CPU as well ([`needs`]): its kernel is generated there, the references that it is held against are
//! computed there, and a software GPU runs there. A step that needs both takes the CPU first, always, so that two steps never wait
//! for each other.

use crate::{
    build::graph::{BlockTarget, Class, StepKind},
    digest::Digest,
    host::{CpuFacts, Device},
    store::{
        BuildLockError, Notice, Store,
        lock::{Holder, Lock, LockError, Sharing},
    },
};
use std::{
    env,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long a wait lasts before it looks whether the build was interrupted.
const SLICE: Duration = Duration::from_millis(100);

/// How long to wait, and when to give up.
pub struct Patience<'a> {
    /// Asked every 100 ms.
    pub cancelled: &'a dyn Fn() -> bool,
    /// `None`: as long as it takes.
    pub limit: Option<Duration>,
}

/// What a step wants of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// To run beside others.
    Compute,
    /// To run alone.
    Measure,
}

/// What a step of this kind needs of the devices, by fingerprint, in the order in which it takes them.
///
/// | step | CPU | GPU |
/// |---|---|---|
/// | ir, compile, for any target | shared | |
/// | verify for a GPU | shared: the references run there | shared |
/// | benchmark for a CPU | alone | |
/// | benchmark for a GPU | shared: it submits, and measures nothing of the CPU | alone |
/// | benchmark for a software GPU, or with the softmax on the CPU | alone | alone |
///
/// Report, and a plan of the heuristic, are a moment's work of the tool itself and need nothing. A plan that is searched needs what
/// a benchmark does.
pub fn needs(kind: StepKind, cpu: &CpuFacts, block: Option<&BlockTarget>) -> Vec<(Digest, Use)> {
    let searches = kind == StepKind::Plan && block.is_some_and(|it| it.tuning.strategy.searches());
    let kind = if searches { StepKind::Benchmark } else { kind };
    let exclusive = kind.class() == (Class::Device { exclusive: true });
    let gpu = block.and_then(|it| match &*it.device {
        Device::Gpu(gpu) => Some((gpu, gpu.software() || it.hybrid_softmax)),
        Device::Cpu(_) => None,
    });
    let wanted = if exclusive { Use::Measure } else { Use::Compute };
    match (kind, gpu) {
        (StepKind::Plan | StepKind::Report, _) => Vec::new(),
        (StepKind::Verify | StepKind::Benchmark, Some((gpu, on_cpu))) => {
            let beside = if on_cpu { wanted } else { Use::Compute };
            vec![(cpu.fingerprint(), beside), (gpu.fingerprint(), wanted)]
        }
        _ => vec![(cpu.fingerprint(), wanted)],
    }
}

/// Devices for the time of one step.
#[derive(Debug, Default)]
pub struct Lease {
    /// Of each device, and the gate of those that are measured.
    _locks: Vec<Lock>,
}

/// Waits for the devices, one after the other. `None`: interrupted while waiting.
pub fn devices(
    needs: &[(Digest, Use)],
    patience: &Patience<'_>,
    mut on_wait: impl FnMut(&Holder),
) -> Result<Option<Lease>, LockError> {
    let mut lease = Lease::default();
    for (fingerprint, wanted) in needs {
        match device(fingerprint, *wanted, patience, &mut on_wait)? {
            Some(locks) => lease._locks.extend(locks),
            None => return Ok(None),
        }
    }
    Ok(Some(lease))
}

/// Waits for the device with this fingerprint. `None`: interrupted while waiting.
fn device(
    fingerprint: &Digest,
    wanted: Use,
    patience: &Patience<'_>,
    mut on_wait: impl FnMut(&Holder),
) -> Result<Option<Vec<Lock>>, LockError> {
    let path = folder().join(format!("device-{}", fingerprint.short()));
    let gate = path.with_extension("gate");
    let sharing = match wanted {
        Use::Compute => Sharing::Shared,
        Use::Measure => Sharing::Alone,
    };
    let Some(gate) = wait(&gate, sharing, patience, &mut on_wait)? else { return Ok(None) };
    let device = wait(&path, sharing, patience, &mut on_wait)?;
    // Who measures keeps the gate closed.
    Ok(device.map(|device| [Some(device), (wanted == Use::Measure).then_some(gate)].into_iter().flatten().collect()))
}

/// Waits for a lock that one process has at a time. `None`: interrupted while waiting.
pub fn lock(path: &Path, patience: &Patience<'_>, mut on_wait: impl FnMut(&Holder)) -> Result<Option<Lock>, LockError> {
    wait(path, Sharing::Alone, patience, &mut on_wait)
}

/// Enters the store's project as one of the processes that build there; waits for one that cleans. `None`: interrupted.
pub fn directory(
    store: &Store,
    patience: &Patience<'_>,
    mut on_wait: impl FnMut(&Holder),
) -> Result<Option<(Lock, Vec<Notice>)>, BuildLockError> {
    match wait(&store.build_lock_path(), Sharing::Shared, patience, &mut on_wait)? {
        Some(lock) => Ok(Some((lock, store.entered()?))),
        None => Ok(None),
    }
}

/// Tries until it succeeds, the build is interrupted or patience ends, telling each holder once.
fn wait(
    path: &Path,
    sharing: Sharing,
    patience: &Patience<'_>,
    on_wait: &mut dyn FnMut(&Holder),
) -> Result<Option<Lock>, LockError> {
    let (start, mut told) = (Instant::now(), None);
    while !(patience.cancelled)() {
        let left = patience.limit.map_or(SLICE, |it| it.saturating_sub(start.elapsed()).min(SLICE));
        let taken = Lock::acquire(path, sharing, Some(left), |holder| {
            if told.as_ref() != Some(holder) {
                on_wait(holder);
                told = Some(holder.clone());
            }
        });
        match taken {
            Ok(lock) => return Ok(Some(lock)),
            Err(LockError::Held { path, holder, .. }) if patience.limit.is_some_and(|it| start.elapsed() >= it) => {
                return Err(LockError::Held { path, holder, waited: start.elapsed() });
            }
            Err(LockError::Held { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The user's runtime directory, or a folder in the temporary one. One folder for all users would need their trust in each
/// other, for a lock that one of them could hold for ever.
fn folder() -> PathBuf {
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|it| it.is_dir());
    runtime.unwrap_or_else(env::temp_dir).join(format!("kforge-{}", rustix::process::getuid().as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::graph::tests::{block, cpu, gpu, gpu_block, transformer},
        host::gpu::{GpuFacts, GpuKind},
    };
    use std::sync::Arc;

    /// What each kind of step of the block needs, as `cpu-shared gpu-alone`.
    fn needed(block: &BlockTarget) -> Vec<(&'static str, String)> {
        let words = |kind: StepKind| {
            let needs = needs(kind, &cpu(), Some(block));
            let word = |(device, wanted): &(Digest, Use)| {
                let device = if *device == cpu().fingerprint() { "cpu" } else { "gpu" };
                format!("{device}-{}", if *wanted == Use::Measure { "alone" } else { "shared" })
            };
            (kind.name(), needs.iter().map(word).collect::<Vec<_>>().join(" "))
        };
        StepKind::ALL.map(words).into()
    }

    fn expected(verify: &str, benchmark: &str) -> Vec<(&'static str, String)> {
        let all = ["cpu-shared", "", "cpu-shared", verify, benchmark, ""];
        StepKind::ALL.iter().zip(all).map(|(kind, it)| (kind.name(), it.to_owned())).collect()
    }

    #[test]
    fn a_step_needs_the_devices_that_it_disturbs_or_that_disturb_it() {
        let on = |facts: GpuFacts| BlockTarget { device: Arc::new(facts.into()), ..gpu_block("g", transformer()) };
        let software = GpuFacts { kind: GpuKind::Software, ..gpu() };
        assert_eq!(needed(&block("c", transformer())), expected("cpu-shared", "cpu-alone"));
        assert_eq!(needed(&on(gpu())), expected("cpu-shared gpu-shared", "cpu-shared gpu-alone"));
        assert_eq!(needed(&on(software)), expected("cpu-shared gpu-shared", "cpu-alone gpu-alone"));
        let hybrid = BlockTarget { hybrid_softmax: true, ..on(gpu()) };
        assert_eq!(needed(&hybrid), expected("cpu-shared gpu-shared", "cpu-alone gpu-alone"));
    }

    #[test]
    fn who_measures_on_one_device_keeps_others_from_it_and_from_nothing_else() {
        let device = |name: &str| Digest::of(format!("{name} of process {}", std::process::id()).as_bytes());
        let soon = Patience { cancelled: &|| false, limit: Some(Duration::from_millis(20)) };
        let take = |needs: &[(Digest, Use)]| devices(needs, &soon, |_| ());
        let (cpu, gpu) = (device("cpu"), device("gpu"));
        let measuring = take(&[(cpu, Use::Compute), (gpu, Use::Measure)]).unwrap().unwrap();
        assert!(matches!(take(&[(cpu, Use::Compute), (gpu, Use::Compute)]), Err(LockError::Held { .. })));
        assert!(matches!(take(&[(cpu, Use::Measure)]), Err(LockError::Held { .. })));
        assert!(take(&[(cpu, Use::Compute)]).unwrap().is_some());
        drop(measuring);
        assert!(take(&[(cpu, Use::Measure), (gpu, Use::Measure)]).unwrap().is_some());
    }
}
