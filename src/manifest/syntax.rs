//! From a file's text to TOML tables with spans. The parser recovers, so that every slip of a file is reported at once.

use super::error::{At, Problem, ProblemKind, SHOWN, SourceFile, shown};
use std::{ops::Range, sync::Arc};
use toml::{Spanned, de::DeTable};

/// The file's tables; nothing where it is not TOML. What is declared twice is reported and otherwise harmless.
pub fn parse<'a>(file: &'a Arc<SourceFile>, problems: &mut Vec<Problem>) -> Option<Spanned<DeTable<'a>>> {
    let (document, errors) = DeTable::parse_recoverable(&file.text);
    let mut errors: Vec<_> =
        errors.into_iter().map(|it| (it.span().unwrap_or(0..0), it.message().to_owned())).collect();
    errors.sort_by_key(|it| it.0.start);
    let (mut usable, mut last_line, mut repeated_header) = (true, 0, None);
    for (span, message) in errors {
        let (line, _) = file.position(span.start);
        if message != DUPLICATE_KEY {
            usable = false;
            // One slip makes the parser stumble several times on the rest of its line.
            if line != last_line {
                problems.push(Problem::at(ProblemKind::Syntax { message }, file, span));
            }
            last_line = line;
        } else if problems.len() < SHOWN {
            // Looking for the first place would cost time for every one of thousands that nobody sees.
            let header = header_before(&file.text, span.start);
            let of_header = header.is_some_and(|it| !file.text.get(it..span.start).is_some_and(|it| it.contains('\n')));
            // The keys of a table that is there twice are as a rule there twice too.
            if of_header || header.is_none() || header != repeated_header {
                problems.push(duplicate(file, span));
            }
            repeated_header = if of_header { header } else { repeated_header };
        } else {
            problems.push(Problem::at(
                ProblemKind::DuplicateKey { key: shown(file.text.get(span.clone()).unwrap_or_default()) },
                file,
                span,
            ));
        }
    }
    usable.then_some(document)
}

/// The parser's message.
const DUPLICATE_KEY: &str = "duplicate key";

/// Where the line of the table header begins that `offset` is in or below.
fn header_before(text: &str, offset: usize) -> Option<usize> {
    let before = text.get(..offset)?;
    let mut starts = std::iter::once(0).chain(before.match_indices('\n').map(|it| it.0 + 1));
    starts.rfind(|it| text.get(*it..).is_some_and(|it| it.trim_start_matches([' ', '\t']).starts_with('[')))
}

/// What the parser calls a duplicate key, with the place of the first one where a look at the lines before finds it.
fn duplicate(file: &Arc<SourceFile>, span: Range<usize>) -> Problem {
    let text = file.text.as_str();
    let name = text.get(span.clone()).unwrap_or_default();
    let start = text.get(..span.start).and_then(|it| it.rfind('\n')).map_or(0, |it| it + 1);
    let line = text.get(start..).and_then(|it| it.lines().next()).unwrap_or_default();
    let header = line.trim_start().starts_with('[');
    let mut first = None;
    let mut offset = 0;
    for earlier in text.get(..start).unwrap_or_default().split_inclusive('\n') {
        let begins_table = earlier.trim_start().starts_with('[');
        let same = if header { earlier.trim() == line.trim() } else { key_of(earlier) == name };
        if begins_table && !header {
            first = None; // What came before is another table's.
        } else if same && first.is_none() {
            // The same line may be indented differently.
            let indent = |it: &str| it.len() - it.trim_start().len();
            first = Some(offset + indent(earlier) + (span.start - start).saturating_sub(indent(line)));
        }
        offset += earlier.len();
    }
    let kind = if line.trim_start().starts_with("[block.") {
        ProblemKind::DuplicateBlock { name: shown(name) }
    } else {
        ProblemKind::DuplicateKey { key: shown(name) }
    };
    let problem = Problem::at(kind, file, span.clone());
    match first {
        Some(first) => problem.and(At::new(file, first..first + span.len()), "first here"),
        None => problem,
    }
}

/// The key of a line `key = value`.
fn key_of(line: &str) -> &str {
    line.split('=').next().unwrap_or_default().trim()
}
