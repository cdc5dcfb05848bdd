//! The analytic proposer for matrix products on GPUs: from the shape and the device's limits alone, without a trial.
//!
//! Vulkan does not tell how many cores a device has, so a number is assumed for each kind ([`units`]). Each of a few tiles, with K
//! in one part or several, is then judged by a model of its time: the steps of K of a workgroup, times the workgroups of the
//! fullest core, times what a step of that tile was measured to take on an H100, but no less than what its loads take to arrive.
//! On other devices the figures differ, but little so the order of the tiles.

use crate::{
    host::gpu::{GpuFacts, GpuKind},
    plan::gpu::matmul::{Cooperative, Gemv, GpuMatmul, GpuMlp, MlpShape, Product, Tiled, check, steps},
};

/// Rows up to which every weight is best read once, straight into registers.
const GEMV_ROWS: usize = 8;
/// Microseconds of the second dispatch of a split product, and what it moves in one.
const SPLIT: f64 = 3.0;
const SPLIT_BYTES: f64 = 4e6;

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
    /// Microseconds of a step of K: of a core that is busy with it, and at least, waiting for loads.
    step: f64,
    wait: f64,
}

const fn tile(size: [usize; 3], part: [usize; 2], stages: usize, step: f64, wait: f64) -> Tile {
    Tile { size, part, stages, step, wait }
}

/// Microseconds.
fn time(product: &Product, gpu: &GpuFacts, tile: &Tile, split_k: usize) -> f64 {
    let Product { m, n, k, weights, .. } = *product;
    let [tile_m, tile_n, tile_k] = tile.size;
    let workgroups = m.div_ceil(tile_m) * n.div_ceil(tile_n) * split_k;
    let busy = workgroups.div_ceil(units(gpu)) as f64 * tile.step * weights as f64;
    let parts = if split_k > 1 { SPLIT + product.partial_bytes(split_k) as f64 / SPLIT_BYTES } else { 0.0 };
    steps(k, tile_k, split_k) as f64 * busy.max(tile.wait) + parts
}

/// The parts of K worth a look: none of them shorter than 96.
fn splits(product: &Product) -> impl Iterator<Item = usize> + use<> {
    let most = (product.k / 96).max(1);
    [1, 2, 3, 4, 6, 8, 12, 16].into_iter().filter(move |it| *it <= most)
}

/// Rows of tiles that are walked together: 8 of them and their columns of B stay in the last cache. 4 made 4096^3 a third slower.
fn swizzle(m: usize, tile_m: usize) -> usize {
    m.div_ceil(tile_m).min(8)
}

/// For the tiled kernel. Two tiles in workgroup memory helped small ones alone.
const TILED: [Tile; 6] = [
    tile([128, 128, 16], [8, 8], 1, 1.53, 1.0),
    tile([64, 128, 16], [8, 8], 1, 0.85, 0.6),
    tile([64, 64, 16], [8, 4], 1, 0.49, 0.4),
    tile([32, 64, 16], [4, 4], 2, 0.27, 0.25),
    tile([32, 32, 16], [2, 4], 2, 0.2, 0.25),
    tile([16, 32, 16], [2, 2], 2, 0.15, 0.25),
];

/// For the cooperative kernel.
const COOPERATIVE: [Tile; 6] = [
    tile([128, 256, 32], [64, 64], 1, 1.36, 1.36),
    tile([256, 128, 32], [64, 64], 1, 1.37, 1.36),
    tile([128, 128, 32], [64, 64], 1, 0.8, 0.8),
    tile([64, 64, 64], [16, 32], 1, 0.55, 0.49),
    tile([32, 64, 64], [16, 32], 1, 0.3, 0.3),
    tile([32, 32, 64], [16, 16], 1, 0.16, 0.235),
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

fn cooperative<'a>(product: &'a Product, gpu: &'a GpuFacts) -> impl Iterator<Item = (f64, GpuMatmul)> + 'a {
    let vector = product.vector();
    let each = |tile: &'static Tile| splits(product).map(move |split_k| (tile, split_k));
    COOPERATIVE.iter().flat_map(each).map(move |(it, split_k)| {
        let ([tile_m, tile_n, tile_k], [subgroup_m, subgroup_n]) = (it.size, it.part);
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
