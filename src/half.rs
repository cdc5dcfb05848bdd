//! Half precision (IEEE 754 binary16) in terms of f32: every f16 is an f32, and an f32 becomes the nearest f16. The conversions are
//! those of the crate `half`, which uses the CPU's instructions where there are some.

use crate::manifest::spec::Dtype;
use ::half::{f16, slice::HalfBitsSliceExt, slice::HalfFloatSliceExt};

/// The largest finite f16. What is at least halfway to 2^16 (65520) rounds to infinity.
pub const MAX: f32 = 65504.0;

/// The smallest normal f16.
pub const MIN_POSITIVE: f32 = 1.0 / (1 << 14) as f32;

/// The exact value of an f16.
pub fn widen(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}

/// The nearest f16, of two the even one; NaN stays NaN and becomes quiet.
pub fn narrow(value: f32) -> u16 {
    f16::from_f32(value).to_bits()
}

/// The nearest value that a tensor of this type holds.
pub fn nearest(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::F32 => value,
        Dtype::F16 => widen(narrow(value)),
    }
}

/// Widens a slice into one of the same length.
pub fn widen_all(from: &[u16], to: &mut [f32]) {
    from.reinterpret_cast::<f16>().convert_to_f32_slice(to);
}

/// Narrows a slice into one of the same length.
pub fn narrow_all(from: &[f32], to: &mut [u16]) {
    to.reinterpret_cast_mut::<f16>().convert_from_f32_slice(from);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the definition of the format, in f64.
    fn defined(bits: u16) -> f64 {
        let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
        let magnitude = match exponent {
            0 => fraction * 2f64.powi(-24),
            31 => f64::INFINITY,
            _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
        };
        if bits >> 15 == 1 { -magnitude } else { magnitude }
    }

    fn is_nan(bits: u16) -> bool {
        bits & 0x7fff > 0x7c00
    }

    #[test]
    fn every_half_has_the_value_that_the_format_defines_and_comes_back() {
        for bits in 0..=u16::MAX {
            if is_nan(bits) {
                assert!(widen(bits).is_nan() && is_nan(narrow(widen(bits))), "{bits:#x}");
            } else {
                assert_eq!(f64::from(widen(bits)), defined(bits), "{bits:#x}");
                assert_eq!(narrow(widen(bits)), bits);
            }
        }
    }

    #[test]
    fn a_number_between_two_halves_becomes_the_nearer_and_in_the_middle_the_even_one() {
        for bits in 0..0x7c00u16 {
            let (low, high) = (widen(bits), if bits == 0x7bff { 65536.0 } else { widen(bits + 1) });
            // Halves have 13 bits less, so the middle and its neighbours are f32s.
            let middle = (low + high) / 2.0;
            let even = if bits % 2 == 0 { bits } else { bits + 1 };
            assert_eq!(narrow(middle.next_down()), bits, "{low}");
            assert_eq!(narrow(middle), even, "{low}");
            assert_eq!(narrow(middle.next_up()), bits + 1, "{low}");
            assert_eq!(narrow(-middle), even | 0x8000, "{low}");
        }
        assert_eq!(narrow(f32::MAX), 0x7c00);
        assert_eq!(narrow(f32::MIN_POSITIVE), 0);
    }

    #[test]
    fn slices_are_converted_like_single_numbers() {
        let halves: Vec<u16> = (0..=u16::MAX).filter(|it| !is_nan(*it)).collect();
        let mut wide = vec![0.0; halves.len()];
        widen_all(&halves, &mut wide);
        assert!(wide.iter().zip(&halves).all(|(it, &bits)| it.to_bits() == widen(bits).to_bits()));
        let between: Vec<f32> = wide.iter().map(|it| it * 1.000_3).collect();
        let mut narrowed = vec![0; between.len()];
        narrow_all(&between, &mut narrowed);
        assert!(narrowed.iter().zip(&between).all(|(&it, &value)| it == narrow(value)));
        narrow_all(&[f32::NAN; 9], &mut narrowed[..9]);
        assert!(narrowed[..9].iter().all(|it| is_nan(*it)));
    }
}
