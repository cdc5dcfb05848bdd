//! When to stop timing, and how to keep several things comparable while the machine drifts: every round takes one sample of
//! each, so that a change of clock or a busy neighbour hits all alike.

use super::stats;
use kernelforge::protocol::{Failure, FailureKind, Timing};
use std::time::{Duration, Instant};

/// A sample lasts at least this long, short runs are repeated within it: the clock's own cost (20-50 ns) and resolution stay
/// under 1 %.
const SHORTEST_SAMPLE: Duration = Duration::from_micros(10);

/// Rounds before anything is kept: caches, page tables and the clock settle.
const WARM_UP_ROUNDS: usize = 2;

/// Quartiles of fewer samples say nothing; reached even when the time is up.
const FEWEST_ROUNDS: usize = 5;

/// More samples move no quartile.
const MOST_ROUNDS: usize = 10_000;

/// What is measured. Only [`Tasks::run`] is timed.
pub trait Tasks {
    /// Called before every round, also of those that are not kept.
    fn begin_round(&mut self, _round: usize) {}
    fn run(&mut self, task: usize);
    /// Called after every sample of a task.
    fn sampled(&mut self, _task: usize) {}
}

impl<F: FnMut(usize)> Tasks for F {
    fn run(&mut self, task: usize) {
        self(task);
    }
}

/// Runs every task of `0..tasks` in interleaved rounds for about `budget`, and returns each task's timing of one run.
///
/// # Errors
/// `Internal` when there is nothing to sample.
pub fn interleaved(tasks: usize, budget: Duration, what: &mut impl Tasks) -> Result<Vec<Timing>, Failure> {
    let started = Instant::now();
    for round in 1..WARM_UP_ROUNDS {
        what.begin_round(round);
        (0..tasks).for_each(|task| what.run(task));
    }
    what.begin_round(WARM_UP_ROUNDS);
    let repetitions: Vec<usize> = (0..tasks).map(|task| repetitions(task, what)).collect();
    let mut samples = vec![Vec::new(); tasks];
    for round in 0..MOST_ROUNDS {
        if round >= FEWEST_ROUNDS && started.elapsed() >= budget {
            break;
        }
        what.begin_round(WARM_UP_ROUNDS + 1 + round);
        for (task, samples) in samples.iter_mut().enumerate() {
            samples.push(sample(task, repetitions[task], what));
            what.sampled(task);
        }
    }
    let timings = samples.into_iter().map(stats::timing).collect::<Option<Vec<_>>>();
    timings.ok_or_else(|| Failure::new(FailureKind::Internal, "nothing was measured"))
}

/// Nanoseconds of one call, from `repetitions` in a row.
pub fn sample(task: usize, repetitions: usize, what: &mut impl Tasks) -> f64 {
    let started = Instant::now();
    (0..repetitions).for_each(|_| what.run(task));
    started.elapsed().as_nanos() as f64 / repetitions as f64
}

/// How many calls of a task last as long as a sample must.
pub fn repetitions(task: usize, what: &mut impl Tasks) -> usize {
    let mut repetitions = 1;
    loop {
        let whole = sample(task, repetitions, what) * repetitions as f64;
        if whole >= SHORTEST_SAMPLE.as_nanos() as f64 || repetitions >= 1 << 20 {
            return repetitions;
        }
        repetitions *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;

    fn spin(steps: u64) -> u64 {
        (0..steps).fold(1, |sum, it| black_box(sum ^ it))
    }

    #[test]
    fn a_longer_task_takes_longer_and_the_budget_ends_the_measurement() {
        let started = Instant::now();
        let timings = interleaved(2, Duration::from_millis(20), &mut |task| {
            black_box(spin(if task == 0 { 1_000 } else { 20_000 }));
        })
        .unwrap();
        assert!(timings[0].median_ns * 5.0 < timings[1].median_ns, "{timings:?}");
        assert!(timings.iter().all(|it| it.samples >= FEWEST_ROUNDS && it.min_ns <= it.q1_ns && it.q1_ns <= it.q3_ns));
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn tasks_take_turns() {
        let mut order = Vec::new();
        interleaved(2, Duration::ZERO, &mut |task| {
            order.push(task);
            std::thread::sleep(SHORTEST_SAMPLE);
        })
        .unwrap();
        assert!(order.windows(2).rev().take(2 * FEWEST_ROUNDS - 1).all(|it| it[0] != it[1]), "{order:?}");
    }

    #[test]
    fn a_task_shorter_than_the_clock_is_repeated() {
        let mut calls = 0;
        let timings = interleaved(1, Duration::ZERO, &mut |_| calls += 1).unwrap();
        assert!(calls > 100 && timings[0].median_ns < 1_000.0, "{calls} {timings:?}");
    }

    #[test]
    fn measuring_nothing_for_no_tasks_is_empty() {
        assert!(interleaved(0, Duration::ZERO, &mut |_| {}).unwrap().is_empty());
    }
}
