//! Ctrl-C, SIGTERM and SIGHUP: the first one kills the workers and lets the build end in order, the second ends kforge.

use super::worker::Leash;
use std::{
    process,
    sync::{Arc, Mutex, Once, PoisonError},
};

/// The exit code of an interrupted command.
pub const INTERRUPTED: u8 = 130;

/// The build that a signal interrupts. The handler is the process's, so this is too.
static CURRENT: Mutex<Option<Arc<Leash>>> = Mutex::new(None);

/// While it lives, a signal cancels the leash instead of ending the process.
pub struct Guard(());

/// Starts a thread, so it is not called before there is something to interrupt.
pub fn guard(leash: &Arc<Leash>) -> Guard {
    static HANDLER: Once = Once::new();
    *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(leash));
    HANDLER.call_once(|| {
        // Without a handler a signal ends the process at once, which loses nothing that is finished either.
        let _ = ctrlc::set_handler(|| match &*CURRENT.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(leash) if !leash.is_cancelled() => leash.cancel(),
            _ => process::exit(INTERRUPTED.into()),
        });
    });
    Guard(())
}

impl Drop for Guard {
    fn drop(&mut self) {
        *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
