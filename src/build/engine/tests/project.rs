//! Random projects, how they are edited, and what a build of one from nothing makes.

use crate::{
    build::graph::{
        Graph, KeyParts, Outputs, Step, StepId, StepKind,
        tests::{
            self, block,
            model::{self, NAMES, Node, node},
        },
    },
    digest::Digest,
    host::CpuFacts,
    manifest::spec::{BlockSpec, Dtype, Pass},
    protocol::blob,
};
use proptest::{prelude::*, sample::Index};
use std::collections::{BTreeMap, BTreeSet};

/// What a graph is made from. Cheap to keep, so that edits can be undone.
#[derive(Debug, Clone)]
pub enum Plan {
    Blocks(Vec<Block>),
    /// Edges as no project has them.
    Nodes(Vec<Node>),
}

/// A block whose kernel nobody generates: its numbers only have to differ.
#[derive(Debug, Clone)]
pub struct Block {
    name: usize,
    m: u8,
    n: u8,
    passes: Vec<Pass>,
}

/// Part of a step's parameters that its main output does not depend on: an edit of it is cut off there.
pub type Blind = (StepKind, &'static str);

const BLIND: [Blind; 5] = [
    (StepKind::Ir, "passes"),
    (StepKind::Ir, "name"),
    (StepKind::Ir, "block.n"),
    (StepKind::Plan, "name"),
    (StepKind::Verify, "block.m"),
];

#[derive(Debug, Clone)]
pub struct Project {
    pub plan: Plan,
    pub blind: BTreeSet<Blind>,
}

#[derive(Debug, Clone)]
pub enum Edit {
    Value { at: Index, value: u8 },
    Add(Block, Node),
    Remove(Index),
    Passes(Index, Vec<Pass>),
}

fn passes() -> impl Strategy<Value = Vec<Pass>> {
    (proptest::sample::subsequence(Pass::ALL.to_vec(), 0..=2), any::<bool>()).prop_map(|(mut passes, reversed)| {
        if reversed {
            passes.reverse();
        }
        passes
    })
}

fn some_block() -> impl Strategy<Value = Block> {
    (0usize..4, 0u8..3, 0u8..3, passes()).prop_map(|(name, m, n, passes)| Block { name, m, n, passes })
}

pub fn project() -> impl Strategy<Value = Project> {
    let plan = prop_oneof![
        proptest::collection::vec(some_block(), 1..4).prop_map(|mut blocks| {
            blocks.iter_mut().enumerate().for_each(|(index, it)| it.name = index);
            Plan::Blocks(blocks)
        }),
        proptest::collection::vec(node(), 1..12).prop_map(Plan::Nodes),
    ];
    let blind = proptest::sample::subsequence(BLIND.to_vec(), 0..=BLIND.len());
    (plan, blind).prop_map(|(plan, blind)| Project { plan, blind: blind.into_iter().collect() })
}

pub fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        5 => (any::<Index>(), 0u8..40).prop_map(|(at, value)| Edit::Value { at, value }),
        1 => (some_block(), node()).prop_map(|(block, node)| Edit::Add(block, node)),
        1 => any::<Index>().prop_map(Edit::Remove),
        1 => (any::<Index>(), passes()).prop_map(|(at, passes)| Edit::Passes(at, passes)),
    ]
}

impl Project {
    pub fn apply(&mut self, edit: &Edit) {
        match (&mut self.plan, edit) {
            (Plan::Blocks(blocks), Edit::Value { at, value }) => {
                let block = at.get_mut(blocks);
                if value % 2 == 0 { block.m = value / 2 } else { block.n = value / 2 }
            }
            (Plan::Nodes(nodes), Edit::Value { at, value }) => at.get_mut(nodes).param = *value,
            (Plan::Blocks(blocks), Edit::Add(block, _)) => {
                let name = (0..).find(|name| blocks.iter().all(|it| it.name != *name));
                blocks.push(Block { name: name.unwrap(), ..block.clone() });
            }
            (Plan::Nodes(nodes), Edit::Add(_, node)) if nodes.len() < NAMES.len() => nodes.push(node.clone()),
            (Plan::Blocks(blocks), Edit::Remove(at)) if blocks.len() > 1 => drop(blocks.remove(at.index(blocks.len()))),
            // Only the last: what is behind another one would become other steps of the same names.
            (Plan::Nodes(nodes), Edit::Remove(_)) if nodes.len() > 1 => drop(nodes.pop()),
            (Plan::Blocks(blocks), Edit::Passes(at, passes)) => at.get_mut(blocks).passes.clone_from(passes),
            _ => {}
        }
    }

    pub fn graph(&self) -> Graph {
        match &self.plan {
            Plan::Nodes(nodes) => model::graph(nodes),
            Plan::Blocks(blocks) => {
                let target = |it: &Block| {
                    let (m, n) = (it.m.into(), it.n.into());
                    let spec = BlockSpec::Matmul {
                        m,
                        n,
                        k: 1,
                        b: Default::default(),
                        bias: false,
                        activation: None,
                        dtype: Dtype::F32,
                    };
                    let mut target = block(&format!("b{}", it.name), spec);
                    target.passes.clone_from(&it.passes);
                    target
                };
                tests::graph(&blocks.iter().map(target).collect::<Vec<_>>())
            }
        }
    }

    /// What the step makes, by output name. A function of what its key is made of and of nothing else.
    pub fn make(&self, step: &Step, inputs: &BTreeMap<String, Digest>) -> BTreeMap<String, Vec<u8>> {
        let read: BTreeMap<&str, &Digest> = step.inputs.iter().map(|it| (it.name, &inputs[it.name])).collect();
        let content = |name: &str| {
            let decides = |part: &str| {
                name == blob::PASSES
                    || !self.blind.iter().any(|(kind, blind)| *kind == step.kind && part.starts_with(blind))
            };
            let mut params: KeyParts = step.params().iter().filter(|it| decides(it.0)).collect();
            if let Plan::Nodes(nodes) = &self.plan {
                let node = &nodes[step.id.index()];
                params.set("param", (node.param & node.keeps).to_string());
            }
            format!("{name} {params:?} {read:?}").into_bytes()
        };
        self.names(step).into_iter().map(|name| (name.to_owned(), content(name))).collect()
    }

    /// One name a person finds in `out/`, where the step has one, and those that other steps read.
    fn names(&self, step: &Step) -> Vec<&'static str> {
        let mut names = match step.kind {
            StepKind::Ir => vec![blob::OPTIMIZED, blob::STAGES, blob::PASSES],
            StepKind::Plan => vec![blob::PLAN, blob::STAGES, blob::PASSES],
            StepKind::Compile => vec![blob::OBJECT, blob::KERNEL],
            StepKind::Verify => vec![blob::AUDIT],
            StepKind::Benchmark => vec![blob::BENCHMARK],
            StepKind::Report => vec![blob::REPORT],
        };
        if let Plan::Nodes(_) = self.plan {
            names.extend([NAMES[step.id.index()], "gate"]);
        }
        names
    }

    /// What each step makes when nothing was ever built, and under which key.
    pub fn clean(&self, graph: &Graph) -> Vec<(Digest, Outputs)> {
        let mut made: Vec<(Digest, Outputs)> = Vec::new();
        for step in graph.steps() {
            let inputs = step.inputs.iter().map(|it| (it.name.to_owned(), made[it.step.index()].1[it.name]));
            let outputs = self.make(step, &inputs.collect()).into_iter();
            let outputs = outputs.map(|(name, bytes)| (name, Digest::of(&bytes))).collect();
            let key = graph.parts(step.id, |it: StepId| Some(&made[it.index()].1)).unwrap().key();
            made.push((key, outputs));
        }
        made
    }
}

/// Leases are the machine's: tests that run at once have a device each.
pub fn cpu(test: &str) -> CpuFacts {
    CpuFacts { model: format!("of the test {test}"), ..tests::cpu() }
}
