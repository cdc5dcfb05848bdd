//! What can be wrong with a project: one variant for each kind of mistake, each knowing its message, its label and the way
//! out, so that the terminal, the JSON and the tests read the same type. A [`Problem`] adds where it is.

use super::schema::{MAX_ELEMENTS, MAX_LIST, MAX_NAME};
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};
use std::{
    fmt,
    ops::Range,
    sync::{Arc, OnceLock},
};

/// Bytes of the largest file that is read.
pub const MAX_FILE: u64 = 4 << 20;

/// After this many the rest is counted, not shown: a file of garbage has thousands.
pub(super) const SHOWN: usize = 50;

/// A line longer than this is not shown; the position is given in numbers instead.
const MAX_LINE: usize = 1000;

/// The kind of a mistake, with what it takes to explain it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ProblemKind {
    #[error("there is no `kernelforge.toml` in {folder}")]
    NoProject { folder: String },
    #[error("`{path}` cannot be read: {reason}")]
    Unreadable { path: String, reason: String },
    #[error("`{path}` has {} MiB; a manifest has at most {} MiB", mebibytes(*bytes), MAX_FILE >> 20)]
    TooLarge { path: String, bytes: u64 },
    #[error("`{path}` is not UTF-8: the byte 0x{byte:02x} at offset {offset} (line {line}) does not belong there")]
    NotUtf8 { path: String, offset: usize, line: usize, byte: u8 },
    #[error("this is not TOML: {message}")]
    Syntax { message: String },

    #[error("`{pattern}` matches no file")]
    NothingMatches { pattern: String },
    #[error("`{pattern}` is not a file pattern: {reason}")]
    BadPattern { pattern: String, reason: String },
    #[error("`{key}` is not a pattern: {reason}")]
    BadGlob { key: String, reason: String },
    #[error("`{path}` is outside the project")]
    OutsideProject { path: String, resolved: Option<String> },
    #[error("this is no regression corpus: {message}")]
    NoCorpus { message: String },
    #[error("this corpus has version {version}: it comes from a newer kforge")]
    CorpusVersion { version: u32 },
    #[error("`kernelforge.toml` has no `[project]` table")]
    NoProjectTable,
    #[error("the project declares no block")]
    NoBlocks,

    #[error("{place} does not take the key `{key}`")]
    UnknownKey { place: String, key: String, known: Vec<&'static str> },
    #[error("no schedule has a knob `{knob}`")]
    UnknownKnob { knob: String, known: Vec<String> },
    #[error("a block of kind `{kind}` does not take the key `{key}`")]
    KeyOfOtherKind { kind: &'static str, key: String, known: Vec<&'static str> },
    #[error("a target of the backend `{backend}` does not take the key `{key}`")]
    KeyOfOtherBackend { backend: &'static str, key: &'static str, owner: &'static str },
    #[error("`{path}` replaces no built-in shader template")]
    NoTemplate { path: String, known: Vec<&'static str> },
    #[error("`[{table}]` belongs in `kernelforge.toml`")]
    ProjectTable { table: String },
    #[error("{place} lacks {}", list(missing))]
    Missing { place: String, missing: Vec<&'static str> },
    #[error("`{key}` must be {expected}, not {found}")]
    WrongType { key: String, expected: &'static str, found: &'static str },
    #[error("`{key}` must be {range}, not {value}")]
    OutOfRange { key: String, value: String, range: String },
    #[error("`{key}` must be a number of bytes with a unit, not `{value}`")]
    NotASize { key: String, value: String },
    #[error("`{key}` is an empty list")]
    EmptyList { key: String, needs: &'static str },
    #[error("`{key}` has {values} values; a list has at most {MAX_LIST}")]
    LongList { key: String, values: usize },
    #[error("`{key}` has the value {value} twice")]
    Repeated { key: String, value: String },
    #[error("`{value}` is not {what}")]
    NotOneOf { what: &'static str, value: String, known: Vec<String>, declared_by: Option<&'static str> },
    #[error("`{key}` must be a time with a unit, not `{value}`")]
    NotATime { key: String, value: String },
    #[error("`{key}` is empty")]
    NoText { key: String },
    #[error("a manifest takes no secret: `{key}`")]
    SecretInManifest { key: String },
    #[error("`{name}` cannot be the name of a {what}")]
    BadName { what: &'static str, name: String },

    #[error("{heads} heads do not divide a d-model of {d_model}")]
    HeadsDoNotDivide { heads: usize, d_model: usize },
    #[error("{kv_heads} key/value heads do not divide {heads} heads")]
    KvHeadsDoNotDivide { kv_heads: usize, heads: usize },
    #[error("a rotary embedding needs an even head-dim, not {head_dim}")]
    OddHeadDim { head_dim: usize, derived: bool },
    #[error("`bf16` cannot be stored on `{target}`: WGSL, which GPU kernels are written in, has no such type")]
    NoBrainOnGpu { target: String },
    #[error("the tensors of `{instance}` have {elements} elements; {MAX_ELEMENTS} is the limit")]
    TooManyElements { instance: String, elements: u128 },
    #[error("block `{name}` is declared twice")]
    DuplicateBlock { name: String },
    #[error("the key `{key}` is given twice")]
    DuplicateKey { key: String },
    #[error("two block instances have the name `{name}`")]
    DuplicateInstance { name: String, declared: String },
}

use ProblemKind as K;

impl ProblemKind {
    /// The stable name that scripts can match.
    pub const fn code(&self) -> &'static str {
        match self {
            K::NoProject { .. } => "manifest::no-project",
            K::Unreadable { .. } => "manifest::unreadable",
            K::TooLarge { .. } => "manifest::too-large",
            K::NotUtf8 { .. } => "manifest::not-utf8",
            K::Syntax { .. } => "manifest::syntax",
            K::NothingMatches { .. } => "manifest::nothing-matches",
            K::BadPattern { .. } | K::BadGlob { .. } => "manifest::bad-pattern",
            K::OutsideProject { .. } => "manifest::outside-project",
            K::NoCorpus { .. } => "manifest::no-corpus",
            K::CorpusVersion { .. } => "manifest::corpus-version",
            K::NoProjectTable => "manifest::no-project-table",
            K::NoBlocks => "manifest::no-blocks",
            K::UnknownKey { .. } => "manifest::unknown-key",
            K::UnknownKnob { .. } => "manifest::unknown-knob",
            K::KeyOfOtherKind { .. } => "manifest::key-of-other-kind",
            K::KeyOfOtherBackend { .. } => "manifest::key-of-other-backend",
            K::NoTemplate { .. } => "manifest::no-template",
            K::ProjectTable { .. } => "manifest::project-table",
            K::Missing { .. } => "manifest::missing-key",
            K::WrongType { .. } => "manifest::wrong-type",
            K::OutOfRange { .. } => "manifest::out-of-range",
            K::NotASize { .. } => "manifest::not-a-size",
            K::EmptyList { .. } => "manifest::empty-list",
            K::LongList { .. } => "manifest::long-list",
            K::Repeated { .. } => "manifest::repeated-value",
            K::NotOneOf { .. } => "manifest::unknown-name",
            K::NotATime { .. } => "manifest::not-a-time",
            K::NoText { .. } => "manifest::no-text",
            K::SecretInManifest { .. } => "manifest::secret",
            K::BadName { .. } => "manifest::bad-name",
            K::HeadsDoNotDivide { .. } => "manifest::heads",
            K::KvHeadsDoNotDivide { .. } => "manifest::kv-heads",
            K::OddHeadDim { .. } => "manifest::odd-head-dim",
            K::NoBrainOnGpu { .. } => "manifest::bf16-on-gpu",
            K::TooManyElements { .. } => "manifest::too-many-elements",
            K::DuplicateBlock { .. } => "manifest::duplicate-block",
            K::DuplicateKey { .. } => "manifest::duplicate-key",
            K::DuplicateInstance { .. } => "manifest::duplicate-instance",
        }
    }

    /// What is written beside the underlined text.
    fn label(&self) -> String {
        match self {
            K::UnknownKey { .. } => "unknown key".to_owned(),
            K::UnknownKnob { .. } => "unknown knob".to_owned(),
            K::KeyOfOtherKind { kind, .. } => format!("not a key of `{kind}`"),
            K::KeyOfOtherBackend { owner, .. } => format!("a key of `{owner}`"),
            K::Missing { .. } => "this table".to_owned(),
            K::WrongType { found, .. } => found.to_string(),
            K::OutOfRange { .. } | K::LongList { .. } => "out of range".to_owned(),
            K::NotASize { .. } => "not a size".to_owned(),
            K::EmptyList { .. } => "empty".to_owned(),
            K::NotOneOf { .. } => "unknown name".to_owned(),
            K::NotATime { .. } => "not a time".to_owned(),
            K::NoText { .. } => "empty".to_owned(),
            K::SecretInManifest { .. } => "a secret".to_owned(),
            K::BadName { .. } => "not a name".to_owned(),
            K::NothingMatches { .. } => "no file".to_owned(),
            K::OutsideProject { .. } => "outside".to_owned(),
            K::HeadsDoNotDivide { d_model, heads } => format!("{d_model} / {heads} leaves {}", d_model % heads),
            K::KvHeadsDoNotDivide { heads, kv_heads } => format!("{heads} / {kv_heads} leaves {}", heads % kv_heads),
            K::OddHeadDim { derived: true, head_dim } => format!("d-model / heads is {head_dim}"),
            K::TooManyElements { .. } => "this block".to_owned(),
            K::DuplicateBlock { .. } | K::DuplicateKey { .. } | K::DuplicateInstance { .. } | K::Repeated { .. } => {
                "again here".to_owned()
            }
            K::TooLarge { .. } | K::NotUtf8 { .. } | K::Unreadable { .. } => "the file that this names".to_owned(),
            _ => "here".to_owned(),
        }
    }

    /// What to do about it.
    fn help(&self) -> Option<String> {
        Some(match self {
            K::NoProject { .. } => "`kforge init` makes one".to_owned(),
            K::Unreadable { .. } | K::BadPattern { .. } | K::BadGlob { .. } => return None,
            K::TooLarge { .. } => "generated content belongs elsewhere: a manifest only declares blocks".to_owned(),
            K::NotUtf8 { .. } => "save the file as UTF-8".to_owned(),
            K::Syntax { .. } => "the syntax is described at https://toml.io".to_owned(),
            K::NothingMatches { .. } => {
                "patterns are relative to the project; `*` stays in one folder, `**` does not".to_owned()
            }
            K::OutsideProject { resolved: Some(resolved), .. } => {
                format!("it is a link to {resolved}; copy what it needs into the project")
            }
            K::OutsideProject { .. } => "use a path relative to the project, without `..`".to_owned(),
            K::NoCorpus { .. } => {
                "`kforge mutate` writes it; a file that it did not write belongs elsewhere".to_owned()
            }
            K::CorpusVersion { .. } => {
                "update kforge, or remove the file and let `kforge mutate` write it anew".to_owned()
            }
            K::NoProjectTable => "add a `[project]` table with a `name`".to_owned(),
            K::NoBlocks => {
                "add a `[block.NAME]` here, or name the files that have some: workloads = [\"workloads/*.toml\"]"
                    .to_owned()
            }
            K::UnknownKey { key, known, .. } | K::KeyOfOtherKind { key, known, .. } => suggest(key, known, "its keys"),
            K::UnknownKnob { knob, known } => {
                let known: Vec<_> = known.iter().map(String::as_str).collect();
                let nearest = nearest(knob, &known).map_or_else(String::new, |it| format!("did you mean `{it}`? "));
                let short: Vec<_> = known.into_iter().filter(|it| !it.contains('.')).collect();
                format!(
                    "{nearest}knobs, those of an MLP's products with `up.` or `down.` before them: {}",
                    list(&short)
                )
            }
            K::KeyOfOtherBackend { backend, .. } => {
                let others = super::schema::BACKEND_KEYS.iter().filter(|it| it.1 == *backend);
                let keys: Vec<_> = ["backend"].into_iter().chain(others.map(|it| it.0)).collect();
                format!("its keys: {}", list(&keys))
            }
            K::NoTemplate { path, known } => {
                let name = path.rsplit('/').next().unwrap_or(path);
                suggest(name, known, "the templates that a project may replace")
            }
            K::ProjectTable { .. } => "a workload file has `[block.NAME]` tables only".to_owned(),
            K::Missing { .. } => format!("add {}", self.missing_lines()?),
            K::WrongType { .. } => return None,
            K::OutOfRange { .. } | K::LongList { .. } => return None,
            K::NotASize { .. } => "sizes are written like `500 MB` or `20 GiB`".to_owned(),
            K::EmptyList { needs, .. } => needs.to_string(),
            K::NotOneOf { value, known, declared_by, .. } => {
                let known: Vec<_> = known.iter().map(String::as_str).collect();
                let suggestion = suggest(value, &known, "known");
                match declared_by {
                    Some(table) => {
                        format!("{suggestion}; others are declared as `[{table}.{value}]` in kernelforge.toml")
                    }
                    None => suggestion,
                }
            }
            K::NotATime { .. } => "times are written like `500ms`, `20s` or `5m`".to_owned(),
            K::NoText { .. } => "remove the key, or give it a value".to_owned(),
            K::SecretInManifest { .. } => {
                "whoever reads the file would have it; put it into the variable KERNELFORGE_LLM_API_KEY".to_owned()
            }
            K::BadName { .. } => format!(
                "a name has lower-case letters, digits and `-`, begins with a letter or digit, and has at most {MAX_NAME} characters"
            ),
            K::HeadsDoNotDivide { .. } => {
                "every head gets d-model / heads columns, unless `head-dim` says how many".to_owned()
            }
            K::KvHeadsDoNotDivide { .. } => {
                "query heads share key/value heads in groups of equal size: heads / kv-heads".to_owned()
            }
            K::OddHeadDim { .. } => "it turns pairs of columns; `rope-theta = 0` means none".to_owned(),
            K::NoBrainOnGpu { .. } => {
                "give the block `targets = [...]` of CPUs only, or another dtype: `f16` is stored on both".to_owned()
            }
            K::TooManyElements { .. } => "make the block smaller, or split it into several".to_owned(),
            K::DuplicateBlock { .. } => "rename one of them".to_owned(),
            K::DuplicateKey { .. } | K::Repeated { .. } => "remove one of them".to_owned(),
            K::DuplicateInstance { declared, .. } => format!(
                "a list makes one instance of `{declared}` for each value, named after the value: rename one of the blocks"
            ),
        })
    }

    fn missing_lines(&self) -> Option<String> {
        let K::Missing { missing, .. } = self else { return None };
        Some(missing.iter().map(|it| format!("`{it} = ...`")).collect::<Vec<_>>().join(", "))
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

pub(crate) fn list<S: AsRef<str>>(names: &[S]) -> String {
    names.iter().map(|it| format!("`{}`", it.as_ref())).collect::<Vec<_>>().join(", ")
}

/// The nearest known name if it is near, and in any case all of them.
pub(crate) fn suggest(name: &str, known: &[&str], title: &str) -> String {
    let all = format!("{title}: {}", list(known));
    match nearest(name, known) {
        Some(nearest) => format!("did you mean `{nearest}`? {all}"),
        None => all,
    }
}

/// The known name that fewest edits reach, if they are few for its length.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let name: String = name.chars().take(MAX_NAME).collect();
    let distance = |it: &&str| strsim::damerau_levenshtein(&name, it);
    let best = known.iter().copied().min_by_key(distance)?;
    (distance(&best) <= 1 + best.len() / 4).then_some(best)
}

/// Text of somebody's file as it may be shown: no control characters (a terminal would obey them), not endless.
pub(crate) fn shown(text: &str) -> String {
    let short: String = text
        .chars()
        .take(60)
        .flat_map(|it| if it.is_control() { it.escape_default().collect::<Vec<_>>() } else { vec![it] })
        .collect();
    if text.chars().nth(60).is_some() { format!("{short}...") } else { short }
}

/// A file that was read: what spans point into.
#[derive(Debug)]
pub struct SourceFile {
    /// Relative to the project, with `/`.
    pub path: String,
    pub text: String,
    /// Where lines begin. Made on first use, as is the next one: most loads need neither.
    lines: OnceLock<Vec<usize>>,
    /// The text as it may be shown, byte for byte as long as `text`, so that spans fit.
    printable: OnceLock<NamedSource<String>>,
}

impl SourceFile {
    pub fn new(path: String, text: String) -> Self {
        Self { path, text, lines: OnceLock::new(), printable: OnceLock::new() }
    }

    fn lines(&self) -> &[usize] {
        let ends = || self.text.bytes().enumerate().filter(|it| it.1 == b'\n');
        self.lines.get_or_init(|| std::iter::once(0).chain(ends().map(|it| it.0 + 1)).collect())
    }

    /// 1-based line and column (in characters) of a byte.
    pub fn position(&self, offset: usize) -> (u32, u32) {
        let line = self.lines().partition_point(|it| *it <= offset);
        let start = self.lines().get(line.saturating_sub(1)).copied().unwrap_or_default();
        let column = self.text.get(start..offset).unwrap_or_default().chars().count() + 1;
        (line as u32, column as u32)
    }

    /// The source around a place, unless a line there is too long to show.
    pub fn around(&self, span: &Range<usize>) -> Option<&NamedSource<String>> {
        let line_of = |offset: usize| self.lines().partition_point(|it| *it <= offset);
        let (first, last) = (line_of(span.start).saturating_sub(2), line_of(span.end) + 1);
        let ends = self.lines().iter().copied().chain([self.text.len()]).take(last + 1).skip(first);
        let starts = self.lines().iter().skip(first);
        if starts.zip(ends.skip(1)).any(|(start, end)| end - start > MAX_LINE) {
            return None;
        }
        let visible = |it: char| match it {
            '\n' | '\r' | '\t' => it.to_string(),
            _ if it.is_control() => "?".repeat(it.len_utf8()),
            _ => it.to_string(),
        };
        Some(self.printable.get_or_init(|| NamedSource::new(&self.path, self.text.chars().map(visible).collect())))
    }
}

/// Where something is.
#[derive(Debug, Clone)]
pub struct At {
    pub file: Arc<SourceFile>,
    pub span: Range<usize>,
}

impl At {
    pub fn new(file: &Arc<SourceFile>, span: Range<usize>) -> Self {
        Self { file: Arc::clone(file), span }
    }

    fn source(&self) -> Option<&dyn SourceCode> {
        self.file.around(&self.span).map(|it| it as &dyn SourceCode)
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, column) = self.file.position(self.span.start);
        write!(f, "{}:{line}:{column}", self.file.path)
    }
}

/// One mistake at one place.
#[derive(Debug)]
pub struct Problem {
    pub kind: ProblemKind,
    /// Nowhere, where there is no file to point into.
    pub at: Option<At>,
    /// The other place that it takes to see the mistake, and what to write there.
    other: Option<(At, String)>,
    related: Vec<Elsewhere>,
}

impl Problem {
    pub fn new(kind: ProblemKind, at: Option<At>) -> Self {
        Self { kind, at, other: None, related: Vec::new() }
    }

    pub fn at(kind: ProblemKind, file: &Arc<SourceFile>, span: Range<usize>) -> Self {
        Self::new(kind, Some(At::new(file, span)))
    }

    /// Shows a second place as well.
    pub fn and(mut self, other: At, label: impl Into<String>) -> Self {
        let label = label.into();
        if self.at.as_ref().is_some_and(|it| Arc::ptr_eq(&it.file, &other.file)) {
            self.other = Some((other, label));
        } else {
            self.related.push(Elsewhere { label, at: other });
        }
        self
    }

    fn key(&self) -> (&str, usize) {
        self.at.as_ref().map_or(("", 0), |it| (it.file.path.as_str(), it.span.start))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        match &self.at {
            Some(at) if at.source().is_none() => write!(f, " ({at})"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}

impl Diagnostic for Problem {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.kind.code()))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.kind.help().map(|it| Box::new(it) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.at.as_ref()?.source()
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let at = self.at.as_ref()?;
        let first = LabeledSpan::new_primary_with_span(Some(self.kind.label()), at.span.clone());
        let other =
            self.other.iter().map(|(at, label)| LabeledSpan::new_with_span(Some(label.clone()), at.span.clone()));
        Some(Box::new(std::iter::once(first).chain(other)))
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        let related = self.related.iter().map(|it| it as &dyn Diagnostic);
        (!self.related.is_empty()).then(|| Box::new(related) as Box<dyn Iterator<Item = &dyn Diagnostic>>)
    }
}

/// The second place of a problem, in another file.
#[derive(Debug, thiserror::Error)]
#[error("{label}: {at}")]
struct Elsewhere {
    label: String,
    at: At,
}

impl Diagnostic for Elsewhere {
    fn severity(&self) -> Option<miette::Severity> {
        Some(miette::Severity::Advice)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.at.source()
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let label = LabeledSpan::new_primary_with_span(Some(self.label.clone()), self.at.span.clone());
        Some(Box::new(std::iter::once(label)))
    }
}

/// Everything that is wrong with a project, by file and position; never empty.
#[derive(Debug)]
pub struct ProjectErrors {
    problems: Vec<Problem>,
}

impl ProjectErrors {
    /// Sorts `problems`, which must not be empty.
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        debug_assert!(!problems.is_empty());
        problems.sort_by(|a, b| a.key().cmp(&b.key()));
        Self { problems }
    }

    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ProjectErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.len() {
            1 => f.write_str("1 problem in the project"),
            count => write!(f, "{count} problems in the project"),
        }
    }
}

impl std::error::Error for ProjectErrors {}

/// The whole message for a terminal `width` characters wide.
pub fn render(errors: &ProjectErrors, color: bool, width: usize) -> String {
    let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let handler = GraphicalReportHandler::new_themed(theme).with_width(width).with_links(false);
    let mut text = String::new();
    for problem in errors.problems.iter().take(SHOWN) {
        // A String takes whatever is written to it; what the handler refuses would be a span outside its source.
        if handler.render_report(&mut text, problem).is_err() {
            text.push_str(&format!("  x {problem}\n"));
        }
        text.push('\n');
    }
    if errors.problems.len() > SHOWN {
        text.push_str(&format!("({} more are not shown)\n", errors.problems.len() - SHOWN));
    }
    text.push_str(&format!("{errors}\n"));
    text
}
