//! The analytic proposer of GPU attention.

use crate::{
    host::gpu::GpuFacts,
    plan::gpu::attention::{AttentionShape, CooperativeAttention, GpuAttention, Online},
};

/// Workgroups that occupy a large device: with fewer, smaller tiles of queries win.
const WORKGROUPS: usize = 256;
/// The same on cooperative matrices, whose workgroups fill a multiprocessor sooner: 512 tokens with 16 heads of 128 took 31 us in
/// 64 workgroups on an H100, 25 in 128, 27 in 256.
const COOPERATIVE_WORKGROUPS: usize = 128;
/// Tokens from which cooperative matrices win: 12 heads of 64 took 7.1 us for 128 tokens on an H100 and 7.3 for 32, the online kernel 9.4
/// and 5.8.
const COOPERATIVE_TOKENS: usize = 64;

/// Cooperative matrices where they are legal and worth it, else the online kernel: what is legal of the schedules that were fastest
/// on a large device, the largest tiles that still make workgroups enough first.
pub fn propose(shape: &AttentionShape, gpu: &GpuFacts) -> GpuAttention {
    let legal = |it: &GpuAttention| it.check("", shape, gpu).is_ok();
    let matrices = (shape.seq >= COOPERATIVE_TOKENS).then(|| cooperative(shape, gpu)).flatten();
    matrices.or_else(|| online(shape).find(legal)).unwrap_or_else(|| GpuAttention::plain(shape, gpu))
}

/// The kernel on cooperative matrices, where it is legal. On an H100, of 2048 tokens and 32 heads, masked:
///
/// - heads of 128: 236 us with 8 subgroups of 16 rows and tiles of 64 keys, 252 with 4 and 32, 274 with 4 of 32 rows, whose
///   accumulators do not all stay in registers.
/// - heads of 64: 117 us with 4 subgroups of 32 rows, 162 with 4 of 16, 166 with 2 of 32. Rows that are not padded let two
///   workgroups run side by side in the 48 KiB or so of workgroup memory that the driver gives to each multiprocessor.
pub fn cooperative(shape: &AttentionShape, gpu: &GpuFacts) -> Option<GpuAttention> {
    // Rows of a workgroup and of a subgroup, keys of a tile and of a chunk, padded.
    let wide = if shape.head_dim <= 64 { (128, 32, 64, 16, false) } else { (128, 16, 64, 32, true) };
    let all = [wide, (64, 16, 32, 32, true), (32, 16, 64, 32, true), (32, 16, 32, 16, true), (16, 16, 16, 16, false)];
    // Narrow heads have no use for the one between: 512 tokens and 12 heads of 64 took 17.5 us with 32 rows, 22 with 64.
    let all = all.into_iter().filter(|it| it.0 != 64 || shape.head_dim > 64);
    let fills = |rows: usize| shape.batch * shape.heads * shape.seq.div_ceil(rows) >= COOPERATIVE_WORKGROUPS;
    let fitting = all.filter(|it| it.0 <= 32 || fills(it.0));
    let legal = |it: &GpuAttention| it.check("", shape, gpu).is_ok();
    let mut schedules = fitting.flat_map(|(tile_q, subgroup_q, tile_k, chunk, padded)| {
        widest(shape.head_dim, 8).map(move |vector| {
            let prefetch = true;
            let it = CooperativeAttention { tile_q, subgroup_q, tile_k, chunk, padded, vector, prefetch };
            GpuAttention::Cooperative(it)
        })
    });
    schedules.find(legal)
}

/// Few accumulators for each invocation and many invocations: 64 x 32 tiles took 2.0 ms for 32 heads of 128 and 2048 tokens on an
/// H200 with 256 invocations, 7.6 with 128, 10.3 with 64.
fn online(shape: &AttentionShape) -> impl Iterator<Item = GpuAttention> + use<'_> {
    let all = [
        (64, 32, 4, 256),
        (32, 32, 2, 128),
        (16, 64, 2, 128),
        (16, 32, 2, 128),
        (16, 16, 2, 64),
        (8, 32, 2, 64),
        (4, 32, 1, 64),
        (1, 32, 1, 32),
        (1, 16, 1, 16),
    ];
    let fitting = move |tile_q| tile_q < 2 * shape.seq && (fills(shape, tile_q) || tile_q <= 16);
    widest(shape.head_dim, 4).flat_map(move |vector| {
        all.into_iter().filter(move |it| fitting(it.0)).map(move |(tile_q, tile_k, thread_q, threads)| {
            GpuAttention::Online(Online { tile_q, tile_k, thread_q, threads, vector, share_q: false })
        })
    })
}

fn fills(shape: &AttentionShape, tile_q: usize) -> bool {
    shape.batch * shape.heads * shape.seq.div_ceil(tile_q) >= WORKGROUPS
}

/// Loads from the widest down that divide rows of `of` elements.
fn widest(of: usize, most: usize) -> impl Iterator<Item = usize> + use<> {
    [8, 4, 2, 1].into_iter().filter(move |it| *it <= most && of.is_multiple_of(*it))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::graph::tests::gpu, host::gpu::GpuFeature, manifest::spec::Dtype, plan::gpu::attention::FRAGMENT,
    };
    use proptest::prelude::*;

    fn shapes() -> impl Strategy<Value = AttentionShape> {
        let sizes = (1usize..3, 1usize..3000, 1usize..5, 1usize..5, 1usize..160);
        (sizes, any::<bool>(), any::<bool>()).prop_map(|((batch, seq, kv_heads, group, head_dim), causal, half)| {
            let dtype = if half { Dtype::F16 } else { Dtype::F32 };
            AttentionShape { batch, seq, heads: kv_heads * group, kv_heads, head_dim, causal, scale: 0.1, dtype }
        })
    }

    fn large() -> GpuFacts {
        GpuFacts { features: GpuFeature::ALL.to_vec(), ..gpu() }
    }

    /// A small device without anything optional but f16.
    fn small() -> GpuFacts {
        let features = vec![GpuFeature::F16];
        let (subgroup_min, subgroup_max, workgroup_memory) = (8, 8, 32 << 10);
        GpuFacts { features, subgroup_min, subgroup_max, workgroup_memory, cooperative: vec![], ..gpu() }
    }

    proptest! {
        #![proptest_config(crate::testing::cases(128))]
        /// Proposals and plain schedules pass gate V0 on a large and a small device.
        #[test]
        fn proposals_are_legal(shape in shapes(), is_large in any::<bool>()) {
            let gpu = if is_large { large() } else { small() };
            prop_assert_eq!(propose(&shape, &gpu).check("s", &shape, &gpu), Ok(()));
            prop_assert_eq!(GpuAttention::plain(&shape, &gpu).check("s", &shape, &gpu), Ok(()));
            let possible = is_large && shape.dtype == Dtype::F16 && shape.head_dim.is_multiple_of(FRAGMENT);
            prop_assert_eq!(cooperative(&shape, &gpu).is_some(), possible);
        }
    }

    #[test]
    fn f16_of_64_tokens_and_more_goes_to_matrices_in_the_largest_tiles_that_occupy_the_device() {
        let rows = |seq, heads, head_dim, dtype| {
            let (causal, scale) = (true, 0.1);
            let shape = AttentionShape { batch: 1, seq, heads, kv_heads: heads, head_dim, causal, scale, dtype };
            match propose(&shape, &large()) {
                GpuAttention::Cooperative(it) => Some((it.tile_q, it.subgroup_q)),
                _ => None,
            }
        };
        let f16 = |seq, heads, head_dim| rows(seq, heads, head_dim, Dtype::F16);
        assert_eq!(
            [f16(2048, 32, 128), f16(512, 16, 128), f16(128, 16, 128)],
            [Some((128, 16)), Some((64, 16)), Some((32, 16))]
        );
        assert_eq!([f16(2048, 32, 64), f16(512, 12, 64), f16(63, 12, 64)], [Some((128, 32)), Some((32, 16)), None]);
        assert_eq!([f16(2048, 32, 72), rows(2048, 32, 128, Dtype::F32)], [None, None]);
    }

    #[test]
    fn long_sequences_get_large_tiles_and_short_ones_many_workgroups() {
        let shape = |seq, heads, head_dim| {
            let (causal, scale, dtype) = (true, 0.1, Dtype::F32);
            AttentionShape { batch: 1, seq, heads, kv_heads: heads, head_dim, causal, scale, dtype }
        };
        let tile_q = |shape: AttentionShape| match propose(&shape, &gpu()) {
            GpuAttention::Online(it) => it.tile_q,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            [tile_q(shape(2048, 32, 128)), tile_q(shape(512, 16, 128)), tile_q(shape(128, 12, 64))],
            [64, 32, 16]
        );
        assert_eq!(tile_q(shape(1, 12, 64)), 1);
    }
}
