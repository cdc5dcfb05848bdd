//! Memory between protected pages. A kernel that reads or writes outside of its buffer faults there; the fault is noted, the
//! page is opened, and the kernel goes on, so that a wrong kernel ends in a verdict that names the buffer and not in a dead
//! worker. Whatever lies further out than [`GUARD`] still ends the process, as any stray pointer does.
//!
//! Returning from the fault was chosen over jumping out of it: a jump over generated code needs `setjmp`, which Rust cannot
//! call soundly.

use kernelforge::protocol::{Failure, FailureKind};
use rustix::{
    io::Errno,
    mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap},
    param::page_size,
};
use std::{
    ffi::{CStr, c_char, c_void},
    io, mem, ptr, slice,
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering},
    },
};

/// Bytes of protected addresses on each side. A kernel that is off by a row of a large matrix still lands there.
const GUARD: usize = 1 << 20;

/// Mappings that can exist at a time.
const SLOTS: usize = 1024;

/// What the rest of a buffer's first or last page holds, over and over: no number as f32 and neither half of it one as f16, so
/// that reading it shows, and a pattern that no computation makes, so that writing it shows too.
const CANARY: [u8; 4] = 0x7fc0_fead_u32.to_le_bytes();

/// Buffers start where vectors of 64 bytes may.
pub const ALIGNMENT: usize = 64;

/// Which end of the buffer touches a protected page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    Begin,
    /// Up to [`ALIGNMENT`] bytes may lie between, which hold canaries.
    End,
}

/// How a kernel left its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Escape {
    ReadBefore,
    WroteBefore,
    ReadAfter,
    WroteAfter,
}

impl Escape {
    const ALL: [Self; 4] = [Self::ReadBefore, Self::WroteBefore, Self::ReadAfter, Self::WroteAfter];

    pub const fn text(self) -> &'static str {
        match self {
            Self::ReadBefore => "reads before the beginning of",
            Self::WroteBefore => "writes before the beginning of",
            Self::ReadAfter => "reads past the end of",
            Self::WroteAfter => "writes past the end of",
        }
    }

    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// What the signal handler knows of one mapping; all zero when there is none.
struct Slot {
    start: AtomicUsize,
    body: AtomicUsize,
    body_end: AtomicUsize,
    end: AtomicUsize,
    /// Bits of [`Escape`].
    escapes: AtomicU32,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        body: AtomicUsize::new(0),
        body_end: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        escapes: AtomicU32::new(0),
    }
}; SLOTS];

/// Held while slots are taken and given back.
static TAKING: Mutex<()> = Mutex::new(());

/// Storage between two protected ranges of addresses.
pub struct Guarded {
    slot: usize,
    mapping: *mut c_void,
    mapped: usize,
    body: *mut u8,
    /// Bytes between the protected ranges.
    body_len: usize,
    /// Where in the body the buffer begins.
    offset: usize,
    len: usize,
}

// SAFETY: a guarded buffer owns its mapping, like a `Vec<u8>`; its slot is its own until it is dropped.
unsafe impl Send for Guarded {}
// SAFETY: shared references only read.
unsafe impl Sync for Guarded {}

impl Guarded {
    /// `len` bytes, zero.
    ///
    /// # Errors
    /// `OutOfMemory`; `Internal` when there are too many mappings or the handler cannot be installed.
    pub fn new(len: usize, edge: Edge) -> Result<Self, Failure> {
        install()?;
        let out_of_memory =
            || Failure::new(FailureKind::OutOfMemory, format!("no memory for a guarded buffer of {len} bytes"));
        let page = page_size().max(ALIGNMENT);
        // At least one cache line, so that every buffer has an address of its own.
        let used = len.max(1).checked_next_multiple_of(ALIGNMENT).ok_or_else(out_of_memory)?;
        let body_bytes = used.checked_next_multiple_of(page).ok_or_else(out_of_memory)?;
        let mapped = body_bytes.checked_add(2 * GUARD).ok_or_else(out_of_memory)?;
        let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let free = TABLE.iter().position(|it| it.start.load(Ordering::Relaxed) == 0);
        let slot = free.ok_or_else(|| Failure::new(FailureKind::Internal, "too many guarded buffers"))?;
        // SAFETY: a fresh private mapping at an address of the kernel's choice touches no memory that is in use.
        let mapping = unsafe { mmap_anonymous(ptr::null_mut(), mapped, ProtFlags::empty(), MapFlags::PRIVATE) };
        let mapping = mapping.map_err(|_| out_of_memory())?;
        // SAFETY: GUARD bytes in lie within the mapping.
        let body = unsafe { mapping.byte_add(GUARD) };
        // SAFETY: the range is part of the fresh mapping, which nobody has a reference to.
        let opened = unsafe { mprotect(body, body_bytes, MprotectFlags::READ | MprotectFlags::WRITE) };
        if opened.is_err() {
            // SAFETY: mapped above, not used yet.
            let _ = unsafe { munmap(mapping, mapped) };
            return Err(out_of_memory());
        }
        let offset = match edge {
            Edge::Begin => 0,
            Edge::End => body_bytes - used,
        };
        let body = body.cast::<u8>();
        let mut buffer = Self { slot, mapping, mapped, body, body_len: body_bytes, offset, len };
        buffer.outside().for_each(|mut it| it.renew());
        let entry = &TABLE[slot];
        entry.escapes.store(0, Ordering::Relaxed);
        entry.body.store(body as usize, Ordering::Relaxed);
        entry.body_end.store(body as usize + body_bytes, Ordering::Relaxed);
        entry.end.store(mapping as usize + mapped, Ordering::Relaxed);
        entry.start.store(mapping as usize, Ordering::Release);
        Ok(buffer)
    }

    pub const fn pointer(&self) -> *mut u8 {
        self.body.wrapping_add(self.offset)
    }

    pub const fn len(&self) -> usize {
        self.len
    }

    /// What the body holds beside the buffer: before it and after it.
    fn outside(&mut self) -> impl Iterator<Item = Canaries<'_>> {
        let (begin, end) = (self.offset, self.offset + self.len);
        // SAFETY: the body is `body_len` readable and writable bytes, borrowed exclusively.
        let body = unsafe { slice::from_raw_parts_mut(self.body, self.body_len) };
        let (head, tail) = body.split_at_mut(end);
        [Canaries { bytes: &mut head[..begin], phase: 0 }, Canaries { bytes: tail, phase: end % CANARY.len() }]
            .into_iter()
    }

    /// What happened since this was asked last; the protection is put back.
    pub fn escapes(&mut self) -> Vec<Escape> {
        let mut bits = TABLE[self.slot].escapes.swap(0, Ordering::Relaxed);
        if bits != 0 {
            let guards = [self.mapping, self.body.wrapping_add(self.body_len).cast()];
            for guard in guards {
                // SAFETY: both ranges are the guards of this mapping, and no object lives there.
                let _ = unsafe { mprotect(guard, GUARD, MprotectFlags::empty()) };
            }
        }
        for (mut outside, escape) in self.outside().zip([Escape::WroteBefore, Escape::WroteAfter]) {
            if !outside.are_whole() {
                bits |= escape.bit();
                outside.renew();
            }
        }
        Escape::ALL.into_iter().filter(|it| bits & it.bit() != 0).collect()
    }
}

/// Bytes that hold [`CANARY`], beginning in the middle of one.
struct Canaries<'a> {
    bytes: &'a mut [u8],
    phase: usize,
}

impl Canaries<'_> {
    fn renew(&mut self) {
        let pattern = CANARY.iter().cycle().skip(self.phase);
        self.bytes.iter_mut().zip(pattern).for_each(|(it, canary)| *it = *canary);
    }

    fn are_whole(&self) -> bool {
        // Whole canaries are compared as such: bytes one by one take 4 us a page, and pages are looked at after every call.
        let mut rotated = CANARY;
        rotated.rotate_left(self.phase);
        let (whole, rest) = self.bytes.as_chunks::<{ CANARY.len() }>();
        whole.iter().all(|it| *it == rotated) && rest == &rotated[..rest.len()]
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
        TABLE[self.slot].start.store(0, Ordering::Release);
        // SAFETY: mapped in `new` with this size; no reference into it outlives `self`.
        let _ = unsafe { munmap(self.mapping, self.mapped) };
    }
}

/// What runs: a C string that outlives the run, or null.
static RUNNING: AtomicPtr<c_char> = AtomicPtr::new(ptr::null_mut());

/// Calls `run`; if it faults beyond all guards, the process's last words are `what`.
pub fn announced<T>(what: &CStr, run: impl FnOnce() -> T) -> T {
    RUNNING.store(what.as_ptr().cast_mut(), Ordering::Release);
    let result = run();
    RUNNING.store(ptr::null_mut(), Ordering::Release);
    result
}

/// Says on stderr what runs, by system calls alone.
fn last_words() {
    let what = RUNNING.load(Ordering::Acquire);
    if what.is_null() {
        return;
    }
    // SAFETY: the string is valid while what it names runs, and that is now; writing to a descriptor is async-signal-safe.
    unsafe {
        let (text, length) = (what.cast_const(), libc::strlen(what));
        for (start, length) in [(c"memory fault while running ".as_ptr(), 27), (text, length), (c"\n".as_ptr(), 1)] {
            let _ = libc::write(2, start.cast(), length);
        }
    }
}

/// What handled the signal before.
static PREVIOUS: AtomicUsize = AtomicUsize::new(0);

/// Makes [`on_fault`] the process's handler, once.
fn install() -> Result<(), Failure> {
    static ONCE: Once = Once::new();
    static ERROR: AtomicU32 = AtomicU32::new(0);
    ONCE.call_once(|| {
        // SAFETY: all zero is a valid sigaction; the handler has the signature that SA_SIGINFO asks for; both pointers are valid.
        let result = unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            let mut previous: libc::sigaction = mem::zeroed();
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            let result = libc::sigaction(libc::SIGSEGV, &action, &mut previous);
            PREVIOUS.store(previous.sa_sigaction, Ordering::Release);
            result
        };
        if result != 0 {
            let code = io::Error::last_os_error().raw_os_error().unwrap_or_default();
            ERROR.store(code.unsigned_abs(), Ordering::Release);
        }
    });
    match ERROR.load(Ordering::Acquire) {
        0 => Ok(()),
        code => {
            let error = Errno::from_raw_os_error(i32::try_from(code).unwrap_or_default());
            Err(Failure::new(FailureKind::Internal, format!("no handler for memory faults: {error}")))
        }
    }
}

/// Notes and opens the guard that was hit, and returns, so that the access is done again. Any other fault goes to who handled
/// faults before; Rust's own handler then ends the process by the same signal. Uses atomics and one system call only.
extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system calls this with a valid siginfo_t, whose address field is set for SIGSEGV.
    let address = unsafe { (*info).si_addr() } as usize;
    for slot in &TABLE {
        let start = slot.start.load(Ordering::Acquire);
        if start == 0 || address < start || address >= slot.end.load(Ordering::Relaxed) {
            continue;
        }
        let (body, body_end) = (slot.body.load(Ordering::Relaxed), slot.body_end.load(Ordering::Relaxed));
        let before = address < body;
        if !before && address < body_end {
            break;
        }
        let escape = match (before, wrote(context)) {
            (true, false) => Escape::ReadBefore,
            (true, true) => Escape::WroteBefore,
            (false, false) => Escape::ReadAfter,
            (false, true) => Escape::WroteAfter,
        };
        slot.escapes.fetch_or(escape.bit(), Ordering::Relaxed);
        let guard = if before { start } else { body_end };
        // SAFETY: the range is a guard of a live mapping, and no object lives there.
        let opened = unsafe { libc::mprotect(guard as *mut c_void, GUARD, libc::PROT_READ | libc::PROT_WRITE) };
        if opened == 0 {
            return;
        }
        break;
    }
    last_words();
    match PREVIOUS.load(Ordering::Acquire) {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: restoring the default action is always allowed; the access faults again and ends the process.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        previous => {
            // SAFETY: this is the handler that the process had, installed by Rust's runtime with SA_SIGINFO.
            let previous: extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void) = unsafe { mem::transmute(previous) };
            previous(signal, info, context);
        }
    }
}

/// Whether the faulting access was a write (bit 1 of the page-fault error code; Intel SDM, volume 3, section 4.7).
#[cfg(target_arch = "x86_64")]
fn wrote(context: *mut c_void) -> bool {
    // SAFETY: with SA_SIGINFO the third argument is a valid ucontext_t.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    registers[libc::REG_ERR as usize] & 2 != 0
}

/// Elsewhere a fault counts as a read; writes into the rest of a page are still told apart by the canaries.
#[cfg(not(target_arch = "x86_64"))]
fn wrote(_context: *mut c_void) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(buffer: &Guarded, at: isize) {
        // SAFETY: the tests aim at canaries and guard pages of their own mapping on purpose.
        unsafe { buffer.pointer().cast::<f32>().wrapping_offset(at).write_volatile(1.0) }
    }

    fn read(buffer: &Guarded, at: isize) -> f32 {
        // SAFETY: as in `write`.
        unsafe { buffer.pointer().cast::<f32>().wrapping_offset(at).read_volatile() }
    }

    #[test]
    fn what_stays_inside_is_not_noticed() {
        for edge in [Edge::Begin, Edge::End] {
            let mut buffer = Guarded::new(4000, edge).unwrap();
            (0..1000).for_each(|it| write(&buffer, it));
            assert_eq!((read(&buffer, 999), buffer.escapes()), (1.0, vec![]));
            assert_eq!(buffer.pointer() as usize % ALIGNMENT, 0);
        }
    }

    #[test]
    fn the_element_after_the_last_and_the_one_before_the_first_are_noticed() {
        for edge in [Edge::Begin, Edge::End] {
            for len in [16, 1024, 17, 1] {
                let mut buffer = Guarded::new(4 * len, edge).unwrap();
                write(&buffer, len as isize);
                assert_eq!(buffer.escapes(), [Escape::WroteAfter], "{edge:?} {len}");
                write(&buffer, -1);
                assert_eq!(buffer.escapes(), [Escape::WroteBefore], "{edge:?} {len}");
                assert_eq!(buffer.escapes(), []);
            }
        }
    }

    #[test]
    fn a_read_outside_faults_or_gives_no_number() {
        let mut buffer = Guarded::new(64, Edge::End).unwrap();
        read(&buffer, 16);
        assert_eq!(buffer.escapes(), [Escape::ReadAfter]);
        // Protected again.
        read(&buffer, 16);
        assert_eq!(buffer.escapes(), [Escape::ReadAfter]);
        let mut buffer = Guarded::new(64, Edge::Begin).unwrap();
        read(&buffer, -1);
        assert_eq!(buffer.escapes(), [Escape::ReadBefore]);
        assert!(read(&buffer, 16).is_nan());
    }

    #[test]
    fn the_half_after_an_odd_number_of_halves_is_noticed_and_is_no_number() {
        for edge in [Edge::Begin, Edge::End] {
            for halves in [1, 33, 2047] {
                let mut buffer = Guarded::new(2 * halves, edge).unwrap();
                let after = buffer.pointer().cast::<u16>().wrapping_add(halves);
                if edge == Edge::Begin || halves % 32 != 0 {
                    // SAFETY: the rest of the buffer's last cache line belongs to its mapping.
                    let found = unsafe { after.read_volatile() };
                    assert!(kernelforge::half::Half::F16.widen(found).is_nan(), "{found:#x}");
                }
                // SAFETY: as in `write`.
                unsafe { after.write_volatile(0) };
                assert_eq!(buffer.escapes(), [Escape::WroteAfter], "{edge:?} {halves}");
                assert_eq!(buffer.escapes(), []);
            }
        }
    }

    #[test]
    fn a_dropped_buffer_gives_its_slot_back() {
        for _ in 0..2 * SLOTS {
            Guarded::new(1, Edge::End).unwrap();
        }
    }
}
