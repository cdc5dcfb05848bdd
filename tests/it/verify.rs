//! `kforge verify`: plans and kernels from outside, through the real binaries.

use crate::project::{Project, Run};
use serde_json::Value;
use std::fs;

/// Three blocks in which every kind of stage occurs: most unfused in the first two, the fused MLP in the third.
const BLOCKS: &str = r#"
[block.plain]
kind = "transformer"
pipeline = "none"
seq = 4
d-model = 16
heads = 2
kv-heads = 1
d-ff = 24
norm = "rms-norm"
activation = "silu"
gated = true
rope-theta = 10000.0
bias = false
causal = true

[block.biased]
kind = "transformer"
pipeline = "none"
seq = 4
d-model = 16
heads = 2
d-ff = 24
norm = "layer-norm"
activation = "gelu"

[block.fused]
kind = "mlp"
seq = 4
d-model = 16
d-ff = 24
activation = "gelu"
"#;

fn project() -> Project {
    let project = Project::with(BLOCKS);
    project.edit("kernelforge.toml", "[pipeline.default]", "[pipeline.none]\npasses = []\n\n[pipeline.default]");
    project
}

fn built() -> Project {
    let project = project();
    project.build(&[]);
    project
}

fn out(block: &str, file: &str) -> String {
    format!(".kforge-cache/out/{block}@cpu/{file}")
}

/// Verifies the block's own plan, with more arguments.
fn verify(project: &Project, block: &str, more: &[&str]) -> Run {
    let plan = out(block, "plan.json");
    let args: Vec<_> = ["verify", &plan, "--block", block].iter().chain(more).copied().collect();
    project.run(&args)
}

/// A text of the block's kernel in which one line of one stage's function is another.
fn edited(project: &Project, block: &str, stage: &str, edit: impl Fn(&str) -> Option<String>) -> String {
    let kernel: Value = serde_json::from_slice(&fs::read(project.path(&out(block, "kernel.json"))).unwrap()).unwrap();
    let names = kernel["graph"]["stages"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap());
    let at = names.into_iter().position(|it| it == stage).unwrap();
    let header = format!("func.func @{}(", kernel["stages"][at]["symbol"].as_str().unwrap());
    let text = fs::read_to_string(project.path(&out(block, "kernel.mlir"))).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let begin = lines.iter().position(|it| it.starts_with(&header)).unwrap();
    let length = lines[begin..].iter().position(|it| it == "}").unwrap();
    // From the end: the last loop of a function runs whatever the sizes are.
    let function = lines[begin..begin + length].iter_mut().rev();
    let (line, new) = function.into_iter().find_map(|it| edit(it).map(|new| (it, new))).unwrap();
    *line = new;
    let path = project.path("kernel.mlir");
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    path.to_str().unwrap().to_owned()
}

fn replaced(old: &'static str, new: &'static str) -> impl Fn(&str) -> Option<String> {
    move |line| line.contains(old).then(|| line.replacen(old, new, 1))
}

fn dropped(what: &'static str) -> impl Fn(&str) -> Option<String> {
    move |line| line.contains(what).then(String::new)
}

#[track_caller]
fn assert_rejected(run: &Run, kind: &str, named: &str) {
    assert_eq!(run.code, Some(1), "{}{}", run.stdout, run.stderr);
    let reason = run.stdout.lines().find(|it| it.trim_start().starts_with(kind));
    assert!(reason.is_some_and(|it| it.contains(named)), "no `{kind} ... {named}` in {}{}", run.stdout, run.stderr);
}

#[test]
fn a_builds_own_plan_is_accepted_and_nothing_is_written() {
    let project = built();
    let before = project.artefacts();
    for block in ["plain", "biased@cpu", "fused"] {
        let plan = out(block.trim_end_matches("@cpu"), "plan.json");
        let run = project.done(&["verify-plan", &plan, "--block", block, "--seed", "1122"]);
        assert!(run.stdout.contains("V2 meaning") && run.stdout.contains("\naccepted: "), "{}", run.stdout);
    }
    // Files are found from where the tool is told that it was started.
    let plan = format!("../{}", out("fused", "plan.json"));
    project.done(&["-C", "workloads", "verify", &plan, "--block", "fused", "--seed", "1122"]);
    let kernel = project.path(&out("plain", "kernel.mlir"));
    let audit = verify(&project, "plain", &["--kernel", kernel.to_str().unwrap(), "--seed", "7", "--json"]).json();
    assert_eq!((&audit["ruling"], &audit["seed"]), (&"accepted".into(), &7.into()));
    // The same plan and the same text make the object that the build made.
    let recorded: Value =
        serde_json::from_slice(&fs::read(project.path(&out("plain", "audit.json"))).unwrap()).unwrap();
    for field in ["version", "block", "target", "plan", "plan-digest", "workload", "object", "device", "recipes"] {
        assert_eq!(audit[field], recorded[field], "{field}");
    }
    assert_eq!(project.artefacts(), before);
    assert_eq!(project.build(&[]).ran(), [] as [&str; 0]);
}

#[test]
fn a_wrong_kernel_of_each_kind_of_stage_is_rejected_and_its_stage_is_named() {
    let project = built();
    let rejects = |block: &str, stage: &str, edit: &dyn Fn(&str) -> Option<String>| {
        let kernel = edited(&project, block, stage, edit);
        let run = verify(&project, block, &["--kernel", &kernel, "--seed", "3"]);
        assert_rejected(&run, "NumericMismatch, gate v", &format!("stage `{stage}`"));
    };
    rejects("plain", "norm1", &replaced("arith.addf", "arith.subf")); // rms-norm
    rejects("biased", "norm1", &replaced("arith.subf", "arith.addf")); // layer-norm
    rejects("plain", "attn.q", &dropped("func.call @tile_")); // matmul
    rejects("plain", "attn.rope_q", &replaced("arith.subf", "arith.addf")); // rope
    rejects("plain", "attn.scale", &replaced("arith.mulf", "arith.addf")); // scale
    rejects("plain", "attn.core", &replaced("arith.divf", "arith.mulf")); // attention
    rejects("plain", "attn.residual", &replaced("arith.addf", "arith.subf")); // add
    rejects("plain", "mlp.gate_act", &replaced("arith.divf", "arith.mulf")); // activation
    rejects("plain", "mlp.mul", &dropped("vector.store")); // mul
    rejects("fused", "mlp", &dropped("func.call @tile_"));
    // A constant that is off in its last digits.
    let eps = |line: &str| line.contains("0x3727C5AC : f32").then(|| line.replacen("0x3727C5AC", "0x3727D5AC", 1));
    rejects("plain", "norm2", &eps);
}

// The load is volatile, because a loop without effects is none: the compiler drops it.
const LOOP: &str = "{\n  %forever = arith.constant true\n  scf.while : () -> () {\n    scf.condition(%forever)\n  } do {\n    \
                    %again = llvm.load volatile %0 : !llvm.ptr -> i64\n    scf.yield\n  }\n";
const WILD: &str = "{\n  %one = llvm.mlir.constant(1 : i64) : i64\n  %wild = llvm.inttoptr %one : i64 to !llvm.ptr\n  \
                    llvm.store %one, %wild : i64, !llvm.ptr\n";

/// A store to the element before the stage's first operand.
const OUTSIDE: &str = "{\n  %first = llvm.load %0 : !llvm.ptr -> !llvm.ptr\n  %before = llvm.getelementptr %first[-1] : \
                       (!llvm.ptr) -> !llvm.ptr, f32\n  %one = llvm.mlir.constant(1.0 : f32) : f32\n  llvm.store %one, %before : f32, \
                       !llvm.ptr\n";

#[test]
fn a_kernel_that_writes_outside_of_its_buffers_is_rejected_and_the_buffer_is_named() {
    let project = built();
    let header = |line: &str| line.starts_with("func.func @").then(|| line.replacen('{', OUTSIDE, 1));
    let kernel = edited(&project, "plain", "norm1", header);
    let run = verify(&project, "plain", &["--kernel", &kernel]);
    assert_rejected(&run, "Memory, gate v4-memory, stage `norm1`: ", "writes before the beginning of `x`");
    // Where it was, of what shape, and with which knobs.
    assert!(run.stdout.contains("(rms-norm ") && run.stdout.contains("; plan: norm lanes="), "{}", run.stdout);
}

#[test]
fn a_kernel_that_hangs_or_crashes_is_rejected_and_disturbs_no_other() {
    let project = built();
    let header =
        |body: &'static str| move |line: &str| line.starts_with("func.func @").then(|| line.replacen('{', body, 1));
    let kernel = edited(&project, "plain", "norm1", header(LOOP));
    let run = verify(&project, "plain", &["--kernel", &kernel, "--timeout", "2"]);
    assert_rejected(&run, "Timeout: ", "killed at its limit of 2s");
    assert_eq!(verify(&project, "plain", &["--timeout", "600"]).code, Some(0));

    let kernel = edited(&project, "plain", "norm1", header(WILD));
    let run = verify(&project, "plain", &["--kernel", &kernel]);
    assert_rejected(&run, "Crash: ", "SIGSEGV");
    assert!(run.stdout.contains("memory fault while running stage `norm1`"), "{}", run.stdout);
    let audit = verify(&project, "plain", &["--kernel", &kernel, "--json"]).json();
    assert_eq!((&audit["ruling"]["rejected"]["kind"], &audit["verdict"]), (&"crash".into(), &Value::Null));
    assert!(audit["object"].is_string() && audit["seed"].is_u64(), "{audit}");
    assert_eq!(verify(&project, "plain", &[]).code, Some(0));
    assert_eq!(project.build(&[]).ran(), [] as [&str; 0]);
}

#[test]
fn a_kernels_text_that_is_no_kernel_is_rejected_at_its_place() {
    let project = built();
    let kernel = edited(&project, "plain", "norm1", replaced("math.sqrt", "math.square"));
    let run = verify(&project, "plain", &["--kernel", &kernel]);
    assert_rejected(&run, "Validation: kernel.mlir:", "math.square");
    let (place, line) = (format!("─[{kernel}:"), "= math.square %");
    assert!(run.stdout.contains(&place) && run.stdout.contains(line), "{}", run.stdout);
    let other = project.path(&out("biased", "kernel.mlir"));
    let run = verify(&project, "plain", &["--kernel", other.to_str().unwrap()]);
    assert_rejected(&run, "Validation, stage `norm1`: ", "the kernel has no entry `plain__norm1`");
    fs::write(project.path("kernel.mlir"), b"module { \xff }").unwrap();
    let run = verify(&project, "plain", &["--kernel", &kernel]);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("kernel::not-utf8") && run.stderr.contains(":1:10]"), "{}", run.stderr);
}

#[test]
fn a_schedule_that_is_illegal_or_of_no_stage_is_a_rejection_by_gate_v0() {
    let project = built();
    let text = fs::read_to_string(project.path(&out("fused", "plan.json"))).unwrap();
    let judge = |text: String| {
        fs::write(project.path("plan.json"), text).unwrap();
        project.run(&["verify", "plan.json", "--block", "fused"])
    };
    let illegal = judge(text.replacen("\"row-block\": ", "\"row-block\": 3", 1));
    assert_rejected(
        &illegal,
        "Validation, gate v0-legality, stage `mlp`: `row-block` = 3",
        "is not a positive multiple",
    );
    let unknown = "\"stages\": {\n    \"mpl\": { \"kernel\": \"norm\", \"lanes\": 1, \"unroll\": 1 },";
    let unknown = judge(text.replacen("\"stages\": {", unknown, 1));
    assert_rejected(
        &unknown,
        "Validation, gate v0-legality, stage `mpl`: ",
        "the plan schedules `mpl`, which is no stage",
    );
    assert!(unknown.stdout.contains("V0 legality  failed"), "{}", unknown.stdout);
}

/// What `kforge verify` says of this plan file in a project where nothing was ever built.
fn refused(bytes: &[u8]) -> String {
    let project = project();
    fs::write(project.path("plan.json"), bytes).unwrap();
    let run = project.run(&["verify", "plan.json", "--block", "fused"]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{}", run.stderr);
    assert!(!project.path(".kforge-cache").exists(), "something was written");
    run.stderr
}

const PLAN: &str = r#"{
  "version": 1,
  "block": "fused",
  "target": "cpu",
  "provenance": { "strategy": "by hand", "trials": 0 },
  "stages": {}
}
"#;

fn refused_after(old: &str, new: &str) -> String {
    assert!(PLAN.contains(old));
    refused(PLAN.replacen(old, new, 1).as_bytes())
}

#[test]
fn a_plan_that_is_wrong_is_refused_at_its_place_with_the_way_out() {
    insta::assert_snapshot!(refused_after("\"trials\": 0", "\"trials\": -1"), @r#"
    plan::out-of-range

      × `trials` must be a whole number from 0 to 4294967295, not -1
       ╭─[plan.json:5:52]
     4 │   "target": "cpu",
     5 │   "provenance": { "strategy": "by hand", "trials": -1 },
       ·                                                    ─┬
       ·                                                     ╰── out of range
     6 │   "stages": {}
       ╰────
      help: write a whole number from 0 to 4294967295

    1 problem in plan.json
    "#);
    for (old, new, told) in [
        ("\"version\": 1", "version: 1", ["plan::syntax", "a key in quotes is expected", "plan.json:2:3]"]),
        ("\"trials\": 0", "\"trials\": NaN", ["plan::syntax", "this is `NaN`", "plan.json:5:52]"]),
        ("\"trials\": 0", "\"trials\": 1e99", ["plan::out-of-range", "not 1e99", "plan.json:5:52]"]),
        ("\"fused\"", "\"plain\"", ["plan::other-block", "for block `plain`", "plan.json:3:12]"]),
        ("\"cpu\"", "\"gpu\"", ["plan::other-block", "for target `gpu`", "plan.json:4:13]"]),
        ("\"target\"", "\"targte\"", ["plan::unknown-field", "did you mean `target`?", "plan.json:4:3]"]),
        ("  \"target\": \"cpu\",\n", "", ["plan::missing-field", "a plan lacks `target`", "plan.json:1:1]"]),
    ] {
        let said = refused_after(old, new);
        for text in told {
            assert!(said.contains(text), "`{text}` is not in {said}");
        }
    }
}

#[test]
fn a_plan_from_the_future_says_so_first_whatever_else_is_wrong_with_it() {
    let mut bytes = PLAN.replacen("\"version\": 1", "\"version\": 2", 1).replace("fused", "bert").into_bytes();
    bytes.extend(b"\xff } trailing");
    let said = refused(&bytes);
    assert!(said.contains("× the plan has version 2; this kforge reads versions up to 1"), "{said}");
    assert!(said.contains("plan.json:2:14]") && said.ends_with("1 problem in plan.json\n"), "{said}");
}

#[test]
fn a_file_that_is_huge_or_not_utf8_or_no_file_is_refused() {
    assert!(refused(&[b' '; (1 << 20) + 1]).contains("more than 1048576 bytes"));
    let said = refused(b"{\n  \"version\": 1, \"bl\xffock\": 0\n}");
    assert!(said.contains("the byte 0xff does not belong there") && said.contains("plan.json:2:20]"), "{said}");
    let project = project();
    for (path, why) in [("absent.json", "No such file"), ("workloads", "it is not a regular file")] {
        let run = project.run(&["verify", path, "--block", "fused"]);
        assert_eq!(run.code, Some(2));
        assert!(run.stderr.contains(why), "{}", run.stderr);
    }
    assert_eq!(project.run(&["verify", "plan.json", "--block", "fusde"]).code, Some(2));
    assert_eq!(project.run(&["verify", "plan.json"]).code, Some(2));
    assert_eq!(project.run(&["verify", "plan.json", "--block", "fused", "--timeout", "0"]).code, Some(2));
}
