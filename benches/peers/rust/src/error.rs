//! What went wrong, kept for the caller: C has no other way to be told.

use std::{
    cell::RefCell,
    ffi::{CStr, CString, c_char},
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} cannot be read: {1}")]
    Read(String, std::io::Error),
    #[error("{0} is not a description of a kernel: {1}")]
    Description(String, serde_json::Error),
    #[error("{0} has version {1}, which is not known here")]
    Version(String, u32),
    #[error("tensor `{0}` has the type `{1}`, which is not known here")]
    Type(String, String),
    #[error("{0} cannot be loaded: {1}")]
    Load(String, libloading::Error),
    #[error("{0} has no function `{1}`: {2}")]
    Symbol(String, String, libloading::Error),
    #[error("the threads cannot be started: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    #[error("the kernel has no tensor `{0}`")]
    Tensor(String),
    #[error("`{0}` has {1} bytes and not {2}")]
    Size(String, usize, usize),
    #[error("there is no engine `{0}`: faer, gemm, matrixmultiply or cblas")]
    Engine(String),
    #[error("text that is not UTF-8")]
    Text,
    #[error("no handle")]
    Null,
    #[error("a side of the product is beyond CBLAS's 32 bits")]
    Side,
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Keeps `error` for [`last`]. A message with a NUL in it, which no path or name here can have, is kept empty.
pub fn keep(error: &Error) {
    LAST.with(|it| *it.borrow_mut() = CString::new(error.to_string()).unwrap_or_default());
}

/// The last message of this thread; valid until the next failure on it.
pub fn last() -> *const c_char {
    LAST.with(|it| it.borrow().as_ptr())
}

/// # Safety
/// `text` is null or a NUL-terminated string that outlives the result.
pub unsafe fn text<'a>(text: *const c_char) -> Result<&'a str, Error> {
    if text.is_null() {
        return Err(Error::Null);
    }
    // SAFETY: as promised.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| Error::Text)
}
