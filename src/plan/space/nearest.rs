//! From a schedule back to a point.

use super::{Family, Point, Schedule, Space, Value, settings};
use serde_json::Value as Json;
use std::collections::{BTreeMap, HashSet};

/// Points that are looked at before a schedule counts as far from the space.
const LOOKS: usize = 512;

impl Space {
    /// The legal point whose values are closest to those of `schedule`: its own where it is in the space. Numbers are as far apart
    /// as their logarithms, other values all equally. None where the space has no such kernel.
    pub fn nearest(&self, schedule: &Schedule) -> Option<Point> {
        let wanted = settings(schedule);
        let fits = |it: &Family| it.fixed().iter().all(|(name, value)| wanted.get(*name) == Some(&Json::from(*value)));
        let family = self.families.iter().position(fits)?;
        let start = self.canonical(family, &closest(&self.families[family], &wanted));
        let mut seen = HashSet::from([start.clone()]);
        let mut open = vec![(self.distance(&start, &wanted), start)];
        for _ in 0..LOOKS {
            let best = open.iter().enumerate().min_by(|(_, a), (_, b)| a.0.total_cmp(&b.0)).map(|it| it.0)?;
            let (_, point) = open.swap_remove(best);
            if self.schedule(&point).is_some() {
                return Some(point);
            }
            let next = self.neighbours(&point).into_iter().filter(|it| seen.insert(it.clone()));
            open.extend(next.map(|it| (self.distance(&it, &wanted), it)));
        }
        None
    }

    fn distance(&self, point: &Point, wanted: &BTreeMap<String, Json>) -> f64 {
        let knobs = self.families[point.family].knobs().iter();
        knobs.zip(self.values(point)).map(|(knob, value)| apart(value, wanted.get(&knob.name()))).sum()
    }
}

/// The choices of the closest value of each knob, one after another.
fn closest(family: &Family, wanted: &BTreeMap<String, Json>) -> Vec<usize> {
    let (mut choices, mut values): (Vec<usize>, Vec<Value>) = (Vec::new(), Vec::new());
    for (at, knob) in family.knobs().iter().enumerate() {
        let value = |it: usize| knob.resolve(it, &family.knobs()[..at], &values);
        let far = |it: usize| {
            let permitted = knob.permits(value(it), &family.knobs()[..at], &values);
            if permitted { apart(value(it), wanted.get(&knob.name())) } else { f64::INFINITY }
        };
        let choice = (0..knob.len()).min_by(|a, b| far(*a).total_cmp(&far(*b))).unwrap_or(0);
        let value = value(choice);
        choices.push(choice);
        values.push(value);
    }
    choices
}

fn apart(value: Value, wanted: Option<&Json>) -> f64 {
    let equal = match (value, wanted) {
        (Value::Number(value), Some(Json::Number(wanted))) => {
            // A knob of 0 is a factor of two from 1.
            let octaves = |it: f64| (it + 1.0).log2();
            return (octaves(value as f64) - octaves(wanted.as_f64().unwrap_or(0.0))).abs();
        }
        (Value::Flag(value), Some(Json::Bool(wanted))) => value == *wanted,
        (Value::Word(value), Some(Json::String(wanted))) => value == wanted,
        _ => false,
    };
    if equal { 0.0 } else { 1.0 }
}
