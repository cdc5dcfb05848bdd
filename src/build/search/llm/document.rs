//! JSON in a text that somebody else wrote: found among prose, and with every key once.

use super::short;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// Places in a text at which JSON may begin that are tried; a text of brackets has a million.
const TRIED: usize = 16;

/// The object with the field `key` that is in `text`: alone, between fences, or among prose. Where no object has the
/// field, the first object.
///
/// # Errors
/// There is none, and the first reason why.
pub fn find(text: &str, key: &str) -> Result<Value, String> {
    let (mut other, mut error) = (None, None);
    for at in places(text) {
        // What comes after the object is not looked at.
        let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Unique>();
        match values.next() {
            Some(Ok(Unique(value))) if value.get(key).is_some() => return Ok(value),
            Some(Ok(Unique(value))) => other = other.or(Some(value)),
            Some(Err(it)) => error = error.or(Some(it.to_string())),
            None => {}
        }
    }
    let broken = text.contains(&format!("\"{key}\""));
    match (other, error) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !broken => Ok(value),
        (_, Some(error)) => Err(format!("the JSON in the answer is broken: {}", short(&error))),
        (None, None) => Err("there is no JSON object in the answer".to_owned()),
    }
}

/// After fences first, then at brackets.
fn places(text: &str) -> impl Iterator<Item = usize> + '_ {
    let fenced = text.match_indices("```").take(TRIED).filter_map(|(at, fence)| {
        let rest = &text[at + fence.len()..];
        // A word may say which language it is.
        let start = rest.find(|it: char| !it.is_alphanumeric())?;
        let space = rest[start..].find(|it: char| !it.is_whitespace())?;
        rest[start + space..].starts_with('{').then_some(at + fence.len() + start + space)
    });
    fenced.chain(text.match_indices('{').map(|it| it.0).take(TRIED))
}

/// A value in which no object has a key twice: two readers could take it for two different things.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, it: bool) -> Result<Value, E> {
        Ok(it.into())
    }

    fn visit_i64<E>(self, it: i64) -> Result<Value, E> {
        Ok(it.into())
    }

    fn visit_u64<E>(self, it: u64) -> Result<Value, E> {
        Ok(it.into())
    }

    fn visit_f64<E>(self, it: f64) -> Result<Value, E> {
        Ok(it.into())
    }

    fn visit_str<E>(self, it: &str) -> Result<Value, E> {
        Ok(it.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Unique(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some((key, Unique(value))) = object.next_entry::<String, Unique>()? {
            if members.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key `{}` is given twice", short(&key))));
            }
            members.insert(key, value);
        }
        Ok(members.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn an_object_is_found_alone_fenced_and_in_prose() {
        let wanted = Ok(json!({ "s": [{ "a": 1 }] }));
        for text in [
            r#"{"s": [{"a": 1}]}"#,
            "```json\n{\"s\": [{\"a\": 1}]}\n```",
            "```\n\n{\"s\": [{\"a\": 1}]}\n``` and more",
            r#"Use {m} and {"a": 2}; I propose {"s": [{"a": 1}]}, which is {fast}."#,
            "```c\nint main() {}\n```\n{\"s\": [{\"a\": 1}]}",
        ] {
            assert_eq!(find(text, "s"), wanted, "{text}");
        }
        assert_eq!(find(r#"first {"a": 2}, then {"b": 2}"#, "s"), Ok(json!({ "a": 2 })));
    }

    #[test]
    fn what_has_no_object_says_why() {
        let why = |text: &str| find(text, "s").unwrap_err();
        assert_eq!(why("I cannot do that."), "there is no JSON object in the answer");
        assert!(why("int main() { return 0; }").contains("broken"));
        assert!(why(r#"{"s": [{"a": 1, "a": 2}]}"#).contains("the key `a` is given twice"));
        assert!(why(&format!("{{\"s\": {}", "[".repeat(1000))).contains("recursion limit"));
        assert!(why(r#"{"s": [{"a": 1e999}]}"#).contains("number out of range"));
        assert!(why(&"{\"s\": ".repeat(100_000)).contains("recursion limit"));
    }

    proptest! {
        #![proptest_config(crate::testing::cases(256))]
        #[test]
        fn no_text_makes_it_panic(text in "[{}\\[\\]\",:s\\\\\u{e9}0-9`\n ]{0,60}") {
            let _ = find(&text, "s");
        }
    }
}
