//! Whether a build would find nothing to do, answered without loading the project.
//!
//! A build that found nothing to do remembers what its answer rests on: the facts ([`Facts`]) of every file and folder that the
//! manifest was read from, of the records, of the folders of blobs, of every file in `out/`, and of
//! what tells which GPUs there are if a block is for one ([`Ground`]). While all of them are what they were,
//! so is the answer, and one `stat` each is all that it costs: no parsing, no keys, no records. Anything else, and anything in doubt,
//! is answered by the build itself.
//!
//! A blob that is gone shows in its folder's change time. One that was overwritten in place does not show here: whoever reads
//! it checks its digest, and `out/` holds copies. Looking at all blobs made a build of 10,000 steps with nothing to do three times
//! as long.

use crate::{
    build::engine::devices::ground::Ground,
    digest::Digest,
    facts::Facts,
    host::CpuFacts,
    manifest::sources::{Seen, Sources},
    protocol::recipe,
    store::{self, Store, memo},
};
use rustix::fs::{Mode, OFlags, open};
use serde::{Deserialize, Serialize};
use std::{fs, os::fd::BorrowedFd, path::Path, thread};

/// What the build said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub steps: usize,
    /// Cells of the first lines of the table.
    pub lines: Vec<Vec<String>>,
    /// How many more there are.
    pub more: usize,
}

#[derive(Serialize, Deserialize)]
struct Memo<'a> {
    tool: [u8; 32],
    cpu: [u8; 32],
    /// What the list of GPUs rests on, where a block is for one.
    gpus: Option<[u8; 32]>,
    #[serde(borrow)]
    sources: Vec<Source<'a>>,
    records: Facts,
    /// Of the folders of blobs, in their order.
    blobs: Vec<Option<Facts>>,
    /// Names of files in the folders of `out/`; what the folders hold refers to them.
    names: Vec<&'a str>,
    out: Vec<(&'a str, Vec<(u8, Facts)>)>,
    summary: Summary,
}

#[derive(Serialize, Deserialize)]
struct Source<'a> {
    path: &'a str,
    /// Of a file.
    digest: Option<[u8; 32]>,
    exists: bool,
    /// `None` for what changed too shortly before it was looked at.
    facts: Option<Facts>,
}

/// Names a choice of blocks.
pub fn selection(blocks: &[String], target: Option<&str>, group: Option<&str>) -> String {
    format!("{blocks:?} {target:?} {group:?}")
}

/// What a build of the blocks of `selection` said when it last found nothing to do, if it would say so again.
pub fn recall(root: &Path, selection: &str, cpu: &CpuFacts) -> Option<Summary> {
    let bytes = memo::recall(root, &name(selection))?;
    let memo: Memo<'_> = postcard::from_bytes(&bytes).ok()?;
    let same = memo.tool == *recipe::TOOL.as_bytes()
        && memo.cpu == *cpu.fingerprint().as_bytes()
        && memo.gpus.is_none_or(|it| it == *Ground::now().digest().as_bytes())
        && memo.sources.iter().all(|it| it.holds(root))
        && Facts::at(&store::records::path(root)) == Some(memo.records)
        && store::cas::folders(root).map(|it| Facts::at(&it)).eq(memo.blobs.iter().copied())
        && memo.out_holds(root);
    same.then_some(memo.summary)
}

impl Source<'_> {
    fn holds(&self, root: &Path) -> bool {
        let path = root.join(self.path);
        let now = Facts::at(&path);
        if !self.exists {
            return now.is_none();
        }
        if now.is_some() && now == self.facts {
            return true;
        }
        // Written again, or checked out anew: what a file says decides.
        self.digest.is_some_and(|it| fs::read(&path).is_ok_and(|bytes| *Digest::of(&bytes).as_bytes() == it))
    }
}

/// With fewer folders than this a second thread costs more than it saves.
const FOLDERS_PER_THREAD: usize = 200;

impl Memo<'_> {
    fn out_holds(&self, root: &Path) -> bool {
        if self.out.is_empty() {
            return true;
        }
        let folder = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let Ok(out) = open(store::out::folder(root), folder, Mode::empty()) else { return false };
        let out = std::os::fd::AsFd::as_fd(&out);
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = (self.out.len() / FOLDERS_PER_THREAD).clamp(1, cores.min(8));
        let mut parts = self.out.chunks(self.out.len().div_ceil(threads));
        let Some(first) = parts.next() else { return true };
        thread::scope(|scope| {
            let others: Vec<_> = parts.map(|part| scope.spawn(move || self.part_holds(out, part))).collect();
            let first = self.part_holds(out, first);
            others.into_iter().fold(first, |all, it| all & it.join().unwrap_or(false))
        })
    }

    fn part_holds(&self, out: BorrowedFd<'_>, folders: &[(&str, Vec<(u8, Facts)>)]) -> bool {
        let mut path = String::new();
        folders.iter().all(|(folder, files)| {
            files.iter().all(|(name, facts)| {
                let Some(name) = self.names.get(usize::from(*name)) else { return false };
                path.clear();
                path.extend([folder, "/", name]);
                Facts::within(out, &path) == Some(*facts)
            })
        })
    }
}

/// Remembers that a build of the blocks of `selection` found nothing to do, unless something it looked at changed so shortly before
/// that it may have changed since. `ground` is what its GPUs rest on, if it had any; `out` is what the folders of `out/` hold, by name.
///
/// # Errors
/// When the memo cannot be written. Nothing depends on it.
pub fn remember(
    store: &Store,
    (root, sources): (&Path, &Sources),
    selection: &str,
    (cpu, ground): (&CpuFacts, Option<Ground>),
    out: &[(String, Vec<&str>)],
    summary: &Summary,
) -> std::io::Result<()> {
    let facts = |path: &Path| Facts::at(path).and_then(|it| it.lasting(sources.start()));
    let Some(records) = facts(&store::records::path(root)) else { return Ok(()) };
    if ground.as_ref().is_some_and(|it| !it.lasts(sources.start())) {
        return Ok(());
    }
    let mut blobs = Vec::new();
    for folder in store::cas::folders(root) {
        match (folder.exists(), facts(&folder)) {
            (true, None) => return Ok(()),
            (_, facts) => blobs.push(facts),
        }
    }
    let mut names: Vec<&str> = Vec::new();
    let mut folders = Vec::with_capacity(out.len());
    for (folder, files) in out {
        let path = store.out(folder);
        let mut held = Vec::with_capacity(files.len());
        for file in files {
            let Some(facts) = facts(&path.join(file)) else { return Ok(()) };
            let index = names.iter().position(|it| it == file).unwrap_or_else(|| {
                names.push(file);
                names.len() - 1
            });
            let Ok(index) = u8::try_from(index) else { return Ok(()) };
            held.push((index, facts));
        }
        folders.push((folder.as_str(), held));
    }
    let mut memo = Memo {
        tool: *recipe::TOOL.as_bytes(),
        cpu: *cpu.fingerprint().as_bytes(),
        gpus: ground.map(|it| *it.digest().as_bytes()),
        sources: Vec::new(),
        records,
        blobs,
        names,
        out: folders,
        summary: summary.clone(),
    };
    for source in &sources.seen {
        let Some(path) = source.path.to_str() else { return Ok(()) };
        let digest = match source.what {
            Seen::File(digest) => Some(*digest.as_bytes()),
            Seen::Folder | Seen::Nothing => None,
        };
        memo.sources.push(Source { path, digest, exists: source.what != Seen::Nothing, facts: source.facts });
    }
    let bytes = postcard::to_stdvec(&memo).map_err(std::io::Error::other)?;
    store.remember(&name(selection), &bytes)
}

fn name(selection: &str) -> String {
    format!("up-to-date-{}", Digest::of(selection.as_bytes()).short())
}
