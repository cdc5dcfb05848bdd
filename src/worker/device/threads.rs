//! The threads that share a stage's units. They live as long as the runtime that uses them: starting a thread for every stage
//! would cost more than a small stage takes.

use kernelforge::protocol::{Failure, FailureKind};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::{
    hint,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// How often a thread that waits for the others looks before it offers its processor to somebody else: about 20 us, longer than equal
/// shares of a stage differ on an idle machine. Parking instead costs that much for each of a block's stages.
const LOOKS: usize = 1 << 10;

/// A pool of `count` threads; 1 is the calling thread, without a pool.
pub struct Threads {
    count: usize,
    pool: Option<ThreadPool>,
}

impl Threads {
    /// # Errors
    /// `Internal` when the system refuses to start a thread.
    pub fn new(count: usize) -> Result<Self, Failure> {
        let count = count.max(1);
        let build = || ThreadPoolBuilder::new().num_threads(count).build();
        let pool = (count > 1).then(build).transpose();
        let refuse = |it| Failure::new(FailureKind::Internal, format!("cannot start {count} threads: {it}"));
        Ok(Self { count, pool: pool.map_err(refuse)? })
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// Calls `work(thread, begin, end)` for contiguous shares of `0..units`, one share for each thread.
    pub fn share(&self, units: usize, work: impl Fn(usize, usize, usize) + Sync) {
        match &self.pool {
            None => work(0, 0, units),
            Some(pool) => {
                pool.broadcast(|it| {
                    let (begin, end) = part(units, it.index(), it.num_threads());
                    if begin < end {
                        work(it.index(), begin, end);
                    }
                });
            }
        }
    }

    /// Calls `work(phase, thread, begin, end)` for contiguous shares of `0..units` of one phase after the other; no share of a phase
    /// begins before all of the phase before have ended. The threads are woken once, not for every phase.
    ///
    /// `work` must not panic: the others would wait for ever.
    pub fn phases(&self, units: &[usize], work: impl Fn(usize, usize, usize, usize) + Sync) {
        let Some(pool) = &self.pool else {
            return units.iter().enumerate().for_each(|(phase, &units)| work(phase, 0, 0, units));
        };
        let arrived = AtomicUsize::new(0);
        pool.broadcast(|it| {
            for (phase, &units) in units.iter().enumerate() {
                let (begin, end) = part(units, it.index(), it.num_threads());
                if begin < end {
                    work(phase, it.index(), begin, end);
                }
                arrived.fetch_add(1, Ordering::AcqRel);
                let mut looks = 0;
                while arrived.load(Ordering::Acquire) < (phase + 1) * it.num_threads() {
                    looks += 1;
                    if looks < LOOKS { hint::spin_loop() } else { thread::yield_now() }
                }
            }
        });
    }
}

/// The share of one of `count` threads.
fn part(units: usize, index: usize, count: usize) -> (usize, usize) {
    (units * index / count, units * (index + 1) / count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn shares_cover_every_unit_once() {
        for (count, units) in [(1, 5), (2, 5), (3, 2), (2, 0)] {
            let threads = Threads::new(count).unwrap();
            let seen = Mutex::new(vec![0; units]);
            threads.share(units, |_, begin, end| seen.lock().unwrap()[begin..end].iter_mut().for_each(|it| *it += 1));
            assert_eq!(*seen.lock().unwrap(), vec![1; units], "{count} threads, {units} units");
        }
    }

    #[test]
    fn a_phase_begins_when_the_one_before_has_ended() {
        for count in [1, 2, 3] {
            let threads = Threads::new(count).unwrap();
            let phases = [7, 1, 0, 12, 5];
            let done = phases.map(|_| AtomicUsize::new(0));
            for round in 0..50 {
                threads.phases(&phases, |phase, _, begin, end| {
                    for (units, done) in phases.iter().zip(&done).take(phase) {
                        assert_eq!(done.load(Ordering::Relaxed), units * (round + 1));
                    }
                    done[phase].fetch_add(end - begin, Ordering::Relaxed);
                });
            }
            assert_eq!(done.map(AtomicUsize::into_inner), phases.map(|it| 50 * it), "{count} threads");
        }
    }
}
