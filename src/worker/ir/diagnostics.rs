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
        sink.borrow_mut().push(line(&diagnostic));
        true
    });
    let result = action();
    context.detach_diagnostic_handler(handler);
    result.map_err(|failure| {
        let lines = lines.take();
        if lines.is_empty() { failure } else { adopt(failure, &lines) }
    })
}

/// The failure with MLIR's lines as detail, and with the first of them as message where the failure only says that MLIR
/// refused something.
fn adopt(mut failure: Failure, lines: &[String]) -> Failure {
    if failure.message == REFUSED
        && let Some((first, rest)) = lines.split_first()
    {
        failure.message.clone_from(first);
        failure.detail = rest.join("\n");
    } else {
        let own = std::mem::take(&mut failure.detail);
        failure.detail = [own.as_str()]
            .into_iter()
            .chain(lines.iter().map(String::as_str))
            .filter(|it| !it.is_empty())
            .collect::<Vec<_>>()
            .join("\n");
    }
    failure
}

const REFUSED: &str = "MLIR refused the module";

/// What to fail with when MLIR itself has already said why.
pub fn refused() -> Failure {
    Failure::new(FailureKind::InvalidIr, REFUSED)
}

fn line(diagnostic: &Diagnostic<'_>) -> String {
    let mut text = format!("{}: {diagnostic}", place(diagnostic.location()));
    for index in 0..diagnostic.note_count() {
        if let Ok(note) = diagnostic.note(index) {
            text.push_str(&format!("\n  note: {}: {note}", place(note.location())));
        }
    }
    text
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
