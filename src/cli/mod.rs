//! The command line: one file for each command; a command parses, calls, prints.
//!
//! Results go to stdout, everything else to stderr. [`error`] is the one place that knows exit codes.

mod bench;
mod build;
mod cache;
mod clean;
mod doctor;
mod error;
mod gc;
mod graph;
mod init;
mod ir;
mod listeners;
mod located;
mod mutate;
mod print;
mod progress;
mod project;
mod report;
mod result;
mod run;
mod schema;
mod tune;
mod verify;
mod watch;
mod why;
mod worker;

use crate::manifest::Strategy;
use clap::{Parser, Subcommand};
use error::Outcome;
use std::{path::PathBuf, process::ExitCode};

/// make for transformer kernels
///
/// Plans, compiles, verifies and measures every transformer block that `kernelforge.toml` and its workloads declare, and does
/// again only what a change made stale.
#[derive(Debug, Parser)]
#[command(name = "kforge", version, max_term_width = 100, propagate_version = false)]
struct Cli {
    /// Run as if started in DIR
    #[arg(short = 'C', value_name = "DIR", global = true)]
    directory: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build blocks: whatever a change made stale, and nothing else
    Build(build::Args),
    /// Build, and build again whenever a manifest file changes, until Ctrl-C
    Watch(watch::Args),
    /// Say why a step is stale, or why it ran last
    Why(why::Args),
    /// Print the graph of steps
    Graph(graph::Args),
    /// Run a built and verified block on given or random tensors
    Run(run::Args),
    /// Judge a plan from outside with the gates of a build, and write nothing to the project
    #[command(visible_alias = "verify-plan")]
    Verify(verify::Args),
    /// Show what is recorded of blocks: audits and measured figures
    Report(report::Args),
    /// Show what the passes do to a block's IR
    #[command(subcommand)]
    Ir(ir::Command),
    /// Test the verifier: put wrong kernels through it, and fail if one is accepted
    #[command(visible_alias = "mutate-and-test")]
    Mutate(mutate::Args),
    /// Search better plans for blocks; show, export or import what was tried
    Tune(tune::Args),
    /// Measure kernels outside of a project
    #[command(subcommand)]
    Bench(bench::Command),
    /// Say what this machine and its GPUs offer, and whether all that a build needs is there and works
    #[command(visible_alias = "diagnose-gpu")]
    Doctor(doctor::Args),
    /// Look at `.kforge-cache`: how much there is, whether it is sound, which plans are kept
    #[command(subcommand)]
    Cache(cache::Command),
    /// Remove from `.kforge-cache` what nothing needs, the least recently used first
    Gc(gc::Args),
    /// Remove what was built
    Clean(clean::Args),
    /// Start a project with one small block
    Init(init::Args),
    /// Print the JSON Schema of the manifest, for editors
    Schema,
    /// The same as `ir emit`
    EmitMlir(ir::EmitArgs),
    /// The same as `ir passes`
    ShowPasses(ir::PassesArgs),
    /// The same as `ir diff`
    OptimizeIr(ir::DiffArgs),
    /// The same as `tune --strategy llm`
    OptimizeWithLlm(tune::Args),
    /// The same as `bench matmul`
    BenchmarkMatmul(bench::MatmulArgs),
}

/// Parses the process's arguments, does the command, and tells failures.
pub fn main() -> ExitCode {
    // A usage error ends the process with code 2 and `--help` with 0: clap's own codes are the ones we want.
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            error.print();
            error.code().into()
        }
    }
}

fn dispatch(cli: Cli) -> Result<Outcome, error::Error> {
    let directory = cli.directory.unwrap_or_else(|| PathBuf::from("."));
    match cli.command {
        Command::Build(args) => build::main(&directory, args),
        Command::Watch(args) => watch::main(&directory, args),
        Command::Why(args) => why::main(&directory, args),
        Command::Graph(args) => graph::main(&directory, args),
        Command::Run(args) => run::main(&directory, args),
        Command::Verify(args) => verify::main(&directory, args),
        Command::Report(args) => report::main(&directory, args),
        Command::Ir(command) => ir::main(&directory, command),
        Command::Mutate(args) => mutate::main(&directory, args),
        Command::Bench(command) => bench::main(command),
        Command::Doctor(args) => doctor::main(&directory, args),
        Command::Cache(command) => cache::main(&directory, command),
        Command::Gc(args) => gc::main(&directory, args),
        Command::Clean(args) => clean::main(&directory, args),
        Command::Init(args) => init::main(&directory, args),
        Command::Tune(args) => tune::main(&directory, args),
        Command::Schema => schema::main(),
        Command::EmitMlir(args) => ir::main(&directory, ir::Command::Emit(args)),
        Command::ShowPasses(args) => ir::main(&directory, ir::Command::Passes(args)),
        Command::OptimizeIr(args) => ir::main(&directory, ir::Command::Diff(args)),
        Command::OptimizeWithLlm(args) => tune::main(&directory, args.with(Strategy::Llm)),
        Command::BenchmarkMatmul(args) => bench::main(bench::Command::Matmul(args)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_names_of_the_original_tool_are_visible() {
        let help = Cli::command().render_help().to_string();
        for name in [
            "emit-mlir",
            "show-passes",
            "optimize-ir",
            "diagnose-gpu",
            "benchmark-matmul",
            "optimize-with-llm",
            "mutate-and-test",
            "verify-plan",
        ] {
            assert!(help.contains(name), "`{name}` is not in the help");
        }
    }
}
