//! MLIR text -> LLVM -> object file, through LLVM's own target machine: that of the host CPU, and in tests others'.

use crate::ir::{context, diagnostics::capture};
use kernelforge::protocol::{Failure, FailureKind};
use llvm_sys::{
    core::{
        LLVMContextCreate, LLVMContextDispose, LLVMDisposeMemoryBuffer, LLVMDisposeMessage, LLVMDisposeModule,
        LLVMGetBufferSize, LLVMGetBufferStart,
    },
    prelude::{LLVMContextRef, LLVMModuleRef},
    target::LLVMSetModuleDataLayout,
    target_machine::{
        LLVMCodeGenFileType, LLVMCodeGenOptLevel, LLVMCodeModel, LLVMCreateTargetDataLayout, LLVMCreateTargetMachine,
        LLVMDisposeTargetMachine, LLVMGetDefaultTargetTriple, LLVMGetHostCPUFeatures, LLVMGetHostCPUName,
        LLVMGetTargetFromTriple, LLVMRelocMode, LLVMTargetMachineEmitToMemoryBuffer, LLVMTargetMachineRef,
    },
};
use melior::{Context, ir::Module, pass::PassManager, utility::parse_pass_pipeline};
use std::{
    ffi::{CStr, CString, c_char},
    ptr, slice,
    sync::Once,
};

/// The way from scf, vector and memref to the LLVM dialect.
const PIPELINE: &str = "builtin.module(canonicalize,cse,func.func(loop-invariant-code-motion),canonicalize,cse,\
    convert-scf-to-cf,convert-vector-to-llvm,convert-math-to-llvm,\
    finalize-memref-to-llvm,convert-arith-to-llvm,convert-index-to-llvm,convert-cf-to-llvm,convert-ub-to-llvm,\
    convert-func-to-llvm{use-bare-ptr-memref-call-conv=1},reconcile-unrealized-casts,canonicalize,cse)";

fn failure(what: &str, detail: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Codegen, format!("{what} the module")).with_detail(detail)
}

/// Compiles the generated module `text` to an object file.
///
/// # Errors
/// `Codegen`, with MLIR's diagnostics: of a generated module this is always a defect of the generator.
pub fn object(text: &str) -> Result<Vec<u8>, Failure> {
    checked_object(text, |_| Ok(()))
}

/// [`object`] of a module that `check` lets pass.
///
/// # Errors
/// As [`object`], and what `check` says.
pub fn checked_object(text: &str, check: impl FnOnce(&Module<'_>) -> Result<(), Failure>) -> Result<Vec<u8>, Failure> {
    compiled(text, check, &Target::host(), LLVMCodeGenFileType::LLVMObjectFile)
}

/// The assembly of the generated module `text` for a CPU that need not be here.
///
/// # Errors
/// As [`object`].
#[cfg(test)]
pub fn assembly(text: &str, target: &Target) -> Result<String, Failure> {
    let text = compiled(text, |_| Ok(()), target, LLVMCodeGenFileType::LLVMAssemblyFile)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn compiled(
    text: &str,
    check: impl FnOnce(&Module<'_>) -> Result<(), Failure>,
    target: &Target,
    kind: LLVMCodeGenFileType,
) -> Result<Vec<u8>, Failure> {
    let context = context();
    let parsed = capture(&context, || Module::parse(&context, text).ok_or_else(|| failure("MLIR does not parse", "")));
    let mut module = parsed?;
    check(&module)?;
    capture(&context, || {
        run_pipeline(&context, &mut module).map_err(|it| failure("MLIR does not lower", it.to_string()))
    })?;
    emit(&module, target, kind)
}

fn run_pipeline(context: &Context, module: &mut Module<'_>) -> Result<(), melior::Error> {
    static REGISTER: Once = Once::new();
    REGISTER.call_once(register_passes);
    let manager = PassManager::new(context);
    parse_pass_pipeline(manager.as_operation_pass_manager(), PIPELINE)?;
    manager.enable_verifier(true);
    manager.run(module)
}

fn register_passes() {
    // SAFETY: registration touches MLIR's global pass registry only; `Once` keeps it single-threaded.
    unsafe {
        mlir_sys::mlirRegisterTransformsCanonicalizer();
        mlir_sys::mlirRegisterTransformsCSE();
        mlir_sys::mlirRegisterTransformsLoopInvariantCodeMotion();
        mlir_sys::mlirRegisterConversionSCFToControlFlowPass();
        mlir_sys::mlirRegisterConversionConvertVectorToLLVMPass();
        mlir_sys::mlirRegisterConversionConvertMathToLLVMPass();
        mlir_sys::mlirRegisterConversionFinalizeMemRefToLLVMConversionPass();
        mlir_sys::mlirRegisterConversionArithToLLVMConversionPass();
        mlir_sys::mlirRegisterConversionConvertIndexToLLVMPass();
        mlir_sys::mlirRegisterConversionConvertControlFlowToLLVMPass();
        mlir_sys::mlirRegisterConversionUBToLLVMConversionPass();
        mlir_sys::mlirRegisterConversionConvertFuncToLLVMPass();
        mlir_sys::mlirRegisterConversionReconcileUnrealizedCastsPass();
    }
}

/// A handle of LLVM's C interface, freed when dropped.
struct Owned<T: Copy>(T, unsafe extern "C" fn(T));

impl<T: Copy> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the handle was created by the matching constructor and is freed once, here.
        unsafe { (self.1)(self.0) }
    }
}

/// Takes over a message that LLVM allocated.
///
/// # Safety
/// `message` is null or a string that `LLVMDisposeMessage` frees.
unsafe fn message(message: *mut c_char) -> String {
    if message.is_null() {
        return String::new();
    }
    // SAFETY: not null, and NUL-terminated as every string of LLVM's C interface.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    // SAFETY: as the caller promises.
    unsafe { LLVMDisposeMessage(message) };
    text
}

/// Registers the host's target with LLVM, once.
pub fn initialize_target() {
    static INITIALIZE: Once = Once::new();
    // SAFETY: the initialisers only fill LLVM's target registry; `Once` keeps them single-threaded.
    INITIALIZE.call_once(|| unsafe {
        use llvm_sys::target::*;
        #[cfg(target_arch = "x86_64")]
        {
            LLVMInitializeX86TargetInfo();
            LLVMInitializeX86Target();
            LLVMInitializeX86TargetMC();
            LLVMInitializeX86AsmPrinter();
        }
        // Tests look at what becomes of kernels there.
        #[cfg(any(target_arch = "aarch64", test))]
        {
            LLVMInitializeAArch64TargetInfo();
            LLVMInitializeAArch64Target();
            LLVMInitializeAArch64TargetMC();
            LLVMInitializeAArch64AsmPrinter();
        }
    });
}

/// What code is generated for, by LLVM's names.
pub struct Target {
    triple: CString,
    cpu: CString,
    features: CString,
}

impl Target {
    /// The CPU that this process runs on, with all that it has.
    fn host() -> Self {
        // SAFETY: LLVM allocates each of these strings for its caller.
        let [triple, cpu, features] = unsafe {
            [LLVMGetDefaultTargetTriple(), LLVMGetHostCPUName(), LLVMGetHostCPUFeatures()].map(|it| message(it))
        };
        Self::of(&triple, &cpu, &features)
    }

    /// A name with a NUL is no name that LLVM knows, and becomes the empty one.
    pub fn of(triple: &str, cpu: &str, features: &str) -> Self {
        let [triple, cpu, features] = [triple, cpu, features].map(|it| CString::new(it).unwrap_or_default());
        Self { triple, cpu, features }
    }

    fn machine(&self) -> Result<Owned<LLVMTargetMachineRef>, Failure> {
        initialize_target();
        let (triple, mut target, mut error) = (self.triple.as_ptr(), ptr::null_mut(), ptr::null_mut());
        // SAFETY: the strings live as long as `self`; the out-parameters are valid; a null machine is checked.
        unsafe {
            if LLVMGetTargetFromTriple(triple, &mut target, &mut error) != 0 {
                return Err(failure("LLVM has no target for", message(error)));
            }
            let machine = LLVMCreateTargetMachine(
                target,
                triple,
                self.cpu.as_ptr(),
                self.features.as_ptr(),
                LLVMCodeGenOptLevel::LLVMCodeGenLevelDefault,
                LLVMRelocMode::LLVMRelocPIC,
                LLVMCodeModel::LLVMCodeModelDefault,
            );
            if machine.is_null() {
                return Err(failure("LLVM has no target machine for", String::new()));
            }
            Ok(Owned(machine, LLVMDisposeTargetMachine))
        }
    }
}

fn emit(module: &Module<'_>, target: &Target, kind: LLVMCodeGenFileType) -> Result<Vec<u8>, Failure> {
    let machine = target.machine()?;
    // SAFETY: the context outlives the module made in it (drop order is the reverse of declaration); null is checked;
    // `mlir_sys` and `llvm_sys` declare the same opaque pointer types of the one LLVM that is linked.
    unsafe {
        let context: Owned<LLVMContextRef> = Owned(LLVMContextCreate(), LLVMContextDispose);
        let translated = mlir_sys::mlirTranslateModuleToLLVMIR(module.as_operation().to_raw(), context.0.cast());
        if translated.is_null() {
            return Err(failure("MLIR does not translate to LLVM IR", String::new()));
        }
        let llvm: Owned<LLVMModuleRef> = Owned(translated.cast(), LLVMDisposeModule);
        LLVMSetModuleDataLayout(llvm.0, LLVMCreateTargetDataLayout(machine.0));
        // LLVM's middle end is not run. MLIR has canonicalised, and what is worth vectorising is vectors: on a GPT-2 block O1
        // took 190 ms of 560 for code of the same speed (block 113.9 against 116.8 GFLOP/s at best, within the noise).
        let (mut buffer, mut error) = (ptr::null_mut(), ptr::null_mut());
        if LLVMTargetMachineEmitToMemoryBuffer(machine.0, llvm.0, kind, &mut error, &mut buffer) != 0 {
            return Err(failure("LLVM does not assemble", message(error)));
        }
        let buffer = Owned(buffer, LLVMDisposeMemoryBuffer);
        let bytes = slice::from_raw_parts(LLVMGetBufferStart(buffer.0).cast::<u8>(), LLVMGetBufferSize(buffer.0));
        Ok(bytes.to_vec())
    }
}
