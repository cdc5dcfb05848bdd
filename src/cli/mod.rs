//! The command line: one file for each command; a command parses, calls, prints.

use std::process::ExitCode;

pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
