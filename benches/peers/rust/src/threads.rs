//! The threads that share units, as `src/worker/device/threads.rs` shares them.

use crate::error::Error;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// A pool of `count` threads; 1 is the calling thread, without a pool.
pub struct Threads {
    count: usize,
    pool: Option<ThreadPool>,
}

impl Threads {
    /// # Errors
    /// When the system refuses to start a thread.
    pub fn new(count: usize) -> Result<Self, Error> {
        let count = count.max(1);
        let build = || ThreadPoolBuilder::new().num_threads(count).build().map_err(Error::Threads);
        Ok(Self { count, pool: (count > 1).then(build).transpose()? })
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// Calls `work(thread, begin, end)` for contiguous shares of `0..units`, one share for each thread.
    pub fn share(&self, units: usize, work: impl Fn(usize, usize, usize) + Sync) {
        let Some(pool) = &self.pool else { return work(0, 0, units) };
        pool.broadcast(|it| {
            let (index, count) = (it.index(), it.num_threads());
            let (begin, end) = (units * index / count, units * (index + 1) / count);
            if begin < end {
                work(index, begin, end);
            }
        });
    }
}
