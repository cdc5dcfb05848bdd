//! Questions and answers as they are kept, so that a build is repeated without the network.

use crate::digest::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, sync::Mutex};

/// What is kept of a larger version comes from a newer kforge, and is asked again.
pub const EXCHANGE_VERSION: u32 = 1;
/// Raised when equal questions are to be read otherwise than before.
const QUESTION_VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Message {
    /// `system`, `user`.
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: &str, content: String) -> Self {
        Self { role: role.to_owned(), content }
    }
}

/// What a model is asked, wherever it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    pub model: String,
    pub temperature: f64,
    /// Of the search: another seed asks anew.
    pub seed: u64,
    pub messages: Vec<Message>,
    /// JSON schema of the answer.
    pub schema: Value,
}

impl Question {
    /// Where its exchange is kept. Endpoint, key and limits are not in it, nor the ways of asking for JSON that differ
    /// from server to server.
    pub fn key(&self) -> Digest {
        let Self { model, temperature, seed, messages, schema } = self;
        let all = json!({
            "version": QUESTION_VERSION,
            "model": model,
            "temperature": temperature,
            "seed": seed,
            "messages": messages,
            "schema": schema,
        });
        Digest::of(all.to_string().as_bytes())
    }
}

/// What a model said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Text(String),
    /// It said nothing that could be read as text, and why.
    Nothing(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Usage {
    pub prompt_tokens: u64,
    pub answer_tokens: u64,
    /// The server did not say: three bytes of text were taken for a token.
    pub estimated: bool,
}

impl Usage {
    pub const fn total(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.answer_tokens)
    }
}

/// A question that was answered. The key is in none of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Exchange {
    pub version: u32,
    /// The body that was posted.
    pub request: Value,
    pub answer: Answer,
    pub status: u16,
    pub usage: Usage,
    /// How many it took: they count again when it is replayed, so that a limit ends a search where it ended it before.
    pub requests: u32,
    /// Milliseconds from the first request to the answer, waits included.
    pub wall_ms: u64,
}

/// Where exchanges are kept.
pub trait Exchanges {
    fn replay(&self, key: &Digest) -> Option<Exchange>;
    fn record(&self, key: &Digest, exchange: &Exchange);
}

impl<T: Exchanges + ?Sized> Exchanges for Arc<T> {
    fn replay(&self, key: &Digest) -> Option<Exchange> {
        (**self).replay(key)
    }

    fn record(&self, key: &Digest, exchange: &Exchange) {
        (**self).record(key, exchange);
    }
}

/// Kept for as long as the process runs.
#[derive(Debug, Default)]
pub struct InMemory(Mutex<BTreeMap<Digest, Exchange>>);

impl InMemory {
    pub fn all(&self) -> Vec<Exchange> {
        self.lock().values().cloned().collect()
    }

    /// Makes all of them another version's.
    #[cfg(test)]
    pub fn age(&self, version: u32) {
        self.lock().values_mut().for_each(|it| it.version = version);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, Exchange>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Exchanges for InMemory {
    fn replay(&self, key: &Digest) -> Option<Exchange> {
        self.lock().get(key).cloned()
    }

    fn record(&self, key: &Digest, exchange: &Exchange) {
        self.lock().insert(*key, exchange.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_asked_is_in_the_key() {
        let question = Question {
            model: "m".to_owned(),
            temperature: 0.5,
            seed: 1,
            messages: vec![Message::new("user", "x".to_owned())],
            schema: json!({}),
        };
        let others = [
            Question { model: "n".to_owned(), ..question.clone() },
            Question { temperature: 0.25, ..question.clone() },
            Question { seed: 2, ..question.clone() },
            Question { messages: vec![Message::new("system", "x".to_owned())], ..question.clone() },
            Question { schema: json!({ "type": "object" }), ..question.clone() },
        ];
        assert_eq!(question.key(), question.clone().key());
        assert!(others.iter().all(|it| it.key() != question.key()));
    }
}
