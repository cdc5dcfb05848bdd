//! Half precision (IEEE 754 binary16) in terms of f32: every f16 is an f32, and an f32 becomes the nearest f16.
//!
//! Plain integer arithmetic on every machine: Rust's own `f16` is not stable, and the crate `half` brings 4,000 lines for
//! these two functions. Tensors are converted outside of what is timed; slices of them go through the conversion
//! instructions where the CPU has them (`cargo test half -- --nocapture` prints both speeds).

use crate::manifest::spec::Dtype;

/// The largest finite f16. What is at least halfway to 2^16 (65520) rounds to infinity.
pub const MAX: f32 = 65504.0;

/// The smallest normal f16.
pub const MIN_POSITIVE: f32 = 1.0 / (1 << 14) as f32;

/// The exact value of an f16.
pub const fn widen(bits: u16) -> f32 {
    let sign = (bits as u32 & 0x8000) << 16;
    let magnitude = bits as u32 & 0x7fff;
    let value = match magnitude {
        // Subnormal: a multiple of 2^-24, which f32 holds as a normal number.
        0..0x0400 => (magnitude as f32 * (1.0 / (1u32 << 24) as f32)).to_bits(),
        // The exponents differ by 127 - 15.
        0x0400..0x7c00 => (magnitude << 13) + (112 << 23),
        // Infinity, and NaN with what fits of its payload.
        _ => 0x7f80_0000 | (magnitude & 0x3ff) << 13,
    };
    f32::from_bits(sign | value)
}

/// The nearest f16, of two the even one; NaN stays NaN and becomes quiet.
pub const fn narrow(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, magnitude) = ((bits >> 16) as u16 & 0x8000, bits & 0x7fff_ffff);
    let half = match magnitude {
        // Below the normal range: added to 0.5 the unit in the last place is 2^-24, so f32's own rounding is the one wanted.
        0..0x3880_0000 => (f32::from_bits(magnitude) + 0.5).to_bits() - 0x3f00_0000,
        // The carry of rounding may reach the exponent, and that is right. Beyond MAX it makes infinity.
        0x3880_0000..0x4780_0000 => (magnitude - (112 << 23) + 0x0fff + (magnitude >> 13 & 1)) >> 13,
        0x4780_0000..=0x7f80_0000 => 0x7c00,
        _ => 0x7e00 | (magnitude >> 13 & 0x1ff),
    };
    sign | half as u16
}

/// The nearest value that a tensor of this type holds.
pub const fn nearest(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::F32 => value,
        Dtype::F16 => widen(narrow(value)),
    }
}

/// Widens a slice into one of the same length.
pub fn widen_all(from: &[u16], to: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if x86::available() {
        // SAFETY: the CPU has the instructions.
        return unsafe { x86::widen(from, to) };
    }
    to.iter_mut().zip(from).for_each(|(to, &from)| *to = widen(from));
}

/// Narrows a slice into one of the same length.
pub fn narrow_all(from: &[f32], to: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if x86::available() {
        // SAFETY: the CPU has the instructions.
        return unsafe { x86::narrow(from, to) };
    }
    to.iter_mut().zip(from).for_each(|(to, &from)| *to = narrow(from));
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _MM_FROUND_TO_NEAREST_INT, _mm_loadu_si128, _mm_storeu_si128, _mm256_cvtph_ps, _mm256_cvtps_ph,
        _mm256_loadu_ps, _mm256_storeu_ps,
    };

    pub fn available() -> bool {
        is_x86_feature_detected!("f16c") && is_x86_feature_detected!("avx")
    }

    #[target_feature(enable = "f16c,avx")]
    pub fn widen(from: &[u16], to: &mut [f32]) {
        let (eights, rest) = from.as_chunks::<8>();
        let (to_eights, to_rest) = to.as_chunks_mut::<8>();
        for (to, from) in to_eights.iter_mut().zip(eights) {
            // SAFETY: both chunks have eight elements; the accesses need no alignment.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast()))) };
        }
        to_rest.iter_mut().zip(rest).for_each(|(to, &from)| *to = super::widen(from));
    }

    #[target_feature(enable = "f16c,avx")]
    pub fn narrow(from: &[f32], to: &mut [u16]) {
        let (eights, rest) = from.as_chunks::<8>();
        let (to_eights, to_rest) = to.as_chunks_mut::<8>();
        for (to, from) in to_eights.iter_mut().zip(eights) {
            // SAFETY: both chunks have eight elements; the accesses need no alignment.
            unsafe {
                let halves = _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(_mm256_loadu_ps(from.as_ptr()));
                _mm_storeu_si128(to.as_mut_ptr().cast(), halves);
            }
        }
        to_rest.iter_mut().zip(rest).for_each(|(to, &from)| *to = super::narrow(from));
    }
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
        let started = std::time::Instant::now();
        widen_all(&halves, &mut wide);
        println!("widened {} in {:?}", halves.len(), started.elapsed());
        assert!(wide.iter().zip(&halves).all(|(it, &bits)| it.to_bits() == widen(bits).to_bits()));
        let between: Vec<f32> = wide.iter().map(|it| it * 1.000_3).collect();
        let mut narrowed = vec![0; between.len()];
        narrow_all(&between, &mut narrowed);
        assert!(narrowed.iter().zip(&between).all(|(&it, &value)| it == narrow(value)));
        narrow_all(&[f32::NAN; 9], &mut narrowed[..9]);
        assert!(narrowed[..9].iter().all(|it| is_nan(*it)));
    }
}
