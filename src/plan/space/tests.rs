//! Whatever the operation and the device, the space holds legal schedules, all of them within reach.

use super::*;
use crate::{
    build::graph::tests::gpu as test_gpu,
    host::{
        CpuFacts,
        gpu::{GpuFacts, GpuFeature},
    },
    manifest::spec::Activation,
    plan::stage::Factor,
};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;
use std::collections::HashSet;

pub fn cpu(lanes: usize, vector_registers: usize, l2: usize) -> CpuFacts {
    let (arch, isa) = ("x86_64".to_owned(), vec!["f16c".to_owned()]);
    CpuFacts { arch, isa, lanes, vector_registers, l2, ..CpuFacts::detect() }
}

/// Everything optional that a GPU may have.
pub fn large_gpu() -> GpuFacts {
    GpuFacts { features: GpuFeature::ALL.to_vec(), ..test_gpu() }
}

/// Like Mesa's software device.
pub fn small_gpu() -> GpuFacts {
    GpuFacts {
        features: vec![GpuFeature::F16, GpuFeature::Timestamps],
        subgroup_min: 8,
        subgroup_max: 8,
        workgroup_memory: 32 << 10,
        cooperative: Vec::new(),
        ..test_gpu()
    }
}

/// CPUs of three widths, and two GPUs.
pub fn devices() -> [Device; 5] {
    [
        cpu(16, 32, 1 << 20).into(),
        cpu(8, 16, 256 << 10).into(),
        cpu(4, 32, 512 << 10).into(),
        large_gpu().into(),
        small_gpu().into(),
    ]
}

pub fn matmul(m: usize, n: usize, k: usize) -> StageOp {
    StageOp::Matmul { m, n, k, bias: false, activation: None, residual: false }
}

/// Operations of every kind.
pub fn ops() -> impl Strategy<Value = StageOp> {
    let size = || prop_oneof![1usize..20, 1usize..3000, (1usize..400).prop_map(|it| it * 8)];
    let (activation, function) = (Activation::Silu, Activation::Relu);
    prop_oneof![
        3 => (size(), size(), size()).prop_map(|(m, n, k)| matmul(m, n, k)),
        3 => (size(), size(), size(), any::<bool>()).prop_map(move |(rows, d_model, d_ff, gated)| {
            StageOp::Mlp { rows, d_model, d_ff, activation, gated, bias: true, residual: false }
        }),
        3 => (1usize..2000, 1usize..160, any::<bool>()).prop_map(|(seq, head_dim, causal)| {
            StageOp::Attention { batch: 1, seq, heads: 4, kv_heads: 2, head_dim, causal, scale: 1.0 }
        }),
        1 => (size(), size()).prop_map(|(rows, width)| StageOp::RmsNorm { rows, width, eps: 1e-5 }),
        1 => (size(), size()).prop_map(|(rows, width)| StageOp::LayerNorm { rows, width, eps: 1e-5 }),
        1 => (size(), size()).prop_map(|(rows, width)| StageOp::Add { rows, width }),
        1 => (size(), size()).prop_map(move |(rows, width)| StageOp::Activation { rows, width, function }),
        1 => (size(), size()).prop_map(|(rows, width)| {
            StageOp::Scale { rows, width, factor: Factor::Value(0.5) }
        }),
        1 => (1usize..3, size(), 1usize..9, 1usize..65).prop_map(|(batch, seq, heads, half)| {
            StageOp::Rope { batch, seq, heads, head_dim: 2 * half }
        }),
    ]
}

pub fn dtypes() -> impl Strategy<Value = Dtype> {
    prop_oneof![Just(Dtype::F32), Just(Dtype::F16)]
}

proptest! {
    #![proptest_config(crate::testing::cases(48))]
    #[test]
    fn every_beginning_of_the_walk_is_legal_different_and_leads_back(
        op in ops(), dtype in dtypes(), device in 0usize..5, hybrid: bool
    ) {
        let space = Space::of(&op, dtype, &devices()[device], hybrid);
        prop_assert!(!space.is_empty());
        let mut walk = Walk::new(&space);
        let mut seen = HashSet::new();
        for _ in 0..40 {
            let Some((point, schedule)) = walk.next(&space) else { break };
            prop_assert!(space.is_legal(&schedule));
            prop_assert_eq!(space.nearest(&schedule), Some(point.clone()));
            // Every field of the schedule is declared, a new one too.
            let family = &space.families()[point.family];
            prop_assert_eq!(settings(&schedule).len(), family.fixed().len() + family.knobs().len());
            prop_assert!(seen.insert(schedule));
        }
    }

    #[test]
    fn what_is_changed_stays_in_the_space(op in ops(), dtype in dtypes(), device in 0usize..5, seed: u64) {
        let space = Space::of(&op, dtype, &devices()[device], false);
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let (a, b) = (space.sample(&mut rng).unwrap(), space.sample(&mut rng).unwrap());
        let mut made = vec![space.mutate(&a, 2, &mut rng), space.cross(&a, &b, &mut rng)];
        for it in space.neighbours(&a) {
            prop_assert!(it != a);
            made.push(it);
        }
        for it in made {
            let family = &space.families()[it.family];
            prop_assert_eq!(family.canonical(&it.choices), it.choices.clone());
            if let Some(schedule) = space.schedule(&it) {
                prop_assert_eq!(space.nearest(&schedule), Some(it));
            }
        }
    }
}

#[test]
fn a_small_space_is_walked_through() {
    let space = Space::of(&StageOp::Add { rows: 7, width: 30 }, Dtype::F32, &devices()[0], false);
    let all: Vec<_> = space.schedules().collect();
    assert_eq!((all.len(), space.len()), (40, 40));
    let declared: HashSet<_> = space.points().filter_map(|it| space.schedule(&it)).collect();
    assert_eq!(declared, all.into_iter().collect());
}

/// Each value of each knob is in the first few, and none in too many of them.
#[test]
fn the_beginning_of_the_walk_has_every_value_of_every_knob() {
    for device in devices() {
        let space = Space::of(&matmul(128, 768, 3072), Dtype::F32, &device, false);
        let mut walk = Walk::new(&space);
        let first: Vec<_> = (0..96).map_while(|_| walk.next(&space)).map(|it| it.0).collect();
        for (family, knobs) in space.families().iter().enumerate() {
            let own: Vec<_> = first.iter().filter(|it| it.family == family).collect();
            for (at, knob) in knobs.knobs().iter().enumerate() {
                let values: HashSet<_> = own.iter().map(|it| it.choices[at]).collect();
                assert!(4 * values.len() >= 3 * knob.len(), "{}: {} of {}", knob.name(), values.len(), knob.len());
            }
        }
    }
}

#[test]
fn a_knob_that_would_change_nothing_is_not_turned() {
    let space = Space::of(&matmul(128, 768, 768), Dtype::F32, &devices()[0], false);
    let useless = |it: &Schedule| {
        let it = settings(it);
        it["prefetch"] == true && (it["pack-b"] == "never" || it["pack-b"] == "ahead" && it["order"] == "rows-outside")
    };
    assert!(!space.schedules().take(3000).any(|it| useless(&it)));
}

/// What is not legal is mostly so for one reason that no rule of a knob can express.
#[test]
fn most_points_of_a_cpu_are_legal() {
    let space = Space::of(&matmul(128, 768, 3072), Dtype::F32, &devices()[0], false);
    let mut rng = Pcg64Mcg::seed_from_u64(1);
    let legal = (0..1000).filter(|_| space.sample(&mut rng).is_some_and(|it| space.schedule(&it).is_some())).count();
    assert!(legal > 500, "{legal} of 1000");
}

#[test]
fn a_space_is_described_by_the_names_of_a_plan() {
    let mlp = StageOp::Mlp {
        rows: 128,
        d_model: 768,
        d_ff: 3072,
        activation: Activation::Silu,
        gated: true,
        bias: false,
        residual: false,
    };
    let space = Space::of(&mlp, Dtype::F32, &devices()[0], false);
    let [family] = &space.describe().families[..] else { panic!("{:?}", space.describe()) };
    let knob = |name: &str| family.knobs.iter().find(|it| it.name == name).unwrap();
    assert_eq!(family.fixed["kernel"], "mlp");
    assert_eq!(knob("up.nr").rule.as_deref(), Some("times `up.lanes`"));
    assert_eq!(knob("up.nr").values, [1, 2, 3, 4].map(Value::Number));
    assert_eq!(knob("down.mr").rule.as_deref(), Some("the same as `up.mr`"));
    assert_eq!(knob("row-block").rule.as_deref(), Some("rounded up to a multiple of `up.mr`"));
    let text = serde_json::to_string(family).unwrap();
    assert!(text.contains(r#"{"name":"down.order","values":["columns-outside","rows-outside"]}"#), "{text}");
}
