//! Measurements made wrong on purpose, so that `kforge mutate` can show that gate V7 notices. In force only inside [`with`],
//! on the calling thread; nothing but `mutate` calls it.

use std::cell::Cell;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tamper {
    /// The clock counts one nanosecond of a thousand.
    SlowClock,
    /// Every timed run does the first half of its units.
    HalfTheUnits,
    /// Only the first of all timed runs computes anything.
    FirstResultKept,
}

thread_local! {
    static TAMPER: Cell<Option<Tamper>> = const { Cell::new(None) };
}

/// Calls `measure` with a tampered measurement.
pub fn with<T>(tamper: Tamper, measure: impl FnOnce() -> T) -> T {
    struct Restored;
    impl Drop for Restored {
        fn drop(&mut self) {
            TAMPER.set(None);
        }
    }
    TAMPER.set(Some(tamper));
    let _restored = Restored;
    measure()
}

/// What is in force.
pub fn current() -> Option<Tamper> {
    TAMPER.get()
}
