//! The hand-written matrix products that the generated one is measured against, behind one trait. They are baselines: no
//! build ever uses one, and nothing here knows of plans or generated code.

mod blocked;
mod library;
mod parallel;
mod reference;

pub use blocked::{Blocked, Blocks};
pub use library::Library;
pub use parallel::Parallel;
pub use reference::Reference;

/// c [m, n] = a [m, k] b [k, n], all dense and row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// One way to multiply.
pub trait MatmulKernel {
    fn name(&self) -> &str;

    /// Overwrites `c`. The slices have the lengths that `shape` says; a wrong length panics.
    fn multiply(&self, a: &[f32], b: &[f32], c: &mut [f32], shape: Shape);
}

/// Every kernel that this machine has, told to use `threads` threads where it can. The library is absent where no CBLAS is
/// installed ([`Library::find`] says which were looked for).
pub fn all(threads: usize) -> Vec<Box<dyn MatmulKernel>> {
    let mut all: Vec<Box<dyn MatmulKernel>> = vec![
        Box::new(Reference),
        Box::new(Blocked(Blocks::default())),
        Box::new(Parallel::new(Blocks::default(), threads)),
    ];
    if let Ok(library) = Library::find(threads) {
        all.push(Box::new(library));
    }
    all
}

#[cfg(test)]
mod tests;
