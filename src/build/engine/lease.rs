//! What only one process has at a time: a step while it is made, and the device while it is measured on, which is kept from every
//! other build of this user, in whatever project. All waits end when the build is interrupted.
//!
//! While somebody measures, no step of another build runs on the device either: those hold it together (shared), a measurement
//! holds it alone. Who wants it alone closes a gate first, so that the others let it in.

use crate::{
    digest::Digest,
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

/// A device for the time of one step.
#[derive(Debug)]
pub struct Lease {
    _device: Lock,
    /// Kept by who measures.
    _gate: Option<Lock>,
}

/// Waits for the device with this fingerprint. `None`: interrupted while waiting.
pub fn device(
    fingerprint: &Digest,
    wanted: Use,
    patience: &Patience<'_>,
    mut on_wait: impl FnMut(&Holder),
) -> Result<Option<Lease>, LockError> {
    let path = folder().join(format!("device-{}", fingerprint.short()));
    let gate = path.with_extension("gate");
    let sharing = match wanted {
        Use::Compute => Sharing::Shared,
        Use::Measure => Sharing::Alone,
    };
    let Some(gate) = wait(&gate, sharing, patience, &mut on_wait)? else { return Ok(None) };
    let device = wait(&path, sharing, patience, &mut on_wait)?;
    Ok(device.map(|device| Lease { _device: device, _gate: (wanted == Use::Measure).then_some(gate) }))
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
