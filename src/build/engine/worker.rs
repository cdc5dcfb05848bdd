//! One `kforge-worker` process as the tool sees it: started on demand, asked one action after another, killed when it is
//! late, and never trusted. A worker that dies takes its action with it and nothing else; [`Seat`] starts the next one.

use crate::{
    digest::Digest,
    protocol::{Action, ActionKind, Done, Failure, FailureKind, Hello, Limits, Outcome, PROTOCOL_VERSION, recipe},
};
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    collections::{BTreeMap, VecDeque},
    env, fmt,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Names the worker's executable; without it the one beside `kforge` is used.
pub const WORKER_VARIABLE: &str = "KFORGE_WORKER";

/// A worker says hello in 10 ms; a machine that swaps may take a thousand times as long.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// Between the end of its output and the end of a process that was not killed.
const GRACE: Duration = Duration::from_millis(500);

/// No worker can be had: the environment's fault, not the project's.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("there is no worker: `{}` does not exist", .0.display())]
    Absent(PathBuf),
    #[error("the worker `{}` does not start: {source}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("the worker `{}` did not introduce itself: {problem}", program.display())]
    Handshake { program: PathBuf, problem: String },
    #[error("the worker `{}` is not of this build of kforge: {difference}", program.display())]
    Mismatch { program: PathBuf, difference: String },
    #[error("interrupted")]
    Interrupted,
}

impl WorkerError {
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Absent(_) => Some(format!(
                "build both binaries (`cargo build --release`), or name the worker in the variable `{WORKER_VARIABLE}`"
            )),
            Self::Mismatch { .. } => Some("build both binaries again: `cargo build --release`".to_owned()),
            Self::Start { .. } | Self::Handshake { .. } => Some("`kforge doctor` says more".to_owned()),
            Self::Interrupted => None,
        }
    }
}

/// How to start a worker.
#[derive(Debug, Clone)]
pub struct Toolchain {
    /// `None`: the one named by [`WORKER_VARIABLE`], or else the one beside this executable.
    pub program: Option<PathBuf>,
    /// The store whose blobs the worker reads and writes.
    pub store: PathBuf,
    /// For tests of the limits only.
    pub allow_faults: bool,
}

impl Toolchain {
    /// The installed worker on this store. Nothing is looked for until a worker is needed.
    pub fn new(store: &Path) -> Self {
        Self { program: None, store: store.to_owned(), allow_faults: false }
    }

    /// The worker's executable.
    pub fn locate(&self) -> Result<PathBuf, WorkerError> {
        if let Some(program) = self.program.clone().or_else(|| env::var_os(WORKER_VARIABLE).map(PathBuf::from)) {
            return if program.is_file() { Ok(program) } else { Err(WorkerError::Absent(program)) };
        }
        let tool =
            env::current_exe().map_err(|source| WorkerError::Start { program: "kforge-worker".into(), source })?;
        let program = tool.with_file_name("kforge-worker");
        if program.is_file() { Ok(program) } else { Err(WorkerError::Absent(program)) }
    }
}

/// Holds every living worker of a build, so that an interruption can kill them all at once from another thread.
#[derive(Default)]
pub struct Leash {
    cancelled: AtomicBool,
    children: Mutex<Vec<Arc<Mutex<Child>>>>,
}

impl Leash {
    /// Kills all workers and lets no new one start.
    pub fn cancel(&self) {
        let children = lock(&self.children);
        self.cancelled.store(true, Ordering::SeqCst);
        for child in children.iter() {
            kill(&mut lock(child));
        }
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    fn start(&self, command: &mut Command) -> io::Result<Option<Arc<Mutex<Child>>>> {
        let mut children = lock(&self.children);
        if self.is_cancelled() {
            return Ok(None);
        }
        let child = Arc::new(Mutex::new(command.spawn()?));
        children.push(Arc::clone(&child));
        Ok(Some(child))
    }

    fn forget(&self, child: &Arc<Mutex<Child>>) {
        lock(&self.children).retain(|it| !Arc::ptr_eq(it, child));
    }
}

/// Lets another thread end one action without ending the build.
#[derive(Debug, Default)]
pub struct Token(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    revoked: bool,
    /// Those that do something for it: one, or those of a search.
    children: Vec<Arc<Mutex<Child>>>,
}

impl Token {
    /// The action ends as soon as possible, and its worker with it.
    pub fn revoke(&self) {
        let mut held = lock(&self.0);
        held.revoked = true;
        for child in &held.children {
            kill(&mut lock(child));
        }
    }

    pub fn is_revoked(&self) -> bool {
        lock(&self.0).revoked
    }

    /// Whether the action may begin.
    fn hold(&self, child: &Arc<Mutex<Child>>) -> bool {
        let mut held = lock(&self.0);
        held.children.push(Arc::clone(child));
        !held.revoked
    }

    /// The worker is not this action's any more.
    fn release(&self, child: &Arc<Mutex<Child>>) {
        lock(&self.0).children.retain(|it| !Arc::ptr_eq(it, child));
    }
}

fn cancelled() -> Failure {
    Failure::new(FailureKind::Cancelled, "interrupted")
}

/// Ends a worker and what it may have started: each worker leads a process group of its own.
fn kill(child: &mut Child) {
    // A process that has been waited for has no number any more, and another one may have it now.
    if let (Ok(None), Some(pid)) = (child.try_wait(), Pid::from_raw(child.id().cast_signed())) {
        let _ = kill_process_group(pid, Signal::KILL);
    }
    // Either may fail only where the process is already gone.
    let _ = child.kill();
}

/// A poisoned lock guards only a list or a process handle here, both valid at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last bytes that a worker wrote to stderr.
#[derive(Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    const LIMIT: usize = 16 << 10;

    fn extend(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(Self::LIMIT)..];
        let excess = (self.0.len() + bytes.len()).saturating_sub(Self::LIMIT);
        self.0.drain(..excess);
        self.0.extend(bytes);
    }

    fn text(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        String::from_utf8_lossy(&bytes).trim_end().to_owned()
    }
}

/// A living worker process.
struct Worker {
    child: Arc<Mutex<Child>>,
    stdin: ChildStdin,
    /// Ends when the process closes its output, which is when it dies.
    lines: Receiver<String>,
    stderr: Arc<Mutex<Tail>>,
    /// Reads stderr; ends with it.
    listener: JoinHandle<()>,
    actions: u64,
}

impl Worker {
    fn start(toolchain: &Toolchain, leash: &Leash) -> Result<(Self, Hello), WorkerError> {
        let program = &toolchain.locate()?;
        let failed = |source| WorkerError::Start { program: program.clone(), source };
        let mut command = Command::new(program);
        command.arg("serve").arg("--store").arg(&toolchain.store);
        if toolchain.allow_faults {
            command.arg("--allow-faults");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C in a terminal goes to a whole process group. The tool alone decides what it means for a worker.
        command.process_group(0);
        let child = leash.start(&mut command).map_err(failed)?.ok_or(WorkerError::Interrupted)?;
        let pipes = {
            let mut child = lock(&child);
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        };
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(failed(io::Error::other("its pipes are missing")));
        };
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let tail = Arc::new(Mutex::new(Tail::default()));
        let listener = thread::spawn({
            let tail = Arc::clone(&tail);
            move || listen(stderr, &tail)
        });
        let mut worker = Self { child, stdin, lines, stderr: tail, listener, actions: 0 };
        match worker.handshake(program) {
            Ok(hello) => Ok((worker, hello)),
            Err(error) => {
                worker.end(leash);
                Err(if leash.is_cancelled() { WorkerError::Interrupted } else { error })
            }
        }
    }

    fn handshake(&mut self, program: &Path) -> Result<Hello, WorkerError> {
        let refuse = |problem: String| WorkerError::Handshake { program: program.to_owned(), problem };
        let line = match self.lines.recv_timeout(HANDSHAKE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => return Err(refuse(format!("silent for {} s", HANDSHAKE.as_secs()))),
            Err(RecvTimeoutError::Disconnected) => {
                let end = self.reap().map_or_else(|| "it ended".to_owned(), |it| Ending(it).to_string());
                return Err(refuse(format!("{end}; {}", lock(&self.stderr).text())));
            }
        };
        let hello: Hello = serde_json::from_str(&line).map_err(|error| refuse(format!("{error} in `{line}`")))?;
        let difference = if hello.protocol != PROTOCOL_VERSION {
            format!("it speaks protocol {}, kforge {PROTOCOL_VERSION}", hello.protocol)
        } else if hello.recipe != recipe::WORKER {
            format!("its sources are {}, kforge's {}", hello.recipe.short(), recipe::WORKER.short())
        } else {
            return Ok(hello);
        };
        Err(WorkerError::Mismatch { program: program.to_owned(), difference })
    }

    /// `None`: the worker was dead before it could read the action.
    fn execute(&mut self, request: &Request, ended: &dyn Fn() -> bool) -> Option<(Result<Done, Failure>, Health)> {
        self.actions += 1;
        let id = self.actions;
        let action = Action { id, kind: request.kind.clone(), inputs: request.inputs.clone(), limits: request.limits };
        let mut message = match serde_json::to_vec(&action) {
            Ok(message) => message,
            Err(error) => {
                let failure = Failure::new(FailureKind::Internal, format!("an action is no JSON: {error}"));
                return Some((Err(failure), Health::Alive));
            }
        };
        message.push(b'\n');
        lock(&self.stderr).0.clear();
        self.stdin.write_all(&message).ok()?;
        let failure = match self.lines.recv_timeout(Duration::from_millis(request.limits.wall_ms)) {
            Ok(line) => match serde_json::from_str::<Outcome>(&line) {
                Ok(outcome) if outcome.id == id => return Some((outcome.result, Health::Alive)),
                Ok(outcome) => {
                    let message = format!("the worker answered action {} instead of {id}", outcome.id);
                    Failure::new(FailureKind::Crash, message)
                }
                Err(error) => Failure::new(FailureKind::Crash, format!("the worker wrote what is no outcome: {error}")),
            },
            Err(RecvTimeoutError::Timeout) => {
                let limit = Duration::from_millis(request.limits.wall_ms);
                Failure::new(FailureKind::Timeout, format!("killed at its limit of {limit:?}"))
            }
            Err(RecvTimeoutError::Disconnected) => match self.reap() {
                Some(status) => self.post_mortem(status, request.limits),
                None => Failure::new(FailureKind::Crash, "the worker closed its output and lived on; it was killed"),
            },
        };
        let failure = if ended() {
            cancelled()
        } else {
            let detail = lock(&self.stderr).text();
            failure.with_detail(detail)
        };
        Some((Err(failure), Health::Broken))
    }

    /// The exit status of a process that has closed its output; `None` where it does not end by itself.
    fn reap(&mut self) -> Option<ExitStatus> {
        let step = Duration::from_millis(5);
        let mut waited = Duration::ZERO;
        loop {
            if let Ok(Some(status)) = lock(&self.child).try_wait() {
                // All it ever wrote to stderr is now in the pipe: let the listener read to the end. Not for longer than
                // that takes: a child of the worker could hold the pipe open for ever.
                while waited < GRACE && !self.listener.is_finished() {
                    thread::sleep(step);
                    waited += step;
                }
                return Some(status);
            }
            if waited >= GRACE {
                return None;
            }
            thread::sleep(step);
            waited += step;
        }
    }

    fn post_mortem(&self, status: ExitStatus, limits: Limits) -> Failure {
        // Rust's and C++'s allocators and LLVM abort with these lines when the address-space limit makes an allocation fail.
        const MARKS: [&str; 4] = ["memory allocation of", "std::bad_alloc", "out of memory", "Cannot allocate memory"];
        let log = lock(&self.stderr).text();
        if MARKS.iter().any(|it| log.contains(it)) {
            let limit = limits.memory_bytes >> 20;
            return Failure::new(FailureKind::OutOfMemory, format!("ran out of its {limit} MiB of memory"));
        }
        let failure = Failure::new(FailureKind::Crash, format!("the worker {}", Ending(status)));
        if status.signal() == Some(9) {
            return failure.with_hint("kforge did not send that signal; the system's out-of-memory killer does");
        }
        failure
    }

    fn end(&mut self, leash: &Leash) {
        {
            let mut child = lock(&self.child);
            kill(&mut child);
            let _ = child.wait();
        }
        leash.forget(&self.child);
    }
}

fn listen(mut stderr: impl Read, tail: &Mutex<Tail>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stderr.read(&mut buffer) {
        lock(tail).extend(&buffer[..count]);
    }
}

/// Tells how a process ended.
struct Ending(ExitStatus);

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(signal) = self.0.signal() else {
            return write!(f, "exited with code {}", self.0.code().unwrap_or_default());
        };
        let name = match signal {
            4 => "SIGILL, an illegal instruction",
            5 => "SIGTRAP",
            6 => "SIGABRT",
            7 => "SIGBUS",
            8 => "SIGFPE",
            9 => "SIGKILL",
            11 => "SIGSEGV, an invalid memory access",
            15 => "SIGTERM",
            31 => "SIGSYS",
            _ => return write!(f, "was killed by signal {signal}"),
        };
        write!(f, "was killed by {name}")
    }
}

#[derive(PartialEq, Eq)]
enum Health {
    Alive,
    Broken,
}

/// An action without its number.
#[derive(Debug, Clone)]
pub struct Request {
    pub kind: ActionKind,
    pub inputs: BTreeMap<String, Digest>,
    pub limits: Limits,
}

/// A place for one worker: empty until the first action, filled again after a worker broke. A seat belongs to one thread,
/// because the kernel kills a worker together with the thread that started it.
pub struct Seat<'a> {
    toolchain: &'a Toolchain,
    leash: &'a Leash,
    worker: Option<Worker>,
    on_start: &'a OnStart<'a>,
}

/// Told of each worker that starts: its process, and how long it took until it could be asked.
pub type OnStart<'a> = dyn Fn(u32, Duration) + 'a;

impl<'a> Seat<'a> {
    pub fn new(toolchain: &'a Toolchain, leash: &'a Leash) -> Self {
        Self { toolchain, leash, worker: None, on_start: &|_, _| () }
    }

    pub const fn toolchain(&self) -> &'a Toolchain {
        self.toolchain
    }

    pub const fn leash(&self) -> &'a Leash {
        self.leash
    }

    pub fn on_start(mut self, on_start: &'a OnStart<'a>) -> Self {
        self.on_start = on_start;
        self
    }

    /// Starts a worker, in place of the one that there may be, and tells what it said.
    pub fn hello(&mut self) -> Result<Hello, WorkerError> {
        self.vacate();
        Ok(self.start()?.1)
    }

    /// Starts a worker if there is none. Returns its process.
    pub fn fill(&mut self) -> Result<u32, WorkerError> {
        match self.pid() {
            Some(process) => Ok(process),
            None => Ok(self.start()?.0),
        }
    }

    fn start(&mut self) -> Result<(u32, Hello), WorkerError> {
        let start = Instant::now();
        let (worker, hello) = Worker::start(self.toolchain, self.leash)?;
        let process = lock(&worker.child).id();
        self.worker = Some(worker);
        (self.on_start)(process, start.elapsed());
        Ok((process, hello))
    }

    /// The process of the seated worker, if there is one.
    pub fn pid(&self) -> Option<u32> {
        self.worker.as_ref().map(|it| lock(&it.child).id())
    }

    /// Does one action. The outer error is about having a worker at all, the inner one about the action.
    pub fn execute(&mut self, request: &Request) -> Result<Result<Done, Failure>, WorkerError> {
        self.execute_revocably(request, &Token::default())
    }

    /// [`Seat::execute`], until the token is revoked.
    pub fn execute_revocably(
        &mut self,
        request: &Request,
        token: &Token,
    ) -> Result<Result<Done, Failure>, WorkerError> {
        let mut fresh = false;
        loop {
            let worker = match &mut self.worker {
                Some(worker) => worker,
                None => {
                    fresh = true;
                    self.start()?;
                    continue;
                }
            };
            if !token.hold(&worker.child) {
                token.release(&worker.child);
                return Ok(Err(cancelled()));
            }
            let ended = || self.leash.is_cancelled() || token.is_revoked();
            let result = worker.execute(request, &ended);
            token.release(&worker.child);
            match result {
                Some((result, health)) => {
                    if health == Health::Broken {
                        self.vacate();
                    }
                    return Ok(result);
                }
                // Died while idle: the action was never begun, so another worker may have it.
                None if !fresh && !ended() => self.vacate(),
                None => {
                    let failure = if ended() {
                        cancelled()
                    } else {
                        Failure::new(FailureKind::Crash, "the worker died before it read the action")
                    };
                    self.vacate();
                    return Ok(Err(failure));
                }
            }
        }
    }

    /// Ends the worker; the next action gets a new one.
    pub fn vacate(&mut self) {
        if let Some(mut worker) = self.worker.take() {
            worker.end(self.leash);
        }
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.vacate();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_log_is_kept_and_its_head_dropped() {
        let mut tail = Tail::default();
        tail.extend(&[b'a'; Tail::LIMIT]);
        tail.extend(b"end");
        assert_eq!(tail.0.len(), Tail::LIMIT);
        assert!(tail.text().ends_with("aend"));
        tail.extend(&[b'b'; Tail::LIMIT + 7]);
        assert_eq!(tail.text(), "b".repeat(Tail::LIMIT));
    }

    #[test]
    fn an_ending_names_its_signal() {
        assert_eq!(Ending(ExitStatus::from_raw(11)).to_string(), "was killed by SIGSEGV, an invalid memory access");
        assert_eq!(Ending(ExitStatus::from_raw(3 << 8)).to_string(), "exited with code 3");
    }

    #[test]
    fn a_program_that_is_no_worker_is_refused() {
        let leash = Leash::default();
        let store = PathBuf::from(".");
        let toolchain = Toolchain { program: Some("/bin/echo".into()), ..Toolchain::new(&store) };
        let error = Seat::new(&toolchain, &leash).hello().unwrap_err();
        assert!(matches!(error, WorkerError::Handshake { .. }), "{error}");
        let toolchain = Toolchain { program: Some("/nonexistent".into()), ..toolchain };
        assert!(matches!(Seat::new(&toolchain, &leash).hello(), Err(WorkerError::Absent(_))));
    }

    #[test]
    fn no_worker_starts_after_an_interruption() {
        let leash = Leash::default();
        leash.cancel();
        let toolchain = Toolchain { program: Some("/bin/cat".into()), ..Toolchain::new(Path::new(".")) };
        assert!(matches!(Seat::new(&toolchain, &leash).hello(), Err(WorkerError::Interrupted)));
    }
}
