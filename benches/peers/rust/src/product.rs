//! C[m, n] = A[m, k] B[k, n] in f32, dense and row-major, by engines that pack both operands in every call.

use crate::error::Error;
use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use gemm::Parallelism;
use std::ffi::{c_float, c_int};

/// `cblas_sgemm` of the LP64 interface.
type Sgemm = unsafe extern "C" fn(
    layout: c_int,
    transpose_a: c_int,
    transpose_b: c_int,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: c_float,
    a: *const c_float,
    lda: c_int,
    b: *const c_float,
    ldb: c_int,
    beta: c_float,
    c: *mut c_float,
    ldc: c_int,
);

const ROW_MAJOR: c_int = 101;
const NO_TRANSPOSE: c_int = 111;

enum Engine {
    Faer,
    Gemm,
    /// On as many threads as `MATMUL_NUM_THREADS` says: it takes no argument for them.
    MatrixMultiply,
    Cblas {
        sgemm: Sgemm,
        /// Keeps the code loaded.
        _library: libloading::Library,
    },
}

pub struct Product {
    engine: Engine,
    threads: usize,
}

/// Rows of A, columns of B, columns of A.
#[derive(Clone, Copy)]
pub struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl Product {
    /// `engine` is `faer`, `gemm`, `matrixmultiply`, or `cblas` with the path of its library.
    ///
    /// # Errors
    /// `Engine` for another name; `Load` and `Symbol` when the library is not a CBLAS.
    pub fn new(engine: &str, library: &str, threads: usize) -> Result<Self, Error> {
        let engine = match engine {
            "faer" => Engine::Faer,
            "gemm" => Engine::Gemm,
            "matrixmultiply" => Engine::MatrixMultiply,
            "cblas" => cblas(library, threads)?,
            other => return Err(Error::Engine(other.to_owned())),
        };
        Ok(Self { engine, threads })
    }

    /// # Errors
    /// `Side` when CBLAS cannot be told the shape.
    ///
    /// # Safety
    /// The pointers are those of m*k, k*n and m*n elements, and nobody else uses those of `c`.
    pub unsafe fn multiply(&self, shape: Shape, a: *const f32, b: *const f32, c: *mut f32) -> Result<(), Error> {
        let Shape { m, n, k } = shape;
        let (row_a, row_b) = (k as isize, n as isize);
        match &self.engine {
            Engine::Faer => {
                let par = if self.threads > 1 { Par::rayon(self.threads) } else { Par::Seq };
                // SAFETY: as promised; all strides are in elements.
                let (a, b, c) = unsafe {
                    (
                        MatRef::from_raw_parts(a, m, k, row_a, 1),
                        MatRef::from_raw_parts(b, k, n, row_b, 1),
                        MatMut::from_raw_parts_mut(c, m, n, row_b, 1),
                    )
                };
                matmul(c, Accum::Replace, a, b, 1.0, par);
            }
            Engine::Gemm => {
                let par = if self.threads > 1 { Parallelism::Rayon(self.threads) } else { Parallelism::None };
                // SAFETY: as promised; column strides come before row strides.
                unsafe {
                    gemm::gemm(
                        m, n, k, c, 1, row_b, false, a, 1, row_a, b, 1, row_b, 0.0, 1.0, false, false, false, par,
                    );
                }
            }
            // SAFETY: as promised; row strides come before column strides.
            Engine::MatrixMultiply => unsafe {
                matrixmultiply::sgemm(m, k, n, 1.0, a, row_a, 1, b, row_b, 1, 0.0, c, row_b, 1);
            },
            Engine::Cblas { sgemm, .. } => {
                let side = |it: usize| c_int::try_from(it).map_err(|_| Error::Side);
                let (m, n, k) = (side(m)?, side(n)?, side(k)?);
                // SAFETY: as promised; the leading dimensions are the widths of the dense rows.
                unsafe { sgemm(ROW_MAJOR, NO_TRANSPOSE, NO_TRANSPOSE, m, n, k, 1.0, a, k, b, n, 0.0, c, n) }
            }
        }
        Ok(())
    }
}

/// A CBLAS, told how many threads to use where it has a function for that.
fn cblas(path: &str, threads: usize) -> Result<Engine, Error> {
    // SAFETY: the libraries that the script installs; their initialisers set themselves up and do nothing else.
    let library = unsafe { libloading::Library::new(path) }.map_err(|it| Error::Load(path.to_owned(), it))?;
    let symbol = |it| Error::Symbol(path.to_owned(), "cblas_sgemm".to_owned(), it);
    // SAFETY: the signature is that of every CBLAS.
    let sgemm = unsafe { *library.get::<Sgemm>("cblas_sgemm").map_err(symbol)? };
    // SAFETY: documented as `void f(int)`.
    if let Ok(set) = unsafe { library.get::<unsafe extern "C" fn(c_int)>("openblas_set_num_threads") } {
        // SAFETY: as above.
        unsafe { set(c_int::try_from(threads).unwrap_or(1)) }
    }
    // SAFETY: documented as `void f(dim_t)`, where dim_t has 64 bits in the builds of distributions.
    if let Ok(set) = unsafe { library.get::<unsafe extern "C" fn(i64)>("bli_thread_set_num_threads") } {
        // SAFETY: as above.
        unsafe { set(i64::try_from(threads).unwrap_or(1)) }
    }
    Ok(Engine::Cblas { sgemm, _library: library })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_without_a_library_multiplies_row_major_matrices() {
        let shape = Shape { m: 3, n: 5, k: 4 };
        let a: Vec<f32> = (0..12).map(|it| it as f32).collect();
        let b: Vec<f32> = (0..20).map(|it| (it % 7) as f32).collect();
        let dot = |i: usize, j: usize| (0..4).map(|p| a[i * 4 + p] * b[p * 5 + j]).sum::<f32>();
        let wanted: Vec<f32> = (0..15).map(|it| dot(it / 5, it % 5)).collect();
        for engine in ["faer", "gemm", "matrixmultiply"] {
            for threads in [1, 2] {
                let mut c = vec![f32::NAN; 15];
                let product = Product::new(engine, "", threads).unwrap();
                unsafe { product.multiply(shape, a.as_ptr(), b.as_ptr(), c.as_mut_ptr()) }.unwrap();
                assert_eq!(c, wanted, "{engine} on {threads} threads");
            }
        }
        assert!(Product::new("eigen", "", 1).is_err());
    }
}
