//! The analytic heuristic for GPUs: a schedule for each stage from its shape and the device's features and limits.

use super::{gpu_attention, gpu_matmul, gpu_rows};
use crate::{
    host::gpu::GpuFacts,
    manifest::spec::Dtype,
    plan::{
        gpu::{
            Shape,
            attention::{AttentionShape, GpuAttention, HostSoftmax},
            matmul::{self, GpuMlp, MlpShape},
        },
        schedule::Schedule,
        stage::{StageGraph, StageOp},
    },
};
use std::collections::BTreeMap;

/// A schedule for every stage that a pass asked one for, by stage name. `hybrid_softmax`: attention leaves its softmax to the CPU.
pub fn propose(graph: &StageGraph, gpu: &GpuFacts, hybrid_softmax: bool) -> BTreeMap<String, Schedule> {
    let scheduled = graph.stages.iter().filter(|it| it.scheduled);
    let dtype = |it| graph.tensor(it).dtype;
    scheduled.map(|it| (it.name.clone(), schedule(&it.op, dtype(it.output), gpu, hybrid_softmax))).collect()
}

fn schedule(op: &StageOp, dtype: Dtype, gpu: &GpuFacts, hybrid_softmax: bool) -> Schedule {
    match Shape::of(op, dtype) {
        Shape::Product(product) => Schedule::GpuMatmul(gpu_matmul::propose(&product, gpu)),
        Shape::Mlp(shape) => Schedule::GpuMlp(mlp(&shape, gpu)),
        Shape::Attention(shape) if hybrid_softmax => Schedule::GpuAttention(host_softmax(&shape, gpu)),
        Shape::Attention(shape) => Schedule::GpuAttention(gpu_attention::propose(&shape, gpu)),
        Shape::Norm(shape) => Schedule::GpuNorm(gpu_rows::norm(&shape, gpu)),
        Shape::Elements(shape) => Schedule::GpuElementwise(gpu_rows::elementwise(&shape, gpu)),
    }
}

/// Both weights of a gated MLP in one kernel, which reads the rows once and writes no second hidden buffer, where it is legal.
fn mlp(shape: &MlpShape, gpu: &GpuFacts) -> GpuMlp {
    let with = |fuse_gate| GpuMlp {
        fuse_gate,
        up: gpu_matmul::propose(&shape.up(fuse_gate), gpu),
        down: gpu_matmul::propose(&shape.down(), gpu),
    };
    let fused = with(true);
    if shape.gated && matmul::check_mlp("", shape, &fused, gpu).is_ok() { fused } else { with(false) }
}

/// The largest tiles that the device takes: every tile of queries reads all keys again. Where none is legal the check names the
/// knob of the first.
fn host_softmax(shape: &AttentionShape, gpu: &GpuFacts) -> GpuAttention {
    let tiles = [(32, 32, 128), (32, 32, 256), (16, 32, 128), (16, 16, 64), (16, 16, 128), (4, 16, 64), (4, 16, 32)];
    let all = tiles.map(|(tile_q, tile_k, threads)| GpuAttention::HostSoftmax(HostSoftmax { tile_q, tile_k, threads }));
    let [first, ..] = &all;
    all.iter().find(|it| it.check("", shape, gpu).is_ok()).unwrap_or(first).clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::graph::tests::gpu,
        host::{Device, gpu::GpuFeature},
        manifest::spec::Activation,
        plan::{
            constraint,
            stage::{Stage, TensorId},
        },
    };
    use proptest::prelude::*;

    fn lavapipe() -> GpuFacts {
        GpuFacts {
            features: vec![GpuFeature::F16, GpuFeature::Timestamps],
            subgroup_min: 8,
            subgroup_max: 8,
            workgroup_memory: 32 << 10,
            cooperative: Vec::new(),
            ..gpu()
        }
    }

    fn ops() -> impl Strategy<Value = StageOp> {
        let size = 1usize..3000;
        let (activation, bias, residual) = (Activation::Silu, true, false);
        prop_oneof![
            (size.clone(), size.clone(), size.clone())
                .prop_map(move |(m, n, k)| { StageOp::Matmul { m, n, k, bias, activation: None, residual } }),
            (size.clone(), size.clone(), size.clone(), any::<bool>()).prop_map(move |(rows, d_model, d_ff, gated)| {
                StageOp::Mlp { rows, d_model, d_ff, activation, gated, bias, residual }
            }),
            (1usize..2000, 1usize..32).prop_map(|(seq, eighth)| StageOp::Attention {
                batch: 1,
                seq,
                heads: 4,
                kv_heads: 2,
                head_dim: 8 * eighth,
                causal: true,
                scale: 1.0
            }),
            (size.clone(), size.clone()).prop_map(|(rows, width)| StageOp::RmsNorm { rows, width, eps: 1e-5 }),
            (size.clone(), size).prop_map(|(rows, width)| StageOp::Add { rows, width }),
        ]
    }

    proptest! {
        #![proptest_config(crate::testing::cases(128))]
        /// Whatever the shape, what the heuristic proposes passes gate V0, on a real GPU and on a software one.
        #[test]
        fn every_proposal_is_legal(op in ops(), software: bool, half: bool, hybrid: bool) {
            let gpu = if software { lavapipe() } else { gpu() };
            let dtype = if half { Dtype::F16 } else { Dtype::F32 };
            let (proposed, device) = (schedule(&op, dtype, &gpu, hybrid), Device::from(gpu));
            let stage = Stage { name: "s".into(), op, inputs: vec![], output: TensorId(0), scheduled: true };
            prop_assert_eq!(constraint::check(&stage, dtype, &proposed, &device), Ok(()));
            let plain = Schedule::plain(&stage.op, dtype, &device);
            prop_assert_eq!(constraint::check(&stage, dtype, &plain, &device), Ok(()));
        }
    }

    #[test]
    fn a_hybrid_softmax_is_the_cpus() {
        let attention = |hybrid| {
            let op = StageOp::Attention {
                batch: 1,
                seq: 128,
                heads: 4,
                kv_heads: 4,
                head_dim: 64,
                causal: true,
                scale: 0.125,
            };
            schedule(&op, Dtype::F32, &gpu(), hybrid)
        };
        assert!(matches!(attention(true), Schedule::GpuAttention(GpuAttention::HostSoftmax(_))));
        assert!(!matches!(attention(false), Schedule::GpuAttention(GpuAttention::HostSoftmax(_))));
    }
}
