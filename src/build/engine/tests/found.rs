//! What the model found, as small as it gets. Each case failed before the engine was put right.

use super::{
    model::{How, PLAIN, Site},
    project::{Plan, Project},
};
use crate::build::tune::Progress;
use crate::{
    build::{
        engine::{
            action::Workspace,
            control::Control,
            crew::{Executor, Seated},
            observe::Silent,
            run::{self, Options},
            worker::{Leash, Token, WorkerError},
        },
        graph::{
            Outputs, Rules, Step, StepKind,
            tests::{
                self,
                model::{NAMES, Node},
            },
        },
    },
    digest::Digest,
    host::CpuFacts,
    protocol::Failure,
    store::Store,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// A built project of steps that read these, and blobs of the first `lost` of them that only look intact.
fn damaged(test: &str, reads: &[&[usize]], lost: usize) -> (Site, Project) {
    let plan = Plan::Nodes(reads.iter().map(|it| Node::reading(it)).collect());
    let project = Project { plan, blind: BTreeSet::new() };
    let mut site = Site::new(test);
    site.settle(&project, &PLAIN).unwrap();
    let clean = project.clean(&project.graph());
    (0..lost).for_each(|step| site.lose_secretly(&clean[step].1[NAMES[step]]));
    (site, project)
}

/// Makes all steps from `first` on stale, and builds.
fn edit_and_build(site: &mut Site, mut project: Project, first: usize, jobs: usize) {
    let Plan::Nodes(nodes) = &mut project.plan else { unreachable!() };
    nodes.iter_mut().skip(first).for_each(|it| it.param = 1);
    let how = How { jobs, ..PLAIN };
    let round = site.build_alone(&project, &how).unwrap();
    assert_eq!((round.built.failed(), round.out.is_ok()), (0, true), "{:?}", round.built.results);
    site.settle(&project, &PLAIN).unwrap();
}

#[test]
fn all_who_read_a_lost_blob_wait_until_it_is_made_again() {
    for jobs in [1, 4] {
        let (mut site, project) = damaged("readers", &[&[], &[0], &[0], &[0], &[0]], 1);
        edit_and_build(&mut site, project, 1, jobs);
    }
}

#[test]
fn two_lost_blobs_of_one_step_are_both_made_again() {
    let (mut site, project) = damaged("inputs", &[&[], &[], &[0, 1]], 2);
    edit_and_build(&mut site, project, 2, 1);
}

/// Panics instead of doing anything.
struct Clumsy;

impl Executor for Clumsy {
    fn seat<'a>(&'a self, _on_start: &'a dyn Fn(u32, Duration)) -> Box<dyn Seated + 'a> {
        Box::new(Self)
    }
}

impl Seated for Clumsy {
    fn prepare(&mut self, _kind: StepKind) -> Result<Option<u32>, WorkerError> {
        Ok(None)
    }

    fn perform(
        &mut self,
        _workspace: &Workspace<'_>,
        step: &Step,
        _inputs: BTreeMap<String, Digest>,
        _token: &Arc<Token>,
        _told: &dyn Fn(&Progress<'_>),
    ) -> Result<Result<Outputs, Failure>, WorkerError> {
        panic!("no hands for {}", step.identity());
    }
}

#[test]
fn a_panic_fails_its_step_and_the_build_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder.path()).unwrap();
    let graph = tests::graph(&[tests::block("one", tests::transformer()), tests::block("two", tests::transformer())]);
    let (cpu, rules) = (CpuFacts { model: "clumsy".to_owned(), ..CpuFacts::detect() }, Rules::default());
    let workspace = Workspace { store: &store, graph: &graph, blocks: &[], origins: &[], cpu: &cpu, rules: &rules };
    let goals: Vec<_> = graph.steps().iter().map(|it| it.id).collect();
    let forced = |_: &Step| false;
    let options = Options { jobs: 1, keep_going: true, retries: 0, wait: None, forced: &forced, goals: &goals };
    let built = run::run(&workspace, &options, &Clumsy, (&Leash::default(), &Control::default()), &Silent).unwrap();
    let counts = built.counts();
    assert_eq!((counts.failed, counts.skipped, counts.ran), (2, 10, 0), "{:?}", built.results);
}
