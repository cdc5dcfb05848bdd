//! Mistakes in a file that somebody hands over, shown as mistakes in a manifest are: the place, the line, the way out.

use crate::manifest::error::SourceFile;
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, SourceCode};
use std::{fmt, ops::Range, sync::Arc};

/// After this many the rest is counted, not shown.
const SHOWN: usize = 50;

#[derive(Debug)]
pub struct Located {
    pub file: Arc<SourceFile>,
    /// None where the mistake is the file as a whole.
    pub span: Option<Range<usize>>,
    pub message: String,
    /// The stable name that scripts can match.
    pub code: &'static str,
    /// What is written beside the underlined text.
    pub label: String,
    pub help: Option<String>,
}

impl Located {
    fn source(&self) -> Option<&dyn SourceCode> {
        self.file.around(self.span.as_ref()?).map(|it| it as &dyn SourceCode)
    }
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.span {
            None => write!(f, " ({})", self.file.path),
            // Its line is too long to be shown.
            Some(span) if self.source().is_none() => {
                let (line, column) = self.file.position(span.start);
                write!(f, " ({}:{line}:{column})", self.file.path)
            }
            Some(_) => Ok(()),
        }
    }
}

impl std::error::Error for Located {}

impl Diagnostic for Located {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.code))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|it| Box::new(it) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source()
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = self.span.clone()?;
        Some(Box::new(std::iter::once(LabeledSpan::new_primary_with_span(Some(self.label.clone()), span))))
    }
}

/// `2 problems in plan.json`.
pub fn count(problems: &[Located]) -> String {
    let file = problems.first().map_or("", |it| it.file.path.as_str());
    match problems.len() {
        1 => format!("1 problem in {file}"),
        count => format!("{count} problems in {file}"),
    }
}

/// The whole message for a terminal `width` characters wide.
pub fn render(problems: &[Located], color: bool, width: usize) -> String {
    let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let handler = GraphicalReportHandler::new_themed(theme).with_width(width).with_links(false);
    let mut text = String::new();
    for problem in problems.iter().take(SHOWN) {
        // A String takes whatever is written to it; what the handler refuses would be a span outside its source.
        if handler.render_report(&mut text, problem).is_err() {
            text.push_str(&format!("  x {problem}\n"));
        }
        text.push('\n');
    }
    if problems.len() > SHOWN {
        text.push_str(&format!("({} more are not shown)\n", problems.len() - SHOWN));
    }
    text + &count(problems) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn located(text: &str, span: Option<Range<usize>>) -> Located {
        let file = Arc::new(SourceFile::new("plan.json".to_owned(), text.to_owned()));
        let (message, label) = ("`mr` must be a whole number".to_owned(), "a text".to_owned());
        Located { file, span, message, code: "plan::wrong-type", label, help: Some("write one".to_owned()) }
    }

    #[test]
    fn a_mistake_is_shown_with_its_place_its_line_and_the_way_out() {
        insta::assert_snapshot!(render(&[located("{\n  \"mr\": \"x\"\n}\n", Some(10..13))], false, 100), @r#"
        plan::wrong-type

          × `mr` must be a whole number
           ╭─[plan.json:2:9]
         1 │ {
         2 │   "mr": "x"
           ·         ─┬─
           ·          ╰── a text
         3 │ }
           ╰────
          help: write one

        1 problem in plan.json
        "#);
    }

    #[test]
    fn a_line_too_long_to_show_and_a_whole_file_are_named_in_words() {
        let long = format!("{{{}\"mr\": \"x\"}}", " ".repeat(2000));
        assert_eq!(located(&long, Some(2007..2010)).to_string(), "`mr` must be a whole number (plan.json:1:2008)");
        assert_eq!(located("", None).to_string(), "`mr` must be a whole number (plan.json)");
    }
}
