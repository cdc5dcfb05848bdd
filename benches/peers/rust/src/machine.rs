//! What the machine can do at best, by the loops that the worker holds kernels against, in samples as long as the caller likes.

use crate::{error::Error, loops, threads::Threads};
use std::hint::black_box;

pub struct Machine {
    threads: Threads,
    arithmetic: loops::Arithmetic,
    buffer: Vec<f32>,
}

impl Machine {
    /// With `bytes` of memory to be read: more than any cache holds.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(threads: usize, bytes: usize) -> Result<Self, Error> {
        let threads = Threads::new(threads)?;
        // Not zero: pages never written are all one page of zeros, which a cache holds.
        Ok(Self { threads, arithmetic: loops::Arithmetic::best(), buffer: vec![1.0; bytes / 4] })
    }

    /// `steps` steps of multiply-adds on every thread; the operations that these were.
    pub fn compute(&self, steps: u64) -> u64 {
        let count = self.threads.count();
        self.threads.share(count, |_, begin, end| {
            (begin..end).for_each(|_| {
                black_box(self.arithmetic.run(steps));
            });
        });
        steps * self.arithmetic.flops_per_step * count as u64
    }

    /// Reads all of the memory once; the bytes that these were.
    pub fn read(&self) -> u64 {
        let count = self.threads.count();
        let share = self.buffer.len() / count;
        self.threads.share(count, |_, begin, end| {
            black_box(loops::read(black_box(&self.buffer[begin * share..end * share])));
        });
        (share * count * 4) as u64
    }
}
