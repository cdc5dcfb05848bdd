//! One request over the network. Not reqwest's blocking client: its time-out begins anew with every read, so that a
//! server that sends a byte now and then holds it for ever, and it cannot be called off.

use super::{end::End, endpoint::Endpoint, settings::Access};
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::runtime::Runtime;

/// Whether the build is being ended. Asked at least every [`SLICE`].
pub type Cancelled = Arc<dyn Fn() -> bool + Send + Sync>;

pub const SLICE: Duration = Duration::from_millis(100);
/// Bytes of the longest body that is read; no answer that could be right has a tenth of it.
pub const MAX_BODY: usize = 1 << 20;

/// What came back.
#[derive(Debug, PartialEq)]
pub struct Reply {
    pub status: u16,
    /// How long the server wants to be left alone.
    pub retry_after: Option<Duration>,
    pub body: Body,
}

#[derive(Debug, PartialEq)]
pub enum Body {
    Whole(Vec<u8>),
    /// Longer than [`MAX_BODY`]; the rest was not read.
    TooLong,
}

/// Nothing came back.
#[derive(Debug, PartialEq, Eq)]
pub enum Trouble {
    Cancelled,
    Timeout,
    Connection(String),
}

/// A connection to one endpoint. Making one takes milliseconds and starts no thread.
pub struct Client {
    /// None only while it is dropped.
    runtime: Option<Runtime>,
    http: reqwest::Client,
    endpoint: Endpoint,
    timeout: Duration,
}

impl Client {
    /// # Errors
    /// The key fits no header, or the machine has no certificates.
    pub fn new(endpoint: Endpoint, access: &Access) -> Result<Self, End> {
        let no_client = |reason: String| End::NoClient { reason };
        // Fails if somebody chose before, and then that is chosen.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut headers = HeaderMap::new();
        if let Some(key) = &access.key {
            headers.insert(AUTHORIZATION, key.header().ok_or(End::BadKey)?);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("kforge/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            // A redirect would take the key to wherever the server says.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(access.settings.connect_timeout)
            .retry(reqwest::retry::never());
        if !endpoint.is_encrypted() {
            // Without TLS, certificates are not looked for: a machine may have none.
            http = http.tls_certs_only([]);
        }
        if endpoint.is_loopback() {
            http = http.no_proxy();
        }
        let http = http.build().map_err(|it| no_client(cause(&it.without_url())))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = Some(runtime.map_err(|it| no_client(it.to_string()))?);
        Ok(Self { runtime, http, endpoint, timeout: access.settings.timeout })
    }

    /// Posts `body` and reads what comes back, all within the time-out.
    ///
    /// # Errors
    /// Nothing came back, or not all of it.
    pub fn post(&self, body: String, cancelled: &Cancelled) -> Result<Reply, Trouble> {
        let Some(runtime) = &self.runtime else { return Err(Trouble::Cancelled) };
        runtime.block_on(async {
            let exchange = tokio::time::timeout(self.timeout, self.exchange(body));
            watch(exchange, cancelled).await?.map_err(|_| Trouble::Timeout)?
        })
    }

    async fn exchange(&self, body: String) -> Result<Reply, Trouble> {
        let sent = self.http.post(self.endpoint.url()).body(body).send().await;
        let mut response = sent.map_err(trouble)?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|it| wait(it, SystemTime::now()));
        let announced = response.headers().get(CONTENT_LENGTH).and_then(|it| it.to_str().ok()?.parse::<u64>().ok());
        let too_long = Reply { status, retry_after, body: Body::TooLong };
        if announced.is_some_and(|it| it > MAX_BODY as u64) {
            return Ok(too_long);
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(trouble)? {
            if body.len() + chunk.len() > MAX_BODY {
                return Ok(too_long);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Reply { body: Body::Whole(body), ..too_long })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Without waiting for the system to find a name that is not wanted any more.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Waits for `work`, and every slice of time asks whether it is still wanted.
async fn watch<T>(work: impl Future<Output = T>, cancelled: &Cancelled) -> Result<T, Trouble> {
    let mut work = pin!(work);
    loop {
        match tokio::time::timeout(SLICE, &mut work).await {
            Ok(done) => return Ok(done),
            Err(_) if cancelled() => return Err(Trouble::Cancelled),
            Err(_) => {}
        }
    }
}

fn trouble(error: reqwest::Error) -> Trouble {
    // The URL may have secrets in its query.
    Trouble::Connection(cause(&error.without_url()))
}

/// The innermost cause, which is what a person can do something about: `Connection refused`, not `error sending
/// request`.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// What `Retry-After` says: seconds, or a date.
fn wait(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(SystemTime::from(at).duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000); // 01:46:40
        let wait = |text: &'static str| wait(&HeaderValue::from_static(text), now);
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("Sun, 09 Sep 2001 01:46:50 GMT"), Some(Duration::from_secs(10)));
        assert_eq!(wait("Sun, 09 Sep 2001 01:46:30 GMT"), Some(Duration::ZERO));
        assert_eq!((wait("soon"), wait("-1"), wait("1e9")), (None, None, None));
    }
}
