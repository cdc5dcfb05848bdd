//! Knobs: a name, the values that it may have, and how the value follows from that of others.

use serde::Serialize;
use std::fmt;

/// What a knob is set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum Value {
    Flag(bool),
    Number(usize),
    Word(&'static str),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(it) => it.fmt(f),
            Self::Number(it) => it.fmt(f),
            Self::Word(it) => it.fmt(f),
        }
    }
}

/// How a knob's declared value becomes the one that is in the schedule. The knobs named come before it.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// It is the value.
    Plain,
    /// It counts units of another knob.
    Times(&'static str),
    /// It is rounded up to a multiple of another knob.
    MultipleOf(&'static str),
    /// It is another knob's value, which is named in full: prefixes do not matter.
    SameAs(&'static str),
    /// Only where something holds, which the text says; elsewhere it would change nothing, and is this value.
    Where(&'static str, fn(&Settings<'_>) -> bool, Value),
}

/// One degree of freedom of a family of schedules.
#[derive(Debug, Clone)]
pub struct Knob {
    prefix: &'static str,
    name: &'static str,
    values: Vec<Value>,
    rule: Rule,
    /// The values in a schedule that a restriction leaves, where there is one ([`super::only`]).
    within: Option<Vec<Value>>,
}

impl Knob {
    pub fn number(name: &'static str, values: impl IntoIterator<Item = usize>) -> Self {
        Self::new(name, values.into_iter().map(Value::Number).collect())
    }

    pub fn flag(name: &'static str) -> Self {
        Self::new(name, vec![Value::Flag(false), Value::Flag(true)])
    }

    /// A flag that is the same in every schedule of the family.
    pub fn fixed_flag(name: &'static str, value: bool) -> Self {
        Self::new(name, vec![Value::Flag(value)])
    }

    pub fn word(name: &'static str, values: &[&'static str]) -> Self {
        Self::new(name, values.iter().copied().map(Value::Word).collect())
    }

    /// `name` is whatever the knob `other`, named in full, is.
    pub fn same_as(name: &'static str, other: &'static str) -> Self {
        Self { rule: Rule::SameAs(other), ..Self::new(name, vec![Value::Number(0)]) }
    }

    fn new(name: &'static str, values: Vec<Value>) -> Self {
        Self { prefix: "", name, values, rule: Rule::Plain, within: None }
    }

    /// The values count units of the knob `unit`.
    pub fn times(self, unit: &'static str) -> Self {
        Self { rule: Rule::Times(unit), ..self }
    }

    /// The values are rounded up to multiples of the knob `unit`.
    pub fn multiple_of(self, unit: &'static str) -> Self {
        Self { rule: Rule::MultipleOf(unit), ..self }
    }

    /// The knob acts only where `holds`; `what` says the same. Elsewhere it is the first of its values.
    pub fn only_where(self, what: &'static str, holds: fn(&Settings<'_>) -> bool) -> Self {
        let idle = self.values.first().copied().unwrap_or(Value::Flag(false));
        Self { rule: Rule::Where(what, holds, idle), ..self }
    }

    /// The same knob of a part of the schedule: `up.`. Knobs that it names are those of the part.
    pub fn of(self, prefix: &'static str) -> Self {
        Self { prefix, ..self }
    }

    /// As it is in a plan: `up.mr`.
    pub fn name(&self) -> String {
        format!("{}{}", self.prefix, self.name)
    }

    /// The name without what it is a part of.
    pub const fn short(&self) -> &'static str {
        self.name
    }

    pub const fn prefix(&self) -> &'static str {
        self.prefix
    }

    /// As declared, before the rule; none where another knob decides.
    pub fn values(&self) -> &[Value] {
        if matches!(self.rule, Rule::SameAs(_)) { &[] } else { &self.values }
    }

    pub const fn len(&self) -> usize {
        self.values.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// What the rule does to the declared values, for a reader; none where it does nothing.
    pub fn rule(&self) -> Option<String> {
        let own = |name: &str| format!("`{}{name}`", self.prefix);
        match self.rule {
            Rule::Plain => None,
            Rule::Times(unit) => Some(format!("times {}", own(unit))),
            Rule::MultipleOf(unit) => Some(format!("rounded up to a multiple of {}", own(unit))),
            Rule::SameAs(other) => Some(format!("the same as `{other}`")),
            Rule::Where(what, _, idle) => Some(format!("{idle} unless {what}")),
        }
    }

    /// The full name of the knob that the value depends on.
    pub(super) fn unit(&self) -> Option<String> {
        match self.rule {
            Rule::Times(unit) | Rule::MultipleOf(unit) => Some(format!("{}{unit}", self.prefix)),
            Rule::SameAs(other) => Some(other.to_owned()),
            Rule::Plain | Rule::Where(..) => None,
        }
    }

    /// Whether another knob decides alone.
    pub(super) const fn follows(&self) -> bool {
        matches!(self.rule, Rule::SameAs(_))
    }

    /// Whether there are schedules in which it changes nothing. Such a knob is no other's unit.
    pub(super) const fn is_conditional(&self) -> bool {
        matches!(self.rule, Rule::Where(..))
    }

    /// What the declared value at `index` becomes where it acts and the knob that it depends on is `unit`.
    pub(super) fn made(&self, index: usize, unit: Option<Value>) -> Value {
        let value = self.values[index];
        match (self.rule, value, unit) {
            (Rule::Times(_), Value::Number(count), Some(Value::Number(unit))) => Value::Number(count * unit),
            (Rule::MultipleOf(_), Value::Number(size), Some(Value::Number(unit))) => {
                Value::Number(size.next_multiple_of(unit.max(1)))
            }
            (Rule::SameAs(_), _, Some(unit)) => unit,
            _ => value,
        }
    }

    /// The same with the declared values at these places alone, and with `within` as all that it may become.
    pub(super) fn left(self, places: &[usize], within: Option<Vec<Value>>) -> Self {
        let values = places.iter().map(|it| self.values[*it]).collect();
        Self { values, within, ..self }
    }

    /// The values in a schedule that a restriction leaves; none where nothing is restricted.
    pub fn within(&self) -> Option<&[Value]> {
        self.within.as_deref()
    }

    /// Whether `value` is what a restriction leaves, where the knobs before have these values. What does not act may be anything.
    pub(super) fn permits(&self, value: Value, before: &[Self], values: &[Value]) -> bool {
        let among = self.within.as_ref().is_none_or(|it| it.contains(&value));
        among || !self.acts(before, values)
    }

    /// Whether it changes anything where the knobs before have these values.
    pub(super) fn acts(&self, before: &[Self], values: &[Value]) -> bool {
        let Rule::Where(_, holds, _) = self.rule else { return true };
        holds(&Settings { prefix: self.prefix, knobs: before, values })
    }

    /// The value in the schedule of the declared one at `index`, where the knobs before have these values.
    pub fn resolve(&self, index: usize, before: &[Self], values: &[Value]) -> Value {
        let settings = Settings { prefix: self.prefix, knobs: before, values };
        match self.rule {
            Rule::Times(unit) | Rule::MultipleOf(unit) => self.made(index, Some(Value::Number(settings.number(unit)))),
            Rule::SameAs(other) => self.made(index, Settings { prefix: "", ..settings }.value(other)),
            Rule::Where(_, holds, idle) if !holds(&settings) => idle,
            Rule::Plain | Rule::Where(..) => self.values[index],
        }
    }
}

/// Values of knobs, by name.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    prefix: &'a str,
    knobs: &'a [Knob],
    values: &'a [Value],
}

impl Settings<'_> {
    pub fn value(&self, name: &str) -> Option<Value> {
        // The prefix and the name of a knob, together or apart.
        let is = |it: &Knob| match self.prefix {
            "" => name.strip_prefix(it.prefix) == Some(it.name),
            prefix => it.prefix == prefix && it.name == name,
        };
        self.knobs.iter().zip(self.values).find(|(knob, _)| is(knob)).map(|(_, value)| *value)
    }

    /// 0 where there is no such number.
    pub fn number(&self, name: &str) -> usize {
        if let Some(Value::Number(it)) = self.value(name) { it } else { 0 }
    }

    pub fn is(&self, name: &str, word: &'static str) -> bool {
        self.value(name) == Some(Value::Word(word))
    }
}

/// Sizes that cut `extent` into equal blocks, none of them much smaller than `least`: the whole first. Blocks that are equal leave
/// no short one at the end, which a power of two would.
pub fn blocks(extent: usize, least: usize) -> Vec<usize> {
    let counts = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64];
    let sizes = counts.into_iter().map(|it| extent.div_ceil(it));
    let mut sizes: Vec<usize> = sizes.take_while(|it| *it >= least || *it == extent).collect();
    sizes.dedup();
    sizes
}

/// Those of `sizes`, which rise, that are not twice as large as what covers `extent`. The first is always one.
pub fn up_to(extent: usize, sizes: &[usize]) -> Vec<usize> {
    let beyond = |it: &usize| *it >= 2 * extent.max(1);
    let (first, rest) = sizes.split_first().map_or((None, sizes), |(first, rest)| (Some(*first), rest));
    first.into_iter().chain(rest.iter().copied().filter(|it| !beyond(it))).collect()
}

/// Powers of two from `low` to `high`, rising.
pub fn powers(low: usize, high: usize) -> impl Iterator<Item = usize> + Clone {
    std::iter::successors(Some(low.max(1)), |it| Some(it * 2)).take_while(move |it| *it <= high)
}
