//! Reads a plan file that somebody hands over: nothing in it is believed. What is wrong is found all at once, each mistake
//! with the place where it is written. Whether the knobs are legal for the block's stages is not asked here: that is gate V0.
//!
//! [`json`] gives every value its place; the [`tables`] say what each object takes, and a test holds them against the types
//! that serde reads. [`knobs`] are the names in them.

mod json;
pub mod knobs;
mod schema;
mod tables;
#[cfg(test)]
mod tests;

pub use schema::schema;

use super::{PLAN_VERSION, Plan, schedule::Schedule};
use crate::{
    digest::Digest,
    manifest::{
        error::{list, shown, suggest},
        spec::Pass,
    },
    plan::gpu::TEMPLATES,
};
use json::{Node, Value};
use serde::de::DeserializeOwned;
use std::ops::Range;
use tables::{
    KERNELS, Methods,
    Shape::{Count, Flag, Object, OneOf, Word},
    Table,
};

/// Bytes of the largest plan that is read; one with a thousand stages has half of it.
pub const MAX_PLAN: u64 = 1 << 20;

/// The largest number that a knob can sensibly have: no tensor has a dimension near it, and no product that
/// a constraint computes of two of them overflows.
const MAX_KNOB: u64 = 1 << 24;

/// Characters of a name.
const MAX_TEXT: usize = 128;

/// What is wrong with a plan file.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ProblemKind {
    #[error("the plan has version {found}; this kforge reads versions up to {PLAN_VERSION}")]
    NewerVersion { found: String },
    #[error("the file has more than {} bytes; a plan has at most that many", MAX_PLAN)]
    TooLarge,
    #[error("the file is not UTF-8: the byte 0x{byte:02x} does not belong there")]
    NotUtf8 { byte: u8 },
    #[error("this is not JSON: {message}")]
    Syntax { message: String },
    #[error("{place} does not take the field `{field}`")]
    UnknownField { place: String, field: String, known: Vec<&'static str> },
    #[error("{place} lacks {}", list(fields))]
    Missing { place: String, fields: Vec<&'static str> },
    #[error("{field} must be {expected}, not {found}")]
    WrongType { field: String, expected: &'static str, found: &'static str },
    #[error("{field} must be {range}, not {value}")]
    OutOfRange { field: String, value: String, range: String },
    #[error("{field} is `{value}`, which it cannot be")]
    NotOneOf { field: String, value: String, known: Vec<&'static str> },
    #[error("{field} is not a name: 1 to {MAX_TEXT} characters, none of them a control character")]
    BadText { field: String },
    #[error("{field} is not a digest: 64 digits from 0 to f")]
    BadDigest { field: String },
    #[error("the plan is for {what} `{found}`, and is to be verified for `{wanted}`")]
    Other { what: &'static str, found: String, wanted: String },
}

use ProblemKind as K;

impl ProblemKind {
    /// The stable name that scripts can match.
    pub const fn code(&self) -> &'static str {
        match self {
            K::NewerVersion { .. } => "plan::newer-version",
            K::TooLarge => "plan::too-large",
            K::NotUtf8 { .. } => "plan::not-utf8",
            K::Syntax { .. } => "plan::syntax",
            K::UnknownField { .. } => "plan::unknown-field",
            K::Missing { .. } => "plan::missing-field",
            K::WrongType { .. } => "plan::wrong-type",
            K::OutOfRange { .. } => "plan::out-of-range",
            K::NotOneOf { .. } => "plan::unknown-name",
            K::BadText { .. } => "plan::bad-name",
            K::BadDigest { .. } => "plan::bad-digest",
            K::Other { .. } => "plan::other-block",
        }
    }

    /// What is written beside the underlined text.
    pub fn label(&self) -> String {
        match self {
            K::NewerVersion { .. } => "from a newer kforge".to_owned(),
            K::UnknownField { .. } => "unknown field".to_owned(),
            K::Missing { .. } => "this object".to_owned(),
            K::WrongType { found, .. } => (*found).to_owned(),
            K::OutOfRange { .. } => "out of range".to_owned(),
            K::NotOneOf { .. } => "unknown name".to_owned(),
            K::BadText { .. } => "not a name".to_owned(),
            K::BadDigest { .. } => "not a digest".to_owned(),
            K::Other { what, .. } => format!("another {what}"),
            K::TooLarge | K::NotUtf8 { .. } | K::Syntax { .. } => "here".to_owned(),
        }
    }

    /// What to do about it.
    pub fn help(&self) -> String {
        match self {
            K::NewerVersion { .. } => "use the kforge that wrote it, or have the plan made again".to_owned(),
            K::TooLarge => {
                "is it a plan? `kforge build` writes one to .kforge-cache/out/BLOCK@TARGET/plan.json".to_owned()
            }
            K::NotUtf8 { .. } => "save the file as UTF-8".to_owned(),
            K::Syntax { .. } => "JSON has no comments, no trailing commas, no NaN and no infinity".to_owned(),
            K::UnknownField { field, known, .. } => suggest(field, known, "its fields"),
            K::Missing { fields, .. } => {
                format!("add {}", fields.iter().map(|it| format!("`\"{it}\": ...`")).collect::<Vec<_>>().join(", "))
            }
            K::WrongType { expected, .. } => format!("write {expected}"),
            K::OutOfRange { range, .. } => format!("write {range}"),
            K::NotOneOf { value, known, .. } => suggest(value, known, "known"),
            K::BadText { .. } => "write the name that the manifest or the IR has".to_owned(),
            K::BadDigest { .. } => "write the BLAKE3 digest of the template's text".to_owned(),
            K::Other { what: "block", found, .. } => {
                format!("`--block {found}` verifies it for the block that it names")
            }
            K::Other { .. } => {
                "`--block BLOCK@TARGET` with the target that it names, or a plan for this one".to_owned()
            }
        }
    }
}

/// One mistake, and the bytes that it is in; none where it is the file as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    pub kind: ProblemKind,
    pub span: Option<Range<usize>>,
}

impl Problem {
    fn at(kind: ProblemKind, span: Range<usize>) -> Self {
        Self { kind, span: Some(span) }
    }
}

/// Reads a plan for this block and target.
///
/// # Errors
/// All mistakes, in the order in which they are written; never an empty list. Spans are into the file's text, read with
/// replacement characters where it is not UTF-8. A version from the future is the only mistake that is told: what
/// else such a file has is not for this kforge to judge.
pub fn read(bytes: &[u8], (block, target): (&str, &str)) -> Result<Plan, Vec<Problem>> {
    if let Some((found, span)) = json::outer_number(bytes, "version")
        && found.starts_with(|it: char| it.is_ascii_digit())
        && found.parse::<f64>().is_ok_and(|it| it > f64::from(PLAN_VERSION))
    {
        return Err(vec![Problem::at(K::NewerVersion { found: shown(found) }, span)]);
    }
    if bytes.len() as u64 > MAX_PLAN {
        return Err(vec![Problem { kind: K::TooLarge, span: None }]);
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        // The replacement character has three bytes.
        vec![Problem::at(K::NotUtf8 { byte: bytes.get(at).copied().unwrap_or_default() }, at..at + 3)]
    })?;
    let node = json::parse(text).map_err(|it| vec![Problem::at(K::Syntax { message: it.message }, it.span)])?;
    let mut reader = Reader::default();
    reader.plan(&node, (block, target));
    reader.finish(text, node.span)
}

/// Reads one schedule. `path` comes before the names of its fields in messages, e.g. `schedules[0]`.
///
/// # Errors
/// As [`read`].
pub fn schedule(text: &str, path: &str) -> Result<Schedule, Vec<Problem>> {
    let node = json::parse(text).map_err(|it| vec![Problem::at(K::Syntax { message: it.message }, it.span)])?;
    let mut reader = Reader::default();
    reader.schedule(&format!("`{path}`"), path, &node);
    reader.finish(text, node.span)
}

const PLAN: [&str; 5] = ["version", "block", "target", "provenance", "stages"];
/// What a plan may have beside [`PLAN`].
const PLAN_MORE: [&str; 2] = ["shaders", "without"];
const PROVENANCE: [&str; 2] = ["strategy", "trials"];
/// Bytes of a text that is only shown.
const MAX_PROSE: usize = 500;
/// Passes that a plan may leave out: those that a search tries a block without.
const FUSIONS: &[&str] = &[Pass::FuseMatmulActivation.name(), Pass::FuseMlpBlock.name()];
/// What it may have beside [`PROVENANCE`].
const PROVENANCE_MORE: [&str; 2] = ["origins", "remarks"];

/// Collects what is wrong.
#[derive(Default)]
struct Reader {
    problems: Vec<Problem>,
}

type Members<'n, 'a> = &'n [json::Member<'a>];

impl Reader {
    /// What the text says, if nothing was reported.
    fn finish<T: DeserializeOwned>(mut self, text: &str, span: Range<usize>) -> Result<T, Vec<Problem>> {
        if !self.problems.is_empty() {
            self.problems.sort_by_key(|it| it.span.as_ref().map_or(0, |it| it.start));
            return Err(self.problems);
        }
        // Only if the tables do not know what the types do.
        serde_json::from_str(text).map_err(|error| vec![Problem::at(K::Syntax { message: error.to_string() }, span)])
    }

    fn report(&mut self, kind: ProblemKind, span: &Range<usize>) {
        self.problems.push(Problem::at(kind, span.clone()));
    }

    /// A value of the wrong type. Of an object or a list its bracket is shown: underlining all of it shows nothing.
    fn wrong_type(&mut self, field: &str, expected: &'static str, node: &Node<'_>) {
        let span = match node.value {
            Value::Object(_) | Value::List(_) => node.span.start..node.span.start + 1,
            _ => node.span.clone(),
        };
        self.report(K::WrongType { field: field.to_owned(), expected, found: node.value.kind() }, &span);
    }

    fn plan(&mut self, node: &Node<'_>, (block, target): (&str, &str)) {
        let Some(members) = self.object(node, "a plan", &PLAN, &PLAN_MORE) else { return };
        for member in members {
            let value = &member.node;
            match &*member.key {
                "version" => self.number(value, "`version`", u64::from(PLAN_VERSION)..=u64::from(PLAN_VERSION)),
                "block" => self.name_of("block", value, block),
                "target" => self.name_of("target", value, target),
                "provenance" => self.provenance(value),
                "stages" => self.stages(value),
                "shaders" => self.shaders(value),
                "without" => self.without(value),
                _ => {} // reported as unknown
            }
        }
    }

    fn provenance(&mut self, node: &Node<'_>) {
        let Some(members) = self.object(node, "`provenance`", &PROVENANCE, &PROVENANCE_MORE) else { return };
        for member in members {
            match &*member.key {
                "strategy" => drop(self.text(&member.node, "`strategy`")),
                "trials" => self.number(&member.node, "`trials`", 0..=u64::from(u32::MAX)),
                "origins" => self.origins(&member.node),
                "remarks" => self.remarks(&member.node),
                _ => {}
            }
        }
    }

    /// Who proposed which stage's schedule: words for people.
    fn origins(&mut self, node: &Node<'_>) {
        let Value::Object(origins) = &node.value else {
            return self.wrong_type("`origins`", "an object of texts by stage", node);
        };
        for it in origins {
            self.prose(&it.node, &format!("`origins.{}`", shown(&it.key)));
        }
    }

    fn remarks(&mut self, node: &Node<'_>) {
        for it in self.list(node, "`remarks`") {
            self.prose(it, "`remarks`");
        }
    }

    /// Passes of the pipeline that are left out.
    fn without(&mut self, node: &Node<'_>) {
        for it in self.list(node, "`without`") {
            self.word(it, "`without`", FUSIONS);
        }
    }

    fn list<'n, 'a>(&mut self, node: &'n Node<'a>, field: &str) -> &'n [Node<'a>] {
        if let Value::List(items) = &node.value {
            return items;
        }
        self.wrong_type(field, "a list", node);
        &[]
    }

    /// A text that is only shown: of one line, and not longer than anybody reads.
    fn prose(&mut self, node: &Node<'_>, field: &str) {
        let Value::Text(text) = &node.value else { return self.wrong_type(field, "a text", node) };
        if text.len() > MAX_PROSE || text.chars().any(char::is_control) {
            self.report(K::BadText { field: field.to_owned() }, &node.span);
        }
    }

    fn stages(&mut self, node: &Node<'_>) {
        let Value::Object(stages) = &node.value else {
            return self.wrong_type("`stages`", "an object of schedules by stage", node);
        };
        for stage in stages {
            if is_name(&stage.key) {
                let name = shown(&stage.key);
                self.schedule(&format!("the schedule of stage `{name}`"), &name, &stage.node);
            } else {
                self.report(K::BadText { field: "a stage's name".to_owned() }, &stage.at);
            }
        }
    }

    /// Digests of templates that the plan's project has of its own.
    fn shaders(&mut self, node: &Node<'_>) {
        let Value::Object(shaders) = &node.value else {
            return self.wrong_type("`shaders`", "an object of digests by template", node);
        };
        for it in shaders {
            if !TEMPLATES.contains(&&*it.key) {
                let (field, value) = ("a template of `shaders`".to_owned(), shown(&it.key));
                self.report(K::NotOneOf { field, value, known: TEMPLATES.to_vec() }, &it.at);
                continue;
            }
            let field = format!("`shaders.{}`", it.key);
            if let Some(text) = self.text(&it.node, &field)
                && text.parse::<Digest>().is_err()
            {
                self.report(K::BadDigest { field }, &it.node.span);
            }
        }
    }

    /// One schedule: `place` in words, `path` as a prefix of field names.
    fn schedule(&mut self, place: &str, path: &str, node: &Node<'_>) {
        let Value::Object(members) = &node.value else {
            return self.wrong_type(place, "an object", node);
        };
        let Some(kernel) = members.iter().find(|it| it.key == "kernel") else {
            let span = node.span.start..node.span.start + 1;
            return self.report(K::Missing { place: place.to_owned(), fields: vec!["kernel"] }, &span);
        };
        let known: Vec<_> = KERNELS.iter().map(|it| it.0).collect();
        let field = format!("`{path}.kernel`");
        let Some(name) = self.word(&kernel.node, &field, &known) else { return };
        match KERNELS.iter().find(|it| it.0 == name) {
            Some((_, Object(fields))) => self.fields(node, (place, path), fields, &["kernel"]),
            Some((_, OneOf(methods))) => self.one_of(node, (place, path), methods, &["kernel"]),
            _ => {} // reported as unknown
        }
    }

    /// An object whose `method` says which table its fields are of.
    fn one_of(&mut self, node: &Node<'_>, (place, path): (&str, &str), methods: Methods, more: &[&str]) {
        let Value::Object(members) = &node.value else { return self.wrong_type(place, "an object", node) };
        let Some(method) = members.iter().find(|it| it.key == "method") else {
            let span = node.span.start..node.span.start + 1;
            return self.report(K::Missing { place: place.to_owned(), fields: vec!["method"] }, &span);
        };
        let known: Vec<_> = methods.iter().map(|it| it.0).collect();
        let Some(name) = self.word(&method.node, &format!("`{path}.method`"), &known) else { return };
        let Some((_, fields)) = methods.iter().find(|it| it.0 == name) else { return };
        let more: Vec<_> = more.iter().copied().chain(["method"]).collect();
        self.fields(node, (place, path), fields, &more);
    }

    /// An object of a table's fields. `place` in words, `path` as a prefix of field names.
    fn fields(&mut self, node: &Node<'_>, (place, path): (&str, &str), table: Table, more: &[&str]) {
        let known: Vec<_> = table.iter().map(|it| it.0).collect();
        let Some(members) = self.object(node, place, &known, more) else { return };
        for member in members {
            let Some((name, shape)) = table.iter().find(|it| it.0 == member.key) else { continue };
            let path = format!("{path}.{name}");
            let field = format!("`{path}`");
            match shape {
                Count => self.number(&member.node, &field, 0..=MAX_KNOB),
                Word(words) => drop(self.word(&member.node, &field, words)),
                Object(inner) => self.fields(&member.node, (&field, &path), inner, &[]),
                OneOf(methods) => self.one_of(&member.node, (&field, &path), methods, &[]),
                Flag if matches!(member.node.value, Value::Bool(_)) => {}
                Flag => self.wrong_type(&field, "true or false", &member.node),
            }
        }
    }

    /// The members of an object that has all of `known`, and beyond them at most `more`.
    fn object<'n, 'a>(
        &mut self,
        node: &'n Node<'a>,
        place: &str,
        known: &[&'static str],
        more: &[&str],
    ) -> Option<Members<'n, 'a>> {
        let Value::Object(members) = &node.value else {
            self.wrong_type(place, "an object", node);
            return None;
        };
        for it in members.iter().filter(|it| !known.iter().chain(more).any(|known| *known == it.key)) {
            let (place, field) = (place.to_owned(), shown(&it.key));
            self.report(K::UnknownField { place, field, known: known.to_vec() }, &it.at);
        }
        let absent = |it: &&&'static str| !members.iter().any(|member| member.key == **it);
        let fields: Vec<_> = known.iter().filter(absent).copied().collect();
        if !fields.is_empty() {
            // Its first byte: underlining all of a large object shows nothing.
            let span = node.span.start..node.span.start + 1;
            self.report(K::Missing { place: place.to_owned(), fields }, &span);
        }
        Some(members)
    }

    fn number(&mut self, node: &Node<'_>, field: &str, range: std::ops::RangeInclusive<u64>) {
        let Value::Number(text) = node.value else { return self.wrong_type(field, "a whole number", node) };
        if !text.parse().is_ok_and(|it| range.contains(&it)) {
            let range = match range.start() == range.end() {
                true => range.start().to_string(),
                false => format!("a whole number from {} to {}", range.start(), range.end()),
            };
            self.report(K::OutOfRange { field: field.to_owned(), value: shown(text), range }, &node.span);
        }
    }

    fn text<'n>(&mut self, node: &'n Node<'_>, field: &str) -> Option<&'n str> {
        let Value::Text(text) = &node.value else {
            self.wrong_type(field, "a text", node);
            return None;
        };
        if !is_name(text) {
            self.report(K::BadText { field: field.to_owned() }, &node.span);
            return None;
        }
        Some(text)
    }

    fn word<'n>(&mut self, node: &'n Node<'_>, field: &str, known: &[&'static str]) -> Option<&'n str> {
        let text = self.text(node, field)?;
        if known.contains(&text) {
            return Some(text);
        }
        let (field, value) = (field.to_owned(), shown(text));
        self.report(K::NotOneOf { field, value, known: known.to_vec() }, &node.span);
        None
    }

    fn name_of(&mut self, what: &'static str, node: &Node<'_>, wanted: &str) {
        if let Some(found) = self.text(node, &format!("`{what}`"))
            && found != wanted
        {
            let (found, wanted) = (shown(found), wanted.to_owned());
            self.report(K::Other { what, found, wanted }, &node.span);
        }
    }
}

fn is_name(text: &str) -> bool {
    (1..=MAX_TEXT).contains(&text.chars().count()) && !text.contains(char::is_control)
}
