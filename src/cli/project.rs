//! Opens the project that a command is about: manifest, store, this machine, and the graph of the chosen blocks.

use super::{error::Error, print};
use crate::{
    build::{
        engine::{action::Workspace, devices::Finder},
        graph::{self, BlockTarget, EnvironmentLlm, Graph, Rules, Step, StepId, StepKind},
        search::llm::LlmSettings,
        tune::ledger::Ledger,
    },
    host::{CpuFacts, Device},
    manifest::{
        self, BlockInstance, DEFAULT, PROJECT_FILE, Project, Sources, Target, Tuning,
        spec::{Origin, Pass},
    },
    store::{Notice, Store},
};
use globset::Glob;
use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Which blocks a command is about.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Selection {
    /// Blocks: NAME, NAME@TARGET, or patterns like `gpt2-*`; all blocks that are in no group if none is given
    #[arg(value_name = "BLOCK")]
    pub blocks: Vec<String>,
    /// Only for this target, be it one that a plain build leaves out; blocks that name their targets are built for no other
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
        let chosen = select(&project, selection)?;
        let (store, found) = Store::open(&project.root)?;
        notices(&found);
        let finder = Finder::of_store(&store, &project.root);
        let blocks = chosen.iter().map(|it| Ok(it.on(finder.device(it.target)?, &project)));
        let (blocks, cpu) = (blocks.collect::<Result<Vec<_>, Error>>()?, finder.cpu.clone());
        drop(finder);
        let origins = chosen.iter().map(|it| it.block.origins.clone()).collect();
        Ok(Self::of(project, sources, store, (blocks, origins), cpu))
    }

    /// Every block of the project, those in groups too, for every target that it may be built for; as [`Opened::recorded`].
    pub fn whole(directory: &Path) -> Result<Self, Error> {
        Self::recorded(directory, &Selection { blocks: vec!["*@*".to_owned()], ..Selection::default() })
    }

    /// For commands that build nothing and look at what was built. Nobody looks for GPUs: where none is remembered, what was built
    /// for one is found by the names of its steps, and not by its keys.
    pub fn recorded(directory: &Path, selection: &Selection) -> Result<Self, Error> {
        let (project, sources) = manifest::load_with_sources(&root(directory));
        let project = project?;
        let chosen = select(&project, selection)?;
        let (store, found) = Store::open(&project.root)?;
        notices(&found);
        let finder = Finder::of_records(&project.root);
        let blocks = chosen.iter().map(|it| it.on(finder.device_or_none(it.target), &project)).collect();
        let cpu = finder.cpu.clone();
        drop(finder);
        let origins = chosen.iter().map(|it| it.block.origins.clone()).collect();
        Ok(Self::of(project, sources, store, (blocks, origins), cpu))
    }

    fn of(project: Project, sources: Sources, store: Store, (blocks, origins): Targeted, cpu: CpuFacts) -> Self {
        let (corpus, shaders) = (project.cases.clone(), project.shaders.clone());
        let access = LlmSettings::default().resolve(|name| env::var(name).ok());
        let llm = EnvironmentLlm { model: access.model.map(|it| it.value), endpoint: access.endpoint.is_some() };
        let mut rules = Rules { corpus, shaders, llm, ..Rules::default() };
        rules.best = Ledger { store: &store }.best_digests(&blocks);
        let graph = graph::plan_build(&blocks, &rules);
        Self { project, sources, store, cpu, rules, blocks, origins, graph }
    }

    /// Whether a block's target runs on a GPU.
    pub fn uses_gpus(&self) -> bool {
        self.graph.steps().iter().any(|it| it.on_gpu)
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
pub fn block_target_of(
    project: &Project,
    name: &str,
    finder: &Finder<'_>,
) -> Result<(BlockTarget, BTreeMap<String, Origin>), Error> {
    let chosen = select(project, &Selection { blocks: vec![name.to_owned()], ..Selection::default() })?;
    only(&chosen.iter().map(Chosen::title).collect::<Vec<_>>(), name)?;
    let chosen = chosen.first().ok_or_else(|| unknown(project, name))?;
    Ok((chosen.on(finder.device(chosen.target)?, project), chosen.block.origins.clone()))
}

/// Refuses a name that means several blocks.
pub fn only(titles: &[String], name: &str) -> Result<(), Error> {
    if titles.len() <= 1 {
        return Ok(());
    }
    let names: Vec<_> = titles.iter().map(|it| format!("`{it}`")).collect();
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

/// Block targets, and where the fields of each are written.
type Targeted = (Vec<BlockTarget>, Vec<BTreeMap<String, Origin>>);

/// A block that was chosen for a target.
struct Chosen<'a> {
    block: &'a BlockInstance,
    target: &'a Target,
}

impl Chosen<'_> {
    /// `BLOCK@TARGET`.
    fn title(&self) -> String {
        format!("{}@{}", self.block.name, self.target.name)
    }

    fn on(&self, device: Arc<Device>, project: &Project) -> BlockTarget {
        let Self { block, target } = self;
        BlockTarget {
            name: block.name.clone(),
            spec: block.spec.clone(),
            passes: passes(project, block),
            // The name was checked when the manifest was loaded.
            tuning: project
                .tunings
                .get(&block.tuning)
                .cloned()
                .unwrap_or_else(|| Tuning::heuristic(DEFAULT.to_owned())),
            target: target.name.clone(),
            threads: target.backend.threads(),
            device,
            hybrid_softmax: target.backend.hybrid_softmax(),
        }
    }
}

/// The chosen blocks for the chosen targets, in the project's order. A block that names no targets is built for the project's, or
/// for those that are asked for by name.
fn select<'a>(project: &'a Project, selection: &Selection) -> Result<Vec<Chosen<'a>>, Error> {
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
    let mut chosen = Vec::new();
    for block in &project.blocks {
        for target in project.targets.values() {
            let usual = block.targets.contains(&target.name);
            let asked = !block.own_targets && selection.target.as_ref() == Some(&target.name);
            let mut named = false;
            for (used, pattern) in used.iter_mut().zip(&patterns) {
                let may = usual || asked || !block.own_targets && pattern.target.is_some();
                let matches = may && pattern.matches(block, &target.name);
                *used |= matches;
                named |= matches;
            }
            let grouped = match (&selection.group, &block.group) {
                (Some(wanted), group) => group.as_ref() == Some(wanted),
                (None, group) => group.is_none() || !patterns.is_empty(),
            };
            let targeted = selection.target.as_ref().is_none_or(|it| *it == target.name);
            if (named || patterns.is_empty() && (usual || asked)) && grouped && targeted {
                chosen.push(Chosen { block, target });
            }
        }
    }
    if let Some((_, pattern)) = used.iter().zip(&patterns).find(|it| !it.0) {
        return Err(unknown(project, &pattern.text));
    }
    Ok(chosen)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// What is selected of two blocks, one of which names its target, in a project with a GPU that `targets` leaves out.
    fn selected(blocks: &[&str], target: Option<&str>) -> Result<String, Error> {
        let folder = tempfile::tempdir()?;
        let matmul = "kind = \"matmul\"\nm = 4\nn = 4\nk = 4\n";
        let text = format!(
            "[project]\nname = \"p\"\n[target.gpu]\nbackend = \"gpu\"\n[block.free]\n{matmul}\
             [block.bound]\n{matmul}targets = [\"cpu\"]\n"
        );
        fs::write(folder.path().join(PROJECT_FILE), text)?;
        let project = load(folder.path())?;
        let blocks = blocks.iter().map(|it| (*it).to_owned()).collect();
        let selection = Selection { blocks, target: target.map(str::to_owned), group: None };
        let titles: Vec<_> = select(&project, &selection)?.iter().map(Chosen::title).collect();
        Ok(titles.join(" "))
    }

    #[test]
    fn a_target_that_a_plain_build_leaves_out_is_built_for_when_it_is_named() {
        let of = |blocks: &[&str], target| selected(blocks, target).unwrap();
        assert_eq!(of(&[], None), "free@cpu bound@cpu");
        assert_eq!(of(&["*"], None), "free@cpu bound@cpu");
        assert_eq!(of(&[], Some("gpu")), "free@gpu");
        assert_eq!(of(&["free"], Some("gpu")), "free@gpu");
        assert_eq!(of(&["free@gpu"], None), "free@gpu");
        assert_eq!(of(&["*@*"], None), "free@cpu free@gpu bound@cpu");
        assert_eq!(selected(&["bound@gpu"], None).unwrap_err().code(), crate::cli::error::Outcome::Input);
        assert_eq!(selected(&[], Some("tpu")).unwrap_err().code(), crate::cli::error::Outcome::Input);
    }
}
