//! The analytic proposer for matrix products on GPUs: from the shape and the device's limits alone, without a trial.
//!
//! Vulkan does not tell how many cores a device has, so a number is assumed for each kind ([`units`]). Each of a few tiles, with K
//! in one part or several, is then judged by a model of its time ([`time`]): the steps of K of a workgroup, times the workgroups of
//! the fullest core, times what a step of that tile was measured to take on an H100, but no less than what all loads take to arrive,
//! and what parts of K cost. On other devices the figures differ, but little so the order of the tiles.
//!
//! The figures began as fits to 400 timings of 15 shapes, one product at a time with its operands in the last cache; most tiles' fits are
//! off by 2 to 10% (root mean square). They were then corrected by hand where that changed an order that had been timed, and where stages
//! of a whole block took longer than the fits say. 16x32 was not timed.

use crate::{
    host::gpu::{GpuFacts, GpuKind},
    plan::gpu::matmul::{Cooperative, Gemv, GpuMatmul, GpuMlp, MlpShape, Product, Tiled, check, steps},
};

/// Rows up to which every weight is best read once, straight into registers.
const GEMV_ROWS: usize = 8;
/// Microseconds of the second dispatch of a split product, and of the barrier before it.
const SPLIT: f64 = 3.0;
/// Bytes of partial sums that are written or read in a microsecond.
const SPLIT_BYTES: f64 = 3e6;
/// What a split must be better by: the model itself is off by as much, and one dispatch needs no scratch.
const SPLIT_GAIN: f64 = 1.05;
/// Bytes that all workgroups together load from the last cache in a microsecond. Set so that it bounds small tiles: 512x768x768 of f16 took
/// 13.5 us of a block in tiles of 32x32, and takes 9.6 alone in tiles of 64x64.
const LOADS: f64 = 4.2e6;

/// Cores (streaming multiprocessors, compute units) that workgroups are spread over: 132 of an H100, whose neighbours have 60 to 304;
/// an integrated GPU's 16; of software as many as a small machine's.
const fn units(gpu: &GpuFacts) -> usize {
    match gpu.kind {
        GpuKind::Discrete | GpuKind::Virtual => 132,
        GpuKind::Integrated | GpuKind::Other => 16,
        GpuKind::Software => 4,
    }
}

/// A schedule of `product` that is legal on `gpu`.
pub fn propose(product: &Product, gpu: &GpuFacts) -> GpuMatmul {
    let gemv = (product.m <= GEMV_ROWS).then(|| gemv(product, gpu));
    let few = gemv.into_iter().filter(|it| legal(product, it, gpu));
    // A slow cooperative product is still faster than a tiled one of f16.
    let best = fastest(product, cooperative(product, gpu), gpu).or_else(|| fastest(product, tiled(product, gpu), gpu));
    few.chain(best).next().unwrap_or_else(|| GpuMatmul::plain(product, gpu))
}

/// As [`propose`], for a fused MLP. A gate is computed beside the product that it gates wherever the registers allow it: x is then
/// read once, and the gate's rows never leave the registers.
pub fn propose_mlp(shape: &MlpShape, gpu: &GpuFacts) -> GpuMlp {
    let fuse_gate = shape.gated;
    GpuMlp { fuse_gate, up: propose(&shape.up(fuse_gate), gpu), down: propose(&shape.down(), gpu) }
}

/// The legal schedule of the least time.
fn fastest(product: &Product, schedules: impl Iterator<Item = (f64, GpuMatmul)>, gpu: &GpuFacts) -> Option<GpuMatmul> {
    let legal = schedules.filter(|(_, it)| legal(product, it, gpu));
    legal.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, schedule)| schedule)
}

fn legal(product: &Product, schedule: &GpuMatmul, gpu: &GpuFacts) -> bool {
    check("", "", product, schedule, gpu).is_ok()
}

/// A tile and what it costs.
struct Tile {
    size: [usize; 3],
    /// Of an invocation, or a subgroup.
    part: [usize; 2],
    stages: usize,
    /// Microseconds of a step of K: what each of several workgroups adds to that of a core, and of a workgroup alone on its core.
    /// The latter waits for its loads and barriers, and several on one core are never faster.
    step: f64,
    alone: f64,
}

const fn tile(size: [usize; 3], part: [usize; 2], stages: usize, step: f64, alone: f64) -> Tile {
    Tile { size, part, stages, step, alone }
}

/// Microseconds, without those that every schedule takes.
fn time(product: &Product, gpu: &GpuFacts, tile: &Tile, split_k: usize) -> f64 {
    let Product { m, n, k, weights, dtype } = *product;
    let [tile_m, tile_n, tile_k] = tile.size;
    let workgroups = m.div_ceil(tile_m) * n.div_ceil(tile_n) * split_k;
    let steps = steps(k, tile_k, split_k) as f64;
    let share = workgroups.div_ceil(units(gpu)) * weights;
    let step = if share == 1 { tile.alone } else { tile.alone.max(share as f64 * tile.step) };
    let loads = (workgroups * (tile_m + weights * tile_n) * tile_k * dtype.bytes()) as f64 / LOADS;
    let whole = steps * step.max(loads);
    if split_k == 1 {
        return whole;
    }
    let moved = 2.0 * product.partial_bytes(split_k) as f64;
    (whole + SPLIT + moved / SPLIT_BYTES) * SPLIT_GAIN
}

/// The parts of K worth a look: none of them shorter than 96, and not 3 or 6, which the model cannot tell from 4. With 16
/// parts for its second product the MLP of 128 rows took 64 us of a block; its products, with 8 at most, take 23 and 26 alone.
fn splits(product: &Product) -> impl Iterator<Item = usize> + use<> {
    let most = (product.k / 96).max(1);
    [1, 2, 4, 8].into_iter().filter(move |it| *it <= most)
}

/// Rows of tiles that are walked together: 8 of them and their columns of B stay in the last cache. 4 made 4096^3 a third slower.
fn swizzle(m: usize, tile_m: usize) -> usize {
    m.div_ceil(tile_m).min(8)
}

/// For the tiled kernel. Two tiles in workgroup memory helped small ones and 128x128x8. 128x128x16 is the best of large products (3.04
/// instead of 3.11 ms at 4096^3), but wants four workgroups to a core: three of them, in parts of 12 steps, made the MLP of 512 rows
/// take 226 us, which leaves 7 for a step; the smaller tiles' two products take 67 and 65 alone.
const TILED: [Tile; 7] = [
    tile([128, 128, 16], [8, 8], 1, 1.49, 6.0),
    tile([128, 128, 8], [8, 8], 2, 0.765, 1.6),
    tile([64, 128, 16], [8, 8], 1, 0.81, 1.05),
    tile([64, 64, 16], [8, 4], 1, 0.46, 0.56),
    tile([32, 64, 16], [4, 4], 2, 0.28, 0.335),
    tile([32, 32, 16], [2, 4], 2, 0.22, 0.26),
    tile([16, 32, 16], [2, 2], 2, 0.15, 0.25),
];

/// For the cooperative kernel. The largest tiles alone on a core took from 1.44 (256x128) and 1.86 us (128x256) to 2.2 a step.
const COOPERATIVE: [Tile; 6] = [
    tile([128, 256, 32], [64, 64], 1, 1.46, 2.0),
    tile([256, 128, 32], [64, 64], 1, 1.47, 1.5),
    tile([128, 128, 32], [64, 64], 1, 1.0, 0.8),
    tile([64, 64, 64], [16, 32], 1, 0.58, 0.49),
    tile([32, 64, 64], [16, 32], 1, 0.3, 0.36),
    tile([32, 32, 64], [16, 16], 1, 0.18, 0.235),
];

fn tiled<'a>(product: &'a Product, gpu: &'a GpuFacts) -> impl Iterator<Item = (f64, GpuMatmul)> + 'a {
    let vector = product.vector().min(4);
    let each = |tile: &'static Tile| splits(product).map(move |split_k| (tile, split_k));
    TILED.iter().flat_map(each).map(move |(it, split_k)| {
        let ([tile_m, tile_n, tile_k], [thread_m, thread_n]) = (it.size, it.part);
        let swizzle = swizzle(product.m, tile_m);
        let (stages, prefetch) = (it.stages, 1);
        let schedule = Tiled { tile_m, tile_n, tile_k, thread_m, thread_n, vector, stages, prefetch, split_k, swizzle };
        (time(product, gpu, it, split_k), GpuMatmul::Tiled(schedule))
    })
}

/// Elements that are loaded together for the large tiles, whose matrices fill the registers: 4096^3 of f16 takes 617 us with 2, 662 with 4
/// and 708 with 8 (H100). Small tiles wait for their loads, and wide ones are fewer.
const LARGE_VECTOR: usize = 2;

fn cooperative<'a>(product: &'a Product, gpu: &'a GpuFacts) -> impl Iterator<Item = (f64, GpuMatmul)> + 'a {
    let each = |tile: &'static Tile| splits(product).map(move |split_k| (tile, split_k));
    COOPERATIVE.iter().flat_map(each).map(move |(it, split_k)| {
        let ([tile_m, tile_n, tile_k], [subgroup_m, subgroup_n]) = (it.size, it.part);
        let large = subgroup_m * subgroup_n >= 64 * 64;
        let vector = if large { product.vector().min(LARGE_VECTOR) } else { product.vector() };
        let schedule = Cooperative {
            tile_m,
            tile_n,
            tile_k,
            subgroup_m,
            subgroup_n,
            vector,
            // Loads of matrices from [k, n] took half as many instructions again.
            transpose: true,
            stages: it.stages,
            prefetch: 1,
            split_k,
            swizzle: swizzle(product.m, tile_m),
        };
        (time(product, gpu, it, split_k), GpuMatmul::Cooperative(schedule))
    })
}

/// Few columns for each workgroup and many invocations side by side along K, so that even narrow weights are read by many
/// workgroups. Where there are more rows, their sums bound the invocations.
fn gemv(product: &Product, gpu: &GpuFacts) -> GpuMatmul {
    let Product { m, n, k, weights, .. } = *product;
    let (threads, slices) = match m * weights {
        _ if gpu.software() => (64, 8),
        0..=2 => (512, 64),
        3..=4 => (256, 64),
        _ => (256, 32),
    };
    // 8 f16 at once were slower than 4.
    let wide = n / (4 * threads / slices) >= units(gpu) / 2;
    let widths = if wide { [4, 2, 1] } else { [2, 1, 1] };
    let vector = widths.into_iter().find(|it| n.is_multiple_of(*it)).unwrap_or(1);
    let lanes = threads / slices;
    let mut slices = slices.min(k.next_power_of_two());
    while slices > 1 && 4 * weights * m * vector * lanes * slices > gpu.workgroup_memory {
        slices /= 2;
    }
    let threads = lanes * slices;
    let unroll = if k >= 2048 && m * weights <= 2 { 8 } else { 4 };
    GpuMatmul::Gemv(Gemv { threads, vector, slices, unroll, split_k: 1 })
}

#[cfg(test)]
#[path = "gpu_matmul_tests.rs"]
mod tests;
