//! Tensors as the bytes that a device stores.

use kernelforge::{half::Half, manifest::spec::Dtype};

/// The bytes of these values, rounded to the type.
pub fn bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match Half::of(dtype) {
        None => bytemuck::cast_slice(values).to_vec(),
        Some(half) => {
            let mut narrow = vec![0; values.len()];
            half.narrow_all(values, &mut narrow);
            bytemuck::cast_slice(&narrow).to_vec()
        }
    }
}

/// The values of these bytes.
pub fn values(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match Half::of(dtype) {
        None => bytemuck::pod_collect_to_vec(bytes),
        Some(half) => {
            let narrow: Vec<u16> = bytemuck::pod_collect_to_vec(bytes);
            let mut values = vec![0.0; narrow.len()];
            half.widen_all(&narrow, &mut values);
            values
        }
    }
}
