//! The passes over the `transformer` dialect. They follow in the next commit; until then asking for one is an error.

use kernelforge::{
    manifest::spec::Pass,
    protocol::{Failure, FailureKind, PassReport},
};
use melior::{Context, ir::Module};

pub fn run(_context: &Context, _module: &Module<'_>, pass: Pass) -> Result<PassReport, Failure> {
    Err(Failure::new(FailureKind::Internal, format!("pass `{}` does not exist yet", pass.name())))
}
