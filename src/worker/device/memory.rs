//! The buffers that a kernel's entries are called with.

use kernelforge::{
    plan::{
        kernel::{Arg, Kernel},
        stage::{Role, TensorId},
    },
    protocol::{Failure, FailureKind},
};
use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    slice,
};

/// f32 storage that starts on a cache line; zeroed when made.
pub struct Buffer {
    start: *mut f32,
    len: usize,
}

// SAFETY: a buffer owns its memory, like a `Vec<f32>`.
unsafe impl Send for Buffer {}
// SAFETY: shared references only read.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// # Errors
    /// `OutOfMemory`, with the size, when the system has no more.
    pub fn new(len: usize) -> Result<Self, Failure> {
        let refuse = || Failure::new(FailureKind::OutOfMemory, format!("no memory for a buffer of {len} f32 elements"));
        let layout = Self::layout(len).ok_or_else(refuse)?;
        // SAFETY: the layout's size is not 0.
        let start = unsafe { alloc_zeroed(layout) }.cast::<f32>();
        if start.is_null() { Err(refuse()) } else { Ok(Self { start, len }) }
    }

    /// At least one cache line, so that every buffer has an address of its own.
    fn layout(len: usize) -> Option<Layout> {
        Layout::from_size_align(len.checked_mul(4)?.max(64), 64).ok()
    }

    pub fn as_slice(&self) -> &[f32] {
        // SAFETY: `start` points to `len` initialised elements that live as long as `self`.
        unsafe { slice::from_raw_parts(self.start, self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.start, self.len) }
    }

    pub fn fill(&mut self, value: f32) {
        self.as_mut_slice().fill(value);
    }

    pub fn pointer(&self) -> *mut f32 {
        self.start
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.len) {
            // SAFETY: allocated in `new` with the same layout.
            unsafe { dealloc(self.start.cast(), layout) }
        }
    }
}

/// All buffers of one kernel: its tensors, its packed weights, and a workspace for each thread.
pub struct Memory {
    /// By [`TensorId`].
    pub tensors: Vec<Buffer>,
    pub packed: Vec<Buffer>,
    pub workspaces: Vec<Buffer>,
    /// Which tensors [`Memory::poison`] overwrites.
    computed: Vec<bool>,
}

impl Memory {
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(kernel: &Kernel, threads: usize) -> Result<Self, Failure> {
        let bytes = kernel.stages.iter().chain([&kernel.block]).map(|it| it.workspace).max().unwrap_or(0);
        Ok(Self {
            tensors: kernel.graph.tensors.iter().map(|it| Buffer::new(it.len())).collect::<Result<_, _>>()?,
            packed: kernel.packed.iter().map(|it| Buffer::new(it.bytes / 4)).collect::<Result<_, _>>()?,
            workspaces: (0..threads.max(1)).map(|_| Buffer::new(bytes / 4)).collect::<Result<_, _>>()?,
            computed: kernel.graph.tensors.iter().map(|it| matches!(it.role, Role::Value | Role::Output)).collect(),
        })
    }

    pub fn tensor(&self, id: TensorId) -> &[f32] {
        self.tensors[id.0].as_slice()
    }

    pub fn tensor_mut(&mut self, id: TensorId) -> &mut [f32] {
        self.tensors[id.0].as_mut_slice()
    }

    /// Overwrites everything that a run computes: values, outputs, workspaces.
    pub fn poison(&mut self, value: f32) {
        let computed = self.tensors.iter_mut().zip(&self.computed).filter(|it| *it.1).map(|it| it.0);
        computed.chain(&mut self.workspaces).for_each(|it| it.fill(value));
    }

    /// The argument table of an entry, for the thread with this index.
    pub fn arguments(&self, args: &[Arg], thread: usize) -> Vec<*mut f32> {
        args.iter()
            .map(|arg| match *arg {
                Arg::Tensor(id) => self.tensors[id.0].pointer(),
                Arg::Packed(index) => self.packed[index].pointer(),
                Arg::Workspace => self.workspaces[thread].pointer(),
            })
            .collect()
    }
}
