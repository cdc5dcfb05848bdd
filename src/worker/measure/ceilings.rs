//! What the machine can do at best: fused multiply-adds that never leave the registers, and reads of memory that no cache
//! holds. Both with the widest vectors the running CPU has, on as many threads as the kernels will use.

mod loops;

use kernelforge::{
    host::CpuFacts,
    protocol::{Ceilings, Failure, FailureKind},
};
use std::{
    hint::black_box,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

/// Runs of each measurement; the best counts, because everything that disturbs one makes it slower.
const RUNS: usize = 8;

/// Length of one run of the arithmetic.
const ARITHMETIC_RUN: Duration = Duration::from_millis(15);

/// Smallest buffer for reading: more than any cache of a desktop CPU.
const SMALLEST_BUFFER: usize = 256 << 20;

/// Measures both ceilings on `threads` threads, in about half a second.
///
/// # Errors
/// `OutOfMemory` when there is no room for a buffer of four times the last cache; `Internal` when a thread is refused.
pub fn probe(cpu: &CpuFacts, threads: usize) -> Result<Ceilings, Failure> {
    let threads = threads.max(1);
    Ok(Ceilings { threads, gflops: gflops(threads)?, gigabytes_per_s: gigabytes_per_s(cpu, threads)? })
}

fn gflops(threads: usize) -> Result<f64, Failure> {
    let arithmetic = loops::Arithmetic::best();
    // How many steps fill a run: doubled until one lasts long enough to be measured.
    let mut steps = 1 << 14;
    loop {
        let started = Instant::now();
        black_box(arithmetic.run(steps));
        let elapsed = started.elapsed();
        if elapsed >= ARITHMETIC_RUN / 4 {
            steps = (steps as f64 * ARITHMETIC_RUN.as_secs_f64() / elapsed.as_secs_f64()) as u64;
            break;
        }
        steps *= 2;
    }
    let fastest = fastest(vec![(); threads], |()| {
        black_box(arithmetic.run(steps));
    })?;
    Ok((steps * arithmetic.flops_per_step * threads as u64) as f64 / fastest.as_secs_f64() / 1e9)
}

fn gigabytes_per_s(cpu: &CpuFacts, threads: usize) -> Result<f64, Failure> {
    let bytes = SMALLEST_BUFFER.max(4 * cpu.l3);
    let share = bytes / 4 / threads;
    let mut buffer: Vec<f32> = Vec::new();
    let refuse = |_| Failure::new(FailureKind::OutOfMemory, format!("no memory for a buffer of {bytes} bytes to read"));
    buffer.try_reserve_exact(share * threads).map_err(refuse)?;
    // Written, so that every page exists: pages never written are all one page of zeros, which a cache holds.
    buffer.resize(share * threads, 1.0);
    let fastest = fastest(buffer.chunks_exact(share).collect(), |part| {
        black_box(loops::read(black_box(part)));
    })?;
    Ok((share * threads * 4) as f64 / fastest.as_secs_f64() / 1e9)
}

/// Runs `work` for each part at once, `RUNS` times, and returns the shortest time from the common start to the last end.
fn fastest<T: Copy + Send>(parts: Vec<T>, work: impl Fn(T) + Sync) -> Result<Duration, Failure> {
    let barrier = Barrier::new(parts.len());
    let run = |part: T| -> Vec<(Instant, Instant)> {
        let times = (0..RUNS).map(|_| {
            barrier.wait();
            let started = Instant::now();
            work(part);
            (started, Instant::now())
        });
        times.collect()
    };
    let times: Vec<Vec<_>> = match parts.as_slice() {
        &[part] => vec![run(part)],
        parts => thread::scope(|scope| {
            let handles: Vec<_> = parts.iter().map(|&part| scope.spawn(move || (run)(part))).collect();
            handles.into_iter().filter_map(|it| it.join().ok()).collect()
        }),
    };
    let one_run = |index: usize| {
        let started = times.iter().map(|it| it[index].0).min()?;
        Some(times.iter().map(|it| it[index].1).max()?.duration_since(started))
    };
    (0..RUNS)
        .filter_map(one_run)
        .min()
        .ok_or_else(|| Failure::new(FailureKind::Internal, "the ceilings were not measured"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceilings_are_those_of_a_computer_of_this_century() {
        let it = probe(&CpuFacts::detect(), 1).unwrap();
        println!("{it:?}");
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
