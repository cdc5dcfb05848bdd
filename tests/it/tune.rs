//! `kforge tune`: nothing is tried twice, whatever interrupts it; and language models propose, but decide nothing.

use crate::{
    chat_server::{Behaviour, ChatServer},
    project::{Project, Run, no_worker_is_left, signal, wait_until},
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt, process::Stdio};

/// Two blocks with one operation, which a third has in another shape.
const MATMULS: &str = r#"
[block.first]
kind = "matmul"
m = 8
n = 48
k = 24

[block.again]
kind = "matmul"
m = 8
n = 48
k = 24

[block.other]
kind = "matmul"
m = 9
n = 48
k = 24
"#;

fn tune(project: &Project, args: &[&str]) -> Value {
    let args: Vec<_> = ["tune", "--json"].iter().chain(args).copied().collect();
    project.done(&args).json()["blocks"][0]["search"].take()
}

/// Trials, and how many of them are new, of the block's only operation.
fn counted(search: &Value) -> (u64, u64) {
    let operation = &search["operations"][0];
    (operation["trials"].as_u64().unwrap(), operation["new"].as_u64().unwrap())
}

fn trials(project: &Project, block: &str) -> Vec<Value> {
    let shown = project.done(&["tune", block, "--show", "--json"]).json();
    shown["operations"][0]["trials"].as_array().cloned().unwrap_or_default()
}

fn schedules(trials: &[Value]) -> BTreeSet<String> {
    trials.iter().map(|it| it["schedule"].to_string()).collect()
}

#[test]
fn a_larger_budget_tries_the_difference_and_equal_operations_share_their_trials() {
    let project = Project::with(MATMULS);
    let random =
        |block: &str, trials: &str| counted(&tune(&project, &[block, "--strategy", "random", "--trials", trials]));
    assert_eq!(random("first", "6"), (6, 6));
    assert_eq!(random("first", "6"), (6, 0));
    let before = schedules(&trials(&project, "first"));
    assert_eq!(random("first", "10"), (10, 4));
    let after = schedules(&trials(&project, "first"));
    assert!(before.len() == 6 && after.len() == 10 && before.is_subset(&after), "{before:?} {after:?}");
    assert_eq!(random("again", "10"), (10, 0), "another block has the same operation");
    assert_eq!(random("other", "6"), (6, 6));
    let stats = project.done(&["cache", "stats", "--json"]).json();
    assert!(
        stats["steps"] == 6 && stats["of-searches"].as_u64() >= Some(16),
        "an ir and a plan of three blocks: {stats}"
    );
    // Another strategy knows what this one tried, where both propose the same.
    let grid = counted(&tune(&project, &["first", "--strategy", "grid", "--trials", "6"]));
    assert!(grid.0 == 6 && grid.1 <= 5, "the heuristic's own trial is known: {grid:?}");
    let table = project.done(&["tune", "first", "--strategy", "random", "--trials", "10"]).stdout;
    assert!(table.contains("first@cpu\n") && table.contains("done: 10 trials, 0 of them new"), "{table}");
}

#[test]
fn a_search_that_was_killed_goes_on_and_ends_where_an_uninterrupted_one_does() {
    let project = Project::with(MATMULS);
    let args = ["tune", "first", "--strategy", "evolutionary", "--trials", "34", "--json"];
    let mut child = project.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("some trials are recorded", || trials(&project, "first").len() >= 9);
    signal("KILL", child.id());
    child.wait().unwrap();
    no_worker_is_left(&project);
    let before = schedules(&trials(&project, "first"));
    let resumed = tune(&project, &args[1..6]);
    let (told, new) = counted(&resumed);
    assert_eq!((told, new as usize), (34, 34 - before.len()), "no trial is made twice");
    assert!(before.is_subset(&schedules(&trials(&project, "first"))));

    // With all times in the store, a search from the beginning ends the same.
    project.done(&["tune", "first", "--strategy", "random", "--trials", "1"]);
    project.edit(
        "kernelforge.toml",
        "threads = 1\n",
        "threads = 1\n\n[tuning.default]\nstrategy = \"evolutionary\"\ntrials = 34\n",
    );
    project.done(&["build", "first", "--force"]);
    let plan: Value =
        serde_json::from_slice(&fs::read(project.path(".kforge-cache/out/first@cpu/plan.json")).unwrap()).unwrap();
    assert_eq!((&plan["stages"], &plan["provenance"]), (&resumed["plan"]["stages"], &resumed["plan"]["provenance"]));
    assert_eq!(trials(&project, "first").len(), 34, "the build measured nothing new");
}

#[test]
fn a_schedule_that_kills_the_worker_is_refused_once_and_never_tried_again() {
    let project = Project::with(MATMULS);
    // A worker that dies of its second try, whatever is tried.
    let (path, marker) = (project.path("fragile-worker"), project.path("died"));
    let script = format!(
        "#!/bin/sh\ntries=0\nwhile IFS= read -r line; do\n  case \"$line\" in *'\"action\":\"try\"'*) tries=$((tries+1))\n    \
         if [ $tries = 2 ] && [ ! -e '{0}' ]; then : >'{0}'; echo 'last words' >&2; kill -s SEGV $$; fi;; esac\n  \
         printf '%s\\n' \"$line\"\ndone | '{1}' \"$@\"\n",
        marker.display(),
        env!("CARGO_BIN_EXE_kforge-worker")
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let args = ["tune", "first", "--strategy", "random", "--trials", "8", "--json"];
    let run = Run::of(project.command(&args).env("KFORGE_WORKER", &path).output().unwrap());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let search = &run.json()["blocks"][0]["search"];
    assert_eq!((counted(search), &search["operations"][0]["refused"]), ((8, 8), &json!(1)), "{search}");
    let refused: Vec<_> =
        trials(&project, "first").into_iter().filter(|it| it["outcome"]["rejected"].is_object()).collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0]["outcome"]["rejected"]["kind"], "crash", "{refused:?}");
    // With a sound worker too.
    assert_eq!(counted(&tune(&project, &["first", "--strategy", "random", "--trials", "8"])), (8, 0));
}

#[test]
fn what_a_search_found_is_what_the_block_is_built_with() {
    let project = Project::with(MATMULS);
    project.edit(
        "kernelforge.toml",
        "threads = 1\n",
        "threads = 1\n\n[tuning.quick]\nstrategy = \"evolutionary\"\ntrials = 12\ntime = \"60s\"\n",
    );
    project.edit("workloads/blocks.toml", "[block.first]\n", "[block.first]\ntuning = \"quick\"\n");
    let built = project.build(&["first"]);
    assert_eq!(built.ran().len(), 6);
    let plan = |block: &str| -> Value {
        let path = project.path(&format!(".kforge-cache/out/{block}@cpu/plan.json"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    let searched = plan("first");
    assert_eq!(
        (&searched["provenance"]["strategy"], &searched["provenance"]["trials"]),
        (&json!("evolutionary"), &json!(12))
    );
    assert_eq!(project.build(&["first"]).ran(), Vec::<String>::new());
    // The heuristic of another block takes what was verified to be better, if anything was.
    project.build(&["again"]);
    let known = plan("again");
    assert_eq!(known["stages"], searched["stages"]);
    let best = project.done(&["cache", "plans", "--json"]).json();
    let won = !searched["provenance"]["origins"].is_null();
    assert_eq!(best["best"].as_array().unwrap().len(), usize::from(won), "{best}");
    // The budget is in the key.
    project.edit("kernelforge.toml", "trials = 12", "trials = 13");
    let why = project.done(&["why", "first@cpu:plan"]).stdout;
    assert!(why.contains("`tuning.trials` changed from 12 to 13"), "{why}");
}

#[test]
fn a_block_is_searched_without_its_fusions_too() {
    let mlp = "[block.mlp]\nkind = \"mlp\"\nseq = 4\nd-model = 16\nd-ff = 48\nactivation = \"gelu\"\n";
    let project = Project::with(mlp);
    let stages = |search: &Value| search["operations"].as_array().unwrap().len();
    let kept = tune(&project, &["mlp", "--strategy", "random", "--trials", "2", "--keep-fusions"]);
    assert_eq!(stages(&kept), 1, "{kept}");
    let search = tune(&project, &["mlp", "--strategy", "random", "--trials", "2"]);
    assert!(stages(&search) > 2 && search["block-ns"].as_f64() > Some(0.0), "{search}");
    // Whichever plan won, a build of it is right, and judged to be by others.
    project.edit(
        "kernelforge.toml",
        "threads = 1\n",
        "threads = 1\n\n[tuning.default]\nstrategy = \"random\"\ntrials = 2\n",
    );
    project.build(&["mlp"]);
    let plan = project.path(".kforge-cache/out/mlp@cpu/plan.json");
    project.done(&["verify", plan.to_str().unwrap(), "--block", "mlp"]);
    let mut edited: Value = serde_json::from_slice(&fs::read(&plan).unwrap()).unwrap();
    edited["without"] = json!(["eliminate-dead-ops"]);
    fs::write(project.path("edited.json"), edited.to_string()).unwrap();
    let refused = project.run(&["verify", "edited.json", "--block", "mlp"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("`without`"), "{}", refused.stderr);
}

#[test]
fn trials_travel_in_files_and_are_only_a_beginning_elsewhere() {
    let (here, there) = (Project::with(MATMULS), Project::with(MATMULS));
    tune(&here, &["first", "--strategy", "random", "--trials", "9"]);
    let told = here.done(&["tune", "first", "--export", "trials.json"]).stdout;
    assert_eq!(told, "exported 9 trials: trials.json\n");
    let file: Value = serde_json::from_slice(&fs::read(here.path("trials.json")).unwrap()).unwrap();
    let first = &file["results"][0];
    assert_eq!((&file["schema_version"], &first["invalidity"]), (&json!("1.0.0"), &json!("correct")), "{file}");
    assert_eq!(first["measurements"][0]["unit"], "ns");
    fs::copy(here.path("trials.json"), there.path("trials.json")).unwrap();
    assert_eq!(there.done(&["tune", "--import", "trials.json"]).stdout, "imported 9 trials: trials.json\n");
    assert_eq!(trials(&there, "first").len(), 0, "nothing was measured here");
    let better = |it: &&Value| it["measurements"][1]["value"].as_f64().is_some_and(|it| it < 1.0);
    let better: BTreeSet<String> =
        file["results"].as_array().unwrap().iter().filter(better).map(|it| it["configuration"].to_string()).collect();
    let search = tune(&there, &["first", "--strategy", "evolutionary", "--trials", "9"]);
    assert_eq!(counted(&search), (9, 9), "imported trials are no trials of this machine");
    let tried = schedules(&trials(&there, "first"));
    assert!(better.is_subset(&tried), "what did well elsewhere is tried early: {better:?} {tried:?}");

    for (text, told) in [
        ("{\"version\": 2}", "it has version 2, and this kforge reads versions up to 1"),
        ("{\"version\": 1}", "it is no JSON of trials: missing field"),
        ("no JSON", "it is no JSON of trials"),
    ] {
        fs::write(there.path("bad.json"), text).unwrap();
        let run = there.run(&["tune", "--import", "bad.json"]);
        assert!(run.code == Some(2) && run.stderr.contains(told), "{}", run.stderr);
    }
    let run = there.run(&["tune", "--import", "absent.json"]);
    assert!(run.code == Some(2) && run.stderr.contains("absent.json"), "{}", run.stderr);
}

/// Has the environment of a language model at this address.
fn with_model(project: &Project, url: &str, args: &[&str]) -> Run {
    let mut command = project.command(args);
    command.env("KERNELFORGE_LLM_ENDPOINT", url).env("KERNELFORGE_LLM_MODEL", "tester");
    Run::of(command.env("KERNELFORGE_LLM_API_KEY", "sk-very-secret-indeed").output().unwrap())
}

fn answer(schedules: &[Value]) -> Behaviour {
    Behaviour::Say(json!({ "schedules": schedules }).to_string())
}

#[test]
fn a_language_model_proposes_and_a_build_replays_without_it() {
    let project = Project::with(MATMULS);
    let heuristic = {
        tune(&project, &["first", "--strategy", "random", "--trials", "1"]);
        trials(&project, "first")[0]["schedule"].clone()
    };
    let with = |changes: Value| {
        let mut schedule = heuristic.clone();
        for (name, value) in changes.as_object().unwrap() {
            schedule[name] = value.clone();
        }
        schedule
    };
    let (good, illegal) =
        (with(json!({ "unroll": if heuristic["unroll"] == 2 { 4 } else { 2 } })), with(json!({ "mr": 31 })));
    let unknown = with(json!({ "turbo": true }));
    let server = ChatServer::start(vec![
        Behaviour::Say("fn main() { std::process::exit(0) }".to_owned()),
        answer(&[illegal, unknown, good.clone(), json!("rm -rf /")]),
        answer(&[with(json!({ "unroll": if heuristic["unroll"] == 8 { 1 } else { 8 } }))]),
    ]);
    project.edit(
        "kernelforge.toml",
        "threads = 1\n",
        "threads = 1\n\n[tuning.default]\nstrategy = \"llm\"\ntrials = 3\n",
    );
    let run = with_model(&project, &server.url(), &["build", "first", "--json"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let tried = trials(&project, "first");
    let origin = |schedule: &Value| tried.iter().find(|it| it["schedule"] == *schedule).map(|it| it["origin"].clone());
    assert_eq!(origin(&good), Some(json!("llm tester: round 2")), "{tried:?}");
    assert_eq!(tried.len(), 3, "{tried:?}");
    let asked = server.received();
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|it| it.header("authorization") == Some("Bearer sk-very-secret-indeed")));
    assert!(asked[2].prompt().contains("turbo") && asked[2].prompt().contains("registers"), "{}", asked[2].prompt());
    drop(server);

    // Nobody is asked again: what was answered is kept, and the key nowhere.
    let before = fs::read(project.path(".kforge-cache/out/first@cpu/plan.json")).unwrap();
    let again = with_model(&project, "http://127.0.0.1:9", &["build", "first", "--json", "--force"]);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert_eq!(fs::read(project.path(".kforge-cache/out/first@cpu/plan.json")).unwrap(), before);
    for entry in walkdir::WalkDir::new(project.path(".kforge-cache")).into_iter().filter_map(Result::ok) {
        if entry.file_type().is_file() {
            let bytes = fs::read(entry.path()).unwrap();
            assert!(!bytes.windows(21).any(|it| it == b"sk-very-secret-indeed"), "{}", entry.path().display());
        }
    }
}

#[test]
fn without_a_language_model_the_heuristic_stands_in_and_the_plan_says_so() {
    let project = Project::with(MATMULS);
    let search = tune(&project, &["first", "--strategy", "llm", "--trials", "4"]);
    assert_eq!(counted(&search), (1, 1));
    let remarks = search["plan"]["provenance"]["remarks"].to_string();
    assert!(remarks.contains("llm: ") && remarks.contains("the heuristic stands in"), "{remarks}");
    let text = project.done(&["tune", "first", "--strategy", "llm", "--trials", "4"]).stdout;
    assert!(text.contains("the heuristic stands in"), "{text}");
}

#[test]
fn what_the_quick_gates_let_pass_and_all_gates_reject_is_refused_for_good() {
    let project = Project::new();
    project.edit("kernelforge.toml", "[pipeline.default]", "[target.gpu]\nbackend = \"gpu\"\n\n[pipeline.default]");
    project.build(&["first@gpu"]);
    let plan = project.path(".kforge-cache/out/first@gpu/plan.json");
    let plan: Value = serde_json::from_slice(&fs::read(plan).unwrap()).unwrap();
    let (stage, heuristic) = plan["stages"].as_object().unwrap().iter().next().unwrap();
    // A template that is slow as the heuristic would have it, and fast otherwise, but wrong for rows of large numbers, which the
    // quick gates do not draw.
    let shaders = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let norm = fs::read_to_string(shaders.join("norm.wgsl")).unwrap();
    let factor = "let factor = inverse_root_1(variance + {{ eps }});";
    assert!(norm.contains(factor));
    let spoilt = format!(
        "var factor = inverse_root_1(variance + {{{{ eps }}}});\n{{% if width == {} and vector == {} %}}\n    var waste = variance;\n    \
         for (var i = 0u; i < 60000u; i += 1u) {{ waste = waste * 0.999 + 1e-30; }}\n    factor = select(factor, 0.0, waste > 1e30);\n\
         {{% else %}}\n    factor = select(factor, 0.0, variance > 1e12);\n{{% endif %}}",
        heuristic["width"], heuristic["vector"]
    );
    fs::create_dir(project.path("shaders")).unwrap();
    fs::write(project.path("shaders/norm.wgsl"), norm.replace(factor, &spoilt)).unwrap();

    let search = tune(&project, &["first@gpu", "--strategy", "random", "--trials", "8"]);
    let winner = &search["operations"][0]["winner"];
    assert!(winner["relative"].as_f64() < Some(0.9) && winner["schedule"] != *heuristic, "{search}");
    let rejected = search["rejected"].to_string();
    assert!(rejected.contains(stage.as_str()) && rejected.contains("large"), "{rejected}");
    assert_eq!((&search["plan"]["stages"][stage], &search["relative"]), (heuristic, &json!(1.0)), "{search}");
    let refused = |trials: &[Value]| -> Vec<Value> {
        let of = |it: &&Value| it["outcome"]["rejected"]["gate"] == "v2-bound";
        trials.iter().filter(of).map(|it| it["schedule"].clone()).collect()
    };
    let tried = trials(&project, "first@gpu");
    assert_eq!(refused(&tried), [winner["schedule"].clone()], "{tried:?}");

    // Another search knows of it, and the next one that is as wrong takes its place and its end.
    let again = tune(&project, &["first@gpu", "--strategy", "random", "--trials", "9"]);
    assert_eq!(counted(&again), (9, 1));
    assert!(again["operations"][0]["winner"]["schedule"] != winner["schedule"], "{again}");
    let tried = trials(&project, "first@gpu");
    let refused = refused(&tried);
    assert!(refused.len() == 2 && refused.contains(&winner["schedule"]), "{tried:?}");
    let best = project.done(&["cache", "plans", "--json"]).json();
    assert_eq!(best["best"], json!([]), "only what was verified is kept");
}
