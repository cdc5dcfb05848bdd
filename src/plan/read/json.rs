//! JSON with places: every value knows the bytes it was written in, so that a mistake in it can be pointed at. Stricter than
//! most readers: a key twice in one object is a mistake, whatever either of them says.

use crate::manifest::error::shown;
use std::{borrow::Cow, ops::Range};

/// Values inside values; a plan has four levels.
const MAX_DEPTH: usize = 32;

#[derive(Debug, PartialEq)]
pub struct Node<'a> {
    pub span: Range<usize>,
    pub value: Value<'a>,
}

#[derive(Debug, PartialEq)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    /// As it is written.
    Number(&'a str),
    Text(Cow<'a, str>),
    List(Vec<Node<'a>>),
    Object(Vec<Member<'a>>),
}

#[derive(Debug, PartialEq)]
pub struct Member<'a> {
    pub key: Cow<'a, str>,
    /// Of the key, quotes included.
    pub at: Range<usize>,
    pub node: Node<'a>,
}

impl Value<'_> {
    /// What a person calls it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

/// The text is not JSON: what was found where something else was expected.
#[derive(Debug, PartialEq)]
pub struct SyntaxError {
    pub span: Range<usize>,
    pub message: String,
}

/// The one value that `text` consists of.
pub fn parse(text: &str) -> Result<Node<'_>, SyntaxError> {
    let mut parser = Parser { text, at: 0, depth: 0 };
    let node = parser.node()?;
    parser.space();
    if parser.at < text.len() {
        return Err(parser.expected("the end of the file"));
    }
    Ok(node)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// The letters and digits at the place, or one character, or nothing at the end.
    fn token(&self) -> Range<usize> {
        let rest = &self.text[self.at..];
        let word = rest.find(|it: char| !it.is_alphanumeric() && !matches!(it, '_' | '-' | '+' | '.'));
        let length = match word.unwrap_or(rest.len()) {
            0 => rest.chars().next().map_or(0, char::len_utf8),
            length => length,
        };
        self.at..self.at + length
    }

    fn expected(&self, what: &str) -> SyntaxError {
        let span = self.token();
        let found = match &self.text[span.clone()] {
            "" => "the file ends".to_owned(),
            token => format!("this is `{}`", shown(token)),
        };
        SyntaxError { span, message: format!("{what} is expected, {found}") }
    }

    fn node(&mut self) -> Result<Node<'a>, SyntaxError> {
        self.space();
        let start = self.at;
        let value = match self.peek() {
            Some(b'{') => self.nested(Self::object)?,
            Some(b'[') => self.nested(Self::list)?,
            Some(b'"') => Value::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            _ => self.word()?,
        };
        Ok(Node { span: start..self.at, value })
    }

    fn nested(&mut self, inner: fn(&mut Self) -> Result<Value<'a>, SyntaxError>) -> Result<Value<'a>, SyntaxError> {
        if self.depth == MAX_DEPTH {
            let message = format!("nested more than {MAX_DEPTH} levels deep");
            return Err(SyntaxError { span: self.token(), message });
        }
        self.depth += 1;
        self.at += 1; // the bracket
        let value = inner(self)?;
        self.depth -= 1;
        Ok(value)
    }

    fn object(&mut self) -> Result<Value<'a>, SyntaxError> {
        let mut members: Vec<Member<'a>> = Vec::new();
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(members));
        }
        loop {
            self.space();
            let start = self.at;
            if self.peek() != Some(b'"') {
                return Err(self.expected("a key in quotes"));
            }
            let key = self.string()?;
            let at = start..self.at;
            if members.iter().any(|it| it.key == key) {
                let message = format!("the key `{}` is given twice", shown(&key));
                return Err(SyntaxError { span: at, message });
            }
            self.space();
            if self.peek() != Some(b':') {
                return Err(self.expected("`:`"));
            }
            self.at += 1;
            members.push(Member { key, at, node: self.node()? });
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return Err(self.expected("`,` or `}`")),
            }
        }
        self.at += 1;
        Ok(Value::Object(members))
    }

    fn list(&mut self) -> Result<Value<'a>, SyntaxError> {
        let mut items = Vec::new();
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::List(items));
        }
        loop {
            items.push(self.node()?);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return Err(self.expected("`,` or `]`")),
            }
        }
        self.at += 1;
        Ok(Value::List(items))
    }

    fn word(&mut self) -> Result<Value<'a>, SyntaxError> {
        let span = self.token();
        let value = match &self.text[span.clone()] {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            "null" => Value::Null,
            _ => return Err(self.expected("a JSON value")),
        };
        self.at = span.end;
        Ok(value)
    }

    fn number(&mut self) -> Result<Value<'a>, SyntaxError> {
        let span = self.token();
        let text = &self.text[span.clone()];
        // serde_json knows exactly what a number is; `1e999` is one that no float holds, and is for the range check to refuse.
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        let good = serde_json::from_str::<serde::de::IgnoredAny>(mantissa).is_ok()
            && !exponent.is_empty()
            && exponent.bytes().all(|it| it.is_ascii_digit());
        if !good {
            return Err(self.expected("a number"));
        }
        self.at = span.end;
        Ok(Value::Number(text))
    }

    fn string(&mut self) -> Result<Cow<'a, str>, SyntaxError> {
        let start = self.at;
        let bytes = self.text.as_bytes();
        let mut end = start + 1;
        loop {
            match bytes.get(end) {
                Some(b'"') => break,
                Some(b'\\') => end += 2,
                Some(b'\n') | None => {
                    let message = "the text that begins here has no closing quote".to_owned();
                    return Err(SyntaxError { span: start..start + 1, message });
                }
                Some(_) => end += 1,
            }
        }
        self.at = end + 1;
        let quoted = &self.text[start..self.at];
        match serde_json::from_str::<String>(quoted) {
            Ok(text) if text.len() + 2 == quoted.len() => Ok(Cow::Borrowed(&quoted[1..quoted.len() - 1])),
            Ok(text) => Ok(Cow::Owned(text)),
            Err(_) => Err(SyntaxError {
                span: start..self.at,
                message: "this text has a control character or an escape that JSON does not have".to_owned(),
            }),
        }
    }
}

/// The number that the outermost object's `key` has, and where it is written, found without understanding the rest of the file:
/// what the file says of itself counts even where it is broken, or not of this kforge's making.
pub fn outer_number<'a>(bytes: &'a [u8], key: &str) -> Option<(&'a str, Range<usize>)> {
    let (mut at, mut depth) = (0, 0usize);
    let space = |mut at: usize| {
        while bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
            at += 1;
        }
        at
    };
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                let start = at + 1;
                at = start;
                while bytes.get(at).is_some_and(|it| *it != b'"' && *it != b'\n') {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                let colon = space(at + 1);
                if depth == 1 && bytes.get(start..at) == Some(key.as_bytes()) && bytes.get(colon) == Some(&b':') {
                    let start = space(colon + 1);
                    let is_part = |it: &&u8| it.is_ascii_alphanumeric() || matches!(it, b'.' | b'+' | b'-');
                    let end = start + bytes[start.min(bytes.len())..].iter().take_while(is_part).count();
                    return Some((std::str::from_utf8(bytes.get(start..end)?).ok()?, start..end));
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(text: &str) -> (Range<usize>, String) {
        let SyntaxError { span, message } = parse(text).unwrap_err();
        (span, message)
    }

    #[test]
    fn values_know_where_they_are() {
        let text = r#" {"a": -1.5e3, "b\u0021": [1, {"c": null}], "d": true} "#;
        let node = parse(text).unwrap();
        let Value::Object(members) = &node.value else { panic!("{node:?}") };
        assert_eq!((members[0].at.clone(), &members[0].node.value), (2..5, &Value::Number("-1.5e3")));
        assert_eq!((&*members[1].key, members[1].node.value.kind()), ("b!", "a list"));
        assert_eq!(&text[members[2].node.span.clone()], "true");
    }

    #[test]
    fn what_is_not_json_is_named_at_its_place() {
        assert_eq!(message("{\"a\": NaN}"), (6..9, "a JSON value is expected, this is `NaN`".to_owned()));
        assert_eq!(message("{\"a\": -Infinity}").1, "a number is expected, this is `-Infinity`");
        assert_eq!(message("{\"a\": 01}").1, "a number is expected, this is `01`");
        assert_eq!(message("{\"a\": 1").1, "`,` or `}` is expected, the file ends");
        assert_eq!(message("").1, "a JSON value is expected, the file ends");
        assert_eq!(message("{} {}").1, "the end of the file is expected, this is `{`");
        assert_eq!(message("{\"a\": 1, \"a\": 2}"), (9..12, "the key `a` is given twice".to_owned()));
        assert_eq!(message("{a: 1}").1, "a key in quotes is expected, this is `a`");
        assert_eq!(message("[\"a\n\"]").1, "the text that begins here has no closing quote");
        assert_eq!(message(&"[".repeat(100)).1, "nested more than 32 levels deep");
        assert_eq!(message("\"\\q\"").0, 0..4);
        assert_eq!(message("\u{1b}").1, "a JSON value is expected, this is `\\u{1b}`");
    }

    #[test]
    fn a_number_of_the_outermost_object_is_found_in_a_broken_file() {
        let found = |text: &str| outer_number(text.as_bytes(), "version").map(|it| it.0.to_owned());
        assert_eq!(found("{\"x\": NaN, \"y\": {\"version\": 3}, \"version\" : 9, }").as_deref(), Some("9"));
        assert_eq!(found("{\"version\": 1e3").as_deref(), Some("1e3"));
        assert_eq!(found("{\"x\": \"version\": 2}"), Some("2".to_owned()));
        assert_eq!(found("{\"x\": {\"version\": 2}}"), None);
        assert_eq!(outer_number(b"{\"\xff\": 1, \"version\": 7}", "version").map(|it| it.0), Some("7"));
        assert_eq!(found("{\"version\":"), Some(String::new()));
        assert_eq!(found("{\"a\\"), None);
    }

    proptest! {
        #![proptest_config(crate::testing::cases(256))]
        #[test]
        fn no_text_makes_it_panic(text in "[{}\\[\\]\",:a\\\\\u{e9}0-9eE.+ \n-]{0,40}") {
            let parsed = parse(&text);
            outer_number(text.as_bytes(), "a");
            // What it takes is JSON (not the other way round: keys given twice).
            if parsed.is_ok() && !text.contains(['e', 'E']) {
                prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok(), "{}", text);
            }
        }
    }
}
