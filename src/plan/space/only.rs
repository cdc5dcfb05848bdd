//! A space of which a user leaves a part: some knobs may only be what he lists.
//!
//! He says what he sees in a plan, so a restriction is on the values that rules make, not on those declared. The declared ones that
//! can become none of the listed, whatever the knobs are that they are counted in, go ahead of the search, which makes the space as
//! small as it can be said in lists; what is left between two knobs is judged point by point.

use super::{Family, Knob, Schedule, Space, Value, settings};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::{collections::BTreeMap, fmt};

/// A value as a manifest has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    Flag(bool),
    Number(usize),
    Word(String),
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(it) => it.fmt(f),
            Self::Number(it) => it.fmt(f),
            Self::Word(it) => it.fmt(f),
        }
    }
}

/// What knobs may be, by name; the others may be anything. A name is that of a plan (`up.mr`), or the last part of it, which stands
/// for the knobs of all parts that are not named in full. `method` is a knob here: it says which families are left.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Only(BTreeMap<String, Vec<Setting>>);

impl Only {
    /// `name` may be one of these and nothing else. The order says nothing.
    pub fn insert(&mut self, name: String, mut values: Vec<Setting>) {
        values.sort();
        values.dedup();
        self.0.insert(name, values);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is listed for the knob of this full name.
    fn listed(&self, name: &str) -> Option<&[Setting]> {
        let short = name.rsplit('.').next().unwrap_or(name);
        self.0.get(name).or_else(|| self.0.get(short)).map(Vec::as_slice)
    }

    /// What is listed for a knob, as values of it. A name may be a flag's in one kernel and a number's in another (`prefetch`):
    /// values of another kind say nothing of this one.
    fn of(&self, knob: &Knob, kind: Value) -> Option<Vec<Value>> {
        let name = knob.name();
        // What follows another knob is restricted with that, which has the same short name.
        let listed = if knob.follows() { self.0.get(&name).map(Vec::as_slice) } else { self.listed(&name) }?;
        let word = |word: &str| knob.values().iter().copied().find(|it| matches!(it, Value::Word(it) if *it == word));
        let (mut of_kind, mut values) = (false, Vec::new());
        for setting in listed {
            let (same, value) = match (setting, kind) {
                (Setting::Flag(it), Value::Flag(_)) => (true, Some(Value::Flag(*it))),
                (Setting::Number(it), Value::Number(_)) => (true, Some(Value::Number(*it))),
                (Setting::Word(it), Value::Word(_)) => (true, word(it)),
                _ => (false, None),
            };
            of_kind |= same;
            values.extend(value);
        }
        of_kind.then_some(values)
    }
}

/// Why a schedule is not in a restricted space.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Outside {
    #[error("`{knob}` = {value}: this search is restricted to {}", joined(only))]
    Knob { knob: String, value: String, only: Vec<String> },
    #[error("no schedule of this kind is among those that this search is restricted to")]
    Kind,
}

/// A restriction that no legal schedule meets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct NoneLeft {
    /// Those that have none of the listed values; or, where each has some, all that are restricted.
    pub knobs: Vec<Restricted>,
}

/// A restricted knob of a space that has nothing left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restricted {
    pub knob: String,
    pub only: Vec<String>,
    /// What it can be in a schedule of the whole space, legal with others or not.
    pub of: Vec<String>,
}

impl Restricted {
    fn is_impossible(&self) -> bool {
        !self.only.iter().any(|it| self.of.contains(it))
    }
}

impl fmt::Display for NoneLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let together = self.knobs.len() > 1 && !self.knobs.iter().any(Restricted::is_impossible);
        for (at, Restricted { knob, only, of }) in self.knobs.iter().enumerate() {
            let gap = if at > 0 { ", " } else { "" };
            write!(f, "{gap}`{knob}` = {} (the space has {})", joined(only), joined(of))?;
        }
        f.write_str(if together { ", which are not legal together" } else { "" })
    }
}

fn joined(values: &[String]) -> String {
    /// Of a list of sizes that somebody is to choose from, more than a line says nothing.
    const SHOWN: usize = 24;
    let more = values.len().saturating_sub(SHOWN);
    let shown = values[..values.len() - more].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

impl Space {
    /// The part of it that is within `only`: empty where nothing legal is, and then [`Self::none_left`] says why.
    pub fn only(mut self, only: &Only) -> Self {
        if only.is_empty() || self.is_empty() {
            return self;
        }
        let left = self.families.iter().filter_map(|it| restricted(it, only)).collect();
        let whole = std::mem::replace(&mut self.families, left);
        self.only = only.clone();
        self.drop_empty();
        self.none_left = self.is_empty().then(|| none_left(&whole, only));
        self
    }

    /// Why a restriction leaves nothing, where it does not.
    pub const fn none_left(&self) -> Option<&NoneLeft> {
        self.none_left.as_ref()
    }

    /// Whether a schedule is within the restriction. It need not be a point of the space, nor legal.
    ///
    /// # Errors
    /// The first knob that is not what it may be.
    pub fn admits(&self, schedule: &Schedule) -> Result<(), Outside> {
        if self.only.is_empty() {
            return Ok(());
        }
        let settings = settings(schedule);
        for (name, value) in settings.iter().filter(|it| is_method(it.0)) {
            if let (Some(listed), Json::String(value)) = (self.only.listed(name), value)
                && !is_listed(listed, value)
            {
                let only = listed.iter().map(Setting::to_string).collect();
                return Err(Outside::Knob { knob: name.clone(), value: value.clone(), only });
            }
        }
        let fits = |it: &&Family| it.fixed().iter().all(|it| settings.get(it.0) == Some(&Json::from(it.1)));
        let family = self.families.iter().find(fits).ok_or(Outside::Kind)?;
        let mut values: Vec<Value> = Vec::new();
        for (at, knob) in family.knobs().iter().enumerate() {
            let value = match settings.get(&knob.name()) {
                Some(Json::Bool(it)) => Value::Flag(*it),
                Some(Json::Number(it)) => Value::Number(it.as_u64().map_or(usize::MAX, |it| it as usize)),
                // One that the space does not have is no knob's condition.
                Some(Json::String(it)) => word_of(knob, it).unwrap_or(Value::Word("")),
                _ => return Err(Outside::Kind),
            };
            let only = self.only.of(knob, value);
            if let Some(only) = only.filter(|it| !it.contains(&value))
                && knob.acts(&family.knobs()[..at], &values)
            {
                let value = settings.get(&knob.name()).map(plain).unwrap_or_default();
                return Err(Outside::Knob { knob: knob.name(), value, only: shown(&only) });
            }
            values.push(value);
        }
        Ok(())
    }
}

fn word_of(knob: &Knob, word: &str) -> Option<Value> {
    knob.values().iter().copied().find(|it| matches!(it, Value::Word(it) if *it == word))
}

fn plain(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn shown(values: &[Value]) -> Vec<String> {
    values.iter().map(Value::to_string).collect()
}

fn is_method(name: &str) -> bool {
    name == "method" || name.ends_with(".method")
}

fn is_listed(listed: &[Setting], word: &str) -> bool {
    listed.iter().any(|it| matches!(it, Setting::Word(it) if it == word))
}

/// What is left of a family; none where nothing is. Whether any of it is legal is not asked.
fn restricted(family: &Family, only: &Only) -> Option<Family> {
    let others = |(name, value): &(&str, &str)| {
        is_method(name) && only.listed(name).is_some_and(|listed| !is_listed(listed, value))
    };
    if family.fixed().iter().any(others) {
        return None;
    }
    let whole = Domains::whole(family);
    let listed: Vec<_> = (0..whole.values.len()).map(|it| whole.listed(it, only)).collect();
    if listed.iter().all(Option::is_none) {
        return Some(family.clone());
    }
    let mut left = whole.clone();
    for (at, listed) in listed.iter().enumerate() {
        if let Some(listed) = listed {
            left.values[at].retain(|it| listed.contains(it));
        }
    }
    while left.narrow() {}
    let knobs = left.knobs.iter().enumerate().map(|(at, knob)| {
        let within = (left.values[at].len() < whole.values[at].len()).then(|| left.values[at].clone());
        // A knob that acts nowhere may be anything: where none of its values is left, it still has one, and is refused where it acts.
        let choices = if left.choices[at].is_empty() && knob.is_conditional() { &[0] } else { &left.choices[at][..] };
        knob.clone().left(choices, within)
    });
    let family = family.restricted_to(knobs.collect());
    (!family.is_empty()).then_some(family)
}

/// What the knobs of a family can be in a schedule, and of which declared values.
#[derive(Clone)]
struct Domains<'a> {
    knobs: &'a [Knob],
    /// The knob that each depends on.
    units: Vec<Option<usize>>,
    /// Of each knob, what it can be where it acts.
    values: Vec<Vec<Value>>,
    /// The places of declared values that can become one of them.
    choices: Vec<Vec<usize>>,
}

impl<'a> Domains<'a> {
    fn whole(family: &'a Family) -> Self {
        let knobs = family.knobs();
        let unit = |it: &Knob| it.unit().and_then(|unit| knobs.iter().position(|it| it.name() == unit));
        let mut it = Self {
            knobs,
            units: knobs.iter().map(unit).collect(),
            values: Vec::new(),
            choices: knobs.iter().map(|it| (0..it.len()).collect()).collect(),
        };
        for at in 0..knobs.len() {
            let values = it.made(at).into_iter().map(|it| it.2).collect();
            it.values.push(unique(values));
        }
        it
    }

    /// Every declared value of a knob with every value of the one that it depends on, and what comes of it.
    fn made(&self, at: usize) -> Vec<(usize, Option<Value>, Value)> {
        let units: Vec<Option<Value>> = match self.units[at] {
            Some(unit) => self.values[unit].iter().copied().map(Some).collect(),
            None => vec![None],
        };
        let pairs = self.choices[at].iter().flat_map(|choice| units.iter().map(|unit| (*choice, *unit)));
        pairs.map(|(choice, unit)| (choice, unit, self.knobs[at].made(choice, unit))).collect()
    }

    fn listed(&self, at: usize, only: &Only) -> Option<Vec<Value>> {
        only.of(&self.knobs[at], *self.values[at].first()?)
    }

    /// Takes out what has no partner in the knob that it depends on, or that depends on it. Each knob depends on one other, so
    /// when nothing more goes, every value that is left is in some point of what is left. Whether anything went.
    fn narrow(&mut self) -> bool {
        let size =
            |it: &Self| it.values.iter().map(Vec::len).sum::<usize>() + it.choices.iter().map(Vec::len).sum::<usize>();
        let before = size(self);
        for at in 0..self.knobs.len() {
            let mut made = self.made(at);
            made.retain(|it| self.values[at].contains(&it.2));
            self.choices[at].retain(|choice| made.iter().any(|it| it.0 == *choice));
            self.values[at].retain(|value| made.iter().any(|it| it.2 == *value));
            if let Some(unit) = self.units[at] {
                self.values[unit].retain(|value| made.iter().any(|it| it.1 == Some(*value)));
            }
        }
        size(self) < before
    }
}

fn unique(mut values: Vec<Value>) -> Vec<Value> {
    let mut seen = Vec::new();
    values.retain(|it| {
        let new = !seen.contains(it);
        seen.push(*it);
        new
    });
    values
}

fn none_left(whole: &[Family], only: &Only) -> NoneLeft {
    let mut knobs: Vec<Restricted> = Vec::new();
    let mut add = |knob: String, only: Vec<String>, of: Vec<String>| match knobs.iter_mut().find(|it| it.knob == knob) {
        Some(known) => {
            let new: Vec<_> = of.into_iter().filter(|it| !known.of.contains(it)).collect();
            known.of.extend(new);
        }
        None => knobs.push(Restricted { knob, only, of }),
    };
    for family in whole {
        for (name, value) in family.fixed().iter().filter(|it| is_method(it.0)) {
            if let Some(listed) = only.listed(name) {
                add((*name).to_owned(), listed.iter().map(Setting::to_string).collect(), vec![(*value).to_owned()]);
            }
        }
        let domains = Domains::whole(family);
        for (at, knob) in family.knobs().iter().enumerate() {
            if domains.listed(at, only).is_some() {
                let listed = only.listed(&knob.name()).unwrap_or_default();
                add(knob.name(), listed.iter().map(Setting::to_string).collect(), shown(&domains.values[at]));
            }
        }
    }
    if knobs.iter().any(Restricted::is_impossible) {
        knobs.retain(Restricted::is_impossible);
    }
    NoneLeft { knobs }
}

#[cfg(test)]
#[path = "only_tests.rs"]
pub mod tests;
