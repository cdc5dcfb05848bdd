//! The analytic proposer for matrix products on GPUs: from the shape and the device's limits alone, without a trial.
//!
//! Vulkan does not tell how many cores a device has, so a number is assumed for each kind ([`units`]). Each of a few tiles is then
//! judged by a model of its time: waves of workgroups over the cores, times the steps of K of one, times what a step costs, which
//! is bound by arithmetic for large tiles and by loads for small ones; the parts of a split K cost their traffic on top. The
//! constants are fitted to measurements on an H100.

use crate::{
    host::gpu::{GpuFacts, GpuKind},
    manifest::spec::Dtype,
    plan::gpu::matmul::{Cooperative, Gemv, GpuMatmul, GpuMlp, MlpShape, Product, Tiled, check},
};

/// Rows up to which every weight is best read once, straight into registers.
const GEMV_ROWS: usize = 8;
/// Workgroups that run on one core at a time, at least.
const RESIDENT: usize = 2;
/// What the second dispatch of a split product costs, in multiply-adds of one core.
const SPLIT: f64 = 400_000.0;

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
    let mut best: Option<(f64, GpuMatmul)> = None;
    let tiled = cooperative(product, gpu).into_iter().chain(tiled(product, gpu));
    for (time, schedule) in tiled {
        if best.as_ref().is_none_or(|(least, _)| time < *least) && legal(product, &schedule, gpu) {
            best = Some((time, schedule));
        }
    }
    few.chain(best.map(|it| it.1)).next().unwrap_or_else(|| GpuMatmul::plain(product, gpu))
}

/// As [`propose`], for a fused MLP. A gate is computed beside the product that it gates wherever the registers allow it: x is then
/// read once, and the gate's rows never leave the registers.
pub fn propose_mlp(shape: &MlpShape, gpu: &GpuFacts) -> GpuMlp {
    let fuse_gate = shape.gated;
    GpuMlp { fuse_gate, up: propose(&shape.up(fuse_gate), gpu), down: propose(&shape.down(), gpu) }
}

fn legal(product: &Product, schedule: &GpuMatmul, gpu: &GpuFacts) -> bool {
    check("", "", product, schedule, gpu).is_ok()
}

/// Time of a product in multiply-adds of one core: `rate` is the share of its full speed that a core reaches with this tile.
fn time(product: &Product, gpu: &GpuFacts, [tile_m, tile_n, tile_k]: [usize; 3], split_k: usize, rate: f64) -> f64 {
    let Product { m, n, k, weights, .. } = *product;
    let steps = k.div_ceil(tile_k).div_ceil(split_k);
    let workgroups = m.div_ceil(tile_m) * n.div_ceil(tile_n) * split_k;
    let each = (weights * tile_m * tile_n * tile_k * steps) as f64;
    // A core that has a workgroup to itself is slower than one with several, which hide each other's loads.
    let (full, rest) = (workgroups / (units(gpu) * RESIDENT), workgroups % (units(gpu) * RESIDENT));
    let last = match rest {
        0 => 0.0,
        rest if rest <= units(gpu) => 0.7,
        _ => 1.0,
    };
    let waves = (full as f64 + last) * RESIDENT as f64;
    let parts = if split_k > 1 { SPLIT + (split_k * weights * m * n) as f64 / units(gpu) as f64 } else { 0.0 };
    waves * each / rate + parts
}

/// The parts of K worth a look: none of them shorter than 128.
fn splits(product: &Product) -> impl Iterator<Item = usize> + use<> {
    let most = (product.k / 128).max(1);
    [1, 2, 3, 4, 6, 8, 12, 16].into_iter().filter(move |it| *it <= most)
}

/// Rows of tiles that are walked together: 8 of them and their columns of B stay in the last cache.
fn swizzle(m: usize, tile_m: usize) -> usize {
    m.div_ceil(tile_m).min(8)
}

/// Tile, depth, register tile, and the share of full speed of the tiled kernel.
const TILES: [([usize; 3], [usize; 2], f64); 7] = [
    ([128, 256, 8], [8, 16], 1.0),
    ([128, 128, 8], [8, 8], 0.92),
    ([64, 128, 16], [8, 8], 0.8),
    ([64, 64, 16], [4, 8], 0.68),
    ([32, 64, 16], [4, 4], 0.5),
    ([32, 32, 16], [4, 4], 0.4),
    ([16, 32, 16], [2, 4], 0.25),
];

fn tiled(product: &Product, gpu: &GpuFacts) -> Vec<(f64, GpuMatmul)> {
    let vector = product.vector().min(4);
    let mut all = Vec::new();
    for ([tile_m, tile_n, tile_k], [thread_m, thread_n], rate) in TILES {
        for split_k in splits(product) {
            let time = time(product, gpu, [tile_m, tile_n, tile_k], split_k, rate);
            let tiled = Tiled {
                tile_m,
                tile_n,
                tile_k,
                thread_m,
                thread_n,
                vector,
                stages: 2,
                prefetch: true,
                split_k,
                swizzle: swizzle(product.m, tile_m),
            };
            all.push((time, GpuMatmul::Tiled(tiled)));
        }
    }
    all
}

/// How many times faster a core is on cooperative matrices.
const MATRICES: f64 = 8.0;

/// Tile, depth, a subgroup's part, and the share of full speed of the cooperative kernel.
const COOPERATIVE: [([usize; 3], [usize; 2], f64); 5] = [
    ([128, 256, 32], [64, 64], 1.0),
    ([128, 128, 32], [64, 64], 0.85),
    ([64, 128, 32], [32, 64], 0.6),
    ([64, 64, 32], [32, 32], 0.45),
    ([32, 64, 32], [16, 32], 0.3),
];

fn cooperative(product: &Product, gpu: &GpuFacts) -> Vec<(f64, GpuMatmul)> {
    let vector = product.vector();
    let mut all = Vec::new();
    if product.dtype != Dtype::F16 || vector < 2 || gpu.cooperative_f16().is_none() {
        return all;
    }
    for ([tile_m, tile_n, tile_k], [subgroup_m, subgroup_n], rate) in COOPERATIVE {
        for split_k in splits(product) {
            let time = time(product, gpu, [tile_m, tile_n, tile_k], split_k, rate * MATRICES);
            let cooperative = Cooperative {
                tile_m,
                tile_n,
                tile_k,
                subgroup_m,
                subgroup_n,
                vector,
                stages: 1,
                prefetch: true,
                split_k,
                swizzle: swizzle(product.m, tile_m),
            };
            all.push((time, GpuMatmul::Cooperative(cooperative)));
        }
    }
    all
}

/// A few columns for each workgroup, so that there are about as many workgroups as cores, and the rest of its invocations side by
/// side along K.
fn gemv(product: &Product, gpu: &GpuFacts) -> GpuMatmul {
    let Product { m, n, k, weights, dtype } = *product;
    let widths: &[usize] = if dtype == Dtype::F16 { &[8, 4, 2, 1] } else { &[4, 2, 1] };
    let fits = |it: &&usize| n.is_multiple_of(**it) && **it * weights * m <= 64;
    let vector = *widths.iter().find(fits).unwrap_or(&1);
    let threads = if gpu.software() { 32 } else { 256 }.min(gpu.workgroup_invocations);
    // Lanes of a row: a cache line of 128 bytes at least where the columns suffice.
    let line = (128 / dtype.bytes() / vector).max(1);
    let words = n / vector;
    let mut lanes = threads;
    while lanes > line.min(threads) && words.div_ceil(lanes) < units(gpu) {
        lanes /= 2;
    }
    let slices = (threads / lanes).min(k.next_power_of_two());
    let memory = |slices: usize| 4 * weights * m * vector * lanes * slices;
    let mut slices = slices.max(1);
    while slices > 1 && memory(slices) > gpu.workgroup_memory {
        slices /= 2;
    }
    let unroll = if k >= 8 * slices { 8 } else { 4 };
    let unroll = if unroll * vector * weights > 64 { 4 } else { unroll };
    GpuMatmul::Gemv(Gemv { threads: lanes * slices, vector, slices, unroll, split_k: 1 })
}

#[cfg(test)]
#[path = "gpu_matmul_tests.rs"]
mod tests;
