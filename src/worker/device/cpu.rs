//! Generated code in this process: an object file is linked by LLVM's ORC JIT linker, its entries are called.

use super::{memory::Memory, threads::Threads};
use kernelforge::{
    plan::kernel::{Entry, Kernel},
    protocol::{Failure, FailureKind},
};
use llvm_sys::{
    core::LLVMCreateMemoryBufferWithMemoryRangeCopy,
    error::{LLVMDisposeErrorMessage, LLVMErrorRef, LLVMGetErrorMessage},
    orc2::{
        LLVMJITEvaluatedSymbol, LLVMJITSymbolFlags, LLVMJITSymbolGenericFlags, LLVMOrcAbsoluteSymbols,
        LLVMOrcCSymbolMapPair, LLVMOrcCreateDynamicLibrarySearchGeneratorForProcess, LLVMOrcJITDylibAddGenerator,
        LLVMOrcJITDylibDefine,
        lljit::{
            LLVMOrcCreateLLJIT, LLVMOrcDisposeLLJIT, LLVMOrcLLJITAddObjectFile, LLVMOrcLLJITGetGlobalPrefix,
            LLVMOrcLLJITGetMainJITDylib, LLVMOrcLLJITLookup, LLVMOrcLLJITMangleAndIntern, LLVMOrcLLJITRef,
        },
    },
};
use std::{
    ffi::{CStr, CString},
    ops::Range,
    ptr,
};

/// `void entry(void *const *args, int64_t begin, int64_t end)`, as [`kernelforge::plan::kernel`] documents.
type Function = unsafe extern "C" fn(*const *mut u8, i64, i64);

/// A kernel whose code is in memory.
pub struct LoadedKernel {
    kernel: Kernel,
    stages: Vec<Function>,
    prepares: Vec<Function>,
    block: Function,
    /// Own the code; the functions above point into them.
    _code: Vec<Jit>,
}

// SAFETY: the code is immutable once linked, and LLJIT is used by no one after `load`.
unsafe impl Sync for LoadedKernel {}

struct Jit(LLVMOrcLLJITRef);

impl Drop for Jit {
    fn drop(&mut self) {
        // SAFETY: created in `Jit::new`, freed once; errors of tearing down have no reader.
        unsafe {
            let _ = consume(LLVMOrcDisposeLLJIT(self.0));
        }
    }
}

/// Turns LLVM's error into its message and frees it.
///
/// # Safety
/// `error` is null or an error that nobody has consumed.
unsafe fn consume(error: LLVMErrorRef) -> Result<(), String> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: not null and not consumed; the message is NUL-terminated and freed once.
    unsafe {
        let text = LLVMGetErrorMessage(error);
        let message = CStr::from_ptr(text).to_string_lossy().into_owned();
        LLVMDisposeErrorMessage(text);
        Err(message)
    }
}

fn refuse(message: String) -> Failure {
    Failure::new(FailureKind::Codegen, "the object file cannot be loaded").with_detail(message)
}

impl Jit {
    fn new(object: &[u8]) -> Result<Self, Failure> {
        crate::codegen::cpu::initialize_target();
        // SAFETY: out-parameters are valid; ownership of the generator and of the buffer passes to the JIT, as the C
        // interface documents, and each error is consumed once.
        unsafe {
            let mut raw = ptr::null_mut();
            consume(LLVMOrcCreateLLJIT(&mut raw, ptr::null_mut())).map_err(refuse)?;
            let jit = Self(raw);
            let library = LLVMOrcLLJITGetMainJITDylib(jit.0);
            // memcpy and memset, which LLVM may make of a loop, come from this process.
            let mut generator = ptr::null_mut();
            let prefix = LLVMOrcLLJITGetGlobalPrefix(jit.0);
            let made =
                LLVMOrcCreateDynamicLibrarySearchGeneratorForProcess(&mut generator, prefix, None, ptr::null_mut());
            consume(made).map_err(refuse)?;
            LLVMOrcJITDylibAddGenerator(library, generator);
            let buffer =
                LLVMCreateMemoryBufferWithMemoryRangeCopy(object.as_ptr().cast(), object.len(), c"kernel".as_ptr());
            consume(LLVMOrcLLJITAddObjectFile(jit.0, library, buffer)).map_err(refuse)?;
            Ok(jit)
        }
    }

    /// Gives `symbol` this address, unless an object of this JIT defines it.
    fn define_weakly(&self, symbol: &str, function: Function) -> Result<(), Failure> {
        let name = CString::new(symbol).map_err(|it| refuse(it.to_string()))?;
        // SAFETY: the JIT is live; the interned name is handed over to the materialization unit, which is handed over to the
        // library; the address is that of code which the caller keeps.
        unsafe {
            let mut pair = LLVMOrcCSymbolMapPair {
                Name: LLVMOrcLLJITMangleAndIntern(self.0, name.as_ptr()),
                Sym: LLVMJITEvaluatedSymbol {
                    Address: function as *const () as u64,
                    Flags: LLVMJITSymbolFlags {
                        GenericFlags: LLVMJITSymbolGenericFlags::LLVMJITSymbolGenericFlagsExported as u8
                            | LLVMJITSymbolGenericFlags::LLVMJITSymbolGenericFlagsWeak as u8
                            | LLVMJITSymbolGenericFlags::LLVMJITSymbolGenericFlagsCallable as u8,
                        TargetFlags: 0,
                    },
                },
            };
            let unit = LLVMOrcAbsoluteSymbols(&mut pair, 1);
            consume(LLVMOrcJITDylibDefine(LLVMOrcLLJITGetMainJITDylib(self.0), unit)).map_err(refuse)
        }
    }

    fn function(&self, symbol: &str) -> Result<Function, Failure> {
        let name = CString::new(symbol).map_err(|it| refuse(it.to_string()))?;
        let mut address = 0;
        // SAFETY: the JIT is live; the out-parameter is valid.
        unsafe { consume(LLVMOrcLLJITLookup(self.0, &mut address, name.as_ptr())) }.map_err(refuse)?;
        let address = address as *const ();
        if address.is_null() {
            return Err(refuse(format!("`{symbol}` has no address")));
        }
        // SAFETY: the symbol was found in an object whose entries all have this signature.
        Ok(unsafe { std::mem::transmute::<*const (), Function>(address) })
    }
}

impl LoadedKernel {
    /// Links `object` into this process.
    ///
    /// # Errors
    /// `Codegen` when the object is not one, or lacks an entry that `kernel` names.
    pub fn load(object: &[u8], kernel: Kernel) -> Result<Self, Failure> {
        let jit = Jit::new(object)?;
        let functions = |entries: &mut dyn Iterator<Item = &Entry>| {
            entries.map(|it| jit.function(&it.symbol)).collect::<Result<Vec<_>, _>>()
        };
        let stages = functions(&mut kernel.stages.iter())?;
        let prepares = functions(&mut kernel.packed.iter().map(|it| &it.prepare))?;
        let block = jit.function(&kernel.block.symbol)?;
        Ok(Self { kernel, stages, prepares, block, _code: vec![jit] })
    }

    /// Links `object` into this process, and over it `patch`: an entry that both have is the patch's, and so is what the patch's
    /// functions call.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_patched(object: &[u8], patch: &[u8], kernel: Kernel) -> Result<Self, Failure> {
        let (below, above) = (Jit::new(object)?, Jit::new(patch)?);
        let mut entries: Vec<&Entry> = kernel.stages.iter().chain([&kernel.block]).collect();
        entries.extend(kernel.packed.iter().map(|it| &it.prepare));
        for entry in &entries {
            // What the original does not have is the patch's own.
            if let Ok(function) = below.function(&entry.symbol) {
                above.define_weakly(&entry.symbol, function)?;
            }
        }
        let functions = |entries: &mut dyn Iterator<Item = &Entry>| {
            entries.map(|it| above.function(&it.symbol)).collect::<Result<Vec<_>, _>>()
        };
        let stages = functions(&mut kernel.stages.iter())?;
        let prepares = functions(&mut kernel.packed.iter().map(|it| &it.prepare))?;
        let block = above.function(&kernel.block.symbol)?;
        Ok(Self { kernel, stages, prepares, block, _code: vec![above, below] })
    }

    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Packs every weight that the kernel wants packed.
    pub fn prepare(&self, memory: &mut Memory, threads: &Threads) {
        for (packed, &function) in self.kernel.packed.iter().zip(&self.prepares) {
            call(function, &packed.prepare, memory, threads);
        }
    }

    /// Runs one stage, its units shared among the threads.
    pub fn stage(&self, index: usize, memory: &mut Memory, threads: &Threads) {
        call(self.stages[index], &self.kernel.stages[index], memory, threads);
    }

    /// Runs some units of one stage on the calling thread.
    pub fn stage_units(&self, index: usize, units: Range<usize>, memory: &mut Memory) {
        memory.settle();
        let table = memory.arguments(&self.kernel.stages[index], 0);
        // SAFETY: as in `call`.
        unsafe { self.stages[index](table.as_ptr(), units.start as i64, units.end as i64) }
        memory.ran(&self.kernel.stages[index]);
    }

    /// Runs the block. On one thread that is the block entry, with its values in the workspace; on more it is every stage in turn,
    /// its values in `memory.tensors`.
    pub fn block(&self, memory: &mut Memory, threads: &Threads) {
        if threads.count() == 1 {
            call(self.block, &self.kernel.block, memory, threads);
        } else {
            call_in_turn(&self.stages, &self.kernel.stages, memory, threads);
        }
    }
}

fn call(function: Function, entry: &Entry, memory: &mut Memory, threads: &Threads) {
    call_in_turn(&[function], std::slice::from_ref(entry), memory, threads);
}

/// Calls the functions of these entries one after the other, the units of each shared among the threads.
fn call_in_turn(functions: &[Function], entries: &[Entry], memory: &mut Memory, threads: &Threads) {
    struct Table(Vec<*mut u8>);
    // SAFETY: the pointers are only handed to generated code, which writes disjoint parts for disjoint units.
    unsafe impl Sync for Table {}
    memory.settle();
    let of = |entry| (0..threads.count()).map(|it| Table(memory.arguments(entry, it))).collect();
    let tables: Vec<Vec<_>> = entries.iter().map(of).collect();
    let units: Vec<_> = entries.iter().map(|it| it.units).collect();
    threads.phases(&units, |entry, thread, begin, end| {
        let table: &Table = &tables[entry][thread];
        // SAFETY: `memory` has the buffers that the kernel describes and is borrowed exclusively; the range is within the
        // entry's units. That the code stays inside its buffers is what the verifier is for, and it runs in this process only.
        unsafe { functions[entry](table.0.as_ptr(), begin as i64, end as i64) }
    });
    entries.iter().for_each(|it| memory.ran(it));
}
