//! `[tuning.NAME.knobs]`: what a search may choose from. Which knobs an operation has, and what they can be there, is only known with
//! its shape and its device; here is checked what no operation could have.

use super::{
    error::{At, Problem, ProblemKind, SourceFile, shown},
    schema::{KNOBS_TABLE, MAX_LIST},
    table::{integer, wrong_type},
};
use crate::plan::{
    read::knobs::{Kinds, knobs},
    space::{Only, Setting},
};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

/// Reads the table, reporting everything that is wrong with it.
pub fn read(file: &Arc<SourceFile>, table: &DeTable<'_>, problems: &mut Vec<Problem>) -> Only {
    let (known, only) = (knobs(), Only::default());
    let mut reader = Reader { file, known, only, given: BTreeMap::new(), problems };
    for (key, value) in table {
        let name = key.get_ref().as_ref();
        match value.get_ref() {
            // `up.mr = [6]` is a table of its own.
            DeValue::Table(inner) if reader.is_part(name) || !reader.known.contains_key(name) && !inner.is_empty() => {
                for (rest, value) in inner {
                    reader.knob(&format!("{name}.{}", rest.get_ref()), rest.span(), value);
                }
            }
            _ => reader.knob(name, key.span(), value),
        }
    }
    reader.only
}

struct Reader<'a> {
    file: &'a Arc<SourceFile>,
    known: BTreeMap<String, Kinds>,
    only: Only,
    /// Where each was given: `"up.mr"` and `up.mr` are two keys of TOML.
    given: BTreeMap<String, Range<usize>>,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn report(&mut self, kind: ProblemKind, span: Range<usize>) {
        self.problems.push(Problem::at(kind, self.file, span));
    }

    /// Whether schedules have parts of this name.
    fn is_part(&self, name: &str) -> bool {
        self.known.keys().any(|it| it.split_once('.').is_some_and(|it| it.0 == name))
    }

    fn knob(&mut self, name: &str, at: Range<usize>, value: &Spanned<DeValue<'_>>) {
        let Some(kinds) = self.known.get(name).cloned() else {
            let known = self.known.keys().cloned().collect();
            return self.report(ProblemKind::UnknownKnob { knob: shown(name), known }, at);
        };
        if let Some(other) = self.given.insert(name.to_owned(), at.clone()) {
            // A table is in the order of its keys.
            let (first, at) = if other.start < at.start { (other, at) } else { (at, other) };
            let problem = Problem::at(ProblemKind::DuplicateKey { key: name.to_owned() }, self.file, at);
            return self.problems.push(problem.and(At::new(self.file, first), "first here"));
        }
        match value.get_ref() {
            DeValue::Array(items) => self.list(name, &kinds, items, value.span()),
            _ => self.problems.push(wrong_type(self.file, name, "a list of what the knob may be", value)),
        }
    }

    fn list(&mut self, name: &str, kinds: &Kinds, items: &DeArray<'_>, at: Range<usize>) {
        let key = || name.to_owned();
        if items.is_empty() {
            let needs = "list at least one value; a knob that is not named may be anything";
            return self.report(ProblemKind::EmptyList { key: key(), needs }, at);
        }
        if items.len() > MAX_LIST {
            return self.report(ProblemKind::LongList { key: key(), values: items.len() }, at);
        }
        let mut values: Vec<(Setting, Range<usize>)> = Vec::new();
        for item in items {
            let Some(setting) = self.setting(name, kinds, item) else { continue };
            match values.iter().find(|it| it.0 == setting) {
                Some((_, first)) => {
                    let kind = ProblemKind::Repeated { key: key(), value: setting.to_string() };
                    let problem = Problem::at(kind, self.file, item.span());
                    self.problems.push(problem.and(At::new(self.file, first.clone()), "first here"));
                }
                None => values.push((setting, item.span())),
            }
        }
        self.only.insert(key(), values.into_iter().map(|it| it.0).collect());
    }

    fn setting(&mut self, name: &str, kinds: &Kinds, item: &Spanned<DeValue<'_>>) -> Option<Setting> {
        match item.get_ref() {
            DeValue::Boolean(it) if kinds.flag => Some(Setting::Flag(*it)),
            DeValue::Integer(it) if kinds.number => {
                let number = integer(it).and_then(|it| usize::try_from(it).ok());
                let number = number.filter(|it| Kinds::NUMBERS.contains(it));
                if number.is_none() {
                    let range = format!("between {} and {}", Kinds::NUMBERS.start(), Kinds::NUMBERS.end());
                    let (key, value) = (name.to_owned(), shown(&it.to_string()));
                    self.report(ProblemKind::OutOfRange { key, value, range }, item.span());
                }
                number.map(Setting::Number)
            }
            DeValue::String(it) if kinds.words.contains(it.as_ref()) => Some(Setting::Word(it.to_string())),
            DeValue::String(it) if !kinds.words.is_empty() => {
                let known = kinds.words.iter().map(|it| (*it).to_owned()).collect();
                let (what, value) = ("what this knob can be", shown(it));
                self.report(ProblemKind::NotOneOf { what, value, known, declared_by: None }, item.span());
                None
            }
            _ => {
                self.problems.push(wrong_type(self.file, name, expected(kinds), item));
                None
            }
        }
    }
}

fn expected(kinds: &Kinds) -> &'static str {
    match (kinds.number, kinds.flag, kinds.words.is_empty()) {
        (true, true, _) => "an integer, or `true` or `false`",
        (true, false, _) => "an integer",
        (false, true, _) => "`true` or `false`",
        (false, false, _) => "a string",
    }
}

/// The JSON Schema of the table.
pub fn schema() -> Value {
    let known = knobs();
    let parts: BTreeSet<&str> = known.keys().filter_map(|it| it.split_once('.')).map(|it| it.0).collect();
    let short = known.iter().filter(|it| !it.0.contains('.'));
    let mut properties: Map<String, Value> = short.map(|(name, kinds)| (name.clone(), list(kinds))).collect();
    let any = json!({ "type": "array", "items": { "type": ["integer", "boolean", "string"] }, "minItems": 1, "maxItems": MAX_LIST, "uniqueItems": true });
    let mut full: Vec<&String> = Vec::new();
    for part in parts {
        let of_part = known.keys().filter_map(|it| Some((it, it.strip_prefix(part)?.strip_prefix('.')?)));
        let (names, inner): (Vec<&String>, Vec<&str>) = of_part.unzip();
        full.extend(names);
        properties.insert(
            part.to_owned(),
            json!({ "type": "object", "propertyNames": { "enum": inner }, "additionalProperties": any }),
        );
    }
    let names: Vec<String> = properties.keys().chain(full).cloned().collect();
    json!({
        "description": format!("`{KNOBS_TABLE}`: what a search may choose from. A key is a knob as it is in a plan (`up.mr`), or the last part of its name, which stands for all that have it (`mr`); its value lists what the knob may be in the plan. The heuristic's schedule stays every search's first trial. Default: everything."),
        "type": "object",
        "properties": properties,
        "propertyNames": { "enum": names },
        "additionalProperties": any,
    })
}

fn list(kinds: &Kinds) -> Value {
    let number = kinds
        .number
        .then(|| json!({ "type": "integer", "minimum": Kinds::NUMBERS.start(), "maximum": Kinds::NUMBERS.end() }));
    let flag = kinds.flag.then(|| json!({ "type": "boolean" }));
    let words = (!kinds.words.is_empty()).then(|| json!({ "enum": kinds.words }));
    let mut items: Vec<Value> = [number, flag, words].into_iter().flatten().collect();
    let items = if items.len() == 1 { items.remove(0) } else { json!({ "anyOf": items }) };
    json!({ "type": "array", "items": items, "minItems": 1, "maxItems": MAX_LIST, "uniqueItems": true })
}
