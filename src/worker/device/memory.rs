//! The buffers that a kernel's entries are called with.
//!
//! Everything around a kernel (the verifier, inputs from files) speaks f32. A tensor of f16 or bf16 has a mirror for that: its
//! values widened when somebody looks at them after a run, and rounded to the nearest half before the next run when somebody has
//! written to them. Only what was looked at or written to is converted, and a timed run converts nothing.

use super::guard::{ALIGNMENT, Edge, Escape, Guarded};
use kernelforge::{
    half::Half,
    manifest::spec::Dtype,
    plan::{
        kernel::{Arg, Entry, Kernel},
        stage::{Role, TensorId},
    },
    protocol::{Failure, FailureKind},
};
use rustix::mm::{Advice, madvise};
use std::{
    alloc::{Layout, alloc, dealloc},
    mem, slice,
    sync::{Mutex, OnceLock, PoisonError},
};

/// Buffers from this size on lie on pages of this size where the system has them. With pages of 4 KiB the processor's own
/// prefetching stops every 64 lines: weights that are read once, by the products of a single token, then arrive at 15 to 16 GB/s
/// instead of 19 to 21 (GPT-2 small, Zen 3; median of 25 interleaved runs).
const LARGE_PAGE: usize = 2 << 20;

/// Storage that starts on a cache line; zeroed when made.
pub struct Buffer {
    start: *mut u8,
    bytes: usize,
    /// Absent: the memory is the allocator's.
    guarded: Option<Guarded>,
}

// SAFETY: a buffer owns its memory, like a `Vec<u8>`.
unsafe impl Send for Buffer {}
// SAFETY: shared references only read.
unsafe impl Sync for Buffer {}

/// What a buffer may be read and written as: numbers of which every bit pattern is one, and whose size divides [`ALIGNMENT`].
pub trait Element: Copy {}

impl Element for f32 {}
/// The bits of an f16 or a bf16.
impl Element for u16 {}

impl Buffer {
    /// With protected pages around it where an edge is asked for.
    ///
    /// # Errors
    /// `OutOfMemory`, with the size, when the system has no more; as [`Guarded::new`].
    pub fn new(bytes: usize, edge: Option<Edge>) -> Result<Self, Failure> {
        if let Some(edge) = edge {
            let guarded = Guarded::new(bytes, edge)?;
            return Ok(Self { start: guarded.pointer(), bytes: guarded.len(), guarded: Some(guarded) });
        }
        let refuse = || Failure::new(FailureKind::OutOfMemory, format!("no memory for a buffer of {bytes} bytes"));
        let layout = Self::layout(bytes).ok_or_else(refuse)?;
        // SAFETY: the layout's size is not 0.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            return Err(refuse());
        }
        if layout.align() == LARGE_PAGE {
            // Before anything is written: what has a small page keeps it. A system that has no large ones says so, and does
            // without.
            // SAFETY: the range is whole pages of this allocation, which nobody has a reference to; the advice changes no content.
            let _ = unsafe { madvise(start.cast(), layout.size(), Advice::LinuxHugepage) };
        }
        // SAFETY: the allocation has these bytes.
        unsafe { start.write_bytes(0, layout.size()) };
        Ok(Self { start, bytes, guarded: None })
    }

    /// At least one cache line, so that every buffer has an address of its own; whole large pages where there is one.
    fn layout(bytes: usize) -> Option<Layout> {
        let unit = if bytes >= LARGE_PAGE { LARGE_PAGE } else { ALIGNMENT };
        Layout::from_size_align(bytes.max(1).checked_next_multiple_of(unit)?, unit).ok()
    }

    pub fn as_slice<T: Element>(&self) -> &[T] {
        // SAFETY: `start` is aligned for any element and points to `bytes` initialised bytes that live as long as `self`.
        unsafe { slice::from_raw_parts(self.start.cast(), self.bytes / size_of::<T>()) }
    }

    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.start.cast(), self.bytes / size_of::<T>()) }
    }

    /// Fills it for whoever reads it as f32 and for whoever reads it as halves: both halves of every f32 are the upper half of
    /// `value`. NaN stays NaN and is NaN in f16 and bf16; 2^100 becomes 2^100 (1 + 2^-8 ...) and is 11264 in f16.
    pub fn fill_mixed(&mut self, value: f32) {
        let upper = (value.to_bits() >> 16) as u16;
        self.as_mut_slice().fill(upper);
    }

    pub fn pointer(&self) -> *mut u8 {
        self.start
    }

    /// How a kernel left this buffer since this was asked last. Nothing where it has no protected pages.
    pub fn escapes(&mut self) -> Vec<Escape> {
        self.guarded.as_mut().map_or_else(Vec::new, Guarded::escapes)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let (None, Some(layout)) = (&self.guarded, Self::layout(self.bytes)) {
            // SAFETY: allocated in `new` with the same layout.
            unsafe { dealloc(self.start, layout) }
        }
    }
}

/// A tensor's storage, and its values in f32.
struct Stored {
    buffer: Buffer,
    /// Absent for f32, which is its own mirror.
    mirror: Option<Mirror>,
}

/// The values of a tensor of halves.
struct Mirror {
    format: Half,
    /// Empty until somebody asks for it.
    values: OnceLock<Vec<f32>>,
    /// Somebody has written to the values.
    written: bool,
    /// The memory of values that a run has made stale.
    spare: Mutex<Vec<f32>>,
}

impl Mirror {
    fn new(format: Half) -> Self {
        Self { format, values: OnceLock::new(), written: false, spare: Mutex::default() }
    }

    fn values(&self, halves: &[u16]) -> &Vec<f32> {
        self.values.get_or_init(|| {
            let mut values = mem::take(&mut *self.spare.lock().unwrap_or_else(PoisonError::into_inner));
            values.resize(halves.len(), 0.0);
            self.format.widen_all(halves, &mut values);
            values
        })
    }

    /// The storage has changed.
    fn forget(&mut self) {
        if let Some(values) = self.values.take() {
            *self.spare.get_mut().unwrap_or_else(PoisonError::into_inner) = values;
        }
        self.written = false;
    }
}

impl Stored {
    fn new(len: usize, dtype: Dtype, edge: Option<Edge>) -> Result<Self, Failure> {
        let mirror = Half::of(dtype).map(Mirror::new);
        Ok(Self { buffer: Buffer::new(len * dtype.bytes(), edge)?, mirror })
    }

    fn values(&self) -> &[f32] {
        match &self.mirror {
            None => self.buffer.as_slice(),
            Some(mirror) => mirror.values(self.buffer.as_slice()),
        }
    }

    fn values_mut(&mut self) -> &mut [f32] {
        let Some(mirror) = &mut self.mirror else { return self.buffer.as_mut_slice() };
        mirror.values(self.buffer.as_slice());
        mirror.written = true;
        mirror.values.get_mut().map_or(&mut [], Vec::as_mut_slice)
    }

    fn fill(&mut self, value: f32) {
        match &mut self.mirror {
            None => self.buffer.as_mut_slice::<f32>().fill(value),
            Some(mirror) => {
                mirror.forget();
                // What f16 cannot hold would be infinite, and that spreads like NaN: a poison that hides in a sum must be finite.
                let value = match mirror.format {
                    Half::F16 if value.is_finite() => value.clamp(-LARGE_HALF, LARGE_HALF),
                    _ => value,
                };
                self.buffer.as_mut_slice::<u16>().fill(mirror.format.narrow(value));
            }
        }
    }

    fn settle(&mut self) {
        let Some(mirror) = self.mirror.as_mut().filter(|it| it.written) else { return };
        if let Some(values) = mirror.values.get_mut() {
            mirror.format.narrow_all(values, self.buffer.as_mut_slice());
            // What was written is not what is stored: whoever looks next sees what the kernel saw.
            mirror.format.widen_all(self.buffer.as_slice(), values);
        }
        mirror.written = false;
    }
}

/// The largest power of two that a sum of two f16 poisons still holds.
const LARGE_HALF: f32 = 32768.0 / 2.0;

/// All buffers of one kernel: its tensors, its packed weights, and a workspace for each thread.
pub struct Memory {
    /// By [`TensorId`].
    tensors: Vec<Stored>,
    packed: Vec<Buffer>,
    workspaces: Vec<Buffer>,
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
        let tensors = &kernel.graph.tensors;
        Ok(Self {
            tensors: tensors.iter().map(|it| Stored::new(it.len(), it.dtype, edge)).collect::<Result<_, _>>()?,
            packed: kernel.packed.iter().map(|it| Buffer::new(it.bytes, edge)).collect::<Result<_, _>>()?,
            workspaces: (0..threads.max(1))
                .map(|_| Buffer::new(bytes.next_multiple_of(ALIGNMENT), edge))
                .collect::<Result<_, _>>()?,
            computed: tensors.iter().map(|it| matches!(it.role, Role::Value | Role::Output)).collect(),
            edge,
        })
    }

    /// The tensor's values: exactly what is stored, unless they were written to since the last run.
    pub fn tensor(&self, id: TensorId) -> &[f32] {
        self.tensors[id.0].values()
    }

    /// The tensor's values to be changed; the next run gets them rounded to what the tensor can store.
    pub fn tensor_mut(&mut self, id: TensorId) -> &mut [f32] {
        self.tensors[id.0].values_mut()
    }

    /// Overwrites everything that a run computes: values, outputs, workspaces. A finite value beyond 2^14 is 2^14 in f16.
    pub fn poison(&mut self, value: f32) {
        let computed = self.tensors.iter_mut().zip(&self.computed).filter(|it| *it.1).map(|it| it.0);
        computed.for_each(|it| it.fill(value));
        // Workspaces hold f32, and in a run of the block values of any type.
        self.workspaces.iter_mut().for_each(|it| it.fill_mixed(value));
    }

    /// Overwrites the packed weights.
    pub fn poison_packed(&mut self, value: f32) {
        self.packed.iter_mut().for_each(|it| it.fill_mixed(value));
    }

    /// Stores what was written to tensors; every run does that first. Whoever times a run calls this before.
    pub fn settle(&mut self) {
        self.tensors.iter_mut().for_each(Stored::settle);
    }

    /// An entry has run: what it was given may have changed.
    pub fn ran(&mut self, entry: &Entry) {
        for arg in &entry.args {
            if let Arg::Tensor(TensorId(index)) = *arg
                && let Some(mirror) = &mut self.tensors[index].mirror
            {
                mirror.forget();
            }
        }
    }

    /// Which buffers a kernel left since this was asked last: the tensor's index, the packed weight's, or the thread's whose
    /// workspace it is.
    pub fn escapes(&mut self) -> Vec<(Arg, Escape)> {
        let tensors = self.tensors.iter_mut().map(|it| &mut it.buffer).enumerate();
        let tensors = tensors.map(|(index, it)| (Arg::Tensor(TensorId(index)), it));
        let packed = self.packed.iter_mut().enumerate().map(|(index, it)| (Arg::Packed(index), it));
        let workspaces = self.workspaces.iter_mut().map(|it| (Arg::Workspace, it));
        let all = tensors.chain(packed).chain(workspaces);
        all.flat_map(|(arg, it)| it.escapes().into_iter().map(move |escape| (arg, escape))).collect()
    }

    /// The argument table of an entry, for the thread with this index. Between protected pages the workspace is the entry's own
    /// size: its end is the protected page, if the other buffers' ends are.
    pub fn arguments(&self, entry: &Entry, thread: usize) -> Vec<*mut u8> {
        let pointer = |arg: &Arg| match *arg {
            Arg::Tensor(id) => self.tensors[id.0].buffer.pointer(),
            Arg::Packed(index) => self.packed[index].pointer(),
            Arg::Workspace => {
                let (workspace, unused) = (&self.workspaces[thread], self.unused(entry, thread));
                workspace.pointer().wrapping_add(unused)
            }
        };
        entry.args.iter().map(pointer).collect()
    }

    /// Bytes of the thread's workspace that lie before the entry's.
    fn unused(&self, entry: &Entry, thread: usize) -> usize {
        let needed = entry.workspace.next_multiple_of(ALIGNMENT);
        match self.edge {
            Some(Edge::End) => self.workspaces[thread].bytes.saturating_sub(needed),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_f16_tensor_shows_what_it_stores_once_a_run_has_seen_it() {
        let mut stored = Stored::new(3, Dtype::F16, None).unwrap();
        stored.values_mut().copy_from_slice(&[1.0, 0.1, -70000.0]);
        assert_eq!(stored.values(), [1.0, 0.1, -70000.0]);
        stored.settle();
        assert_eq!(stored.values(), [1.0, Half::F16.widen(Half::F16.narrow(0.1)), f32::NEG_INFINITY]);
        assert_eq!(stored.buffer.as_slice::<u16>(), [0x3c00, 0x2e66, 0xfc00]);
        // A kernel writes.
        stored.buffer.as_mut_slice::<u16>()[0] = 0x4000;
        stored.mirror.as_mut().unwrap().forget();
        assert_eq!(stored.values()[0], 2.0);
    }

    #[test]
    fn poison_is_what_it_should_be_in_every_type() {
        let mut stored = Stored::new(2, Dtype::F16, None).unwrap();
        stored.fill(f32::NAN);
        assert!(stored.values().iter().all(|it| it.is_nan()));
        stored.fill(2f32.powi(100));
        assert_eq!(stored.values(), [LARGE_HALF; 2]);
        let mut stored = Stored::new(2, Dtype::Bf16, None).unwrap();
        stored.fill(2f32.powi(100));
        assert_eq!(stored.values(), [2f32.powi(100); 2]);
        let mut mixed = Buffer::new(8, None).unwrap();
        mixed.fill_mixed(f32::NAN);
        assert!(mixed.as_slice::<f32>().iter().all(|it| it.is_nan()));
        assert!(mixed.as_slice::<u16>().iter().all(|it| Half::ALL.iter().all(|format| format.widen(*it).is_nan())));
        mixed.fill_mixed(2f32.powi(100));
        assert!(mixed.as_slice::<f32>().iter().all(|it| (2f32.powi(100)..2f32.powi(101)).contains(it)));
        assert!(mixed.as_slice::<u16>().iter().all(|it| Half::F16.widen(*it) == 11264.0));
        assert!(mixed.as_slice::<u16>().iter().all(|it| Half::Bf16.widen(*it) == 2f32.powi(100)));
    }
}
