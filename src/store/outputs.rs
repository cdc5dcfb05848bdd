//! What a step made: content digests by output name.

use crate::digest::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    ops::Index,
    sync::{Mutex, PoisonError},
};

/// In name order. A list and not a `BTreeMap`: a build keeps one for each step, most have one or two entries, and 100,000 maps with
/// names of their own took 80 MB, where these take 13.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Outputs(Vec<(Name, Digest)>);

type Name = Cow<'static, str>;

/// All steps of a build together have a dozen different names. Each of the first so many is kept once for all; a file with more
/// than any kforge writes costs no more memory than it has bytes.
const SHARED_NAMES: usize = 64;

fn shared(name: &str) -> Name {
    static NAMES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.iter().find(|it| **it == name) {
        return Cow::Borrowed(known);
    }
    if names.len() >= SHARED_NAMES {
        return Cow::Owned(name.to_owned());
    }
    let name: &'static str = Box::leak(name.into());
    names.push(name);
    Cow::Borrowed(name)
}

impl Outputs {
    pub fn get(&self, name: &str) -> Option<&Digest> {
        self.0.binary_search_by(|it| (*it.0).cmp(name)).ok().map(|at| &self.0[at].1)
    }

    /// Replaces an output of the same name.
    pub fn insert(&mut self, name: &str, digest: Digest) {
        match self.0.binary_search_by(|it| (*it.0).cmp(name)) {
            Ok(at) => self.0[at].1 = digest,
            Err(at) => self.0.insert(at, (shared(name), digest)),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Digest)> {
        self.0.iter().map(|(name, digest)| (&**name, digest))
    }

    /// In the order of their names.
    pub fn values(&self) -> impl Iterator<Item = &Digest> {
        self.0.iter().map(|it| &it.1)
    }

    /// In the order of their names.
    pub fn into_values(self) -> impl Iterator<Item = Digest> {
        self.0.into_iter().map(|it| it.1)
    }

    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<N: AsRef<str>> FromIterator<(N, Digest)> for Outputs {
    fn from_iter<I: IntoIterator<Item = (N, Digest)>>(outputs: I) -> Self {
        let outputs = outputs.into_iter();
        let mut all = Self(Vec::with_capacity(outputs.size_hint().0));
        outputs.for_each(|(name, digest)| all.insert(name.as_ref(), digest));
        all
    }
}

impl<N: AsRef<str>, const COUNT: usize> From<[(N, Digest); COUNT]> for Outputs {
    fn from(outputs: [(N, Digest); COUNT]) -> Self {
        outputs.into_iter().collect()
    }
}

impl Index<&str> for Outputs {
    type Output = Digest;

    /// # Panics
    /// When there is no such output.
    fn index(&self, name: &str) -> &Digest {
        self.get(name).unwrap_or_else(|| panic!("no output `{name}` among {self:?}"))
    }
}

impl fmt::Debug for Outputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for Outputs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Outputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(BTreeMap::<String, Digest>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_map(entries in proptest::collection::vec(("[a-e]{0,2}", any::<u8>()), 0..12)) {
            let digest = |it: u8| Digest::of(&[it]);
            let map: BTreeMap<String, Digest> = entries.iter().map(|(name, it)| (name.clone(), digest(*it))).collect();
            let outputs: Outputs = entries.iter().map(|(name, it)| (name, digest(*it))).collect();
            prop_assert!(outputs.iter().eq(map.iter().map(|(name, it)| (name.as_str(), it))));
            prop_assert_eq!(outputs.len(), map.len());
            for name in ["", "a", "ab", "ea", "f"] {
                prop_assert_eq!(outputs.get(name), map.get(name));
            }
            let text = serde_json::to_string(&outputs).unwrap();
            prop_assert_eq!(&text, &serde_json::to_string(&map).unwrap());
            prop_assert_eq!(serde_json::from_str::<Outputs>(&text).unwrap(), outputs);
        }
    }

    #[test]
    fn more_names_than_are_shared_are_names_all_the_same() {
        let many: Outputs = (0..200).map(|it| (format!("name{it}"), Digest::of(&[it as u8]))).collect();
        assert_eq!(many.len(), 200);
        assert_eq!(many["name150"], Digest::of(&[150]));
    }
}
