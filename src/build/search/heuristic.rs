//! The analytic proposer: schedules from shapes, vector registers and cache sizes alone, without a trial.
//!
//! The register tile has as many accumulators as the registers hold beside one row of B and one element of A, nearly square
//! in elements moved: 8x48 with 32 registers of 16 lanes, 6x16 with 16 of 8. Depth and rows of a cache block keep B's panel
//! and A's block in L2 together. Weights are packed ahead. bf16 is multiplied in pairs where that is faster.

use crate::{
    host::CpuFacts,
    manifest::spec::Dtype,
    plan::{
        schedule::{
            AttentionSchedule, Dot, ElementwiseSchedule, MatmulSchedule, MlpSchedule, NormSchedule, PackB, Schedule,
            Split, TileOrder,
        },
        stage::{StageGraph, StageOp},
    },
};
use std::collections::BTreeMap;

/// Rows of A in a cache block: with a depth of 1024, half of a 1 MiB L2.
const BLOCK_ROWS: usize = 128;
/// Steps of the depth loop written out: the loop's own instructions then hide behind 48 multiply-adds.
const UNROLL: usize = 2;

/// A schedule for every stage that a pass asked one for, by stage name.
pub fn propose(graph: &StageGraph, cpu: &CpuFacts) -> BTreeMap<String, Schedule> {
    let scheduled = graph.stages.iter().filter(|it| it.scheduled);
    scheduled.map(|it| (it.name.clone(), schedule(&it.op, graph.tensor(it.output).dtype, cpu))).collect()
}

fn schedule(op: &StageOp, dtype: Dtype, cpu: &CpuFacts) -> Schedule {
    let lanes = cpu.lanes;
    match *op {
        StageOp::Matmul { m, n, k, .. } => Schedule::Matmul(matmul((m, n, k), dtype, cpu)),
        StageOp::Mlp { rows, d_model, d_ff, gated, .. } => {
            let up = matmul((rows, d_ff, d_model), dtype, cpu);
            // The kernel pads its hidden rows, which are f32, or pairs of bf16 that nobody widens.
            let down = MatmulSchedule { pack_a: false, ..matmul((rows, d_model, d_ff), dtype, cpu) };
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

/// Rows and vectors of the register tile for up to `m` rows and `n` columns.
fn tile(m: usize, n: usize, cpu: &CpuFacts) -> (usize, usize) {
    let (rows, vectors) = if cpu.vector_registers >= 32 { (8, 3) } else { (6, 2) };
    let available = n.div_ceil(cpu.lanes);
    if m >= rows {
        return (rows, vectors.min(available));
    }
    // Few rows: wider tiles keep enough independent accumulators to hide the latency of a fused multiply-add.
    let widest = (cpu.vector_registers - 1) / (m + 1);
    (m, widest.clamp(1, 4).min(available))
}

fn matmul((m, n, k): (usize, usize, usize), dtype: Dtype, cpu: &CpuFacts) -> MatmulSchedule {
    let (mr, vectors) = tile(m, n, cpu);
    let nr = vectors * cpu.lanes;
    // Depth: B's panel and A's block fill three quarters of L2; equal blocks, so that none is short.
    // A pair takes the place of an f32.
    let dot = dot(m, dtype, cpu);
    let pairs = dot == Dot::Pairs;
    let deepest = (cpu.l2 * 3 / 4 / 4 / (BLOCK_ROWS + nr)).clamp(128, 1024) * dot.terms();
    let blocks = k.div_ceil(deepest);
    let kc = k.div_ceil(blocks).next_multiple_of(UNROLL * dot.terms());
    // Rows a multiple of 4 KiB apart share a set of L1, which a tile's rows then fight over.
    let fight = m >= mr && mr > 1 && (k * 4 / dot.terms()).is_multiple_of(4096);
    MatmulSchedule {
        mr,
        nr,
        lanes: cpu.lanes,
        mc: (BLOCK_ROWS / mr).max(1) * mr,
        nc: n.next_multiple_of(nr),
        kc,
        unroll: UNROLL,
        dot,
        order: TileOrder::ColumnsOutside,
        // A copy of halves is widened, once instead of for every panel.
        pack_a: dtype != Dtype::F32 && !pairs || fight,
        pack_b: PackB::Ahead,
        // One row tile has no time to ask ahead in: the hardware's own prefetcher keeps up.
        prefetch: m >= 4 * mr,
        split: Split::Columns,
    }
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
    AttentionSchedule { row_block: fitting / mr * mr, mr, nr: vectors * cpu.lanes, lanes: cpu.lanes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::Device,
        plan::{
            constraint,
            stage::{Stage, TensorId},
        },
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
        fn every_proposal_is_legal(op in ops(), machine in 0usize..3, dtype in 0usize..3) {
            let dtype = Dtype::ALL[dtype];
            let cpu = [cpu(16, 32, 1 << 20), cpu(8, 16, 256 << 10), cpu(4, 32, 512 << 10)][machine].clone();
            let (schedule, device) = (schedule(&op, dtype, &cpu), Device::from(cpu));
            let stage = Stage { name: "s".into(), op, inputs: vec![], output: TensorId(0), scheduled: true };
            prop_assert_eq!(constraint::check(&stage, dtype, &schedule, &device), Ok(()));
            let plain = Schedule::plain(&stage.op, dtype, &device);
            prop_assert_eq!(constraint::check(&stage, dtype, &plain, &device), Ok(()));
        }
    }

    #[test]
    fn bf16_is_multiplied_in_pairs_where_that_is_faster() {
        let of = |model: &str, lanes| CpuFacts { model: model.to_owned(), ..cpu(lanes, 32, 1 << 20) };
        let made = |m, dtype, cpu: &CpuFacts| matmul((m, 3072, 768), dtype, cpu);
        let (amd, intel) = (of("AMD EPYC", 16), of("Intel(R) Xeon(R) Processor", 16));
        let pairs = made(128, Dtype::Bf16, &amd);
        assert_eq!((pairs.dot, pairs.kc, pairs.pack_a), (Dot::Pairs, 768, false));
        assert_eq!([made(128, Dtype::F16, &amd).dot, made(128, Dtype::Bf16, &of("AMD EPYC", 8)).dot], [Dot::Fma; 2]);
        let few_and_many = [1, 128].map(|m| made(m, Dtype::Bf16, &intel).dot);
        assert_eq!(few_and_many, [Dot::Pairs, Dot::Fma]);
    }

    #[test]
    fn a_wide_machine_gets_the_wide_tile() {
        let wide = matmul((128, 768, 768), Dtype::F32, &cpu(16, 32, 1 << 20));
        assert_eq!((wide.mr, wide.nr, wide.kc), (8, 48, 768));
        let narrow = matmul((128, 768, 3072), Dtype::F32, &cpu(8, 16, 256 << 10));
        assert_eq!((narrow.mr, narrow.nr), (6, 16));
        assert!(narrow.kc < 400 && 3072_usize.div_ceil(narrow.kc) * narrow.kc < 3072 + 4 * 9);
    }
}
