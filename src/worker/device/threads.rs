//! The threads that share a stage's units. They live as long as the runtime that uses them: starting a thread for every stage
//! would cost more than a small stage takes.

use kernelforge::protocol::{Failure, FailureKind};
use rayon::{ThreadPool, ThreadPoolBuilder};

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
                    let (index, count) = (it.index(), it.num_threads());
                    let (begin, end) = (units * index / count, units * (index + 1) / count);
                    if begin < end {
                        work(index, begin, end);
                    }
                });
            }
        }
    }
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
}
