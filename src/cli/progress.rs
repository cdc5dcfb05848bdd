//! Shows a running build on stderr: a bar on a terminal, one line for each finished step elsewhere.

use super::print::{self, CYAN, GREEN, RED, YELLOW};
use crate::build::engine::observe::{Event, Observer, Wait};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    io::{self, IsTerminal},
    sync::{Mutex, PoisonError},
    time::Duration,
};

pub struct Progress {
    explain: bool,
    color: bool,
    /// Only on a terminal.
    bar: Option<ProgressBar>,
    running: Mutex<Vec<String>>,
}

impl Progress {
    /// `explain`: say why each step runs.
    pub fn new(explain: bool) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::no_length();
            let style = ProgressStyle::with_template("[{bar:24}] {pos}/{len} {elapsed} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        Self { explain, color: print::colored(&io::stderr()), bar, running: Mutex::default() }
    }

    /// Lets something be printed that is not of the build.
    pub fn beside(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn line(&self, style: anstyle::Style, verb: &str, text: &str) {
        let line = format!("{} {text}", print::paint(self.color, style, &format!("{verb:>9}")));
        match &self.bar {
            Some(bar) => bar.println(line),
            None => print::err(&(line + "\n")),
        }
    }

    /// What makes the steps run that will run, in a few lines.
    pub fn causes(&self, lines: &[String]) {
        for (index, line) in lines.iter().enumerate() {
            self.line(CYAN, if index == 0 { "because" } else { "" }, line);
        }
    }

    /// A line for each step is for logs and for those who asked; on a terminal the bar says enough.
    fn step_line(&self, style: anstyle::Style, verb: &str, text: &str) {
        if self.bar.is_none() || self.explain {
            self.line(style, verb, text);
        }
    }

    fn begin(&self, step: &str) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.push(step.to_owned());
        self.show(&running);
    }

    fn end(&self, step: &str) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|it| it != step);
        self.show(&running);
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    fn show(&self, running: &[String]) {
        if let Some(bar) = &self.bar {
            bar.set_message(running.join(", "));
        }
    }
}

impl Observer for Progress {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Waiting { what, holder } => {
                let what = match what {
                    Wait::Directory => "for this directory, which is cleaned by".to_owned(),
                    Wait::Step { step, .. } => format!("for {}, which is made by", step.identity()),
                    Wait::Device { .. } => "for this device, which is used by".to_owned(),
                };
                self.line(YELLOW, "waiting", &format!("{what} {holder}"));
            }
            Event::Begun { steps, .. } => {
                if let Some(bar) = &self.bar {
                    bar.set_length(steps as u64);
                }
            }
            Event::Started { step, reason, .. } => {
                if self.explain {
                    self.line(CYAN, "stale", &format!("{}: {reason}", step.identity()));
                }
                self.begin(step.identity());
            }
            Event::Finished { step, wall: _, unchanged } => {
                self.end(step.identity());
                let note = if unchanged { " (its outputs are unchanged)" } else { "" };
                self.step_line(GREEN, "ran", &format!("{}{note}", step.identity()));
            }
            Event::Retrying { step, failure } => {
                self.line(YELLOW, "retrying", &format!("{}: {}", step.identity(), failure.message));
            }
            Event::Found { step } => {
                self.end(step.identity());
                self.step_line(GREEN, "found", &format!("{} (another process made it)", step.identity()));
            }
            Event::CutOff { step } => {
                self.end(step.identity());
                self.step_line(GREEN, "cut off", &format!("{} (what it reads is unchanged)", step.identity()));
            }
            Event::Failed { step, failure } => {
                self.end(step.identity());
                self.line(RED, "failed", &format!("{}: {}", step.identity(), failure.message));
                for line in failure.detail.lines() {
                    self.line(RED, "", line);
                }
                if let Some(hint) = &failure.hint {
                    self.line(CYAN, "hint", hint);
                }
            }
            Event::Skipped { step, because } => {
                self.end(step.identity());
                self.step_line(YELLOW, "skipped", &format!("{}: {} failed", step.identity(), because.identity()));
            }
            Event::Repairing { damaged, step, failure } => {
                let (damaged, step) = (damaged.identity(), step.identity());
                self.line(YELLOW, "repairing", &format!("{damaged} is made again for {step}: {}", failure.message));
            }
            Event::Searching { step, progress } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("{}: {progress}", step.identity()));
                }
            }
            Event::Acquired { .. } | Event::Queued { .. } | Event::WorkerStarted { .. } | Event::Done { .. } => {}
            Event::Interrupted { step } => self.end(step.identity()),
            Event::Ended { .. } | Event::Aborted { .. } => {
                if let Some(bar) = &self.bar {
                    bar.finish_and_clear();
                }
            }
        }
    }
}
