//! A question and its answer: kept ones first, then the network, with its limits, repetitions, and what each server
//! understands.

use super::{
    client::{Body, Cancelled, Client, MAX_BODY, Reply, SLICE, Trouble},
    completion,
    end::End,
    endpoint::Endpoint,
    exchange::{Answer, EXCHANGE_VERSION, Exchange, Exchanges, Question, Usage},
    request::Accepts,
    settings::{Access, ApiKey},
    short,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Where exchanges are kept.
pub type Store = Arc<dyn Exchanges + Send + Sync>;

/// What was spent so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spent {
    /// Replayed ones included.
    pub requests: u32,
    pub tokens: u64,
    /// Questions that were answered from the store.
    pub replayed: u32,
}

pub struct Talk {
    access: Access,
    exchanges: Store,
    cancelled: Cancelled,
    /// Made when the network is first needed.
    client: Option<(Client, String)>,
    accepts: Accepts,
    pub spent: Spent,
}

impl Talk {
    pub fn new(access: Access, exchanges: Store, cancelled: Cancelled) -> Self {
        Self { access, exchanges, cancelled, client: None, accepts: Accepts::default(), spent: Spent::default() }
    }

    /// The key is sent to another machine for everybody on the way to read: the host.
    pub fn exposes_key(&self) -> Option<String> {
        let endpoint = Endpoint::parse(&self.access.endpoint.as_ref()?.value).ok()?;
        let exposed = self.access.key.is_some() && !endpoint.is_encrypted() && !endpoint.is_loopback();
        exposed.then(|| endpoint.host())
    }

    /// What the model answers. An answer that can be read is kept, whatever it says.
    ///
    /// # Errors
    /// There is no use in asking again.
    pub fn ask(&mut self, question: &Question) -> Result<Answer, End> {
        if (self.cancelled)() {
            return Err(End::Cancelled);
        }
        let key = question.key();
        self.within_limits(question)?;
        if let Some(kept) = self.exchanges.replay(&key).filter(|it| it.version == EXCHANGE_VERSION) {
            self.spent.requests = self.spent.requests.saturating_add(kept.requests);
            self.spent.tokens = self.spent.tokens.saturating_add(kept.usage.total());
            self.spent.replayed += 1;
            return Ok(kept.answer);
        }
        let begun = Instant::now();
        let before = self.spent.requests;
        let (answer, mut exchange) = self.send(question)?;
        if let Some(exchange) = &mut exchange {
            exchange.requests = self.spent.requests - before;
            exchange.wall_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.exchanges.record(&key, exchange);
        }
        Ok(answer)
    }

    /// Sends it until it is answered. Without an exchange the answer is of something else than a model, and is not
    /// kept.
    fn send(&mut self, question: &Question) -> Result<(Answer, Option<Exchange>), End> {
        self.connect()?;
        let mut tried = 0;
        loop {
            self.within_limits(question)?;
            let left = self.access.settings.max_tokens.saturating_sub(self.spent.tokens);
            let request = self.accepts.body(question, self.access.settings.answer_tokens.min(left));
            let Some((client, host)) = &self.client else { return Err(End::Cancelled) };
            let host = host.clone();
            self.spent.requests += 1;
            tried += 1;
            let (end, wait) = match client.post(request.to_string(), &self.cancelled) {
                Err(Trouble::Cancelled) => return Err(End::Cancelled),
                Err(Trouble::Timeout) => (End::NoAnswer { host, timeout: self.access.settings.timeout, tried }, None),
                Err(Trouble::Connection(reason)) => {
                    let reason = short(&self.scrub(&reason));
                    (End::Unreachable { host, tried, reason }, None)
                }
                Ok(Reply { status: status @ 200, body, .. }) => {
                    let (answer, usage, is_completion) = self.read(body, question);
                    self.spent.tokens = self.spent.tokens.saturating_add(usage.total());
                    let kept = is_completion.then(|| Exchange {
                        version: EXCHANGE_VERSION,
                        request,
                        answer: answer.clone(),
                        status,
                        usage,
                        requests: 0,
                        wall_ms: 0,
                    });
                    return Ok((answer, kept));
                }
                Ok(Reply { status, retry_after, body }) => {
                    let message = self.error(&body);
                    match status {
                        401 | 403 => return Err(End::KeyRefused { host, status }),
                        400 | 422 if self.accepts.less(&message) => {
                            tried = 0; // it is another request now
                            continue;
                        }
                        429 => (End::Busy { host, tried }, retry_after),
                        408 | 500..=599 => {
                            let message = short(&message);
                            (End::Failing { host, status, tried, message }, retry_after)
                        }
                        300..=399 => {
                            let message =
                                "it redirects, and nobody follows: set the endpoint that it redirects to".to_owned();
                            return Err(End::Refused { host, status, message });
                        }
                        _ => return Err(End::Refused { host, status, message: short(&message) }),
                    }
                }
            };
            if tried >= self.access.settings.attempts {
                return Err(end);
            }
            self.pause(tried, wait)?;
        }
    }

    /// The answer in a body, what it cost, and whether it is a model's.
    fn read(&self, body: Body, question: &Question) -> (Answer, Usage, bool) {
        let estimate =
            |bytes| Usage { prompt_tokens: estimate(question), answer_tokens: tokens(bytes), estimated: true };
        let Body::Whole(body) = body else {
            let why = format!("the answer had more than {MAX_BODY} bytes");
            return (Answer::Nothing(why), estimate(MAX_BODY), false);
        };
        match completion::read(&body) {
            Err(why) => {
                let why = format!("what came back is no chat completion: {}", short(&self.scrub(&why)));
                (Answer::Nothing(why), estimate(body.len()), false)
            }
            Ok(it) => {
                let answer = match it.answer {
                    Answer::Text(text) => Answer::Text(self.scrub(&text)),
                    Answer::Nothing(why) => Answer::Nothing(short(&self.scrub(&why))),
                };
                (answer, it.usage.unwrap_or_else(|| estimate(body.len())), true)
            }
        }
    }

    fn error(&self, body: &Body) -> String {
        match body {
            Body::Whole(body) => self.scrub(&completion::error(body)),
            Body::TooLong => format!("with more than {MAX_BODY} bytes of explanation"),
        }
    }

    fn scrub(&self, text: &str) -> String {
        self.access.key.as_ref().map_or_else(|| text.to_owned(), |key: &ApiKey| key.scrub(text))
    }

    fn connect(&mut self) -> Result<(), End> {
        if self.client.is_some() {
            return Ok(());
        }
        let setting = self.access.endpoint.as_ref().ok_or(End::NoEndpoint)?;
        let bad = |error| End::BadEndpoint { from: setting.source.to_string(), error };
        let endpoint = Endpoint::parse(&setting.value).map_err(bad)?;
        let host = endpoint.host();
        self.client = Some((Client::new(endpoint, &self.access)?, host));
        Ok(())
    }

    /// One more request is within what may be spent.
    fn within_limits(&self, question: &Question) -> Result<(), End> {
        let settings = &self.access.settings;
        if self.spent.requests >= settings.max_requests {
            return Err(End::Requests { limit: settings.max_requests });
        }
        if self.spent.tokens.saturating_add(estimate(question)) >= settings.max_tokens {
            return Err(End::Tokens { limit: settings.max_tokens, spent: self.spent.tokens });
        }
        Ok(())
    }

    /// Waits before the next attempt: as long as the server asks for, else twice as long each time. No jitter: one
    /// search has one request under way.
    fn pause(&self, tried: u32, asked: Option<Duration>) -> Result<(), End> {
        let settings = &self.access.settings;
        let doubled = settings.backoff.saturating_mul(2_u32.saturating_pow(tried.saturating_sub(1)));
        let mut left = asked.unwrap_or(doubled).min(settings.longest_wait);
        loop {
            if (self.cancelled)() {
                return Err(End::Cancelled);
            }
            if left.is_zero() {
                return Ok(());
            }
            let slice = left.min(SLICE);
            std::thread::sleep(slice);
            left -= slice;
        }
    }
}

fn tokens(bytes: usize) -> u64 {
    bytes.div_ceil(3) as u64
}

fn estimate(question: &Question) -> u64 {
    tokens(question.messages.iter().map(|it| it.content.len()).sum::<usize>() + question.schema.to_string().len())
}
