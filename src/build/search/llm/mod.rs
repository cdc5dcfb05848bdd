//! The strategy `llm`: a language model proposes schedules, over an OpenAI-compatible chat endpoint.
//!
//! **A model proposes, it never decides.** What it says is a stranger's text. Of an answer only schedules are taken:
//! data of the plan's own types, read as strictly as a plan file that somebody hands over ([`crate::plan::read`]) and
//! held to the same limits as everybody's ([`crate::plan::constraint`]). Code, prose and wrong types are refused, and
//! the reason is in the next question. What is left is compiled, verified and measured like any other proposal. The
//! worst that a model, or whoever answers in its place, can do is to waste trials: bodies, depths, lists, waits and
//! repetitions all have limits, and so has what is spent.
//!
//! **Nothing fails because of it.** Without an endpoint, without an answer, at a limit and after nonsense the fallback
//! stands in for the rest of the search, and [`Llm::remarks`] says why: each reason is an [`End`].
//!
//! **An answer is kept** under what was asked ([`exchange`]), and read from there before the network is asked: a build
//! is repeated without it. The kept ones are read as strictly.
//!
//! **The key** is sent to the endpoint and to nobody else: redirects are not followed, and it is cut out of whatever
//! comes back before anything is kept, shown or asked.
//!
//! | file | |
//! |---|---|
//! | [`settings`], [`endpoint`] | what was set, and where; the secret |
//! | [`prompt`], [`words`] | the question |
//! | [`talk`], [`request`], [`client`], [`completion`] | kept answers, repetitions and limits; what a server understands; one request; its body |
//! | [`answer`], [`document`], [`names`] | what of an answer is a schedule |
//! | [`exchange`] | what is kept |

mod answer;
mod client;
mod completion;
mod document;
mod end;
mod endpoint;
pub mod exchange;
mod names;
mod prompt;
mod request;
pub mod settings;
mod talk;
mod words;

#[cfg(test)]
#[path = "testing/server.rs"]
mod server;
#[cfg(test)]
mod tests;

pub use client::Cancelled;
pub use end::End;
pub use endpoint::{Endpoint, EndpointError};
pub use exchange::{Exchange, Exchanges};
pub use settings::{Access, ApiKey, LlmSettings};
pub use talk::{Spent, Store};

use super::propose::{Problem, Proposal, Proposer};
use crate::{
    plan::{constraint, schedule::Schedule},
    protocol::tuning::Trial,
};
use exchange::{Answer, Question};
use prompt::Told;
use serde_json::Value;
use std::collections::{HashSet, VecDeque};
use talk::Talk;

/// How often a fallback that proposes only what the model proposed before is asked again.
const REPEATS: usize = 16;

/// Who proposes when the model does not.
pub struct Fallback {
    /// As in `the heuristic stands in`.
    pub name: String,
    pub proposer: Box<dyn Proposer + Send>,
}

impl Fallback {
    /// The heuristic: its schedule is the first trial of every search, and it has no other.
    pub fn heuristic() -> Self {
        Self { name: "heuristic".to_owned(), proposer: Box::new(Nothing) }
    }
}

struct Nothing;

impl Proposer for Nothing {
    fn ask(&mut self, _: usize) -> Vec<Proposal> {
        Vec::new()
    }

    fn tell(&mut self, _: &[Trial]) {}
}

/// Asks a model.
pub struct Llm {
    problem: Problem,
    knobs: Value,
    schema: Value,
    model: String,
    wanted: usize,
    temperature: f64,
    fruitless: u32,
    talk: Talk,
    fallback: Fallback,
    end: Option<End>,
    history: Vec<Trial>,
    /// Proposed or told of.
    seen: HashSet<Schedule>,
    /// Legal, new, and not handed out yet.
    queue: VecDeque<Proposal>,
    /// Why schedules of the last answer are not in the queue.
    reasons: Vec<String>,
    round: u32,
    remarks: Vec<String>,
}

impl Llm {
    /// `knobs` says which values the knobs can have, in a form for models; null leaves it to the rules. Nothing is
    /// asked, connected to or looked up before the first [`Proposer::ask`].
    pub fn new(
        problem: Problem,
        knobs: Value,
        access: Access,
        exchanges: Store,
        cancelled: Cancelled,
        fallback: Fallback,
    ) -> Self {
        let schema = answer::schema(&problem);
        let settings = &access.settings;
        let (wanted, temperature) = (settings.proposals.max(1), settings.temperature);
        let (fruitless, model) = (settings.fruitless.max(1), access.model.as_ref());
        let mut it = Self {
            knobs,
            schema,
            model: model.map(|it| it.value.clone()).unwrap_or_default(),
            wanted,
            temperature,
            fruitless,
            talk: Talk::new(access, exchanges, cancelled),
            fallback,
            end: None,
            history: Vec::new(),
            seen: HashSet::from([problem.heuristic.clone()]),
            queue: VecDeque::new(),
            reasons: Vec::new(),
            round: 0,
            remarks: Vec::new(),
            problem,
        };
        if it.model.is_empty() {
            it.stop(End::NoModel);
        }
        it.propose_seeds();
        it
    }

    /// Why the model is not asked any more.
    pub const fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    pub const fn spent(&self) -> Spent {
        self.talk.spent
    }

    fn propose_seeds(&mut self) {
        let stage = self.problem.stage();
        let dtype = self.problem.operation.tensor(stage.output).dtype;
        let restricted = self.problem.restricted_space();
        for schedule in &self.problem.seeds {
            let legal = constraint::check(stage, dtype, schedule, &self.problem.device).is_ok()
                && constraint::check_operands(&self.problem.operation, stage, schedule).is_ok()
                && restricted.as_ref().is_none_or(|it| it.admits(schedule).is_ok());
            if legal && self.seen.insert(schedule.clone()) {
                self.queue.push_back(Proposal::new(schedule.clone(), "llm: seed"));
            }
        }
    }

    fn stop(&mut self, end: End) {
        if end != End::Cancelled {
            self.remarks.push(format!("llm: {end}: the {} stands in", self.fallback.name));
        }
        self.end = Some(end);
    }

    /// Asks until there is something in the queue.
    fn fill(&mut self) {
        let mut fruitless = 0;
        while self.queue.is_empty() && self.end.is_none() {
            if let Err(end) = self.question(fruitless) {
                return self.stop(end);
            }
            if self.queue.is_empty() {
                fruitless += 1;
                if fruitless == self.fruitless {
                    let reason = self.reasons.first().map(|it| short(it)).unwrap_or_default();
                    return self.stop(End::Nonsense { rounds: fruitless, reason });
                }
            }
        }
    }

    /// One question. It always asks for equally many schedules: how many trials are left must not be in it, or a search
    /// that is given more of them could not be replayed.
    fn question(&mut self, fruitless: u32) -> Result<(), End> {
        if self.round == 0
            && let Some(host) = self.talk.exposes_key()
        {
            self.remarks.push(format!("llm: the key goes to {host} unencrypted: its endpoint is not https"));
        }
        let Self { problem, knobs, schema, history, reasons, wanted, .. } = &*self;
        let told = Told { problem, knobs, schema, history, reasons, fruitless, wanted: *wanted };
        let question = Question {
            model: self.model.clone(),
            temperature: self.temperature,
            seed: self.problem.seed,
            messages: told.messages(),
            schema: self.schema.clone(),
        };
        let answer = self.talk.ask(&question)?;
        self.round += 1;
        self.reasons.clear();
        match answer {
            Answer::Nothing(why) => self.reasons.push(why),
            Answer::Text(text) => self.take(&text),
        }
        Ok(())
    }

    fn take(&mut self, text: &str) {
        let judged = answer::judge(text, &self.problem, self.wanted);
        self.reasons = judged.reasons;
        let origin = format!("llm {}: round {}", short(&self.model), self.round);
        for schedule in judged.schedules {
            if self.seen.insert(schedule.clone()) {
                self.queue.push_back(Proposal::new(schedule, origin.clone()));
            } else {
                let known = serde_json::to_string(&schedule).unwrap_or_default(); // plain data
                self.reasons.push(format!("was proposed before: {known}"));
            }
        }
    }

    /// What the fallback proposes that the model did not.
    fn stand_in(&mut self, most: usize) -> Vec<Proposal> {
        for _ in 0..REPEATS {
            let proposals = self.fallback.proposer.ask(most);
            if proposals.is_empty() {
                break;
            }
            let new: Vec<_> = proposals.into_iter().filter(|it| self.seen.insert(it.schedule.clone())).collect();
            if !new.is_empty() {
                return new;
            }
        }
        Vec::new()
    }
}

impl Proposer for Llm {
    fn ask(&mut self, most: usize) -> Vec<Proposal> {
        if most == 0 {
            return Vec::new();
        }
        self.fill();
        match self.end {
            Some(End::Cancelled) => Vec::new(),
            Some(_) if self.queue.is_empty() => self.stand_in(most),
            _ => self.queue.drain(..most.min(self.queue.len())).collect(),
        }
    }

    fn tell(&mut self, trials: &[Trial]) {
        self.seen.extend(trials.iter().map(|it| it.schedule.clone()));
        // What was told before it was handed out is not tried again.
        self.queue.retain(|it| trials.iter().all(|trial| trial.schedule != it.schedule));
        self.history.extend_from_slice(trials);
        self.fallback.proposer.tell(trials);
    }

    fn remarks(&mut self) -> Vec<String> {
        let mut remarks = std::mem::take(&mut self.remarks);
        remarks.extend(self.fallback.proposer.remarks());
        remarks
    }
}

/// At most 300 characters of a text that somebody else wrote, without control characters: for one line of a remark or a
/// prompt.
fn short(text: &str) -> String {
    const LONGEST: usize = 300;
    let clean = |it: char| if it.is_control() { ' ' } else { it };
    let mut line: String = text.chars().take(LONGEST).map(clean).collect();
    if text.chars().nth(LONGEST).is_some() {
        line.push_str("...");
    }
    line
}
