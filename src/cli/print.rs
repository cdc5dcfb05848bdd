//! How things look on a terminal: colour only where someone sees it, columns, problems.

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use std::{
    env,
    fs::Permissions,
    io::{self, IsTerminal, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

pub const RED: Style = AnsiColor::Red.on_default().bold();
pub const GREEN: Style = AnsiColor::Green.on_default();
pub const YELLOW: Style = AnsiColor::Yellow.on_default();
pub const CYAN: Style = AnsiColor::Cyan.on_default();

/// Whether to colour what goes there (<https://no-color.org>).
pub fn colored(stream: &impl IsTerminal) -> bool {
    let refused = env::var_os("NO_COLOR").is_some_and(|it| !it.is_empty());
    stream.is_terminal() && !refused && env::var_os("TERM").is_none_or(|it| it != "dumb")
}

/// `text`, styled if `color`.
pub fn paint(color: bool, style: Style, text: &str) -> String {
    if color { format!("{style}{text}{style:#}") } else { text.to_owned() }
}

/// Columns of the terminal that stderr is, 100 elsewhere.
pub fn width() -> usize {
    let columns = rustix::termios::tcgetwinsize(io::stderr()).ok().map(|it| usize::from(it.ws_col));
    columns.filter(|it| *it > 0).unwrap_or(100)
}

/// Tells a problem on stderr.
pub fn problem(message: &str, detail: &str, hint: Option<&str>) {
    let color = colored(&io::stderr());
    let mut text = format!("{}: {message}\n", paint(color, RED, "error"));
    for line in detail.lines() {
        text += &format!("  {line}\n");
    }
    if let Some(hint) = hint {
        text += &format!("  {}: {hint}\n", paint(color, CYAN, "hint"));
    }
    err(&text);
}

pub fn warning(message: &str) {
    err(&format!("{}: {message}\n", paint(colored(&io::stderr()), YELLOW, "warning")));
}

/// Writes to stderr. Where a plain `eprint!` would panic because the reader went away, there is nobody to tell.
pub fn err(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Writes to stdout. A reader that went away (`kforge ... | head`) has read what it wanted: that is no failure.
pub fn out(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Replaces the file by rename: a reader sees the old text or the new, nothing between.
pub fn file(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".kforge-").tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.persist(path)?;
    Ok(())
}

pub fn json(value: &impl Serialize) -> io::Result<()> {
    out(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Rows in columns two spaces apart; the first column to the left, the others to the right if `numbers`.
pub fn columns(rows: &[Vec<String>], numbers: bool) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|it| Some(it.get(column)?.chars().count())).max().unwrap_or(0);
    let widths: Vec<_> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cell = |(column, cell): (usize, &String)| {
            let width = widths[column];
            if numbers && column > 0 { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        };
        let cells: Vec<_> = row.iter().enumerate().map(cell).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_aligned_to_the_right_and_names_to_the_left() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let text = columns(&[row(["kernel", "GFLOP/s"]), row(["blocked", "9.5"])], true);
        assert_eq!(text, "kernel   GFLOP/s\nblocked      9.5\n");
    }
}
