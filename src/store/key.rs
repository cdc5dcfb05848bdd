//! The parts that a step's key is made of, by name, so that two keys can be compared part by part.

use crate::digest::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{collections::BTreeMap, fmt, sync::Arc};

/// Named values in name order. Values are text with one form for each value, so equal parts give equal keys.
///
/// Names and values are shared, because the parts of one block go into several steps.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct KeyParts(Vec<(Arc<str>, Arc<str>)>);

impl KeyParts {
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets one part; a part of the same name is replaced.
    pub fn set(&mut self, name: impl Into<Arc<str>>, value: impl Into<Arc<str>>) {
        let (name, value) = (name.into(), value.into());
        match self.0.binary_search_by(|it| it.0.cmp(&name)) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (name, value)),
        }
    }

    /// [`KeyParts::set`] for chains.
    pub fn with(mut self, name: impl Into<Arc<str>>, value: impl fmt::Display) -> Self {
        self.set(name, value.to_string());
        self
    }

    /// Sets one part for every leaf of `value` as serde sees it: `prefix.field.inner-field`, lists as `[a, b]`. Floats are
    /// written in the shortest form that reads back as the same number.
    pub fn set_fields(&mut self, prefix: &str, value: &impl Serialize) {
        // Plain data only: a type that cannot be JSON would be a defect here, and its absence from the key must not be silent.
        let value = serde_json::to_value(value).unwrap_or_else(|error| serde_json::Value::String(error.to_string()));
        self.flatten(prefix, &value);
    }

    fn flatten(&mut self, name: &str, value: &serde_json::Value) {
        match value {
            serde_json::Value::Object(fields) => {
                for (field, value) in fields {
                    let name = if name.is_empty() { field.clone() } else { format!("{name}.{field}") };
                    self.flatten(&name, value);
                }
            }
            leaf => self.set(name, text(leaf)),
        }
    }

    /// Adds all parts of `other`, replacing those of the same name.
    pub fn extend(&mut self, other: &Self) {
        // Both are sorted, and a graph does this for every step: merging is several times faster than inserting.
        let mut merged = Vec::with_capacity(self.0.len() + other.0.len());
        let mut own = std::mem::take(&mut self.0).into_iter().peekable();
        for part in &other.0 {
            while let Some(earlier) = own.next_if(|it| it.0 < part.0) {
                merged.push(earlier);
            }
            own.next_if(|it| it.0 == part.0);
            merged.push(part.clone());
        }
        merged.extend(own);
        self.0 = merged;
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.binary_search_by(|it| (*it.0).cmp(name)).ok().map(|at| &*self.0[at].1)
    }

    /// In name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// The same parts with each name and value replaced by an equal one.
    pub fn map_texts(mut self, mut equal: impl FnMut(Arc<str>) -> Arc<str>) -> Self {
        for part in &mut self.0 {
            *part = (equal(Arc::clone(&part.0)), equal(Arc::clone(&part.1)));
        }
        self.0.shrink_to_fit();
        self
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// BLAKE3 over the sorted parts, each name and value preceded by its length so that no two lists read the same.
    pub fn key(&self) -> Digest {
        Self::key_of(self.iter())
    }

    /// The key of these parts, given in any order, each name once.
    pub fn key_of<'a>(parts: impl Iterator<Item = (&'a str, &'a str)>) -> Digest {
        let mut parts: Vec<_> = parts.collect();
        parts.sort_unstable();
        let mut buffer = Vec::with_capacity(parts.iter().map(|(name, value)| name.len() + value.len() + 16).sum());
        for text in parts.into_iter().flat_map(|(name, value)| [name, value]) {
            buffer.extend_from_slice(&(text.len() as u64).to_le_bytes());
            buffer.extend_from_slice(text.as_bytes());
        }
        Digest::of(&buffer)
    }
}

/// One line for a leaf: strings without quotes, floats as Rust writes them (`1e-5`), everything else as JSON does.
fn text(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(items) => format!("[{}]", items.iter().map(text).collect::<Vec<_>>().join(", ")),
        serde_json::Value::Number(number) if number.is_f64() => format!("{:?}", number.as_f64().unwrap_or(f64::NAN)),
        other => other.to_string(),
    }
}

impl fmt::Debug for KeyParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<N: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(N, V)> for KeyParts {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(parts: I) -> Self {
        let mut all = Self::new();
        for (name, value) in parts {
            all.set(name, value);
        }
        all
    }
}

impl Serialize for KeyParts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for KeyParts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(BTreeMap::<String, String>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(crate::testing::cases(256))]
        #[test]
        fn extending_is_setting_each_part(
            own in proptest::collection::vec(("[a-d]{0,2}", "[0-9]"), 0..9), other in proptest::collection::vec(("[a-d]{0,2}", "[a-z]"), 0..9),
        ) {
            let other: KeyParts = other.into_iter().collect();
            let mut extended: KeyParts = own.into_iter().collect();
            let mut set = extended.clone();
            extended.extend(&other);
            other.iter().for_each(|(name, value)| set.set(name, value));
            prop_assert_eq!(extended, set);
        }
    }

    #[test]
    fn fields_have_one_text_each() {
        let mut parts = KeyParts::new();
        parts.set_fields(
            "it",
            &serde_json::json!({ "eps": 1e-5, "theta": 10000.0, "n": 3, "on": true, "none": null,
            "list": ["a", "b"], "deep": { "er": "x" } }),
        );
        let lines: Vec<_> = parts.iter().map(|(name, value)| format!("{name}={value}")).collect();
        insta::assert_snapshot!(lines.join(" "), @"it.deep.er=x it.eps=1e-5 it.list=[a, b] it.n=3 it.none=null it.on=true it.theta=10000.0");
    }
}
