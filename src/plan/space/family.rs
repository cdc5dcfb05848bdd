//! Families: the schedules of one method of computing an operation.

use super::{
    super::schedule::Schedule,
    knob::{Knob, Value},
};
use serde_json::{Map, Value as Json};

#[derive(Debug, Clone)]
pub struct Family {
    name: String,
    /// What is the same in all of its schedules, by dotted name.
    fixed: Vec<(&'static str, &'static str)>,
    knobs: Vec<Knob>,
    /// Some of what was declared is left out ([`super::only`]).
    restricted: bool,
}

impl Family {
    /// Knobs come after those that they are counted in. A knob without values leaves the family without points.
    pub fn new(name: &str, fixed: &[(&'static str, &'static str)], knobs: Vec<Knob>) -> Self {
        Self { name: name.to_owned(), fixed: fixed.to_vec(), knobs, restricted: false }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn fixed(&self) -> &[(&'static str, &'static str)] {
        &self.fixed
    }

    pub fn knobs(&self) -> &[Knob] {
        &self.knobs
    }

    /// The same with other knobs, which a restriction made of its own.
    pub(super) fn restricted_to(&self, knobs: Vec<Knob>) -> Self {
        Self { name: self.name.clone(), fixed: self.fixed.clone(), knobs, restricted: true }
    }

    pub(super) const fn is_restricted(&self) -> bool {
        self.restricted
    }

    /// Whether a restriction leaves the point. Rules make values that no list of choices can tell.
    pub(super) fn permits(&self, choices: &[usize]) -> bool {
        if !self.restricted {
            return true;
        }
        let values = self.values(choices);
        let permits = |(at, knob): (usize, &Knob)| knob.permits(values[at], &self.knobs[..at], &values[..at]);
        self.knobs.iter().enumerate().all(permits)
    }

    /// Number of points, legal or not.
    pub fn len(&self) -> u128 {
        self.knobs.iter().map(|it| it.len() as u128).product()
    }

    /// Whether it has no points.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those of the point with this number, the last knob the fastest.
    pub fn choices(&self, mut index: u128) -> Vec<usize> {
        let mut choices = vec![0; self.knobs.len()];
        for (choice, knob) in choices.iter_mut().zip(&self.knobs).rev() {
            let values = knob.len() as u128;
            *choice = (index % values) as usize;
            index /= values;
        }
        choices
    }

    /// The value that each knob has in the schedule.
    pub fn values(&self, choices: &[usize]) -> Vec<Value> {
        let mut values = Vec::with_capacity(choices.len());
        for (at, (knob, choice)) in self.knobs.iter().zip(choices).enumerate() {
            values.push(knob.resolve(*choice, &self.knobs[..at], &values));
        }
        values
    }

    /// The first of the points that have the same values: rules make some equal.
    pub fn canonical(&self, choices: &[usize]) -> Vec<usize> {
        let (mut first, mut values) = (Vec::with_capacity(choices.len()), Vec::with_capacity(choices.len()));
        for (at, (knob, choice)) in self.knobs.iter().zip(choices).enumerate() {
            let value = knob.resolve(*choice, &self.knobs[..at], &values);
            let same = |it: &usize| knob.resolve(*it, &self.knobs[..at], &values) == value;
            first.push((0..*choice).find(same).unwrap_or(*choice));
            values.push(value);
        }
        first
    }

    /// None where the knobs do not make a schedule, which is a mistake in the declaration of the family.
    pub(super) fn schedule(&self, choices: &[usize]) -> Option<Schedule> {
        let mut json = Map::new();
        for (name, value) in &self.fixed {
            insert(&mut json, name, (*value).into());
        }
        for (knob, value) in self.knobs.iter().zip(self.values(choices)) {
            let value = match value {
                Value::Flag(it) => it.into(),
                Value::Number(it) => it.into(),
                Value::Word(it) => it.into(),
            };
            insert(&mut json, &knob.name(), value);
        }
        serde_json::from_value(Json::Object(json)).ok()
    }
}

fn insert(into: &mut Map<String, Json>, name: &str, value: Json) {
    match name.split_once('.') {
        None => {
            into.insert(name.to_owned(), value);
        }
        Some((part, rest)) => {
            let inner = into.entry(part).or_insert_with(|| Json::Object(Map::new()));
            if let Json::Object(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}
