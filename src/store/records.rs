//! What each action made: its key, the parts of the key by name, the digests of its outputs. And for each step which key is
//! its last, so that the parts of then and now can be compared.
//!
//! One append-only file of checksummed frames ([`frame`]), read whole when opened. A frame is one commit: all of its entries count
//! or none. A process killed while it appends leaves a torn tail, which the next writer cuts off; a flipped bit costs the
//! frame it is in. Readers take no lock and never wait.
//!
//! A step's last key is kept with the time at which it became that, built or current again: what nobody used for long can go
//! first ([`Records::kept`], [`Records::remove`]).
//!
//! Rejected: LMDB. Its pages carry no checksum and are used where they are mapped: of 100 truncated database files 98 killed
//! the process that opened them (SIGBUS), so a check of every page would have had to come first. It also needs an `fsync` for each
//! commit to stay consistent over a power cut, where here a lost tail is a few misses. Opening and reading 100 records took
//! 0.2 ms with LMDB and takes 0.12 ms here (the test `opening_and_reading_records` prints it).

mod frame;

use super::{
    FOLDER, Notice, StoreError, TEMPORARY, disk,
    key::KeyParts,
    lock::{Lock, Sharing, unix_now},
    outputs::Outputs,
};
use crate::digest::Digest;
use frame::{Entry, Scan};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    io::{self, Read},
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Below this size the file is never rewritten to drop what newer entries replaced.
const COMPACT_FROM: usize = if cfg!(test) { 64 << 10 } else { 4 << 20 }; // tests see it often

/// The file's name in the cache folder.
const FILE: &str = "records";

/// The file of the project at `root`.
pub fn path(root: &Path) -> PathBuf {
    root.join(FOLDER).join(FILE)
}

/// An action that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub key: Digest,
    /// What `key` is the digest of.
    pub parts: KeyParts,
    /// Content digests by output name.
    pub outputs: Outputs,
    /// Seconds since 1970.
    pub finished_unix: u64,
    pub wall_us: u64,
}

/// What the file holds of one record, for deciding what to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub record: Record,
    /// When it was made or last became some step's latest again; seconds since 1970.
    pub used_unix: u64,
    /// Of its entry in the file.
    pub bytes: u64,
}

/// What the file says of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepEntry {
    pub step: String,
    pub latest: Digest,
    pub before: Option<Digest>,
}

/// The records of one store. Shared between threads by reference.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    lock: PathBuf,
    corrupt: PathBuf,
    temporary: PathBuf,
    state: Mutex<State>,
}

/// What the file says, as far as this process has read it.
#[derive(Debug, Default)]
struct State {
    /// The file that `bytes` came from; another one is at the path after a rewrite.
    inode: u64,
    /// The file's content from its start to the end of the last whole frame.
    bytes: Vec<u8>,
    by_key: HashMap<Digest, Indexed>,
    /// Last key of each step, and the different one before it.
    steps: HashMap<String, (Digest, Option<Digest>)>,
    /// Bytes of entries that later ones replaced.
    dead: usize,
    /// Bytes that belong to no valid frame, other than a torn tail.
    damaged: u64,
}

#[derive(Debug)]
struct Indexed {
    /// Where in [`State::bytes`] the record's entry is.
    entry: Range<usize>,
    /// The latest time that the file says; 0 where only the record's own time is known.
    used_unix: u64,
}

impl Records {
    /// Opens the records in the cache folder `dir`. A file that cannot be used is moved aside, never an error.
    pub fn open(dir: &Path) -> Result<(Self, Vec<Notice>), StoreError> {
        let records = Self {
            path: dir.join(FILE),
            lock: dir.join("locks").join("records"),
            corrupt: dir.join("corrupt"),
            temporary: dir.join(TEMPORARY),
            state: Mutex::default(),
        };
        let notices = records.refresh()?;
        Ok((records, notices))
    }

    /// The record with this key.
    pub fn get(&self, key: &Digest) -> Option<Record> {
        let state = self.state();
        state.record(state.by_key.get(key)?)
    }

    /// The outputs of the record with this key: all that a build with nothing to do needs to know.
    pub fn outputs(&self, key: &Digest) -> Option<Outputs> {
        let state = self.state();
        frame::decode_outputs(&state.bytes[state.by_key.get(key)?.entry.clone()])
    }

    /// The record of the step's last success. Steps are named like `gpt2-small-s128@cpu:verify`.
    pub fn latest(&self, step: &str) -> Option<Record> {
        let key = self.state().steps.get(step)?.0;
        self.get(&key)
    }

    /// The key of [`Records::latest`]; its record may be gone.
    pub fn latest_key(&self, step: &str) -> Option<Digest> {
        self.state().steps.get(step).map(|it| it.0)
    }

    /// The record that [`Records::latest`] replaced: what the last rebuild of the step is explained from.
    pub fn before(&self, step: &str) -> Option<Record> {
        let key = self.state().steps.get(step)?.1?;
        self.get(&key)
    }

    /// Keeps `record`, as the latest of `step`.
    pub fn put(&self, step: &str, record: &Record) -> Result<(), StoreError> {
        self.put_all(&[(step, record)])
    }

    /// Keeps all of these or, if the process dies, none.
    pub fn put_all(&self, records: &[(&str, &Record)]) -> Result<(), StoreError> {
        let mut entries = Vec::new();
        for (step, record) in records {
            entries.push(frame::encode_record(record));
            entries.push(frame::encode_latest(step, &record.key, record.finished_unix));
        }
        self.append(&entries)
    }

    /// The step's inputs are again what they were: the record of `key` is its latest. Writes nothing if it already is.
    pub fn set_latest(&self, step: &str, key: &Digest) -> Result<(), StoreError> {
        self.set_latest_at(step, key, unix_now())
    }

    /// [`Records::set_latest`] at that time, in seconds since 1970.
    pub(super) fn set_latest_at(&self, step: &str, key: &Digest, used_unix: u64) -> Result<(), StoreError> {
        if self.state().steps.get(step).is_some_and(|it| it.0 == *key) {
            return Ok(());
        }
        self.append(&[frame::encode_latest(step, key, used_unix)])
    }

    /// Every record, least recently used first.
    pub fn kept(&self) -> Vec<Kept> {
        let state = self.state();
        let kept = state.by_key.values().filter_map(|it| {
            let record = state.record(it)?;
            let used_unix = it.used_unix.max(record.finished_unix);
            Some(Kept { record, used_unix, bytes: it.entry.len() as u64 })
        });
        let mut kept: Vec<_> = kept.collect();
        kept.sort_by_key(|it| (it.used_unix, it.record.key));
        kept
    }

    /// Every step, by name.
    pub fn steps(&self) -> Vec<StepEntry> {
        self.steps_of("")
    }

    /// The steps whose names begin like this, by name.
    pub fn steps_of(&self, prefix: &str) -> Vec<StepEntry> {
        let state = self.state();
        let entry = |(step, &(latest, before)): (&String, &_)| StepEntry { step: step.clone(), latest, before };
        let mut steps: Vec<_> = state.steps.iter().filter(|it| it.0.starts_with(prefix)).map(entry).collect();
        steps.sort_by(|a, b| a.step.cmp(&b.step));
        steps
    }

    /// Bytes of the file, as far as this process has read it.
    pub fn bytes(&self) -> u64 {
        self.state().bytes.len() as u64
    }

    /// Removes these records, each with the use time that the decision was made from: one that somebody used since stays.
    /// Rewrites the file; returns how many went.
    pub fn remove(&self, unneeded: &BTreeMap<Digest, u64>) -> Result<usize, StoreError> {
        let mut state = self.state();
        let lock = self.lock()?;
        self.repair(&mut state, &lock)?;
        let goes = |state: &State, key: &Digest, used: u64| {
            let known = state.by_key.get(key)?;
            Some(known.used_unix.max(state.record(known)?.finished_unix) <= used)
        };
        let gone: Vec<_> =
            unneeded.iter().filter(|it| goes(&state, it.0, *it.1) == Some(true)).map(|it| *it.0).collect();
        if gone.is_empty() {
            return Ok(0);
        }
        for key in &gone {
            state.by_key.remove(key);
        }
        if let Err(error) = self.rewrite(&mut state) {
            *state = State::default(); // the file still has them
            return Err(error);
        }
        Ok(gone.len())
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.state().by_key.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sees what other processes wrote since.
    pub fn refresh(&self) -> Result<Vec<Notice>, StoreError> {
        let mut state = self.state();
        match self.read(&mut state)? {
            Content::Good => Ok(Vec::new()),
            // Only then is a lock taken: whoever else is repairing the file finishes first, and then nothing is left to do.
            Content::Foreign(_) | Content::Damaged => {
                let lock = self.lock()?;
                self.repair(&mut state, &lock).map(|it| it.into_iter().collect())
            }
        }
    }

    /// A thread that panicked here left a state that at worst lacks entries: misses.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held for an append or a rewrite, a few milliseconds at most.
    fn lock(&self) -> Result<Lock, StoreError> {
        Lock::acquire(&self.lock, Sharing::Alone, None, |_| {}).map_err(|error| StoreError::Io {
            doing: "lock",
            path: self.lock.clone(),
            source: io::Error::other(error),
        })
    }

    /// Brings `state` up to date with the file, reading only the new part where possible.
    fn read(&self, state: &mut State) -> Result<Content, StoreError> {
        let failed = |error| StoreError::io("read", &self.path)(error);
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                *state = State::default();
                return Ok(Content::Good);
            }
            Err(error) => return Err(failed(error)),
        };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            *state = State::default();
            return Ok(Content::Foreign("not a file".to_owned()));
        }
        let known = state.bytes.len();
        if metadata.ino() != state.inode || metadata.len() < known as u64 || known == 0 {
            *state = State { inode: metadata.ino(), ..State::default() };
            state.bytes.reserve(usize::try_from(metadata.len()).unwrap_or(0));
            file.read_to_end(&mut state.bytes).map_err(failed)?;
            return Ok(state.index_from_start());
        }
        if metadata.len() > known as u64 {
            let mut tail = vec![0; usize::try_from(metadata.len()).unwrap_or(known) - known];
            let got = read_at_most(&file, &mut tail, known as u64).map_err(failed)?;
            state.bytes.extend_from_slice(&tail[..got]);
            state.index(known);
        }
        Ok(if state.damaged > 0 { Content::Damaged } else { Content::Good })
    }

    /// Moves a file aside that is not ours, or drops the damaged parts of one that is.
    fn repair(&self, state: &mut State, _lock: &Lock) -> Result<Option<Notice>, StoreError> {
        if state.damaged > 0 {
            *state = State::default(); // read all of it again: what looked damaged may have been half written
        }
        let kept = self.corrupt.join("records");
        let failed = |error| StoreError::io("move aside", &self.path)(error);
        match self.read(state)? {
            Content::Good => Ok(None),
            Content::Foreign(why) => {
                disk::create_folder(&self.corrupt).map_err(failed)?;
                disk::remove_all(&kept).unwrap_or(());
                disk::rename(&self.path, &kept).map_err(failed)?;
                *state = State::default();
                Ok(Some(Notice::RecordsReset { why, moved_to: kept }))
            }
            Content::Damaged => {
                let bytes = state.damaged;
                disk::create_folder(&self.corrupt).map_err(failed)?;
                disk::copy(&self.path, &kept).map_err(failed)?;
                self.rewrite(state)?;
                Ok(Some(Notice::RecordsDamaged { bytes, kept }))
            }
        }
    }

    /// Appends one frame, after cutting off what a killed writer left of its own.
    fn append(&self, entries: &[Vec<u8>]) -> Result<(), StoreError> {
        let mut state = self.state();
        let lock = self.lock()?;
        self.repair(&mut state, &lock)?;
        let failed = |error| StoreError::io("write", &self.path)(error);
        let file = disk::open(&self.path).map_err(failed)?;
        let mut addition = Vec::new();
        if state.bytes.is_empty() {
            state.inode = file.metadata().map_err(failed)?.ino();
            addition.extend_from_slice(frame::HEADER);
        }
        frame::encode_frame(entries, &mut addition);
        let end = state.bytes.len();
        let written = disk::cut(&file, end as u64).and_then(|()| disk::write_at(&file, &addition, end as u64));
        if let Err(error) = written {
            disk::cut(&file, end as u64).unwrap_or(()); // else the next writer cuts the half frame off
            return Err(failed(error));
        }
        state.bytes.extend_from_slice(&addition);
        state.index(if end == 0 { frame::HEADER.len() } else { end });
        if state.bytes.len() > COMPACT_FROM && state.dead > state.bytes.len() / 2 {
            self.rewrite(&mut state)?;
        }
        Ok(())
    }

    /// Replaces the file by one with the live entries only. The lock is held.
    fn rewrite(&self, state: &mut State) -> Result<(), StoreError> {
        let failed = |error| StoreError::io("rewrite", &self.path)(error);
        let bytes = state.live();
        disk::create_folder(&self.temporary).map_err(failed)?;
        let mut file = disk::Temporary::create(&self.temporary, "records-").map_err(failed)?;
        file.write(&bytes).map_err(failed)?;
        file.sync().map_err(failed)?; // the old file is complete; the new one must be before it takes its place
        let file = file.persist(&self.path).map_err(failed)?;
        *state = State { inode: file.metadata().map_err(failed)?.ino(), bytes, ..State::default() };
        state.index_from_start();
        Ok(())
    }
}

enum Content {
    Good,
    /// Not a records file of this version, and why.
    Foreign(String),
    Damaged,
}

impl State {
    fn index_from_start(&mut self) -> Content {
        if self.bytes.is_empty() {
            return Content::Good;
        }
        if !self.bytes.starts_with(frame::HEADER) {
            // A writer killed within its first write leaves a part of the header.
            let torn = frame::HEADER.starts_with(&self.bytes);
            self.bytes.clear();
            return if torn {
                Content::Good
            } else {
                Content::Foreign("not written by this version of kforge".to_owned())
            };
        }
        self.index(frame::HEADER.len());
        if self.damaged > 0 { Content::Damaged } else { Content::Good }
    }

    /// Enters the frames from `start` on, and cuts `bytes` behind the last whole one.
    fn index(&mut self, start: usize) {
        let mut end = start;
        let scanned: Vec<Scan> = frame::scan(&self.bytes, start).collect();
        for found in scanned {
            match found {
                Scan::Frame { entries, frame } => {
                    end = frame.end;
                    for entry in frame::entries(&self.bytes, entries) {
                        self.enter(entry);
                    }
                }
                Scan::Damage(range) => self.damaged += range.len() as u64,
            }
        }
        // What follows the last whole frame is either damage that was counted, or a tail that is torn or being written.
        self.bytes.truncate(end);
    }

    fn enter(&mut self, range: Range<usize>) {
        let size = range.len();
        match frame::peek(&self.bytes[range.clone()]) {
            Some(frame::Peek::Record(key)) => {
                let used_unix = self.by_key.get(&key).map_or(0, |it| it.used_unix);
                if let Some(old) = self.by_key.insert(key, Indexed { entry: range, used_unix }) {
                    self.dead += old.entry.len();
                }
            }
            Some(frame::Peek::Latest(step, key, used)) => {
                match self.steps.get_mut(step) {
                    Some((latest, before)) => {
                        self.dead += size;
                        if *latest != key {
                            *before = Some(std::mem::replace(latest, key));
                        }
                    }
                    None => {
                        let step = step.to_owned();
                        self.steps.insert(step, (key, None));
                    }
                }
                self.used(&key, used);
            }
            Some(frame::Peek::Used(key, used)) => self.used(&key, used),
            None => self.dead += size,
        }
    }

    fn used(&mut self, key: &Digest, used_unix: u64) {
        if let Some(record) = self.by_key.get_mut(key) {
            record.used_unix = record.used_unix.max(used_unix);
        }
    }

    fn record(&self, indexed: &Indexed) -> Option<Record> {
        match frame::decode(&self.bytes[indexed.entry.clone()]) {
            Some(Entry::Record(record)) => Some(record),
            _ => None,
        }
    }

    /// A whole file with the live entries only, in small frames.
    fn live(&self) -> Vec<u8> {
        let mut records: Vec<_> = self.by_key.iter().collect();
        records.sort_by_key(|it| it.1.entry.start);
        let mut entries: Vec<Vec<u8>> = records.iter().map(|it| self.bytes[it.1.entry.clone()].to_vec()).collect();
        let mut steps: Vec<_> = self.steps.iter().collect();
        steps.sort();
        let mut named = HashSet::new();
        for (step, (latest, before)) in steps {
            // A step whose last record was removed was never built, as far as anyone can tell.
            let Some(record) = self.by_key.get(latest) else { continue };
            for (key, before) in before.iter().filter_map(|key| Some((key, self.by_key.get(key)?))) {
                entries.push(frame::encode_latest(step, key, before.used_unix));
                named.insert(key);
            }
            entries.push(frame::encode_latest(step, latest, record.used_unix));
            named.insert(latest);
        }
        let others = records.iter().filter(|(key, it)| it.used_unix > 0 && !named.contains(key));
        entries.extend(others.map(|(key, it)| frame::encode_used(key, it.used_unix)));
        let mut bytes = frame::HEADER.to_vec();
        for some in entries.chunks(16) {
            frame::encode_frame(some, &mut bytes);
        }
        bytes
    }
}

/// Fills as much of `buffer` as the file has.
fn read_at_most(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(count) => got += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}
