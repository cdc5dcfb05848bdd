//! Matrix products: a schedule becomes one dispatch, or two where K is split, and its epilogue.

use super::{
    Builder,
    builder::{Needs, dispatches},
    real, storage,
};
use kernelforge::{
    host::gpu::GpuFeature,
    manifest::spec::{Activation, Dtype},
    plan::{
        gpu::matmul::{Cooperative, Gemv, GpuMatmul, Product, Tiled, steps},
        program::{Access, Buffer, Dispatch, Step},
    },
    protocol::{Failure, FailureKind},
};
use minijinja::{Value, context, value::Serde};
use serde::Serialize;

/// Invocations of a workgroup that adds up the parts of a split product: few, so that small results reach many cores.
const SUM_THREADS: usize = 64;
/// The block of C's register tiles that 32 neighbouring invocations have: of all shapes it reads the fewest words.
const NEIGHBOURS: (usize, usize) = (4, 8);

/// What is multiplied: a [m, k] with w [k, n]; with a gate, first with the gate's weights.
pub struct Operands {
    pub a: Buffer,
    pub gate: Option<Buffer>,
    pub w: Buffer,
}

/// What becomes of the sums: out = act(a w + bias) * factor + residual, or with a gate
/// out = act(a gate + gate bias) * (a w + bias).
pub struct Epilogue {
    /// [n].
    pub bias: Option<Buffer>,
    pub gate_bias: Option<Buffer>,
    pub activation: Option<Activation>,
    /// [m, n] f32.
    pub factor: Option<Buffer>,
    /// [m, n].
    pub residual: Option<Buffer>,
    /// [m, n].
    pub out: Buffer,
    pub out_dtype: Dtype,
}

impl Epilogue {
    /// Nothing but the product.
    pub const fn plain(out: Buffer, out_dtype: Dtype) -> Self {
        Self { bias: None, gate_bias: None, activation: None, factor: None, residual: None, out, out_dtype }
    }

    /// The context of `epilogue.wgsl`, whose first binding is `first`.
    fn context(&self, product: &Product, width: usize, first: usize) -> Value {
        context! {
            width, first,
            columns => product.n / width,
            bias => self.bias.is_some(),
            gate => product.weights == 2,
            activation => self.activation.map(function),
            factor => self.factor.is_some(),
            residual => self.residual.is_some(),
            real => real(width),
            stored => storage(product.dtype, width),
            out => storage(self.out_dtype, width),
        }
    }

    /// In the order of the bindings of `epilogue.wgsl`.
    fn bindings(&self) -> impl Iterator<Item = (Buffer, Access)> {
        let inputs = [self.bias, self.gate_bias, self.factor, self.residual].into_iter().flatten();
        inputs.map(|it| (it, Access::Read)).chain([(self.out, Access::ReadWrite)])
    }

    fn half(&self, product: &Product) -> bool {
        product.dtype == Dtype::F16 || self.out_dtype == Dtype::F16
    }
}

/// The name of an activation's function in `math.wgsl`, without the width.
const fn function(activation: Activation) -> &'static str {
    match activation {
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_tanh",
        Activation::Silu => "silu",
        Activation::Relu => "relu",
    }
}

/// The steps of a product with a legal schedule.
///
/// # Errors
/// As [`Builder::dispatch`]; `Internal` for a schedule that is not legal here.
pub fn emit(
    builder: &mut Builder,
    product: &Product,
    operands: &Operands,
    epilogue: &Epilogue,
    schedule: &GpuMatmul,
) -> Result<Vec<Step>, Failure> {
    let split_k = schedule.split_k();
    let partials = (split_k > 1).then(|| builder.scratch(product.partial_bytes(split_k)));
    let mut bindings = vec![(operands.a, Access::Read)];
    bindings.extend(operands.gate.map(|it| (it, Access::Read)));
    bindings.push((operands.w, Access::Read));
    match partials {
        Some(partials) => bindings.push((partials, Access::ReadWrite)),
        None => bindings.extend(epilogue.bindings()),
    }
    let multiply = Multiply { product, epilogue, bindings: &bindings };
    let (first, width) = match schedule {
        GpuMatmul::Tiled(it) => (multiply.tiled(builder, it)?, it.vector),
        GpuMatmul::Cooperative(it) => (multiply.cooperative(builder, it)?, it.vector.min(4)),
        GpuMatmul::Gemv(it) => (multiply.gemv(builder, it)?, it.vector.min(4)),
    };
    let sum = partials.map(|it| sum(builder, product, epilogue, it, split_k, width)).transpose()?;
    Ok(dispatches([first].into_iter().chain(sum)))
}

struct Multiply<'a> {
    product: &'a Product,
    epilogue: &'a Epilogue,
    bindings: &'a [(Buffer, Access)],
}

impl Multiply<'_> {
    fn name(&self, method: &str) -> String {
        let Product { m, n, k, weights, .. } = self.product;
        format!("matmul-{method} {m}x{n}x{k}{}", if *weights == 2 { " gated" } else { "" })
    }

    fn half(&self) -> Vec<GpuFeature> {
        if self.epilogue.half(self.product) { vec![GpuFeature::F16] } else { Vec::new() }
    }

    /// What every template of a product wants; `width` elements are finished at once.
    fn context(&self, width: usize) -> Value {
        let Product { m, n, k, weights, .. } = *self.product;
        let epilogue = self.epilogue.context(self.product, width, weights + 1);
        context! { m, n, k, weights, half => self.epilogue.half(self.product), epilogue }
    }

    fn tiled(&self, builder: &mut Builder, s: &Tiled) -> Result<Dispatch, Failure> {
        let (threads_m, threads_n) = (s.tile_m / s.thread_m, s.tile_n / s.thread_n);
        let neighbours = threads_m.is_multiple_of(NEIGHBOURS.0) && threads_n.is_multiple_of(NEIGHBOURS.1);
        let (block_m, block_n) = if neighbours { NEIGHBOURS } else { (1, threads_n) };
        let pieces: &[&str] = match (s.chunk_n(), s.vector) {
            (4, 2) => &[".xy", ".zw"],
            (4, 1) => &[".x", ".y", ".z", ".w"],
            (2, 1) => &[".x", ".y"],
            _ => &[""],
        };
        let grid = Grid::new(self.product, [s.tile_m, s.tile_n, s.tile_k], s.split_k, s.swizzle);
        let context = context! {
            thread_m => s.thread_m, thread_n => s.thread_n, vector => s.vector, stages => s.stages, prefetch => s.prefetch,
            load => storage(self.product.dtype, s.vector),
            threads => s.threads(), chunk_m => s.chunk_m(), chunk_n => s.chunk_n(),
            block_m, block_n, pieces => Serde(pieces),
            ..context! { ..Value::from(Serde(&grid)), ..self.context(s.vector) }
        };
        let needs = Needs {
            workgroup: [s.threads() as u32, 1, 1],
            workgroup_memory: s.workgroup_memory(self.product.weights),
            features: self.half(),
        };
        builder.dispatch(("matmul-tiled.wgsl", self.name("tiled")), context, needs, self.bindings, grid.workgroups())
    }

    fn cooperative(&self, builder: &mut Builder, s: &Cooperative) -> Result<Dispatch, Failure> {
        let missing = || Failure::new(FailureKind::Internal, "a cooperative product on a GPU without matrices");
        let unit = builder.gpu.cooperative_f16().ok_or_else(missing)?.k;
        let subgroup_size = builder.gpu.subgroup_max;
        let threads = s.subgroups() * subgroup_size;
        let grid = Grid::new(self.product, [s.tile_m, s.tile_n, s.tile_k], s.split_k, s.swizzle);
        let context = context! {
            subgroup_m => s.subgroup_m, subgroup_n => s.subgroup_n, vector => s.vector, stages => s.stages,
            prefetch => s.prefetch, unit, subgroup_size, threads,
            word => real(s.vector / 2),
            ..context! {
                ..Value::from(Serde(s.layout(unit, self.product.weights))),
                ..Value::from(Serde(&grid)), ..self.context(s.vector.min(4))
            }
        };
        let needs = Needs {
            workgroup: [threads as u32, 1, 1],
            workgroup_memory: s.workgroup_memory(unit, self.product.weights),
            features: vec![GpuFeature::F16, GpuFeature::Subgroups, GpuFeature::CooperativeMatrix],
        };
        let name = ("matmul-cooperative.wgsl", self.name("cooperative"));
        builder.dispatch(name, context, needs, self.bindings, grid.workgroups())
    }

    fn gemv(&self, builder: &mut Builder, s: &Gemv) -> Result<Dispatch, Failure> {
        let Product { m, n, k, weights, dtype } = *self.product;
        let widths = [4, 2, 1].into_iter();
        let vector_a = widths.filter(|it| k.is_multiple_of(*it) && s.unroll.is_multiple_of(*it)).max().unwrap_or(1);
        // Eight f16 are four words of two.
        let load = if s.vector == 8 { "vec4<u32>".to_owned() } else { storage(dtype, s.vector) };
        let context = context! {
            threads => s.threads, vector => s.vector, slices => s.slices, unroll => s.unroll, split_k => s.split_k,
            vector_a, load, load_a => storage(dtype, vector_a), part => s.part(k),
            ..self.context(s.vector.min(4))
        };
        let needs = Needs {
            workgroup: [s.threads as u32, 1, 1],
            workgroup_memory: s.workgroup_memory(m, weights),
            features: self.half(),
        };
        let columns = n.div_ceil(s.threads / s.slices * s.vector);
        let workgroups = [columns as u32, s.split_k as u32, 1];
        builder.dispatch(("matmul-gemv.wgsl", self.name("gemv")), context, needs, self.bindings, workgroups)
    }
}

/// The workgroups of a tiled product.
#[derive(Serialize)]
struct Grid {
    tile_m: usize,
    tile_n: usize,
    tile_k: usize,
    tiles_m: usize,
    tiles_n: usize,
    split_k: usize,
    /// Steps of K of each part.
    steps: usize,
    swizzle: usize,
    ragged_m: bool,
    ragged_n: bool,
    ragged_k: bool,
}

impl Grid {
    fn new(product: &Product, [tile_m, tile_n, tile_k]: [usize; 3], split_k: usize, swizzle: usize) -> Self {
        let Product { m, n, k, .. } = *product;
        Self {
            tile_m,
            tile_n,
            tile_k,
            tiles_m: m.div_ceil(tile_m),
            tiles_n: n.div_ceil(tile_n),
            split_k,
            steps: steps(k, tile_k, split_k),
            swizzle,
            ragged_m: !m.is_multiple_of(tile_m),
            ragged_n: !n.is_multiple_of(tile_n),
            ragged_k: !k.is_multiple_of(tile_k),
        }
    }

    const fn workgroups(&self) -> [u32; 3] {
        [self.tiles_n as u32, self.tiles_m as u32, self.split_k as u32]
    }
}

/// Adds up the parts of a split product and finishes them.
fn sum(
    builder: &mut Builder,
    product: &Product,
    epilogue: &Epilogue,
    partials: Buffer,
    split_k: usize,
    width: usize,
) -> Result<Dispatch, Failure> {
    let Product { m, n, k, weights, .. } = *product;
    let context = context! {
        m, n, weights, split_k, threads => SUM_THREADS, half => epilogue.half(product),
        epilogue => epilogue.context(product, width, 1),
    };
    let features = if epilogue.half(product) { vec![GpuFeature::F16] } else { Vec::new() };
    let needs = Needs { workgroup: [SUM_THREADS as u32, 1, 1], workgroup_memory: 0, features };
    let bindings: Vec<_> = [(partials, Access::Read)].into_iter().chain(epilogue.bindings()).collect();
    let workgroups = [(n / width).div_ceil(SUM_THREADS) as u32, m as u32, 1];
    builder.dispatch(("matmul-sum.wgsl", format!("matmul-sum {m}x{n}x{k}")), context, needs, &bindings, workgroups)
}

#[cfg(test)]
#[path = "matmul_tests.rs"]
mod tests;
