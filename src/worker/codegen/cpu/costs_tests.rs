//! What 16 bits cost: times of products and of GPT-2 blocks as f32, f16, bf16, and bf16 in pairs. Prints, and asserts no time.
//!
//! `cargo test --release --bin kforge-worker costs_tests -- --ignored --nocapture --test-threads=1`

use super::compile;
use crate::{
    device::{cpu::LoadedKernel, memory::Memory, threads::Threads},
    verify::{inputs::Source, samples},
};
use kernelforge::{
    host::CpuFacts,
    manifest::spec::{Activation, AttentionSpec, BlockSpec, Dtype, MlpSpec, NormKind, NormSpec, RowsSpec},
    plan::{
        Plan,
        schedule::{
            AttentionSchedule, Dot, ElementwiseSchedule, MatmulSchedule, MlpSchedule, NormSchedule, PackB, Schedule,
            Split, TileOrder,
        },
        stage::{StageGraph, StageOp, TensorId},
    },
};
use std::time::Instant;

/// Storage and steps of what is compared; pairs where the CPU has them.
fn variants(cpu: &CpuFacts) -> Vec<(Dtype, Dot)> {
    let pairs = cpu.isa.iter().any(|it| it == "avx512bf16").then_some((Dtype::Bf16, Dot::Pairs));
    Dtype::ALL.into_iter().map(|it| (it, Dot::Fma)).chain(pairs).collect()
}

fn matmul((m, n, k): (usize, usize, usize), dot: Dot, pack_a: bool, cpu: &CpuFacts) -> MatmulSchedule {
    let (rows, vectors) = if cpu.vector_registers >= 32 { (8, 3) } else { (6, 2) };
    let (mr, nr) = (rows.min(m), vectors * cpu.lanes);
    MatmulSchedule {
        mr,
        nr,
        lanes: cpu.lanes,
        mc: 128 / mr * mr,
        nc: n.next_multiple_of(nr),
        kc: (k.next_multiple_of(2)).min(768 * dot.terms()),
        unroll: 2,
        dot,
        order: TileOrder::ColumnsOutside,
        pack_a,
        pack_b: PackB::Ahead,
        prefetch: m >= 4 * mr,
        split: Split::Columns,
    }
}

fn planned(graph: &StageGraph, dot: Dot, pack_a: bool, cpu: &CpuFacts) -> Plan {
    let lanes = cpu.lanes;
    let schedule = |op: &StageOp| match *op {
        StageOp::Matmul { m, n, k, .. } => Schedule::Matmul(matmul((m, n, k), dot, pack_a, cpu)),
        StageOp::Mlp { rows, d_model, d_ff, .. } => {
            let up = matmul((rows, d_ff, d_model), dot, pack_a, cpu);
            let down = matmul((rows, d_model, d_ff), dot, false, cpu);
            Schedule::Mlp(MlpSchedule { row_block: rows.next_multiple_of(up.mr), up, down })
        }
        StageOp::Attention { seq, .. } => {
            let (rows, vectors) = if cpu.vector_registers >= 32 { (6, 4) } else { (6, 2) };
            let mr = rows.min(seq);
            Schedule::Attention(AttentionSchedule {
                row_block: 60 / mr * mr,
                mr,
                nr: vectors * lanes,
                lanes,
                unroll: 1,
                pack_v: false,
                softmax_rows: 1,
            })
        }
        StageOp::LayerNorm { .. } | StageOp::RmsNorm { .. } => Schedule::Norm(NormSchedule { lanes, unroll: 4 }),
        _ => Schedule::Elementwise(ElementwiseSchedule { lanes, unroll: 4 }),
    };
    samples::plan(&graph.block, "cpu", graph.stages.iter().map(|it| (it.name.clone(), schedule(&it.op))).collect())
}

/// A block that can be called.
struct Ready {
    loaded: LoadedKernel,
    memory: Memory,
    threads: Threads,
    times: Vec<f64>,
}

impl Ready {
    fn new(block: &BlockSpec, dot: Dot, pack_a: bool, cpu: &CpuFacts) -> Self {
        let graph = samples::graph(block);
        let compiled = compile(&graph, &planned(&graph, dot, pack_a, cpu), cpu).unwrap();
        let loaded = LoadedKernel::load(&compiled.object, compiled.kernel).unwrap();
        let (mut memory, threads) = (Memory::new(loaded.kernel(), 1, None).unwrap(), Threads::new(1).unwrap());
        for index in 0..graph.tensors.len() {
            let mut source = Source::new(5, index as u64);
            memory.tensor_mut(TensorId(index)).fill_with(|| 0.05 * source.normal());
        }
        loaded.prepare(&mut memory, &threads);
        Self { loaded, memory, threads, times: Vec::new() }
    }

    fn call(&mut self) {
        self.memory.settle();
        let started = Instant::now();
        self.loaded.block(&mut self.memory, &self.threads);
        self.times.push(started.elapsed().as_secs_f64() * 1e6);
    }

    /// Median, in microseconds.
    fn median(&mut self) -> f64 {
        self.times.sort_by(f64::total_cmp);
        self.times[self.times.len() / 2]
    }
}

/// Times of one block in all variants, one call of each in turn.
fn compare(what: &str, block: &BlockSpec, operations: f64, rounds: usize) {
    let cpu = CpuFacts::detect();
    let mut all: Vec<_> = variants(&cpu)
        .into_iter()
        .flat_map(|(dtype, dot)| [false, true].map(|pack_a| (dtype, dot, pack_a)))
        .map(|(dtype, dot, pack_a)| {
            ((dtype, dot, pack_a), Ready::new(&samples::stored(block, dtype), dot, pack_a, &cpu))
        })
        .collect();
    for _ in 0..rounds {
        all.iter_mut().for_each(|it| it.1.call());
    }
    for ((dtype, dot, pack_a), ready) in &mut all {
        let us = ready.median();
        println!(
            "{what} {} {dot:?} A copied {pack_a}: {us:.0} us, {:.1} GFLOP/s",
            dtype.name(),
            1e-3 * operations / us
        );
    }
}

#[test]
#[ignore = "prints times"]
fn products() {
    let dtype = Dtype::F32;
    for (m, n, k) in
        [(1usize, 4096usize, 4096usize), (1, 3072, 768), (128, 768, 768), (128, 3072, 768), (128, 768, 3072)]
    {
        let block = BlockSpec::Matmul { m, n, k, b: Default::default(), bias: false, activation: None, dtype };
        compare(&format!("{m}x{n}x{k}"), &block, 2.0 * (m * n * k) as f64, 60);
    }
}

#[test]
#[ignore = "prints times"]
fn blocks() {
    let (d_model, heads, d_ff) = (768, 12, 3072);
    for (seq, rounds) in [(1, 200), (128, 40), (512, 10)] {
        let attention = AttentionSpec {
            d_model,
            heads,
            kv_heads: heads,
            head_dim: d_model / heads,
            qkv_bias: true,
            out_bias: true,
            causal: true,
            rope_theta: 0.0,
        };
        let block = BlockSpec::Transformer {
            rows: RowsSpec { batch: 1, seq },
            attention,
            norm: NormSpec { kind: NormKind::LayerNorm, eps: 1e-5 },
            mlp: MlpSpec { d_model, d_ff, activation: Activation::GeluTanh, gated: false, bias: true },
            dtype: Dtype::F32,
        };
        // Causal attention computes half of its products.
        let operations = 2 * seq * (4 * d_model * d_model + 2 * d_model * d_ff) + 2 * seq * seq * d_model;
        compare(&format!("GPT-2 small, {seq} tokens"), &block, operations as f64, rounds);
    }
}
