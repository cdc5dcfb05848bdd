//! Mutants: kernels that are wrong on purpose, and what the verifier made of them.

use super::{Gate, corpus::Witness};
use serde::{Deserialize, Serialize};

/// Where the mistake is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// In what is proposed: the plan, the pipeline.
    Plan,
    /// In what is computed: code is generated from other stages than the verifier judges.
    Ir,
    /// In the generated MLIR, before LLVM.
    Code,
    /// In how the kernel is called: what `kernel.json` says.
    Host,
    /// In the verifier.
    Oracle,
}

impl Family {
    pub const ALL: [Self; 5] = [Self::Plan, Self::Ir, Self::Code, Self::Host, Self::Oracle];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Ir => "ir",
            Self::Code => "code",
            Self::Host => "host",
            Self::Oracle => "oracle",
        }
    }
}

/// One mistake. The same block and kforge always give the same mutants with the same ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Mutant {
    /// `ir/attn.core/scale-missing`.
    pub id: String,
    pub family: Family,
    /// Mutants of one kind are the same mistake in the same kind of code: `code/attention/fma-restarts`.
    pub kind: String,
    pub stage: Option<String>,
    /// What is wrong, in words.
    pub description: String,
}

/// How a mutant was found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KilledBy {
    /// Refused before anything ran.
    Validation,
    NumericMismatch,
    Memory,
    /// By a case of the regression corpus and by nothing else.
    RegressionCase,
    /// It did not end. Seen by the tool, as is the next.
    Timeout,
    Crash,
}

impl KilledBy {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Validation => "validation",
            Self::NumericMismatch => "numeric mismatch",
            Self::Memory => "memory",
            Self::RegressionCase => "regression case",
            Self::Timeout => "timeout",
            Self::Crash => "crash",
        }
    }
}

/// The first check that a mutant did not pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Evidence {
    /// `None` where no gate was reached: a plan that cannot be read, a crash.
    pub gate: Option<Gate>,
    pub stage: Option<String>,
    /// Input regime or case.
    pub case: String,
    pub message: String,
}

/// Why a mutant that was accepted is no hole in the verifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "reason", rename_all = "kebab-case")]
pub enum Proof {
    /// The code generated for it is the original's, byte for byte: the MLIR, or else the machine code.
    IdenticalCode,
    /// The code that is changed is never reached, whatever units a call is asked for, and which code is reached depends on
    /// nothing else: a probe in its place was not hit.
    NeverExecuted,
    /// A line of the reviewed list says why, and what the mutant returned was the original's, bit for bit.
    Reviewed(String),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fate", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Fate {
    Killed {
        by: KilledBy,
        evidence: Evidence,
        /// Every gate that did not pass, the first one included.
        gates: Vec<Gate>,
    },
    Equivalent {
        proof: Proof,
    },
    /// Wrong and accepted: a hole in the verifier.
    Survived,
    /// The mutation does not make a program, so there was nothing to judge. Counts for nothing.
    Stillborn {
        message: String,
    },
}

/// A mutant's end, as the worker tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Judged {
    pub fate: Fate,
    /// Largest error / bound at each stage over the gates that have a bound.
    pub stages: Vec<(String, f64)>,
    /// The replayable cases that rejected it, if nothing else did.
    pub witnesses: Vec<Witness>,
}
