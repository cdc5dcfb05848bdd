//! What the machine can do at best: fused multiply-adds that never leave the registers, and reads of memory that no cache
//! holds. Both with the widest vectors the running CPU has, on as many threads as the kernels use. They are sampled in the
//! same rounds as the kernels: on a shared machine the clock and the memory change from one second to the next (one matmul ran
//! at 79 and at 134 GFLOP/s within a minute), and a share of a ceiling measured at another time says nothing.

mod loops;

use crate::device::{memory::Buffer, threads::Threads};
use kernelforge::{
    host::CpuFacts,
    protocol::{Ceilings, Failure, Timing},
};
use std::hint::black_box;

/// Steps of one sample of the arithmetic on one thread: 3.1 million operations with 512-bit vectors, 24 us at 130 GFLOP/s.
const STEPS: u64 = 1 << 13;

/// Times as many on each of several threads: waking them takes tens of microseconds. With samples of one thread's length the peak of
/// two threads came out so low that gate V7 refused 11 of 13 blocks.
const SHARED: u64 = 32;

/// Steps of each thread in one sample.
const fn steps(threads: usize) -> u64 {
    if threads > 1 { SHARED * STEPS } else { STEPS }
}

/// Smallest buffer for reading: more than any cache of a desktop CPU.
const SMALLEST_BUFFER: usize = 256 << 20;

/// Parts of the buffer; one sample reads one, so that a part has left the caches when its turn comes again.
const PARTS: usize = 16;

/// What is run to sample the ceilings.
pub struct Meter {
    arithmetic: loops::Arithmetic,
    /// Of the kind that kernels are given.
    buffer: Buffer,
    next: usize,
}

impl Meter {
    /// # Errors
    /// `OutOfMemory` when there is no room for a buffer of four times the last cache.
    pub fn new(cpu: &CpuFacts) -> Result<Self, Failure> {
        let bytes = SMALLEST_BUFFER.max(4 * cpu.l3);
        let mut buffer = Buffer::new(bytes, None)?;
        // Written, so that every page exists: pages never written are all one page of zeros, which a cache holds.
        buffer.as_mut_slice::<f32>().fill(1.0);
        Ok(Self { arithmetic: loops::Arithmetic::best(), buffer, next: 0 })
    }

    /// One sample of arithmetic on every thread.
    pub fn compute(&self, threads: &Threads) {
        threads.share(threads.count(), |_, begin, end| {
            for _ in begin..end {
                black_box(self.arithmetic.run(steps(threads.count())));
            }
        });
    }

    /// One sample of reading: the next part of the buffer, shared among the threads.
    pub fn read(&mut self, threads: &Threads) {
        let part = self.part();
        let data = &self.buffer.as_slice::<f32>()[self.next * part..(self.next + 1) * part];
        threads.share(threads.count(), |_, begin, end| {
            let share = data.len() / threads.count();
            black_box(loops::read(black_box(&data[begin * share..end * share])));
        });
        self.next = (self.next + 1) % PARTS;
    }

    fn part(&self) -> usize {
        self.buffer.as_slice::<f32>().len() / PARTS
    }

    /// The ceilings that these samples of [`Meter::compute`] and [`Meter::read`] mean: medians, as the kernels' own times are,
    /// so that what slows the machine down for a while slows both.
    pub fn ceilings(&self, threads: &Threads, compute: &Timing, read: &Timing) -> Ceilings {
        let flops = steps(threads.count()) * self.arithmetic.flops_per_step * threads.count() as u64;
        Ceilings {
            threads: threads.count(),
            gflops: flops as f64 / compute.median_ns,
            gigabytes_per_s: (self.part() * 4) as f64 / read.median_ns,
        }
    }

    /// Operations in a nanosecond of the fastest sample of [`Meter::compute`]: what nothing can exceed.
    pub fn peak(&self, threads: &Threads, compute: &Timing) -> f64 {
        (steps(threads.count()) * self.arithmetic.flops_per_step * threads.count() as u64) as f64 / compute.min_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::sampling;
    use std::time::{Duration, Instant};

    #[test]
    fn the_ceilings_are_those_of_a_computer_of_this_century() {
        let (mut meter, threads) = (Meter::new(&CpuFacts::detect()).unwrap(), Threads::new(2).unwrap());
        let timings = sampling::interleaved(2, Duration::from_millis(50), &mut |task| match task {
            0 => meter.compute(&threads),
            _ => meter.read(&threads),
        });
        let timings = timings.unwrap();
        let it = meter.ceilings(&threads, &timings[0], &timings[1]);
        println!("{it:?}");
        assert_eq!(it.threads, 2);
        assert!(it.gflops > 0.1 && it.gflops < 1_000.0, "{it:?}");
        assert!(it.gigabytes_per_s > 0.05 && it.gigabytes_per_s < 1_000.0, "{it:?}");
    }

    #[test]
    fn arithmetic_takes_time_in_proportion_to_its_steps() {
        let arithmetic = loops::Arithmetic::best();
        let time = |steps: u64| {
            let run = || {
                let started = Instant::now();
                black_box(arithmetic.run(black_box(steps)));
                started.elapsed().as_secs_f64()
            };
            (0..5).map(|_| run()).fold(f64::INFINITY, f64::min)
        };
        let ratio = time(1 << 20) / time(1 << 18);
        assert!((2.0..8.0).contains(&ratio), "four times the steps take {ratio} times as long");
    }

    #[test]
    fn reading_reads_everything() {
        let mut data = vec![0.0; 1000];
        for at in 0..1000 {
            data[at] = 1.0;
            assert_eq!(loops::read(&data), 1.0, "element {at}");
            data[at] = 0.0;
        }
    }
}
