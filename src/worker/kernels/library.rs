//! A CBLAS that the system has, found at run time: kforge neither links one nor asks for one.

use super::{MatmulKernel, Shape};
use std::ffi::{c_float, c_int};

/// `cblas_sgemm` as every CBLAS declares it, with enumerations and sizes of the LP64 interface.
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

/// Where they are looked for, the fastest first.
const NAMES: [&str; 6] =
    ["libmkl_rt.so.2", "libopenblas.so.0", "libopenblas.so", "libblis.so.4", "libcblas.so.3", "libopenblas.dylib"];

pub struct Library {
    name: String,
    sgemm: Sgemm,
    /// Keeps the code of `sgemm` loaded.
    _library: libloading::Library,
}

/// No CBLAS on this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no CBLAS was found: none of {} could be loaded", NAMES.join(", "))]
pub struct NoLibrary;

impl Library {
    /// The first CBLAS that loads, told to use `threads` threads where it lets itself be told.
    ///
    /// # Errors
    /// When none loads: that is an ordinary machine, not a fault.
    pub fn find(threads: usize) -> Result<Self, NoLibrary> {
        NAMES.iter().find_map(|name| Self::load(name, threads)).ok_or(NoLibrary)
    }

    fn load(name: &str, threads: usize) -> Option<Self> {
        // SAFETY: these are well-known libraries whose initialisers do nothing but set themselves up.
        let library = unsafe { libloading::Library::new(name) }.ok()?;
        // SAFETY: the C standard interface of BLAS fixes the signature of this symbol.
        let sgemm = unsafe { *library.get::<Sgemm>("cblas_sgemm").ok()? };
        for setter in ["openblas_set_num_threads", "MKL_Set_Num_Threads"] {
            // SAFETY: both are documented as `void f(int)`.
            if let Ok(set) = unsafe { library.get::<unsafe extern "C" fn(c_int)>(setter) } {
                // SAFETY: as above; any positive number is allowed.
                unsafe { set(c_int::try_from(threads).unwrap_or(1)) }
            }
        }
        // SAFETY: documented as `void f(dim_t)`, where dim_t is 64 bits in every build that distributions ship.
        if let Ok(set) = unsafe { library.get::<unsafe extern "C" fn(i64)>("bli_thread_set_num_threads") } {
            // SAFETY: as above; any positive number is allowed.
            unsafe { set(i64::try_from(threads).unwrap_or(1)) }
        }
        let short = name.trim_start_matches("lib").split('.').next().unwrap_or(name);
        Some(Self { name: format!("library ({short})"), sgemm, _library: library })
    }
}

impl MatmulKernel for Library {
    fn name(&self) -> &str {
        &self.name
    }

    fn multiply(&self, a: &[f32], b: &[f32], c: &mut [f32], shape: Shape) {
        let Shape { m, n, k } = shape;
        assert!(a.len() == m * k && b.len() == k * n && c.len() == m * n, "operands do not have the shape {shape:?}");
        let size =
            |it: usize| c_int::try_from(it).unwrap_or_else(|_| panic!("{shape:?} is beyond CBLAS's 32-bit sizes"));
        // CBLAS wants leading dimensions of at least 1 even for empty matrices.
        let stride = |it: usize| size(it.max(1));
        // SAFETY: the slices have the lengths of the shapes handed over, and live across the call.
        unsafe {
            (self.sgemm)(
                ROW_MAJOR,
                NO_TRANSPOSE,
                NO_TRANSPOSE,
                size(m),
                size(n),
                size(k),
                1.0,
                a.as_ptr(),
                stride(k),
                b.as_ptr(),
                stride(n),
                0.0,
                c.as_mut_ptr(),
                stride(n),
            );
        }
    }
}
