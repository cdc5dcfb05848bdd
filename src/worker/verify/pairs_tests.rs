//! What AVX512-BF16's dot product of pairs computes, held against the instruction. Says nothing where the CPU has none.
#![cfg(target_arch = "x86_64")]

use super::inputs::Source;
use kernelforge::half::Half;
use std::arch::x86_64::{_mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_storeu_ps};

/// Lanes of a vector of f32.
const LANES: usize = 16;

/// Zero, with the sign, for what is below the normal range.
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x }
}

/// As `Arithmetic::cpu_pairs` says: the odd product first, then the even one, each fused, rounded to nearest and flushed.
fn model(c: f32, a: [u16; 2], b: [u16; 2]) -> f32 {
    let wide = |bits| flushed(Half::Bf16.widen(bits));
    let odd = flushed(wide(a[1]).mul_add(wide(b[1]), flushed(c)));
    flushed(wide(a[0]).mul_add(wide(b[0]), odd))
}

/// # Safety
/// The CPU has AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn instruction(c: &[f32; LANES], a: &[[u16; 2]; LANES], b: &[[u16; 2]; LANES]) -> [f32; LANES] {
    let mut result = [0.0; LANES];
    // SAFETY: every pointer is to 64 bytes; a vector of bf16 is 64 bytes like one of f32.
    unsafe {
        let pairs = |it: &[[u16; 2]; LANES]| std::mem::transmute(_mm512_loadu_ps(it.as_ptr().cast()));
        let sum = _mm512_dpbf16_ps(_mm512_loadu_ps(c.as_ptr()), pairs(a), pairs(b));
        _mm512_storeu_ps(result.as_mut_ptr(), sum);
    }
    result
}

#[test]
fn the_dot_product_of_pairs_rounds_twice_and_flushes_what_is_subnormal() {
    if !std::arch::is_x86_feature_detected!("avx512bf16") {
        return;
    }
    let mut source = Source::new(3, 0);
    // Exponents around 1, all of them, the lowest ones alone, and products around the end of the normal range.
    for (low, high) in [(120u32, 135u32), (0, 255), (0, 8), (55, 72)] {
        let mut drawn = |fraction: u32| {
            let (exponent, sign) = (low + source.below((high - low) as usize) as u32, (source.below(2) as u32) << 31);
            sign | exponent << 23 | source.below(1 << 23) as u32 & fraction
        };
        for _ in 0..20_000 {
            let c = [(); LANES].map(|()| f32::from_bits(drawn(0x7f_ffff)));
            let [a, b] = [(); 2].map(|()| [(); LANES].map(|()| [(); 2].map(|()| (drawn(0x7f_0000) >> 16) as u16)));
            // SAFETY: detected above.
            let found = unsafe { instruction(&c, &a, &b) };
            for lane in 0..LANES {
                let expected = model(c[lane], a[lane], b[lane]);
                let same = found[lane].to_bits() == expected.to_bits() || found[lane].is_nan() && expected.is_nan();
                assert!(same, "{:e} + {:x?} {:x?}: {:e}, not {expected:e}", c[lane], a[lane], b[lane], found[lane]);
            }
        }
    }
}
