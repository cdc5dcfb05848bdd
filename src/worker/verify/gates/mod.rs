//! The gates of the verification protocol, one file each. A gate fills what it needs, runs the candidate, and hands every
//! comparison to a `Tally`; it decides nothing itself. Names V0..V8 are used by reports, messages and tests.

pub mod bound;
pub mod exactness;
pub mod legality;
pub mod meaning;
pub mod memory;
pub mod split;

use super::candidate::Candidate;
use super::reference::Operand;
use kernelforge::plan::stage::Stage;

/// The stage's inputs as the candidate holds them.
fn operands<'a>(candidate: &'a dyn Candidate, stage: &Stage) -> Vec<Operand<'a>> {
    stage.inputs.iter().map(|&id| Operand::F32(candidate.tensor(id))).collect()
}
