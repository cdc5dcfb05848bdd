use super::*;
use crate::{
    build::search::gpu,
    host::gpu::{CooperativeShape, GpuFacts, GpuFeature, GpuKind},
};
use proptest::prelude::*;
use serde_json::json;

fn judge(schedule: Value) -> Result<Schedule, String> {
    let judged = answer::judge(&json!({ "schedules": [schedule] }).to_string(), &problem(), 4);
    match (judged.schedules.as_slice(), judged.reasons.as_slice()) {
        ([schedule], []) => Ok(schedule.clone()),
        ([], [reason]) => Err(reason.clone()),
        _ => panic!("{judged:?}"),
    }
}

/// A good schedule in JSON with something else in it.
fn with(change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Value {
    let mut schedule = serde_json::to_value(good(0)).unwrap();
    change(schedule.as_object_mut().unwrap());
    schedule
}

fn reason(change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> String {
    judge(with(change)).unwrap_err()
}

#[test]
fn a_schedule_is_taken_in_any_usual_spelling() {
    let respelled = with(|it| {
        let pack = it.remove("pack-b").unwrap();
        it.insert("packB".to_owned(), pack);
        it.insert("order".to_owned(), json!("ColumnsOutside"));
        it.insert("kernel".to_owned(), json!("Matmul"));
        it.insert("backend".to_owned(), json!("x86_64"));
    });
    assert_eq!(judge(respelled), Ok(good(0)));
}

#[test]
fn a_mistake_is_told_with_its_place() {
    let insert = |name: &str, value: Value| {
        let name = name.to_owned();
        move |it: &mut serde_json::Map<String, Value>| drop(it.insert(name, value))
    };
    assert_eq!(reason(insert("mr", json!("8"))), "`schedules[0].mr` must be a whole number, not a text");
    assert!(reason(insert("mr", json!(8.5))).starts_with("`schedules[0].mr` must be a whole number from 0"));
    assert!(reason(insert("mr", json!(-8))).starts_with("`schedules[0].mr` must be a whole number from 0"));
    assert!(reason(insert("mr", json!(u64::MAX))).starts_with("`schedules[0].mr` must be a whole number from 0"));
    assert!(reason(insert("pack-a", json!(1))).contains("`schedules[0].pack-a` must be true or false"));
    assert!(reason(insert("code", json!("ret"))).contains("`schedules[0]` does not take the field `code`"));
    assert!(reason(|it| drop(it.remove("kc"))).contains("`schedules[0]` lacks `kc`"));
    assert!(reason(insert("kernel", json!("conv"))).contains("known: `matmul`"));
    assert!(reason(insert("order", json!("diagonal"))).contains("`columns-outside`"));
    assert!(reason(insert("target", json!("metal"))).contains("`metal`: schedules here are for the cpu"));
    let illegal = reason(insert("mr", json!(32)));
    assert!(illegal.contains("`mr` = 32") && illegal.contains("vector registers"), "{illegal}");
    assert!(judge(json!({ "kernel": "norm", "lanes": 8, "unroll": 1 })).unwrap_err().contains("does not fit it"));
    assert_eq!(judge(json!("mr=8")).unwrap_err(), "`schedules[0]` must be an object, not a text");
}

#[test]
fn another_schema_is_no_answer() {
    let reason = |answer: Value| {
        let judged = answer::judge(&answer.to_string(), &problem(), 4);
        assert_eq!((judged.schedules.len(), judged.reasons.len()), (0, 1));
        judged.reasons[0].clone()
    };
    assert_eq!(
        reason(json!({ "tile_m": 8 })),
        "the answer does not take the field `tile_m`: its fields are `schedules`, `reasoning`"
    );
    assert_eq!(reason(json!({ "reasoning": "?" })), "the answer lacks `schedules`");
    assert_eq!(reason(json!({ "schedules": {} })), "`schedules` must be a list of schedules");
    assert_eq!(reason(json!({ "schedules": [] })), "`schedules` is an empty list");
    assert_eq!(reason(json!([1, 2])), "there is no JSON object in the answer");
}

#[test]
fn no_more_schedules_are_read_than_were_asked_for() {
    let many: Vec<_> = (0..1000).map(good).collect();
    let judged = answer::judge(&answer(&many), &problem(), 4);
    assert_eq!(judged.schedules, many[..4]);
    assert_eq!(judged.reasons, ["1000 schedules were given: only the first 4 are read"]);
}

fn gpu_facts() -> GpuFacts {
    GpuFacts {
        name: "a GPU".into(),
        kind: GpuKind::Discrete,
        vendor: 0,
        device: 0,
        api: "vulkan".into(),
        driver: String::new(),
        driver_version: String::new(),
        features: vec![GpuFeature::F16, GpuFeature::Subgroups, GpuFeature::CooperativeMatrix],
        subgroup_min: 32,
        subgroup_max: 32,
        workgroup_memory: 48 << 10,
        workgroup_invocations: 1024,
        workgroup_x: 1024,
        workgroups: 65535,
        buffer_bytes: 1 << 31,
        binding_bytes: 1 << 31,
        bindings: 32,
        binding_alignment: 32,
        cooperative: vec![CooperativeShape { m: 16, n: 16, k: 16, operand_bits: 16, accumulator_bits: 32 }],
    }
}

/// A value of the schema, with these numbers.
fn filled(schema: &Value, numbers: &mut impl Iterator<Item = u64>) -> Value {
    let mut pick = |list: &Value| {
        let list = list.as_array().unwrap();
        list[numbers.next().unwrap_or(0) as usize % list.len()].clone()
    };
    if schema["anyOf"].is_array() {
        let alternative = pick(&schema["anyOf"]);
        return filled(&alternative, numbers);
    }
    match schema["type"].as_str() {
        Some("object") => {
            let properties = schema["properties"].as_object().unwrap();
            properties.iter().map(|(name, it)| (name.clone(), filled(it, numbers))).collect()
        }
        Some("string") => pick(&schema["enum"]),
        Some("boolean") => json!(numbers.next().unwrap_or(0).is_multiple_of(2)),
        _ => json!(numbers.next().unwrap_or(1)),
    }
}

/// Operations of every kind that schedules differ by.
fn ops() -> [StageOp; 5] {
    let activation = Activation::Silu;
    [
        StageOp::Matmul { m: 4, n: 64, k: 64, bias: false, activation: None, residual: false },
        StageOp::Mlp { rows: 64, d_model: 64, d_ff: 128, activation, gated: true, bias: false, residual: false },
        StageOp::Attention { batch: 1, seq: 128, heads: 2, kv_heads: 2, head_dim: 64, causal: true, scale: 0.125 },
        StageOp::RmsNorm { rows: 64, width: 64, eps: 1e-5 },
        StageOp::Add { rows: 64, width: 64 },
    ]
}

#[test]
fn a_softmax_is_where_the_target_wants_it() {
    let facts = gpu_facts();
    let mut operation = matmul();
    operation.stages[0].op =
        StageOp::Attention { batch: 1, seq: 128, heads: 2, kv_heads: 2, head_dim: 64, causal: true, scale: 0.125 };
    let schedule = |hybrid| gpu::propose(&operation, &facts, hybrid).remove(operation::NAME).unwrap();
    for hybrid_softmax in [true, false] {
        let device = Device::from(facts.clone());
        let heuristic = schedule(hybrid_softmax);
        let problem = Problem { operation: operation.clone(), device, hybrid_softmax, heuristic, ..problem() };
        let text = json!({ "schedules": [schedule(true), schedule(false)] }).to_string();
        let judged = answer::judge(&text, &problem, 4);
        assert_eq!(judged.schedules, std::slice::from_ref(&problem.heuristic));
        assert!(judged.reasons[0].contains("wanted for this target"), "{:?}", judged.reasons);
        let methods = answer::schema(&problem).to_string();
        assert_eq!(methods.contains("\"host-softmax\""), hybrid_softmax);
        assert_eq!(methods.contains("\"online\""), !hybrid_softmax);
        assert!(words::rules(&problem.heuristic, &problem.device).iter().any(|it| it.contains("1024 invocations")));
    }
}

#[test]
fn what_the_search_is_restricted_to_is_all_that_is_taken() {
    let problem = Problem { only: only("kc = 64 65; pack-b = ahead"), ..problem() };
    let judged = answer::judge(&answer(&[good(0), good(1), good(2)]), &problem, 4);
    // 65 is no point of the space, and listed.
    assert_eq!(judged.schedules, [good(0), good(1)]);
    assert_eq!(judged.reasons, ["`schedules[2]`: `kc` = 66: this search is restricted to 64, 65"]);
}

proptest! {
    #![proptest_config(crate::testing::cases(1024))]
    /// Whatever a model writes into the numbers of a schedule is legal or refused: no check divides by it or overflows.
    #[test]
    fn no_number_makes_the_checks_panic(
        op in 0usize..5,
        half: bool,
        hybrid_softmax: bool,
        on_gpu: bool,
        numbers in prop::collection::vec(
            prop_oneof![0u64..3, 0u64..64, any::<u64>(), (0u32..26).prop_map(|it| 1 << it)],
            30,
        ),
    ) {
        let mut operation = matmul();
        operation.stages[0].op = ops()[op].clone();
        operation.tensors.iter_mut().for_each(|it| it.dtype = if half { Dtype::F16 } else { Dtype::F32 });
        let (device, heuristic) = if on_gpu {
            let facts = gpu_facts();
            let proposed = gpu::propose(&operation, &facts, hybrid_softmax).remove(operation::NAME);
            (Device::from(facts), proposed)
        } else {
            (Device::from(cpu()), heuristic::propose(&operation, &cpu()).remove(operation::NAME))
        };
        let problem = Problem { operation, device, hybrid_softmax, heuristic: heuristic.unwrap(), ..problem() };
        let schedule = filled(&answer::schema(&problem)["properties"]["schedules"]["items"], &mut numbers.into_iter());
        let judged = answer::judge(&json!({ "schedules": [schedule] }).to_string(), &problem, 1);
        prop_assert_eq!(judged.schedules.len() + judged.reasons.len(), 1);
        // Where the form is right, only the limits can be wrong.
        let misshapen = |it: &String| it.contains("does not take") || it.contains("lacks");
        prop_assert!(!judged.reasons.iter().any(misshapen), "{:?}", judged);
    }

    #[test]
    fn no_text_makes_the_reading_panic(text in "\\PC{0,200}") {
        prop_assert!(answer::judge(&text, &problem(), 4).schedules.is_empty());
    }
}
