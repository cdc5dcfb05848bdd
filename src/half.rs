//! The two formats of 16 bits in terms of f32: every number of theirs is an f32, and an f32 becomes the nearest of them. The
//! conversions are those of the crate `half`, which uses the CPU's instructions where there are some.

use crate::manifest::spec::Dtype;
use ::half::{bf16, f16, slice::HalfBitsSliceExt, slice::HalfFloatSliceExt};

/// The largest finite f16. What is at least halfway to 2^16 (65520) rounds to infinity.
pub const MAX: f32 = 65504.0;

/// The smallest normal f16.
pub const MIN_POSITIVE: f32 = 1.0 / (1 << 14) as f32;

/// The largest finite bf16: (2 - 2^-7) 2^127.
pub const BRAIN_MAX: f32 = f32::from_bits(0x7f7f_0000);

/// How 16 bits are read as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// IEEE 754 binary16.
    F16,
    /// The upper half of an f32 (bfloat16).
    Bf16,
}

impl Half {
    pub const ALL: [Self; 2] = [Self::F16, Self::Bf16];

    /// The format that a tensor of this type is stored in; `None` for 32 bits.
    pub const fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => None,
            Dtype::F16 => Some(Self::F16),
            Dtype::Bf16 => Some(Self::Bf16),
        }
    }

    /// The exact value of these bits.
    pub fn widen(self, bits: u16) -> f32 {
        match self {
            Self::F16 => f16::from_bits(bits).to_f32(),
            Self::Bf16 => bf16::from_bits(bits).to_f32(),
        }
    }

    /// The nearest number, of two the even one; NaN stays NaN and becomes quiet.
    pub fn narrow(self, value: f32) -> u16 {
        match self {
            Self::F16 => f16::from_f32(value).to_bits(),
            Self::Bf16 => bf16::from_f32(value).to_bits(),
        }
    }

    /// Widens a slice into one of the same length.
    pub fn widen_all(self, from: &[u16], to: &mut [f32]) {
        match self {
            Self::F16 => from.reinterpret_cast::<f16>().convert_to_f32_slice(to),
            Self::Bf16 => from.reinterpret_cast::<bf16>().convert_to_f32_slice(to),
        }
    }

    /// Narrows a slice into one of the same length.
    pub fn narrow_all(self, from: &[f32], to: &mut [u16]) {
        match self {
            Self::F16 => to.reinterpret_cast_mut::<f16>().convert_from_f32_slice(from),
            Self::Bf16 => to.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(from),
        }
    }
}

/// The nearest value that a tensor of this type holds.
pub fn nearest(dtype: Dtype, value: f32) -> f32 {
    Half::of(dtype).map_or(value, |it| it.widen(it.narrow(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits of the exponent and of the fraction.
    const fn fields(format: Half) -> (u32, u32) {
        match format {
            Half::F16 => (5, 10),
            Half::Bf16 => (8, 7),
        }
    }

    /// The bits of infinity, beyond which are NaNs.
    const fn infinity(format: Half) -> u16 {
        0x7fff >> fields(format).1 << fields(format).1
    }

    /// By the definition of the format, in f64.
    fn defined(format: Half, bits: u16) -> f64 {
        let (exponent_bits, fraction_bits) = fields(format);
        let (largest, bias) = ((1i32 << exponent_bits) - 1, (1i32 << (exponent_bits - 1)) - 1);
        let exponent = i32::from(bits >> fraction_bits) & largest;
        let (fraction, one) = (f64::from(bits & ((1 << fraction_bits) - 1)), f64::from(1u32 << fraction_bits));
        let magnitude = match exponent {
            0 => fraction / one * 2f64.powi(1 - bias),
            it if it == largest => f64::INFINITY,
            it => (one + fraction) / one * 2f64.powi(it - bias),
        };
        if bits >> 15 == 1 { -magnitude } else { magnitude }
    }

    fn is_nan(format: Half, bits: u16) -> bool {
        bits & 0x7fff > infinity(format)
    }

    #[test]
    fn every_half_has_the_value_that_the_format_defines_and_comes_back() {
        for format in Half::ALL {
            for bits in 0..=u16::MAX {
                let wide = format.widen(bits);
                if is_nan(format, bits) {
                    assert!(wide.is_nan() && is_nan(format, format.narrow(wide)), "{format:?} {bits:#x}");
                } else {
                    assert_eq!(f64::from(wide), defined(format, bits), "{format:?} {bits:#x}");
                    assert_eq!(format.narrow(wide), bits);
                }
            }
        }
    }

    #[test]
    fn a_number_between_two_halves_becomes_the_nearer_and_in_the_middle_the_even_one() {
        for format in Half::ALL {
            for bits in 0..infinity(format) - 1 {
                let (low, high) = (format.widen(bits), format.widen(bits + 1));
                // Halves have 13 bits less, or 16, so the middle and its neighbours are f32s.
                let middle = low + (high - low) / 2.0;
                let even = if bits % 2 == 0 { bits } else { bits + 1 };
                assert_eq!(format.narrow(middle.next_down()), bits, "{low}");
                assert_eq!(format.narrow(middle), even, "{low}");
                assert_eq!(format.narrow(middle.next_up()), bits + 1, "{low}");
                assert_eq!(format.narrow(-middle), even | 0x8000, "{low}");
            }
            assert_eq!(format.narrow(f32::MAX), infinity(format));
        }
        let [f16, bf16] = Half::ALL;
        assert_eq!((f16.narrow(65519.0), f16.narrow(65520.0)), (0x7bff, 0x7c00));
        assert_eq!((f16.narrow(f32::MIN_POSITIVE), bf16.narrow(f32::MIN_POSITIVE)), (0, 0x80));
        assert_eq!((f16.widen(0x7bff), bf16.widen(0x7f7f)), (MAX, BRAIN_MAX));
    }

    #[test]
    fn slices_are_converted_like_single_numbers() {
        for format in Half::ALL {
            let halves: Vec<u16> = (0..=u16::MAX).filter(|it| !is_nan(format, *it)).collect();
            let mut wide = vec![0.0; halves.len()];
            format.widen_all(&halves, &mut wide);
            assert!(wide.iter().zip(&halves).all(|(it, &bits)| it.to_bits() == format.widen(bits).to_bits()));
            let between: Vec<f32> = wide.iter().map(|it| it * 1.000_3).collect();
            let mut narrowed = vec![0; between.len()];
            format.narrow_all(&between, &mut narrowed);
            assert!(narrowed.iter().zip(&between).all(|(&it, &value)| it == format.narrow(value)));
            format.narrow_all(&[f32::NAN; 9], &mut narrowed[..9]);
            assert!(narrowed[..9].iter().all(|it| is_nan(format, *it)));
        }
    }
}
