//! Random lives of a directory: edits, builds that fail, are interrupted or replaced, builds side by side, blobs and records that
//! are lost. After each build the model says which steps had to run and what they must have made.
//!
//! With one job a case does the same each time it is run. With several, only the order in which steps finish is the system's.

use super::{
    plant::{Faults, Floor, Hands, Watch},
    project::{self, Edit, Plan, Project, cpu},
};
use crate::{
    build::{
        engine::{
            action::Workspace,
            control::Control,
            out,
            run::{self, Built, Options, StepResult, closure},
            worker::Leash,
        },
        graph::{Graph, Outputs, Rules, Step, StepId, StepKind},
    },
    digest::Digest,
    host::CpuFacts,
    protocol::FailureKind,
    store::{Store, out::OutError, records},
    testing::cases,
};
use proptest::{prelude::*, sample::Index};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};
use tempfile::TempDir;
use walkdir::WalkDir;

type Checked<T = ()> = Result<T, String>;

macro_rules! ensure {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err(format!($($why)+));
        }
    };
}

#[derive(Debug, Clone)]
pub struct How {
    pub jobs: usize,
    pub keep_going: bool,
    pub retries: usize,
    pub force: Option<Index>,
    /// One block, or one step; all without it.
    pub goal: Option<Index>,
    pub faults: Vec<(Index, FailureKind, usize)>,
    /// After so many events.
    pub stop: Option<(usize, Stop)>,
    pub pace: u64,
}

#[derive(Debug, Clone)]
pub enum Stop {
    Cancel,
    /// By a build that wants the steps whose number has a bit here.
    Supersede(u8),
    /// Nothing stops, but a blob is lost.
    Lose(Loss),
}

/// A blob is lost behind the back of the record that names it.
#[derive(Debug, Clone)]
pub struct Loss {
    blob: Index,
    harm: Harm,
}

#[derive(Debug, Clone, Copy)]
pub enum Harm {
    Delete,
    Corrupt,
    /// Only who reads it can tell.
    CorruptSecretly,
}

#[derive(Debug, Clone)]
enum Op {
    Edit(Edit),
    Undo(Index),
    Lose(Loss),
    /// The records are cut to this many thousandths; removed without it.
    Records(Option<usize>),
    Build(How),
    /// Two builds at once; the second one after this edit.
    Twice(Box<(How, How, Option<Edit>)>),
}

fn kinds() -> impl Strategy<Value = FailureKind> {
    use FailureKind::*;
    proptest::sample::select(vec![
        Crash,
        Timeout,
        OutOfMemory,
        Io,
        Implausible,
        InvalidIr,
        Codegen,
        NumericMismatch,
        Memory,
        NotVerified,
        Internal,
    ])
}

/// Whether another attempt may pass, as the documentation of `--retries` has it.
fn may_pass(kind: FailureKind) -> bool {
    use FailureKind::*;
    matches!(kind, Crash | Timeout | OutOfMemory | Io | Implausible)
}

fn loss() -> impl Strategy<Value = Loss> {
    let harm = proptest::sample::select(vec![Harm::Delete, Harm::Corrupt, Harm::CorruptSecretly]);
    (any::<Index>(), harm).prop_map(|(blob, harm)| Loss { blob, harm })
}

fn how() -> impl Strategy<Value = How> {
    let stop = prop_oneof![
        2 => Just(Stop::Cancel),
        2 => any::<u8>().prop_map(Stop::Supersede),
        1 => loss().prop_map(Stop::Lose),
    ];
    let faults = (any::<Index>(), kinds(), prop_oneof![1usize..3, Just(usize::MAX)]);
    (
        (1usize..5, any::<bool>(), 0usize..3, proptest::option::weighted(0.1, any::<Index>())),
        proptest::option::weighted(0.2, any::<Index>()),
        prop_oneof![3 => Just(Vec::new()), 1 => proptest::collection::vec(faults, 1..4)],
        proptest::option::weighted(0.3, (0usize..40, stop)),
        any::<u64>(),
    )
        .prop_map(|((jobs, keep_going, retries, force), goal, faults, stop, pace)| How {
            jobs,
            keep_going,
            retries,
            force,
            goal,
            faults,
            stop,
            pace,
        })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => project::edit().prop_map(Op::Edit),
        1 => any::<Index>().prop_map(Op::Undo),
        2 => loss().prop_map(Op::Lose),
        1 => proptest::option::of(0usize..1000).prop_map(Op::Records),
        6 => how().prop_map(Op::Build),
        2 => (how(), how(), proptest::option::of(project::edit())).prop_map(|it| Op::Twice(Box::new(it))),
    ]
}

/// A directory, and what the model believes of it.
pub struct Site {
    folder: TempDir,
    cpu: CpuFacts,
    floor: Floor,
    builds: usize,
    recorded: HashSet<Digest>,
}

/// What is known of a project before it is built.
struct Foreseen<'a> {
    project: &'a Project,
    graph: Graph,
    clean: Vec<(Digest, Outputs)>,
    goals: Vec<StepId>,
    wanted: Vec<bool>,
    forced: Option<StepId>,
    /// Has no record, or a record of a blob that is visibly lost.
    missing: Vec<bool>,
    /// Shares its key or a blob with another step, which may be the one that makes it.
    shared: Vec<bool>,
    faults: Faults,
    /// A blob looks intact and is not.
    hidden: bool,
}

/// One finished build.
pub struct Round {
    pub built: Built,
    pub out: Result<usize, OutError>,
    stopped: bool,
    lost: bool,
    /// Ran when the build was replaced, and was wanted by the next one.
    kept: Vec<String>,
    finished: HashSet<StepId>,
    /// How many steps started after one had failed.
    started_late: usize,
}

impl Site {
    pub fn new(test: &str) -> Self {
        let folder = folder();
        Self { folder, cpu: cpu(test), floor: Floor::default(), builds: 0, recorded: HashSet::new() }
    }

    fn store(&self) -> Store {
        Store::open(self.folder.path()).unwrap().0
    }

    fn blobs(&self) -> Vec<(PathBuf, Digest)> {
        let files = WalkDir::new(self.store().dir().join("cas")).sort_by_file_name().into_iter().map(Result::unwrap);
        let files = files.filter(|it| it.file_type().is_file()).map(|it| it.into_path());
        files.map(|it| (it.clone(), named(&it))).collect()
    }

    fn lose(&self, loss: &Loss) {
        let blobs = self.blobs();
        if !blobs.is_empty() {
            harm(&loss.blob.get(&blobs).0, loss.harm);
        }
    }

    pub fn lose_secretly(&self, blob: &Digest) {
        harm(&self.store().cas.path(blob), Harm::CorruptSecretly);
    }

    fn foresee<'a>(&self, project: &'a Project, how: &How) -> Foreseen<'a> {
        let graph = project.graph();
        let clean = project.clean(&graph);
        let goals: Vec<StepId> = match &how.goal {
            None => graph.steps().iter().map(|it| it.id).collect(),
            Some(goal) => {
                let whole = |it: &&Step| matches!(project.plan, Plan::Nodes(_)) || it.kind == StepKind::Report;
                let ends: Vec<_> = graph.steps().iter().filter(whole).map(|it| it.id).collect();
                vec![*goal.get(&ends)]
            }
        };
        let wanted = closure(&graph, &goals);
        let (mut visibly, mut hidden) = (BTreeSet::new(), false);
        let store = self.store();
        let blobs: BTreeSet<&Digest> = clean.iter().flat_map(|it| it.1.values()).collect();
        for digest in blobs {
            let path = store.cas.path(digest);
            let Ok(bytes) = fs::read(&path) else {
                visibly.insert(*digest);
                continue;
            };
            if Digest::of(&bytes) != *digest {
                if sealed(&path) {
                    hidden = true
                } else {
                    visibly.insert(*digest);
                }
            }
        }
        let missing = clean
            .iter()
            .map(|(key, outputs)| !self.recorded.contains(key) || outputs.values().any(|it| visibly.contains(it)));
        let missing = missing.collect();
        let shares = |a: usize, b: usize| {
            let (a, b) = (&clean[a], &clean[b]);
            a.0 == b.0 || a.1.values().any(|it| b.1.values().any(|other| it == other))
        };
        let shared = (0..clean.len()).map(|a| (0..clean.len()).any(|b| a != b && shares(a, b))).collect();
        let any = |it: &Index| graph.steps()[it.index(graph.len())].identity().to_owned();
        let faults = how.faults.iter().map(|(step, kind, times)| (any(step), (*kind, *times))).collect();
        let forced = how.force.map(|it| graph.steps()[it.index(graph.len())].id);
        Foreseen { project, clean, goals, wanted, forced, missing, shared, faults, hidden, graph }
    }

    /// Builds, with a store of its own as a process would have. Needs no `&mut`, so that two can be at it.
    fn build(&self, number: usize, foreseen: &Foreseen<'_>, how: &How) -> Round {
        let store = self.store();
        let (leash, control) = (Leash::default(), Control::default());
        let (stopped, lost, kept) = (AtomicBool::new(false), AtomicBool::new(false), Mutex::new(Vec::new()));
        let act = |watch: &Watch<'_>| match &how.stop {
            Some((_, Stop::Cancel)) => {
                stopped.store(true, Ordering::SeqCst);
                watch.leash.cancel();
            }
            Some((_, Stop::Supersede(bits))) => {
                stopped.store(true, Ordering::SeqCst);
                let wanted = |step: StepId| bits >> (step.0 % 8) & 1 == 1;
                let running = watch.running.lock().unwrap().clone();
                let running = running.into_iter().filter(|it| wanted(foreseen.graph.find(it).unwrap()));
                kept.lock().unwrap().extend(running);
                watch.control.supersede(|step, _| wanted(step));
            }
            Some((_, Stop::Lose(loss))) => {
                lost.store(true, Ordering::SeqCst);
                self.lose(loss);
            }
            None => {}
        };
        let watch = Watch {
            at: how.stop.as_ref().map(|it| it.0),
            act: &act,
            leash: &leash,
            control: &control,
            seen: AtomicUsize::new(0),
            running: Mutex::default(),
            finished: Mutex::default(),
            failed: AtomicBool::new(false),
            started_late: Mutex::default(),
        };
        let hands = Hands {
            floor: &self.floor,
            project: foreseen.project,
            build: number,
            jobs: how.jobs,
            leash: &leash,
            faults: &foreseen.faults,
            pace: how.pace,
            attempts: Mutex::default(),
        };
        let (cpu, rules) = (&self.cpu, &Rules::default());
        let workspace = Workspace { store: &store, graph: &foreseen.graph, blocks: &[], origins: &[], cpu, rules };
        let How { jobs, keep_going, retries, .. } = *how;
        let (forced, goals) = (|step: &Step| foreseen.forced == Some(step.id), &foreseen.goals);
        let options = Options { jobs, keep_going, retries, wait: None, forced: &forced, goals };
        let built = run::run(&workspace, &options, &hands, (&leash, &control), &watch).unwrap();
        let out = out::after(&workspace, &built);
        let started_late = watch.started_late.into_inner().unwrap().len();
        let finished = watch.finished.into_inner().unwrap();
        let (stopped, lost, kept) = (stopped.into_inner(), lost.into_inner(), kept.into_inner().unwrap());
        Round { built, out, stopped, lost, kept, finished, started_late }
    }

    /// Builds once, and holds the result against the model.
    pub fn build_alone(&mut self, project: &Project, how: &How) -> Checked<Round> {
        let foreseen = self.foresee(project, how);
        self.builds += 1;
        let round = self.build(self.builds, &foreseen, how);
        self.floor.verdict()?;
        foreseen.is_sound(&round, how)?;
        if !round.stopped && !round.lost && !foreseen.hidden {
            foreseen.is_exact(&round.built, how)?;
        }
        self.recorded.extend(foreseen.ran(&round));
        let kept: HashSet<Digest> = self.store().records.kept().into_iter().map(|it| it.record.key).collect();
        ensure!(kept == self.recorded, "the records are not those of the steps that ran");
        Ok(round)
    }

    fn build_twice(&mut self, projects: [&Project; 2], hows: [&How; 2]) -> Checked {
        let foreseen = [self.foresee(projects[0], hows[0]), self.foresee(projects[1], hows[1])];
        self.builds += 2;
        self.floor.take_made();
        let site = &*self;
        let rounds: [Round; 2] = thread::scope(|scope| {
            let build = |at: usize| site.build(site.builds + at - 2, &foreseen[at], hows[at]);
            let second = scope.spawn(move || build(1));
            [build(0), second.join().unwrap()]
        });
        self.floor.verdict()?;
        let harmed = foreseen.iter().any(|it| it.hidden) || rounds.iter().any(|it| it.lost);
        let mut needed = HashSet::new();
        for ((foreseen, round), how) in foreseen.iter().zip(&rounds).zip(hows) {
            foreseen.is_sound(round, how)?;
            if !round.stopped && !harmed && foreseen.faults.is_empty() {
                ensure!(foreseen.is_complete(&round.built), "one of two builds is not complete: {:?}", round.built);
            }
            let missing = foreseen.missing.iter().zip(&foreseen.clean).filter(|it| *it.0);
            needed.extend(missing.map(|it| it.1.0));
            self.recorded.extend(foreseen.ran(round));
        }
        let forced = foreseen.iter().any(|it| it.forced.is_some());
        if !harmed && !forced {
            for (key, times) in self.floor.take_made() {
                ensure!(times <= 1, "two builds made {} {times} times", key.short());
                ensure!(times == 0 || needed.contains(&key), "two builds made {} for nothing", key.short());
            }
        }
        Ok(())
    }

    /// Builds everything, and then there is nothing to do; the outputs and what a person opens are right.
    pub fn settle(&mut self, project: &Project, how: &How) -> Checked {
        // What looked intact and was not is known to be lost when it could not be copied: one try for each blob.
        for _ in 0..=self.blobs().len() {
            let round = self.build_alone(project, how)?;
            ensure!(round.built.failed() == 0, "nothing was to fail: {:?}", round.built.results);
            if round.out.is_ok() {
                break;
            }
        }
        let foreseen = self.foresee(project, how);
        let again = self.build_alone(project, how)?;
        ensure!(again.built.counts().ran == 0, "a second build ran {:?}", again.built.results);
        ensure!(again.out.is_ok_and(|it| it == 0), "a second build wrote to out/ again");
        ensure!(foreseen.is_complete(&again.built), "not complete: {:?}", again.built.results);
        foreseen.out_is_right(&self.store(), &again.built)
    }
}

impl Foreseen<'_> {
    /// The keys that were recorded. A step that was made again for another one may be up to date at the end.
    fn ran<'a>(&'a self, round: &'a Round) -> impl Iterator<Item = Digest> + 'a {
        round.finished.iter().map(|it| self.clean[it.index()].0)
    }

    fn is_complete(&self, built: &Built) -> bool {
        let done = |it: &StepResult| matches!(it, StepResult::Ran { .. } | StepResult::UpToDate);
        built.results.iter().zip(&self.wanted).all(|(result, wanted)| !wanted || done(result))
    }

    /// What holds of every build, whatever happened to it.
    fn is_sound(&self, round: &Round, how: &How) -> Checked {
        let built = &round.built;
        for (step, result) in self.graph.steps().iter().zip(&built.results) {
            let (id, name) = (step.id.index(), step.identity());
            let outputs = built.outputs[id].as_ref();
            match result {
                StepResult::UpToDate | StepResult::Ran { .. } => {
                    ensure!(outputs == Some(&self.clean[id].1), "`{name}` is not what a clean build makes");
                }
                StepResult::Failed { failure, .. } => {
                    let told = self.faults.get(name).is_some_and(|(kind, times)| {
                        *kind == failure.kind && (!may_pass(*kind) || *times > how.retries)
                    });
                    ensure!(told || (self.hidden && round.lost), "`{name}` failed: {failure:?}");
                }
                StepResult::Skipped { because } => {
                    let because = &built.results[because.index()];
                    ensure!(matches!(because, StepResult::Failed { .. }), "`{name}` is skipped for {because:?}");
                }
                StepResult::NotReached => {
                    let ended = round.stopped || (built.failed() > 0 && !how.keep_going);
                    ensure!(!self.wanted[id] || ended, "`{name}` is wanted and was not reached");
                }
            }
            ensure!(self.wanted[id] || *result == StepResult::NotReached, "nobody wanted `{name}`: {result:?}");
        }
        // All but the failed one of those that had a thread by then.
        let late = round.started_late;
        ensure!(how.keep_going || late < how.jobs, "{late} steps started after a failure, with {} jobs", how.jobs);
        for name in &round.kept {
            let result = &built.results[self.graph.find(name).ok_or("no such step")?.index()];
            let ended = matches!(result, StepResult::Ran { .. } | StepResult::Failed { .. });
            ensure!(ended || self.hidden, "`{name}` ran and was still wanted, and is {result:?}");
        }
        Ok(())
    }

    /// What each step's result must be in a build that nothing disturbed.
    fn is_exact(&self, built: &Built, how: &How) -> Checked {
        let over = |it: &StepResult| !matches!(it, StepResult::NotReached | StepResult::Skipped { .. });
        for (step, result) in self.graph.steps().iter().zip(&built.results) {
            let (id, name) = (step.id.index(), step.identity());
            let runs = self.missing[id] || self.forced == Some(step.id);
            let ran = matches!(result, StepResult::Ran { .. });
            ensure!(!ran || runs, "`{name}` ran for nothing: {result:?}");
            let complete = how.keep_going || built.failed() == 0;
            if !self.wanted[id] || !(complete || over(result)) {
                continue;
            }
            let blocked = step.deps.iter().any(|it| {
                !over(&built.results[it.index()]) || { matches!(built.results[it.index()], StepResult::Failed { .. }) }
            });
            ensure!(blocked == matches!(result, StepResult::Skipped { .. }), "`{name}` is {result:?}");
            let attempts = self.faults.get(name).map_or(0, |it| it.1);
            match result {
                StepResult::Failed { .. } => ensure!(runs, "`{name}` was tried for nothing"),
                StepResult::Ran { failures, .. } => {
                    ensure!(failures.len() == attempts, "`{name}` failed {attempts} times: {result:?}");
                }
                StepResult::UpToDate => ensure!(!runs || self.shared[id], "`{name}` did not run"),
                StepResult::Skipped { .. } | StepResult::NotReached => {}
            }
        }
        Ok(())
    }

    fn out_is_right(&self, store: &Store, built: &Built) -> Checked {
        for (folder, files) in out::folders(self.graph.steps(), |it| built.outputs[it.index()].as_ref()) {
            let expected: BTreeMap<String, Digest> = files.into_iter().map(|it| (it.0.to_owned(), it.1)).collect();
            let mut found = BTreeMap::new();
            for file in fs::read_dir(store.out(&folder)).into_iter().flatten().map(Result::unwrap) {
                let name = file.file_name().into_string().unwrap();
                if !name.starts_with('.') {
                    found.insert(name, Digest::of(&fs::read(file.path()).unwrap()));
                }
            }
            ensure!(found == expected, "out/{folder} has {found:?} instead of {expected:?}");
        }
        Ok(())
    }
}

/// In memory, where the system has that: what is tested here is not the disk, and waiting for it took 19 parts in 20 of the time.
fn folder() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

/// The digest that a blob's path stands for.
fn named(path: &Path) -> Digest {
    let parts: Vec<_> = path.iter().rev().take(2).map(|it| it.to_str().unwrap()).collect();
    format!("{}{}", parts[1], parts[0]).parse().unwrap()
}

fn sealed(path: &Path) -> bool {
    let seconds = fs::metadata(path).and_then(|it| it.modified());
    seconds.is_ok_and(|it| it == std::time::UNIX_EPOCH + std::time::Duration::from_secs(1))
}

fn harm(path: &Path, harm: Harm) {
    let Ok(metadata) = fs::metadata(path) else { return };
    if matches!(harm, Harm::Delete) {
        fs::remove_file(path).unwrap();
        return;
    }
    let modified = metadata.modified().unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    fs::write(path, vec![b'#'; metadata.len() as usize]).unwrap();
    if matches!(harm, Harm::CorruptSecretly) {
        File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
    }
}

pub const PLAIN: How =
    How { jobs: 2, keep_going: false, retries: 0, force: None, goal: None, faults: Vec::new(), stop: None, pace: 0 };

fn live(test: &str, first: &Project, ops: &[Op]) -> Checked {
    let mut site = Site::new(test);
    let mut project = first.clone();
    let mut versions = vec![first.clone()];
    for op in ops {
        match op {
            Op::Edit(edit) => {
                project.apply(edit);
                versions.push(project.clone());
            }
            Op::Undo(version) => project = version.get(&versions).clone(),
            Op::Lose(loss) => site.lose(loss),
            Op::Records(keep) => {
                let path = records::path(site.folder.path());
                if let (Some(keep), Ok(metadata)) = (keep, fs::metadata(&path)) {
                    let length = metadata.len() * *keep as u64 / 1000;
                    File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
                } else {
                    let _ = fs::remove_file(&path); // there is none before the first build
                }
                site.recorded = site.store().records.kept().into_iter().map(|it| it.record.key).collect();
            }
            Op::Build(how) => {
                let round = site.build_alone(&project, how)?;
                let undisturbed = !round.stopped && !round.lost && round.built.failed() == 0;
                if undisturbed {
                    let how = How { force: None, faults: Vec::new(), stop: None, ..how.clone() };
                    site.settle(&project, &how)?;
                }
            }
            Op::Twice(both) => {
                let mut other = project.clone();
                let (first, second, edit) = &**both;
                if let Some(edit) = edit {
                    other.apply(edit);
                    versions.push(other.clone());
                }
                site.build_twice([&project, &other], [first, second])?;
                project = other;
            }
        }
    }
    site.settle(&project, &PLAIN)?;
    // All of it again where nothing ever was.
    let mut fresh = Site::new(test);
    fresh.settle(&project, &PLAIN)?;
    let outputs = |site: &mut Site| site.build_alone(&project, &PLAIN).map(|it| it.built.outputs);
    ensure!(outputs(&mut site)? == outputs(&mut fresh)?, "not what a build from nothing makes");
    Ok(())
}

proptest! {
    #![proptest_config(cases(60))]
    #[test]
    fn whatever_happens_to_a_directory_what_is_built_is_right_and_nothing_runs_for_nothing(
        project in project::project(), ops in proptest::collection::vec(op(), 1..10),
    ) {
        live("model", &project, &ops).map_err(TestCaseError::fail)?;
    }
}
