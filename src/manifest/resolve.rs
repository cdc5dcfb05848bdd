//! Puts the tables of all files together: what is declared, what refers to what, and the instances that come of it.

use super::{
    Backend, BlockInstance, Cache, DEFAULT, DEFAULT_TARGET, Project, ProjectErrors, Target, Tuning,
    block::Declared,
    corpus,
    error::{At, Problem, ProblemKind, SourceFile, shown},
    knobs,
    schema::{BACKEND_KEYS, KNOBS_TABLE, LLM_TABLE, Place},
    spec::{Dtype, Pass},
    syntax::parse,
    table::{self, Fields},
};
use crate::protocol::corpus::Case;
use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::PathBuf,
    sync::Arc,
};
use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

/// A file pattern of `[project] workloads`.
pub struct Pattern {
    pub text: String,
    pub span: Range<usize>,
}

/// Collects what files declare.
#[derive(Default)]
pub struct Resolver {
    name: String,
    targets: BTreeMap<String, Target>,
    pipelines: BTreeMap<String, Vec<Pass>>,
    tunings: BTreeMap<String, Tuning>,
    project: Fields,
    cache: Fields,
    blocks: Vec<Declared>,
    corpus: Option<PathBuf>,
    cases: Vec<Case>,
    shaders: BTreeMap<String, String>,
    /// The project file is not TOML: nothing is known about what it declares.
    unclear: bool,
}

const PROJECT_TABLES: [&str; 5] = ["project", "target", "pipeline", "tuning", "cache"];

impl Resolver {
    /// Takes in the project file; returns the patterns of the workload files.
    pub fn project_file(&mut self, file: &Arc<SourceFile>, problems: &mut Vec<Problem>) -> Vec<Pattern> {
        let Some(document) = parse(file, problems) else {
            self.unclear = true;
            return Vec::new();
        };
        let mut has_project = false;
        for (key, value) in document.get_ref() {
            let Some(table) = as_table(file, key, value, problems) else { continue };
            match key.get_ref().as_ref() {
                "project" => {
                    has_project = true;
                    self.project = table::read(file, &Place::Project, key.span(), table, problems);
                    self.name = self.project.text("name").unwrap_or_default().to_owned();
                }
                "target" => named(file, "target", table, problems, |name, at, table, problems| {
                    let fields = table::read(file, &Place::Target(name.clone()), at, table, problems);
                    let backend = backend(file, &fields, problems);
                    self.targets.insert(name.clone(), Target { name, backend });
                }),
                "pipeline" => named(file, "pipeline", table, problems, |name, at, table, problems| {
                    let fields = table::read(file, &Place::Pipeline(name.clone()), at, table, problems);
                    let passes = fields.texts("passes").filter_map(|it| Pass::from_name(it.0)).collect();
                    self.pipelines.insert(name, passes);
                }),
                "tuning" => named(file, "tuning", table, problems, |name, at, table, problems| {
                    let fields = table::read(file, &Place::Tuning(name.clone()), at, table, problems);
                    let within = |name: &str| table.iter().find(|it| it.0.get_ref() == name);
                    let knobs = within(KNOBS_TABLE).and_then(|(key, value)| {
                        Some(knobs::read(file, as_table(file, key, value, problems)?, problems))
                    });
                    let llm = within(LLM_TABLE).and_then(|(key, value)| {
                        let table = as_table(file, key, value, problems)?;
                        Some(table::read(file, &Place::Llm(name.clone()), key.span(), table, problems))
                    });
                    self.tunings
                        .insert(name.clone(), Tuning::read(name, &fields, knobs.unwrap_or_default(), llm.as_ref()));
                }),
                "cache" => self.cache = table::read(file, &Place::Cache, key.span(), table, problems),
                "block" => self.blocks(file, table, problems),
                other => problems.push(unknown_table(
                    file,
                    key,
                    other,
                    "`kernelforge.toml`",
                    &["project", "target", "pipeline", "tuning", "cache", "block"],
                )),
            }
        }
        if !has_project && !document.get_ref().contains_key("project") {
            problems.push(Problem::at(ProblemKind::NoProjectTable, file, 0..0));
        }
        self.project.texts("workloads").map(|(text, span)| Pattern { text: text.to_owned(), span }).collect()
    }

    /// The file that `[project] corpus` names, and where it does.
    pub fn corpus(&self) -> Option<Pattern> {
        self.project.texts("corpus").next().map(|(text, span)| Pattern { text: text.to_owned(), span })
    }

    /// Takes in the corpus; a file that does not exist is none.
    pub fn corpus_file(&mut self, path: PathBuf, file: Option<&Arc<SourceFile>>, problems: &mut Vec<Problem>) {
        self.corpus = Some(path);
        match file.map(corpus::read) {
            Some(Ok(cases)) => self.cases = cases,
            Some(Err(problem)) => problems.push(problem),
            None => {}
        }
    }

    /// Takes in a shader template of the project.
    pub fn shader(&mut self, name: String, file: &SourceFile) {
        self.shaders.insert(name, file.text.clone());
    }

    pub fn workload_file(&mut self, file: &Arc<SourceFile>, problems: &mut Vec<Problem>) {
        let Some(document) = parse(file, problems) else { return };
        for (key, value) in document.get_ref() {
            let name = key.get_ref().as_ref();
            if PROJECT_TABLES.contains(&name) {
                problems.push(Problem::at(ProblemKind::ProjectTable { table: name.to_owned() }, file, key.span()));
            } else if name != "block" {
                problems.push(unknown_table(file, key, name, "a workload file", &["block"]));
            } else if let Some(table) = as_table(file, key, value, problems) {
                self.blocks(file, table, problems);
            }
        }
    }

    fn blocks(&mut self, file: &Arc<SourceFile>, table: &DeTable<'_>, problems: &mut Vec<Problem>) {
        let mut blocks = Vec::new();
        for (name, value) in table {
            if let Some(table) = as_table(file, name, value, problems) {
                blocks.push(Declared::read(file, name, table, problems));
            }
        }
        blocks.sort_by_key(|it| it.at.span.start);
        self.blocks.append(&mut blocks);
    }

    /// Checks what refers to what and makes the project, unless there is any problem.
    pub fn finish(
        mut self,
        root: PathBuf,
        files: Vec<PathBuf>,
        file: &Arc<SourceFile>,
        mut problems: Vec<Problem>,
    ) -> Result<Project, ProjectErrors> {
        self.add_defaults();
        self.check_references(file, &mut problems);
        let mut default_targets: Vec<_> = self.project.texts("targets").map(|it| it.0.to_owned()).collect();
        if default_targets.is_empty() {
            default_targets.push(DEFAULT_TARGET.to_owned());
        }
        self.check_types(&default_targets, &mut problems);
        let blocks = self.instances(&default_targets, &mut problems);
        if self.blocks.is_empty() && problems.is_empty() {
            let at = self.project.get("workloads").map_or(0..0, |it| it.key.clone());
            problems.push(Problem::at(ProblemKind::NoBlocks, file, at));
        }
        if !problems.is_empty() {
            return Err(ProjectErrors::new(problems));
        }
        let cache = Cache { max_size: self.cache.bytes("max-size") };
        let Self { name, targets, pipelines, tunings, corpus, cases, shaders, .. } = self;
        Ok(Project {
            root,
            name,
            files,
            targets,
            default_targets,
            pipelines,
            tunings,
            cache,
            corpus,
            cases,
            shaders,
            blocks,
        })
    }

    fn add_defaults(&mut self) {
        let name = || DEFAULT.to_owned();
        let target = Target { name: DEFAULT_TARGET.to_owned(), backend: Backend::Cpu { threads: 1 } };
        self.targets.entry(target.name.clone()).or_insert(target);
        self.pipelines.entry(name()).or_insert_with(|| Pass::ALL.to_vec());
        self.tunings.entry(name()).or_insert_with(|| Tuning::heuristic(name()));
    }

    fn check_references(&self, project: &Arc<SourceFile>, problems: &mut Vec<Problem>) {
        if self.unclear {
            return;
        }
        let mut check = |name: &str, at: At, what, table, known: Vec<&String>| {
            if !known.iter().any(|it| *it == name) {
                let known = known.into_iter().cloned().collect();
                let kind = ProblemKind::NotOneOf { what, value: shown(name), known, declared_by: Some(table) };
                problems.push(Problem::new(kind, Some(at)));
            }
        };
        for (name, span) in self.project.texts("targets") {
            check(name, At::new(project, span), "a target", "target", self.targets.keys().collect());
        }
        for block in &self.blocks {
            for (name, span) in block.fields.texts("targets") {
                check(name, block.place(&span), "a target", "target", self.targets.keys().collect());
            }
            for (name, span) in block.fields.texts("pipeline") {
                check(name, block.place(&span), "a pipeline", "pipeline", self.pipelines.keys().collect());
            }
            for (name, span) in block.fields.texts("tuning") {
                check(name, block.place(&span), "a tuning", "tuning", self.tunings.keys().collect());
            }
        }
    }

    /// Types that a block's target cannot store, whatever device it is.
    fn check_types(&self, default_targets: &[String], problems: &mut Vec<Problem>) {
        for block in &self.blocks {
            let own: Vec<&str> = block.fields.texts("targets").map(|it| it.0).collect();
            let targets = if own.is_empty() { default_targets.iter().map(String::as_str).collect() } else { own };
            let mut on_gpu = targets.into_iter().filter_map(|it| self.targets.get(it));
            let Some(target) = on_gpu.find(|it| matches!(it.backend, Backend::Gpu { .. })) else { continue };
            for (_, span) in block.fields.texts("dtype").filter(|it| it.0 == Dtype::Bf16.name()) {
                let kind = ProblemKind::NoBrainOnGpu { target: target.name.clone() };
                problems.push(Problem::new(kind, Some(block.place(&span))));
            }
        }
    }

    /// All instances; two blocks or instances of one name are problems.
    fn instances(&self, default_targets: &[String], problems: &mut Vec<Problem>) -> Vec<BlockInstance> {
        let mut instances: Vec<BlockInstance> = Vec::new();
        let mut declared: HashMap<&str, &Declared> = HashMap::new();
        let mut owners: HashMap<String, &Declared> = HashMap::new();
        for block in &self.blocks {
            if let Some(first) = declared.get(block.name.as_str()) {
                let kind = ProblemKind::DuplicateBlock { name: shown(&block.name) };
                problems.push(Problem::new(kind, Some(block.at.clone())).and(first.at.clone(), "first here"));
                continue;
            }
            declared.insert(&block.name, block);
            for instance in block.instances(default_targets, problems) {
                if let Some(first) = owners.get(&instance.name) {
                    let list = if first.name == instance.name { block } else { first };
                    let kind = ProblemKind::DuplicateInstance { name: instance.name, declared: list.name.clone() };
                    problems.push(Problem::new(kind, Some(block.at.clone())).and(first.at.clone(), "first here"));
                    continue;
                }
                owners.insert(instance.name.clone(), block);
                instances.push(instance);
            }
        }
        instances
    }
}

fn as_table<'a, 'i>(
    file: &Arc<SourceFile>,
    key: &Spanned<DeString<'_>>,
    value: &'a Spanned<DeValue<'i>>,
    problems: &mut Vec<Problem>,
) -> Option<&'a DeTable<'i>> {
    let table = value.get_ref().as_table();
    if table.is_none() {
        let kind = ProblemKind::WrongType { key: shown(key.get_ref()), expected: "a table", found: "a value" };
        problems.push(Problem::at(kind, file, key.span()));
    }
    table
}

/// The backend that a target's fields describe. A key of another backend is a problem at the key.
fn backend(file: &Arc<SourceFile>, fields: &Fields, problems: &mut Vec<Problem>) -> Backend {
    let backend = match fields.text("backend") {
        // `metal` and `mps` are what the original tool called it.
        Some("gpu" | "metal" | "mps") => Backend::Gpu {
            adapter: fields.text("adapter").unwrap_or("*").to_owned(),
            hybrid_softmax: fields.flag("hybrid-softmax").unwrap_or(false),
        },
        // Also where the key is missing or wrong, which is told already.
        _ => Backend::Cpu { threads: fields.size("threads").unwrap_or(1) },
    };
    if fields.get("backend").is_some() {
        for (key, owner) in BACKEND_KEYS.into_iter().filter(|it| it.1 != backend.name()) {
            if let Some(field) = fields.get(key) {
                let kind = ProblemKind::KeyOfOtherBackend { backend: backend.name(), key, owner };
                problems.push(Problem::at(kind, file, field.key.clone()));
            }
        }
    }
    backend
}

/// Reads each `[what.NAME]`.
fn named<'i>(
    file: &Arc<SourceFile>,
    what: &'static str,
    tables: &DeTable<'i>,
    problems: &mut Vec<Problem>,
    mut read: impl FnMut(String, Range<usize>, &DeTable<'i>, &mut Vec<Problem>),
) {
    for (name, value) in tables {
        let text = name.get_ref().as_ref();
        if !table::is_name(text) {
            problems.push(Problem::at(ProblemKind::BadName { what, name: shown(text) }, file, name.span()));
        }
        if let Some(table) = as_table(file, name, value, problems) {
            read(text.to_owned(), name.span(), table, problems);
        }
    }
}

fn unknown_table(
    file: &Arc<SourceFile>,
    key: &Spanned<DeString<'_>>,
    name: &str,
    place: &str,
    known: &[&'static str],
) -> Problem {
    let kind = ProblemKind::UnknownKey { place: place.to_owned(), key: shown(name), known: known.to_vec() };
    Problem::at(kind, file, key.span())
}
