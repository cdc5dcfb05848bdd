//! MLIR's diagnostics as data. MLIR prints what nobody handles to stderr, which is the tool's channel for crashes; so every
//! call that can emit a diagnostic runs inside [`capture`].

use kernelforge::protocol::{Failure, FailureKind};
use melior::{Context, diagnostic::Diagnostic, ir::Location};
use std::{cell::RefCell, rc::Rc};

/// Runs `action`; if it fails, what MLIR said meanwhile becomes the failure's detail.
pub fn capture<T>(context: &Context, action: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let lines = Rc::new(RefCell::new(Vec::new()));
    let sink = Rc::clone(&lines);
    let handler = context.attach_diagnostic_handler(move |diagnostic| {
        sink.borrow_mut().extend(self::lines(&diagnostic));
        true
    });
    let result = action();
    context.detach_diagnostic_handler(handler);
    result.map_err(|failure| {
        let lines = lines.take();
        if lines.is_empty() { failure } else { adopt(failure, lines) }
    })
}

/// The failure with MLIR's lines as detail, and with the first of them as message where the failure only says that MLIR
/// refused something.
fn adopt(mut failure: Failure, lines: Vec<String>) -> Failure {
    let mut lines = std::iter::once(std::mem::take(&mut failure.detail)).chain(lines).filter(|it| !it.is_empty());
    if failure.message == REFUSED
        && let Some(first) = lines.next()
    {
        failure.message = first;
    }
    failure.detail = lines.collect::<Vec<_>>().join("\n");
    failure
}

const REFUSED: &str = "MLIR refused the module";

/// What to fail with when MLIR itself has already said why.
pub fn refused() -> Failure {
    Failure::new(FailureKind::InvalidIr, REFUSED)
}

/// A diagnostic and its notes, one string each.
fn lines(diagnostic: &Diagnostic<'_>) -> Vec<String> {
    let text = |it: &Diagnostic<'_>| format!("{}: {it}", place(it.location()));
    let notes = (0..diagnostic.note_count()).filter_map(|index| diagnostic.note(index).ok());
    let notes = notes.map(|it| format!("  note: {}", text(&it)));
    std::iter::once(text(diagnostic)).chain(notes).collect()
}

/// `file:line:column` of a location, as compilers print it; `<unknown>` when it has none.
pub fn place(location: Location<'_>) -> String {
    // A dynamic cast by what the location says of itself: only then may its parts be asked for.
    if location.is_file_line_col_range() {
        let file = location.file_line_col_range_filename();
        let file = file.as_string_ref().as_str().unwrap_or("<not UTF-8>").to_owned();
        let (line, column) = (location.file_line_col_range_start_line(), location.file_line_col_range_start_column());
        return format!("{file}:{line}:{column}");
    }
    if location.is_name() {
        return place(location.name_child_location());
    }
    if location.is_call_site() {
        return place(location.call_site_callee());
    }
    if location.is_fused() && location.fused_num_locations() > 0 {
        return place(location.fused_location(0));
    }
    "<unknown>".to_owned()
}
