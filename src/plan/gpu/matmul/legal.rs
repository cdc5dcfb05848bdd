//! Which schedules of a matrix product are legal, and for a broken rule the knob, its value, the limit, and whose limit it is.

use super::{
    super::super::constraint::{Knobs, Violation},
    Cooperative, Gemv, GpuMatmul, GpuMlp, MlpShape, Product, Tiled,
};
use crate::{
    host::gpu::{GpuFacts, GpuFeature},
    manifest::spec::Dtype,
};
use std::borrow::Cow;

/// Sums that one invocation keeps in registers. GPUs give an invocation 255 registers at most, and operands and addresses need
/// their share.
const SUMS: usize = 192;
/// Multiply-adds written out: drivers took 0.9 s for a text of 4096.
const WRITTEN_OUT: usize = 4096;
/// Storage buffers of a shader beyond A and B: two biases, a residual or a factor, and C; and A.
const BINDINGS: usize = 5;
/// Rows of A that a gemv keeps apart in registers.
pub const GEMV_ROWS: usize = 8;

/// Checks every constraint of `schedule` for `product` on `gpu`. `prefix` comes before the names of knobs, e.g. `up.`.
///
/// # Errors
/// The first rule that is broken.
pub fn check(
    stage: &str,
    prefix: &str,
    product: &Product,
    schedule: &GpuMatmul,
    gpu: &GpuFacts,
) -> Result<(), Violation> {
    let rules = Rules { knobs: Knobs::new(stage, gpu), prefix, product };
    match schedule {
        GpuMatmul::Tiled(it) => rules.tiled(it),
        GpuMatmul::Cooperative(it) => rules.cooperative(it),
        GpuMatmul::Gemv(it) => rules.gemv(it),
    }
}

/// As [`check`], for both products of a fused MLP.
///
/// # Errors
/// The first rule that is broken.
pub fn check_mlp(stage: &str, shape: &MlpShape, schedule: &GpuMlp, gpu: &GpuFacts) -> Result<(), Violation> {
    if schedule.fuse_gate && !shape.gated {
        let knobs = Knobs::new(stage, gpu);
        return Err(knobs.violation("fuse-gate", true, "needs a gated MLP: there is no gate to fuse"));
    }
    check(stage, "up.", &shape.up(schedule.fuse_gate), &schedule.up, gpu)?;
    check(stage, "down.", &shape.down(), &schedule.down, gpu)
}

struct Rules<'a> {
    knobs: Knobs<'a, GpuFacts>,
    prefix: &'a str,
    product: &'a Product,
}

impl Rules<'_> {
    fn gpu(&self) -> &GpuFacts {
        self.knobs.device
    }

    fn name<'k>(&self, knob: &'k str) -> Cow<'k, str> {
        if self.prefix.is_empty() { knob.into() } else { format!("{}{knob}", self.prefix).into() }
    }

    fn refuse(&self, knob: &str, value: impl ToString, rule: impl Into<String>) -> Result<(), Violation> {
        Err(self.knobs.violation(&self.name(knob), value, rule))
    }

    fn range(&self, knob: &str, value: usize, low: usize, high: usize, why: &str) -> Result<(), Violation> {
        self.knobs.range(&self.name(knob), value, low, high, why)
    }

    fn multiple(&self, knob: &str, value: usize, of: &str, unit: usize) -> Result<(), Violation> {
        let own = if of.contains(' ') { of.to_owned() } else { self.name(of).into_owned() };
        self.knobs.multiple(&self.name(knob), value, &own, unit)
    }

    fn tiled(&self, s: &Tiled) -> Result<(), Violation> {
        let weights = self.product.weights;
        self.tensors()?;
        self.range("thread-m", s.thread_m, 1, 32, "rows of a register tile")?;
        self.range("thread-n", s.thread_n, 1, 32, "columns of a register tile")?;
        self.sums("thread-m", s.thread_m, s.thread_m * s.thread_n * weights)?;
        self.tiles([s.tile_m, s.tile_n, s.tile_k])?;
        self.multiple("tile-m", s.tile_m, "thread-m", s.thread_m)?;
        self.multiple("tile-n", s.tile_n, "thread-n", s.thread_n)?;
        self.vector(s.vector, &[1, 2, 4])?;
        self.multiple("tile-k", s.tile_k, "vector", s.vector)?;
        self.multiple("thread-n", s.thread_n, "vector", s.vector)?;
        self.stages(s.stages, s.prefetch)?; // no tile at all would be divided by
        let written_out = s.stages.max(s.prefetch) * s.tile_k * s.thread_m * s.thread_n / s.chunk_n() * weights;
        self.range("tile-k", s.tile_k, 1, s.tile_k * WRITTEN_OUT / written_out, "multiply-adds written out")?;
        self.knobs.invocations(&self.name("invocations"), s.threads())?;
        self.knobs.workgroup_memory(&self.name("tile-k"), s.tile_k, s.workgroup_memory(weights))?;
        self.grid([s.tile_m, s.tile_n, s.tile_k], s.split_k, s.swizzle)
    }

    fn cooperative(&self, s: &Cooperative) -> Result<(), Violation> {
        let (gpu, weights) = (self.gpu(), self.product.weights);
        if self.product.dtype != Dtype::F16 {
            return self.refuse("method", "cooperative", "needs f16 operands: this product's are f32");
        }
        self.tensors()?;
        for feature in [GpuFeature::CooperativeMatrix, GpuFeature::Subgroups] {
            self.knobs.feature(&self.name("method"), "cooperative", feature)?;
        }
        let square = gpu.cooperative_f16().filter(|it| [8, 16].contains(&it.k));
        let Some(unit) = square.map(|it| it.k) else {
            let rule = format!("needs square matrices of f16 with f32 sums, which {} does not have", gpu.name);
            return self.refuse("method", "cooperative", rule);
        };
        if gpu.subgroup_min != gpu.subgroup_max {
            let rule = format!(
                "needs subgroups of one size: those of {} have {} to {}",
                gpu.name, gpu.subgroup_min, gpu.subgroup_max
            );
            return self.refuse("method", "cooperative", rule);
        }
        self.multiple("subgroup-m", s.subgroup_m, "rows of a matrix", unit)?;
        self.multiple("subgroup-n", s.subgroup_n, "columns of a matrix", unit)?;
        self.tiles([s.tile_m, s.tile_n, s.tile_k])?;
        self.multiple("tile-m", s.tile_m, "subgroup-m", s.subgroup_m)?;
        self.multiple("tile-n", s.tile_n, "subgroup-n", s.subgroup_n)?;
        self.multiple("tile-k", s.tile_k, "depth of a matrix", unit)?;
        if s.transpose {
            let (rows, columns) = (self.product.k.div_ceil(16), self.product.n.div_ceil(16));
            self.knobs.workgroups(&self.name("transpose"), 1, rows.max(columns))?;
        }
        self.sums("subgroup-m", s.subgroup_m, s.subgroup_m * s.subgroup_n * weights / gpu.subgroup_max)?;
        self.vector(s.vector, &[2, 4, 8])?;
        self.knobs.invocations(&self.name("invocations"), s.subgroups() * gpu.subgroup_max)?;
        self.stages(s.stages, s.prefetch)?;
        self.knobs.workgroup_memory(
            &self.name("tile-k"),
            s.tile_k,
            s.workgroup_memory(unit, weights, gpu.workgroup_memory),
        )?;
        self.grid([s.tile_m, s.tile_n, s.tile_k], s.split_k, s.swizzle)
    }

    fn gemv(&self, s: &Gemv) -> Result<(), Violation> {
        let Product { m, n, k, weights, dtype } = *self.product;
        self.tensors()?;
        if m > GEMV_ROWS {
            let rule = format!("takes at most {GEMV_ROWS} rows, kept apart in registers: this product has {m}");
            return self.refuse("method", "gemv", rule);
        }
        let widths: &[usize] = if dtype == Dtype::F16 { &[1, 2, 4, 8] } else { &[1, 2, 4] };
        if !widths.contains(&s.vector) || !n.is_multiple_of(s.vector) {
            let rule = format!("is not one of {widths:?} that divides n = {n}");
            return self.refuse("vector", s.vector, rule);
        }
        self.knobs.invocations(&self.name("threads"), s.threads)?;
        self.range("slices", s.slices, 1, s.threads, "`threads`")?;
        self.multiple("threads", s.threads, "slices", s.slices)?;
        self.range("unroll", s.unroll, 1, 16, "written-out steps of the loop over K")?;
        self.sums("vector", s.vector, s.vector * weights * m)?;
        self.sums("unroll", s.unroll, s.unroll * s.vector * weights)?;
        self.knobs.workgroup_memory(&self.name("threads"), s.threads, s.workgroup_memory(m, weights))?;
        self.knobs.workgroups(&self.name("threads"), s.threads, n.div_ceil(s.threads / s.slices * s.vector))?;
        self.split(s.split_k, k.div_ceil(s.slices * s.unroll), "steps of `slices` * `unroll`")
    }

    /// The operands can be read, and nothing is larger than a shader can see.
    fn tensors(&self) -> Result<(), Violation> {
        let Product { m, n, k, weights, dtype } = *self.product;
        self.knobs.tensors(dtype, BINDINGS + weights, (m * k).max(k * n).max(m * n))
    }

    fn sums(&self, knob: &str, value: usize, sums: usize) -> Result<(), Violation> {
        if sums <= SUMS {
            return Ok(());
        }
        self.refuse(
            knob,
            value,
            format!("keeps {sums} f32 in registers of an invocation: at most {SUMS} (of 255 registers)"),
        )
    }

    fn tiles(&self, [m, n, k]: [usize; 3]) -> Result<(), Violation> {
        self.range("tile-m", m, 1, 1024, "rows of a workgroup")?;
        self.range("tile-n", n, 1, 1024, "columns of a workgroup")?;
        self.range("tile-k", k, 1, 128, "depth of a tile")
    }

    fn vector(&self, vector: usize, widths: &[usize]) -> Result<(), Violation> {
        let Product { n, k, .. } = *self.product;
        if widths.contains(&vector) && k.is_multiple_of(vector) && n.is_multiple_of(vector) {
            return Ok(());
        }
        self.refuse("vector", vector, format!("is not one of {widths:?} that divides k = {k} and n = {n}"))
    }

    fn stages(&self, stages: usize, prefetch: usize) -> Result<(), Violation> {
        self.range("prefetch", prefetch, 0, 2, "tiles under way in registers")?;
        self.range("stages", stages, 1, 2, "tiles in workgroup memory")
    }

    fn grid(&self, [tile_m, tile_n, tile_k]: [usize; 3], split_k: usize, swizzle: usize) -> Result<(), Violation> {
        let Product { m, n, k, .. } = *self.product;
        let rows = m.div_ceil(tile_m);
        self.knobs.workgroups(&self.name("tile-m"), tile_m, rows)?;
        self.knobs.workgroups(&self.name("tile-n"), tile_n, n.div_ceil(tile_n))?;
        self.range("swizzle", swizzle, 1, rows, "rows of tiles")?;
        self.split(split_k, k.div_ceil(tile_k), "steps of `tile-k`")
    }

    /// No part of a split product is empty, and the sums of all parts can be bound as one buffer.
    fn split(&self, split_k: usize, steps: usize, what: &str) -> Result<(), Violation> {
        self.range("split-k", split_k, 1, 64.min(steps), what)?;
        let each = steps.div_ceil(split_k);
        if (split_k - 1) * each >= steps {
            return self.refuse("split-k", split_k, format!("leaves a part without any of the {steps} {what}"));
        }
        if split_k == 1 {
            return Ok(());
        }
        self.knobs.workgroups(&self.name("split-k"), split_k, self.product.m)?;
        let bytes = usize::try_from(self.product.partial_bytes(split_k)).unwrap_or(usize::MAX);
        self.knobs.bytes(&self.name("split-k-bytes"), bytes)
    }
}
