//! The analytic proposer of GPU attention.

use crate::{
    host::gpu::GpuFacts,
    plan::gpu::attention::{AttentionShape, CooperativeAttention, GpuAttention, Online},
};

/// The first legal one of the schedules that were fast for such shapes.
pub fn propose(shape: &AttentionShape, gpu: &GpuFacts) -> GpuAttention {
    let legal = |it: &GpuAttention| it.check("", shape, gpu).is_ok();
    cooperative(shape).chain(online(shape)).find(legal).unwrap_or_else(|| GpuAttention::plain(shape, gpu))
}

fn cooperative(shape: &AttentionShape) -> impl Iterator<Item = GpuAttention> + use<> {
    let vectors = widest(shape.head_dim, 8);
    vectors.flat_map(|vector| {
        [(64, 64), (64, 32), (32, 32), (16, 16)].into_iter().map(move |(tile_q, tile_k)| {
            GpuAttention::Cooperative(CooperativeAttention { tile_q, tile_k, vector, prefetch: false })
        })
    })
}

fn online(shape: &AttentionShape) -> impl Iterator<Item = GpuAttention> + use<> {
    let seq = shape.seq;
    let vectors = widest(shape.head_dim, 4);
    vectors.flat_map(move |vector| {
        let tiles =
            [(64, 32, 4, 128), (32, 32, 4, 64), (16, 16, 2, 64), (4, 16, 1, 32), (1, 32, 1, 32), (1, 16, 1, 16)];
        let fitting = tiles.into_iter().filter(move |it| it.0 < 2 * seq);
        fitting.map(move |(tile_q, tile_k, thread_q, threads)| {
            GpuAttention::Online(Online { tile_q, tile_k, thread_q, threads, vector, share_q: false })
        })
    })
}

/// Loads from the widest down that divide rows of `of` elements.
fn widest(of: usize, most: usize) -> impl Iterator<Item = usize> + use<> {
    [8, 4, 2, 1].into_iter().filter(move |it| *it <= most && of.is_multiple_of(*it))
}
