//! The store under bad disks, several processes and sudden death. Child processes are this test binary itself.

mod blobs;
mod damage;
pub(super) mod disk;
mod folder;
mod full;
mod gc;
mod records;

use super::{
    cas::Cas,
    key::KeyParts,
    lock::{Lock, Sharing},
    records::{Record, Records},
};
use crate::digest::Digest;
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::Duration,
};
use tempfile::TempDir;

fn dir() -> TempDir {
    TempDir::new().unwrap()
}

/// Starts this binary again to do `role` in `dir`; its output is open once it has written the line `ready`.
fn child(role: &str, dir: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::child_process", "--ignored", "--nocapture", "--test-threads=1"])
        .env("KFORGE_TEST_ROLE", role)
        .env("KFORGE_TEST_DIR", dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.trim_end().ends_with("ready") {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the child ended before it was ready");
    }
    (child, output)
}

/// Blob `index` of the child's endless sequence.
fn blob(index: u64) -> Vec<u8> {
    index.to_le_bytes().repeat(40_000)
}

fn record(index: u64) -> Record {
    let parts = KeyParts::new().with("index", index).with("long", "x".repeat(500));
    let outputs = [("object".to_owned(), Digest::of(&index.to_le_bytes()))].into();
    Record { key: parts.key(), parts, outputs, finished_unix: 1_700_000_000 + index, wall_us: index }
}

#[test]
#[ignore = "run by other tests, as a process to be killed"]
fn child_process() {
    let (Ok(role), Some(dir)) = (std::env::var("KFORGE_TEST_ROLE"), std::env::var_os("KFORGE_TEST_DIR")) else {
        return;
    };
    let dir = Path::new(&dir);
    println!("ready");
    match role.as_str() {
        "put" => {
            let cas = Cas::open(dir).unwrap();
            for index in 0..u64::MAX {
                cas.put(&blob(index)).unwrap();
            }
        }
        "put-20" => {
            let cas = Cas::open(dir).unwrap();
            for index in 0..20 {
                cas.put(&blob(index)).unwrap();
            }
        }
        "record" => {
            let (records, _) = Records::open(dir).unwrap();
            for index in 0..u64::MAX {
                records.put(&format!("step{}", index % 7), &record(index)).unwrap();
            }
        }
        "record-100" => {
            let (records, _) = Records::open(dir).unwrap();
            let base = u64::from(std::process::id()) << 20;
            (0..100).for_each(|index| records.put(&format!("{base}"), &record(base + index)).unwrap());
        }
        "hold" => {
            let _lock = Lock::acquire(&dir.join("lock"), Sharing::Alone, None, |_| {}).unwrap();
            println!("held");
            thread::sleep(Duration::from_secs(600));
        }
        other => panic!("unknown role {other}"),
    }
}
