//! The regression corpus: cases that once rejected a wrong kernel that no other case rejected. They are replayed first by
//! every verification, with the seed that they had.

use super::Gate;
use serde::{Deserialize, Serialize};

/// The version of a corpus file. A file with a larger one comes from a newer kforge and is refused.
pub const CORPUS_VERSION: u32 = 1;

/// How the results of replayed cases are told from those of the others: what their case begins with.
pub const REPLAYED: &str = "regression case: ";

/// A corpus file: TOML, so that people can read it and git can merge it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Corpus {
    pub version: u32,
    #[serde(default, rename = "case", skip_serializing_if = "Vec::is_empty")]
    pub cases: Vec<Case>,
}

/// One input of one kind of stage under one gate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Case {
    pub gate: Gate,
    /// The kind of stage: `attention`.
    pub op: String,
    /// The gate's name for the input: `peaky`, `one-hot attention`, `rows reversed`.
    pub case: String,
    /// That the verification was given.
    pub seed: u64,
    /// The mutant that it was the only one to reject.
    pub found: String,
}

/// A result that did not pass, as a case that could be replayed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Witness {
    pub gate: Gate,
    pub op: String,
    pub case: String,
}

impl Corpus {
    /// Adds a case unless there is one like it: the same input of the same kind of stage under the same gate. Says whether it was
    /// added.
    pub fn add(&mut self, case: Case) -> bool {
        let known = |it: &Case| (it.gate, &it.op, &it.case) == (case.gate, &case.op, &case.case);
        let new = !self.cases.iter().any(known);
        if new {
            self.version = CORPUS_VERSION;
            self.cases.push(case);
        }
        new
    }

    /// The file's text.
    ///
    /// # Errors
    /// None that is known: names and numbers of up to 63 bits are TOML.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let mut text = String::from(
            "# Inputs that once were the only ones to reject a wrong kernel. Every verification replays them first.\n\
             # Written by `kforge mutate`; a case may be removed, and one may be added by hand.\n",
        );
        text += &toml::to_string(&Self { version: CORPUS_VERSION, ..self.clone() })?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(gate: Gate, case: &str, seed: u64) -> Case {
        Case { gate, op: "attention".to_owned(), case: case.to_owned(), seed, found: "b/code/x".to_owned() }
    }

    #[test]
    fn a_case_is_added_once_whatever_its_seed() {
        let mut corpus = Corpus { version: CORPUS_VERSION, cases: Vec::new() };
        assert!(corpus.add(case(Gate::V2Bound, "peaky", 1)));
        assert!(!corpus.add(case(Gate::V2Bound, "peaky", 2)));
        assert!(corpus.add(case(Gate::V3ErrorRatio, "peaky", 2)));
        assert_eq!(corpus.cases.len(), 2);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut corpus = Corpus { version: CORPUS_VERSION, cases: Vec::new() };
        assert_eq!(toml::from_str::<Corpus>(&corpus.to_toml().unwrap()), Ok(corpus.clone()));
        corpus.add(case(Gate::V1Exactness, "one-hot attention", u64::from(u32::MAX)));
        assert_eq!(toml::from_str::<Corpus>(&corpus.to_toml().unwrap()), Ok(corpus.clone()));
        corpus.add(case(Gate::V6Relations, "equal heads", i64::MAX as u64));
        assert_eq!(toml::from_str::<Corpus>(&corpus.to_toml().unwrap()), Ok(corpus));
    }
}
