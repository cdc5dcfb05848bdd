//! Plans are data: what a block computes once the passes have run ([`stage`]), how each stage is to be generated
//! ([`schedule`]; on a GPU [`gpu`]), which schedules are legal ([`constraint`]) and which of them a search chooses from ([`space`]), and how
//! the compiled kernel is called ([`kernel`]; on a GPU [`program`]). A plan file that somebody hands over is read by [`read`].
//! Nothing here does IO or starts anything; both processes read it.

pub mod constraint;
pub mod gpu;
pub mod kernel;
pub mod operation;
pub mod program;
pub mod read;
pub mod schedule;
pub mod space;
pub mod stage;

use crate::{digest::Digest, manifest::spec::Pass};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The version of `plan.json`. A file with a larger one comes from a newer kforge and is refused.
pub const PLAN_VERSION: u32 = 1;

/// How every stage of one block is to be generated for one target. `plan.json` is this, pretty-printed, keys in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Plan {
    pub version: u32,
    /// The block instance, e.g. `gpt2-small-s128`.
    pub block: String,
    pub target: String,
    pub provenance: Provenance,
    /// Passes of the block's pipeline that the stages are made without: fusions that do not pay here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<Pass>,
    /// By stage name.
    pub stages: BTreeMap<String, schedule::Schedule>,
    /// The project's own shader templates that the stages are rendered from, by file name, with the digests of their texts. They
    /// are in the plan so that the kernel is what the plan says and not what happens to be in a folder.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shaders: BTreeMap<String, Digest>,
}

/// Who proposed a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Provenance {
    pub strategy: String,
    /// Trials measured to find it; 0 for the analytic heuristic.
    pub trials: u32,
    /// Who proposed the schedules of stages that are not the heuristic's, by stage.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub origins: BTreeMap<String, String>,
    /// What went otherwise than the strategy says, e.g. that a language model did not answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

impl Provenance {
    /// Of a plan that this strategy made without a trial.
    pub fn new(strategy: &str) -> Self {
        Self { strategy: strategy.to_owned(), trials: 0, origins: BTreeMap::new(), remarks: Vec::new() }
    }
}

/// A stage's operation or its schedule for people, in one line: the kind, then every field as `name=value`, what is not there left
/// out: `mlp down.kc=1024 row-block=128`.
pub fn one_line(value: &impl Serialize) -> String {
    let mut words = Vec::new();
    // Plain data: it is JSON in every plan and kernel file.
    let value = serde_json::to_value(value).unwrap_or_default();
    let kind = |tag: &str| value.get(tag).and_then(Value::as_str).map(str::to_owned);
    words.extend(TAGS.into_iter().find_map(kind));
    flatten("", &value, &mut words);
    words.join(" ")
}

/// What the kinds are called in JSON: of an operation, of a schedule.
const TAGS: [&str; 2] = ["op", "kernel"];

fn flatten(prefix: &str, value: &Value, words: &mut Vec<String>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        match value {
            Value::Object(_) => flatten(&format!("{prefix}{name}."), value, words),
            Value::Null => {}
            Value::String(_) if prefix.is_empty() && TAGS.contains(&name.as_str()) => {}
            Value::String(text) => words.push(format!("{prefix}{name}={text}")),
            other => words.push(format!("{prefix}{name}={other}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{schedule::Schedule, stage::StageOp, *};
    use crate::{
        host::CpuFacts,
        manifest::spec::{Activation, Dtype},
    };

    #[test]
    fn shape_and_knobs_are_one_line() {
        let op = StageOp::Matmul { m: 2, n: 3, k: 4, bias: true, activation: None, residual: false };
        assert_eq!(one_line(&op), "matmul bias=true k=4 m=2 n=3 residual=false");
        let mlp = StageOp::Mlp {
            rows: 1,
            d_model: 8,
            d_ff: 16,
            activation: Activation::Silu,
            gated: true,
            bias: false,
            residual: false,
        };
        let cpu = CpuFacts { lanes: 8, ..CpuFacts::detect() };
        let text = one_line(&Schedule::plain(&mlp, Dtype::F32, &cpu.into()));
        assert!(text.starts_with("mlp ") && text.contains(" up.mr=1 ") && text.contains("down.pack-b=never"), "{text}");
    }
}
