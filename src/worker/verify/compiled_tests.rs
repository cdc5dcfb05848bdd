//! Real compiled kernels through the whole verifier.

use super::{Request, samples, verify};
use crate::codegen::cpu::compile;
use kernelforge::{
    host::CpuFacts,
    manifest::spec::{Activation, AttentionSpec, BlockSpec, Dtype, MlpSpec, RowsSpec},
    plan::{
        Plan,
        schedule::{
            AttentionSchedule, Dot, ElementwiseSchedule, MatmulSchedule, MlpSchedule, NormSchedule, PackB, Schedule,
            Split, TileOrder,
        },
        stage::{StageGraph, StageOp},
    },
    protocol::{Gate, GateStatus, Verdict},
};

/// A tiled, packed, vectorised plan: what a proposer makes, with fixed tiles.
fn planned(graph: &StageGraph, cpu: &CpuFacts) -> Plan {
    planned_with(graph, cpu, Dot::Fma)
}

fn planned_with(graph: &StageGraph, cpu: &CpuFacts, dot: Dot) -> Plan {
    let lanes = cpu.lanes;
    let matmul = |k: usize| MatmulSchedule {
        mr: 4,
        nr: 2 * lanes,
        lanes,
        mc: 64,
        nc: 8 * lanes,
        kc: k.min(512).next_multiple_of(4),
        unroll: 4,
        dot,
        order: TileOrder::ColumnsOutside,
        pack_a: false,
        pack_b: PackB::Ahead,
        prefetch: true,
        split: Split::Columns,
    };
    let schedule = |op: &StageOp| match *op {
        StageOp::Matmul { k, .. } => Schedule::Matmul(matmul(k)),
        StageOp::Mlp { d_model, d_ff, .. } => {
            Schedule::Mlp(MlpSchedule { row_block: 64, up: matmul(d_model), down: matmul(d_ff) })
        }
        StageOp::Attention { .. } => {
            let (row_block, mr, nr, unroll, pack_v, softmax_rows) = (16, 4, 2 * lanes, 2, true, 2);
            Schedule::Attention(AttentionSchedule { row_block, mr, nr, lanes, unroll, pack_v, softmax_rows })
        }
        StageOp::LayerNorm { .. } | StageOp::RmsNorm { .. } => Schedule::Norm(NormSchedule { lanes, unroll: 4 }),
        _ => Schedule::Elementwise(ElementwiseSchedule { lanes, unroll: 4 }),
    };
    samples::plan("sample", "cpu", graph.stages.iter().map(|it| (it.name.clone(), schedule(&it.op))).collect())
}

fn judge(block: &BlockSpec, graph: &StageGraph, threads: usize) -> Verdict {
    judge_with(block, graph, threads, Dot::Fma)
}

fn judge_with(block: &BlockSpec, graph: &StageGraph, threads: usize, dot: Dot) -> Verdict {
    let cpu = CpuFacts::detect();
    let plan = planned_with(graph, &cpu, dot);
    let compiled = compile(graph, &plan, &cpu).unwrap_or_else(|it| panic!("{it}\n{}", it.detail));
    let request = Request {
        object: &compiled.object,
        kernel: &compiled.kernel,
        plan: &plan,
        block,
        device: &cpu.clone().into(),
        threads,
        seed: 17,
        corpus: &[],
        generated: true,
    };
    verify(&request).unwrap()
}

#[track_caller]
fn assert_accepted(verdict: &Verdict, block: &BlockSpec) {
    let failed: Vec<_> = verdict.gates.iter().filter(|it| it.status != GateStatus::Passed).collect();
    assert!(verdict.accepted, "{block:?}\n{failed:#?}");
}

#[test]
fn compiled_kernels_of_every_kind_are_accepted() {
    for block in samples::all() {
        for threads in [1, 2] {
            assert_accepted(&judge(&block, &samples::graph(&block), threads), &block);
        }
    }
}

#[test]
fn compiled_kernels_of_every_kind_are_accepted_in_16_bits() {
    for dtype in [Dtype::F16, Dtype::Bf16] {
        for block in samples::all().iter().map(|it| samples::stored(it, dtype)) {
            assert_accepted(&judge(&block, &samples::graph(&block), 1), &block);
        }
    }
}

#[test]
fn compiled_kernels_that_multiply_pairs_are_accepted() {
    if !CpuFacts::detect().isa.iter().any(|it| it == "avx512bf16") {
        return;
    }
    for block in samples::all().iter().map(|it| samples::stored(it, Dtype::Bf16)) {
        for threads in [1, 2] {
            assert_accepted(&judge_with(&block, &samples::graph(&block), threads, Dot::Pairs), &block);
        }
    }
}

#[test]
fn a_plan_beyond_the_cpu_never_runs() {
    let (block, cpu) = (samples::gpt(), CpuFacts::detect());
    let graph = samples::graph(&block);
    let mut plan = planned(&graph, &cpu);
    let compiled = compile(&graph, &plan, &cpu).unwrap();
    for schedule in plan.stages.values_mut() {
        if let Schedule::Norm(it) = schedule {
            it.lanes = 3;
        }
    }
    // An object that is none: loading it would be an error, so accepting nothing shows that it was not loaded.
    let request = Request {
        object: &[],
        kernel: &compiled.kernel,
        plan: &plan,
        block: &block,
        device: &cpu.clone().into(),
        threads: 1,
        seed: 1,
        corpus: &[],
        generated: true,
    };
    let verdict = verify(&request).unwrap();
    assert!(!verdict.accepted && verdict.gates.iter().all(|it| it.gate == Gate::V0Legality), "{verdict:#?}");
    let message = &verdict.gates.iter().find(|it| it.status == GateStatus::Failed).unwrap().message;
    assert!(message.contains("`lanes` = 3"), "{message}");
}

#[test]
fn a_kernel_compiled_from_other_stages_is_rejected_by_their_meaning() {
    let block = samples::gpt();
    let BlockSpec::Transformer { rows, attention, norm, mlp, dtype } = block else { unreachable!() };
    let other = MlpSpec { activation: Activation::GeluTanh, ..mlp };
    let verdict =
        judge(&block, &samples::graph(&BlockSpec::Transformer { rows, attention, norm, mlp: other, dtype }), 1);
    let failed: Vec<Gate> =
        verdict.gates.iter().filter(|it| it.status != GateStatus::Passed).map(|it| it.gate).collect();
    assert_eq!(failed, [Gate::V2Meaning, Gate::V2Meaning]);
}

/// GPT-2 small at 128 tokens.
fn gpt2_small() -> BlockSpec {
    let (d_model, heads) = (768, 12);
    BlockSpec::Transformer {
        rows: RowsSpec { batch: 1, seq: 128 },
        attention: AttentionSpec {
            d_model,
            heads,
            kv_heads: heads,
            head_dim: 64,
            qkv_bias: true,
            out_bias: true,
            causal: true,
            rope_theta: 0.0,
        },
        norm: samples::LAYER_NORM,
        mlp: MlpSpec { d_model, d_ff: 3072, activation: Activation::GeluTanh, gated: false, bias: true },
        dtype: samples::DTYPE,
    }
}

#[test]
#[ignore = "prints how long the verifier takes: a figure for a release build"]
fn verifying_gpt2_small() {
    let block = gpt2_small();
    let graph = samples::graph(&block);
    let cpu = CpuFacts::detect();
    let plan = planned(&graph, &cpu);
    let compiled = compile(&graph, &plan, &cpu).unwrap();
    let request = Request {
        object: &compiled.object,
        kernel: &compiled.kernel,
        plan: &plan,
        block: &block,
        device: &cpu.clone().into(),
        threads: 1,
        seed: 17,
        corpus: &[],
        generated: true,
    };
    let started = std::time::Instant::now();
    let verdict = verify(&request).unwrap();
    println!("{:?}", started.elapsed());
    for it in &verdict.gates {
        println!("{:?} {:?} {}: {:?} {} {:?}", it.gate, it.stage, it.case, it.status, it.checked, it.worst_ratio);
    }
    assert_accepted(&verdict, &block);
}
