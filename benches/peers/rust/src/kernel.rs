//! A kernel of kforge outside of its worker: the object file, linked as a shared library, called as `kernel.json` describes and
//! as `src/worker/device/cpu.rs` does it. On one thread a block is its block entry, on more it is its stages in turn, their units
//! shared among threads by the worker's own code.

use crate::{
    description::{Arg, Description, Entry},
    error::Error,
    threads::Threads,
};
use std::{
    collections::BTreeMap,
    ptr,
    sync::{Arc, Mutex, PoisonError},
};

/// `void entry(void *const *args, int64_t begin, int64_t end)`.
type Function = unsafe extern "C" fn(*const *mut u8, i64, i64);

/// Memory that starts where entries want it to.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

/// Written when made, so that every page exists.
fn buffer(bytes: usize) -> Vec<CacheLine> {
    vec![CacheLine([0; 64]); bytes.div_ceil(size_of::<CacheLine>()).max(1)]
}

/// An entry with an argument table for each thread.
struct Call {
    function: Function,
    units: usize,
    tables: Vec<Table>,
}

struct Table(Vec<*mut u8>);

// SAFETY: the pointers are only handed to generated code, which writes disjoint parts for disjoint units.
unsafe impl Sync for Table {}

/// One call after the other, the units of each shared among the threads.
fn run_in_turn(calls: &[Call], threads: &Threads) {
    let units: Vec<_> = calls.iter().map(|it| it.units).collect();
    threads.phases(&units, |index, thread, begin, end| {
        let call = &calls[index];
        // SAFETY: the table has the buffers that the entry asks for, they live as long as it, and the range is within the entry's
        // units. That the code stays within its buffers is what its verification was for.
        unsafe { (call.function)(call.tables[thread].0.as_ptr(), begin as i64, end as i64) }
    });
}

/// The threads that kernels have in common, by their number: those of several layers' weights take turns on them, as in a runtime.
fn shared(count: usize) -> Result<Arc<Threads>, Error> {
    static POOLS: Mutex<BTreeMap<usize, Arc<Threads>>> = Mutex::new(BTreeMap::new());
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(threads) = pools.get(&count) {
        return Ok(Arc::clone(threads));
    }
    let threads = Arc::new(Threads::new(count)?);
    pools.insert(count, Arc::clone(&threads));
    Ok(threads)
}

/// The buffers of one kernel.
struct Memory {
    tensors: Vec<Vec<CacheLine>>,
    packed: Vec<Vec<CacheLine>>,
    /// By thread.
    workspaces: Vec<Vec<CacheLine>>,
}

impl Memory {
    fn new(kernel: &Description, threads: usize) -> Self {
        let workspace = kernel.stages.iter().chain([&kernel.block]).map(|it| it.workspace).max().unwrap_or(0);
        Self {
            tensors: kernel.graph.tensors.iter().map(|it| buffer(it.bytes())).collect(),
            packed: kernel.packed.iter().map(|it| buffer(it.bytes)).collect(),
            workspaces: (0..threads).map(|_| buffer(workspace)).collect(),
        }
    }

    fn table(&mut self, entry: &Entry, thread: usize) -> Table {
        let mut pointer = |arg: &Arg| match *arg {
            Arg::Tensor(index) => self.tensors[index].as_mut_ptr().cast(),
            Arg::Packed(index) => self.packed[index].as_mut_ptr().cast(),
            Arg::Workspace => self.workspaces[thread].as_mut_ptr().cast(),
        };
        Table(entry.args.iter().map(&mut pointer).collect())
    }
}

pub struct Runner {
    kernel: Description,
    threads: Arc<Threads>,
    prepares: Vec<Call>,
    stages: Vec<Call>,
    /// One.
    block: [Call; 1],
    memory: Memory,
    /// Keeps the code loaded.
    _library: libloading::Library,
}

impl Runner {
    /// `object` is the path of the object file, linked as a shared library; `description` that of its `kernel.json`.
    ///
    /// # Errors
    /// When either cannot be read, or the library lacks an entry that the description names.
    pub fn new(object: &str, description: &str, threads: usize) -> Result<Self, Error> {
        let kernel = Description::read(description)?;
        // SAFETY: a library of entries alone has no initialisers.
        let library = unsafe { libloading::Library::new(object) }.map_err(|it| Error::Load(object.to_owned(), it))?;
        let threads = shared(threads)?;
        let mut memory = Memory::new(&kernel, threads.count());
        let mut call = |entry: &Entry| {
            let refuse = |it| Error::Symbol(object.to_owned(), entry.symbol.clone(), it);
            // SAFETY: every entry of a kernel has this signature.
            let function = unsafe { *library.get::<Function>(entry.symbol.as_bytes()).map_err(refuse)? };
            let tables = (0..threads.count()).map(|it| memory.table(entry, it)).collect();
            Ok::<_, Error>(Call { function, units: entry.units, tables })
        };
        let prepares = kernel.packed.iter().map(|it| call(&it.prepare)).collect::<Result<_, _>>()?;
        let stages = kernel.stages.iter().map(&mut call).collect::<Result<_, _>>()?;
        let block = [call(&kernel.block)?];
        Ok(Self { kernel, threads, prepares, stages, block, memory, _library: library })
    }

    fn tensor(&self, name: &str, bytes: usize) -> Result<usize, Error> {
        let position = self.kernel.graph.tensors.iter().position(|it| it.name == name);
        let index = position.ok_or_else(|| Error::Tensor(name.to_owned()))?;
        let size = self.kernel.graph.tensors[index].bytes();
        if size == bytes { Ok(index) } else { Err(Error::Size(name.to_owned(), size, bytes)) }
    }

    /// Copies `bytes` bytes into the tensor of this name.
    ///
    /// # Errors
    /// When there is none, or it has another size.
    ///
    /// # Safety
    /// `data` points to `bytes` readable bytes.
    pub unsafe fn write(&mut self, name: &str, data: *const u8, bytes: usize) -> Result<(), Error> {
        let index = self.tensor(name, bytes)?;
        // SAFETY: as promised, and the buffer has the tensor's size.
        unsafe { ptr::copy_nonoverlapping(data, self.memory.tensors[index].as_mut_ptr().cast(), bytes) }
        Ok(())
    }

    /// Copies the tensor of this name to `data`.
    ///
    /// # Errors
    /// As [`Self::write`].
    ///
    /// # Safety
    /// `data` points to `bytes` writable bytes.
    pub unsafe fn read(&self, name: &str, data: *mut u8, bytes: usize) -> Result<(), Error> {
        let index = self.tensor(name, bytes)?;
        // SAFETY: as promised, and the buffer has the tensor's size.
        unsafe { ptr::copy_nonoverlapping(self.memory.tensors[index].as_ptr().cast(), data, bytes) }
        Ok(())
    }

    /// Packs the weights that are packed ahead.
    pub fn prepare(&mut self) {
        run_in_turn(&self.prepares, &self.threads);
    }

    pub fn run(&mut self) {
        run_in_turn(if self.threads.count() == 1 { &self.block } else { &self.stages }, &self.threads);
    }
}
