//! The analytic proposer: schedules from shapes, vector registers and cache sizes alone, without a trial.
//!
//! The register tile is the one of a few that computes the whole product in the fewest cycles, tails counted: 8x48 or 12x32 with
//! 32 registers of 16 lanes, 4x24 or 6x16 with 16 of 8. Depth and rows of a cache block keep B's panel and A's block in L2
//! together, depth first. Weights are packed ahead. bf16 is multiplied in pairs where that is faster.

use crate::{
    host::CpuFacts,
    manifest::spec::Dtype,
    plan::{
        schedule::{
            AttentionSchedule, Dot, ElementwiseSchedule, MatmulSchedule, MlpSchedule, NormSchedule, PackB, Schedule,
            Split, TileOrder,
        },
        stage::{Role, Stage, StageGraph, StageOp},
    },
};
use std::collections::BTreeMap;

/// Most rows of A in a cache block: with a depth of 1024, half of a 1 MiB L2.
const BLOCK_ROWS: usize = 128;
/// Most depth of a cache block. Depth matters more than rows: with 512 KiB of L2, 512x512x1024 is 9 % faster in blocks of 66 rows and
/// all its depth than in blocks of 126 rows and half of it, 128x3072x768 5 % faster in one block than in two of 384.
const DEEPEST: usize = 1024;
/// Multiply-adds in the body of the depth loop, which hide the loop's own instructions.
const BODY: usize = 48;
/// Of products of many rows on 16 registers, whose steps have half the multiply-adds: 8 steps of 4x24. Than with 4 steps 128x768x3072
/// is 6 % faster, 512x512x1024 and 100x1000x512 3 %, 128x3072x768 2 %; 1024x1024x1024 is as fast (Zen 3, interleaved on a busy machine).
const LONG_BODY: usize = 96;
/// Panels of B up to which A is read as it lies.
const COPIED_PANELS: usize = 32;
/// Panels that a block of columns has at least: its rows of A come from L2 once for each block.
const FEWEST_PANELS: usize = 4;
/// Cycles from one fused multiply-add to the next that needs its result: 4 on every x86-64 and AArch64 core of the last years.
const LATENCY: f64 = 4.0;
/// Rows of a softmax at a time, so that one row's waiting is filled by the others (512 tokens, 12 heads of 64, AVX2: one at a time 2 %
/// slower).
const SOFTMAX_ROWS: usize = 6;
/// Cycles of one step of the depth loop that nothing hides.
const STEP: f64 = 0.25;

/// A schedule for every stage that a pass asked one for, by stage name.
pub fn propose(graph: &StageGraph, cpu: &CpuFacts) -> BTreeMap<String, Schedule> {
    let scheduled = graph.stages.iter().filter(|it| it.scheduled);
    let of = |stage: &Stage| {
        let weight = stage.inputs.get(1).is_none_or(|it| graph.tensor(*it).role == Role::Weight);
        schedule(&stage.op, graph.tensor(stage.output).dtype, weight, cpu)
    };
    scheduled.map(|it| (it.name.clone(), of(it))).collect()
}

/// `weight`: the B of a product is one, and not given with every call.
fn schedule(op: &StageOp, dtype: Dtype, weight: bool, cpu: &CpuFacts) -> Schedule {
    let lanes = cpu.lanes;
    match *op {
        StageOp::Matmul { m, n, k, .. } => Schedule::Matmul(matmul((m, n, k), dtype, weight, cpu)),
        StageOp::Mlp { rows, d_model, d_ff, gated, .. } => {
            // Both products walk the same row tiles.
            let (mr, vectors) = tile(rows, &[d_ff, d_model], cpu);
            let up = product((rows, d_ff, d_model), (mr, vectors[0]), dtype, cpu);
            // The kernel pads its hidden rows, which are f32, or pairs of bf16 that nobody widens.
            let down = MatmulSchedule { pack_a: false, ..product((rows, d_model, d_ff), (mr, vectors[1]), dtype, cpu) };
            // Every row block reads all weights again, so it is as large as a quarter of the last cache lets the hidden rows be.
            let row_bytes = d_ff * 4 * if gated { 2 } else { 1 };
            let fitting = (cpu.l3.max(cpu.l2) / 4 / row_bytes).max(BLOCK_ROWS);
            let row_block = rows.min(fitting).next_multiple_of(up.mr);
            Schedule::Mlp(MlpSchedule { row_block, up, down })
        }
        StageOp::Attention { seq, head_dim, .. } => Schedule::Attention(attention(seq, head_dim, cpu)),
        StageOp::LayerNorm { width, .. } | StageOp::RmsNorm { width, .. } => {
            Schedule::Norm(NormSchedule { lanes, unroll: (width / lanes).clamp(1, 4) })
        }
        StageOp::Rope { .. }
        | StageOp::Activation { .. }
        | StageOp::Add { .. }
        | StageOp::Mul { .. }
        | StageOp::Scale { .. } => Schedule::Elementwise(ElementwiseSchedule { lanes, unroll: 4 }),
    }
}

/// Rows of the register tile, and its vectors for each of the products of `m` rows and these many columns.
///
/// Of the tiles that were measured to be good, and narrower ones, the one with the fewest cycles; where there are few rows also
/// such as have just these rows.
fn tile(m: usize, columns: &[usize], cpu: &CpuFacts) -> (usize, Vec<usize>) {
    let good: &[(usize, usize)] = if cpu.vector_registers >= 32 { &[(8, 3), (12, 2)] } else { &[(4, 3), (6, 2)] };
    let few = (1..=m.min(12)).rev().map(|rows| (rows, ((cpu.vector_registers - 1) / (rows + 1)).clamp(1, 4)));
    let mut best = (f64::INFINITY, 1, vec![1; columns.len()]);
    for (rows, widest) in good.iter().copied().chain(few.filter(|it| m < 12 && it.0 * it.1 < cpu.vector_registers)) {
        if rows > m {
            continue;
        }
        let (mut sum, mut chosen) = (0.0, Vec::new());
        for &n in columns {
            let vectors = n.div_ceil(cpu.lanes);
            let costs = (1..=widest.min(vectors)).rev().map(|width| (cycles((m, vectors), (rows, width)), width));
            let Some((cost, width)) = costs.min_by(|a, b| a.0.total_cmp(&b.0)) else { continue };
            sum += cost;
            chosen.push(width);
        }
        if sum < best.0 {
            best = (sum, rows, chosen);
        }
    }
    (best.1, best.2)
}

/// Cycles of one step of depth of a product of `m` rows and so many vectors of columns, in tiles of `rows` by `width` vectors.
///
/// A tile is bound by its multiply-adds, two a cycle; by its loads, two a cycle; or, with few accumulators, by the latency of a
/// multiply-add. That is what makes tails dear.
fn cycles((m, vectors): (usize, usize), (rows, width): (usize, usize)) -> f64 {
    let step = |rows: usize, width: usize| match rows * width {
        0 => 0.0,
        sums => (sums as f64 / 2.0).max((rows + width) as f64 / 2.0).max(LATENCY) + STEP,
    };
    let row = |rows: usize| (vectors / width) as f64 * step(rows, width) + step(rows, vectors % width);
    (m / rows) as f64 * row(rows) + row(m % rows)
}

/// Steps of the depth loop to write out with so many accumulators: 2 with 24, 4 with 12 (128x3072x768 with AVX2: 96 GFLOP/s, with 2
/// steps 95, with one 89).
fn unroll(accumulators: usize) -> usize {
    1 << (BODY / accumulators).clamp(1, 4).ilog2()
}

/// As [`unroll`], of a product: a long body where many rows share a panel. Where one row tile waits for its weights there is nothing
/// to hide.
fn unroll_product(m: usize, mr: usize, vectors: usize, cpu: &CpuFacts) -> usize {
    if m > mr && cpu.vector_registers < 32 {
        1 << (LONG_BODY / (mr * vectors)).clamp(1, 8).ilog2()
    } else {
        unroll(mr * vectors)
    }
}

fn matmul((m, n, k): (usize, usize, usize), dtype: Dtype, weight: bool, cpu: &CpuFacts) -> MatmulSchedule {
    let (mr, vectors) = tile(m, &[n], cpu);
    let schedule = product((m, n, k), (mr, vectors[0]), dtype, cpu);
    if weight { schedule } else { packed_during((m, n, k), schedule, cpu) }
}

/// Rows from which on elements of bf16 are better widened once, into a copy, than for every row tile: with AVX2 a product of
/// Mx3072x768 takes 28.8 ms packed ahead and 26.1 packed by the kernel with 512 rows, 7.2 and 6.9 with 128, but 4.0 and 4.2 with 64,
/// 1.8 and 2.1 with 32. f16, which one instruction widens, is better packed ahead: 25.2 and 26.4 with 512 rows, 6.2 and 6.9 with 128.
const WIDENED_ROWS: usize = 128;

/// The schedule with B packed by the kernel, in blocks of L2's size: the first tiles find them there, and the rest in the last cache.
/// 128x3072x768 takes 7.0 ms so, in blocks of all columns 7.8, packed ahead 6.4, with a prepare entry before it 7.9. Where A is more
/// than L2 holds, and so comes from the last cache again for every block, they are thrice as large: 2048^3 takes 190 ms, in one
/// block 202, packed ahead 189, with a prepare entry 193.
fn packed_during((m, n, k): (usize, usize, usize), s: MatmulSchedule, cpu: &CpuFacts) -> MatmulSchedule {
    if m <= s.mr {
        // Every panel is read once: a copy would be one more pass over B.
        return MatmulSchedule { pack_b: PackB::Never, dot: Dot::Fma, nc: n.next_multiple_of(s.nr), ..s };
    }
    let steps = s.kc.min(k.next_multiple_of(s.unroll)).div_ceil(s.dot.terms());
    let large = m * steps * 4 > cpu.l2;
    let columns = cpu.l2 * if large { 3 } else { 1 } / 4 / steps;
    let nc = columns.min(n.next_multiple_of(s.nr)) / s.nr * s.nr;
    MatmulSchedule { pack_b: PackB::During, nc: nc.max(s.nr), ..s }
}

/// Columns of a block. Where depth is cut, each block's sums are read and written again for every part of it, and so a quarter of L2 is
/// what they take: 128x768x3072 is 2 to 3 % faster in blocks of 192 columns than in one, and so is the second product of an MLP of 128
/// rows. Sums of many rows do not fit however narrow their blocks are.
fn columns((m, n, k): (usize, usize, usize), (kc, nr): (usize, usize), cpu: &CpuFacts) -> usize {
    let fitting = cpu.l2 / 4 / 4 / m;
    if k <= kc || fitting < FEWEST_PANELS * nr {
        return n.next_multiple_of(nr);
    }
    n.div_ceil(n.div_ceil(fitting / nr * nr)).next_multiple_of(nr)
}

fn product(
    (m, n, k): (usize, usize, usize),
    (mr, vectors): (usize, usize),
    dtype: Dtype,
    cpu: &CpuFacts,
) -> MatmulSchedule {
    let nr = vectors * cpu.lanes;
    let dot = dot(m, dtype, cpu);
    let pairs = dot == Dot::Pairs;
    let unroll = unroll_product(m, mr, vectors, cpu);
    let kc = if m <= mr {
        // One row tile reads every panel once: blocks would only break the stream of weights (1x768x3072 and back: 3 % slower).
        k.min(cpu.l2.max(cpu.l3) / 4 / mr * dot.terms()).next_multiple_of(dot.terms())
    } else {
        // Equal blocks, so that none is short. A pair takes the place of an f32.
        k.div_ceil(k.div_ceil(DEEPEST * dot.terms())).next_multiple_of(unroll * dot.terms())
    };
    let steps = kc.div_ceil(dot.terms());
    // A's block takes three quarters of L2; equal blocks here too. 1024x1024x1024 is 1 to 3 % faster in blocks of 64 or 88 rows, which are
    // 256 and 352 KiB of 512, than in blocks of 108 (432 KiB).
    let fitting = (cpu.l2 / 4 * 3 / 4 / steps).clamp(4 * mr, BLOCK_ROWS.max(4 * mr));
    let mc = m.div_ceil(m.div_ceil(fitting)).next_multiple_of(mr);
    // Rows a multiple of 4 KiB apart share a set of L1, which a tile's rows then fight over. A copy pays where many panels read it:
    // with 43 of them (1024x1024x1024), not with 32 (128x768x3072: 2 to 3 % slower; of a Xeon, with 16, 2 %).
    let fight = m >= mr && mr > 1 && (k * 4 / dot.terms()).is_multiple_of(4096) && n > COPIED_PANELS * nr;
    let schedule = MatmulSchedule {
        mr,
        nr,
        lanes: cpu.lanes,
        mc,
        nc: columns((m, n, k), (kc, nr), cpu),
        kc,
        unroll,
        dot,
        order: TileOrder::ColumnsOutside,
        // A copy of halves is widened, once instead of for every panel.
        pack_a: dtype != Dtype::F32 && !pairs || fight,
        pack_b: PackB::Ahead,
        // One row tile has no time to ask ahead in: the hardware's own prefetcher keeps up.
        prefetch: m >= 4 * mr,
        split: Split::Columns,
    };
    let widened = dtype == Dtype::Bf16 && !pairs && m >= WIDENED_ROWS;
    if widened { packed_during((m, n, k), schedule, cpu) } else { schedule }
}

/// Rows up to which a product waits for its weights and not for its arithmetic.
const FEW_ROWS: usize = 4;

/// Pairs of bf16 where the CPU has them and gains by them. On a Zen 4 core, whose multiply-adds of f32 end at 118 GFLOP/s, OpenVINO
/// 2026.4 made 189 of a bf16 block with that instruction. A Xeon of the fourth generation takes four times as long for it as for a
/// multiply-add: 86 GFLOP/s of pairs, 127 of widened bf16, 165 of f32 (128x3072x768, `costs_tests`). Few rows are as fast as their
/// weights are read, and nothing needs to be widened: 163 us instead of 175 (1x3072x768, the same Xeon).
fn dot(m: usize, dtype: Dtype, cpu: &CpuFacts) -> Dot {
    let possible = dtype == Dtype::Bf16 && cpu.lanes >= 4 && cpu.isa.iter().any(|it| it == "avx512bf16");
    if possible && (m <= FEW_ROWS || cpu.model.starts_with("AMD")) { Dot::Pairs } else { Dot::Fma }
}

fn attention(seq: usize, head_dim: usize, cpu: &CpuFacts) -> AttentionSchedule {
    // The second product has head_dim columns: a tile that divides them leaves no narrow tail.
    let (rows, vectors) = if cpu.vector_registers < 32 {
        (6, 2)
    } else if head_dim.is_multiple_of(4 * cpu.lanes) {
        (6, 4)
    } else {
        (8, 3)
    };
    let (mr, vectors) = (rows.min(seq), vectors.min(head_dim.div_ceil(cpu.lanes)));
    // A block of scores takes a quarter of L2.
    let fitting = (cpu.l2 / 4 / 4 / seq.next_multiple_of(16)).clamp(mr, 64);
    AttentionSchedule {
        row_block: fitting / mr * mr,
        mr,
        nr: vectors * cpu.lanes,
        lanes: cpu.lanes,
        unroll: unroll(mr * vectors),
        // A copy is worth it where several row tiles read it.
        pack_v: seq >= 4 * mr,
        softmax_rows: mr.min(SOFTMAX_ROWS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::Device,
        plan::{constraint, stage::TensorId},
    };
    use proptest::prelude::*;

    fn cpu(lanes: usize, vector_registers: usize, l2: usize) -> CpuFacts {
        let mut isa = vec!["f16c".to_owned()];
        isa.extend((lanes == 16).then(|| "avx512bf16".to_owned()));
        let arch = "x86_64".to_owned();
        CpuFacts { arch, isa, lanes, vector_registers, l2, ..CpuFacts::detect() }
    }

    fn ops() -> impl Strategy<Value = StageOp> {
        let size = 1usize..5000;
        prop_oneof![
            (size.clone(), size.clone(), size.clone()).prop_map(|(m, n, k)| StageOp::Matmul {
                m,
                n,
                k,
                bias: false,
                activation: None,
                residual: false
            }),
            (1usize..4000, 1usize..300).prop_map(|(seq, head_dim)| StageOp::Attention {
                batch: 1,
                seq,
                heads: 2,
                kv_heads: 1,
                head_dim,
                causal: true,
                scale: 1.0
            }),
            (size.clone(), size.clone(), size.clone(), any::<bool>()).prop_map(|(rows, d_model, d_ff, gated)| {
                let activation = crate::manifest::spec::Activation::Silu;
                StageOp::Mlp { rows, d_model, d_ff, activation, gated, bias: true, residual: false }
            }),
            (size.clone(), size).prop_map(|(rows, width)| StageOp::RmsNorm { rows, width, eps: 1e-5 }),
        ]
    }

    proptest! {
        #![proptest_config(crate::testing::cases(256))]
        /// Whatever the shape and the machine, what the heuristic proposes passes gate V0.
        #[test]
        fn every_proposal_is_legal(op in ops(), machine in 0usize..3, dtype in 0usize..3, weight: bool) {
            let dtype = Dtype::ALL[dtype];
            let cpu = [cpu(16, 32, 1 << 20), cpu(8, 16, 256 << 10), cpu(4, 32, 512 << 10)][machine].clone();
            let (schedule, device) = (schedule(&op, dtype, weight, &cpu), Device::from(cpu));
            let stage = Stage { name: "s".into(), op, inputs: vec![], output: TensorId(0), scheduled: true };
            prop_assert_eq!(constraint::check(&stage, dtype, &schedule, &device), Ok(()));
            let plain = Schedule::plain(&stage.op, dtype, &device);
            prop_assert_eq!(constraint::check(&stage, dtype, &plain, &device), Ok(()));
        }
    }

    #[test]
    fn bf16_is_multiplied_in_pairs_where_that_is_faster() {
        let of = |model: &str, lanes| CpuFacts { model: model.to_owned(), ..cpu(lanes, 32, 1 << 20) };
        let made = |m, dtype, cpu: &CpuFacts| matmul((m, 3072, 768), dtype, true, cpu);
        let (amd, intel) = (of("AMD EPYC", 16), of("Intel(R) Xeon(R) Processor", 16));
        let pairs = made(128, Dtype::Bf16, &amd);
        assert_eq!((pairs.dot, pairs.kc, pairs.pack_a), (Dot::Pairs, 768, false));
        assert_eq!([made(128, Dtype::F16, &amd).dot, made(128, Dtype::Bf16, &of("AMD EPYC", 8)).dot], [Dot::Fma; 2]);
        let few_and_many = [1, 128].map(|m| made(m, Dtype::Bf16, &intel).dot);
        assert_eq!(few_and_many, [Dot::Pairs, Dot::Fma]);
    }

    #[test]
    fn a_wide_machine_gets_the_wide_tile() {
        let wide = matmul((128, 768, 768), Dtype::F32, true, &cpu(16, 32, 1 << 20));
        assert_eq!((wide.mr, wide.nr, wide.kc, wide.unroll), (8, 48, 768, 2));
        let narrow = matmul((128, 768, 3072), Dtype::F32, true, &cpu(8, 16, 256 << 10));
        assert_eq!((narrow.mr, narrow.nr, narrow.unroll), (4, 24, 8));
        // Blocks of rows that fill three quarters of L2, and of columns whose sums take a quarter.
        assert_eq!((narrow.kc, narrow.mc, narrow.nc, narrow.pack_a), (1024, 44, 120, false));
        let narrow = matmul((128, 768, 896), Dtype::F32, true, &cpu(8, 16, 512 << 10));
        assert_eq!((narrow.kc, narrow.mc, narrow.nc), (896, 64, 768));
        let copied = matmul((1024, 1024, 1024), Dtype::F32, true, &cpu(8, 16, 512 << 10));
        assert_eq!((copied.mc, copied.pack_a), (96, true));
    }

    #[test]
    fn a_tile_that_divides_the_product_is_preferred() {
        let cpu = cpu(8, 16, 512 << 10);
        assert_eq!(tile(126, &[768], &cpu).0, 6);
        assert_eq!(tile(128, &[768, 3072], &cpu), (4, vec![3, 3]));
        // 16 vectors: five panels of three would leave a narrow sixth.
        assert_eq!(tile(126, &[128], &cpu), (6, vec![2]));
        // Seven rows as one tile of seven would have one vector; as four and three they have three.
        assert_eq!(tile(7, &[768], &cpu), (4, vec![3]));
        assert_eq!(tile(1, &[768], &cpu), (1, vec![4]));
        assert_eq!(tile(5, &[5], &cpu), (5, vec![1]));
    }

    #[test]
    fn b_is_packed_by_the_kernel_where_it_is_an_input_and_where_many_rows_read_bf16() {
        let cpu = cpu(8, 16, 512 << 10);
        let packs = |m, dtype, weight| matmul((m, 3072, 768), dtype, weight, &cpu).pack_b;
        assert_eq!([1, 128].map(|m| packs(m, Dtype::F32, false)), [PackB::Never, PackB::During]);
        assert_eq!([16, 128].map(|m| packs(m, Dtype::Bf16, true)), [PackB::Ahead, PackB::During]);
        assert_eq!([Dtype::F32, Dtype::F16].map(|it| packs(512, it, true)), [PackB::Ahead; 2]);
        // A block of B has the size of L2, and three times that where A is larger than L2.
        assert_eq!(matmul((128, 3072, 768), Dtype::F32, false, &cpu).nc, 168);
        assert_eq!(matmul((2048, 2048, 1024), Dtype::F32, false, &cpu).nc, 384);
    }

    #[test]
    fn one_row_tile_streams_its_weights() {
        let cpu = cpu(8, 16, 512 << 10);
        assert_eq!(matmul((1, 3072, 4864), Dtype::F32, true, &cpu).kc, 4864);
        assert_eq!(matmul((32, 3072, 4864), Dtype::F32, true, &cpu).kc, 976);
    }
}
