//! The blocked product with its rows shared among rayon's threads.

use super::{Blocks, MatmulKernel, Shape, blocked};
use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};

pub struct Parallel {
    blocks: Blocks,
    /// `None` where the system refuses threads: the calling thread does it all.
    pool: Option<ThreadPool>,
}

impl Parallel {
    pub fn new(blocks: Blocks, threads: usize) -> Self {
        Self { blocks, pool: ThreadPoolBuilder::new().num_threads(threads.max(1)).build().ok() }
    }
}

impl MatmulKernel for Parallel {
    fn name(&self) -> &str {
        "parallel"
    }

    fn multiply(&self, a: &[f32], b: &[f32], c: &mut [f32], shape: Shape) {
        let Shape { m, n, k } = shape;
        assert!(a.len() == m * k && b.len() == k * n && c.len() == m * n, "operands do not have the shape {shape:?}");
        let threads = self.pool.as_ref().map_or(1, ThreadPool::current_num_threads);
        let rows = m.div_ceil(threads).max(1);
        let part = |(c, a): (&mut [f32], &[f32])| {
            blocked::multiply(self.blocks, a, b, c, Shape { m: c.len() / n, n, k });
        };
        // Chunks of length 0 are an error, and a product without elements has nothing to share.
        if n == 0 || k == 0 {
            c.fill(0.0);
            return;
        }
        match &self.pool {
            Some(pool) => pool.install(|| c.par_chunks_mut(rows * n).zip(a.par_chunks(rows * k)).for_each(part)),
            None => c.chunks_mut(rows * n).zip(a.chunks(rows * k)).for_each(part),
        }
    }
}
