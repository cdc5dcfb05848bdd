//! A session of `kforge watch` in a pseudo-terminal: what a person at a terminal sees and does.

use crate::project::{Project, processes_on, signal, wait_until};
use kernelforge::store::{
    Store,
    lock::{Lock, Sharing},
};
use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use std::{
    fs::{self, File},
    io::Read,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

struct Session {
    kforge: Child,
    /// All that the terminal was sent.
    screen: Arc<Mutex<String>>,
    /// What was looked at already.
    seen: usize,
}

impl Session {
    fn start(project: &Project, args: &[&str]) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        tcsetwinsize(&terminal, Winsize { ws_row: 50, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
        let end = || Stdio::from(File::options().read(true).write(true).open(&name).unwrap());
        let mut command = project.command(args);
        command.env("NO_COLOR", "1").env("TERM", "xterm").stdin(end()).stdout(end()).stderr(end());
        let kforge = command.spawn().unwrap();
        drop(command); // its ends of the terminal, so that reading ends with kforge
        let screen = Arc::new(Mutex::new(String::new()));
        thread::spawn({
            let (screen, mut terminal) = (Arc::clone(&screen), File::from(terminal));
            move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = terminal.read(&mut buffer) {
                    screen.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
                }
            }
        });
        Self { kforge, screen, seen: 0 }
    }

    /// Waits until this is on the screen, below what was seen before. Returns what came up to its end.
    fn sees(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            let screen = self.screen.lock().unwrap().clone();
            if let Some(at) = screen[self.seen..].find(text) {
                let end = self.seen + at + text.len();
                let came = screen[self.seen..end].to_owned();
                self.seen = end;
                return came;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "`{text}` is not in {}", &screen[self.seen..]);
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn interrupt(mut self, project: &Project) {
        signal("INT", self.kforge.id());
        assert_eq!(self.kforge.wait().unwrap().code(), Some(130), "{}", self.screen.lock().unwrap());
        let store = project.path(".kforge-cache");
        wait_until("no worker is left", || processes_on(&store).is_empty());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.kforge.kill().unwrap_or(());
    }
}

#[test]
fn a_session_follows_edits_of_every_kind() {
    let project = Project::new();
    let mut session = Session::start(&project, &["watch"]);
    session.sees("watching 2 blocks");
    session.sees("done: 12 steps run, 0 up to date");

    // A field, with the new figures beside the last ones.
    project.edit("workloads/blocks.toml", "norm-eps = 1e-5", "norm-eps = 1e-6");
    let line = session.sees("6 steps stale or waiting");
    assert!(line.contains("changed workloads/blocks.toml: "), "{line}");
    session.sees("`norm-eps` changed from 1e-5 to 1e-6");
    let news = session.sees("done: 6 steps run, 6 up to date");
    assert!(news.contains("first@cpu: ") && news.contains(", was "), "{news}");
    assert!(!news.contains("second@cpu "), "nothing happened to it: {news}");

    // What is not the project's, and what says the same, is passed over in silence.
    fs::write(project.path("workloads/notes.txt"), "nothing").unwrap();
    fs::write(project.path("workloads/blocks.toml~"), "backup").unwrap();
    let text = fs::read_to_string(project.path("workloads/blocks.toml")).unwrap();
    fs::write(project.path("workloads/blocks.toml"), &text).unwrap();
    // A comment is a change of the file, and of nothing else.
    fs::write(project.path("workloads/blocks.toml"), format!("# note\n{text}")).unwrap();
    let line = session.sees("changed workloads/blocks.toml: nothing is stale");
    assert_eq!(line.matches("changed").count(), 1, "{line}");
    session.sees("done: 0 steps run, 12 up to date");

    // Saved as editors do: written beside it and renamed.
    fs::write(project.path("workloads/.blocks.swp"), text.replace("m = 8", "m = 9")).unwrap();
    fs::rename(project.path("workloads/.blocks.swp"), project.path("workloads/blocks.toml")).unwrap();
    session.sees("`m` changed from 8 to 9");
    session.sees("done: 6 steps run, 6 up to date");

    // A mistake is shown in its place, and nothing is lost.
    project.edit("workloads/blocks.toml", "d-model", "d-modle");
    let shown = session.sees("broken what was built last stays until this is put right");
    assert!(shown.contains("d-modle") && shown.contains("did you mean") && shown.contains("blocks.toml:"), "{shown}");
    project.edit("workloads/blocks.toml", "d-modle", "d-model");
    session.sees("nothing is stale");
    session.sees("done: 0 steps run, 12 up to date");

    // A file that comes, a folder that goes and comes back.
    fs::write(project.path("workloads/more.toml"), "[block.more]\nkind = \"layer-norm\"\nseq = 2\nd-model = 8\n")
        .unwrap();
    session.sees("changed workloads/more.toml: 6 steps stale or waiting");
    session.sees("done: 6 steps run, 12 up to date");
    fs::rename(project.path("workloads"), project.path("aside")).unwrap();
    session.sees("matches no file");
    fs::rename(project.path("aside"), project.path("workloads")).unwrap();
    session.sees("nothing is stale");
    session.sees("done: 0 steps run, 18 up to date");
    project.edit("workloads/more.toml", "seq = 2", "seq = 3");
    session.sees("done: 6 steps run, 12 up to date");
    session.interrupt(&project);
}

#[test]
fn an_edit_during_a_build_ends_what_it_made_stale_and_lets_the_rest_finish() {
    let project = Project::new();
    let steps = project.done(&["build", "-n", "--json"]).json();
    let key = steps["steps"][0]["status"]["key"].as_str().unwrap().parse().unwrap();
    assert_eq!(steps["steps"][0]["step"], "first@cpu:ir");
    let (store, _) = Store::open(&project.folder.path().canonicalize().unwrap()).unwrap();
    // Somebody else makes it, and takes long.
    let lock = Lock::acquire(&store.step_lock_path(&key), Sharing::Alone, None, |_| {}).unwrap();
    let mut session = Session::start(&project, &["watch", "-j2"]);
    session.sees("waiting for first@cpu:ir");
    project.edit("workloads/blocks.toml", "norm-eps = 1e-5", "norm-eps = 1e-6");
    session.sees("changed workloads/blocks.toml: ");
    session.sees("ended first@cpu:ir: not wanted any more");
    let rest = session.sees(" up to date");
    drop(lock);
    // Of the other block some steps were made before; all that it lacked was made now.
    let ran: usize = rest.rsplit_once("done: ").unwrap().1.split(' ').next().unwrap().parse().unwrap();
    assert!((6..=12).contains(&ran) && !rest.contains("ended second"), "{rest}");
    session.interrupt(&project);
    assert!(project.done(&["build"]).stdout.ends_with("done: 0 steps run, 12 up to date\n"));
}

#[test]
fn polling_sees_the_same_and_a_project_that_begins_broken_can_be_mended() {
    let project = Project::new();
    project.edit("workloads/blocks.toml", "d-model", "d-modle");
    let mut session = Session::start(&project, &["watch", "--poll", "--clear", "first"]);
    session.sees("\u{1b}[2J");
    session.sees("broken nothing is built until this is put right");
    project.edit("workloads/blocks.toml", "d-modle", "d-model");
    session.sees("\u{1b}[2J");
    session.sees("done: 6 steps run, 0 up to date");
    session.interrupt(&project);
}

#[test]
fn ctrl_c_in_the_middle_of_a_build_leaves_nothing_running() {
    let project = Project::new();
    let mut session = Session::start(&project, &["watch"]);
    session.sees("watching 2 blocks");
    let store = project.path(".kforge-cache");
    wait_until("a worker runs", || !processes_on(&store).is_empty());
    session.interrupt(&project);
}
