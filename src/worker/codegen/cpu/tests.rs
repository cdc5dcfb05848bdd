//! Generated code against plain f64 loops, over ragged shapes and many schedules; and that every knob changes the code.

use super::compile;
use crate::{
    device::{cpu::LoadedKernel, guard::Edge, memory::Memory, threads::Threads},
    verify::{
        bounds::{ActivationError, U},
        samples,
    },
};
use kernelforge::{
    host::CpuFacts,
    manifest::spec::{Activation, Dtype},
    plan::{
        Plan,
        schedule::{
            AttentionSchedule, Dot, ElementwiseSchedule, MatmulSchedule, MlpSchedule, NormSchedule, PackB, Schedule,
            Split, TileOrder,
        },
        stage::{Factor, Role, Stage, StageGraph, StageOp, Tensor, TensorId},
    },
};
use std::collections::BTreeMap;

/// A graph of the one stage `op` whose inputs have these shapes and roles.
fn single(op: StageOp, inputs: &[(&[usize], Role)], output: &[usize]) -> StageGraph {
    let tensor = |name: String, shape: &[usize], role| Tensor { name, shape: shape.to_vec(), dtype: Dtype::F32, role };
    let mut tensors: Vec<_> =
        inputs.iter().enumerate().map(|(index, (shape, role))| tensor(format!("in{index}"), shape, *role)).collect();
    tensors.push(tensor("y".to_owned(), output, Role::Output));
    let output = TensorId(inputs.len());
    let inputs = (0..inputs.len()).map(TensorId).collect();
    let stage = Stage { name: "stage".to_owned(), op, inputs, output, scheduled: true };
    StageGraph { block: "test".to_owned(), tensors, stages: vec![stage] }
}

fn plan(schedule: Schedule) -> Plan {
    samples::plan("test", "cpu", BTreeMap::from([("stage".to_owned(), schedule)]))
}

/// Numbers in [-1, 1), the same for the same seed.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Compiles and runs the stage on seeded inputs, poisoned beforehand; returns the inputs and the output, of the stage entry and
/// of the block entry alike.
fn run(graph: &StageGraph, schedule: Schedule, threads: usize) -> (Vec<Vec<f32>>, Vec<f32>) {
    let compiled = compile(graph, &plan(schedule.clone()), &CpuFacts::detect())
        .unwrap_or_else(|it| panic!("{schedule:?}: {it}\n{}", it.detail));
    let loaded =
        LoadedKernel::load(&compiled.object, compiled.kernel).unwrap_or_else(|it| panic!("{it}\n{}", it.detail));
    let mut memory = Memory::new(loaded.kernel(), threads, None).unwrap();
    let threads = Threads::new(threads).unwrap();
    let inputs: Vec<_> =
        (0..graph.tensors.len() - 1).map(|it| numbers(graph.tensors[it].len(), it as u64 + 1)).collect();
    for (index, values) in inputs.iter().enumerate() {
        memory.tensor_mut(TensorId(index)).copy_from_slice(values);
    }
    loaded.prepare(&mut memory, &threads);
    memory.poison(f32::NAN);
    loaded.stage(0, &mut memory, &threads);
    let output = memory.tensor(TensorId(inputs.len())).to_vec();
    memory.poison(2f32.powi(100));
    loaded.block(&mut memory, &threads);
    assert_eq!(output, memory.tensor(TensorId(inputs.len())), "the block entry computes what the stage entry does");
    (inputs, output)
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f64], tolerance: f64, what: impl std::fmt::Debug) {
    assert_eq!(found.len(), expected.len());
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs();
        assert!(error <= tolerance * (1.0 + expected.abs()), "{what:?}: element {index}: {found} for {expected}");
    }
}

fn product(a: &[f64], b: &[f64], (m, n, k): (usize, usize, usize)) -> Vec<f64> {
    (0..m * n).map(|at| (0..k).map(|p| a[at / n * k + p] * b[p * n + at % n]).sum()).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&it| f64::from(it)).collect()
}

fn erf(x: f64) -> f64 {
    // Maclaurin series up to 3, the continued fraction of erfc beyond.
    if x.abs() < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..80 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let z = x.abs();
        let fraction = (1..60).rev().fold(z, |tail, n| z + f64::from(n) / 2.0 / tail);
        (1.0 - (-z * z).exp() / (fraction * std::f64::consts::PI.sqrt())).copysign(x)
    }
}

fn activate(function: Option<Activation>, x: f64) -> f64 {
    match function {
        None => x,
        Some(Activation::Relu) => x.max(0.0),
        Some(Activation::Silu) => x / (1.0 + (-x).exp()),
        Some(Activation::Gelu) => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Some(Activation::GeluTanh) => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }
    }
}

fn lanes() -> usize {
    CpuFacts::detect().lanes
}

fn base() -> MatmulSchedule {
    let lanes = lanes();
    MatmulSchedule {
        mr: 4,
        nr: 2 * lanes,
        lanes,
        mc: 8,
        nc: 4 * lanes,
        kc: 16,
        unroll: 2,
        dot: Dot::Fma,
        order: TileOrder::ColumnsOutside,
        pack_a: false,
        pack_b: PackB::Ahead,
        prefetch: true,
        split: Split::Columns,
    }
}

fn matmul_schedules() -> Vec<MatmulSchedule> {
    let base = base();
    let lanes = base.lanes;
    vec![
        base.clone(),
        MatmulSchedule { pack_a: true, ..base.clone() },
        MatmulSchedule { pack_b: PackB::Never, order: TileOrder::RowsOutside, ..base.clone() },
        MatmulSchedule { pack_b: PackB::During, nc: 6 * lanes, kc: 18, ..base.clone() },
        MatmulSchedule { pack_a: true, pack_b: PackB::During, order: TileOrder::RowsOutside, kc: 7, ..base.clone() },
        MatmulSchedule { pack_a: true, pack_b: PackB::Never, split: Split::Rows, kc: 7, unroll: 3, ..base.clone() },
        MatmulSchedule { mr: 1, mc: 1, nr: lanes, nc: lanes, kc: 4096, unroll: 1, ..base.clone() },
        MatmulSchedule { lanes: lanes / 2, mr: 3, mc: 6, nr: lanes / 2 * 3, nc: lanes / 2 * 3, kc: 10, ..base },
    ]
}

fn matmul(m: usize, n: usize, k: usize, bias: bool, activation: Option<Activation>, residual: bool) -> StageGraph {
    let mut inputs: Vec<(&[usize], Role)> = Vec::new();
    let (a, b, row, c) = ([m, k], [k, n], [n], [m, n]);
    inputs.extend([(&a[..], Role::Input), (&b[..], Role::Weight)]);
    inputs.extend(bias.then_some((&row[..], Role::Weight)));
    inputs.extend(residual.then_some((&c[..], Role::Input)));
    single(StageOp::Matmul { m, n, k, bias, activation, residual }, &inputs, &c)
}

#[test]
fn matmul_is_right_for_ragged_shapes_under_every_schedule() {
    let shapes = [(1, 1, 1), (5, 37, 19), (8, 64, 32), (7, 16, 33), (1, 100, 50), (13, 31, 64)];
    for (index, schedule) in matmul_schedules().into_iter().enumerate() {
        for (m, n, k) in shapes {
            let (bias, residual) = (index % 2 == 0, m % 2 == 1);
            let activation = [None, Some(Activation::Gelu), Some(Activation::Silu)][(m + index) % 3];
            let graph = matmul(m, n, k, bias, activation, residual);
            let (inputs, found) = run(&graph, Schedule::Matmul(schedule.clone()), 1 + index % 2);
            let mut expected = product(&wide(&inputs[0]), &wide(&inputs[1]), (m, n, k));
            for (at, value) in expected.iter_mut().enumerate() {
                let bias = if bias { f64::from(inputs[2][at % n]) } else { 0.0 };
                let residual = if residual { f64::from(inputs[inputs.len() - 1][at]) } else { 0.0 };
                *value = activate(activation, *value + bias) + residual;
            }
            assert_close(&found, &expected, 2e-6 * (k as f64).sqrt(), (m, n, k, &schedule));
        }
    }
}

#[test]
fn the_fused_mlp_is_right_gated_or_not_and_in_row_blocks() {
    let (rows, d_model, d_ff) = (11, 24, 40);
    for (gated, bias, residual, row_block) in [(false, true, true, 4), (true, false, false, 8), (true, true, true, 12)]
    {
        let (x, up, row_up, down, row_down) = ([rows, d_model], [d_model, d_ff], [d_ff], [d_ff, d_model], [d_model]);
        let mut inputs: Vec<(&[usize], Role)> = vec![(&x, Role::Input)];
        for (weight, row) in [(&up, &row_up), (&up, &row_up), (&down, &row_down)].into_iter().skip(usize::from(!gated))
        {
            inputs.push((&weight[..], Role::Weight));
            inputs.extend(bias.then_some((&row[..], Role::Weight)));
        }
        inputs.extend(residual.then_some((&x[..], Role::Input)));
        let activation = Activation::GeluTanh;
        let op = StageOp::Mlp { rows, d_model, d_ff, activation, gated, bias, residual };
        let schedule = MlpSchedule { row_block, up: base(), down: MatmulSchedule { pack_a: true, ..base() } };
        let (values, found) = run(&single(op, &inputs, &x), Schedule::Mlp(schedule), 2);

        let mut rest = values[1..].iter();
        let mut linear = |a: &[f64], n: usize, k: usize| {
            let mut y = product(a, &wide(rest.next().unwrap()), (rows, n, k));
            if bias {
                let bias = rest.next().unwrap();
                y.iter_mut().enumerate().for_each(|(at, it)| *it += f64::from(bias[at % n]));
            }
            y
        };
        let x = wide(&values[0]);
        let gate = gated.then(|| linear(&x, d_ff, d_model));
        let up = linear(&x, d_ff, d_model);
        let hidden: Vec<_> = match gate {
            Some(gate) => gate.iter().zip(up).map(|(&g, u)| activate(Some(activation), g) * u).collect(),
            None => up.into_iter().map(|it| activate(Some(activation), it)).collect(),
        };
        let mut expected = linear(&hidden, d_model, d_ff);
        if residual {
            expected.iter_mut().zip(values.last().unwrap()).for_each(|(it, &r)| *it += f64::from(r));
        }
        assert_close(&found, &expected, 1e-5, (gated, bias, residual, row_block));
    }
}

#[test]
fn attention_is_right_for_ragged_shapes() {
    let lanes = lanes();
    let shapes = [(1, 1, 1, 1, 8), (1, 7, 2, 1, 20), (2, 33, 4, 2, 16), (1, 50, 2, 2, 40), (1, 16, 1, 1, 64)];
    let base = AttentionSchedule { row_block: 1, mr: 1, nr: lanes, lanes, unroll: 1, pack_v: false, softmax_rows: 1 };
    let schedules = [
        base.clone(),
        AttentionSchedule {
            row_block: 8,
            mr: 4,
            nr: 2 * lanes,
            unroll: 4,
            pack_v: true,
            softmax_rows: 3,
            ..base.clone()
        },
        AttentionSchedule { row_block: 6, mr: 3, lanes: lanes / 2, unroll: 3, softmax_rows: 3, ..base.clone() },
        AttentionSchedule { row_block: 20, mr: 10, pack_v: true, softmax_rows: 2, ..base },
    ];
    for (batch, seq, heads, kv_heads, head_dim) in shapes {
        for schedule in &schedules {
            for (causal, sign) in [(false, 1.0), (true, 1.0), (true, -1.0)] {
                let scale = sign / (head_dim as f64).sqrt();
                let op = StageOp::Attention { batch, seq, heads, kv_heads, head_dim, causal, scale };
                let (q, kv) = ([batch * seq, heads * head_dim], [batch * seq, kv_heads * head_dim]);
                let graph = single(op, &[(&q, Role::Input), (&kv, Role::Input), (&kv, Role::Input)], &q);
                let (inputs, found) = run(&graph, Schedule::Attention(schedule.clone()), 2);
                let at = |tensor: usize, heads: usize, token: usize, head: usize, d: usize| {
                    f64::from(inputs[tensor][(token * heads + head) * head_dim + d])
                };
                let mut expected = vec![0.0; found.len()];
                for (token, head) in (0..batch * seq).flat_map(|token| (0..heads).map(move |head| (token, head))) {
                    let (first, kv) = (token / seq * seq, head / (heads / kv_heads));
                    let keys = if causal { token % seq + 1 } else { seq };
                    let weights: Vec<f64> = (0..keys)
                        .map(|j| {
                            (0..head_dim)
                                .map(|d| at(0, heads, token, head, d) * at(1, kv_heads, first + j, kv, d))
                                .sum()
                        })
                        .map(|s: f64| (s * scale).exp())
                        .collect();
                    let sum: f64 = weights.iter().sum();
                    for d in 0..head_dim {
                        let total: f64 = (0..keys).map(|j| weights[j] * at(2, kv_heads, first + j, kv, d)).sum();
                        expected[(token * heads + head) * head_dim + d] = total / sum;
                    }
                }
                assert_close(&found, &expected, 2e-6, (batch, seq, heads, kv_heads, head_dim, causal, sign, schedule));
            }
        }
    }
}

#[test]
fn norms_are_right_for_ragged_widths() {
    for width in [1, 5, 16, 40, 100, 131] {
        for (lanes, unroll) in [(1, 1), (lanes(), 1), (lanes(), 4), (lanes() / 2, 2)] {
            for centred in [true, false] {
                let (rows, eps) = (5, 1e-5);
                let op = if centred {
                    StageOp::LayerNorm { rows, width, eps }
                } else {
                    StageOp::RmsNorm { rows, width, eps }
                };
                let (x, row) = ([rows, width], [width]);
                let all: [(&[usize], Role); 3] = [(&x, Role::Input), (&row, Role::Weight), (&row, Role::Weight)];
                let graph = single(op, &all[..if centred { 3 } else { 2 }], &x);
                let (inputs, found) = run(&graph, Schedule::Norm(NormSchedule { lanes, unroll }), 2);
                let mut expected = Vec::new();
                for row in wide(&inputs[0]).chunks(width) {
                    let mean = if centred { row.iter().sum::<f64>() / width as f64 } else { 0.0 };
                    let variance = row.iter().map(|it| (it - mean).powi(2)).sum::<f64>() / width as f64;
                    for (column, value) in row.iter().enumerate() {
                        let bias = if centred { f64::from(inputs[2][column]) } else { 0.0 };
                        expected.push((value - mean) / (variance + eps).sqrt() * f64::from(inputs[1][column]) + bias);
                    }
                }
                assert_close(&found, &expected, 2e-6, (width, lanes, unroll, centred));
            }
        }
    }
}

#[test]
fn elementwise_stages_are_right_with_tails() {
    let (rows, width) = (3, 29);
    let shape = [rows, width];
    let two: [(&[usize], Role); 2] = [(&shape, Role::Input), (&shape, Role::Input)];
    type Exact = fn(f64, f64) -> f64;
    let cases: [(StageOp, usize, Exact); 5] = [
        (StageOp::Add { rows, width }, 2, |a, b| a + b),
        (StageOp::Mul { rows, width }, 2, |a, b| a * b),
        (StageOp::Scale { rows, width, factor: Factor::Value(0.125) }, 1, |a, _| a * 0.125),
        (StageOp::Scale { rows, width, factor: Factor::InverseSqrt(64.0) }, 1, |a, _| a * 0.125),
        (StageOp::Activation { rows, width, function: Activation::Relu }, 1, |a, _| a.max(0.0)),
    ];
    for (op, operands, function) in cases {
        for unroll in [1, 3] {
            let graph = single(op.clone(), &two[..operands], &shape);
            let schedule = Schedule::Elementwise(ElementwiseSchedule { lanes: lanes(), unroll });
            let (inputs, found) = run(&graph, schedule, 2);
            let b = |at: usize| if operands == 2 { f64::from(inputs[1][at]) } else { 0.0 };
            let expected: Vec<_> = (0..rows * width).map(|at| function(f64::from(inputs[0][at]), b(at))).collect();
            assert_close(&found, &expected, 1e-6, &op);
        }
    }
}

#[test]
fn rope_turns_pairs_half_a_head_apart() {
    for head_dim in [2, 10, 64] {
        let (batch, seq, heads, half) = (2, 5, 3, head_dim / 2);
        let (x, table) = ([batch * seq, heads * head_dim], [seq, half]);
        let op = StageOp::Rope { batch, seq, heads, head_dim };
        let graph = single(op, &[(&x, Role::Input), (&table, Role::Weight), (&table, Role::Weight)], &x);
        let (inputs, found) = run(&graph, Schedule::Elementwise(ElementwiseSchedule { lanes: lanes(), unroll: 2 }), 2);
        let expected: Vec<_> = (0..found.len())
            .map(|at| {
                let (token, d) = (at / (heads * head_dim), at % head_dim);
                let entry = token % seq * half + d % half;
                let (cos, sin) = (f64::from(inputs[1][entry]), f64::from(inputs[2][entry]));
                let value = |at: usize| f64::from(inputs[0][at]);
                if d < half {
                    value(at) * cos - value(at + half) * sin
                } else {
                    value(at) * cos + value(at - half) * sin
                }
            })
            .collect();
        assert_close(&found, &expected, 1e-6, head_dim);
    }
}

/// The verifier's bound of an activation's own error is what the generated code keeps, over the whole range.
#[test]
fn activations_keep_the_verifiers_error_bound_over_the_whole_range() {
    let width = 1 << 14;
    for function in Activation::ALL {
        let op = StageOp::Activation { rows: 1, width, function };
        let shape = [1, width];
        let graph = single(op, &[(&shape, Role::Input)], &shape);
        let schedule = Schedule::Elementwise(ElementwiseSchedule { lanes: lanes(), unroll: 1 });
        let compiled = compile(&graph, &plan(schedule), &CpuFacts::detect()).unwrap();
        let loaded = LoadedKernel::load(&compiled.object, compiled.kernel).unwrap();
        let (mut memory, threads) =
            (Memory::new(loaded.kernel(), 1, Some(Edge::End)).unwrap(), Threads::new(1).unwrap());
        let promised = ActivationError::of(function);
        let mut worst = 0f64;
        for scale in [0.01f32, 1.0, 6.0, 30.0, 200.0] {
            memory.tensor_mut(TensorId(0)).iter_mut().zip(numbers(width, 7)).for_each(|(x, it)| *x = it * scale);
            loaded.stage(0, &mut memory, &threads);
            for (&x, &y) in memory.tensor(TensorId(0)).iter().zip(memory.tensor(TensorId(1))) {
                let (x, exact) = (f64::from(x), activate(Some(function), f64::from(x)));
                let error = (f64::from(y) - exact).abs();
                // The verifier adds the rounding of the stored result.
                let bound = promised.at(x, exact) + U * exact.abs();
                assert!(error <= bound, "{}({x}) = {y}, exactly {exact}: {error:e} is over {bound:e}", function.name());
                worst = worst.max(error / bound.max(f64::MIN_POSITIVE));
            }
        }
        println!("{}: {worst:.2} of its bound", function.name());
        assert!(function == Activation::Relu || worst > 0.05, "the bound of {} says nothing", function.name());
    }
}

/// The text generated for `graph`, for each schedule in turn: all must differ.
fn assert_all_differ(graph: &StageGraph, schedules: &[Schedule]) {
    // Nothing runs: the tiles are those of a CPU with 32 registers, whatever this one has.
    let cpu = CpuFacts { vector_registers: 32, ..CpuFacts::detect() };
    let text = |it: &Schedule| super::module::generate(graph, &plan(it.clone()), &cpu).unwrap().0;
    let texts: Vec<_> = schedules.iter().map(text).collect();
    for (first, second) in (0..texts.len()).flat_map(|a| (0..a).map(move |b| (b, a))) {
        assert_ne!(texts[first], texts[second], "{:?} and {:?}", schedules[first], schedules[second]);
    }
}

#[test]
fn every_matmul_knob_changes_the_generated_code() {
    let graph = matmul(64, 256, 96, true, None, false);
    let base = MatmulSchedule { nc: 64, nr: 16, lanes: 8.min(lanes()), kc: 32, mc: 16, ..base() };
    let variants = [
        base.clone(),
        MatmulSchedule { mr: 2, ..base.clone() },
        MatmulSchedule { nr: 8, ..base.clone() },
        MatmulSchedule { lanes: 4, ..base.clone() },
        MatmulSchedule { mc: 32, ..base.clone() },
        MatmulSchedule { nc: 128, ..base.clone() },
        MatmulSchedule { kc: 48, ..base.clone() },
        MatmulSchedule { unroll: 4, ..base.clone() },
        MatmulSchedule { order: TileOrder::RowsOutside, ..base.clone() },
        MatmulSchedule { pack_a: true, ..base.clone() },
        MatmulSchedule { pack_b: PackB::Never, ..base.clone() },
        MatmulSchedule { pack_b: PackB::During, ..base.clone() },
        MatmulSchedule { pack_b: PackB::During, prefetch: false, ..base.clone() },
        MatmulSchedule { pack_b: PackB::During, nc: 128, ..base.clone() },
        MatmulSchedule { prefetch: false, ..base.clone() },
        MatmulSchedule { split: Split::Rows, ..base.clone() },
    ];
    assert_all_differ(&graph, &variants.map(Schedule::Matmul));
}

#[test]
fn every_attention_knob_changes_the_generated_code() {
    let op = StageOp::Attention { batch: 1, seq: 64, heads: 2, kv_heads: 1, head_dim: 32, causal: true, scale: 0.5 };
    let (q, kv) = ([64, 64], [64, 32]);
    let graph = single(op, &[(&q, Role::Input), (&kv, Role::Input), (&kv, Role::Input)], &q);
    let base = AttentionSchedule { row_block: 8, mr: 4, nr: 8, lanes: 4, unroll: 1, pack_v: false, softmax_rows: 1 };
    let variants = [
        base.clone(),
        AttentionSchedule { row_block: 16, ..base.clone() },
        AttentionSchedule { mr: 2, ..base.clone() },
        AttentionSchedule { nr: 4, ..base.clone() },
        AttentionSchedule { lanes: 2, ..base.clone() },
        AttentionSchedule { unroll: 2, ..base.clone() },
        AttentionSchedule { pack_v: true, ..base.clone() },
        AttentionSchedule { softmax_rows: 2, ..base },
    ];
    assert_all_differ(&graph, &variants.map(Schedule::Attention));
}

#[test]
fn every_knob_of_norms_elementwise_stages_and_mlps_changes_the_generated_code() {
    let shape = [8, 64];
    let norm = |lanes, unroll| Schedule::Norm(NormSchedule { lanes, unroll });
    let graph = single(
        StageOp::RmsNorm { rows: 8, width: 64, eps: 1e-5 },
        &[(&shape, Role::Input), (&[64], Role::Weight)],
        &shape,
    );
    assert_all_differ(&graph, &[norm(4, 1), norm(2, 1), norm(1, 1), norm(4, 2)]);

    let map = |lanes, unroll| Schedule::Elementwise(ElementwiseSchedule { lanes, unroll });
    let graph = single(StageOp::Add { rows: 8, width: 64 }, &[(&shape, Role::Input), (&shape, Role::Input)], &shape);
    assert_all_differ(&graph, &[map(4, 1), map(2, 1), map(4, 2)]);

    let activation = Activation::Relu;
    let op = StageOp::Mlp { rows: 8, d_model: 64, d_ff: 64, activation, gated: false, bias: false, residual: false };
    let graph = single(op, &[(&shape, Role::Input), (&[64, 64], Role::Weight), (&[64, 64], Role::Weight)], &shape);
    let mlp = |row_block, up: &MatmulSchedule, down: &MatmulSchedule| {
        Schedule::Mlp(MlpSchedule { row_block, up: up.clone(), down: down.clone() })
    };
    let (base, other) = (base(), MatmulSchedule { unroll: 4, ..base() });
    assert_all_differ(
        &graph,
        &[mlp(4, &base, &base), mlp(8, &base, &base), mlp(4, &other, &base), mlp(4, &base, &other)],
    );
}
