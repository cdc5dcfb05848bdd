//! `kforge watch`: builds whenever a file that the project is read from says something else.

use super::{
    build::{self, How, Request},
    error::{Error, Outcome},
    gc,
    print::{self, CYAN, RED, YELLOW},
    progress::Progress,
    project::{self, Opened, Selection},
    result,
};
use crate::{
    build::{
        engine::{control::Control, interrupt, run::Built, worker::Leash},
        graph::{Decision, causes},
        watch::Watch,
    },
    manifest::{self, Sources},
};
use anstyle::Style;
use std::{
    collections::BTreeMap,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    how: How,
    /// Clear the terminal at each change
    #[arg(long)]
    clear: bool,
    /// Look at the files twice a second instead of asking the system to tell: for network file systems
    #[arg(long)]
    poll: bool,
}

/// After a change nothing may happen for so long before the project is read: an editor writes more than once.
const QUIET: Duration = Duration::from_millis(50);

/// A file that never comes to rest is read all the same.
const RESTLESS: Duration = Duration::from_secs(1);

/// How often it is looked whether a signal came.
const TICK: Duration = Duration::from_millis(50);

enum Message {
    /// Something happened to a file.
    Touched,
    Built(Box<Result<Built, Error>>),
}

pub fn main(directory: &Path, args: Args) -> Result<Outcome, Error> {
    let stop = Arc::new(Leash::default());
    let _guard = interrupt::guard(&stop);
    let root = project::root(directory);
    let root = root.canonicalize().unwrap_or(root);
    let (sender, messages) = mpsc::channel();
    let touched = {
        let sender = sender.clone();
        move |_: &[PathBuf]| sender.send(Message::Touched).unwrap_or(())
    };
    let watch = Watch::new(&root, args.poll, touched).map_err(|it| Error::environment(it.to_string()))?;
    let mut session = Session { args: &args, root, watch, sender, sources: None, running: None, next: None };
    session.look()?;
    session.attend(&messages, &stop)
}

struct Session<'a> {
    args: &'a Args,
    root: PathBuf,
    watch: Watch,
    sender: Sender<Message>,
    /// Of the last reading; none before the first.
    sources: Option<Sources>,
    running: Option<Running>,
    /// The project as it is to be built when what runs has ended.
    next: Option<Opened>,
}

/// A build in its own thread.
struct Running {
    opened: Arc<Opened>,
    leash: Arc<Leash>,
    control: Arc<Control>,
    progress: Arc<Progress>,
    thread: JoinHandle<()>,
}

impl Session<'_> {
    fn attend(&mut self, messages: &Receiver<Message>, stop: &Leash) -> Result<Outcome, Error> {
        // When something happened first, and last.
        let mut touched: Option<(Instant, Instant)> = None;
        loop {
            if stop.is_cancelled() {
                self.end();
                return Ok(Outcome::Interrupted);
            }
            match messages.recv_timeout(TICK) {
                Ok(Message::Touched) => {
                    let now = Instant::now();
                    touched = Some((touched.map_or(now, |it| it.0), now));
                }
                Ok(Message::Built(result)) => self.built(*result),
                Err(RecvTimeoutError::Timeout) => {}
                // The watch and this session each keep a sender.
                Err(RecvTimeoutError::Disconnected) => return Ok(Outcome::Interrupted),
            }
            if touched.is_some_and(|(first, last)| last.elapsed() >= QUIET || first.elapsed() >= RESTLESS) {
                touched = None;
                self.look()?;
            }
        }
    }

    /// Reads the project again and does what follows from it.
    fn look(&mut self) -> Result<(), Error> {
        let (project, sources) = manifest::load_with_sources(&self.root);
        let changed = match &self.sources {
            Some(before) => differences(before, &sources),
            None => Vec::new(),
        };
        if self.sources.is_some() && changed.is_empty() {
            return Ok(()); // touched, or a file that is not the project's
        }
        let polling = self.watch.is_polling();
        self.watch.follow(&self.root, &sources).map_err(|it| Error::environment(it.to_string()))?;
        if self.watch.is_polling() && !polling {
            print::warning("the system watches no more files; they are looked at twice a second instead");
        }
        let first = self.sources.replace(sources.clone()).is_none();
        if self.args.clear && io::stdout().is_terminal() {
            print::out("\x1b[2J\x1b[3J\x1b[H")?;
        }
        let opened = project.map_err(Error::from).and_then(|it| Opened::new(it, sources, &self.args.selection));
        match opened {
            Ok(opened) => self.take(opened, &changed, first),
            Err(error) => {
                self.say(|| error.print());
                let kept = if first { "nothing is built" } else { "what was built last stays" };
                self.line(RED, "broken", &format!("{kept} until this is put right"));
                Ok(())
            }
        }
    }

    /// A project without mistakes: tells what is stale, and builds it now or after what still has to end.
    fn take(&mut self, opened: Opened, changed: &[String], first: bool) -> Result<(), Error> {
        let decisions = opened.graph.status(&opened.store, |_| false);
        let stale = decisions.iter().filter(|it| !it.is_up_to_date()).count();
        let (style, verb, what) = match (first, stale) {
            (true, _) => (CYAN, "watching", format!("{} blocks", opened.blocks.len())),
            (false, 0) => (CYAN, "changed", format!("{}: nothing is stale", changed.join(", "))),
            (false, _) => (CYAN, "changed", format!("{}: {stale} steps stale or waiting", changed.join(", "))),
        };
        self.line(style, verb, &what);
        if !first {
            for cause in causes::top(&causes::causes(&opened.graph, &decisions, &opened.store)) {
                self.line(CYAN, "because", &cause);
            }
        }
        match &self.running {
            None => self.start(opened, &decisions),
            Some(running) => {
                let old = &running.opened.graph;
                let ended = running.control.supersede(|step, running| {
                    let now = opened.graph.find(old.step(step).identity()).map(|it| &decisions[it.index()]);
                    matches!(now, Some(Decision::Stale { key, .. }) if key == running)
                });
                for step in ended {
                    self.line(YELLOW, "ended", &format!("{}: not wanted any more", old.step(step).identity()));
                }
                self.next = Some(opened);
                Ok(())
            }
        }
    }

    fn start(&mut self, opened: Opened, decisions: &[Decision]) -> Result<(), Error> {
        if let Some(built) = build::nothing_to_do(&opened, decisions, &opened.goals())? {
            return Ok(print::out(&result::summary(&built))?);
        }
        let (opened, leash) = (Arc::new(opened), Arc::new(Leash::default()));
        let (control, progress) = (Arc::new(Control::default()), Arc::new(Progress::new(false)));
        let thread = thread::spawn({
            let (opened, leash, control, progress) =
                (Arc::clone(&opened), Arc::clone(&leash), Arc::clone(&control), Arc::clone(&progress));
            let (how, sender) = (self.args.how.clone(), self.sender.clone());
            move || {
                let request = Request { goals: &opened.goals(), force: false, how: &how };
                let built = build::build_under((&leash, &control), &opened, &request, &*progress);
                sender.send(Message::Built(Box::new(built))).unwrap_or(());
            }
        });
        self.running = Some(Running { opened, leash, control, progress, thread });
        Ok(())
    }

    /// The running build is over.
    fn built(&mut self, result: Result<Built, Error>) {
        let Some(running) = self.running.take() else { return };
        if result.as_ref().is_ok_and(|it| it.counts().ran > 0) {
            gc::after_build(&self.root, &running.opened);
        }
        let told = match result {
            Ok(built) if built.superseded => Ok(()),
            Ok(built) => print::out(&result::news(&running.opened, &built)),
            Err(error) => {
                error.print();
                Ok(())
            }
        };
        // Nobody reads any more: there is nobody to watch for. The next signal ends it.
        told.unwrap_or(());
        // It sent its result with its last breath.
        running.thread.join().unwrap_or(());
        if let Some(next) = self.next.take() {
            let decisions = next.graph.status(&next.store, |_| false);
            if let Err(error) = self.start(next, &decisions) {
                error.print();
            }
        }
    }

    /// Ends what runs and waits for its end.
    fn end(&mut self) {
        if let Some(running) = self.running.take() {
            running.leash.cancel();
            running.thread.join().unwrap_or(());
        }
    }

    fn line(&self, style: Style, verb: &str, text: &str) {
        let color = print::colored(&io::stderr());
        let line = format!("{} {text}\n", print::paint(color, style, &format!("{verb:>9}")));
        self.say(|| print::err(&line));
    }

    /// Lets something be printed beside the progress of a running build.
    fn say(&self, print: impl FnOnce()) {
        match &self.running {
            Some(running) => running.progress.beside(print),
            None => print(),
        }
    }
}

/// The files that no longer say what they said, that came or that went.
fn differences(before: &Sources, now: &Sources) -> Vec<String> {
    let said = |it: &Sources| -> BTreeMap<PathBuf, _> { it.seen.iter().map(|it| (it.path.clone(), it.what)).collect() };
    let (before, now) = (said(before), said(now));
    let differ = |path: &&PathBuf| before.get(*path) != now.get(*path);
    let mut paths: Vec<_> = before.keys().chain(now.keys()).filter(differ).map(|it| it.display().to_string()).collect();
    paths.sort();
    paths.dedup();
    paths
}
