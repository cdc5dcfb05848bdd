//! The declared space of a GPU: a family for each method, tiles counted in what one invocation or subgroup computes.

use super::{
    Family,
    knob::{Knob, powers, up_to},
};
use crate::{
    host::gpu::{GpuFacts, GpuFeature},
    manifest::spec::Dtype,
    plan::{
        gpu::{
            Shape,
            attention::{AttentionShape, FRAGMENT},
            matmul::{GEMV_ROWS, MlpShape, Product},
            rows::{ElementShape, NormShape},
        },
        stage::StageOp,
    },
};

/// Steps of K that a part of a split product has at least: with fewer the second dispatch takes longer than the first saves.
const LEAST_PART: usize = 32;

pub fn families(op: &StageOp, dtype: Dtype, gpu: &GpuFacts, hybrid_softmax: bool) -> Vec<Family> {
    match Shape::of(op, dtype) {
        Shape::Product(product) => {
            let family = |(method, knobs)| {
                Family::new(&format!("gpu-matmul {method}"), &[("kernel", "gpu-matmul"), ("method", method)], knobs)
            };
            methods(&product, gpu).into_iter().map(family).collect()
        }
        Shape::Mlp(shape) => mlp(&shape, gpu),
        Shape::Attention(shape) => attention(&shape, gpu, hybrid_softmax),
        Shape::Norm(shape) => vec![Family::new("gpu-norm", &[("kernel", "gpu-norm")], norm(&shape, gpu))],
        Shape::Elements(shape) => {
            vec![Family::new("gpu-elementwise", &[("kernel", "gpu-elementwise")], elementwise(&shape, gpu))]
        }
    }
}

/// Widths of loads up to `widest` that divide every one of `extents`, the widest first.
fn vector(widest: usize, extents: &[usize]) -> Knob {
    let divides = |it: &usize| extents.iter().all(|extent| extent.is_multiple_of(*it));
    let mut widths: Vec<usize> = powers(1, widest).filter(divides).collect();
    widths.reverse();
    Knob::number("vector", widths)
}

/// The ways to compute a product, with their knobs.
fn methods(product: &Product, gpu: &GpuFacts) -> Vec<(&'static str, Vec<Knob>)> {
    let mut methods = vec![("tiled", tiled(product))];
    let unit = gpu.cooperative_f16().filter(|_| {
        let features = [GpuFeature::CooperativeMatrix, GpuFeature::Subgroups];
        product.dtype == Dtype::F16 && features.into_iter().all(|it| gpu.has(it)) && product.vector() > 1
    });
    methods.extend(unit.map(|it| ("cooperative", cooperative(product, it.k))));
    methods.extend((product.m <= GEMV_ROWS).then(|| ("gemv", gemv(product, gpu))));
    methods
}

fn tiled(product: &Product) -> Vec<Knob> {
    let Product { m, n, k, .. } = *product;
    let (thread, count) = ([1, 2, 4, 8, 16], [1, 2, 4, 8, 16, 32, 64]);
    let mut knobs = vec![
        Knob::number("thread-m", up_to(m, &thread)),
        Knob::number("thread-n", up_to(n, &thread)),
        Knob::number("tile-m", up_to(m, &count)).times("thread-m"),
        Knob::number("tile-n", up_to(n, &count)).times("thread-n"),
        Knob::number("tile-k", up_to(k, &[8, 16, 32])),
        vector(4, &[k, n]),
    ];
    knobs.extend(walk(product));
    knobs
}

/// In units of the device's matrices.
fn cooperative(product: &Product, unit: usize) -> Vec<Knob> {
    let Product { m, n, k, .. } = *product;
    let matrices = |extent: usize| up_to(extent, &[1, 2, 4, 8].map(|it| it * unit));
    let mut knobs = vec![
        Knob::number("subgroup-m", matrices(m)),
        Knob::number("subgroup-n", matrices(n)),
        Knob::number("tile-m", [1, 2, 4]).times("subgroup-m"),
        Knob::number("tile-n", [1, 2, 4]).times("subgroup-n"),
        Knob::number("tile-k", up_to(k, &[1, 2, 4].map(|it| it * unit))),
        Knob::number("vector", [8, 4, 2].into_iter().filter(|it| k.is_multiple_of(*it) && n.is_multiple_of(*it))),
        Knob::flag("transpose"),
    ];
    knobs.extend(walk(product));
    knobs
}

/// How tiles are buffered, how K is split, and in which order tiles are walked.
fn walk(product: &Product) -> Vec<Knob> {
    vec![
        Knob::number("stages", [1, 2]),
        Knob::number("prefetch", [0, 1, 2]),
        split_k(product.k),
        Knob::number("swizzle", up_to(product.m.div_ceil(16), &[1, 2, 4, 8])),
    ]
}

fn split_k(k: usize) -> Knob {
    Knob::number("split-k", [1, 2, 3, 4, 6, 8, 16].into_iter().filter(|it| *it == 1 || k / it >= LEAST_PART))
}

fn gemv(product: &Product, gpu: &GpuFacts) -> Vec<Knob> {
    let widest = if product.dtype == Dtype::F16 { 8 } else { 4 };
    vec![
        // Columns side by side, and parts of K: their product is the workgroup.
        Knob::number("slices", powers(1, 64.min(product.k.next_power_of_two()))),
        Knob::number("threads", powers(1, gpu.workgroup_invocations.min(512))).times("slices"),
        vector(widest, &[product.n]),
        Knob::number("unroll", up_to(product.k, &[1, 2, 4, 8, 16])),
        split_k(product.k),
    ]
}

/// Every pair of methods.
fn mlp(shape: &MlpShape, gpu: &GpuFacts) -> Vec<Family> {
    let (up, down) = (methods(&shape.up(false), gpu), methods(&shape.down(), gpu));
    let pairs = up.iter().flat_map(|up| down.iter().map(move |down| (up, down)));
    type Method = (&'static str, Vec<Knob>);
    let family = |((up, first), (down, second)): (&Method, &Method)| {
        let fuse = if shape.gated { Knob::flag("fuse-gate") } else { Knob::fixed_flag("fuse-gate", false) };
        let first = first.iter().cloned().map(|it| it.of("up."));
        let second = second.iter().cloned().map(|it| it.of("down."));
        let knobs = std::iter::once(fuse).chain(first).chain(second).collect();
        let fixed = [("kernel", "gpu-mlp"), ("up.method", *up), ("down.method", *down)];
        Family::new(&format!("gpu-mlp {up}, {down}"), &fixed, knobs)
    };
    pairs.map(family).collect()
}

fn attention(shape: &AttentionShape, gpu: &GpuFacts, hybrid_softmax: bool) -> Vec<Family> {
    let family = |method: &'static str, knobs| {
        let fixed = [("kernel", "gpu-attention"), ("method", method)];
        Family::new(&format!("gpu-attention {method}"), &fixed, knobs)
    };
    let AttentionShape { seq, head_dim, .. } = *shape;
    if hybrid_softmax {
        let knobs = vec![
            Knob::number("tile-q", [4, 8, 16, 32, 64]),
            Knob::number("tile-k", [16, 32, 64]),
            Knob::number("threads", powers(32, gpu.workgroup_invocations.min(256))),
        ];
        return vec![family("host-softmax", knobs)];
    }
    let online = vec![
        Knob::number("thread-q", up_to(seq, &[1, 2, 4, 8])),
        Knob::number("tile-q", up_to(seq, &[1, 2, 4, 8, 16, 32, 64])).times("thread-q"),
        Knob::number("tile-k", [4, 8, 16, 32, 64, 128]),
        Knob::number("threads", powers(4, gpu.workgroup_invocations.min(512))),
        vector(4, &[head_dim]),
        Knob::flag("share-q"),
    ];
    let mut families = vec![family("online", online)];
    if shape.dtype == Dtype::F16 && gpu.has(GpuFeature::CooperativeMatrix) && head_dim.is_multiple_of(FRAGMENT) {
        let knobs = vec![
            Knob::number("subgroup-q", up_to(seq, &[FRAGMENT, 2 * FRAGMENT])),
            Knob::number("tile-q", [1, 2, 4, 8]).times("subgroup-q"),
            Knob::number("chunk", [1, 2, 4].map(|it| it * FRAGMENT)),
            Knob::number("tile-k", [1, 2, 4, 8]).times("chunk"),
            Knob::flag("padded"),
            vector(8, &[head_dim]),
            Knob::flag("prefetch"),
        ];
        families.push(family("cooperative", knobs));
    }
    families
}

fn norm(shape: &NormShape, gpu: &GpuFacts) -> Vec<Knob> {
    vec![
        Knob::number("width", powers(1, gpu.workgroup_invocations.min(1024))),
        Knob::number("rows", up_to(shape.rows, &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])),
        vector(4, &[shape.columns]),
        if gpu.has(GpuFeature::Subgroups) { Knob::flag("subgroups") } else { Knob::fixed_flag("subgroups", false) },
    ]
}

fn elementwise(shape: &ElementShape, gpu: &GpuFacts) -> Vec<Knob> {
    vec![
        Knob::number("threads", powers(32.min(gpu.workgroup_invocations), gpu.workgroup_invocations)),
        vector(4, &[shape.run]),
        Knob::number("unroll", [1, 2, 4, 8, 16]),
    ]
}
