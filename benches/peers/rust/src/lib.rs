//! What `benches/peers` calls through ctypes: a C interface over [`product`], [`kernel`] and [`machine`]. Functions that can fail
//! return null or -1, and `peers_error` says why. Nothing here takes a time: the caller's clock is the same for every peer.

mod description;
mod error;
mod kernel;
mod machine;
mod product;

// The worker's own, so that both hold kernels against the same ceilings.
#[path = "../../../../src/worker/measure/ceilings/loops.rs"]
mod loops;

// The worker's own too: units are shared among threads in one way.
#[path = "../../../../src/worker/device/threads.rs"]
mod threads;

use error::Error;
use kernel::Runner;
use machine::Machine;
use product::{Product, Shape};
use std::{
    ffi::{c_char, c_int},
    ptr,
};

fn handle<T>(made: Result<T, Error>) -> *mut T {
    made.map_or_else(
        |it| {
            error::keep(&it);
            ptr::null_mut()
        },
        |it| Box::into_raw(Box::new(it)),
    )
}

fn status(done: Result<(), Error>) -> c_int {
    done.map_or_else(
        |it| {
            error::keep(&it);
            -1
        },
        |()| 0,
    )
}

/// # Safety
/// `handle` is null or one of this library's, of this type, that nobody else uses during the call.
unsafe fn with<T>(handle: *mut T, work: impl FnOnce(&mut T) -> Result<(), Error>) -> c_int {
    // SAFETY: as promised.
    status(unsafe { handle.as_mut() }.ok_or(Error::Null).and_then(work))
}

/// Why the last call failed; valid until the next one does.
#[unsafe(no_mangle)]
pub extern "C" fn peers_error() -> *const c_char {
    error::last()
}

/// # Safety
/// `engine` and `library` are NUL-terminated strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn product_new(engine: *const c_char, library: *const c_char, threads: usize) -> *mut Product {
    // SAFETY: as promised.
    let texts = unsafe { error::text(engine).and_then(|it| Ok((it, error::text(library)?))) };
    handle(texts.and_then(|(engine, library)| Product::new(engine, library, threads)))
}

/// The product, `repeats` times.
///
/// # Safety
/// `product` is from [`product_new`]; the matrices have m*k, k*n and m*n elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn product_run(
    product: *mut Product,
    m: usize,
    n: usize,
    k: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    repeats: usize,
) -> c_int {
    let shape = Shape { m, n, k };
    // SAFETY: as promised.
    unsafe { with(product, |it| (0..repeats).try_for_each(|_| it.multiply(shape, a, b, c))) }
}

/// # Safety
/// `object` and `description` are NUL-terminated strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernel_new(object: *const c_char, description: *const c_char, threads: usize) -> *mut Runner {
    // SAFETY: as promised.
    let texts = unsafe { error::text(object).and_then(|it| Ok((it, error::text(description)?))) };
    handle(texts.and_then(|(object, description)| Runner::new(object, description, threads)))
}

/// # Safety
/// `kernel` is from [`kernel_new`], `name` a NUL-terminated string, `data` `bytes` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernel_write(
    kernel: *mut Runner,
    name: *const c_char,
    data: *const u8,
    bytes: usize,
) -> c_int {
    // SAFETY: as promised.
    unsafe { with(kernel, |it| it.write(error::text(name)?, data, bytes)) }
}

/// # Safety
/// As [`kernel_write`], and `data` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernel_read(kernel: *mut Runner, name: *const c_char, data: *mut u8, bytes: usize) -> c_int {
    // SAFETY: as promised.
    unsafe { with(kernel, |it| it.read(error::text(name)?, data, bytes)) }
}

/// Packs the weights (`prepare` not 0), runs the block (`run` not 0), in this order and `repeats` times.
///
/// # Safety
/// `kernel` is from [`kernel_new`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernel_run(kernel: *mut Runner, prepare: c_int, run: c_int, repeats: usize) -> c_int {
    let work = |it: &mut Runner| {
        for _ in 0..repeats {
            if prepare != 0 {
                it.prepare();
            }
            if run != 0 {
                it.run();
            }
        }
        Ok(())
    };
    // SAFETY: as promised.
    unsafe { with(kernel, work) }
}

/// Frees a kernel; its code goes too.
///
/// # Safety
/// `kernel` is null or from [`kernel_new`], and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernel_free(kernel: *mut Runner) {
    if !kernel.is_null() {
        // SAFETY: as promised.
        drop(unsafe { Box::from_raw(kernel) });
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn machine_new(threads: usize, bytes: usize) -> *mut Machine {
    handle(Machine::new(threads, bytes))
}

/// The operations of `steps` steps on every thread, which it has done; 0 without a handle.
///
/// # Safety
/// `machine` is from [`machine_new`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn machine_compute(machine: *const Machine, steps: u64) -> u64 {
    // SAFETY: as promised.
    unsafe { machine.as_ref() }.map_or(0, |it| it.compute(steps))
}

/// The bytes of the memory, all of which it has read; 0 without a handle.
///
/// # Safety
/// `machine` is from [`machine_new`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn machine_read(machine: *const Machine) -> u64 {
    // SAFETY: as promised.
    unsafe { machine.as_ref() }.map_or(0, Machine::read)
}
