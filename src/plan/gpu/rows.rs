//! What works on rows or single elements on a GPU: norms, rotary embedding, activations, sums.

use crate::{
    host::gpu::{GpuFacts, GpuFeature},
    manifest::spec::Dtype,
    plan::{
        constraint::{Knobs, Violation},
        stage::StageOp,
    },
};
use serde::{Deserialize, Serialize};

/// Layer norm, RMS norm: one row for each group of `width` invocations.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GpuNorm {
    /// Invocations that share a row: a power of two. They add up across subgroups where there is more than one.
    pub width: usize,
    /// Rows of a workgroup, which has `width * rows` invocations.
    pub rows: usize,
    /// Elements of one load: 1, 2 or 4. Divides the row.
    pub vector: usize,
    /// Add up with subgroup operations instead of through workgroup memory alone.
    pub subgroups: bool,
}

/// Rotary embedding, activations, add, mul, scale.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GpuElementwise {
    /// Invocations of a workgroup.
    pub threads: usize,
    /// Elements of one load: 1, 2 or 4.
    pub vector: usize,
    /// Vectors of one invocation.
    pub unroll: usize,
}

/// The operation that a norm's schedule is for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormShape {
    pub rows: usize,
    /// Elements of a row.
    pub columns: usize,
    pub eps: f64,
    /// Subtract the mean and add a bias: layer norm. Otherwise RMS norm.
    pub centred: bool,
    pub dtype: Dtype,
}

/// Elements of a row that one invocation keeps in registers; longer rows are read again for every pass.
const KEPT: usize = 64;

impl GpuNorm {
    /// Vectors of a row that one invocation has.
    pub fn chunks(&self, columns: usize) -> usize {
        (columns / self.vector).div_ceil(self.width)
    }

    /// Whether the row stays in registers from the first pass to the last.
    pub fn keeps(&self, columns: usize) -> bool {
        self.chunks(columns) * self.vector <= KEPT
    }

    /// Floats of workgroup memory.
    pub fn slots(&self) -> usize {
        if self.width == 1 { 0 } else { self.width * self.rows }
    }

    /// Checks every constraint of the schedule for stage `stage`.
    ///
    /// # Errors
    /// The first knob outside its limits.
    pub fn check(&self, stage: &str, shape: &NormShape, gpu: &GpuFacts) -> Result<(), Violation> {
        let knobs = Knobs::new(stage, gpu);
        let bindings = if shape.centred { 4 } else { 3 };
        knobs.tensors(shape.dtype, bindings, shape.rows * shape.columns)?;
        knobs.vector(self.vector, 4, "a row", shape.columns)?;
        knobs.range("width", self.width, 1, 1024, "invocations that share a row")?;
        knobs.range("rows", self.rows, 1, 1024, "rows of a workgroup")?;
        if !self.width.is_power_of_two() {
            return Err(knobs.violation("width", self.width, "is not a power of two: sums of a row are halved"));
        }
        knobs.invocations("rows * width", self.rows * self.width)?;
        knobs.workgroup_memory("rows", self.rows, self.slots() * 4)?;
        if self.subgroups {
            knobs.feature("subgroups", true, GpuFeature::Subgroups)?;
            if !self.width.is_multiple_of(gpu.subgroup_max) {
                let rule = format!(
                    "is not a multiple of {}, the largest subgroup of {}: with `subgroups` a subgroup adds up one row",
                    gpu.subgroup_max, gpu.name
                );
                return Err(knobs.violation("width", self.width, rule));
            }
        }
        grid(shape.rows.div_ceil(self.rows), gpu).map(|_| ()).ok_or_else(|| too_many(&knobs, "rows", self.rows))
    }

    /// The schedule of an op that no pass marked: one invocation for each row.
    pub fn plain(shape: &NormShape, gpu: &GpuFacts) -> Self {
        let plain = |rows| Self { width: 1, rows, vector: 1, subgroups: false };
        let legal = [32, 1024].map(plain).into_iter().find(|it| it.check("", shape, gpu).is_ok());
        legal.unwrap_or_else(|| plain(32))
    }
}

/// Workgroups in two dimensions where one is too short, the first as long as needed: the last row of them may be beyond the end.
/// None where two are too short.
pub fn grid(count: usize, gpu: &GpuFacts) -> Option<[usize; 2]> {
    let y = count.div_ceil(gpu.workgroups.max(1));
    (y <= gpu.workgroups).then(|| [count.div_ceil(y.max(1)), y])
}

fn too_many(knobs: &Knobs<'_, GpuFacts>, knob: &str, value: usize) -> Violation {
    let (limit, name) = (knobs.device.workgroups, &knobs.device.name);
    knobs.violation(knob, value, format!("makes more workgroups than {name} dispatches: {limit} x {limit}"))
}

/// What an elementwise schedule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElementShape {
    /// Consecutive elements that a vector must not leave: all of them, or half a head.
    pub run: usize,
    /// Elements that are computed one by one, or pairs.
    pub count: usize,
    /// Elements of the largest tensor.
    pub elements: usize,
    pub bindings: usize,
    pub dtype: Dtype,
}

impl ElementShape {
    pub fn of(op: &StageOp, dtype: Dtype) -> Option<Self> {
        let flat = |rows: usize, width: usize, bindings| {
            let count = rows * width;
            Some(Self { run: count, count, elements: count, bindings, dtype })
        };
        match *op {
            StageOp::Rope { batch, seq, heads, head_dim } => {
                let half = head_dim / 2;
                let count = batch * seq * heads * half;
                Some(Self { run: half, count, elements: 2 * count, bindings: 4, dtype })
            }
            StageOp::Activation { rows, width, .. } | StageOp::Scale { rows, width, .. } => flat(rows, width, 2),
            StageOp::Add { rows, width } | StageOp::Mul { rows, width } => flat(rows, width, 3),
            _ => None,
        }
    }
}

impl GpuElementwise {
    /// Workgroups that cover the shape.
    pub fn workgroups(&self, shape: &ElementShape) -> usize {
        shape.count.div_ceil(self.vector * self.threads * self.unroll)
    }

    /// Checks every constraint of the schedule for stage `stage`.
    ///
    /// # Errors
    /// The first knob outside its limits.
    pub fn check(&self, stage: &str, shape: &ElementShape, gpu: &GpuFacts) -> Result<(), Violation> {
        let knobs = Knobs::new(stage, gpu);
        knobs.tensors(shape.dtype, shape.bindings, shape.elements)?;
        knobs.vector(self.vector, 4, "a run", shape.run)?;
        knobs.invocations("threads", self.threads)?;
        knobs.range("unroll", self.unroll, 1, 16, "written-out vectors of one invocation")?;
        grid(self.workgroups(shape), gpu).map(|_| ()).ok_or_else(|| too_many(&knobs, "threads", self.threads))
    }

    /// The schedule of an op that no pass marked: an element for each invocation.
    pub fn plain(shape: &ElementShape, gpu: &GpuFacts) -> Self {
        let plain = |threads| Self { threads, vector: 1, unroll: 1 };
        let legal = [64, 256].map(plain).into_iter().find(|it| it.check("", shape, gpu).is_ok());
        legal.unwrap_or_else(|| plain(64))
    }
}
