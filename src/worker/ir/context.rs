//! The MLIR context that IR and code generation work in: only the dialects that kforge emits or lowers through, because
//! registering all of them doubles the binary and the worker's start.

use melior::{
    Context,
    dialect::{DialectHandle, DialectRegistry},
};
use std::ffi::c_void;

// The C interface registers every translation or none (NVVM, ROCDL, SPIR-V, ... come along, and with them their libraries),
// so these two are called by their C++ names.
unsafe extern "C" {
    #[link_name = "_ZN4mlir33registerBuiltinDialectTranslationERNS_15DialectRegistryE"]
    fn register_builtin_dialect_translation(registry: *mut c_void);
    #[link_name = "_ZN4mlir30registerLLVMDialectTranslationERNS_15DialectRegistryE"]
    fn register_llvm_dialect_translation(registry: *mut c_void);
}

/// A single-threaded context with every dialect of kforge's pipeline registered and loaded (`transformer` is added by
/// [`super::dialect::load`]), and with the translation of the `llvm` dialect to LLVM IR.
pub fn context() -> Context {
    let registry = DialectRegistry::new();
    for handle in handles() {
        handle.insert_dialect(&registry);
    }
    // SAFETY: an `MlirDialectRegistry` wraps a pointer to the C++ `mlir::DialectRegistry` that both functions take by
    // reference; it is alive until the end of this function, and the context copies what it needs.
    unsafe {
        register_builtin_dialect_translation(registry.to_raw().ptr);
        register_llvm_dialect_translation(registry.to_raw().ptr);
    }
    // Threads would cost more than they save on modules of this size.
    let context = Context::new_with_registry(&registry, false);
    context.load_all_available_dialects();
    context
}

fn handles() -> [DialectHandle; 11] {
    // SAFETY: each function returns a handle to a static table of the dialect's hooks.
    let raw = unsafe {
        [
            mlir_sys::mlirGetDialectHandle__arith__(),
            mlir_sys::mlirGetDialectHandle__cf__(),
            mlir_sys::mlirGetDialectHandle__func__(),
            mlir_sys::mlirGetDialectHandle__index__(),
            mlir_sys::mlirGetDialectHandle__irdl__(),
            mlir_sys::mlirGetDialectHandle__llvm__(),
            mlir_sys::mlirGetDialectHandle__math__(),
            mlir_sys::mlirGetDialectHandle__memref__(),
            mlir_sys::mlirGetDialectHandle__scf__(),
            mlir_sys::mlirGetDialectHandle__ub__(),
            mlir_sys::mlirGetDialectHandle__vector__(),
        ]
    };
    // SAFETY: the handles above are valid for the whole run of the process.
    raw.map(|it| unsafe { DialectHandle::from_raw(it) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::diagnostics;

    #[test]
    fn every_dialect_of_the_pipeline_parses() {
        let context = context();
        let text = r#"
            func.func @f(%m: memref<16xf32>) attributes {llvm.emit_c_interface} {
              %zero = arith.constant 0 : index
              %v = vector.load %m[%zero] : memref<16xf32>, vector<16xf32>
              %e = math.exp %v : vector<16xf32>
              %p = ub.poison : f32
              %i = index.add %zero, %zero
              scf.for %j = %zero to %i step %i { memref.store %p, %m[%j] : memref<16xf32> }
              cf.br ^done
            ^done:
              return
            }
            llvm.func @g()
        "#;
        let module = diagnostics::capture(&context, || super::super::parse(&context, text));
        assert!(module.is_ok(), "{module:?}");
    }
}
