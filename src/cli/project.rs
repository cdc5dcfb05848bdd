//! Opens the project that a command is about: manifest, store, this machine, and the graph of the chosen blocks.

use super::{error::Error, print};
use crate::{
    build::{
        engine::action::Workspace,
        graph::{self, BlockTarget, Graph, Rules, Step, StepId, StepKind},
    },
    host::CpuFacts,
    manifest::{
        self, BlockInstance, PROJECT_FILE, Project, Sources,
        spec::{Origin, Pass},
    },
    store::{Notice, Store},
};
use globset::Glob;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Which blocks a command is about.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Selection {
    /// Blocks: NAME, NAME@TARGET, or patterns like `gpt2-*`; all blocks that are in no group if none is given
    #[arg(value_name = "BLOCK")]
    pub blocks: Vec<String>,
    /// Only for this target
    #[arg(long)]
    pub target: Option<String>,
    /// The blocks of this group, which a plain build leaves out
    #[arg(long)]
    pub group: Option<String>,
}

/// A project with all that a build of the chosen blocks reads.
pub struct Opened {
    pub project: Project,
    /// What the project was read from.
    pub sources: Sources,
    pub store: Store,
    pub cpu: CpuFacts,
    pub rules: Rules,
    pub blocks: Vec<BlockTarget>,
    pub origins: Vec<BTreeMap<String, Origin>>,
    pub graph: Graph,
}

impl Opened {
    pub fn open(directory: &Path, selection: &Selection) -> Result<Self, Error> {
        let (project, sources) = manifest::load_with_sources(&root(directory));
        Self::new(project?, sources, selection)
    }

    /// The chosen blocks of a project that was read from these sources.
    pub fn new(project: Project, sources: Sources, selection: &Selection) -> Result<Self, Error> {
        let (blocks, origins) = select(&project, selection)?;
        let (store, found) = Store::open(&project.root)?;
        notices(&found);
        let (cpu, rules) = (CpuFacts::detect(), Rules { corpus: project.cases.clone(), ..Rules::default() });
        let graph = graph::plan_build(&blocks, &cpu, &rules);
        Ok(Self { project, sources, store, cpu, rules, blocks, origins, graph })
    }

    /// Every block of the project, those in groups too, for every target.
    pub fn whole(directory: &Path) -> Result<Self, Error> {
        Self::open(directory, &Selection { blocks: vec!["*".to_owned()], ..Selection::default() })
    }

    pub fn workspace(&self) -> Workspace<'_> {
        Workspace {
            store: &self.store,
            graph: &self.graph,
            blocks: &self.blocks,
            origins: &self.origins,
            cpu: &self.cpu,
            rules: &self.rules,
        }
    }

    /// All steps.
    pub fn goals(&self) -> Vec<StepId> {
        self.graph.steps().iter().map(|it| it.id).collect()
    }

    /// The step `kind` of the block at index `subject`.
    pub fn step(&self, subject: usize, kind: StepKind) -> Option<&Step> {
        self.graph.steps().iter().find(|it| it.subject == Some(subject) && it.kind == kind)
    }
}

/// The one block and target that `name` means, of a project whose store is left alone.
pub fn block_target_of(project: &Project, name: &str) -> Result<(BlockTarget, BTreeMap<String, Origin>), Error> {
    let (mut blocks, mut origins) =
        select(project, &Selection { blocks: vec![name.to_owned()], ..Selection::default() })?;
    only(&blocks, name)?;
    // As many origins as blocks, and one of them.
    blocks.pop().zip(origins.pop()).ok_or_else(|| unknown(project, name))
}

/// Refuses a name that means several blocks.
pub fn only(blocks: &[BlockTarget], name: &str) -> Result<(), Error> {
    if blocks.len() <= 1 {
        return Ok(());
    }
    let names: Vec<_> = blocks.iter().map(|it| format!("`{}@{}`", it.name, it.target)).collect();
    let error = Error::input(format!("`{name}` means {} blocks: {}", names.len(), names.join(", ")));
    Err(error.with_hint("name one of them"))
}

/// Tells what the store had to put right.
pub fn notices(notices: &[Notice]) {
    notices.iter().for_each(|it| print::warning(&it.to_string()));
}

/// Loads the project in `directory` or in the nearest folder above that has a project file.
pub fn load(directory: &Path) -> Result<Project, Error> {
    Ok(manifest::load(&root(directory))?)
}

/// The folder of the project that `directory` is in.
pub fn root(directory: &Path) -> PathBuf {
    let absolute = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let root = absolute.ancestors().find(|it| it.join(PROJECT_FILE).is_file());
    root.map_or_else(|| directory.to_owned(), Path::to_owned)
}

/// The one block that `name` means.
pub fn block<'a>(project: &'a Project, name: &str) -> Result<&'a BlockInstance, Error> {
    if let Some(block) = project.blocks.iter().find(|it| it.name == name) {
        return Ok(block);
    }
    let instances: Vec<_> = project.blocks.iter().filter(|it| it.declared == name).collect();
    match instances.as_slice() {
        [] => Err(unknown(project, name)),
        [block] => Ok(block),
        [first, ..] => {
            let names: Vec<_> = instances.iter().map(|it| format!("`{}`", it.name)).collect();
            let error = Error::input(format!("block `{name}` has {} instances: {}", names.len(), names.join(", ")));
            Err(error.with_hint(format!("name one of them, e.g. `{}`", first.name)))
        }
    }
}

/// The passes that run on this block.
pub fn passes(project: &Project, block: &BlockInstance) -> Vec<Pass> {
    project.pipelines.get(&block.pipeline).cloned().unwrap_or_default()
}

type Selected = (Vec<BlockTarget>, Vec<BTreeMap<String, Origin>>);

/// The chosen blocks for the chosen targets, in the project's order.
fn select(project: &Project, selection: &Selection) -> Result<Selected, Error> {
    if let Some(target) = selection.target.as_ref().filter(|it| !project.targets.contains_key(*it)) {
        let known: Vec<_> = project.targets.keys().map(String::as_str).collect();
        return Err(nearest(Error::input(format!("there is no target `{target}`")), target, &known));
    }
    if let Some(group) = &selection.group
        && !project.blocks.iter().any(|it| it.group.as_ref() == Some(group))
    {
        let known: Vec<_> = project.blocks.iter().filter_map(|it| it.group.as_deref()).collect();
        return Err(nearest(Error::input(format!("no block is in a group `{group}`")), group, &known));
    }
    let patterns = selection.blocks.iter().map(|it| Pattern::new(it)).collect::<Result<Vec<_>, _>>()?;
    let mut used = vec![false; patterns.len()];
    let (mut blocks, mut origins) = (Vec::new(), Vec::new());
    for block in &project.blocks {
        for target in &block.targets {
            let mut named = false;
            for (used, pattern) in used.iter_mut().zip(&patterns) {
                let matches = pattern.matches(block, target);
                *used |= matches;
                named |= matches;
            }
            let grouped = match (&selection.group, &block.group) {
                (Some(wanted), group) => group.as_ref() == Some(wanted),
                (None, group) => group.is_none() || !patterns.is_empty(),
            };
            let targeted = selection.target.as_ref().is_none_or(|it| it == target);
            if (named || patterns.is_empty()) && grouped && targeted {
                blocks.push(block_target(project, block, target));
                origins.push(block.origins.clone());
            }
        }
    }
    if let Some((_, pattern)) = used.iter().zip(&patterns).find(|it| !it.0) {
        return Err(unknown(project, &pattern.text));
    }
    Ok((blocks, origins))
}

fn block_target(project: &Project, block: &BlockInstance, target: &str) -> BlockTarget {
    BlockTarget {
        name: block.name.clone(),
        spec: block.spec.clone(),
        passes: passes(project, block),
        // Both names were checked when the manifest was loaded.
        strategy: project.tunings.get(&block.tuning).map_or("heuristic", |it| it.strategy.name()).to_owned(),
        target: target.to_owned(),
        threads: project.targets.get(target).map_or(1, |it| it.threads),
    }
}

/// `NAME` or `NAME@TARGET`, both with the wildcards of a shell.
struct Pattern {
    text: String,
    block: globset::GlobMatcher,
    target: Option<globset::GlobMatcher>,
}

impl Pattern {
    fn new(text: &str) -> Result<Self, Error> {
        let glob = |part: &str| {
            let glob =
                Glob::new(part).map_err(|error| Error::input(format!("`{text}` is no pattern: {}", error.kind())));
            glob.map(|it| it.compile_matcher())
        };
        let (block, target) = match text.rsplit_once('@') {
            Some((block, target)) => (glob(block)?, Some(glob(target)?)),
            None => (glob(text)?, None),
        };
        Ok(Self { text: text.to_owned(), block, target })
    }

    fn matches(&self, block: &BlockInstance, target: &str) -> bool {
        let named = self.block.is_match(&block.name) || self.block.is_match(&block.declared);
        named && self.target.as_ref().is_none_or(|it| it.is_match(target))
    }
}

/// No block matches `name`: says which one comes nearest.
fn unknown(project: &Project, name: &str) -> Error {
    let error = Error::input(format!("no block matches `{name}`"));
    let known: Vec<_> = project.blocks.iter().flat_map(|it| [it.name.as_str(), it.declared.as_str()]).collect();
    let block = name.rsplit_once('@').map_or(name, |it| it.0);
    nearest(error, block, &known)
}

fn nearest(error: Error, name: &str, known: &[&str]) -> Error {
    let scored = known.iter().map(|it| (strsim::jaro_winkler(name, it), *it));
    let best = scored.filter(|it| it.0 > 0.75).max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((_, best)) => error.with_hint(format!("did you mean `{best}`?")),
        None if known.is_empty() => error,
        None => {
            let mut known = known.to_vec();
            known.sort_unstable();
            known.dedup();
            let more = if known.len() > 12 { ", ..." } else { "" };
            let names: Vec<_> = known.iter().take(12).map(|it| format!("`{it}`")).collect();
            error.with_hint(format!("there are {}{more}", names.join(", ")))
        }
    }
}
