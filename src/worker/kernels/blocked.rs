//! The textbook product: three loops tiled for the caches, the innermost along a row of b, so that the compiler vectorises it.

use super::{MatmulKernel, Shape};

/// Sizes of a cache block, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl Default for Blocks {
    /// 64 KB of b and 16 KB of c in L2, on any CPU of the last ten years.
    fn default() -> Self {
        Self { m: 16, n: 256, k: 64 }
    }
}

pub struct Blocked(pub Blocks);

impl MatmulKernel for Blocked {
    fn name(&self) -> &str {
        "blocked"
    }

    fn multiply(&self, a: &[f32], b: &[f32], c: &mut [f32], shape: Shape) {
        let Shape { m, n, k } = shape;
        assert!(a.len() == m * k && b.len() == k * n && c.len() == m * n, "operands do not have the shape {shape:?}");
        multiply(self.0, a, b, c, shape);
    }
}

/// Rows of c that each loaded part of a row of b is used for.
const ROWS: usize = 4;

/// As [`MatmulKernel::multiply`], for any rows of a and the same rows of c.
pub(super) fn multiply(blocks: Blocks, a: &[f32], b: &[f32], c: &mut [f32], Shape { m, n, k }: Shape) {
    c.fill(0.0);
    for row in (0..m).step_by(blocks.m) {
        for depth in (0..k).step_by(blocks.k) {
            let depths = depth..k.min(depth + blocks.k);
            for column in (0..n).step_by(blocks.n) {
                let columns = column..n.min(column + blocks.n);
                for i in (row..m.min(row + blocks.m)).step_by(ROWS) {
                    let rows = i..m.min(row + blocks.m).min(i + ROWS);
                    for p in depths.clone() {
                        let b = &b[p * n..][columns.clone()];
                        for i in rows.clone() {
                            let scale = a[i * k + p];
                            let c = &mut c[i * n..][columns.clone()];
                            c.iter_mut().zip(b).for_each(|(c, b)| *c += scale * b);
                        }
                    }
                }
            }
        }
    }
}
