//! A build with nothing to do answers from what it remembers, and never when anything is not what it was.

use crate::project::Project;
use kernelforge::{build::uptodate, host::CpuFacts, store::cas};
use std::{fs, thread, time::Duration};

const NOTHING: &str = "done: 0 steps run, 6 up to date\n";

const BLOCK: &str = "[block.one]\nkind = \"layer-norm\"\nseq = 4\nd-model = 32\nnorm-eps = 1e-5\n";

/// What a plain build would say from memory.
fn remembered(project: &Project) -> Option<usize> {
    let root = project.folder.path().canonicalize().unwrap();
    let selection = uptodate::selection(&[], None, None);
    uptodate::recall(&root, &selection, &CpuFacts::detect()).map(|it| it.steps)
}

/// Builds until nothing is left to do. Files that were just written are not relied on, hence the pause.
fn settle(project: &Project) {
    project.done(&["build"]);
    thread::sleep(Duration::from_millis(150));
    assert!(project.done(&["build"]).stdout.ends_with("up to date\n"));
    assert!(remembered(project).is_some());
}

#[test]
fn the_same_is_said_from_memory() {
    let project = Project::with(BLOCK);
    project.done(&["build"]);
    assert_eq!(remembered(&project), None, "nobody looked for changes since");
    thread::sleep(Duration::from_millis(150));
    let found = project.done(&["build"]).stdout;
    assert_eq!(remembered(&project), Some(6));
    assert!(found.ends_with(NOTHING), "{found}");
    assert_eq!(project.done(&["build"]).stdout, found);
    assert_eq!(project.done(&["build", "--locked"]).stdout, "0 steps stale or waiting for stale ones, 6 up to date\n");
    // Other blocks are another question, and so is a build that shall run all the same.
    assert_eq!(project.done(&["build", "one", "--force", "--json"]).json()["run"], 6);
}

#[test]
fn whatever_is_not_what_it_was_is_found_and_put_right() {
    let project = Project::with(BLOCK);
    let out = |file: &str| project.path(".kforge-cache/out/one@cpu").join(file);
    settle(&project);

    // In place and by rename, with the size it had.
    let plan = fs::read(out("plan.json")).unwrap();
    fs::write(out("plan.json"), vec![b'x'; plan.len()]).unwrap();
    assert_eq!(remembered(&project), None);
    assert!(project.done(&["build"]).stdout.ends_with(NOTHING));
    assert_eq!(fs::read(out("plan.json")).unwrap(), plan);
    settle(&project);
    fs::remove_file(out("kernel.o")).unwrap();
    assert_eq!(remembered(&project), None);
    project.done(&["build"]);
    assert!(out("kernel.o").exists());

    settle(&project);
    let blob = project.blob("one@cpu:compile", "object");
    fs::remove_file(&blob).unwrap();
    assert_eq!(remembered(&project), None);
    project.done(&["build"]);
    assert!(blob.exists());

    settle(&project);
    let records = project.path(".kforge-cache/records");
    let bytes = fs::read(&records).unwrap();
    fs::write(&records, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(remembered(&project), None);
    project.done(&["build"]);

    settle(&project);
    fs::remove_dir_all(project.path(".kforge-cache/out")).unwrap();
    assert_eq!(remembered(&project), None);
    project.done(&["build"]);
    assert!(out("report.json").exists());

    settle(&project);
    fs::remove_dir_all(cas::folders(project.folder.path()).find(|it| it.exists()).unwrap()).unwrap();
    assert_eq!(remembered(&project), None);
}

#[test]
fn only_what_the_manifest_says_counts() {
    let project = Project::with(BLOCK);
    let manifest = project.path("workloads/blocks.toml");
    settle(&project);

    // As after a checkout.
    fs::write(&manifest, BLOCK).unwrap();
    assert_eq!(remembered(&project), Some(6));

    project.edit("workloads/blocks.toml", "seq = 4", "seq = 5");
    assert_eq!(remembered(&project), None);
    assert_eq!(project.build(&[]).ran().len(), 6);

    settle(&project);
    fs::write(project.path("workloads/more.toml"), BLOCK.replace("one", "two")).unwrap();
    assert_eq!(remembered(&project), None);
    assert_eq!(project.run(&["build", "--locked"]).code, Some(4));

    settle(&project);
    fs::remove_file(project.path("workloads/more.toml")).unwrap();
    assert_eq!(remembered(&project), None);

    project.edit("kernelforge.toml", "name = \"test\"\n", "name = \"test\"\ncorpus = \"corpus.toml\"\n");
    settle(&project);
    let case = "version = 1\n[[case]]\ngate = \"v2-bound\"\nop = \"layer-norm\"\ncase = \"peaky\"\nseed = 3\nfound = \"b/x\"\n";
    fs::write(project.path("corpus.toml"), case).unwrap();
    assert_eq!(remembered(&project), None);
    assert_eq!(project.build(&[]).ran(), ["one@cpu:report", "one@cpu:verify"]);
}
