//! The two loops, written once for each vector width with the compiler's intrinsics and picked at run time, because the
//! binary itself is compiled for the oldest CPU of its architecture.

/// A loop of independent multiply-adds.
pub struct Arithmetic {
    run: fn(u64) -> f32,
    /// Two for each lane of each accumulator.
    pub flops_per_step: u64,
}

impl Arithmetic {
    pub fn run(&self, steps: u64) -> f32 {
        (self.run)(steps)
    }

    /// The widest that the running CPU has.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                // SAFETY: the CPU has the feature.
                return Self { run: |steps| unsafe { x86::multiply_add_512(steps) }, flops_per_step: 2 * 16 * 12 };
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                // SAFETY: the CPU has the features.
                return Self { run: |steps| unsafe { x86::multiply_add_256(steps) }, flops_per_step: 2 * 8 * 12 };
            }
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: NEON is part of every AArch64 CPU.
        return Self { run: |steps| unsafe { arm::multiply_add(steps) }, flops_per_step: 2 * 4 * 24 };
        #[cfg(not(target_arch = "aarch64"))]
        Self { run: portable::multiply_add, flops_per_step: 2 * portable::ACCUMULATORS as u64 }
    }
}

/// The sum of `data`: every element is loaded once, with the widest loads of the running CPU.
pub fn read(data: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has the feature.
            return unsafe { x86::read_512(data) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has the feature.
            return unsafe { x86::read_256(data) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: NEON is part of every AArch64 CPU.
    return unsafe { arm::read(data) };
    #[cfg(not(target_arch = "aarch64"))]
    portable::read(data)
}

/// One function that runs `steps` steps of one multiply-add on each named accumulator. Named, because an array of vectors
/// may end in memory. 12 cover a latency of 6 cycles on the two units of an x86 core, and leave the compiler no reason to
/// spill (it did with 24 of 512 bits: 93 GFLOP/s at best, where 12 reach 150); 24 cover NEON's four units.
macro_rules! multiply_add {
    ($name:ident, $feature:literal, $splat:ident, $fma:expr, $sum:expr, [$($accumulator:ident),*]) => {
        /// # Safety
        /// The CPU has the features that the attribute names.
        #[target_feature(enable = $feature)]
        pub unsafe fn $name(steps: u64) -> f32 {
            // Converges to 1 instead of growing: no step is slowed by subnormals or infinities.
            let (scale, offset) = ($splat(0.5), $splat(0.5));
            // Each opaque to the compiler: it saw that equal starts stay equal and ran one dependent chain for several, at half
            // of the peak.
            $(let mut $accumulator = $splat(std::hint::black_box(2.0));)*
            // No `for`: at `opt-level = 1` the range's `next` is a call, which saves and restores every accumulator, and a kernel was
            // then three times as fast as the peak.
            let mut step = 0;
            while step < steps {
                $($accumulator = $fma($accumulator, scale, offset);)*
                step += 1;
            }
            let mut total = 0.0;
            $(total += $sum($accumulator);)*
            total
        }
    };
}

/// One function that sums a slice with eight accumulators of `$lanes` lanes.
macro_rules! read {
    ($name:ident, $feature:literal, $lanes:literal, $splat:ident, $load:ident, $add:ident, $sum:expr) => {
        /// # Safety
        /// The CPU has the features that the attribute names.
        #[target_feature(enable = $feature)]
        pub unsafe fn $name(data: &[f32]) -> f32 {
            let mut sums = [$splat(0.0); 8];
            let steps = data.chunks_exact(8 * $lanes);
            let rest: f32 = steps.remainder().iter().sum();
            for step in steps {
                for (index, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: a step has eight times as many elements as one load reads.
                    *sum = $add(*sum, unsafe { $load(step.as_ptr().add(index * $lanes)) });
                }
            }
            sums.into_iter().map(|it| $sum(it)).sum::<f32>() + rest
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2")]
    fn sum_256(it: __m256) -> f32 {
        let mut lanes = [0.0; 8];
        // SAFETY: the array has the vector's eight elements.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), it) };
        lanes.iter().sum()
    }

    #[target_feature(enable = "avx512f")]
    fn sum_512(it: __m512) -> f32 {
        _mm512_reduce_add_ps(it)
    }

    multiply_add!(
        multiply_add_512,
        "avx512f",
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        |it| sum_512(it),
        [a, b, c, d, e, f, g, h, i, j, k, l]
    );
    multiply_add!(
        multiply_add_256,
        "avx2,fma",
        _mm256_set1_ps,
        _mm256_fmadd_ps,
        |it| sum_256(it),
        [a, b, c, d, e, f, g, h, i, j, k, l]
    );
    read!(read_512, "avx512f", 16, _mm512_set1_ps, _mm512_loadu_ps, _mm512_add_ps, |it| sum_512(it));
    read!(read_256, "avx2", 8, _mm256_set1_ps, _mm256_loadu_ps, _mm256_add_ps, |it| sum_256(it));
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    multiply_add!(
        multiply_add,
        "neon",
        vdupq_n_f32,
        |sum, scale, offset| vfmaq_f32(offset, sum, scale),
        |it| vaddvq_f32(it),
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x]
    );
    read!(read, "neon", 4, vdupq_n_f32, vld1q_f32, vaddq_f32, |it| vaddvq_f32(it));
}

/// For a CPU without fused multiply-adds, whose ceiling is a product and a sum.
#[cfg(not(target_arch = "aarch64"))]
mod portable {
    pub const ACCUMULATORS: usize = 32;

    pub fn multiply_add(steps: u64) -> f32 {
        let mut sums = std::hint::black_box([2.0f32; ACCUMULATORS]);
        for _ in 0..steps {
            sums.iter_mut().for_each(|it| *it = *it * 0.5 + 0.5);
        }
        sums.iter().sum()
    }

    pub fn read(data: &[f32]) -> f32 {
        let mut sums = [0.0f32; ACCUMULATORS];
        let steps = data.chunks_exact(ACCUMULATORS);
        let rest: f32 = steps.remainder().iter().sum();
        steps.for_each(|step| sums.iter_mut().zip(step).for_each(|(sum, it)| *sum += it));
        sums.iter().sum::<f32>() + rest
    }
}
