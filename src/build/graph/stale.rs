//! Why a step must run: one typed enum that the terminal, the JSON and the tests all read.

use super::{Damage, KeyParts};
use crate::digest::Digest;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The first part of every key part that holds an input's digest.
pub const INPUT: &str = "input.";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum StaleReason {
    /// No step of this name ever succeeded here.
    NeverBuilt,
    /// Its own parameters are not those of its last success; its inputs may differ as well.
    Changed { parts: Vec<PartChange> },
    /// Its parameters are those of its last success, the content it reads is not.
    InputsChanged { inputs: Vec<InputChange> },
    /// A blob that it made is gone or no longer what it was.
    OutputDamaged { output: String, blob: Digest, damage: Damage },
    /// Asked for on the command line.
    Forced,
}

/// One parameter then and now; nothing where there was or is no such parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PartChange {
    pub name: String,
    pub old: Option<String>,
    pub new: Option<String>,
}

/// One input's content digest then and now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InputChange {
    /// The blob's name, e.g. `object`.
    pub input: String,
    /// The kind of step that makes it, e.g. `compile`.
    pub from: String,
    pub old: Option<String>,
    pub new: Option<String>,
}

/// Why a step whose key has no record is stale: its parts against those of its last success. Equal ones have the same key, so
/// that success is lost: as far as anyone can tell the step was never built.
pub fn explain(previous: Option<&KeyParts>, now: &KeyParts) -> StaleReason {
    previous.and_then(|it| change(it, now)).unwrap_or(StaleReason::NeverBuilt)
}

/// What differs between two keys; nothing where they are equal.
pub fn change(previous: &KeyParts, now: &KeyParts) -> Option<StaleReason> {
    let (inputs, parts): (Vec<_>, Vec<_>) = diff(previous, now).into_iter().partition(|it| it.name.starts_with(INPUT));
    if !parts.is_empty() {
        return Some(StaleReason::Changed { parts });
    }
    if inputs.is_empty() {
        return None;
    }
    let inputs = inputs.into_iter().map(|PartChange { name, old, new }| {
        let (from, input) = name[INPUT.len()..].split_once('.').unwrap_or(("", &name[INPUT.len()..]));
        InputChange { input: input.to_owned(), from: from.to_owned(), old, new }
    });
    Some(StaleReason::InputsChanged { inputs: inputs.collect() })
}

/// The parts in which the two differ, in name order. With another strategy come and go parts that only searches have: they follow
/// from it and are not named.
pub fn diff(old: &KeyParts, new: &KeyParts) -> Vec<PartChange> {
    let mut names: Vec<_> = old.iter().chain(new.iter()).map(|it| it.0).collect();
    names.sort_unstable();
    names.dedup();
    let change = |name: &str| {
        let (old, new) = (old.get(name), new.get(name));
        let owned = |it: Option<&str>| it.map(str::to_owned);
        (old != new).then(|| PartChange { name: name.to_owned(), old: owned(old), new: owned(new) })
    };
    let mut changes: Vec<PartChange> = names.into_iter().filter_map(change).collect();
    if changes.iter().any(|it| it.name == "strategy") {
        changes.retain(|it| it.old.is_some() && it.new.is_some());
    }
    changes
}

impl PartChange {
    /// The name a person knows: a block's field as the manifest spells it.
    pub fn field(&self) -> &str {
        self.name.strip_prefix("block.").unwrap_or(&self.name)
    }

    /// A file of the project that is in the key by the digest of its content.
    pub fn is_file(&self) -> bool {
        self.name.starts_with("shaders/")
    }

    /// Not a value of the project: the part of kforge's own sources that does the step.
    pub fn is_recipe(&self) -> bool {
        (self.name == "recipe" || self.name.starts_with("recipe.")) && self.old.is_some() && self.new.is_some()
    }
}

impl fmt::Display for PartChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = self.field();
        match (&self.old, &self.new) {
            _ if self.is_recipe() => write!(f, "kforge itself changed (`{}`)", self.name),
            (Some(_), Some(_)) if self.is_file() => write!(f, "`{field}` changed"),
            (None, Some(_)) if self.is_file() => write!(f, "`{field}` is new"),
            (Some(_), None) if self.is_file() => write!(f, "`{field}` is gone"),
            (Some(old), Some(new)) => match list_change(old, new) {
                Some(change) => write!(f, "`{field}` changed: {change}"),
                None => write!(f, "`{field}` changed from {old} to {new}"),
            },
            (None, Some(new)) => write!(f, "`{field}` is new: {new}"),
            (Some(old), None) => write!(f, "`{field}` is gone, it was {old}"),
            (None, None) => write!(f, "`{field}` is unchanged"),
        }
    }
}

/// What two lists `[a, b]` differ in, `+c, -a`, for lists of objects how many; nothing for other values and for lists that
/// differ in order alone.
fn list_change(old: &str, new: &str) -> Option<String> {
    if let Some(change) = objects_change(old, new) {
        return Some(change);
    }
    let items = |text: &str| -> Option<Vec<String>> {
        let inner = text.strip_prefix('[')?.strip_suffix(']')?;
        Some(inner.split(", ").filter(|it| !it.is_empty()).map(str::to_owned).collect())
    };
    let (old, new) = (items(old)?, items(new)?);
    let gained = new.iter().filter(|it| !old.contains(it)).map(|it| format!("+{it}"));
    let lost = old.iter().filter(|it| !new.contains(it)).map(|it| format!("-{it}"));
    let changes: Vec<_> = gained.chain(lost).collect();
    (!changes.is_empty()).then(|| changes.join(", "))
}

/// `2 added, 1 removed` for lists of JSON objects, as the cases of the corpus are; `None` for all others.
fn objects_change(old: &str, new: &str) -> Option<String> {
    let objects = |text: &str| -> Option<Vec<serde_json::Value>> {
        let items: Vec<serde_json::Value> = serde_json::from_str(text).ok()?;
        items.iter().all(serde_json::Value::is_object).then_some(items)
    };
    let (old, new) = (objects(old)?, objects(new)?);
    let missing =
        |from: &[serde_json::Value], them: &[serde_json::Value]| them.iter().filter(|it| !from.contains(it)).count();
    let counts = [(missing(&old, &new), "added"), (missing(&new, &old), "removed")];
    let told: Vec<_> = counts.iter().filter(|it| it.0 > 0).map(|(count, verb)| format!("{count} {verb}")).collect();
    Some(if told.is_empty() { "the order".to_owned() } else { told.join(", ") })
}

impl fmt::Display for InputChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |it: &Option<String>| it.as_ref().map_or("nothing".to_owned(), |it| it.chars().take(12).collect());
        write!(f, "`{}` of `{}` changed from {} to {}", self.input, self.from, short(&self.old), short(&self.new))
    }
}

impl fmt::Display for StaleReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverBuilt => f.write_str("never built"),
            Self::Changed { parts } => list(f, parts),
            Self::InputsChanged { inputs } => list(f, inputs),
            Self::OutputDamaged { output, blob, damage } => {
                write!(f, "output `{output}` is {damage} (blob {})", blob.short())
            }
            Self::Forced => f.write_str("forced"),
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, changes: &[impl fmt::Display]) -> fmt::Result {
    for (index, change) in changes.iter().enumerate() {
        let separator = if index == 0 { "" } else { "; " };
        write!(f, "{separator}{change}")?;
    }
    Ok(())
}
