//! What a restriction leaves: exactly the legal points that it names, for each rule by which values are made.

use super::*;
use crate::{
    manifest::spec::{Activation, Dtype},
    plan::{
        read::knobs::knobs,
        space::{
            Walk,
            tests::{devices, dtypes, matmul, ops},
        },
        stage::StageOp,
    },
};
use proptest::prelude::*;
use std::collections::HashSet;

/// A restriction, as it would be in a manifest: `mr = 4 6`.
pub fn only(text: &str) -> Only {
    let mut only = Only::default();
    for line in text.split(';') {
        let (name, values) = line.split_once('=').unwrap();
        let setting = |it: &str| match it {
            "true" | "false" => Setting::Flag(it == "true"),
            _ => it.parse().map_or_else(|_| Setting::Word(it.to_owned()), Setting::Number),
        };
        only.insert(name.trim().to_owned(), values.split_whitespace().map(setting).collect());
    }
    only
}

fn space(op: &StageOp, text: &str) -> Space {
    Space::of(op, Dtype::F32, &devices()[0], false).only(&only(text))
}

fn mlp() -> StageOp {
    let (rows, d_model, d_ff, activation) = (128, 768, 3072, Activation::Silu);
    StageOp::Mlp { rows, d_model, d_ff, activation, gated: false, bias: true, residual: false }
}

/// The values of a knob in the first schedules of the space.
fn seen(space: &Space, knob: &str) -> Vec<String> {
    let mut values: Vec<String> = Vec::new();
    for it in space.schedules().take(2000) {
        let value = plain(&settings(&it)[knob]);
        if !values.contains(&value) {
            values.push(value);
        }
    }
    values.sort();
    values
}

fn declared(space: &Space, knob: &str) -> usize {
    space.families()[0].knobs().iter().find(|it| it.name() == knob).unwrap().len()
}

#[test]
fn plain_values_go_from_the_list() {
    let (whole, left) =
        (space(&matmul(128, 768, 768), "kc = 768"), space(&matmul(128, 768, 768), "kc = 768; mr = 6 4"));
    assert_eq!((declared(&left, "mr"), seen(&left, "mr")), (2, vec!["4".to_owned(), "6".to_owned()]));
    assert_eq!(left.len(), whole.len() / 6);
    let ahead = space(&matmul(128, 768, 768), "pack-b = ahead; pack-a = false");
    assert_eq!((declared(&ahead, "pack-b"), declared(&ahead, "pack-a")), (1, 1));
    assert_eq!((seen(&ahead, "pack-b"), seen(&ahead, "pack-a")), (vec!["ahead".to_owned()], vec!["false".to_owned()]));
}

#[test]
fn values_that_count_units_are_those_of_the_schedule() {
    // Of 16 lanes one vector, of 8 two.
    let both = space(&matmul(128, 768, 768), "nr = 16");
    assert_eq!(
        (seen(&both, "nr"), seen(&both, "lanes"), declared(&both, "nr")),
        (vec!["16".to_owned()], vec!["16".to_owned(), "8".to_owned()], 2)
    );
    // Three of 8 and nothing of 16: what it is counted in goes too.
    let narrow = space(&matmul(128, 768, 768), "nr = 24");
    assert_eq!(
        (declared(&narrow, "nr"), declared(&narrow, "lanes"), seen(&narrow, "lanes")),
        (1, 1, vec!["8".to_owned()])
    );
}

#[test]
fn values_that_are_rounded_up_are_those_of_the_schedule() {
    let left = space(&matmul(128, 768, 768), "mc = 48; row-block = 5");
    assert_eq!(seen(&left, "mc"), ["48"]);
    // 43 becomes 48 with 8, 12 and 16 rows, and so on, and never with 1 or 5.
    let rows = seen(&left, "mr");
    assert!(rows.contains(&"8".to_owned()) && !rows.contains(&"1".to_owned()) && !rows.contains(&"5".to_owned()));
    // Of 64 columns no multiple is 96.
    let chained = space(&matmul(128, 768, 768), "nc = 96; lanes = 16");
    assert_eq!((seen(&chained, "nc"), declared(&chained, "nr")), (vec!["96".to_owned()], 3));
}

#[test]
fn a_knob_that_follows_another_restricts_that() {
    for text in ["mr = 6", "down.mr = 6", "up.mr = 6", "up.mr = 6; mr = 4"] {
        let left = space(&mlp(), text);
        assert_eq!(
            (seen(&left, "up.mr"), seen(&left, "down.mr")),
            (vec!["6".to_owned()], vec!["6".to_owned()]),
            "{text}"
        );
        assert_eq!(declared(&left, "up.mr"), 1, "{text}");
    }
    // The short name stands for both products, and the full one goes before it.
    let left = space(&mlp(), "nr = 32; down.nr = 64; lanes = 16");
    assert_eq!((seen(&left, "up.nr"), seen(&left, "down.nr")), (vec!["32".to_owned()], vec!["64".to_owned()]));
}

#[test]
fn what_does_not_act_may_be_anything_and_is_what_it_was() {
    let op = matmul(128, 768, 768);
    let left = space(&op, "prefetch = true; pack-b = never during");
    assert_eq!(declared(&left, "prefetch"), 1);
    for it in left.schedules().take(500) {
        let it = settings(&it);
        assert_eq!(it["prefetch"] == true, it["pack-b"] == "during", "{it:?}");
    }
    let left = space(&op, "prefetch = false");
    assert_eq!(seen(&left, "prefetch"), ["false"]);
    // A number says nothing of a flag: on a GPU the same name is one.
    assert_eq!(space(&op, "prefetch = 1").len(), Space::of(&op, Dtype::F32, &devices()[0], false).len());
}

#[test]
fn a_description_says_what_the_values_in_a_plan_must_be() {
    let description = space(&matmul(128, 768, 768), "nr = 24; mr = 6").describe();
    let knob = |name: &str| description.families[0].knobs.iter().find(|it| it.name == name).unwrap();
    assert_eq!((&knob("mr").values, &knob("nr").values), (&vec![Value::Number(6)], &vec![Value::Number(3)]));
    assert_eq!((&knob("nr").only, &knob("kc").only), (&Some(vec![Value::Number(24)]), &None));
}

#[test]
fn a_method_is_chosen_like_a_knob() {
    let op = StageOp::Mlp {
        rows: 4,
        d_model: 256,
        d_ff: 512,
        activation: Activation::Silu,
        gated: true,
        bias: false,
        residual: false,
    };
    let whole = Space::of(&op, Dtype::F32, &devices()[3], false);
    let names =
        |only: &Only| whole.clone().only(only).families().iter().map(|it| it.name().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&only("method = gemv")), ["gpu-mlp gemv, gemv"]);
    assert_eq!(names(&only("method = gemv; up.method = tiled")), ["gpu-mlp tiled, gemv"]);
    assert_eq!(names(&only("mr = 4")).len(), whole.families().len());
}

#[test]
fn what_leaves_nothing_says_of_which_knobs_and_what_there_is() {
    let why = |op: &StageOp, text: &str| space(op, text).none_left().unwrap().to_string();
    let op = matmul(128, 768, 768);
    assert_eq!(why(&op, "mr = 9 11; nr = 16"), "`mr` = 9, 11 (the space has 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)");
    assert_eq!(why(&op, "dot = pairs"), "`dot` = pairs (the space has fma)");
    assert_eq!(
        why(&mlp(), "up.mr = 6; down.mr = 4"),
        "`up.mr` = 6 (the space has 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16), `down.mr` = 4 (the space has 1, 2, 3, 4, 5, 6, 7, 8, \
         10, 12, 14, 16), which are not legal together"
    );
    // 64 accumulators of 32 registers.
    let illegal = why(&op, "mr = 16; nr = 64; lanes = 16");
    assert!(illegal.ends_with("which are not legal together"), "{illegal}");
    assert!(space(&op, "mr = 6").none_left().is_none());
}

/// The list that manifests are checked with has every knob of every space, with what it can be.
#[test]
fn the_names_of_all_knobs_are_known_without_a_device() {
    let known = knobs();
    let few = StageOp::Mlp {
        rows: 4,
        d_model: 256,
        d_ff: 512,
        activation: Activation::Silu,
        gated: true,
        bias: true,
        residual: false,
    };
    let mut cases = vec![matmul(4, 768, 768), matmul(128, 768, 768), mlp(), few, StageOp::Add { rows: 4, width: 64 }];
    cases.push(StageOp::RmsNorm { rows: 4, width: 64, eps: 1e-5 });
    cases.push(StageOp::Attention { batch: 1, seq: 64, heads: 4, kv_heads: 4, head_dim: 64, causal: true, scale: 1.0 });
    let mut declared = HashSet::new();
    for (op, device, dtype, hybrid) in cases.iter().flat_map(|op| {
        let dtypes = [(Dtype::F32, false), (Dtype::F16, false), (Dtype::F16, true)];
        devices().into_iter().flat_map(move |device| dtypes.map(|it| (op, device.clone(), it.0, it.1)))
    }) {
        for family in Space::of(op, dtype, &device, hybrid).families() {
            for (name, value) in family.fixed().iter().filter(|it| is_method(it.0)) {
                assert!(known[*name].words.contains(value), "{name} = {value}");
                declared.insert((*name).to_owned());
            }
            for knob in family.knobs() {
                let kinds = known.get(&knob.name()).unwrap_or_else(|| panic!("`{}` is not known", knob.name()));
                assert!(known.contains_key(knob.short()));
                let has = |it: &Value| match it {
                    Value::Flag(_) => kinds.flag,
                    Value::Number(_) => kinds.number,
                    Value::Word(it) => kinds.words.contains(it),
                };
                assert!(knob.values().iter().all(has), "{}: {:?}", knob.name(), knob.values());
                declared.insert(knob.name());
            }
        }
    }
    // Nor is there a name that no space has.
    let stray =
        |it: &&String| !declared.contains(*it) && !declared.iter().any(|full| full.ends_with(&format!(".{it}")));
    assert_eq!(known.keys().filter(stray).collect::<Vec<_>>(), Vec::<&String>::new());
}

/// By the names of a schedule alone: what [`Space::only`] leaves, and nothing of how.
fn is_within(schedule: &Schedule, only: &Only) -> bool {
    let all = settings(schedule);
    all.iter().all(|(name, value)| {
        let (part, short) = name.rsplit_once('.').map_or(("", name.as_str()), |it| it);
        let of_part = |other: &str, word: &str| {
            all.get(&if part.is_empty() { other.to_owned() } else { format!("{part}.{other}") }) == Some(&word.into())
        };
        let idle = short == "prefetch"
            && (of_part("pack-b", "never") || of_part("pack-b", "ahead") && of_part("order", "rows-outside"));
        let same = |it: &Setting| match (it, value) {
            (Setting::Flag(it), Json::Bool(value)) => Some(it == value),
            (Setting::Number(it), Json::Number(value)) => Some(Some(*it as u64) == value.as_u64()),
            (Setting::Word(it), Json::String(value)) => Some(it == value),
            _ => None,
        };
        let listed: Vec<bool> = only.listed(name).unwrap_or_default().iter().filter_map(same).collect();
        idle || listed.is_empty() || listed.contains(&true)
    })
}

/// Some knobs of a few legal schedules of the space, with their values there: they leave something.
fn drawn(space: &Space, picks: &[(usize, usize)]) -> Only {
    let some: Vec<Schedule> = space.schedules().take(3).collect();
    let mut only = Only::default();
    for (knob, count) in picks {
        let names: Vec<String> = settings(&some[0]).into_keys().filter(|it| it != "kernel").collect();
        let name = &names[knob % names.len()];
        let values = some.iter().take(1 + count % 3).filter_map(|it| match settings(it).get(name)? {
            Json::Bool(it) => Some(Setting::Flag(*it)),
            Json::Number(it) => it.as_u64().map(|it| Setting::Number(it as usize)),
            Json::String(it) => Some(Setting::Word(it.clone())),
            _ => None,
        });
        only.insert(name.clone(), values.collect());
    }
    only
}

proptest! {
    #![proptest_config(crate::testing::cases(48))]
    /// A grid that goes to its end has tried all that there is.
    #[test]
    fn the_walk_over_what_is_left_has_every_legal_point_of_it_once(
        op in prop_oneof![
            ops(),
            (1usize..4, 1usize..40, 1usize..40).prop_map(|(m, n, k)| matmul(m, n, k)),
            (1usize..9, 1usize..9).prop_map(|(seq, head_dim)| {
                StageOp::Attention { batch: 1, seq, heads: 1, kv_heads: 1, head_dim, causal: true, scale: 1.0 }
            }),
        ],
        dtype in dtypes(),
        device in 0usize..5,
        hybrid: bool,
        picks in prop::collection::vec((any::<usize>(), any::<usize>()), 1..5),
    ) {
        let whole = Space::of(&op, dtype, &devices()[device], hybrid);
        let only = drawn(&whole, &picks);
        let left = whole.clone().only(&only);
        prop_assert!(left.none_left().is_none() && left.len() <= whole.len());
        let mut walk = Walk::new(&left);
        let mut seen = HashSet::new();
        let most = if whole.len() < 20_000 { usize::MAX } else { 200 };
        while seen.len() < most && let Some((point, schedule)) = walk.next(&left) {
            prop_assert!(is_within(&schedule, &only), "{schedule:?} {only:?}");
            prop_assert_eq!(left.admits(&schedule), Ok(()));
            if seen.len() < 50 {
                prop_assert_eq!(left.nearest(&schedule), Some(point));
            }
            prop_assert!(seen.insert(schedule));
        }
        if most == usize::MAX {
            let all: HashSet<_> = whole.points().filter_map(|it| whole.schedule(&it)).collect();
            let expected: HashSet<_> = all.into_iter().filter(|it| is_within(it, &only)).collect();
            prop_assert_eq!(seen, expected);
        }
    }

    /// Whatever is outside is refused, and has a neighbour inside that a search can begin with.
    #[test]
    fn what_is_outside_is_told_and_leads_inside(
        op in ops(),
        dtype in dtypes(),
        device in 0usize..5,
        picks in prop::collection::vec((any::<usize>(), any::<usize>()), 1..5),
    ) {
        let whole = Space::of(&op, dtype, &devices()[device], false);
        let only = drawn(&whole, &picks);
        let left = whole.clone().only(&only);
        for it in whole.schedules().take(40) {
            prop_assert_eq!(left.admits(&it).is_ok(), is_within(&it, &only), "{:?} {:?}", it, only);
            if let Some(near) = left.nearest(&it) {
                prop_assert!(is_within(&left.schedule(&near).unwrap(), &only));
            }
        }
    }
}
