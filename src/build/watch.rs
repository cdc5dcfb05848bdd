//! Tells when the files that a project is read from may have changed.
//!
//! Folders are watched, not files: an editor that saves by renaming leaves a watched file behind that nobody reads any more. What
//! is told is only that something happened; whether it means anything is found out by reading the project again, so that a lost,
//! a doubled or an overflowed event costs nothing but time.

use crate::{
    facts::Facts,
    manifest::{Sources, sources::Seen},
    store::FOLDER,
};
use notify::{Config, ErrorKind, Event, EventKind, PollWatcher, RecommendedWatcher, RecursiveMode, Watcher};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

/// How often files are looked at where the system does not tell.
const POLL: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("files cannot be watched: {0}")]
    System(#[from] notify::Error),
}

pub struct Watch {
    watcher: Box<dyn Watcher + Send>,
    polling: bool,
    on_event: Box<dyn Fn() -> OnEvent + Send>,
    /// Each watched folder with its inode: one that was replaced by another must be watched anew.
    folders: BTreeMap<PathBuf, u64>,
}

type OnEvent = Box<dyn FnMut(notify::Result<Event>) + Send>;

impl Watch {
    /// Watches nothing yet. `touched` is called from another thread with the paths that something happened to; with none where the
    /// system lost count. `poll`: looks at the files instead of asking the system, for network file systems.
    pub fn new(
        root: &Path,
        poll: bool,
        touched: impl Fn(&[PathBuf]) + Clone + Send + 'static,
    ) -> Result<Self, WatchError> {
        let cache = root.join(FOLDER);
        let on_event = move || -> OnEvent {
            let (cache, touched) = (cache.clone(), touched.clone());
            Box::new(move |event| {
                if let Some(paths) = relevant(event, &cache) {
                    touched(&paths);
                }
            })
        };
        let watcher = watcher(poll, on_event())?;
        Ok(Self { watcher, polling: poll, on_event: Box::new(on_event), folders: BTreeMap::new() })
    }

    /// Whether files are looked at every half second, because the system does not tell or was not to be asked.
    pub const fn is_polling(&self) -> bool {
        self.polling
    }

    /// Watches the folders of what the project was read from, and no others any more.
    ///
    /// # Errors
    /// When a folder cannot be watched in any way.
    pub fn follow(&mut self, root: &Path, sources: &Sources) -> Result<(), WatchError> {
        let wanted = folders(root, sources);
        let stale: Vec<_> =
            self.folders.iter().filter(|it| wanted.get(it.0) != Some(it.1)).map(|it| it.0.clone()).collect();
        for folder in stale {
            self.folders.remove(&folder);
            // A folder that is gone is not watched any more anyway.
            let _ = self.watcher.unwatch(&folder);
        }
        for (folder, inode) in wanted {
            if self.folders.contains_key(&folder) {
                continue;
            }
            match self.watcher.watch(&folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.folders.insert(folder, inode);
                }
                // Gone again: the folder above tells when it comes back.
                Err(error) if matches!(error.kind, ErrorKind::PathNotFound) || !folder.exists() => {}
                // As a rule the system's limit of watches.
                Err(_) if !self.polling => {
                    self.polling = true;
                    self.watcher = watcher(true, (self.on_event)())?;
                    self.folders.clear();
                    return self.follow(root, sources);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn watcher(poll: bool, on_event: OnEvent) -> Result<Box<dyn Watcher + Send>, WatchError> {
    Ok(if poll {
        // Contents too: a poll may see two versions with one time.
        let config = Config::default().with_poll_interval(POLL).with_compare_contents(true);
        Box::new(PollWatcher::new(on_event, config)?)
    } else {
        Box::new(RecommendedWatcher::new(on_event, Config::default())?)
    })
}

/// The paths of an event that may mean something: nothing that was only read, and nothing that kforge itself wrote.
fn relevant(event: notify::Result<Event>, cache: &Path) -> Option<Vec<PathBuf>> {
    let Ok(event) = event else { return Some(Vec::new()) };
    if event.need_rescan() {
        return Some(Vec::new());
    }
    if matches!(event.kind, EventKind::Access(_)) {
        return None;
    }
    let paths: Vec<_> = event.paths.into_iter().filter(|it| !it.starts_with(cache)).collect();
    (!paths.is_empty()).then_some(paths)
}

/// The folders whose entries decide what the project is, each with its inode: those that patterns were matched in, those of every
/// file by its name and, through links, where it really is; for what is missing, the nearest folder that is there.
fn folders(root: &Path, sources: &Sources) -> BTreeMap<PathBuf, u64> {
    let mut folders = BTreeMap::new();
    let mut add = |folder: &Path| {
        let existing = folder.ancestors().find_map(|it| Some((it, Facts::at(it)?)));
        if let Some((folder, facts)) = existing {
            folders.insert(folder.to_owned(), facts.inode);
        }
    };
    add(root);
    for source in &sources.seen {
        let path = root.join(&source.path);
        if source.what == Seen::Folder {
            add(&path);
        }
        // The folder above as well: only there a folder is seen to go and to come back.
        path.parent().into_iter().for_each(&mut add);
        if let Ok(real) = path.canonicalize() {
            real.parent().into_iter().for_each(&mut add);
        }
    }
    folders
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::load_with_sources;
    use notify::event::{AccessKind, Flag, ModifyKind};
    use std::{
        fs,
        sync::mpsc::{self, Receiver},
    };

    #[test]
    fn reading_and_own_writing_mean_nothing_and_an_overflow_means_anything() {
        let cache = Path::new("/project/.kforge-cache");
        let event = |kind, path: &str| Ok(Event::new(kind).add_path(path.into()));
        let changed = EventKind::Modify(ModifyKind::Any);
        assert_eq!(relevant(event(EventKind::Access(AccessKind::Any), "/project/a.toml"), cache), None);
        assert_eq!(relevant(event(changed, "/project/.kforge-cache/records"), cache), None);
        assert_eq!(relevant(event(changed, "/project/a.toml"), cache), Some(vec!["/project/a.toml".into()]));
        let overflow = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert_eq!(relevant(Ok(overflow), cache), Some(Vec::new()));
        assert_eq!(relevant(Err(notify::Error::generic("lost")), cache), Some(Vec::new()));
    }

    fn project() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir(root.join("workloads")).unwrap();
        fs::write(root.join("kernelforge.toml"), "[project]\nname = \"p\"\nworkloads = [\"workloads/*.toml\"]\n")
            .unwrap();
        fs::write(root.join("workloads/a.toml"), "[block.a]\nkind = \"matmul\"\nm = 1\nn = 2\nk = 3\n").unwrap();
        (folder, root)
    }

    /// Waits for an event of this file.
    fn told(events: &Receiver<Vec<PathBuf>>, file: &Path) {
        while !events.recv_timeout(Duration::from_secs(20)).expect("an event").iter().any(|it| it == file) {}
    }

    #[test]
    fn saves_of_every_kind_are_seen_and_folders_that_come_back() {
        for poll in [false, true] {
            let (_folder, root) = project();
            let (sender, events) = mpsc::channel();
            let mut watch = Watch::new(&root, poll, move |it| sender.send(it.to_vec()).unwrap_or(())).unwrap();
            let (loaded, sources) = load_with_sources(&root);
            loaded.unwrap();
            watch.follow(&root, &sources).unwrap();
            assert_eq!(watch.folders.keys().collect::<Vec<_>>(), [&root, &root.join("workloads")]);
            let file = root.join("workloads/a.toml");
            fs::write(&file, "[block.b]\nkind = \"matmul\"\nm = 1\nn = 2\nk = 3\n").unwrap();
            told(&events, &file);
            fs::write(root.join("workloads/.a.swp"), "[block.c]\nkind = \"matmul\"\nm = 1\nn = 2\nk = 34\n").unwrap();
            fs::rename(root.join("workloads/.a.swp"), &file).unwrap();
            told(&events, &file);

            fs::rename(root.join("workloads"), root.join("elsewhere")).unwrap();
            told(&events, &root.join("workloads"));
            let (broken, sources) = load_with_sources(&root);
            broken.unwrap_err();
            watch.follow(&root, &sources).unwrap();
            fs::create_dir(root.join("workloads")).unwrap();
            told(&events, &root.join("workloads"));
            watch.follow(&root, &load_with_sources(&root).1).unwrap();
            fs::write(&file, "anything").unwrap();
            told(&events, &file);
        }
    }

    #[test]
    fn a_file_behind_a_link_is_watched_where_it_is() {
        let (_folder, root) = project();
        fs::create_dir(root.join("real")).unwrap();
        fs::rename(root.join("workloads/a.toml"), root.join("real/a")).unwrap();
        std::os::unix::fs::symlink(root.join("real/a"), root.join("workloads/a.toml")).unwrap();
        let watched = folders(&root, &load_with_sources(&root).1);
        assert!(watched.contains_key(&root.join("real")), "{watched:?}");
    }
}
