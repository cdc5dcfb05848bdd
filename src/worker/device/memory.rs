//! The buffers that a kernel's entries are called with.

use super::guard::{ALIGNMENT, Edge, Escape, Guarded};
use kernelforge::{
    plan::{
        kernel::{Arg, Entry, Kernel},
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
    /// Absent: the memory is the allocator's.
    guarded: Option<Guarded>,
}

// SAFETY: a buffer owns its memory, like a `Vec<f32>`.
unsafe impl Send for Buffer {}
// SAFETY: shared references only read.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// With protected pages around it where an edge is asked for.
    ///
    /// # Errors
    /// `OutOfMemory`, with the size, when the system has no more; as [`Guarded::new`].
    pub fn new(len: usize, edge: Option<Edge>) -> Result<Self, Failure> {
        if let Some(edge) = edge {
            let guarded = Guarded::new(len, edge)?;
            return Ok(Self { start: guarded.pointer(), len: guarded.len(), guarded: Some(guarded) });
        }
        let refuse = || Failure::new(FailureKind::OutOfMemory, format!("no memory for a buffer of {len} f32 elements"));
        let layout = Self::layout(len).ok_or_else(refuse)?;
        // SAFETY: the layout's size is not 0.
        let start = unsafe { alloc_zeroed(layout) }.cast::<f32>();
        if start.is_null() { Err(refuse()) } else { Ok(Self { start, len, guarded: None }) }
    }

    /// At least one cache line, so that every buffer has an address of its own.
    fn layout(len: usize) -> Option<Layout> {
        Layout::from_size_align(len.checked_mul(4)?.max(ALIGNMENT), ALIGNMENT).ok()
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

    /// How a kernel left this buffer since this was asked last. Nothing where it has no protected pages.
    pub fn escapes(&mut self) -> Vec<Escape> {
        self.guarded.as_mut().map_or_else(Vec::new, Guarded::escapes)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let (None, Some(layout)) = (&self.guarded, Self::layout(self.len)) {
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
    edge: Option<Edge>,
}

impl Memory {
    /// With protected pages around every buffer where an edge is asked for.
    ///
    /// # Errors
    /// As [`Buffer::new`].
    pub fn new(kernel: &Kernel, threads: usize, edge: Option<Edge>) -> Result<Self, Failure> {
        let bytes = kernel.stages.iter().chain([&kernel.block]).map(|it| it.workspace).max().unwrap_or(0);
        Ok(Self {
            tensors: kernel.graph.tensors.iter().map(|it| Buffer::new(it.len(), edge)).collect::<Result<_, _>>()?,
            packed: kernel.packed.iter().map(|it| Buffer::new(it.bytes / 4, edge)).collect::<Result<_, _>>()?,
            workspaces: (0..threads.max(1))
                .map(|_| Buffer::new(bytes.next_multiple_of(ALIGNMENT) / 4, edge))
                .collect::<Result<_, _>>()?,
            computed: kernel.graph.tensors.iter().map(|it| matches!(it.role, Role::Value | Role::Output)).collect(),
            edge,
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

    /// Which buffers a kernel left since this was asked last: the tensor's index, the packed weight's, or the thread's whose
    /// workspace it is.
    pub fn escapes(&mut self) -> Vec<(Arg, Escape)> {
        let tensors = self.tensors.iter_mut().enumerate().map(|(index, it)| (Arg::Tensor(TensorId(index)), it));
        let packed = self.packed.iter_mut().enumerate().map(|(index, it)| (Arg::Packed(index), it));
        let workspaces = self.workspaces.iter_mut().map(|it| (Arg::Workspace, it));
        let all = tensors.chain(packed).chain(workspaces);
        all.flat_map(|(arg, it)| it.escapes().into_iter().map(move |escape| (arg, escape))).collect()
    }

    /// The argument table of an entry, for the thread with this index. Between protected pages the workspace is the entry's own
    /// size: its end is the protected page, if the other buffers' ends are.
    pub fn arguments(&self, entry: &Entry, thread: usize) -> Vec<*mut f32> {
        let pointer = |arg: &Arg| match *arg {
            Arg::Tensor(id) => self.tensors[id.0].pointer(),
            Arg::Packed(index) => self.packed[index].pointer(),
            Arg::Workspace => {
                let (workspace, unused) = (&self.workspaces[thread], self.unused(entry, thread));
                workspace.pointer().wrapping_add(unused)
            }
        };
        entry.args.iter().map(pointer).collect()
    }

    /// Elements of the thread's workspace that lie before the entry's.
    fn unused(&self, entry: &Entry, thread: usize) -> usize {
        let needed = entry.workspace.next_multiple_of(ALIGNMENT) / 4;
        match self.edge {
            Some(Edge::End) => self.workspaces[thread].as_slice().len().saturating_sub(needed),
            _ => 0,
        }
    }
}
