//! Random graphs and random edits, compared with a model that has no records, no early returns and no explanations: a step
//! must run exactly if it never ran with the content that it would read now.

use super::{Past, build};
use crate::{
    build::graph::{Damage, Decision, Graph, KeyParts, Outputs, Step, StepId, StepKind},
    digest::Digest,
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

/// One random step: a parameter, and bits that say which earlier steps it reads or waits for.
#[derive(Debug, Clone)]
pub struct Node {
    pub param: u8,
    reads: u16,
    gates: u16,
    /// Parameters that differ only in the bits below make the same outputs.
    pub keeps: u8,
    kind: StepKind,
}

#[derive(Debug, Clone)]
enum Edit {
    Param { step: prop::sample::Index, value: u8 },
    Lose { step: prop::sample::Index, damage: bool },
    Restore,
}

impl Node {
    /// A step that reads these earlier ones.
    pub fn reading(steps: &[usize]) -> Self {
        let reads = steps.iter().map(|it| 1 << it).sum();
        Self { param: 0, reads, gates: 0, keeps: 0xff, kind: StepKind::Compile }
    }
}

pub fn node() -> impl Strategy<Value = Node> {
    let keeps = prop_oneof![Just(0xff), Just(0xf0), Just(0x00)];
    let kind = prop_oneof![4 => Just(StepKind::Compile), 1 => Just(StepKind::Plan), 1 => Just(StepKind::Benchmark)];
    (any::<u8>(), any::<u16>(), any::<u16>(), keeps, kind).prop_map(|(param, reads, gates, keeps, kind)| Node {
        param,
        reads: reads & gates.rotate_left(3),
        gates: gates & 0x11,
        keeps,
        kind,
    })
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        6 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(step, value)| Edit::Param { step, value }),
        2 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(step, damage)| Edit::Lose { step, damage }),
        1 => Just(Edit::Restore),
    ]
}

pub fn graph(nodes: &[Node]) -> Graph {
    let mut graph = Graph::default();
    let target: Arc<str> = "cpu".into();
    for (index, node) in nodes.iter().enumerate() {
        let chosen = |bits: u16| (0..index.min(16)).filter(move |it| bits >> it & 1 == 1).map(|it| StepId(it as u32));
        let reads: Vec<_> = chosen(node.reads).map(|it| (it, "out")).collect();
        let gates: Vec<_> = chosen(node.gates).map(|it| (it, "gate")).collect();
        let params = KeyParts::new().with("index", index).with("param", node.param);
        let block = Some(format!("b{index}").into());
        let params = (params, [].as_slice());
        graph.push(node.kind, (Some(index), block), (&target, 1, false), &unique(&reads), &gates, params);
    }
    graph
}

/// Steps of one kind share a part name for an output of one name, so each read output needs a name of its own here.
fn unique(reads: &[(StepId, &'static str)]) -> Vec<(StepId, &'static str)> {
    reads.iter().map(|(step, _)| (*step, NAMES[step.index()])).collect()
}

/// Of the output that each of the first steps makes for those that read it.
pub const NAMES: [&str; 16] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "a", "b", "c", "d", "e", "f"];

/// What a step makes: a digest of what it reads and of the part of its parameter that matters.
fn content(node: &Node, index: usize, inputs: &[Digest]) -> Digest {
    let mut bytes = vec![node.param & node.keeps, index as u8];
    inputs.iter().for_each(|it| bytes.extend_from_slice(it.as_bytes()));
    Digest::of(&bytes)
}

fn run(nodes: &[Node], step: &Step, parts: &KeyParts) -> Outputs {
    let index = step.id.index();
    let inputs: Vec<Digest> = step.inputs.iter().map(|it| parts.get(&it.part).unwrap().parse().unwrap()).collect();
    let name = char::from_digit((index % 16) as u32, 16).unwrap().to_string();
    [(name, content(&nodes[index], index, &inputs))].into()
}

/// All that a step's output depends on: its parameter, its place, the content it reads.
type Reads = (u8, usize, Vec<Digest>);

/// The contents of a build from nothing, and for each step what it reads.
fn clean(nodes: &[Node]) -> Vec<(Digest, Reads)> {
    let mut contents: Vec<(Digest, Reads)> = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let inputs: Vec<_> =
            (0..index.min(16)).filter(|it| node.reads >> it & 1 == 1).map(|it| contents[it].0).collect();
        contents.push((content(node, index, &inputs), (node.param, index, inputs)));
    }
    contents
}

proptest! {
    #![proptest_config(crate::testing::cases(300))]
    #[test]
    fn exactly_the_steps_with_new_content_run_and_the_outputs_are_those_of_a_clean_build(
        mut nodes in proptest::collection::vec(node(), 1..16), edits in proptest::collection::vec(edit(), 1..8),
    ) {
        let first = nodes.clone();
        let mut past = Past::default();
        let mut seen: HashSet<Reads> = HashSet::new();
        build(&graph(&nodes), &mut past, |step, parts| run(&nodes, step, parts));
        seen.extend(clean(&nodes).into_iter().map(|it| it.1));

        for edit in edits {
            let mut lost: BTreeSet<usize> = BTreeSet::new();
            match edit {
                Edit::Param { step, value } => step.get_mut(&mut nodes).param = value,
                Edit::Restore => nodes.clone_from(&first),
                Edit::Lose { step, damage } => {
                    let blob = clean(&nodes)[step.index(nodes.len())].0;
                    lost.extend((0..nodes.len()).filter(|&it| clean(&nodes)[it].0 == blob));
                    past.damaged.insert(blob, if damage { Damage::Corrupt } else { Damage::Missing });
                }
            }
            let graph = graph(&nodes);
            let status = graph.status(&past, |_| false);
            let ran = build(&graph, &mut past, |step, parts| run(&nodes, step, parts));

            let now = clean(&nodes);
            let expected: Vec<_> = (0..nodes.len())
                .filter(|&it| !seen.contains(&now[it].1) || lost.contains(&it))
                .map(|it| StepId(it as u32))
                .collect();
            prop_assert_eq!(&ran, &expected);
            for (index, content) in now.iter().enumerate() {
                let built = past.steps[graph.steps()[index].identity()].0;
                prop_assert_eq!(past.records[&built].outputs.values().collect::<Vec<_>>(), vec![&content.0]);
            }
            // What was said before the build came true.
            for (step, decision) in graph.steps().iter().zip(&status) {
                match decision {
                    Decision::UpToDate { .. } => prop_assert!(!ran.contains(&step.id)),
                    Decision::Stale { .. } => prop_assert!(ran.contains(&step.id)),
                    Decision::Unknown { waits_for } => {
                        prop_assert!(waits_for.iter().all(|it| !status[it.index()].is_up_to_date()) && !waits_for.is_empty());
                    }
                }
            }
            seen.extend(now.into_iter().map(|it| it.1));
        }
    }

    #[test]
    fn equal_parts_give_equal_keys_in_any_order_and_other_parts_other_keys(
        parts in proptest::collection::btree_map("[a-c=.]{0,3}", "[a-c=.]{0,3}", 0..5),
        other in proptest::collection::btree_map("[a-c=.]{0,3}", "[a-c=.]{0,3}", 0..5),
    ) {
        let of = |it: &BTreeMap<String, String>| it.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect::<KeyParts>();
        let backwards: KeyParts = parts.iter().rev().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        prop_assert_eq!(of(&parts).key(), backwards.key());
        prop_assert_eq!(parts == other, of(&parts).key() == of(&other).key());
    }
}
