//! A build on a disk that is full, and again when there is room.

use crate::project::{KFORGE, Project};
use std::process::Command;

#[test]
fn a_build_on_a_full_disk_says_so_and_succeeds_when_there_is_room() {
    let project = Project::new();
    let cache = project.path(".kforge-cache");
    std::fs::create_dir(&cache).unwrap();
    // In a mount namespace of its own, where the system lets us have one.
    // Full when the store is opened, in the worker, when a step is recorded, when a file is copied.
    let script = "mount -t tmpfs -o size=8k tmpfs .kforge-cache || exit 77\n\
                  for size in 8k 16k 24k 32k 40k 48k 60k 80k 120k; do\n\
                  mount -o remount,size=$size .kforge-cache; \"$1\" build -j1; echo \"exit $?\"; done\n\
                  \"$1\" cache verify; echo \"exit $?\"\n\
                  mount -o remount,size=64m .kforge-cache || exit 77\n\
                  \"$1\" build; echo \"exit $?\"\n\
                  \"$1\" cache verify; echo \"exit $?\"\n";
    let mut command = Command::new("unshare");
    command.args(["-Urm", "sh", "-c", script, "sh", KFORGE]).current_dir(project.folder.path());
    let output = match command.env("XDG_RUNTIME_DIR", project.path("run")).output() {
        Ok(output) => output,
        Err(error) => return println!("skipped: no `unshare`: {error}"),
    };
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !stdout.contains("exit ") {
        return println!("skipped: no mounts here: {stderr}");
    }
    let codes: Vec<_> = stdout.lines().filter_map(|it| it.strip_prefix("exit ")).collect();
    assert_eq!(codes, ["3", "3", "3", "3", "3", "3", "3", "3", "3", "0", "0", "0"], "{stdout}{stderr}");
    assert!(stderr.contains("No space left on device"), "{stderr}");
    assert!(stdout.contains("done: ") && stdout.contains("sound: "), "{stdout}");
}
