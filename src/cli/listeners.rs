//! Who listens to a build: the progress on stderr, and the files that were asked for.

use super::{error::Error, print, progress::Progress, project::Opened};
use crate::build::engine::{
    events::{Events, Subject},
    observe::{FanOut, Observer},
    sink::SinkError,
    trace::Trace,
};
use std::{
    env,
    path::{Path, PathBuf},
};

/// The files that a build tells into.
#[derive(Debug, Default, clap::Args)]
pub struct Files {
    /// Write what happens into FILE as JSON lines, while it happens
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dry_run", "locked"])]
    events: Option<PathBuf>,
    /// Write a picture of the build in time into FILE, for https://ui.perfetto.dev and chrome://tracing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dry_run", "locked"])]
    trace: Option<PathBuf>,
}

impl Files {
    /// Whether one was asked for.
    pub fn any(&self) -> bool {
        self.events.is_some() || self.trace.is_some()
    }
}

pub struct Listeners {
    progress: Progress,
    events: Option<Events>,
    trace: Option<Trace>,
}

impl Listeners {
    /// Only the progress.
    pub fn quiet() -> Self {
        Self { progress: Progress::new(false), events: None, trace: None }
    }

    /// Creates the files. Relative paths are in `directory`, as if kforge had been started there.
    pub fn open(directory: &Path, opened: &Opened, files: &Files, explain: bool) -> Result<Self, Error> {
        let command: Vec<_> = env::args_os().map(|it| it.to_string_lossy().into_owned()).collect();
        let root = opened.project.root.to_string_lossy();
        let subject = Subject { project: &opened.project.name, directory: &root, command: &command };
        let path = |flag: &str, path: &Option<PathBuf>| match path {
            Some(path) if path.as_os_str() == "-" => {
                let error = Error::input(format!("`{flag} -`: standard output is for the result"));
                Err(error.with_hint("name a file or a pipe, for example /dev/stderr"))
            }
            path => Ok(path.as_ref().map(|it| directory.join(it))),
        };
        let (events, trace) = (path("--events", &files.events)?, path("--trace", &files.trace)?);
        if events.is_some() && events == trace {
            return Err(Error::input("`--events` and `--trace` name the same file"));
        }
        let unusable = |error: SinkError| Error::input(error.to_string());
        let events = events.map(|it| Events::create(&it, &subject)).transpose().map_err(unusable)?;
        let trace = trace.map(|it| Trace::create(&it, &subject)).transpose().map_err(unusable)?;
        Ok(Self { progress: Progress::new(explain), events, trace })
    }

    /// Tells what makes steps run.
    pub fn causes(&self, lines: &[String]) {
        self.progress.causes(lines);
    }

    /// All of them as one.
    pub fn all(&self) -> FanOut<'_> {
        let events = self.events.iter().map(|it| it as &dyn Observer);
        let trace = self.trace.iter().map(|it| it as &dyn Observer);
        FanOut([&self.progress as &dyn Observer].into_iter().chain(events).chain(trace).collect())
    }

    /// Ends the files. One that is incomplete is told; it takes nothing from what was built.
    pub fn finish(self) -> Result<(), Error> {
        let results = [self.events.map(Events::finish), self.trace.map(Trace::finish)];
        let mut failed = Ok(());
        for error in results.into_iter().flatten().filter_map(Result::err) {
            if failed.is_err() {
                print::warning(&error.to_string());
            } else {
                failed = Err(Error::environment(error.to_string()).with_hint("what was built is not affected"));
            }
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::engine::{observe::Event, sink::tests::Memory};
    use std::sync::Arc;

    #[test]
    fn a_file_that_became_full_is_told_at_the_end() {
        let events = Some(Events::new(Memory(Arc::default(), 0).sink()));
        let listeners = Listeners { events, ..Listeners::quiet() };
        listeners.all().event(Event::Aborted { error: "no room" });
        assert_eq!(listeners.finish().unwrap_err().to_string(), "`told` is incomplete: full");
    }
}
