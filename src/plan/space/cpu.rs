//! The declared space of a CPU: register tiles from the vector registers, cache blocks that cut each extent evenly.

use super::{
    Family,
    knob::{Knob, blocks, powers, up_to},
};
use crate::{host::CpuFacts, manifest::spec::Dtype, plan::stage::StageOp};

/// Rows of register tiles.
const TILE_ROWS: [usize; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16];
/// Vectors of a register tile's row.
const TILE_VECTORS: [usize; 4] = [1, 2, 3, 4];
/// Cache blocks are not cut smaller: their own loops would take longer than what they save.
const LEAST: [usize; 3] = [16, 96, 64];

pub fn families(op: &StageOp, dtype: Dtype, cpu: &CpuFacts) -> Vec<Family> {
    let family = match *op {
        StageOp::Matmul { m, n, k, .. } => {
            let mut knobs = matmul((m, n, k), dtype, cpu);
            knobs.push(Knob::word("split", &["columns", "rows"]));
            Family::new("matmul", &[("kernel", "matmul")], knobs)
        }
        StageOp::Mlp { rows, d_model, d_ff, .. } => {
            Family::new("mlp", &[("kernel", "mlp")], mlp((rows, d_model, d_ff), dtype, cpu))
        }
        StageOp::Attention { seq, head_dim, .. } => {
            Family::new("attention", &[("kernel", "attention")], attention(seq, head_dim, cpu))
        }
        StageOp::LayerNorm { .. } | StageOp::RmsNorm { .. } => Family::new("norm", &[("kernel", "norm")], rows(cpu)),
        StageOp::Rope { .. }
        | StageOp::Activation { .. }
        | StageOp::Add { .. }
        | StageOp::Mul { .. }
        | StageOp::Scale { .. } => Family::new("elementwise", &[("kernel", "elementwise")], rows(cpu)),
    };
    vec![family]
}

/// The widest vectors, and half of them: some CPUs lower their clock for the widest, and narrow results leave less of them empty.
fn lanes(cpu: &CpuFacts) -> Knob {
    Knob::number("lanes", [cpu.lanes, (cpu.lanes / 2).max(1)].into_iter().take(cpu.lanes.min(2)))
}

/// Rows of register tiles: their accumulators, a row of B and an element of A are in registers.
fn tile_rows(m: usize, cpu: &CpuFacts) -> Knob {
    let most = m.min(cpu.vector_registers.saturating_sub(2)).max(1);
    Knob::number("mr", TILE_ROWS.into_iter().filter(|it| *it <= most))
}

fn tile_columns(n: usize, cpu: &CpuFacts) -> Knob {
    let narrowest = (cpu.lanes / 2).max(1);
    Knob::number("nr", up_to(n.div_ceil(narrowest), &TILE_VECTORS)).times("lanes")
}

/// All knobs of a product but its split.
fn matmul((m, n, k): (usize, usize, usize), dtype: Dtype, cpu: &CpuFacts) -> Vec<Knob> {
    let pairs = dtype == Dtype::Bf16 && cpu.isa.iter().any(|it| it == "avx512bf16");
    let [rows, columns, depth] = LEAST;
    vec![
        lanes(cpu),
        tile_rows(m, cpu),
        tile_columns(n, cpu),
        Knob::number("mc", blocks(m, rows)).multiple_of("mr"),
        Knob::number("nc", blocks(n, columns)).multiple_of("nr"),
        Knob::number("unroll", up_to(k, &[1, 2, 4, 8])),
        Knob::number("kc", blocks(k, depth)).multiple_of("unroll"),
        Knob::word("dot", if pairs { &["fma", "pairs"] } else { &["fma"] }),
        Knob::word("order", &["columns-outside", "rows-outside"]),
        Knob::flag("pack-a"),
        Knob::word("pack-b", &["ahead", "during", "never"]),
        Knob::flag("prefetch").only_where("`pack-b` is during, or ahead and `order` is columns-outside", |it| {
            it.is("pack-b", "during") || it.is("pack-b", "ahead") && it.is("order", "columns-outside")
        }),
    ]
}

fn mlp((rows, d_model, d_ff): (usize, usize, usize), dtype: Dtype, cpu: &CpuFacts) -> Vec<Knob> {
    let mut knobs: Vec<Knob> = matmul((rows, d_ff, d_model), dtype, cpu).into_iter().map(|it| it.of("up.")).collect();
    // Both products walk the same row tiles.
    let shared = |knob: Knob| match knob.short() {
        "mr" => Knob::same_as("mr", "up.mr"),
        "lanes" => Knob::same_as("lanes", "up.lanes"),
        _ => knob,
    };
    knobs.extend(matmul((rows, d_model, d_ff), dtype, cpu).into_iter().map(|it| shared(it).of("down.")));
    knobs.push(Knob::number("row-block", blocks(rows, LEAST[0])).multiple_of("up.mr"));
    // The MLP is split by its row blocks, whatever these say.
    knobs.extend(["up.", "down."].map(|it| Knob::word("split", &["columns"]).of(it)));
    knobs
}

fn attention(seq: usize, head_dim: usize, cpu: &CpuFacts) -> Vec<Knob> {
    vec![
        lanes(cpu),
        tile_rows(seq, cpu),
        // Of keys, and of a head's columns.
        tile_columns(seq.max(head_dim), cpu),
        Knob::number("row-block", up_to(seq, &[1, 8, 16, 32, 48, 64, 96, 128, 256])).multiple_of("mr"),
        Knob::number("unroll", [1, 2, 4, 8]),
        Knob::flag("pack-v"),
        Knob::number("softmax-rows", up_to(seq, &[1, 2, 4, 8])),
    ]
}

/// Norms and elementwise stages.
fn rows(cpu: &CpuFacts) -> Vec<Knob> {
    vec![Knob::number("lanes", powers(1, cpu.lanes)), Knob::number("unroll", 1..=8)]
}
