//! Schedules of GPU kernels: the knobs of the WGSL templates in `shaders/`, one struct for each kind of kernel, with the
//! constraints that device and shape put on them. Every knob changes the rendered text.

pub mod attention;
mod device;
pub mod matmul;
pub mod rows;

use super::{
    constraint::{PlanError, wrong_kind},
    schedule::Schedule,
    stage::{Stage, StageOp},
};
use crate::{host::gpu::GpuFacts, manifest::spec::Dtype};

/// The built-in WGSL templates, `shaders/` without the folder. A project may replace each by a file of its name.
pub const TEMPLATES: &[&str] = &["math.wgsl"];

/// The templates that a stage with this schedule is rendered from, shared ones included, in the order of their names.
pub fn templates(op: &StageOp, dtype: Dtype, schedule: &Schedule) -> Vec<&'static str> {
    let _ = (op, dtype, schedule);
    Vec::new()
}

/// Checks every constraint of `schedule` for `stage`, whose tensors have this type.
pub fn check(stage: &Stage, dtype: Dtype, schedule: &Schedule, gpu: &GpuFacts) -> Result<(), PlanError> {
    let _ = (dtype, gpu);
    Err(wrong_kind(stage, schedule))
}

/// Legal schedules that nothing was computed for.
pub fn plain(op: &StageOp, dtype: Dtype, gpu: &GpuFacts) -> Schedule {
    let _ = (op, dtype, gpu);
    unimplemented!()
}
