//! `kforge-worker`, the toolchain: IR, passes, code generation, devices, verification, measurement.
//!
//! It imports only the ground (`kernelforge::{manifest::spec, plan, protocol, store, host, digest}`), never the build tool.
//! A person seldom starts it; `kforge` does, and talks to it over pipes ([`serve`]).

mod audit;
mod codegen;
mod device;
mod ir;
mod kernels;
mod limits;
mod measure;
mod mutate;
mod on_gpu;
mod run;
mod serve;
mod tries;
mod verify;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

const USAGE: &str = "usage: kforge-worker serve --store DIR [--allow-faults]
       kforge-worker run ACTION --store DIR
       kforge-worker --version";

enum Command {
    Serve { store: PathBuf, allow_faults: bool },
    Run { action: PathBuf, store: PathBuf },
    Version,
}

fn main() -> ExitCode {
    match parse(std::env::args_os().skip(1)) {
        Ok(Command::Serve { store, allow_faults }) => serve::serve(&store, allow_faults),
        Ok(Command::Run { action, store }) => serve::run(&action, &store),
        Ok(Command::Version) => {
            println!("kforge-worker {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("error: {problem}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn parse(args: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let (mut positional, mut store, mut allow_faults) = (Vec::new(), None, false);
    let mut args = args;
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--store") => store = Some(PathBuf::from(args.next().ok_or("`--store` needs a directory")?)),
            Some("--allow-faults") => allow_faults = true,
            Some("--version") => return Ok(Command::Version),
            Some(flag) if flag.starts_with('-') => return Err(format!("unknown flag `{flag}`")),
            _ => positional.push(arg),
        }
    }
    let store = store.ok_or("`--store DIR` is missing")?;
    match positional.as_slice() {
        [verb] if verb == "serve" => Ok(Command::Serve { store, allow_faults }),
        [verb, action] if verb == "run" && !allow_faults => Ok(Command::Run { action: action.into(), store }),
        _ => Err("expected `serve` or `run ACTION`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(args: &[&str]) -> Result<Command, String> {
        parse(args.iter().map(OsString::from))
    }

    #[test]
    fn both_verbs_need_a_store() {
        assert!(matches!(of(&["serve", "--store", "s"]), Ok(Command::Serve { allow_faults: false, .. })));
        assert!(matches!(of(&["run", "a.json", "--store", "s"]), Ok(Command::Run { .. })));
        assert_eq!(of(&["serve"]).err().as_deref(), Some("`--store DIR` is missing"));
    }

    #[test]
    fn a_single_action_from_a_file_never_faults_on_purpose() {
        assert!(of(&["run", "a.json", "--store", "s", "--allow-faults"]).is_err());
    }
}
