//! Every mistake's whole message, as a user sees it, and what a good project resolves to.

use super::{spec::Dtype, *};
use crate::plan::space::only::tests::only;
use std::{fs, path::Path};
use tempfile::TempDir;

const PROJECT: &str = "[project]\nname = \"demo\"\nworkloads = [\"workloads/*.toml\"]\n";
const MATMUL: &str = "kind = \"matmul\"\nm = 4\nn = 8\nk = 16\n";

fn write(folder: &Path, name: &str, content: &[u8]) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn project(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        write(folder.path(), name, content.as_bytes());
    }
    folder
}

fn message(folder: &Path) -> String {
    let text = render(&load(folder).expect_err("a mistake was expected"), false, 100);
    assert!(!text.contains(&*folder.to_string_lossy()), "paths are relative to the project:\n{text}");
    text
}

/// The message for a project that is `PROJECT` and one workload file.
fn message_for(workload: &str) -> String {
    message(project(&[(PROJECT_FILE, PROJECT), ("workloads/w.toml", workload)]).path())
}

/// The message for a project file that has a good block.
fn message_for_project(tables: &str) -> String {
    let text = format!("{tables}\n[block.good]\n{MATMUL}");
    message(project(&[(PROJECT_FILE, &text)]).path())
}

/// The message for a project whose tuning has these knobs.
fn message_for_knobs(knobs: &str) -> String {
    message_for_project(&format!(
        "[project]\nname = \"demo\"\n[tuning.tiles]\nstrategy = \"grid\"\n[tuning.tiles.knobs]\n{knobs}"
    ))
}

fn transformer(changes: &str) -> String {
    let mut text = "[block.t]\nkind = \"transformer\"\n".to_owned();
    let keys = [("seq", "16"), ("d-model", "64"), ("heads", "4"), ("d-ff", "128")];
    for (key, value) in keys.iter().filter(|it| !changes.lines().any(|line| line.split(' ').next() == Some(it.0))) {
        text.push_str(&format!("{key} = {value}\n"));
    }
    text + changes
}

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident => $message:expr;)*) => {
        $($(#[$doc])* #[test] fn $name() { insta::assert_snapshot!($message); })*
    };
}

messages! {
    an_unknown_key_is_named_with_the_nearest_known_one => message_for(&transformer("hads = 2\n"));
    an_unknown_key_far_from_all_gets_the_list => message_for_project("[project]\nname = \"demo\"\ncolour = \"red\"\n");
    an_unknown_table_is_named => message_for_project("[project]\nname = \"demo\"\n[tunning.fast]\nstrategy = \"heuristic\"\n");
    a_key_of_another_kind_is_told_apart_from_an_unknown_one => message_for(&format!("[block.a]\n{MATMUL}heads = 4\n"));
    a_search_without_trials_is_out_of_range =>
        message_for_project("[project]\nname = \"demo\"\n[tuning.quick]\nstrategy = \"random\"\ntrials = 0\n");
    a_time_without_a_unit_is_not_a_time =>
        message_for_project("[project]\nname = \"demo\"\n[tuning.quick]\nstrategy = \"random\"\ntime = \"20\"\n");
    an_unknown_strategy_is_named_with_the_nearest =>
        message_for_project("[project]\nname = \"demo\"\n[tuning.quick]\nstrategy = \"evolution\"\n");
    a_key_of_a_language_model_does_not_belong_in_a_manifest =>
        message_for_project("[project]\nname = \"demo\"\n[tuning.q]\nstrategy = \"llm\"\n[tuning.q.llm]\napi-key = \"sk-1\"\n");
    an_unknown_key_of_a_language_model_is_named =>
        message_for_project("[project]\nname = \"demo\"\n[tuning.q]\nstrategy = \"llm\"\n[tuning.q.llm]\nmodell = \"m\"\nendpoint = \"\"\n");
    an_unknown_knob_is_named_with_the_nearest => message_for_knobs("nrr = [16]\nup.mrr = [6]\n");
    a_table_that_is_no_part_of_a_schedule_is_an_unknown_knob => message_for_knobs("upper.mr = [6]\nside = {}\n");
    what_a_knob_may_be_is_a_list => message_for_knobs("lanes = 8\nmr = { six = 6 }\nup.nr = { a = [1] }\n");
    a_knob_has_values_of_its_own_kind => message_for_knobs("lanes = [8.0]\npack-a = [1]\nmr = [true, [6], {}]\npack-b = [3]\nprefetch = [\"yes\"]\n");
    a_number_of_a_knob_is_not_negative => message_for_knobs("mr = [6, -1]\nkc = [99999999999999999999999]\n");
    a_word_that_a_knob_cannot_be_is_named => message_for_knobs("pack-b = [\"ahed\"]\n");
    a_knob_without_values_could_be_nothing => message_for_knobs("mr = []\n");
    a_value_of_a_knob_twice_is_shown_twice => message_for_knobs("mr = [4, 6, 4]\n");
    a_knob_given_in_both_spellings_is_shown_twice => message_for_knobs("\"up.mr\" = [4]\nup.mr = [6]\n");
    knobs_are_a_table =>
        message_for_project("[project]\nname = \"demo\"\n[tuning.q]\nstrategy = \"grid\"\nknobs = [\"mr\"]\n");
    a_project_table_in_a_workload_is_sent_home => message_for("[pipeline.fast]\npasses = []\n");

    a_string_for_an_integer_is_a_wrong_type => message_for(&transformer("heads = \"four\"\n"));
    a_float_for_an_integer_is_a_wrong_type => message_for(&transformer("seq = 16.0\n"));
    a_list_where_one_value_is_taken_is_a_wrong_type => message_for(&transformer("d-model = [64, 128]\n"));
    a_wrong_type_within_a_list_is_underlined_alone => message_for(&transformer("seq = [1, true]\n"));
    a_value_for_a_table_is_a_wrong_type => message_for("block = 3\n");
    a_table_for_a_value_is_a_wrong_type => message_for(&transformer("[block.t.causal]\nx = 1\n"));

    a_size_of_zero_is_out_of_range => message_for(&transformer("seq = 0\n"));
    a_negative_size_is_out_of_range => message_for(&transformer("seq = [8, -1]\n"));
    an_absurd_size_is_out_of_range => message_for(&transformer("d-ff = 2_000_000\n"));
    a_size_beyond_every_integer_is_out_of_range => message_for(&transformer("d-ff = 99999999999999999999999999999999999999999999\n"));
    an_epsilon_of_zero_is_out_of_range => message_for(&transformer("norm-eps = 0.0\n"));
    not_a_number_is_out_of_range => message_for(&transformer("rope-theta = nan\n"));
    no_threads_are_out_of_range => message_for_project("[project]\nname = \"demo\"\n[target.cpu]\nbackend = \"cpu\"\nthreads = 0\n");
    tensors_beyond_the_limit_are_refused => message_for(&transformer("d-model = 1048576\nd-ff = 1048576\n"));
    a_size_without_a_number_is_not_a_size => message_for_project("[project]\nname = \"demo\"\n[cache]\nmax-size = \"lots\"\n");
    an_empty_list_makes_no_instance => message_for(&transformer("seq = []\n"));
    a_list_beyond_the_limit_is_refused => message_for(&transformer(&format!("seq = [{}]\n", (1..=65).map(|it| it.to_string()).collect::<Vec<_>>().join(","))));
    a_value_twice_in_a_list_is_shown_twice => message_for(&transformer("seq = [8, 16, 0x8]\n"));

    heads_that_do_not_divide_the_width => message_for(&transformer("heads = 5\n"));
    key_value_heads_that_do_not_divide_the_heads => message_for(&transformer("kv-heads = 3\n"));
    more_key_value_heads_than_heads => message_for(&transformer("kv-heads = 8\n"));
    an_odd_head_dim_cannot_be_rotated => message_for(&transformer("head-dim = 15\nrope-theta = 10000.0\n"));
    an_odd_derived_head_dim_cannot_be_rotated => message_for(&transformer("d-model = 60\nrope-theta = 10000\n"));

    required_keys_are_listed_together => message_for("[block.t]\nkind = \"transformer\"\nseq = 8\nheads = 2\n");
    a_block_without_a_kind_lacks_it => message_for("[block.t]\nseq = 8\n");
    an_unknown_kind_is_named_with_the_nearest => message_for("[block.t]\nkind = \"transfomer\"\nseq = 8\n");
    an_unknown_activation_is_named => message_for(&transformer("activation = \"swish\"\n"));
    an_unknown_dtype_is_named => message_for(&transformer("dtype = \"bf8\"\n"));
    what_b_is_has_two_names => message_for("[block.a]\nkind = \"matmul\"\nm = 4\nn = 4\nk = 4\nb = \"parameter\"\n");
    bf16_is_not_stored_on_a_gpu => message_for_project(
        "[project]\nname = \"demo\"\ntargets = [\"cpu\", \"gpu\"]\n[target.gpu]\nbackend = \"gpu\"\n[block.a]\nkind = \"matmul\"\nm = 4\nn = 4\nk = 4\ndtype = [\"f32\", \"bf16\"]\n");

    an_unknown_pass_is_named_with_the_nearest =>
        message_for_project("[project]\nname = \"demo\"\n[pipeline.default]\npasses = [\"fold-constants\", \"tile-matmuls\"]\n");
    an_unknown_target_of_a_block_is_named => message_for(&transformer("targets = [\"cpus\"]\n"));
    an_unknown_target_of_the_project_is_named => message_for_project("[project]\nname = \"demo\"\ntargets = [\"tpu\"]\n");
    an_unknown_pipeline_is_named => message_for(&transformer("pipeline = \"defualt\"\n"));
    an_unknown_tuning_is_named => message_for(&transformer("tuning = \"thorough\"\n"));
    a_target_that_nobody_declared_is_named_even_if_it_is_gpu => message_for_project("[project]\nname = \"demo\"\ntargets = [\"gpu\"]\n");
    an_unknown_backend_is_named => message_for_project("[project]\nname = \"demo\"\n[target.tpu]\nbackend = \"tpu\"\n");
    a_key_of_another_backend_is_told_apart_from_an_unknown_one =>
        message_for_project("[project]\nname = \"demo\"\n[target.gpu]\nbackend = \"gpu\"\nthreads = 4\n[target.cpu]\nadapter = \"*\"\nbackend = \"cpu\"\n");
    an_adapter_that_is_no_pattern_is_underlined =>
        message_for_project("[project]\nname = \"demo\"\n[target.gpu]\nbackend = \"gpu\"\nadapter = \"[H200\"\n");
    a_name_that_is_no_file_name_is_refused => message_for(&format!("[block.\"../Up\"]\n{MATMUL}"));

    a_block_twice_in_one_file_is_shown_twice => message_for(&format!("[block.a]\n{MATMUL}\n[block.a]\n{MATMUL}"));
    a_block_twice_in_two_files_is_shown_twice => {
        let block = format!("[block.a]\n{MATMUL}");
        message(project(&[(PROJECT_FILE, PROJECT), ("workloads/a.toml", &block), ("workloads/b.toml", &format!("# b\n{block}"))]).path())
    };
    a_key_twice_is_shown_twice => message_for(&format!("[block.a]\n{MATMUL}n = 9\n"));
    an_instance_with_the_name_of_a_block_is_refused =>
        message_for(&format!("[block.a]\n{}\n[block.a-m1]\n{MATMUL}", MATMUL.replace('4', "[1, 4]")));

    a_pattern_that_matches_nothing_is_underlined => message(project(&[(PROJECT_FILE, PROJECT)]).path());
    a_pattern_that_is_none_is_underlined => message_for_project("[project]\nname = \"demo\"\nworkloads = [\"workloads/[.toml\"]\n");
    a_path_above_the_project_is_refused => message_for_project("[project]\nname = \"demo\"\nworkloads = [\"../other/*.toml\"]\n");
    an_absolute_path_is_refused => message_for_project("[project]\nname = \"demo\"\nworkloads = [\"/etc/*.toml\"]\n");
    a_project_without_blocks_is_refused => message(project(&[(PROJECT_FILE, "[project]\nname = \"demo\"\n")]).path());
    a_project_file_without_project_table_is_refused => message_for_project("");
    broken_syntax_is_underlined => message_for("[block.a\nkind = \"matmul\"\n[block.b]\nkind = = 3\n");
}

fn with_shaders(files: &[(&str, &[u8])]) -> TempDir {
    let folder = project(&[(PROJECT_FILE, &format!("[project]\nname = \"demo\"\n[block.good]\n{MATMUL}"))]);
    files.iter().for_each(|(name, content)| write(folder.path(), name, content));
    folder
}

#[test]
fn the_projects_own_templates_are_read_and_are_sources() {
    let folder = with_shaders(&[
        ("shaders/norm.wgsl", b"mine"),
        ("shaders/.norm.wgsl.swp", b"an editor's"),
        ("shaders/notes.txt", b"not a template"),
    ]);
    let (project, sources) = load_with_sources(folder.path());
    assert_eq!(project.unwrap().shaders, BTreeMap::from([("norm.wgsl".to_owned(), "mine".to_owned())]));
    let seen: Vec<_> = sources.seen.iter().map(|it| it.path.to_str().unwrap()).collect();
    assert_eq!(seen, [PROJECT_FILE, "shaders", "shaders/norm.wgsl"]);
    fs::write(folder.path().join("shaders/norm.wgsl"), "another").unwrap();
    assert_eq!(sources.changed(&folder.path().canonicalize().unwrap()), [Path::new("shaders/norm.wgsl")]);
    // That there are none is known as well: one that comes is looked at.
    let (_, sources) = load_with_sources(with_shaders(&[]).path());
    assert!(sources.seen.iter().any(|it| it.path == Path::new("shaders") && it.what == sources::Seen::Nothing));
}

#[test]
fn a_template_that_replaces_none_is_named_with_those_that_could_be_meant() {
    insta::assert_snapshot!(message(with_shaders(&[("shaders/nrom.wgsl", b"")]).path()));
}

#[test]
fn a_template_is_read_under_the_limits_of_a_workload() {
    let text = |content: &[u8]| message(with_shaders(&[("shaders/norm.wgsl", content)]).path());
    assert!(text(b"na\xefve").contains("`shaders/norm.wgsl` is not UTF-8"));
    assert!(text(&vec![b' '; 5 << 20]).contains("`shaders/norm.wgsl` has 5.0 MiB"));
    let outside = with_shaders(&[("secret.wgsl", b"")]);
    for link in ["shaders", "shaders/norm.wgsl"] {
        let inside = with_shaders(if link == "shaders" { &[] } else { &[("shaders/math.wgsl", b"")] });
        std::os::unix::fs::symlink(outside.path().join("secret.wgsl"), inside.path().join(link)).unwrap();
        let text = render(&load(inside.path()).unwrap_err(), false, 200);
        assert!(text.contains(&format!("`{link}` is outside the project")), "{text}");
    }
}

#[test]
fn knobs_are_read_in_every_spelling() {
    let knobs = |text: &str| {
        let text =
            format!("[project]\nname = \"demo\"\n[tuning.it]\nstrategy = \"grid\"\n{text}\n[block.good]\n{MATMUL}");
        let folder = project(&[(PROJECT_FILE, &text)]);
        load(folder.path()).unwrap_or_else(|it| panic!("{}", render(&it, false, 100))).tunings["it"].knobs.clone()
    };
    let wanted = only("lanes = 8; mr = 4 6; pack-b = ahead; pack-a = false; up.mr = 6; prefetch = 0 true");
    let plain = "lanes = [8]\nmr = [6, 4]\npack-b = [\"ahead\"]\npack-a = [false]\nprefetch = [true, 0]\n";
    assert_eq!(knobs(&format!("[tuning.it.knobs]\n{plain}\"up.mr\" = [6]")), wanted);
    assert_eq!(knobs(&format!("[tuning.it.knobs]\n{plain}up.mr = [6]")), wanted);
    assert_eq!(knobs(&format!("[tuning.it.knobs]\n{plain}[tuning.it.knobs.up]\nmr = [6]")), wanted);
    assert!(knobs("").is_empty() && knobs("[tuning.it.knobs]\nup = {}").is_empty());
}

#[test]
fn all_names_of_the_gpu_backend_mean_the_same() {
    let target = |keys: &str| {
        let text = format!("[project]\nname = \"demo\"\n[target.it]\n{keys}[block.good]\n{MATMUL}");
        load(project(&[(PROJECT_FILE, &text)]).path()).unwrap().targets["it"].backend.clone()
    };
    for name in ["gpu", "metal", "mps"] {
        let plain = Backend::Gpu { adapter: "*".to_owned(), hybrid_softmax: false };
        assert_eq!(target(&format!("backend = \"{name}\"\n")), plain);
    }
    let keys = "backend = \"mps\"\nadapter = \"*h200*\"\nhybrid-softmax = true\n";
    assert_eq!(target(keys), Backend::Gpu { adapter: "*h200*".to_owned(), hybrid_softmax: true });
    assert_eq!(target("backend = \"cpu\"\nthreads = 3\n"), Backend::Cpu { threads: 3 });
}

#[test]
fn a_missing_project_file_hints_at_init() {
    let folder = tempfile::tempdir().unwrap();
    let text = render(&load(folder.path()).unwrap_err(), false, 200);
    insta::assert_snapshot!(text.replace(&*folder.path().to_string_lossy(), "/projects/demo"));
}

#[test]
fn a_link_out_of_the_project_is_refused() {
    let outside = project(&[("secret.toml", MATMUL)]);
    let inside = project(&[(PROJECT_FILE, PROJECT), ("workloads/w.toml", &format!("[block.a]\n{MATMUL}"))]);
    std::os::unix::fs::symlink(outside.path().join("secret.toml"), inside.path().join("workloads/link.toml")).unwrap();
    let text = render(&load(inside.path()).unwrap_err(), false, 200);
    let target = outside.path().canonicalize().unwrap();
    insta::assert_snapshot!(text.replace(&*target.to_string_lossy(), "/elsewhere"));
}

#[test]
fn bytes_that_are_not_utf8_are_located() {
    let folder = project(&[(PROJECT_FILE, PROJECT)]);
    write(folder.path(), "workloads/latin1.toml", b"# first line\n# na\xefve\n");
    insta::assert_snapshot!(message(folder.path()));
}

#[test]
fn a_file_of_10_mb_is_refused_with_its_size() {
    let folder = project(&[(PROJECT_FILE, PROJECT)]);
    write(folder.path(), "workloads/big.toml", &vec![b'#'; 10_000_000]);
    insta::assert_snapshot!(message(folder.path()));
}

#[test]
fn a_project_file_that_is_a_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join(PROJECT_FILE)).unwrap();
    insta::assert_snapshot!(message(folder.path()));
}

#[test]
fn all_problems_of_all_files_are_reported_in_order() {
    let folder = project(&[
        (
            PROJECT_FILE,
            "[project]\nname = \"Demo\"\nworkloads = [\"workloads/*.toml\", \"more/*.toml\"]\ntargets = [\"gpu\"]\n",
        ),
        ("workloads/a.toml", &transformer("heads = 5\nkv-heads = 0\nrope = 1\n")),
        ("workloads/b.toml", "[block.b\n"),
        ("workloads/c.toml", &format!("[block.c]\n{MATMUL}pipeline = \"fast\"\n")),
    ]);
    insta::assert_snapshot!(message(folder.path()));
}

#[test]
fn thousands_of_problems_are_counted_not_shown() {
    let text: String = (0..2000).map(|it| format!("[block.b{it}]\nkind = \"matmul\"\nm = 0\nn = 1\nk = 1\n")).collect();
    let text = message_for(&text);
    assert_eq!(text.matches("manifest::out-of-range").count(), 50);
    assert!(text.ends_with("(1950 more are not shown)\n2000 problems in the project\n"), "{text}");
}

#[test]
fn a_line_too_long_to_show_is_located_in_numbers() {
    let text = message_for(&format!("[block.a]\n{MATMUL}dtype = \"{}\"\n", "x".repeat(100_000)));
    let unwrapped: String = text.split_whitespace().filter(|it| *it != "│").collect();
    assert!(unwrapped.contains("(workloads/w.toml:6:9)"), "{text}");
    assert!(text.len() < 2000, "{}", text.len());
}

#[test]
fn control_characters_reach_no_terminal() {
    let text = message_for(&format!("[block.a]\n{MATMUL}dtype = \"\\u001b[31m\"\ngroup = '\u{1b}[31m'\n"));
    assert!(!text.contains('\u{1b}'), "{text:?}");
}

#[test]
fn colour_comes_only_when_asked_for() {
    let folder = project(&[(PROJECT_FILE, PROJECT)]);
    let errors = load(folder.path()).unwrap_err();
    assert!(!render(&errors, false, 80).contains('\u{1b}'));
    assert!(render(&errors, true, 80).contains('\u{1b}'));
}

#[test]
fn lists_make_one_instance_for_each_combination() {
    let text = transformer("seq = [1, 16]\nbatch = [2, 3]\ndtype = [\"f32\", \"f16\"]\ngroup = \"large\"\n");
    let folder = project(&[(PROJECT_FILE, PROJECT), ("workloads/w.toml", &text)]);
    let project = load(folder.path()).unwrap();
    let names: Vec<_> = project.blocks.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "t-s1-b2-f32",
            "t-s1-b2-f16",
            "t-s1-b3-f32",
            "t-s1-b3-f16",
            "t-s16-b2-f32",
            "t-s16-b2-f16",
            "t-s16-b3-f32",
            "t-s16-b3-f16"
        ]
    );
    assert!(project.blocks.iter().all(|it| it.declared == "t" && it.group.as_deref() == Some("large")));
    let BlockSpec::Transformer { rows, dtype, .. } = project.blocks[5].spec else { panic!("{:?}", project.blocks[5]) };
    assert_eq!((rows.batch, rows.seq, dtype), (2, 16, Dtype::F16));
    assert_eq!(project.files, [Path::new("kernelforge.toml"), Path::new("workloads/w.toml")]);
}

#[test]
fn what_a_block_leaves_out_has_the_documented_default() {
    let folder = project(&[(PROJECT_FILE, PROJECT), ("workloads/w.toml", &transformer(""))]);
    insta::assert_json_snapshot!(load(folder.path()).unwrap().blocks[0].spec);
}

#[test]
fn target_pipeline_and_tuning_exist_without_being_declared() {
    let folder = project(&[(PROJECT_FILE, PROJECT), ("workloads/w.toml", &transformer(""))]);
    let project = load(folder.path()).unwrap();
    assert_eq!(project.pipelines, BTreeMap::from([("default".to_owned(), Pass::ALL.to_vec())]));
    assert_eq!(project.tunings["default"].strategy, Strategy::Heuristic);
    assert_eq!(project.targets["cpu"].backend, Backend::Cpu { threads: 1 });
    assert_eq!(project.default_targets, ["cpu"]);
    assert_eq!(project.blocks[0].targets, ["cpu"]);
}

#[test]
fn biases_of_the_projections_can_differ_from_the_others() {
    let text = transformer("bias = false\nqkv-bias = true\n");
    let folder = project(&[(PROJECT_FILE, PROJECT), ("workloads/w.toml", &text)]);
    let BlockSpec::Transformer { attention, mlp, .. } = load(folder.path()).unwrap().blocks[0].spec else {
        panic!("a transformer was declared")
    };
    assert_eq!((attention.qkv_bias, attention.out_bias, mlp.bias), (true, false, false));
}

#[test]
fn origins_point_to_keys_to_list_values_and_to_the_table() {
    let folder =
        project(&[(PROJECT_FILE, PROJECT), ("workloads/w.toml", &format!("# w\n{}", transformer("seq = [1, 16]\n")))]);
    let origins = &load(folder.path()).unwrap().blocks[1].origins;
    let at = |key: &str| (origins[key].line, origins[key].column);
    assert_eq!((at(""), at("heads"), at("seq")), ((2, 8), (5, 1), (7, 11)));
    assert!(origins.values().all(|it| it.file == "workloads/w.toml"));
    assert!(!origins.contains_key("batch"), "a default is written nowhere");
}

#[test]
fn comments_and_formatting_change_nothing_but_origins() {
    let plain = project(&[(PROJECT_FILE, PROJECT), ("workloads/w.toml", &format!("[block.a]\n{MATMUL}"))]);
    let other = "# a comment\nblock = { a = { k = 0x10, n = 8, m = 4, kind = 'matmul' } }\r\n";
    let other = project(&[(PROJECT_FILE, PROJECT), ("workloads/w.toml", other)]);
    let blocks = |folder: &TempDir| {
        let blocks = load(folder.path()).unwrap().blocks;
        blocks.into_iter().map(|it| BlockInstance { origins: BTreeMap::new(), ..it }).collect::<Vec<_>>()
    };
    assert_eq!(blocks(&plain), blocks(&other));
}

#[test]
fn the_cache_may_have_a_limit() {
    let limit = |cache: &str| {
        let text = format!("[project]\nname = \"demo\"\n{cache}\n[block.good]\n{MATMUL}");
        load(project(&[(PROJECT_FILE, &text)]).path()).unwrap().cache.max_size
    };
    assert_eq!(limit(""), None);
    for (text, bytes) in [("20 GiB", 20 << 30), ("500 MB", 500_000_000), ("1.5kb", 1500), ("0B", 0), ("4096", 4096)] {
        assert_eq!(limit(&format!("[cache]\nmax-size = \"{text}\"")), Some(bytes), "{text}");
    }
}

#[test]
fn every_kind_resolves() {
    for kind in schema::Kind::ALL {
        let values = |key: &schema::Key| match key.name {
            "kind" => format!("\"{}\"", kind.name()),
            "heads" => "2".to_owned(),
            _ => "8".to_owned(),
        };
        let place = schema::Place::Block("b".to_owned(), Some(kind));
        let lines: Vec<_> =
            place.keys().iter().filter(|it| it.0).map(|it| format!("{} = {}\n", it.1.name, values(it.1))).collect();
        let folder =
            project(&[(PROJECT_FILE, PROJECT), ("workloads/w.toml", &format!("[block.b]\n{}", lines.concat()))]);
        let blocks = load(folder.path()).unwrap_or_else(|it| panic!("{}", render(&it, false, 100))).blocks;
        assert_eq!(blocks[0].spec.kind_name(), kind.name());
    }
}

/// Every key that a kind takes changes what it resolves to: no knob does nothing.
#[test]
fn every_optional_key_acts() {
    let changed = |key: &str| match key {
        "batch" => "2",
        "kv-heads" => "1",
        "head-dim" => "6",
        "norm" => "\"rms-norm\"",
        "norm-eps" => "1e-3",
        "activation" => "\"relu\"",
        "b" => "\"input\"",
        "gated" | "causal" => "true",
        "bias" | "qkv-bias" => "false",
        "rope-theta" => "10.0",
        "dtype" => "\"f16\"",
        "group" => "\"g\"",
        "targets" => "[\"other\"]",
        "pipeline" | "tuning" => "\"other\"",
        key => panic!("give the new key `{key}` a value here"),
    };
    let head = "[project]\nname = \"demo\"\n[target.other]\nbackend = \"cpu\"\n[pipeline.other]\npasses = []\n[tuning.other]\nstrategy = \"heuristic\"\n";
    for kind in schema::Kind::ALL {
        let place = schema::Place::Block("b".to_owned(), Some(kind));
        let required: String = place
            .keys()
            .iter()
            .filter(|it| it.0 && it.1.name != "kind")
            .map(|it| format!("{} = {}\n", it.1.name, if it.1.name == "heads" { 2 } else { 8 }))
            .collect();
        let block = format!("{head}[block.b]\nkind = \"{}\"\n{required}", kind.name());
        let resolve = |text: &str| {
            let folder = project(&[(PROJECT_FILE, text)]);
            let blocks = load(folder.path()).unwrap_or_else(|it| panic!("{}", render(&it, false, 100))).blocks;
            BlockInstance { origins: BTreeMap::new(), ..blocks[0].clone() }
        };
        let plain = resolve(&block);
        for (_, key) in place.keys().iter().filter(|it| !it.0) {
            let value = if (kind, key.name) == (schema::Kind::Matmul, "bias") { "true" } else { changed(key.name) };
            let with = resolve(&format!("{block}{} = {value}\n", key.name));
            assert_ne!(plain, with, "`{}` changes nothing in a {}", key.name, kind.name());
        }
    }
}

#[test]
fn the_checked_in_schema_is_what_kforge_schema_prints() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema/kernelforge.schema.json");
    let text = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    let checked_in = fs::read_to_string(&path).unwrap_or_default();
    assert!(text == checked_in, "write it anew: kforge schema > schema/kernelforge.schema.json");
}

#[test]
fn the_projects_of_this_repository_load_and_point_to_the_schema() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let schema = repository.join("schema/kernelforge.schema.json").canonicalize().unwrap();
    let mut names = Vec::new();
    for folder in [repository.to_owned(), repository.join("examples/first-block")] {
        let project = load(&folder).unwrap_or_else(|it| panic!("{}", render(&it, false, 100)));
        names.extend(project.blocks.iter().map(|it| it.name.clone()));
        for file in project.files.iter().map(|it| folder.join(it)) {
            let text = fs::read_to_string(&file).unwrap();
            let reference = text.lines().next().and_then(|it| it.strip_prefix("#:schema ")).unwrap();
            assert_eq!(file.parent().unwrap().join(reference).canonicalize().unwrap(), schema, "{}", file.display());
        }
    }
    insta::assert_snapshot!(names.join("\n"));
}
