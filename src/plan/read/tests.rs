use super::*;
use crate::plan::{
    Provenance,
    gpu::{
        attention::{CooperativeAttention, GpuAttention, HostSoftmax, Online},
        matmul::{Cooperative, Gemv, GpuMatmul, GpuMlp, Tiled},
        rows::{GpuElementwise, GpuNorm},
    },
    schedule::{
        AttentionSchedule, ElementwiseSchedule, MatmulSchedule, MlpSchedule, NormSchedule, PackB, Schedule, Split,
        TileOrder,
    },
};
use std::collections::BTreeMap;

fn plan() -> Plan {
    let matmul = |order, pack_b, split| MatmulSchedule {
        mr: 6,
        nr: 16,
        lanes: 8,
        mc: 96,
        nc: 256,
        kc: 256,
        unroll: 4,
        order,
        pack_a: true,
        pack_b,
        prefetch: false,
        split,
    };
    let (up, down) = (
        matmul(TileOrder::ColumnsOutside, PackB::Ahead, Split::Rows),
        matmul(TileOrder::RowsOutside, PackB::Never, Split::Columns),
    );
    let stages = [
        (
            "attn.core",
            Schedule::Attention(AttentionSchedule {
                row_block: 8,
                mr: 4,
                nr: 16,
                lanes: 8,
                unroll: 2,
                pack_v: true,
                softmax_rows: 2,
            }),
        ),
        ("attn.q", Schedule::Matmul(up.clone())),
        ("mlp", Schedule::Mlp(MlpSchedule { row_block: 12, up, down })),
        ("mlp.mul", Schedule::Elementwise(ElementwiseSchedule { lanes: 8, unroll: 2 })),
        ("norm1", Schedule::Norm(NormSchedule { lanes: 8, unroll: 2 })),
    ];
    of(&stages)
}

fn of(stages: &[(&str, Schedule)]) -> Plan {
    Plan {
        version: PLAN_VERSION,
        block: "gpt2".to_owned(),
        target: "cpu".to_owned(),
        provenance: Provenance { strategy: "heuristic".to_owned(), trials: 3 },
        stages: stages.iter().map(|(name, schedule)| ((*name).to_owned(), schedule.clone())).collect(),
        shaders: BTreeMap::new(),
    }
}

/// A plan with every schedule that a GPU has, and a template of its project's own.
fn gpu_plan() -> Plan {
    let (tile_m, tile_n, tile_k, vector, stages, prefetch, split_k, swizzle) = (64, 32, 16, 4, 2, 0, 2, 8);
    let tiled = Tiled { tile_m, tile_n, tile_k, thread_m: 8, thread_n: 4, vector, stages, prefetch, split_k, swizzle };
    let (subgroup_m, subgroup_n) = (32, 16);
    let cooperative = Cooperative {
        tile_m,
        tile_n,
        tile_k,
        subgroup_m,
        subgroup_n,
        vector,
        transpose: true,
        stages,
        prefetch,
        split_k,
        swizzle,
    };
    let gemv = GpuMatmul::Gemv(Gemv { threads: 128, vector, slices: 4, unroll: 2, split_k });
    let online = Online { tile_q: 32, tile_k, thread_q: 2, threads: 64, vector, share_q: true };
    let subgroups = CooperativeAttention { tile_q: 32, tile_k, vector, prefetch: true };
    let host = HostSoftmax { tile_q: 32, tile_k, threads: 64 };
    let mlp = GpuMlp { fuse_gate: true, up: GpuMatmul::Cooperative(cooperative), down: gemv };
    let plan = of(&[
        ("attn.core", Schedule::GpuAttention(GpuAttention::Online(online))),
        ("attn.core2", Schedule::GpuAttention(GpuAttention::Cooperative(subgroups))),
        ("attn.core3", Schedule::GpuAttention(GpuAttention::HostSoftmax(host))),
        ("attn.q", Schedule::GpuMatmul(GpuMatmul::Tiled(tiled))),
        ("mlp", Schedule::GpuMlp(mlp)),
        ("mlp.mul", Schedule::GpuElementwise(GpuElementwise { threads: 64, vector, unroll: 3 })),
        ("norm1", Schedule::GpuNorm(GpuNorm { width: 64, rows: 2, vector, subgroups: true })),
    ]);
    Plan { shaders: [("norm.wgsl".to_owned(), Digest::of(b"own"))].into(), ..plan }
}

fn text() -> String {
    serde_json::to_string_pretty(&plan()).unwrap()
}

/// What is said about `text`, one line for each problem: line of the file, code, message, help.
fn said(text: &str) -> String {
    let problems = read(text.as_bytes(), ("gpt2", "cpu")).unwrap_err();
    let line = |it: &Problem| {
        let span = it.span.clone().unwrap();
        let number = text[..span.start].lines().count().max(1);
        format!("{number} {} [{}] {} ({})", it.kind.code(), &text[span], it.kind, it.kind.help())
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn edited(old: &str, new: &str) -> String {
    let text = text();
    assert!(text.contains(old), "{old} is not in {text}");
    said(&text.replacen(old, new, 1))
}

#[test]
fn what_the_tool_writes_is_read_back() {
    for plan in [plan(), gpu_plan()] {
        let text = serde_json::to_string_pretty(&plan).unwrap();
        assert_eq!(read(text.as_bytes(), ("gpt2", "cpu")), Ok(plan));
    }
}

#[test]
fn templates_of_a_plan_are_known_ones_with_digests() {
    let text = serde_json::to_string(&gpu_plan()).unwrap();
    let digest = Digest::of(b"own").to_string();
    let with = |old: &str, new: &str| {
        assert!(text.contains(old), "{old}");
        said(&text.replacen(old, new, 1))
    };
    let unknown = with("norm.wgsl", "nrom.wgsl");
    assert!(
        unknown.contains("a template of `shaders` is `nrom.wgsl`, which it cannot be (did you mean `norm.wgsl`?"),
        "{unknown}"
    );
    let bad = with(&digest, &digest[1..]);
    assert!(bad.contains("plan::bad-digest") && bad.contains("`shaders.norm.wgsl` is not a digest"), "{bad}");
    assert!(with(&format!("\"{digest}\""), "7").contains("`shaders.norm.wgsl` must be a text, not a number"));
    assert!(
        said(&self::text().replacen("\"stages\"", "\"shaders\": [], \"stages\"", 1)).contains("an object of digests")
    );
}

#[test]
fn a_schedule_of_a_gpu_names_its_method() {
    let text = serde_json::to_string(&gpu_plan()).unwrap();
    let with = |old: &str, new: &str| said(&text.replacen(old, new, 1));
    let unknown = with("\"method\":\"tiled\"", "\"method\":\"tilde\"");
    assert!(unknown.contains("`attn.q.method` is `tilde`, which it cannot be (did you mean `tiled`?"), "{unknown}");
    assert!(with("\"method\":\"gemv\",", "").contains("`mlp.down` lacks `method`"));
    assert!(with("\"share-q\":true", "\"share-q\":1").contains("`attn.core.share-q` must be true or false"));
    assert!(with("\"subgroup-m\":32", "\"thread-m\":32").contains("`mlp.up` does not take the field `thread-m`"));
}

/// What serde takes and refuses is what the tables take and refuse: no field is unknown to one and known to the other.
#[test]
fn the_tables_have_exactly_the_fields_of_the_types() {
    for plan in [plan(), gpu_plan()] {
        hold_tables_against_types(serde_json::to_value(Plan { shaders: BTreeMap::new(), ..plan }).unwrap());
    }
    for text in [text().replacen("\"unroll\"", "\"surplus\": 1, \"unroll\"", 1), text().replacen("ahead", "astern", 1)]
    {
        assert!(serde_json::from_str::<Plan>(&text).is_err() && read(text.as_bytes(), ("gpt2", "cpu")).is_err());
    }
}

fn hold_tables_against_types(mut value: serde_json::Value) {
    let mut paths = Vec::new();
    collect(&value, "", &mut paths);
    assert!(paths.len() > 40, "{paths:?}");
    for path in paths.iter().filter(|it| !it.starts_with("/stages/") || it.matches('/').count() > 2) {
        let (parent, name) = path.rsplit_once('/').unwrap();
        let taken = value.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name).unwrap();
        let text = value.to_string();
        assert!(serde_json::from_str::<Plan>(&text).is_err(), "{path} is optional for serde");
        assert!(read(text.as_bytes(), ("gpt2", "cpu")).is_err(), "{path} is optional for the tables");
        value.pointer_mut(parent).unwrap()[name] = taken;
    }
}

fn collect(value: &serde_json::Value, path: &str, paths: &mut Vec<String>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}/{key}");
        collect(value, &path, paths);
        paths.push(path);
    }
}

#[test]
fn a_version_from_the_future_is_said_first_whatever_else_is_wrong() {
    let newer = "2 plan::newer-version [9] the plan has version 9; this kforge reads versions up to 1 (use the kforge that \
                 wrote it, or have the plan made again)";
    assert_eq!(edited("\"version\": 1", "\"version\": 9"), newer);
    let broken = text().replace("\"version\": 1", "\"version\": 9").replace("gpt2", "bert").replace("6,", "NaN, }");
    assert_eq!(said(&broken), newer);
    let mut bytes = broken.into_bytes();
    bytes.push(0xff);
    bytes.resize(MAX_PLAN as usize + 1, b' ');
    assert!(matches!(read(&bytes, ("gpt2", "cpu")).unwrap_err()[0].kind, K::NewerVersion { .. }));
    assert!(edited("\"version\": 1", "\"version\": 0").contains("`version` must be 1, not 0"));
    assert!(edited("\"version\": 1", "\"version\": \"1\"").contains("`version` must be a whole number, not a text"));
}

#[test]
fn every_mistake_of_a_file_is_told_where_it_is() {
    let text = text()
        .replacen("\"gpt2\"", "\"bert\"", 1)
        .replacen("\"cpu\"", "\"gpu\"", 1)
        .replacen("\"trials\": 3", "\"trials\": -3, \"trails\": 1", 1)
        .replacen("\"mr\": 4,\n", "", 1)
        .replacen("columns-outside", "colums-outside", 1)
        .replacen("\"kernel\": \"norm\"", "\"kernel\": \"nrom\"", 1)
        .replacen("\"pack-a\": true", "\"pack-a\": 1", 1)
        .replacen("\"kc\": 256", "\"kc\": 1e30", 1);
    insta::assert_snapshot!(said(&text), @r#"
    3 plan::other-block ["bert"] the plan is for block `bert`, and is to be verified for `gpt2` (`--block bert` verifies it for the block that it names)
    4 plan::other-block ["gpu"] the plan is for target `gpu`, and is to be verified for `cpu` (`--block BLOCK@TARGET` with the target that it names, or a plan for this one)
    7 plan::out-of-range [-3] `trials` must be a whole number from 0 to 4294967295, not -3 (write a whole number from 0 to 4294967295)
    7 plan::unknown-field ["trails"] `provenance` does not take the field `trails` (did you mean `trials`? its fields: `strategy`, `trials`)
    10 plan::missing-field [{] the schedule of stage `attn.core` lacks `mr` (add `"mr": ...`)
    26 plan::out-of-range [1e30] `attn.q.kc` must be a whole number from 0 to 16777216, not 1e30 (write a whole number from 0 to 16777216)
    28 plan::unknown-name ["colums-outside"] `attn.q.order` is `colums-outside`, which it cannot be (did you mean `columns-outside`? known: `columns-outside`, `rows-outside`)
    29 plan::wrong-type [1] `attn.q.pack-a` must be true or false, not a number (write true or false)
    72 plan::unknown-name ["nrom"] `norm1.kernel` is `nrom`, which it cannot be (did you mean `norm`? known: `matmul`, `attention`, `norm`, `elementwise`, `mlp`, `gpu-matmul`, `gpu-attention`, `gpu-norm`, `gpu-elementwise`, `gpu-mlp`)
    "#);
}

#[test]
fn numbers_that_are_none_are_refused() {
    assert!(edited("\"trials\": 3", "\"trials\": NaN").contains("[NaN] this is not JSON: a JSON value is expected"));
    assert!(
        edited("\"mr\": 4", "\"mr\": 99999999999999999999").contains("`attn.core.mr` must be a whole number from 0")
    );
    assert!(edited("\"mr\": 4", "\"mr\": 4.5").contains("not 4.5"));
    assert!(edited("\"mr\": 4", "\"mr\": -0").contains("not -0"));
    assert!(edited("\"mr\": 4", "\"mr\": null").contains("must be a whole number, not null"));
}

#[test]
fn what_is_no_plan_at_all_is_refused() {
    assert!(said("").contains("the file ends"));
    assert!(said("[1]").contains("a plan must be an object, not a list"));
    assert!(said("{}").contains("a plan lacks `version`, `block`, `target`, `provenance`, `stages`"));
    assert!(edited("\"stages\": {", "\"stages\": {\"\": 1,").contains("a stage's name is not a name"));
    assert!(edited("\"attn.core\"", "\"a\\u001b[31m\"").contains("a stage's name is not a name"));
    assert!(edited("\"stages\": {", "\"stages\": {\"x\": 1,").contains("the schedule of stage `x` must be an object"));
    assert!(edited("\"kernel\": \"norm\",", "").contains("the schedule of stage `norm1` lacks `kernel`"));
    let large = vec![b' '; MAX_PLAN as usize + 1];
    assert_eq!(read(&large, ("gpt2", "cpu")), Err(vec![Problem { kind: K::TooLarge, span: None }]));
    let problems = read(b"{\"a\xff\": 1}", ("gpt2", "cpu")).unwrap_err();
    assert_eq!(problems, [Problem::at(K::NotUtf8 { byte: 0xff }, 3..6)]);
}

#[test]
fn an_empty_plan_is_a_plan() {
    let empty = Plan { stages: BTreeMap::new(), ..plan() };
    assert_eq!(read(serde_json::to_string(&empty).unwrap().as_bytes(), ("gpt2", "cpu")), Ok(empty));
}
