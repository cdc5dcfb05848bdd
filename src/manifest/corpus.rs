//! The regression corpus that `[project] corpus` names. It is a manifest file like the others: read as data, checked with
//! the place of what is wrong. One that does not exist yet is empty: `kforge mutate` writes it.

use super::error::{Problem, ProblemKind, SourceFile};
use crate::protocol::corpus::{CORPUS_VERSION, Case, Corpus};
use serde::Deserialize;
use std::sync::Arc;

pub fn read(file: &Arc<SourceFile>) -> Result<Vec<Case>, Problem> {
    /// What every version has.
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let refuse = |error: toml::de::Error| {
        let kind = ProblemKind::NoCorpus { message: error.message().to_owned() };
        Problem::at(kind, file, error.span().unwrap_or(0..0))
    };
    // First, because a newer version may have other fields.
    let Versioned { version } = toml::from_str(&file.text).map_err(refuse)?;
    if version > CORPUS_VERSION {
        return Err(Problem::at(ProblemKind::CorpusVersion { version }, file, 0..0));
    }
    Ok(toml::from_str::<Corpus>(&file.text).map_err(refuse)?.cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Case>, (ProblemKind, usize)> {
        let file = Arc::new(SourceFile::new("corpus.toml".to_owned(), text.to_owned()));
        super::read(&file).map_err(|it| {
            let at = it.at.as_ref().map_or(0, |it| it.span.start);
            (it.kind, at)
        })
    }

    const CASE: &str =
        "version = 1\n[[case]]\ngate = \"v2-bound\"\nop = \"mlp\"\ncase = \"peaky\"\nseed = 3\nfound = \"b/x\"\n";

    #[test]
    fn a_corpus_is_a_list_of_cases() {
        assert_eq!(read(CASE).unwrap().len(), 1);
        assert_eq!(read("version = 1\n"), Ok(Vec::new()));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let (kind, at) = read(&CASE.replace("v2-bound", "v9")).unwrap_err();
        assert!(kind.to_string().contains("unknown variant `v9`"), "{kind}");
        assert_eq!(at, CASE.find("\"v2-bound\"").unwrap());
        assert!(read("version = 1\nkase = 1\n").unwrap_err().0.to_string().contains("unknown field `kase`"));
        assert!(read("nothing").is_err());
    }

    #[test]
    fn a_newer_version_is_named_before_what_it_has_else() {
        assert_eq!(read("version = 2\n[other]\n").unwrap_err().0, ProblemKind::CorpusVersion { version: 2 });
    }
}
