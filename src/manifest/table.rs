//! Checks one TOML table against the keys that the schema gives it, value by value, and keeps every value with its place.
//! It knows types and ranges; what values mean together is for [`super::block`] and [`super::resolve`].

use super::{
    error::{At, Problem, ProblemKind, SourceFile, shown},
    schema::{Accepts, Key, MAX_LIST, MAX_NAME, MAX_SIZE, MAX_THREADS, PASSES, Place},
};
use bytesize::ByteSize;
use globset::Glob;
use std::{collections::BTreeMap, fmt, ops::Range, sync::Arc, time::Duration};
use toml::{
    Spanned,
    de::{DeInteger, DeTable, DeValue},
};

#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    Size(usize),
    Number(f64),
    Flag(bool),
    Text(String),
    Bytes(u64),
    Time(Duration),
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(it) => it.fmt(f),
            Self::Number(it) => it.fmt(f),
            Self::Flag(it) => it.fmt(f),
            Self::Text(it) => write!(f, "`{}`", shown(it)),
            Self::Bytes(it) => it.fmt(f),
            Self::Time(it) => humantime::format_duration(*it).fmt(f),
        }
    }
}

/// What a key was given: one item, or those of a list.
#[derive(Debug)]
pub struct Field {
    pub key: Range<usize>,
    pub value: Range<usize>,
    pub list: bool,
    pub items: Vec<(Item, Range<usize>)>,
}

/// The fields of one table that are right by themselves.
#[derive(Debug, Default)]
pub struct Fields(BTreeMap<&'static str, Field>);

impl Fields {
    pub fn get(&self, key: &str) -> Option<&Field> {
        self.0.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Field)> {
        self.0.iter().map(|(key, field)| (*key, field))
    }

    fn item(&self, key: &str) -> Option<&Item> {
        self.get(key)?.items.first().map(|it| &it.0)
    }

    pub fn size(&self, key: &str) -> Option<usize> {
        match self.item(key)? {
            Item::Size(size) => Some(*size),
            _ => None,
        }
    }

    pub fn number(&self, key: &str) -> Option<f64> {
        match self.item(key)? {
            Item::Number(number) => Some(*number),
            _ => None,
        }
    }

    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.item(key)? {
            Item::Flag(flag) => Some(*flag),
            _ => None,
        }
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        match self.item(key)? {
            Item::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn bytes(&self, key: &str) -> Option<u64> {
        match self.item(key)? {
            Item::Bytes(bytes) => Some(*bytes),
            _ => None,
        }
    }

    pub fn time(&self, key: &str) -> Option<Duration> {
        match self.item(key)? {
            Item::Time(time) => Some(*time),
            _ => None,
        }
    }

    /// The strings of a list, with their places.
    pub fn texts(&self, key: &str) -> impl Iterator<Item = (&str, Range<usize>)> {
        let items = self.get(key).map(|it| it.items.as_slice()).unwrap_or_default();
        items.iter().filter_map(|(item, span)| match item {
            Item::Text(text) => Some((text.as_str(), span.clone())),
            _ => None,
        })
    }
}

/// Reads `table`, reporting everything that is wrong with it. `header` is what to underline when a key is missing.
pub fn read(
    file: &Arc<SourceFile>,
    place: &Place,
    header: Range<usize>,
    table: &DeTable<'_>,
    problems: &mut Vec<Problem>,
) -> Fields {
    let keys = place.keys();
    let known = || keys.iter().map(|it| it.1.name).collect::<Vec<_>>();
    let mut fields = Fields::default();
    for (name, value) in table {
        let text = name.get_ref().as_ref();
        if place.holds_table(text) {
            continue;
        }
        let Some((_, key)) = keys.iter().find(|it| it.1.name == text) else {
            let key = shown(text);
            let kind = match place {
                Place::Llm(_) if is_secret(text) => ProblemKind::SecretInManifest { key },
                Place::Block(_, Some(kind)) if place.is_block_key(text) => {
                    ProblemKind::KeyOfOtherKind { kind: kind.name(), key, known: known() }
                }
                _ => ProblemKind::UnknownKey { place: place.to_string(), key, known: known() },
            };
            problems.push(Problem::at(kind, file, name.span()));
            continue;
        };
        let before = problems.len();
        let field = Reader { file, key, problems }.field(name.span(), value);
        if problems.len() == before {
            fields.0.insert(key.name, field);
        }
    }
    let given = |name: &str| table.keys().any(|it| it.get_ref() == name);
    let missing: Vec<_> =
        keys.iter().filter(|(required, key)| *required && !given(key.name)).map(|it| it.1.name).collect();
    if !missing.is_empty() {
        problems.push(Problem::at(ProblemKind::Missing { place: place.to_string(), missing }, file, header));
    }
    fields
}

struct Reader<'a> {
    file: &'a Arc<SourceFile>,
    key: &'static Key,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn report(&mut self, kind: ProblemKind, span: Range<usize>) {
        self.problems.push(Problem::at(kind, self.file, span));
    }

    fn field(&mut self, key: Range<usize>, value: &Spanned<DeValue<'_>>) -> Field {
        let accepts = self.key.accepts;
        let mut field = Field { key, value: value.span(), list: false, items: Vec::new() };
        match value.get_ref() {
            DeValue::Array(items) if accepts.takes_list() => {
                field.list = true;
                self.check_length(items.len(), value.span());
                field.items = items.iter().take(MAX_LIST).filter_map(|it| self.item(it, accepts.item())).collect();
                self.check_repeats(&field.items);
            }
            _ if accepts.is_list() => self.wrong_type(accepts.expected(), value),
            _ => field.items.extend(self.item(value, accepts.expected())),
        }
        field
    }

    fn check_length(&mut self, values: usize, span: Range<usize>) {
        let key = self.key.name.to_owned();
        let needs = match self.key.accepts {
            Accepts::Patterns | Accepts::Passes => None,
            Accepts::References => Some("name at least one; without the key the default applies"),
            _ => Some("a list makes one instance for each value: give at least one"),
        };
        match needs {
            Some(needs) if values == 0 => self.report(ProblemKind::EmptyList { key, needs }, span),
            _ if values > MAX_LIST => self.report(ProblemKind::LongList { key, values }, span),
            _ => (),
        }
    }

    /// A repeated value would make two instances with one name; passes alone may run twice.
    fn check_repeats(&mut self, items: &[(Item, Range<usize>)]) {
        if self.key.accepts == Accepts::Passes {
            return;
        }
        for (index, (item, span)) in items.iter().enumerate() {
            if let Some((_, first)) = items[..index].iter().find(|it| it.0 == *item) {
                let kind = ProblemKind::Repeated { key: self.key.name.to_owned(), value: item.to_string() };
                let problem = Problem::at(kind, self.file, span.clone());
                self.problems.push(problem.and(At::new(self.file, first.clone()), "first here"));
            }
        }
    }

    fn wrong_type(&mut self, expected: &'static str, value: &Spanned<DeValue<'_>>) {
        self.problems.push(wrong_type(self.file, self.key.name, expected, value));
    }

    fn out_of_range(&mut self, value: &str, range: String, span: Range<usize>) {
        self.report(ProblemKind::OutOfRange { key: self.key.name.to_owned(), value: shown(value), range }, span);
    }

    fn item(&mut self, value: &Spanned<DeValue<'_>>, expected: &'static str) -> Option<(Item, Range<usize>)> {
        let span = value.span();
        let item = match (self.key.accepts, value.get_ref()) {
            (Accepts::Size | Accepts::Sizes, DeValue::Integer(it)) => self.count(it, 1, MAX_SIZE, span.clone())?,
            (Accepts::Threads, DeValue::Integer(it)) => self.count(it, 1, MAX_THREADS, span.clone())?,
            (Accepts::Count { low, high }, DeValue::Integer(it)) => self.count(it, low, high, span.clone())?,
            (Accepts::Number { .. }, DeValue::Integer(it)) => {
                self.number(integer(it).map(|it| it as f64), it.as_str(), span.clone())?
            }
            (Accepts::Number { .. }, DeValue::Float(it)) => {
                self.number(it.as_str().parse().ok(), it.as_str(), span.clone())?
            }
            (Accepts::Flag, DeValue::Boolean(it)) => Item::Flag(*it),
            (Accepts::Choice { .. } | Accepts::Choices { .. }, DeValue::String(it)) => self.choice(it, span.clone())?,
            (Accepts::Passes, DeValue::String(it)) => self.one_of(it, PASSES, "a pass", span.clone())?,
            (Accepts::Name, DeValue::String(it)) => {
                if !is_name(it) {
                    self.report(ProblemKind::BadName { what: named(self.key.name), name: shown(it) }, span);
                    return None;
                }
                Item::Text(it.to_string())
            }
            (Accepts::References | Accepts::Patterns | Accepts::File, DeValue::String(it)) => {
                Item::Text(it.to_string())
            }
            (Accepts::Text, DeValue::String(it)) => {
                if it.trim().is_empty() {
                    self.report(ProblemKind::NoText { key: self.key.name.to_owned() }, span);
                    return None;
                }
                Item::Text(it.trim().to_owned())
            }
            (Accepts::Time, DeValue::String(it)) => match humantime::parse_duration(it) {
                Ok(time) if !time.is_zero() => Item::Time(time),
                _ => {
                    self.report(ProblemKind::NotATime { key: self.key.name.to_owned(), value: shown(it) }, span);
                    return None;
                }
            },
            (Accepts::Glob, DeValue::String(it)) => {
                if let Err(error) = Glob::new(it) {
                    let reason = error.kind().to_string();
                    self.report(ProblemKind::BadGlob { key: self.key.name.to_owned(), reason }, span);
                    return None;
                }
                Item::Text(it.to_string())
            }
            (Accepts::Bytes, DeValue::String(it)) => match it.parse::<ByteSize>() {
                Ok(size) => Item::Bytes(size.as_u64()),
                Err(_) => {
                    self.report(ProblemKind::NotASize { key: self.key.name.to_owned(), value: shown(it) }, span);
                    return None;
                }
            },
            _ => {
                self.wrong_type(expected, value);
                return None;
            }
        };
        Some((item, span))
    }

    fn count(&mut self, value: &DeInteger<'_>, low: usize, high: usize, span: Range<usize>) -> Option<Item> {
        let count = integer(value).and_then(|it| usize::try_from(it).ok()).filter(|it| (low..=high).contains(it));
        if count.is_none() {
            self.out_of_range(&value.to_string(), format!("between {low} and {high}"), span);
        }
        count.map(Item::Size)
    }

    fn number(&mut self, value: Option<f64>, text: &str, span: Range<usize>) -> Option<Item> {
        let Accepts::Number { low, high, or_zero } = self.key.accepts else { return None };
        let number = value.filter(|it| (low..=high).contains(it) || or_zero && *it == 0.0);
        if number.is_none() {
            let zero = if or_zero { "0, or " } else { "" };
            self.out_of_range(text, format!("{zero}between {} and {}", short(low), short(high)), span);
        }
        number.map(Item::Number)
    }

    fn choice(&mut self, value: &str, span: Range<usize>) -> Option<Item> {
        let (Accepts::Choice { names } | Accepts::Choices { names }) = self.key.accepts else { return None };
        self.one_of(value, names, article(self.key.name), span)
    }

    fn one_of(&mut self, value: &str, names: &[&str], what: &'static str, span: Range<usize>) -> Option<Item> {
        if names.contains(&value) {
            return Some(Item::Text(value.to_owned()));
        }
        let known = names.iter().map(|it| (*it).to_owned()).collect();
        self.report(ProblemKind::NotOneOf { what, value: shown(value), known, declared_by: None }, span);
        None
    }
}

/// `key` is given a value of another type than it takes.
pub fn wrong_type(file: &Arc<SourceFile>, key: &str, expected: &'static str, value: &Spanned<DeValue<'_>>) -> Problem {
    let found = match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    // The span of `[a.b]` or `a.b = ...` would underline a header elsewhere; of a list or inline table, all its lines.
    let span = value.span();
    let line = file.text.get(span.clone()).and_then(|it| it.lines().next()).map_or(0, str::len);
    Problem::at(ProblemKind::WrongType { key: key.to_owned(), expected, found }, file, span.start..span.start + line)
}

/// Whether somebody who writes this key means a secret by it.
fn is_secret(key: &str) -> bool {
    let plain = key.to_ascii_lowercase().replace(['-', '_'], "");
    ["key", "apikey", "token", "secret", "password", "authorization"].contains(&plain.as_str())
}

/// What a key with a name names.
fn named(key: &'static str) -> &'static str {
    if key == "name" { "project" } else { key }
}

/// What the value of a key with fixed choices is called.
fn article(key: &'static str) -> &'static str {
    match key {
        "kind" => "a kind of block",
        "norm" => "a norm",
        "activation" => "an activation",
        "b" => "a kind of operand",
        "dtype" => "a dtype",
        "backend" => "a backend",
        "strategy" => "a strategy",
        _ => key,
    }
}

/// A limit as a person would write it.
fn short(number: f64) -> String {
    if (1e-3..1e6).contains(&number) { number.to_string() } else { format!("{number:e}") }
}

pub fn integer(value: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(value.as_str(), value.radix()).ok()
}

/// Whether `name` may name something: it is safe in a file name and on a command line.
pub fn is_name(name: &str) -> bool {
    let inner = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-';
    name.len() <= MAX_NAME && !name.is_empty() && !name.starts_with('-') && name.bytes().all(inner)
}
