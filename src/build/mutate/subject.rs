//! Blocks small enough for hundreds of trials.

use crate::{
    build::graph::BlockTarget,
    manifest::spec::{AttentionSpec, BlockSpec, MlpSpec, RowsSpec},
};

/// A block whose mutants are judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject {
    /// With the specification that is mutated.
    pub block: BlockTarget,
    /// It has the structure of the manifest's block and smaller sizes.
    pub scaled: bool,
}

/// f32 elements of weights up to which a block is taken as it is: a megabyte.
const SMALL: usize = 256 << 10;

/// The blocks, scaled down where they are large, each structure once: what differs only in size has the same mutants.
pub fn subjects(blocks: &[BlockTarget]) -> Vec<Subject> {
    let mut subjects: Vec<Subject> = Vec::new();
    for block in blocks {
        let scaled = weights(&block.spec) + activations(&block.spec) > SMALL;
        let spec = worth_mutating(&block.spec);
        let spec = if scaled { scale(&spec) } else { spec };
        let subject = Subject { block: BlockTarget { spec, ..block.clone() }, scaled };
        let same = |it: &Subject| BlockTarget { name: block.name.clone(), ..it.block.clone() } == subject.block;
        if !subjects.iter().any(same) {
            subjects.push(subject);
        }
    }
    subjects
}

/// With one token the keys decide nothing, and half of the mistakes in a block are none: of a transformer block its MLP is
/// taken, which has the code for a single row; attention alone gets a second token.
fn worth_mutating(spec: &BlockSpec) -> BlockSpec {
    let mut spec = spec.clone();
    match &mut spec {
        BlockSpec::Transformer { rows, mlp, dtype, .. } if rows.seq == 1 => {
            return BlockSpec::Mlp { rows: *rows, mlp: *mlp, dtype: *dtype };
        }
        BlockSpec::TransformerMicroblock { rows, .. } | BlockSpec::Attention { rows, .. } => rows.seq = rows.seq.max(2),
        _ => {}
    }
    spec
}

fn weights(spec: &BlockSpec) -> usize {
    let attention = |it: &AttentionSpec| 2 * it.d_model * (it.heads + it.kv_heads) * it.head_dim;
    let mlp = |it: &MlpSpec| it.d_model * it.d_ff * if it.gated { 3 } else { 2 };
    match spec {
        BlockSpec::Transformer { attention: a, mlp: m, .. } => attention(a) + mlp(m),
        BlockSpec::TransformerMicroblock { attention: a, .. } | BlockSpec::Attention { attention: a, .. } => {
            attention(a)
        }
        BlockSpec::Microblock { n, k, .. } | BlockSpec::Matmul { n, k, .. } => n * k,
        BlockSpec::Mlp { mlp: m, .. } => mlp(m),
        BlockSpec::LayerNorm { d_model, .. } => *d_model,
    }
}

fn activations(spec: &BlockSpec) -> usize {
    match spec {
        BlockSpec::Transformer { rows, mlp, .. } | BlockSpec::Mlp { rows, mlp, .. } => rows.rows() * mlp.d_ff,
        BlockSpec::TransformerMicroblock { rows, attention, .. } | BlockSpec::Attention { rows, attention, .. } => {
            rows.rows() * attention.d_model
        }
        BlockSpec::Microblock { m, n, k, .. } | BlockSpec::Matmul { m, n, k, .. } => m * n.max(k),
        BlockSpec::LayerNorm { rows, d_model, .. } => rows.rows() * d_model,
    }
}

/// The same structure in small: no size is a multiple of the register tile, so that tails and masks are generated too.
fn scale(spec: &BlockSpec) -> BlockSpec {
    let mut spec = spec.clone();
    match &mut spec {
        BlockSpec::Transformer { rows, attention, mlp, .. } => {
            scale_rows(rows);
            scale_attention(attention);
            scale_mlp(mlp, attention.d_model);
        }
        BlockSpec::TransformerMicroblock { rows, attention, .. } | BlockSpec::Attention { rows, attention, .. } => {
            scale_rows(rows);
            scale_attention(attention);
        }
        BlockSpec::Mlp { rows, mlp, .. } => {
            scale_rows(rows);
            scale_mlp(mlp, 56);
        }
        BlockSpec::Microblock { m, n, k, .. } | BlockSpec::Matmul { m, n, k, .. } => {
            (*m, *n, *k) = ((*m).min(13), (*n).min(72), (*k).min(70));
        }
        BlockSpec::LayerNorm { rows, d_model, .. } => {
            scale_rows(rows);
            *d_model = (*d_model).min(100);
        }
    }
    spec
}

/// Two sequences stay two: batches are a structure of their own. 37 keys are more than two vectors of 16, so that the loops over
/// whole vectors run more than once.
fn scale_rows(rows: &mut RowsSpec) {
    *rows = RowsSpec { batch: rows.batch.min(2), seq: rows.seq.min(37) };
}

fn scale_attention(it: &mut AttentionSpec) {
    let (heads, kv_heads) = if it.kv_heads == it.heads { (it.heads.min(3), it.heads.min(3)) } else { (4, 2) };
    let head_dim = it.head_dim.min(20);
    *it = AttentionSpec { d_model: heads * head_dim, heads, kv_heads, head_dim, ..*it };
}

fn scale_mlp(it: &mut MlpSpec, d_model: usize) {
    *it = MlpSpec { d_model, d_ff: it.d_ff.min(104), ..*it };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::CpuFacts,
        manifest::{
            Tuning,
            spec::{Activation, Dtype, NormKind, NormSpec},
        },
    };
    use std::sync::Arc;

    fn transformer(seq: usize, d_model: usize, heads: usize, kv_heads: usize) -> BlockTarget {
        let attention = AttentionSpec {
            d_model,
            heads,
            kv_heads,
            head_dim: d_model / heads,
            qkv_bias: true,
            out_bias: true,
            causal: true,
            rope_theta: 0.0,
        };
        let mlp = MlpSpec { d_model, d_ff: 4 * d_model, activation: Activation::Gelu, gated: false, bias: true };
        let norm = NormSpec { kind: NormKind::LayerNorm, eps: 1e-5 };
        let rows = RowsSpec { batch: 1, seq };
        BlockTarget {
            name: format!("block-s{seq}"),
            spec: BlockSpec::Transformer { rows, attention, norm, mlp, dtype: Dtype::F32 },
            passes: Vec::new(),
            tuning: Tuning::heuristic("default".to_owned()),
            target: "cpu".to_owned(),
            threads: 1,
            device: Arc::new(CpuFacts::detect().into()),
            hybrid_softmax: false,
        }
    }

    #[test]
    fn a_small_block_is_taken_as_it_is() {
        let block = transformer(16, 64, 4, 4);
        let subjects = subjects(std::slice::from_ref(&block));
        assert_eq!((&subjects[0].block.spec, subjects[0].scaled), (&block.spec, false));
    }

    #[test]
    fn large_blocks_of_one_structure_become_one_subject() {
        let blocks = [transformer(1, 768, 12, 12), transformer(128, 768, 12, 12), transformer(512, 768, 12, 12)];
        let names: Vec<_> = subjects(&blocks).into_iter().map(|it| it.block.name).collect();
        assert_eq!(names, ["block-s1", "block-s128"]);
        assert!(matches!(subjects(&blocks)[0].block.spec, BlockSpec::Mlp { .. }));
    }

    #[test]
    fn grouped_heads_stay_grouped() {
        let BlockSpec::Transformer { attention, mlp, .. } = scale(&transformer(128, 4096, 32, 8).spec) else {
            unreachable!()
        };
        assert_eq!((attention.heads, attention.kv_heads, mlp.d_model), (4, 2, attention.d_model));
    }
}
