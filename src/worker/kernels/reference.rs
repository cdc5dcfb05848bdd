//! What a Rust program does without writing a kernel: ndarray's `dot`, on one thread.

use super::{MatmulKernel, Shape};
use ndarray::{ArrayView2, ArrayViewMut2, linalg::general_mat_mul};

pub struct Reference;

impl MatmulKernel for Reference {
    fn name(&self) -> &str {
        "reference"
    }

    fn multiply(&self, a: &[f32], b: &[f32], c: &mut [f32], Shape { m, n, k }: Shape) {
        let (a, b) = (ArrayView2::from_shape((m, k), a), ArrayView2::from_shape((k, n), b));
        match (a, b, ArrayViewMut2::from_shape((m, n), c)) {
            (Ok(a), Ok(b), Ok(mut c)) => general_mat_mul(1.0, &a, &b, 0.0, &mut c),
            _ => panic!("operands do not have the shape {m}x{n}x{k}"),
        }
    }
}
