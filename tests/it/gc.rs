//! `kforge gc` and `[cache] max-size`.

use crate::project::Project;
use std::fs;

/// A project whose cache has what two states of the manifest made; the present one is the first.
fn twice_built() -> Project {
    let project = Project::new();
    project.build(&[]);
    project.edit("workloads/blocks.toml", "norm-eps = 1e-5", "norm-eps = 1e-6");
    project.build(&[]);
    project.edit("workloads/blocks.toml", "norm-eps = 1e-6", "norm-eps = 1e-5");
    project.build(&[]);
    project
}

#[test]
fn what_the_manifests_need_survives_the_smallest_limit() {
    let project = twice_built();
    let stats = || project.done(&["cache", "stats", "--json"]).json();
    let before = stats();
    let foreseen = project.done(&["gc", "--max-size", "0B", "--grace", "0s", "-n", "--json"]).json();
    assert_eq!(stats(), before, "-n removes nothing");
    let spared = project.done(&["gc", "--max-size", "0B", "--json"]).json();
    assert_eq!(spared["removed"]["records"], 0, "what was just built is spared: {spared}");

    let done = project.run(&["gc", "--max-size", "0B", "--grace", "0s"]);
    assert_eq!(done.code, Some(0));
    let told = format!(
        "removed {} records, {} blobs (",
        foreseen["removed"]["records"], foreseen["removed"]["blobs"]["files"]
    );
    assert!(
        done.stdout.starts_with(&told) && foreseen["removed"]["records"].as_u64() > Some(0),
        "{told}{}",
        done.stdout
    );
    assert!(done.stderr.contains("the rest is needed by the manifests"), "{}", done.stderr);
    assert_eq!((&stats()["rest"]["files"], &stats()["records"]["count"]), (&0.into(), &12.into()));
    assert_eq!(project.build(&[]).ran(), [""; 0], "nothing that is needed went");
    project.done(&["cache", "verify"]);
    // The other state of the manifest is to be built again.
    project.edit("workloads/blocks.toml", "norm-eps = 1e-5", "norm-eps = 1e-6");
    assert!(project.build(&[]).ran().contains(&"first@cpu:ir".to_owned()));
}

#[test]
fn by_default_only_what_nobody_can_reach_goes_and_age_is_a_reason_too() {
    let project = twice_built();
    fs::create_dir_all(project.path(".kforge-cache/corrupt")).unwrap();
    fs::write(project.path(".kforge-cache/corrupt/x"), "bad").unwrap();
    project.edit("workloads/blocks.toml", "[block.second]", "[block.renamed]");
    let done = project.done(&["gc", "--json"]).json();
    assert_eq!((&done["removed"]["records"], &done["removed"]["corrupt"]["files"]), (&0.into(), &1.into()), "{done}");
    assert_eq!(done["removed"]["out"]["files"], 7, "the folder of the block that is gone");
    assert!(
        !project.path(".kforge-cache/out/second@cpu").exists() && project.path(".kforge-cache/out/first@cpu").exists()
    );
    assert_eq!(project.done(&["gc"]).stdout.lines().next().unwrap().split(';').next(), Some("removed nothing"));

    let day = project.done(&["gc", "--max-age", "1d", "--grace", "0s", "--json"]).json();
    assert_eq!(day["removed"]["records"], 0, "{day}");
    let all = project.done(&["gc", "--max-age", "0s", "--grace", "0s", "-n", "--json"]).json();
    assert!(all["bytes-after"].as_u64() <= day["bytes-after"].as_u64(), "{all}");
    for bad in [["--max-age", "soon"], ["--max-size", "big"], ["--grace", "x"]] {
        assert_eq!(project.run(&["gc", bad[0], bad[1]]).code, Some(2), "{bad:?}");
    }
}

#[test]
fn a_build_keeps_the_cache_within_the_manifests_limit() {
    let project = Project::new();
    let limit = |size: &str| {
        let text = fs::read_to_string(project.path("kernelforge.toml")).unwrap();
        let text = text.split("\n[cache]").next().unwrap().to_owned();
        fs::write(project.path("kernelforge.toml"), format!("{text}\n[cache]\nmax-size = \"{size}\"\n")).unwrap();
    };
    limit("1 GiB");
    fs::create_dir_all(project.path(".kforge-cache/corrupt")).unwrap();
    let waste = project.path(".kforge-cache/corrupt/waste");
    fs::write(&waste, vec![0; 4 << 20]).unwrap();
    assert_eq!(project.done(&["build", "first"]).stderr.matches("note:").count(), 0);
    assert!(waste.exists());
    limit("4 MB");
    let run = project.done(&["build", "second"]);
    assert!(run.stderr.contains("note: removed 0 records, 1 files in corrupt/ (4.0 MiB)"), "{}", run.stderr);
    assert!(!waste.exists());
    limit("1 kB");
    let run = project.done(&["build", "--force"]);
    assert!(run.stderr.contains("are left of at most 1000 B"), "{}", run.stderr);
    assert_eq!(project.build(&[]).ran(), [""; 0]);
}
