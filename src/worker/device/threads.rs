//! The threads that share a stage's units. They live as long as the runtime that uses them: starting a thread for every stage
//! would cost more than a small stage takes. `benches/peers/rust` compiles this file too, so that it calls kernels as the worker does.

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use std::{
    hint,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// How often a thread that waits for the others looks before it offers its processor to somebody else: about 20 us, longer than equal
/// shares of a stage differ on an idle machine. Parking instead costs that much for each of a block's stages.
const LOOKS: usize = 1 << 10;

/// What the calling thread does after the last phase, in looks of about 15 ns, while the others leave: without that it is often a little
/// earlier than they, sleeps, and has to be woken.
const PARTING: usize = 1 << 6;

/// The calling thread and a pool of the others, which no `Threads` of one has.
pub struct Threads {
    count: usize,
    others: Option<ThreadPool>,
    processors: Processors,
}

impl Threads {
    /// # Errors
    /// When the system refuses to start a thread.
    pub fn new(count: usize) -> Result<Self, ThreadPoolBuildError> {
        let count = count.max(1);
        let build = || ThreadPoolBuilder::new().num_threads(count - 1).build();
        Ok(Self { count, others: (count > 1).then(build).transpose()?, processors: Processors::allowed() })
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// Calls `work(thread, begin, end)` for contiguous shares of `0..units`, one share for each thread.
    pub fn share(&self, units: usize, work: impl Fn(usize, usize, usize) + Sync) {
        self.phases(&[units], |_, thread, begin, end| work(thread, begin, end));
    }

    /// Calls `work(phase, thread, begin, end)` for contiguous shares of `0..units` of one phase after the other; no share of a phase
    /// begins before all of the phase before have ended. The others are woken once, not for every phase, and the calling thread, which
    /// is thread 0, begins meanwhile.
    ///
    /// `work` must not panic: the others would wait for ever.
    pub fn phases(&self, units: &[usize], work: impl Fn(usize, usize, usize, usize) + Sync) {
        let Some(others) = &self.others else {
            return units.iter().enumerate().for_each(|(phase, &units)| work(phase, 0, 0, units));
        };
        let (arrived, callers) = (AtomicUsize::new(0), Processors::current());
        let run = |thread: usize| {
            if thread > 0 {
                self.processors.leave(callers);
            }
            for (phase, &count) in units.iter().enumerate() {
                let (begin, end) = part(count, thread, self.count);
                if begin < end {
                    work(phase, thread, begin, end);
                }
                arrived.fetch_add(1, Ordering::AcqRel);
                // Only the calling thread has to know when the last phase has ended.
                if thread > 0 && phase + 1 == units.len() {
                    break;
                }
                let mut looks = 0;
                while arrived.load(Ordering::Acquire) < (phase + 1) * self.count {
                    looks += 1;
                    if looks < LOOKS { hint::spin_loop() } else { thread::yield_now() }
                }
            }
        };
        others.in_place_scope(|scope| {
            let run = &run;
            scope.spawn_broadcast(move |_, it| run(it.index() + 1));
            run(0);
            (0..PARTING).for_each(|_| hint::spin_loop());
        });
    }
}

/// The processors that threads of this process may use.
///
/// A thread that is woken often begins on the processor of who woke it, and stays there as long as runs are shorter than the system takes
/// to look at its balance: two threads then had the FMA peak of one (98 of 197 GFLOP/s) in products of up to 8 ms. So it leaves.
#[cfg(target_os = "linux")]
struct Processors(rustix::thread::CpuSet);

#[cfg(target_os = "linux")]
impl Processors {
    /// Those of the calling thread.
    fn allowed() -> Self {
        // A system that does not say has none to leave for.
        Self(rustix::thread::sched_getaffinity(None).unwrap_or_default())
    }

    fn current() -> usize {
        rustix::thread::sched_getcpu()
    }

    /// Takes the calling thread off this processor, if it is there and there are others.
    fn leave(&self, processor: usize) {
        if Self::current() != processor {
            return;
        }
        let mut others = self.0;
        others.unset(processor);
        if others.count() > 0 {
            // Refused, it stays: slower, and as right.
            let _ = rustix::thread::sched_setaffinity(None, &others);
        }
    }
}

/// Elsewhere threads cannot be told where to run.
#[cfg(not(target_os = "linux"))]
struct Processors;

#[cfg(not(target_os = "linux"))]
impl Processors {
    const fn allowed() -> Self {
        Self
    }

    const fn current() -> usize {
        0
    }

    const fn leave(&self, _: usize) {}
}

/// The share of one of `count` threads. Of fewer units than threads the first have one each: the calling thread is awake.
fn part(units: usize, index: usize, count: usize) -> (usize, usize) {
    let before = |index: usize| (units * index).div_ceil(count);
    (before(index), before(index + 1))
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

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_leaves_the_processor_of_who_woke_it() {
        let processors = Processors::allowed();
        thread::scope(|scope| {
            scope.spawn(|| {
                let before = Processors::current();
                processors.leave(before);
                assert!(processors.0.count() < 2 || Processors::current() != before);
            });
        });
    }

    #[test]
    fn a_single_unit_is_the_calling_thread_s() {
        let threads = Threads::new(3).unwrap();
        let caller = thread::current().id();
        let ran = Mutex::new(Vec::new());
        threads.share(1, |index, _, _| ran.lock().unwrap().push((index, thread::current().id())));
        assert_eq!(*ran.lock().unwrap(), [(0, caller)]);
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
