//! The declared space of schedules of a matrix product: what a search may choose from.

use super::{Cooperative, Gemv, GpuMatmul, Product, Tiled, check};
use crate::host::gpu::GpuFacts;

const SPLITS: [usize; 7] = [1, 2, 3, 4, 6, 8, 16];
const SWIZZLES: [usize; 3] = [1, 4, 8];
/// Tiles in workgroup memory, and whether the next waits in registers.
const BUFFERS: [(usize, bool); 4] = [(1, false), (1, true), (2, false), (2, true)];

/// Every legal schedule of the declared space, in a fixed order.
pub fn candidates<'a>(product: &'a Product, gpu: &'a GpuFacts) -> impl Iterator<Item = GpuMatmul> + 'a {
    let all = gemv(product).chain(cooperative(product)).chain(tiled(product));
    all.filter(|it| check("", "", product, it, gpu).is_ok())
}

fn each<T: Copy>(items: &'static [T]) -> impl Iterator<Item = T> + Clone {
    items.iter().copied()
}

fn tiled(product: &Product) -> impl Iterator<Item = GpuMatmul> {
    let vector = product.vector().min(4);
    let tiles =
        each(&[16, 32, 64, 128, 256]).flat_map(|tile_m| each(&[16, 32, 64, 128, 256]).map(move |it| (tile_m, it)));
    let threads = each(&[1, 2, 4, 8, 16]).flat_map(|thread_m| each(&[1, 2, 4, 8, 16]).map(move |it| (thread_m, it)));
    let shapes = tiles.flat_map(move |tile| threads.clone().map(move |thread| (tile, thread)));
    let depths = shapes.flat_map(|shape| each(&[8, 16, 32]).map(move |tile_k| (shape, tile_k)));
    let walks = depths.flat_map(|shape| walks().map(move |it| (shape, it)));
    walks.map(move |((((tile_m, tile_n), (thread_m, thread_n)), tile_k), ((stages, prefetch), split_k, swizzle))| {
        GpuMatmul::Tiled(Tiled {
            tile_m,
            tile_n,
            tile_k,
            thread_m,
            thread_n,
            vector,
            stages,
            prefetch,
            split_k,
            swizzle,
        })
    })
}

fn cooperative(product: &Product) -> impl Iterator<Item = GpuMatmul> {
    let vector = product.vector();
    let subgroups =
        each(&[16, 32, 64, 128]).flat_map(|subgroup_m| each(&[16, 32, 64, 128]).map(move |it| (subgroup_m, it)));
    let shapes = subgroups.flat_map(|(subgroup_m, subgroup_n)| {
        let counts = each(&[1, 2, 4]).flat_map(|rows| each(&[1, 2, 4]).map(move |columns| (rows, columns)));
        counts.map(move |(rows, columns)| (subgroup_m, subgroup_n, rows, columns))
    });
    let depths = shapes.flat_map(|shape| each(&[16, 32, 64]).map(move |tile_k| (shape, tile_k)));
    let walks = depths.flat_map(|shape| walks().map(move |it| (shape, it)));
    walks.map(move |(((subgroup_m, subgroup_n, rows, columns), tile_k), ((stages, prefetch), split_k, swizzle))| {
        let (tile_m, tile_n) = (rows * subgroup_m, columns * subgroup_n);
        GpuMatmul::Cooperative(Cooperative {
            tile_m,
            tile_n,
            tile_k,
            subgroup_m,
            subgroup_n,
            vector,
            stages,
            prefetch,
            split_k,
            swizzle,
        })
    })
}

type Walk = ((usize, bool), usize, usize);

fn walks() -> impl Iterator<Item = Walk> {
    let splits = || each(&SPLITS).flat_map(|split_k| each(&SWIZZLES).map(move |swizzle| (split_k, swizzle)));
    each(&BUFFERS).flat_map(move |buffers| splits().map(move |(split_k, swizzle)| (buffers, split_k, swizzle)))
}

fn gemv(product: &Product) -> impl Iterator<Item = GpuMatmul> {
    // A gemv's loads of A are as wide as its steps allow, so that k does not bound those of B.
    let widest = Product { k: 8, ..*product }.vector();
    let vectors = each(&[1, 2, 4, 8]).filter(move |it| *it <= widest);
    let threads = vectors.flat_map(|vector| each(&[32, 64, 128, 256, 512]).map(move |threads| (vector, threads)));
    let slices = threads.flat_map(|it| each(&[1, 2, 4, 8, 16, 32, 64]).map(move |slices| (it, slices)));
    let unrolls = slices.flat_map(|it| each(&[1, 2, 4, 8, 16]).map(move |unroll| (it, unroll)));
    let splits = unrolls.flat_map(|it| each(&SPLITS).map(move |split_k| (it, split_k)));
    splits.map(|((((vector, threads), slices), unroll), split_k)| {
        GpuMatmul::Gemv(Gemv { threads, vector, slices, unroll, split_k })
    })
}
