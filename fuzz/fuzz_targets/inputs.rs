//! What the targets do with one input. A file of its own, so that a plain test (`tests/it/fuzz.rs`) replays the corpus.

use kernelforge::{
    digest::Digest,
    manifest::{self, PROJECT_FILE},
    store::{
        FOLDER, Store, StoreError,
        lock::{Lock, Sharing},
        out,
    },
};
use std::{fs, io, path::Path};

/// Between the files of one input.
const NEXT_FILE: &[u8] = b"\n----\n";

/// The project file, a workload, a corpus: loads the project, or renders what is wrong with it.
///
/// # Panics
/// When the temporary folder cannot be used.
pub fn manifest(input: &[u8]) {
    let folder = folder();
    let mut rest = input;
    for name in [PROJECT_FILE, "w.toml", "corpus.toml"] {
        let at = rest.windows(NEXT_FILE.len()).position(|it| it == NEXT_FILE);
        let (file, next) = match at {
            Some(at) => (&rest[..at], &rest[at + NEXT_FILE.len()..]),
            None => (rest, &[][..]),
        };
        write(&folder.path().join(name), file);
        rest = next;
    }
    match manifest::load(folder.path()) {
        Ok(project) => assert!(!project.blocks.is_empty(), "a project without blocks was loaded"),
        Err(errors) => {
            assert!(!errors.problems().is_empty(), "nothing is wrong and nothing was loaded");
            let text = manifest::render(&errors, false, 100);
            assert!(!text.contains('\x1b'), "a control character of the file was shown");
        }
    }
}

/// The first byte says which state file the others are: opens the store, reads everything, and has it put right.
///
/// # Panics
/// When the store cannot be opened for another reason than a newer layout, or something wrong is read.
pub fn store(input: &[u8]) {
    let Some((which, content)) = input.split_first() else { return };
    let folder = folder();
    let cache = folder.path().join(FOLDER);
    let blob = Digest::of(b"content");
    let (first, rest) =
        blob.to_string().split_at_checked(2).map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap_or_default();
    let path = match which % 5 {
        0 => cache.join("records"),
        1 => cache.join("VERSION"),
        2 => cache.join("out/a@cpu/.kforge-stamp"),
        3 => cache.join("locks/build"),
        _ => cache.join("cas").join(first).join(rest),
    };
    if let Some(parent) = path.parent() {
        assert!(fs::create_dir_all(parent).is_ok());
    }
    write(&path, content);
    let store = match Store::open(folder.path()) {
        Ok((store, _)) => store,
        Err(StoreError::NewerLayout { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    for kept in store.records.kept() {
        assert_eq!(store.records.get(&kept.record.key).as_ref(), Some(&kept.record));
    }
    for step in store.records.steps() {
        assert!(store.records.latest(&step.step).is_none_or(|it| it.key == step.latest));
    }
    if let Ok(bytes) = store.cas.get(&blob) {
        assert_eq!(Digest::of(&bytes), blob, "wrong content was read");
    }
    let _ = out::stamped(&store.out("a@cpu"));
    assert!(
        Lock::try_acquire(&store.build_lock_path(), Sharing::Alone).is_ok_and(|it| it.is_ok()),
        "a free lock was not taken"
    );

    assert_eq!(store.cas.put(b"content").ok(), Some(blob));
    assert!(store.materialise("a@cpu", &[("file", blob)]).is_ok());
    assert_eq!(fs::read(store.out("a@cpu").join("file")).ok().as_deref(), Some(&b"content"[..]));
    assert!(store.verify(|_| {}).is_ok());
    let key = Digest::of(b"key");
    assert!(store.records.set_latest("step", &key).is_ok());
    let again = Store::open(folder.path()).map(|it| (it.0.records.latest_key("step"), it.1));
    assert!(again.is_ok_and(|it| it.0 == Some(key) && it.1.is_empty()), "it was not put right");
}

fn folder() -> tempfile::TempDir {
    // In memory where there is such a place: an input is judged in a fraction of a millisecond.
    let memory = Path::new("/dev/shm");
    let made: io::Result<_> = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.unwrap_or_else(|error| panic!("no temporary folder: {error}"))
}

fn write(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap_or_else(|error| panic!("cannot write `{}`: {error}", path.display()));
}
