//! Why the model is not asked any more.

use super::endpoint::EndpointError;
use std::time::Duration;

/// Each reason has its name, and ends in the fallback's standing in, which [`super::Llm`] says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum End {
    #[error("no endpoint is set ({} or `endpoint` in the manifest)", super::settings::ENDPOINT)]
    NoEndpoint,
    #[error("no model is set ({} or `model` in the manifest)", super::settings::MODEL)]
    NoModel,
    #[error("the endpoint that {from} says is none: {error}")]
    BadEndpoint { from: String, error: EndpointError },
    #[error("{} has a character that no header can have", super::settings::API_KEY)]
    BadKey,
    #[error("no connection can be made from here: {reason}")]
    NoClient { reason: String },
    #[error("{host} refused the key (status {status})")]
    KeyRefused { host: String, status: u16 },
    #[error("{host} cannot be reached ({}): {reason}", attempts(*tried))]
    Unreachable { host: String, tried: u32, reason: String },
    #[error("{host} did not answer within {} ({})", humantime::format_duration(*timeout), attempts(*tried))]
    NoAnswer { host: String, timeout: Duration, tried: u32 },
    #[error("{host} takes no more requests for now (status 429, {})", attempts(*tried))]
    Busy { host: String, tried: u32 },
    #[error("{host} failed (status {status}, {}): {message}", attempts(*tried))]
    Failing { host: String, status: u16, tried: u32, message: String },
    #[error("{host} refused the request (status {status}): {message}")]
    Refused { host: String, status: u16, message: String },
    #[error("the limit of {limit} requests is reached")]
    Requests { limit: u32 },
    #[error("{spent} of at most {limit} tokens are spent, and the next prompt takes more than the rest")]
    Tokens { limit: u64, spent: u64 },
    #[error("{rounds} answers in a row had no schedule to try; the last: {reason}")]
    Nonsense { rounds: u32, reason: String },
    /// Nothing stands in: the build is being ended.
    #[error("cancelled")]
    Cancelled,
}

impl End {
    /// The stable name that scripts can match.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoEndpoint => "llm::no-endpoint",
            Self::NoModel => "llm::no-model",
            Self::BadEndpoint { .. } => "llm::bad-endpoint",
            Self::BadKey => "llm::bad-key",
            Self::NoClient { .. } => "llm::no-client",
            Self::KeyRefused { .. } => "llm::key-refused",
            Self::Unreachable { .. } => "llm::unreachable",
            Self::NoAnswer { .. } => "llm::no-answer",
            Self::Busy { .. } => "llm::busy",
            Self::Failing { .. } => "llm::failing",
            Self::Refused { .. } => "llm::refused",
            Self::Requests { .. } => "llm::requests",
            Self::Tokens { .. } => "llm::tokens",
            Self::Nonsense { .. } => "llm::nonsense",
            Self::Cancelled => "llm::cancelled",
        }
    }
}

fn attempts(tried: u32) -> String {
    if tried == 1 { "1 attempt".to_owned() } else { format!("{tried} attempts") }
}
