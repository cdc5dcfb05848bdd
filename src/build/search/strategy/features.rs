//! A schedule as numbers, for the cost model: its knobs, and what follows from them together with shape and device. Sizes are
//! logarithms, so that a factor of two is as far everywhere.

use crate::{
    host::{CpuFacts, Device, gpu::GpuFacts},
    plan::{
        gpu::{
            Shape,
            attention::{AttentionShape, GpuAttention},
            matmul::{GpuMatmul, Product},
        },
        schedule::{MatmulSchedule, Schedule},
        space::{Space, Value, settings},
        stage::StageOp,
    },
};
use serde_json::Value as Json;
use std::collections::BTreeSet;

/// Of the schedules of one space: all have the same number of them, in the same order.
pub struct Features {
    op: StageOp,
    shape: Shape,
    device: Device,
    /// Numbers and flags.
    knobs: Vec<String>,
    /// One feature for each word that a setting may be.
    words: Vec<(String, &'static str)>,
}

/// What a knob is where a method does not have it.
const ABSENT: f64 = -1.0;
/// Of one product, whatever computes it.
const OF_PRODUCT: usize = 9;

fn log(value: usize) -> f64 {
    ((value + 1) as f64).log2()
}

/// How much more than `extent` is computed in whole units of `unit`.
fn waste(extent: usize, unit: usize) -> f64 {
    let unit = unit.max(1);
    (extent.div_ceil(unit) * unit) as f64 / extent.max(1) as f64
}

impl Features {
    pub fn of(space: &Space) -> Self {
        let (mut knobs, mut words) = (BTreeSet::new(), BTreeSet::new());
        for family in space.families() {
            words.extend(family.fixed().iter().map(|(name, word)| ((*name).to_owned(), *word)));
            for knob in family.knobs() {
                let choices: Vec<_> = knob.values().iter().filter_map(word).map(|it| (knob.name(), it)).collect();
                if choices.is_empty() {
                    knobs.insert(knob.name());
                }
                words.extend(choices);
            }
        }
        Self {
            op: space.op().clone(),
            shape: Shape::of(space.op(), space.dtype()),
            device: space.device().clone(),
            knobs: knobs.into_iter().collect(),
            words: words.into_iter().collect(),
        }
    }

    pub fn row(&self, schedule: &Schedule) -> Vec<f64> {
        let settings = settings(schedule);
        let number = |name: &String| match settings.get(name) {
            Some(Json::Number(it)) => (it.as_f64().unwrap_or(0.0) + 1.0).log2(),
            Some(Json::Bool(it)) => f64::from(u8::from(*it)),
            _ => ABSENT,
        };
        let is = |(name, word): &(String, &str)| f64::from(u8::from(settings.get(name) == Some(&Json::from(*word))));
        let mut row: Vec<f64> = self.knobs.iter().map(number).chain(self.words.iter().map(is)).collect();
        match &self.device {
            Device::Cpu(cpu) => self.on_cpu(schedule, cpu, &mut row),
            Device::Gpu(gpu) => self.on_gpu(schedule, gpu, &mut row),
        }
        row
    }

    fn on_cpu(&self, schedule: &Schedule, cpu: &CpuFacts, row: &mut Vec<f64>) {
        match (schedule, &self.op) {
            (Schedule::Matmul(it), StageOp::Matmul { m, n, k, .. }) => row.extend(on_core(it, [*m, *n, *k], cpu)),
            (Schedule::Mlp(it), StageOp::Mlp { rows, d_model, d_ff, .. }) => {
                let block = it.row_block.min(*rows);
                row.extend(on_core(&it.up, [block, *d_ff, *d_model], cpu));
                row.extend(on_core(&it.down, [block, *d_model, *d_ff], cpu));
                row.extend([log(rows.div_ceil(it.row_block.max(1))), log(block * d_ff * 4) - log(cpu.l2)]);
            }
            (Schedule::Attention(it), StageOp::Attention { seq, head_dim, .. }) => row.extend([
                registers(it.mr, it.nr, it.lanes, cpu),
                log(it.row_block * seq * 4) - log(cpu.l2),
                waste(*seq, it.row_block),
                waste(*seq, it.mr),
                waste(*seq, it.nr),
                waste(*head_dim, it.nr),
            ]),
            (Schedule::Norm(it), StageOp::LayerNorm { width, .. } | StageOp::RmsNorm { width, .. }) => {
                row.push(waste(*width, it.lanes * it.unroll));
            }
            _ => {}
        }
    }

    fn on_gpu(&self, schedule: &Schedule, gpu: &GpuFacts, row: &mut Vec<f64>) {
        match (schedule, &self.shape) {
            (Schedule::GpuMatmul(it), Shape::Product(product)) => row.extend(in_workgroups(it, product, gpu)),
            (Schedule::GpuMlp(it), Shape::Mlp(shape)) => {
                row.extend(in_workgroups(&it.up, &shape.up(it.fuse_gate), gpu));
                row.extend(in_workgroups(&it.down, &shape.down(), gpu));
            }
            (Schedule::GpuAttention(it), Shape::Attention(shape)) => row.extend(of_heads(it, shape, gpu)),
            (Schedule::GpuNorm(it), Shape::Norm(shape)) => row.extend([
                log(it.width * it.rows),
                log(shape.rows.div_ceil(it.rows.max(1))),
                waste(shape.columns, it.width * it.vector),
                log(it.chunks(shape.columns)),
            ]),
            (Schedule::GpuElementwise(it), Shape::Elements(shape)) => {
                row.extend([log(it.workgroups(shape)), log(it.vector * it.unroll)]);
            }
            _ => {}
        }
    }
}

const fn word(value: &Value) -> Option<&'static str> {
    if let Value::Word(it) = value { Some(*it) } else { None }
}

/// The share of the vector registers that a tile takes.
fn registers(mr: usize, nr: usize, lanes: usize, cpu: &CpuFacts) -> f64 {
    let row = nr / lanes.max(1);
    (mr * row + row + 1) as f64 / cpu.vector_registers.max(1) as f64
}

/// What a product's blocks are to registers and caches.
fn on_core(s: &MatmulSchedule, [m, n, k]: [usize; 3], cpu: &CpuFacts) -> [f64; OF_PRODUCT] {
    let (kc, mc, nc) = (s.kc.min(k), s.mc.min(m), s.nc.min(n));
    [
        registers(s.mr, s.nr, s.lanes, cpu),
        // Multiply-adds for each vector that is loaded.
        log(s.mr * s.nr) - log(s.mr + s.nr / s.lanes.max(1)),
        log(kc * s.nr * 4) - log(cpu.l1d),
        log((mc * kc + kc * s.nr) * 4) - log(cpu.l2),
        log(kc * nc * 4) - log(cpu.l3.max(cpu.l2)),
        waste(m, s.mr),
        waste(n, s.nr),
        waste(k, s.kc),
        log(k.div_ceil(s.kc.max(1))),
    ]
}

/// How a product fills a GPU: the same features for every method.
fn in_workgroups(schedule: &GpuMatmul, product: &Product, gpu: &GpuFacts) -> [f64; OF_PRODUCT] {
    let Product { m, n, k, weights, .. } = *product;
    let tiles = |[tile_m, tile_n]: [usize; 2], threads: usize, bytes: usize, step: usize, split_k: usize| {
        let (tile_m, tile_n) = (tile_m.max(1), tile_n.max(1));
        let workgroups = m.div_ceil(tile_m) * n.div_ceil(tile_n) * split_k;
        [
            log(threads),
            log(tile_m * tile_n * weights / threads.max(1)),
            log(workgroups),
            log(workgroups * threads),
            waste(m, tile_m),
            waste(n, tile_n),
            bytes as f64 / gpu.workgroup_memory.max(1) as f64,
            log(tile_m * tile_n) - log(tile_m + tile_n),
            log(k.div_ceil(split_k.max(1)).div_ceil(step.max(1))),
        ]
    };
    match schedule {
        GpuMatmul::Tiled(s) => {
            tiles([s.tile_m, s.tile_n], s.threads(), s.workgroup_memory(weights), s.tile_k, s.split_k)
        }
        GpuMatmul::Cooperative(s) => {
            let unit = gpu.cooperative_f16().map_or(1, |it| it.k);
            let bytes = s.workgroup_memory(unit, weights, gpu.workgroup_memory);
            tiles([s.tile_m, s.tile_n], s.subgroups() * gpu.subgroup_max, bytes, s.tile_k, s.split_k)
        }
        GpuMatmul::Gemv(s) => {
            let columns = s.threads / s.slices.max(1) * s.vector;
            tiles([m, columns], s.threads, s.workgroup_memory(m, weights), s.slices * s.unroll, s.split_k)
        }
    }
}

fn of_heads(schedule: &GpuAttention, shape: &AttentionShape, gpu: &GpuFacts) -> [f64; 6] {
    let (tile_q, tile_k, threads, bytes) = match schedule {
        GpuAttention::Online(s) => (s.tile_q, s.tile_k, s.threads, s.layout(shape.head_dim).workgroup_memory),
        GpuAttention::Cooperative(s) => {
            let layout = s.layout(shape, gpu.subgroup_max);
            (s.tile_q, s.tile_k, layout.threads, layout.workgroup_memory)
        }
        GpuAttention::HostSoftmax(s) => (s.tile_q, s.tile_k, s.threads, s.layout(shape.head_dim).score_memory),
    };
    let workgroups = shape.batch * shape.heads * shape.seq.div_ceil(tile_q.max(1));
    [
        log(threads),
        log(workgroups),
        waste(shape.seq, tile_q),
        waste(shape.seq, tile_k),
        bytes as f64 / gpu.workgroup_memory.max(1) as f64,
        log(tile_q * (tile_k + shape.head_dim) / threads.max(1)),
    ]
}
