//! Leases of devices: while one build measures on a device, no other build of this user does, in whatever project.

use super::worker::Leash;
use crate::{
    digest::Digest,
    store::lock::{Holder, Lock, LockError},
};
use std::{env, path::PathBuf, time::Duration};

/// How long a wait lasts before it looks whether the build was interrupted.
const SLICE: Duration = Duration::from_millis(200);

/// Waits for the device with this fingerprint. `None`: interrupted while waiting.
pub fn lease(fingerprint: &Digest, leash: &Leash, mut on_wait: impl FnMut(&Holder)) -> Result<Option<Lock>, LockError> {
    let path = folder().join(format!("device-{}", fingerprint.short()));
    let mut told = None;
    while !leash.is_cancelled() {
        let lock = Lock::acquire(&path, Some(SLICE), |holder| {
            if told.as_ref() != Some(holder) {
                on_wait(holder);
                told = Some(holder.clone());
            }
        });
        match lock {
            Ok(lock) => return Ok(Some(lock)),
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
