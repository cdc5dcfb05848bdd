//! Generated code for tensors of f16 and bf16: every kind of stage against f64 on the same elements, and what the object is made
//! of.

use super::{compile, module};
use crate::{
    device::{cpu::LoadedKernel, guard::Edge, memory::Memory, threads::Threads},
    verify::{
        bounds::{Arithmetic, Precision},
        coverage,
        reference::{self, Detail, Operand},
        samples,
    },
};
use kernelforge::{
    host::CpuFacts,
    manifest::spec::{Activation, BlockSpec, Dtype, MlpSpec, RowsSpec},
    plan::{
        Plan,
        schedule::{
            AttentionSchedule, Dot, ElementwiseSchedule, MatmulSchedule, MlpSchedule, NormSchedule, PackB, Schedule,
            Split, TileOrder,
        },
        stage::{Role, StageGraph, StageOp, TensorId},
    },
    protocol::FailureKind,
};

/// Tiles that leave tails, and depths that are cut into blocks.
fn matmul(lanes: usize, kc: usize, pack_a: bool, pack_b: PackB) -> MatmulSchedule {
    MatmulSchedule {
        mr: 4,
        nr: 2 * lanes,
        lanes,
        mc: 8,
        nc: 4 * lanes,
        kc,
        unroll: 2,
        dot: Dot::Fma,
        order: TileOrder::ColumnsOutside,
        pack_a,
        pack_b,
        prefetch: true,
        split: Split::Columns,
    }
}

fn planned(graph: &StageGraph, matmul: &MatmulSchedule) -> Plan {
    let lanes = matmul.lanes;
    let schedule = |op: &StageOp| match op {
        StageOp::Matmul { .. } => Schedule::Matmul(matmul.clone()),
        StageOp::Mlp { .. } => Schedule::Mlp(MlpSchedule { row_block: 8, up: matmul.clone(), down: matmul.clone() }),
        StageOp::Attention { .. } => Schedule::Attention(AttentionSchedule {
            row_block: 8,
            mr: 4,
            nr: 2 * lanes,
            lanes,
            unroll: 4,
            pack_v: true,
            softmax_rows: 2,
        }),
        StageOp::LayerNorm { .. } | StageOp::RmsNorm { .. } => Schedule::Norm(NormSchedule { lanes, unroll: 2 }),
        _ => Schedule::Elementwise(ElementwiseSchedule { lanes, unroll: 2 }),
    };
    samples::plan(&graph.block, "cpu", graph.stages.iter().map(|it| (it.name.clone(), schedule(&it.op))).collect())
}

/// The types of 16 bits.
const HALVES: [Dtype; 2] = [Dtype::F16, Dtype::Bf16];

fn graph(block: &BlockSpec, dtype: Dtype) -> StageGraph {
    samples::graph(&samples::stored(block, dtype))
}

/// Every stage is the exact result of what it reads, rounded once: off by no more than that rounding and a few of f32. Hidden rows
/// of pairs are rounded too, and then the bound is the verifier's.
#[track_caller]
fn check(graph: &StageGraph, plan: &Plan) {
    let compiled = compile(graph, plan, &CpuFacts::detect()).unwrap_or_else(|it| panic!("{it}\n{}", it.detail));
    let loaded = LoadedKernel::load(&compiled.object, compiled.kernel).unwrap();
    let (mut memory, threads) = (Memory::new(loaded.kernel(), 1, Some(Edge::End)).unwrap(), Threads::new(1).unwrap());
    for (index, tensor) in graph.tensors.iter().enumerate() {
        let mut source = crate::verify::inputs::Source::new(5, index as u64);
        if matches!(tensor.role, Role::Input | Role::Weight) {
            let scale = if tensor.role == Role::Weight { 0.25 } else { 1.0 };
            memory.tensor_mut(TensorId(index)).fill_with(|| scale * source.normal());
        }
    }
    loaded.prepare(&mut memory, &threads);
    memory.poison(f32::NAN);
    for (index, stage) in graph.stages.iter().enumerate() {
        loaded.stage(index, &mut memory, &threads);
        let operands: Vec<Operand> = stage.inputs.iter().map(|&id| Operand::F32(memory.tensor(id))).collect();
        let rows: Vec<usize> = (0..coverage::output_shape(&stage.op).0).collect();
        let storage = graph.tensor(stage.output).dtype;
        let rounds_hidden = matches!(stage.op, StageOp::Mlp { .. }) && loaded.kernel().dot == Dot::Pairs;
        let arithmetic = if rounds_hidden { Arithmetic::cpu_pairs() } else { Arithmetic::cpu() };
        let precision = Precision { arithmetic, storage };
        let reference = reference::evaluate(&stage.op, &operands, &rows, Detail::Bound, precision);
        let exact = reference.value.iter().zip(&reference.bound);
        for (at, (&found, (&exact, &worst))) in memory.tensor(stage.output).iter().zip(exact).enumerate() {
            let error = (f64::from(found) - exact).abs();
            let expected = storage.roundoff() * exact.abs() + 2f64.powi(-25) + 2e-5;
            let bound = if rounds_hidden { worst } else { expected };
            assert!(error <= bound, "{}: element {at}: {found} for {exact}", stage.name);
        }
    }
    assert_eq!(memory.escapes(), []);
    let last = graph.stages.len() - 1;
    let by_stages = memory.tensor(graph.stages[last].output).to_vec();
    memory.poison(2f32.powi(100));
    loaded.block(&mut memory, &threads);
    assert_eq!(memory.tensor(graph.stages[last].output), by_stages, "the block's entry");
    assert_eq!(memory.escapes(), []);
}

#[test]
fn every_kind_of_stage_reads_and_writes_halves() {
    let lanes = CpuFacts::detect().lanes;
    for (block, dtype) in
        [samples::gpt(), samples::llama()].into_iter().flat_map(|it| HALVES.map(|dtype| (it.clone(), dtype)))
    {
        let graph = graph(&block, dtype);
        // One depth block and several, A copied and not, B packed and not.
        for schedule in [
            matmul(lanes, 512, false, PackB::Ahead),
            matmul(lanes, 20, true, PackB::Ahead),
            matmul(lanes, 20, false, PackB::Never),
            matmul(lanes.min(4), 30, true, PackB::Never),
            matmul(lanes, 20, true, PackB::During),
            matmul(lanes.min(4), 512, false, PackB::During),
        ] {
            check(&graph, &planned(&graph, &schedule));
        }
    }
}

#[test]
fn sums_over_depth_blocks_are_not_rounded_in_between() {
    let lanes = CpuFacts::detect().lanes;
    let schedule = |order, split| MatmulSchedule { order, split, ..matmul(lanes, 16, true, PackB::Ahead) };
    for (activation, dtype) in
        [None, Some(Activation::GeluTanh)].into_iter().flat_map(|it| HALVES.map(|dtype| (it, dtype)))
    {
        let block = BlockSpec::Matmul {
            m: 19,
            n: 9 * lanes + 3,
            k: 1000,
            b: Default::default(),
            bias: true,
            activation,
            dtype,
        };
        let graph = graph(&block, dtype);
        for order in [TileOrder::ColumnsOutside, TileOrder::RowsOutside] {
            for split in [Split::Columns, Split::Rows] {
                check(&graph, &planned(&graph, &schedule(order, split)));
            }
        }
    }
    let mlp = MlpSpec { d_model: 70, d_ff: 300, activation: Activation::Silu, gated: true, bias: true };
    let block = BlockSpec::Mlp { rows: RowsSpec { batch: 1, seq: 21 }, mlp, dtype: Dtype::F16 };
    for dtype in HALVES {
        let graph = graph(&block, dtype);
        check(&graph, &planned(&graph, &schedule(TileOrder::ColumnsOutside, Split::Columns)));
    }
}

/// A CPU with the instruction for pairs, which text can be generated for anywhere.
fn with_pairs() -> CpuFacts {
    let mut cpu = CpuFacts { lanes: 16, vector_registers: 32, ..CpuFacts::detect() };
    cpu.isa.push("avx512bf16".to_owned());
    cpu
}

fn pairs(lanes: usize, kc: usize, pack_a: bool) -> MatmulSchedule {
    MatmulSchedule { dot: Dot::Pairs, ..matmul(lanes, kc, pack_a, PackB::Ahead) }
}

/// Depths of pairs and of one element more, A copied and not, in blocks and not, hidden rows of an odd length.
#[test]
fn pairs_of_bf16_are_multiplied_right() {
    let lanes = CpuFacts::detect().lanes;
    if !CpuFacts::detect().isa.iter().any(|it| it == "avx512bf16") {
        return;
    }
    for block in [samples::gpt(), samples::llama()] {
        let graph = graph(&block, Dtype::Bf16);
        for schedule in [pairs(lanes, 512, false), pairs(lanes, 20, true), pairs(8, 30, false), pairs(4, 6, true)] {
            check(&graph, &planned(&graph, &schedule));
        }
    }
    for (k, pack_a) in [1, 2, 3, 31, 33, 64, 97].into_iter().flat_map(|k| [(k, false), (k, true)]) {
        for activation in [None, Some(Activation::GeluTanh)] {
            let block = BlockSpec::Matmul {
                m: 19,
                n: 3 * lanes + 5,
                k,
                b: Default::default(),
                bias: true,
                activation,
                dtype: Dtype::Bf16,
            };
            let graph = graph(&block, Dtype::Bf16);
            for kc in [16, 128] {
                check(&graph, &planned(&graph, &pairs(lanes, kc, pack_a)));
            }
        }
    }
    for (d_ff, gated) in [(299, true), (300, true), (33, false)] {
        let mlp = MlpSpec { d_model: 71, d_ff, activation: Activation::Silu, gated, bias: true };
        let block = BlockSpec::Mlp { rows: RowsSpec { batch: 1, seq: 21 }, mlp, dtype: Dtype::Bf16 };
        let graph = graph(&block, Dtype::Bf16);
        check(&graph, &planned(&graph, &pairs(lanes, 16, false)));
        check(&graph, &planned(&graph, &pairs(lanes, 512, true)));
    }
}

#[test]
fn pairs_change_the_generated_code() {
    let (graph, cpu) = (graph(&samples::llama(), Dtype::Bf16), with_pairs());
    let text = |schedule: &MatmulSchedule| module::generate(&graph, &planned(&graph, schedule), &cpu).unwrap();
    let (one, two) = (text(&matmul(16, 20, false, PackB::Ahead)), text(&pairs(16, 20, false)));
    assert!(!one.0.contains("dpbf16ps") && two.0.contains("llvm.x86.avx512bf16.dpbf16ps.512"));
    assert_eq!((one.1.dot, two.1.dot), (Dot::Fma, Dot::Pairs));
    // Packed pairs are as large as the weights, to within the rows and columns that complete them.
    assert_eq!(one.1.packed.len(), two.1.packed.len());
    for (one, two) in one.1.packed.iter().zip(&two.1.packed) {
        assert!(two.bytes >= one.bytes && two.bytes <= one.bytes * 5 / 4, "{} and {}", one.bytes, two.bytes);
    }
}

#[test]
fn pairs_are_refused_where_they_cannot_be_had() {
    let refusal = |dtype, cpu: &CpuFacts, schedule: &MatmulSchedule| {
        let graph = graph(&samples::llama(), dtype);
        module::generate(&graph, &planned(&graph, schedule), cpu).err().unwrap().message
    };
    let (cpu, legal) = (with_pairs(), pairs(16, 20, false));
    let none = CpuFacts { isa: vec!["avx512f".to_owned()], ..cpu.clone() };
    let message = refusal(Dtype::Bf16, &none, &legal);
    assert!(message.contains("`dot` = pairs needs `avx512bf16`") && message.contains(&cpu.model), "{message}");
    let message = refusal(Dtype::F32, &cpu, &legal);
    assert!(message.contains("`dot` = pairs multiplies bf16: the stage's tensors are f32"), "{message}");
    let message = refusal(Dtype::Bf16, &cpu, &MatmulSchedule { pack_b: PackB::Never, ..legal.clone() });
    assert!(message.contains("`dot` = pairs needs `pack-b` = ahead or during"), "{message}");
    let message = refusal(Dtype::Bf16, &cpu, &MatmulSchedule { kc: 21, ..legal.clone() });
    assert!(message.contains("`kc` = 21 is not a positive multiple of"), "{message}");
    let message = refusal(Dtype::Bf16, &cpu, &pairs(2, 20, false));
    assert!(message.contains("`lanes` = 2 is outside 4..=16"), "{message}");
}

/// Conversions are instructions. A library's functions would be found by the linker in this process and nowhere else, and take
/// ten times as long.
#[test]
fn no_library_converts_halves() {
    let cpu = CpuFacts::detect();
    for dtype in HALVES {
        let graph = graph(&samples::llama(), dtype);
        let plan = planned(&graph, &matmul(cpu.lanes, 20, true, PackB::Ahead));
        let object = compile(&graph, &plan, &cpu).unwrap().object;
        for name in ["__extendhfsf2", "__truncsfhf2", "__gnu_h2f_ieee", "__gnu_f2h_ieee", "__truncsfbf2"] {
            assert!(!object.windows(name.len()).any(|it| it == name.as_bytes()), "the object calls {name}");
        }
    }
}

#[test]
fn a_cpu_that_cannot_convert_halves_is_refused_by_name() {
    let graph_of = |dtype| graph(&samples::gpt(), dtype);
    let (graph, mut cpu) = (graph_of(Dtype::F16), CpuFacts::detect());
    let plan = planned(&graph, &matmul(cpu.lanes, 20, true, PackB::Ahead));
    cpu.arch = "x86_64".to_owned();
    cpu.isa.retain(|it| it != "f16c");
    let refused = module::generate(&graph, &plan, &cpu).err().unwrap();
    assert_eq!(refused.kind, FailureKind::IllegalPlan);
    assert!(refused.message.contains("no F16C instructions") && refused.message.contains(&cpu.model), "{refused}");
    // Blocks of f32 need none, and bf16 is converted by shifts.
    assert!(module::generate(&graph_of(Dtype::F32), &plan, &cpu).is_ok());
    assert!(module::generate(&graph_of(Dtype::Bf16), &plan, &cpu).is_ok());
}
