//! The analytic proposer of GPU attention.

use crate::{
    host::gpu::GpuFacts,
    plan::gpu::attention::{AttentionShape, CooperativeAttention, GpuAttention, Online},
};

/// Workgroups that occupy a large device: with fewer, smaller tiles of queries win.
const WORKGROUPS: usize = 256;

/// The online kernel: what is legal of the schedules that were fastest on an H200, the largest tiles that still make workgroups
/// enough first.
///
/// [`cooperative`] is not asked: no device has yet passed a kernel of it.
pub fn propose(shape: &AttentionShape, gpu: &GpuFacts) -> GpuAttention {
    let legal = |it: &GpuAttention| it.check("", shape, gpu).is_ok();
    online(shape).find(legal).unwrap_or_else(|| GpuAttention::plain(shape, gpu))
}

/// The kernel on cooperative matrices, where it is legal. Two subgroups of 16 rows or more share tiles of 32 keys: 64 rows by
/// 32 keys took 0.37 ms for 32 heads of 128 and 2048 tokens on an H200, 32 rows by 64 keys 1.2 ms.
pub fn cooperative(shape: &AttentionShape, gpu: &GpuFacts) -> Option<GpuAttention> {
    let legal = |it: &GpuAttention| it.check("", shape, gpu).is_ok();
    let all = widest(shape.head_dim, 4).flat_map(|vector| {
        let tiles = [(64, 32), (32, 32), (16, 32), (16, 16)].into_iter().filter(|it| fills(shape, it.0) || it.0 == 16);
        tiles.map(move |(tile_q, tile_k)| {
            GpuAttention::Cooperative(CooperativeAttention { tile_q, tile_k, vector, prefetch: false })
        })
    });
    all.into_iter().find(legal)
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
