//! Where the model is.

use reqwest::Url;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The URL that questions are posted to. It may have secrets in its query, so only its host is ever shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint(Url);

/// Why a text is no endpoint. None of the messages repeats the text, which may have a secret in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    #[error("it is not a URL ({0})")]
    Syntax(String),
    #[error("its scheme is `{0}`, and must be http or https")]
    Scheme(String),
    #[error("it has a user or a password in it; the key belongs in {}", super::settings::API_KEY)]
    Credentials,
}

const CHAT: &str = "/chat/completions";

impl Endpoint {
    /// Takes the base URL of a server, with or without its version, and the full URL:
    /// `http://localhost:8080`, `https://api.openai.com/v1`, `https://host/openai/v1/chat/completions?api-version=1`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        let mut url = Url::parse(text).map_err(|it| EndpointError::Syntax(it.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(EndpointError::Scheme(url.scheme().to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(EndpointError::Credentials);
        }
        let path = url.path().trim_end_matches('/').to_owned();
        // `v1`, `v1beta`: of this interface, or of a larger one that has it below.
        let is_version =
            |it: &str| it.strip_prefix('v').is_some_and(|it| it.starts_with(|it: char| it.is_ascii_digit()));
        let path = match path {
            path if path.ends_with(CHAT) => path,
            path if path.split('/').any(is_version) => path + CHAT,
            path => path + "/v1" + CHAT,
        };
        url.set_path(&path);
        url.set_fragment(None);
        Ok(Self(url))
    }

    pub fn url(&self) -> Url {
        self.0.clone()
    }

    /// Host and port, for people.
    pub fn host(&self) -> String {
        let host = self.0.host_str().unwrap_or("?"); // http and https always have one
        self.0.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    /// On this machine.
    pub fn is_loopback(&self) -> bool {
        let host = self.0.host_str().unwrap_or_default();
        host == "localhost"
            || host.parse::<Ipv4Addr>().is_ok_and(|it| it.is_loopback())
            || host.trim_matches(['[', ']']).parse::<Ipv6Addr>().is_ok_and(|it| it.is_loopback())
    }

    pub fn is_encrypted(&self) -> bool {
        self.0.scheme() == "https"
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint({})", self.host())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases_and_full_addresses_are_taken() {
        let full = |text: &str| Endpoint::parse(text).unwrap().url().to_string();
        for base in ["http://h:80/", "http://h", "http://h/v1", "http://h/v1/", "http://h/v1/chat/completions"] {
            assert_eq!(full(base), "http://h/v1/chat/completions", "{base}");
        }
        assert_eq!(full("https://h/api/v1#x"), "https://h/api/v1/chat/completions");
        assert_eq!(full("https://h/v1beta/openai/"), "https://h/v1beta/openai/chat/completions");
        assert_eq!(full("https://h/llm"), "https://h/llm/v1/chat/completions");
        assert_eq!(full("https://h/a/chat/completions?api-version=2"), "https://h/a/chat/completions?api-version=2");
    }

    #[test]
    fn what_is_no_endpoint_is_refused_without_being_repeated() {
        let error = |text: &str| Endpoint::parse(text).unwrap_err().to_string();
        assert_eq!(error("localhost"), "it is not a URL (relative URL without a base)");
        assert_eq!(error("file:///etc/passwd"), "its scheme is `file`, and must be http or https");
        let credentials = error("https://me:secret@h/v1");
        assert!(credentials.contains("KERNELFORGE_LLM_API_KEY") && !credentials.contains("secret"));
    }

    #[test]
    fn only_the_host_is_shown() {
        let it = Endpoint::parse("http://[::1]:8080/v1/chat/completions?key=secret").unwrap();
        assert_eq!((it.host().as_str(), format!("{it:?}").as_str()), ("[::1]:8080", "Endpoint([::1]:8080)"));
        assert!(it.is_loopback() && !it.is_encrypted());
        assert!(!Endpoint::parse("https://127.0.0.1.example").unwrap().is_loopback());
    }
}
