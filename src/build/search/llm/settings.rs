//! What the strategy is told: where the model is, what may be spent on it, and where each of these was said.

use reqwest::header::HeaderValue;
use std::{fmt, time::Duration};

/// URL of an OpenAI-compatible server.
pub const ENDPOINT: &str = "KERNELFORGE_LLM_ENDPOINT";
/// What the server wants in `Authorization: Bearer`; a server on the own machine wants none.
pub const API_KEY: &str = "KERNELFORGE_LLM_API_KEY";
pub const MODEL: &str = "KERNELFORGE_LLM_MODEL";

/// What `[tuning.X.llm]` of the manifest says. There is no key among it: manifests are shared.
#[derive(Debug, Clone, PartialEq)]
pub struct LlmSettings {
    /// With or without `/v1`, or all of `.../chat/completions`.
    pub endpoint: Option<String>,
    pub model: Option<String>,
    /// Schedules that are asked for at a time.
    pub proposals: usize,
    pub temperature: f64,
    /// Of one request, from connecting to the answer's last byte.
    pub timeout: Duration,
    pub connect_timeout: Duration,
    /// How often one question is sent before its failing counts.
    pub attempts: u32,
    /// Before the second attempt; doubled before each further one.
    pub backoff: Duration,
    /// No wait between attempts is longer, whatever the server asks for.
    pub longest_wait: Duration,
    /// Requests of the whole search, repeated ones included.
    pub max_requests: u32,
    /// Tokens of the whole search, of prompts and answers. The last answer may go beyond by [`Self::answer_tokens`].
    pub max_tokens: u64,
    /// Tokens of one answer.
    pub answer_tokens: u64,
    /// Answers in a row without a single schedule to try, after which the model is not asked any more.
    pub fruitless: u32,
}

impl Default for LlmSettings {
    fn default() -> Self {
        Self {
            endpoint: None,
            model: None,
            proposals: 8,
            temperature: 0.7,
            timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
            attempts: 3,
            backoff: Duration::from_millis(500),
            longest_wait: Duration::from_secs(30),
            max_requests: 32,
            max_tokens: 200_000,
            answer_tokens: 8192,
            fruitless: 3,
        }
    }
}

/// Where a setting was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A variable of this name.
    Environment(&'static str),
    Manifest,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(name) => write!(f, "the variable {name}"),
            Self::Manifest => f.write_str("the manifest"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub value: String,
    pub source: Source,
}

/// Settings with what the environment says instead.
#[derive(Debug, Clone)]
pub struct Access {
    pub endpoint: Option<Setting>,
    pub model: Option<Setting>,
    pub key: Option<ApiKey>,
    /// For the limits; its endpoint and its model are not read any more.
    pub settings: LlmSettings,
}

impl LlmSettings {
    /// The environment wins over the manifest; a variable that is empty is not there. `environment` looks a variable
    /// up.
    pub fn resolve(self, environment: impl Fn(&str) -> Option<String>) -> Access {
        let variable = |name: &str| environment(name).map(|it| it.trim().to_owned()).filter(|it| !it.is_empty());
        let setting = |name: &'static str, manifest: &Option<String>| {
            let from = |source| move |value| Setting { value, source };
            variable(name).map(from(Source::Environment(name))).or_else(|| manifest.clone().map(from(Source::Manifest)))
        };
        Access {
            endpoint: setting(ENDPOINT, &self.endpoint),
            model: setting(MODEL, &self.model),
            key: variable(API_KEY).map(ApiKey::new),
            settings: self,
        }
    }
}

/// A secret: it can be sent and looked for, and nothing else. There is no way to print it.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

/// What stands where a key was.
const REDACTED: &str = "[key]";
/// Characters of the shortest key that is a secret. Servers without keys are given words such as `none`, and taking
/// those out of an answer would only damage it.
const SECRET: usize = 8;

impl ApiKey {
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    /// None where the key has a character that a header cannot have.
    pub fn header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// `text` without the key: servers repeat it in what they say is wrong.
    pub fn scrub(&self, text: &str) -> String {
        if self.0.len() < SECRET { text.to_owned() } else { text.replace(&self.0, REDACTED) }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey([key])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> LlmSettings {
        LlmSettings {
            endpoint: Some("http://manifest".to_owned()),
            model: Some("small".to_owned()),
            ..Default::default()
        }
    }

    #[test]
    fn the_environment_wins_and_both_say_where_they_were_said() {
        let it = manifest().resolve(|name| match name {
            ENDPOINT => Some(" http://environment ".to_owned()),
            MODEL => Some(String::new()),
            _ => None,
        });
        let endpoint = it.endpoint.unwrap();
        assert_eq!(endpoint.value, "http://environment");
        assert_eq!(endpoint.source.to_string(), "the variable KERNELFORGE_LLM_ENDPOINT");
        assert_eq!(it.model, Some(Setting { value: "small".to_owned(), source: Source::Manifest }));
        assert_eq!(it.key, None);
        assert!(LlmSettings::default().resolve(|_| None).endpoint.is_none());
    }

    #[test]
    fn a_key_is_never_printed() {
        let it = manifest().resolve(|name| (name == API_KEY).then(|| "sk-very-secret".to_owned()));
        assert!(!format!("{it:?} {it:#?}").contains("secret"));
        let key = it.key.unwrap();
        assert!(!format!("{:?}", key.header()).contains("secret"));
        assert_eq!(key.scrub("Incorrect key: sk-very-secret."), "Incorrect key: [key].");
        assert_eq!(ApiKey::new("none").scrub("none"), "none");
        assert_eq!(ApiKey::new("two\nlines").header(), None);
    }
}
