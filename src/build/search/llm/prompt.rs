//! The question. Equal histories make equal questions, to the byte: that is how answers are found again.
//!
//! It says what is to be computed and where, and how schedules did; not what a block is called, no path, no text of a
//! shader.

use super::{exchange::Message, short, words};
use crate::{
    build::search::propose::Problem,
    plan::schedule::Schedule,
    protocol::tuning::{Measured, Trial, TrialOutcome},
};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write as _;

/// Measured schedules that are shown from either end.
const SHOWN: usize = 5;
/// Rejected ones, the last.
const REFUSALS: usize = 8;
/// Reasons why the last answer's schedules were not tried.
const REASONS: usize = 12;

const SYSTEM: &str = "You propose schedules for generated compute kernels. A schedule is a set of integers and words \
    that says how a loop nest is tiled, vectorised and unrolled. Every schedule that you propose is checked, compiled, \
    verified and measured; the aim is the least time. You answer with one JSON object of the given schema and with \
    nothing else: no code, no explanation around it, numbers as plain integers.";

/// What a model is told of a search.
pub struct Told<'a> {
    pub problem: &'a Problem,
    /// Legal values of the knobs; null where nobody listed them.
    pub knobs: &'a Value,
    pub schema: &'a Value,
    /// The heuristic's first.
    pub history: &'a [Trial],
    /// Why schedules of the last answer were not tried.
    pub reasons: &'a [String],
    /// Answers in a row without a schedule to try. It is said, so that asking again is another question, and not
    /// answered by what is kept.
    pub fruitless: u32,
    /// Schedules wanted.
    pub wanted: usize,
}

impl Told<'_> {
    pub fn messages(&self) -> Vec<Message> {
        vec![Message::new("system", SYSTEM.to_owned()), Message::new("user", self.user())]
    }

    fn user(&self) -> String {
        let Self { problem, knobs, schema, wanted, .. } = self;
        let mut text = String::new();
        section(&mut text, "Operation", &words::operation(&problem.operation));
        json(&mut text, &problem.operation);
        section(&mut text, "Device", &format!("It runs on {}.", words::device(&problem.device, problem.threads)));
        json(&mut text, &problem.device);
        section(&mut text, "Rules", "");
        for rule in words::rules(&problem.heuristic, &problem.device) {
            line(&mut text, format_args!("- {rule}"));
        }
        if !knobs.is_null() {
            section(&mut text, "Knobs and their values", "");
            json(&mut text, knobs);
        }
        self.trials(&mut text);
        if !self.reasons.is_empty() {
            section(&mut text, "What was wrong with your last answer", "");
            for reason in self.reasons.iter().take(REASONS) {
                line(&mut text, format_args!("- {}", short(reason)));
            }
            let more = self.reasons.len().saturating_sub(REASONS);
            if more > 0 {
                line(&mut text, format_args!("- and {more} more"));
            }
        }
        if self.fruitless > 1 {
            line(&mut text, format_args!("Your last {} answers had no schedule to try.", self.fruitless));
        }
        let ask = format!(
            "Propose {wanted} schedules that were not tried yet and that you expect to be faster than the best. Answer \
             with a JSON object of this schema:"
        );
        section(&mut text, "Answer", &ask);
        json(&mut text, schema);
        text
    }

    fn trials(&self, text: &mut String) {
        let heuristic = &self.problem.heuristic;
        let mut measured: Vec<_> = self.history.iter().filter_map(|it| Some((it, it.measured()?))).collect();
        measured.sort_by(|a, b| a.1.relative.total_cmp(&b.1.relative)); // stable: equal times in the order of trying
        if measured.is_empty() {
            section(text, "The heuristic's schedule, not measured yet", "");
            json(text, heuristic);
        } else {
            let note = "Times are relative to the heuristic's schedule; less is better.";
            section(text, &format!("Measured: the best of {}", measured.len()), note);
            for (trial, it) in measured.iter().take(SHOWN) {
                self.trial(text, trial, it);
            }
            let rest = &measured[measured.len().min(SHOWN)..];
            let (middle, worst) = rest.split_at(rest.len().saturating_sub(SHOWN));
            // What the others are held against is always shown.
            if let Some((trial, it)) = middle.iter().find(|it| it.0.schedule == *heuristic) {
                section(text, "Measured: between the best and the worst", "");
                self.trial(text, trial, it);
            }
            if !worst.is_empty() {
                section(text, "Measured: the worst", "");
                for (trial, it) in worst {
                    self.trial(text, trial, it);
                }
            }
        }
        let refused = |it: &Trial| match &it.outcome {
            TrialOutcome::Rejected(refusal) => Some((it.schedule.clone(), refusal.message.clone())),
            TrialOutcome::Measured(_) => None,
        };
        let refusals: Vec<_> = self.history.iter().filter_map(refused).collect();
        if !refusals.is_empty() {
            section(text, "Tried and rejected, never to be tried again", "");
            for (schedule, message) in &refusals[refusals.len().saturating_sub(REFUSALS)..] {
                line(text, format_args!("- {}", compact(schedule)));
                line(text, format_args!("  because: {}", short(message)));
            }
        }
    }

    fn trial(&self, text: &mut String, trial: &Trial, it: &Measured) {
        let Measured { timing, relative, floor_ns, .. } = it;
        let heuristic = if trial.schedule == self.problem.heuristic { ", the heuristic's" } else { "" };
        line(
            text,
            format_args!(
                "- {relative:.3} ({:.0} ns; no schedule is below {floor_ns:.0} ns{heuristic}): {}",
                timing.median_ns,
                compact(&trial.schedule)
            ),
        );
    }
}

fn compact(schedule: &Schedule) -> String {
    // Plain data: it is JSON in every plan.
    serde_json::to_string(schedule).unwrap_or_default()
}

fn section(text: &mut String, title: &str, content: &str) {
    let gap = if text.is_empty() { "" } else { "\n" };
    line(text, format_args!("{gap}# {title}"));
    if !content.is_empty() {
        line(text, format_args!("{content}"));
    }
}

fn json(text: &mut String, value: &impl Serialize) {
    line(text, format_args!("{}", serde_json::to_string(value).unwrap_or_default()));
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    // Writing into a text cannot fail.
    let _ = writeln!(text, "{content}");
}
