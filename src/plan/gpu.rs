//! Schedules of GPU kernels: the knobs of the WGSL templates in `shaders/`, one struct for each kind of kernel, with the
//! constraints that device and shape put on them. Every knob changes the rendered text.

pub mod attention;
mod device;
pub mod matmul;
pub mod rows;
