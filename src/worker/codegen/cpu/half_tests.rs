//! Generated code for tensors of f16: every kind of stage against f64 on the same elements, and what the object is made of.

use super::{compile, module};
use crate::{
    device::{cpu::LoadedKernel, guard::Edge, memory::Memory, threads::Threads},
    verify::{
        coverage,
        reference::{self, Operand},
        samples,
    },
};
use kernelforge::{
    host::CpuFacts,
    manifest::spec::{Activation, BlockSpec, Dtype, MlpSpec, RowsSpec},
    plan::{
        PLAN_VERSION, Plan, Provenance,
        schedule::{
            AttentionSchedule, ElementwiseSchedule, MatmulSchedule, MlpSchedule, NormSchedule, PackB, Schedule, Split,
            TileOrder,
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
    Plan {
        version: PLAN_VERSION,
        block: graph.block.clone(),
        target: "cpu".to_owned(),
        provenance: Provenance::new("test"),
        without: Vec::new(),
        stages: graph.stages.iter().map(|it| (it.name.clone(), schedule(&it.op))).collect(),
        shaders: Default::default(),
    }
}

fn graph(block: &BlockSpec) -> StageGraph {
    samples::graph(&samples::halved(block))
}

/// Every stage is the exact result of what it reads, rounded once: off by no more than that rounding and a few of f32.
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
        let exact = reference::value(&stage.op, &operands, &rows);
        for (at, (&found, &exact)) in memory.tensor(stage.output).iter().zip(&exact).enumerate() {
            let error = (f64::from(found) - exact).abs();
            let bound = Dtype::F16.roundoff() * exact.abs() + 2f64.powi(-25) + 2e-5;
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
    for block in [samples::gpt(), samples::llama()] {
        let graph = graph(&block);
        // One depth block and several, A copied and not, B packed and not.
        for schedule in [
            matmul(lanes, 512, false, PackB::Ahead),
            matmul(lanes, 20, true, PackB::Ahead),
            matmul(lanes, 20, false, PackB::Never),
            matmul(lanes.min(4), 30, true, PackB::Never),
        ] {
            check(&graph, &planned(&graph, &schedule));
        }
    }
}

#[test]
fn sums_over_depth_blocks_are_not_rounded_in_between() {
    let lanes = CpuFacts::detect().lanes;
    let schedule = |order, split| MatmulSchedule { order, split, ..matmul(lanes, 16, true, PackB::Ahead) };
    for activation in [None, Some(Activation::GeluTanh)] {
        let block = BlockSpec::Matmul { m: 19, n: 9 * lanes + 3, k: 1000, bias: true, activation, dtype: Dtype::F16 };
        let graph = graph(&block);
        for order in [TileOrder::ColumnsOutside, TileOrder::RowsOutside] {
            for split in [Split::Columns, Split::Rows] {
                check(&graph, &planned(&graph, &schedule(order, split)));
            }
        }
    }
    let mlp = MlpSpec { d_model: 70, d_ff: 300, activation: Activation::Silu, gated: true, bias: true };
    let block = BlockSpec::Mlp { rows: RowsSpec { batch: 1, seq: 21 }, mlp, dtype: Dtype::F16 };
    let graph = graph(&block);
    check(&graph, &planned(&graph, &schedule(TileOrder::ColumnsOutside, Split::Columns)));
}

/// Conversions are instructions. A library's functions would be found by the linker in this process and nowhere else, and take
/// ten times as long.
#[test]
fn no_library_converts_halves() {
    let graph = graph(&samples::llama());
    let cpu = CpuFacts::detect();
    let plan = planned(&graph, &matmul(cpu.lanes, 20, true, PackB::Ahead));
    let object = compile(&graph, &plan, &cpu).unwrap().object;
    for name in ["__extendhfsf2", "__truncsfhf2", "__gnu_h2f_ieee", "__gnu_f2h_ieee"] {
        assert!(!object.windows(name.len()).any(|it| it == name.as_bytes()), "the object calls {name}");
    }
}

#[test]
fn a_cpu_that_cannot_convert_halves_is_refused_by_name() {
    let graph = graph(&samples::gpt());
    let mut cpu = CpuFacts::detect();
    let plan = planned(&graph, &matmul(cpu.lanes, 20, true, PackB::Ahead));
    cpu.arch = "x86_64".to_owned();
    cpu.isa.retain(|it| it != "f16c");
    let refused = module::generate(&graph, &plan, &cpu).err().unwrap();
    assert_eq!(refused.kind, FailureKind::IllegalPlan);
    assert!(refused.message.contains("no F16C instructions") && refused.message.contains(&cpu.model), "{refused}");
    // Blocks of f32 need none.
    assert!(module::generate(&samples::graph(&samples::gpt()), &plan, &cpu).is_ok());
}

/// Median time of one call, in microseconds.
fn time(block: &BlockSpec, schedule: &MatmulSchedule) -> f64 {
    let graph = samples::graph(block);
    let compiled = compile(&graph, &planned(&graph, schedule), &CpuFacts::detect()).unwrap();
    let loaded = LoadedKernel::load(&compiled.object, compiled.kernel).unwrap();
    let (mut memory, threads) = (Memory::new(loaded.kernel(), 1, None).unwrap(), Threads::new(1).unwrap());
    for index in 0..graph.tensors.len() {
        let mut source = crate::verify::inputs::Source::new(5, index as u64);
        memory.tensor_mut(TensorId(index)).fill_with(|| 0.1 * source.normal());
    }
    loaded.prepare(&mut memory, &threads);
    let mut times: Vec<f64> = (0..60)
        .map(|_| {
            let started = std::time::Instant::now();
            loaded.stage(0, &mut memory, &threads);
            started.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// `cargo test --release --bin kforge-worker half_tests::costs -- --ignored --nocapture`
#[test]
#[ignore = "prints times"]
fn costs() {
    let cpu = CpuFacts::detect();
    let vectors = if cpu.vector_registers >= 32 { 3 } else { 2 };
    for (m, n, k) in
        [(1usize, 4096usize, 4096usize), (1, 3072, 768), (128, 768, 768), (128, 3072, 768), (128, 768, 3072)]
    {
        let mr = if m == 1 {
            1
        } else if vectors == 3 {
            8
        } else {
            6
        };
        for dtype in Dtype::ALL {
            for pack_a in [false, true] {
                let schedule = MatmulSchedule {
                    mr,
                    nr: vectors * cpu.lanes,
                    mc: 128 / mr * mr,
                    nc: n.next_multiple_of(vectors * cpu.lanes),
                    prefetch: m > 1,
                    ..matmul(cpu.lanes, k.min(768), pack_a, PackB::Ahead)
                };
                let block = BlockSpec::Matmul { m, n, k, bias: false, activation: None, dtype };
                let us = time(&block, &schedule);
                let gflops = 2e-3 * (m * n * k) as f64 / us;
                println!("{m}x{n}x{k} {} A copied {pack_a}: {us:.0} us, {gflops:.1} GFLOP/s", dtype.name());
            }
        }
    }
}
