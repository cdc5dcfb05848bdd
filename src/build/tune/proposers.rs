//! Which proposer a tuning asks for.

use super::{Stop, block::Context, ledger::Ledger};
use crate::{
    build::search::{
        llm::{Exchange, Exchanges, Fallback, Llm, LlmSettings},
        propose::{Problem, Proposer},
        strategy,
    },
    digest::Digest,
    manifest::{self, Tuning},
    store::Store,
};
use std::{env, sync::Arc, time::Duration};

/// The proposer of this tuning.
///
/// # Errors
/// When the store cannot be opened for what a language model answers.
pub fn proposer(tuning: &Tuning, problem: &Problem, context: &Context<'_>) -> Result<Box<dyn Proposer>, Stop> {
    match strategy::proposer(tuning.strategy, problem) {
        Some(proposer) => Ok(proposer),
        None => language_model(tuning, problem, context),
    }
}

fn language_model(tuning: &Tuning, problem: &Problem, context: &Context<'_>) -> Result<Box<dyn Proposer>, Stop> {
    let knobs = serde_json::to_value(problem.space().describe()).unwrap_or_default();
    let access = settings(&tuning.llm).resolve(|name| env::var(name).ok());
    // A handle of its own: a proposer outlives what it borrows.
    let root = context.store.dir().parent().unwrap_or(context.store.dir());
    let (store, _) = Store::open(root)?;
    let cancelled = Arc::clone(&context.cancelled);
    let llm = Llm::new(problem.clone(), knobs, access, Arc::new(Kept(store)), cancelled, Fallback::heuristic());
    Ok(Box::new(llm))
}

/// The manifest's settings over the defaults.
fn settings(given: &manifest::Llm) -> LlmSettings {
    let plain = LlmSettings::default();
    LlmSettings {
        endpoint: given.endpoint.clone(),
        model: given.model.clone(),
        proposals: given.proposals.unwrap_or(plain.proposals),
        temperature: given.temperature.unwrap_or(plain.temperature),
        timeout: given.timeout_ms.map_or(plain.timeout, Duration::from_millis),
        max_requests: given.requests.and_then(|it| u32::try_from(it).ok()).unwrap_or(plain.max_requests),
        max_tokens: given.tokens.map_or(plain.max_tokens, |it| it as u64),
        ..plain
    }
}

/// Exchanges in a project's store. One that cannot be kept is asked for again.
struct Kept(Store);

impl Exchanges for Kept {
    fn replay(&self, key: &Digest) -> Option<Exchange> {
        Ledger { store: &self.0 }.exchange(key)
    }

    fn record(&self, key: &Digest, exchange: &Exchange) {
        let _ = Ledger { store: &self.0 }.record_exchange(key, exchange);
    }
}
