//! The names of the knobs of all schedules, whatever the operation and the device.

use super::{
    MAX_KNOB,
    tables::{
        KERNELS, Methods,
        Shape::{self, Count, Flag, Object, OneOf, Word},
        Table,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

/// What a knob of one name may be, in all kernels that have one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kinds {
    pub number: bool,
    pub flag: bool,
    pub words: BTreeSet<&'static str>,
}

impl Kinds {
    /// The numbers that a knob can be in any schedule.
    pub const NUMBERS: RangeInclusive<usize> = 0..=MAX_KNOB as usize;
}

/// Every knob under the name that it has in a plan (`up.mr`) and under the last part of that. The `method` of a kernel is one.
pub fn knobs() -> BTreeMap<String, Kinds> {
    let mut all = BTreeMap::new();
    KERNELS.iter().for_each(|(_, shape)| add("", shape, &mut all));
    all
}

fn add(name: &str, shape: &Shape, all: &mut BTreeMap<String, Kinds>) {
    match shape {
        Object(table) => fields(name, table, all),
        OneOf(methods) => one_of(name, methods, all),
        Count => named(name, all, |it| it.number = true),
        Flag => named(name, all, |it| it.flag = true),
        Word(words) => named(name, all, |it| it.words.extend(*words)),
    }
}

fn named(name: &str, all: &mut BTreeMap<String, Kinds>, note: impl Fn(&mut Kinds)) {
    let short = name.rsplit('.').next().unwrap_or(name);
    for name in [name, short] {
        note(all.entry(name.to_owned()).or_default());
    }
}

fn fields(prefix: &str, table: Table, all: &mut BTreeMap<String, Kinds>) {
    for (name, shape) in table {
        add(&within(prefix, name), shape, all);
    }
}

fn one_of(prefix: &str, methods: Methods, all: &mut BTreeMap<String, Kinds>) {
    for (method, table) in methods {
        named(&within(prefix, "method"), all, |it| it.words.extend([*method]));
        fields(prefix, table, all);
    }
}

fn within(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_knob_has_the_name_of_a_plan_and_the_last_part_of_it() {
        let all = knobs();
        assert_eq!(all["up.pack-b"].words, BTreeSet::from(["ahead", "during", "never"]));
        assert_eq!(all["up.pack-b"], all["pack-b"]);
        assert!(all["mr"].number && !all["mr"].flag && all["mr"].words.is_empty());
        // A flag of a CPU's product, a number of a GPU's.
        assert!(all["prefetch"].flag && all["prefetch"].number);
        assert!(all["method"].words.contains("gemv") && all["down.method"].words.contains("tiled"));
        assert!(!all.contains_key("up") && !all.contains_key("kernel"));
    }
}
