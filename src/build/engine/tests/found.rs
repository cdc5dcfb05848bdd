//! What the model found, as small as it gets. Each case failed before the engine was put right.

use super::{
    model::{How, PLAIN, Site},
    project::{Plan, Project},
};
use crate::build::graph::tests::model::{NAMES, Node};
use std::collections::BTreeSet;

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
