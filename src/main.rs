//! `kforge`, the build tool. It links neither LLVM nor a GPU library and starts in about a millisecond.

fn main() -> std::process::ExitCode {
    kernelforge::cli::main()
}
