//! The declared space of schedules of an operation on a device: what a search may choose from.
//!
//! A space is a union of families, one for each method of computing the operation. A family has knobs, a knob a list of values,
//! and a [`Point`] says which. Values follow from the operation's shape and the device's facts. Sizes that must be multiples of
//! others are made so by the knobs' rules, so most points are legal; [`constraint::check`] is the judge of the rest.
//!
//! A new knob of a kernel is one line in [`cpu`] or [`gpu`]: points become schedules by name, through JSON.

mod cpu;
mod describe;
mod family;
mod gpu;
mod knob;
mod nearest;
pub mod only;
mod walk;

pub use describe::{Description, FamilyDescription, KnobDescription};
pub use family::Family;
pub use knob::{Knob, Settings, Value};
pub use only::{NoneLeft, Only, Outside, Setting};
pub use walk::Walk;

use super::{
    constraint,
    schedule::Schedule,
    stage::{Stage, StageGraph, StageOp, TensorId},
};
use crate::{host::Device, manifest::spec::Dtype};
use rand::{Rng, RngExt};
use serde_json::Value as Json;
use std::collections::BTreeMap;

/// One choice for every knob of a family.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    pub family: usize,
    /// Of the value of each knob.
    pub choices: Vec<usize>,
}

/// Points in a row without a legal one after which a family counts as walked through. Of families that have legal points at all,
/// one in a hundred or more is.
const MISSES: u128 = 1 << 14;
/// The same of a family that is restricted: of what is left, legal points can be any share, so that up to so many are all looked at.
/// Two million of an MLP take most of a minute, where each of those that are legal takes a tenth of a second to try.
const MISSES_RESTRICTED: u128 = 1 << 21;
/// Where there has been no legal one so far: whoever restricts a space to nothing is told so before the search, in seconds.
const MISSES_AT_FIRST: u128 = 1 << 19;

/// The space of one operation.
#[derive(Debug, Clone)]
pub struct Space {
    stage: Stage,
    dtype: Dtype,
    device: Device,
    families: Vec<Family>,
    /// Where the operands are known.
    operation: Option<StageGraph>,
    /// What [`Self::only`] leaves.
    only: Only,
    none_left: Option<NoneLeft>,
}

impl Space {
    /// Of `op` on tensors of this type. `hybrid_softmax`: attention on a GPU leaves its softmax to the CPU, and the space has no
    /// other methods.
    pub fn of(op: &StageOp, dtype: Dtype, device: &Device, hybrid_softmax: bool) -> Self {
        let families = match device {
            Device::Cpu(cpu) => cpu::families(op, dtype, cpu),
            Device::Gpu(it) => gpu::families(op, dtype, it, hybrid_softmax),
        };
        let (inputs, output) = (Vec::new(), TensorId(0));
        let stage = Stage { name: "op".to_owned(), op: op.clone(), inputs, output, scheduled: true };
        let (device, only) = (device.clone(), Only::default());
        let mut space = Self { stage, dtype, device, families, operation: None, only, none_left: None };
        // What the device cannot do, or not with this shape, leaves a family without a legal point.
        space.drop_empty();
        space
    }

    fn drop_empty(&mut self) {
        let one = |family: usize| Walk::only(self, family).next(self).is_some();
        let any: Vec<bool> = (0..self.families.len()).map(one).collect();
        let mut any = any.into_iter();
        self.families.retain(|_| any.next().unwrap_or(false));
    }

    /// The space of an operation alone ([`super::operation`]), whose operands decide what is legal too.
    pub fn of_operation(operation: &StageGraph, device: &Device, hybrid_softmax: bool) -> Self {
        let stage = &operation.stages[0];
        let mut space = Self::of(&stage.op, operation.tensor(stage.output).dtype, device, hybrid_softmax);
        space.operation = Some(operation.clone());
        space
    }

    pub fn families(&self) -> &[Family] {
        &self.families
    }

    pub const fn op(&self) -> &StageOp {
        &self.stage.op
    }

    pub const fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub const fn device(&self) -> &Device {
        &self.device
    }

    /// Number of points, legal or not.
    pub fn len(&self) -> u128 {
        self.families.iter().map(Family::len).sum()
    }

    /// Whether no schedule of it is legal.
    pub const fn is_empty(&self) -> bool {
        self.families.is_empty()
    }

    /// All points in the order of their choices, legal or not.
    pub fn points(&self) -> impl Iterator<Item = Point> + '_ {
        let points = |(family, it): (usize, &'_ Family)| {
            let knobs = it.clone();
            (0..it.len()).map(move |index| Point { family, choices: knobs.choices(index) })
        };
        self.families.iter().enumerate().flat_map(points)
    }

    /// Every legal schedule once, in an order of which every beginning covers the space evenly.
    pub fn schedules(&self) -> impl Iterator<Item = Schedule> + '_ {
        let mut walk = Walk::new(self);
        std::iter::from_fn(move || walk.next(self).map(|(_, schedule)| schedule))
    }

    /// The values of the point's knobs, by name.
    pub fn values(&self, point: &Point) -> Vec<Value> {
        self.families[point.family].values(&point.choices)
    }

    /// The schedule of a point. None where it is not legal, and where the point is not the first of those with this schedule.
    pub fn schedule(&self, point: &Point) -> Option<Schedule> {
        let family = self.families.get(point.family)?;
        if !family.permits(&point.choices) || family.canonical(&point.choices) != point.choices {
            return None;
        }
        family.schedule(&point.choices).filter(|it| self.is_legal(it))
    }

    /// Whether a schedule, of the space or not, may be generated.
    pub fn is_legal(&self, schedule: &Schedule) -> bool {
        let of_operands = |it: &StageGraph| constraint::check_operands(it, &it.stages[0], schedule).is_ok();
        constraint::check(&self.stage, self.dtype, schedule, &self.device).is_ok()
            && self.operation.as_ref().is_none_or(of_operands)
    }

    fn canonical(&self, family: usize, choices: &[usize]) -> Point {
        Point { family, choices: self.families[family].canonical(choices) }
    }

    /// A point of any family, each as likely; legal or not. None of an empty space.
    pub fn sample(&self, rng: &mut impl Rng) -> Option<Point> {
        let family = (!self.is_empty()).then(|| rng.random_range(0..self.families.len()))?;
        let knobs = self.families[family].knobs();
        let choices: Vec<usize> = knobs.iter().map(|it| rng.random_range(0..it.len())).collect();
        Some(self.canonical(family, &choices))
    }

    /// The points that differ in one knob: numbers by the next value up or down, others by any. Legal or not.
    pub fn neighbours(&self, point: &Point) -> Vec<Point> {
        let family = &self.families[point.family];
        let own = family.values(&point.choices);
        let mut all = Vec::new();
        for (at, knob) in family.knobs().iter().enumerate() {
            let with = |choice: usize| {
                let mut choices = point.choices.clone();
                choices[at] = choice;
                let other = (family.values(&choices)[at] != own[at]).then(|| self.canonical(point.family, &choices));
                other.filter(|it| it != point)
            };
            let (below, above) = (0..point.choices[at], point.choices[at] + 1..knob.len());
            if matches!(own[at], Value::Number(_)) {
                all.extend(below.rev().find_map(with));
                all.extend(above.into_iter().find_map(with));
            } else {
                all.extend(below.chain(above).filter_map(with));
            }
        }
        all
    }

    /// The point with `count` knobs changed, two in three times to the next value. Legal or not.
    pub fn mutate(&self, point: &Point, count: usize, rng: &mut impl Rng) -> Point {
        let family = &self.families[point.family];
        let free: Vec<usize> = (0..family.knobs().len()).filter(|it| family.knobs()[*it].len() > 1).collect();
        let mut choices = point.choices.clone();
        for _ in 0..count.min(free.len()) {
            let at = free[rng.random_range(0..free.len())];
            let (was, values) = (choices[at], family.knobs()[at].len());
            choices[at] = if rng.random_range(0..3) < 2 {
                let up = was == 0 || was + 1 < values && rng.random::<bool>();
                if up { was + 1 } else { was - 1 }
            } else {
                (was + rng.random_range(1..values)) % values
            };
        }
        self.canonical(point.family, &choices)
    }

    /// A point with each knob from either of two of one family; `a` where they are of different ones. Legal or not.
    pub fn cross(&self, a: &Point, b: &Point, rng: &mut impl Rng) -> Point {
        if a.family != b.family {
            return a.clone();
        }
        let choose = |(a, b): (&usize, &usize)| if rng.random::<bool>() { *a } else { *b };
        let choices: Vec<usize> = a.choices.iter().zip(&b.choices).map(choose).collect();
        self.canonical(a.family, &choices)
    }
}

/// The settings of a schedule by the names that knobs have, e.g. `up.mr`, with its `kernel` and, where there is one, `method`.
pub fn settings(schedule: &Schedule) -> BTreeMap<String, Json> {
    fn flatten(prefix: &str, value: Json, all: &mut BTreeMap<String, Json>) {
        match value {
            Json::Object(fields) => {
                for (name, value) in fields {
                    let name = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
                    flatten(&name, value, all);
                }
            }
            value => {
                all.insert(prefix.to_owned(), value);
            }
        }
    }
    let mut all = BTreeMap::new();
    // Plain data: it is JSON in every plan.
    flatten("", serde_json::to_value(schedule).unwrap_or_default(), &mut all);
    all
}

#[cfg(test)]
pub mod tests;
