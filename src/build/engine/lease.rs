//! What only one process has at a time: the directory it builds in, and the device it measures on, which it keeps from every
//! other build of this user, in whatever project. Both waits end when the build is interrupted.

use super::worker::Leash;
use crate::{
    digest::Digest,
    store::{
        BuildLockError, Notice, Store,
        lock::{Holder, Lock, LockError},
    },
};
use std::{env, path::PathBuf, time::Duration};

/// How long a wait lasts before it looks whether the build was interrupted.
const SLICE: Duration = Duration::from_millis(200);

/// Waits for the device with this fingerprint. `None`: interrupted while waiting.
pub fn device(fingerprint: &Digest, leash: &Leash, on_wait: impl FnMut(&Holder)) -> Result<Option<Lock>, LockError> {
    let path = folder().join(format!("device-{}", fingerprint.short()));
    wait(leash, on_wait, |told| match Lock::acquire(&path, Some(SLICE), told) {
        Err(LockError::Held { .. }) => Ok(None),
        result => result.map(Some),
    })
}

/// Waits until no other process builds in the store's project. `None`: interrupted while waiting.
pub fn directory(
    store: &Store,
    leash: &Leash,
    on_wait: impl FnMut(&Holder),
) -> Result<Option<(Lock, Vec<Notice>)>, BuildLockError> {
    wait(leash, on_wait, |told| match store.lock_build(Some(SLICE), told) {
        Err(BuildLockError::Lock(LockError::Held { .. })) => Ok(None),
        result => result.map(Some),
    })
}

/// Tries until it succeeds or the build is interrupted, telling each holder once.
fn wait<T, E>(
    leash: &Leash,
    mut on_wait: impl FnMut(&Holder),
    mut attempt: impl FnMut(&mut dyn FnMut(&Holder)) -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    let mut told = None;
    while !leash.is_cancelled() {
        let taken = attempt(&mut |holder| {
            if told.as_ref() != Some(holder) {
                on_wait(holder);
                told = Some(holder.clone());
            }
        })?;
        if taken.is_some() {
            return Ok(taken);
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
