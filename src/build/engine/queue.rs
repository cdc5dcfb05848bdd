//! Which of the ready steps may start now. Pure: no threads, no clock.
//!
//! Two rules: at most `jobs` shared steps at a time, and an exclusive step (one that measures) only when nothing else runs, and
//! nothing else while it does. Exclusive steps come last, because each one that starts costs the others a standstill.

use std::collections::BTreeSet;

#[derive(Debug)]
pub struct Queue {
    jobs: usize,
    /// By index, so that the steps that most others wait for (the graph is in topological order) come first.
    shared: BTreeSet<usize>,
    exclusive: BTreeSet<usize>,
    running: usize,
    measuring: bool,
    closed: bool,
}

impl Queue {
    pub fn new(jobs: usize) -> Self {
        let (shared, exclusive) = (BTreeSet::new(), BTreeSet::new());
        Self { jobs: jobs.max(1), shared, exclusive, running: 0, measuring: false, closed: false }
    }

    pub fn push(&mut self, step: usize, exclusive: bool) {
        if exclusive {
            self.exclusive.insert(step)
        } else {
            self.shared.insert(step)
        };
    }

    /// Takes back a step that was not started yet. Whether there was one.
    pub fn withdraw(&mut self, step: usize) -> bool {
        self.shared.remove(&step) || self.exclusive.remove(&step)
    }

    /// The next step to start; it counts as running from here on.
    pub fn start(&mut self) -> Option<usize> {
        if self.closed || self.measuring || self.running >= self.jobs {
            return None;
        }
        if let Some(step) = self.shared.pop_first() {
            self.running += 1;
            return Some(step);
        }
        if self.running > 0 {
            return None;
        }
        let step = self.exclusive.pop_first()?;
        self.running = 1;
        self.measuring = true;
        Some(step)
    }

    /// A step that [`Self::start`] gave out is over.
    pub fn finish(&mut self) {
        self.running -= 1;
        self.measuring = false;
    }

    /// Starts nothing more.
    pub fn close(&mut self) {
        self.closed = true;
    }

    pub fn running(&self) -> usize {
        self.running
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_measurement_waits_for_everything_else_and_runs_alone() {
        let mut queue = Queue::new(2);
        queue.push(0, true);
        queue.push(1, false);
        queue.push(2, false);
        assert_eq!((queue.start(), queue.start(), queue.start()), (Some(1), Some(2), None));
        queue.finish();
        assert_eq!(queue.start(), None, "step 2 still runs");
        queue.finish();
        assert_eq!(queue.start(), Some(0));
        queue.push(3, false);
        assert_eq!(queue.start(), None, "step 0 measures");
        queue.finish();
        assert_eq!(queue.start(), Some(3));
    }

    #[test]
    fn a_closed_queue_starts_nothing() {
        let mut queue = Queue::new(1);
        queue.push(0, false);
        queue.close();
        assert_eq!(queue.start(), None);
    }

    #[test]
    fn what_is_withdrawn_does_not_start() {
        let mut queue = Queue::new(2);
        queue.push(0, false);
        queue.push(1, true);
        assert_eq!(queue.start(), Some(0));
        assert_eq!((queue.withdraw(0), queue.withdraw(1), queue.withdraw(1)), (false, true, false));
        queue.finish();
        assert_eq!(queue.start(), None);
    }

    proptest! {
        #![proptest_config(crate::testing::cases(256))]
        #[test]
        fn no_order_of_events_breaks_a_rule_or_loses_a_step(
            jobs in 1usize..5, steps in proptest::collection::vec(any::<bool>(), 1..40), choices in any::<u64>(),
        ) {
            let (mut queue, mut running, mut done) = (Queue::new(jobs), Vec::new(), 0);
            let (mut pushed, mut bits) = (0, choices);
            while done < steps.len() {
                bits = bits.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                if bits & 0x100 != 0 && pushed < steps.len() {
                    queue.push(pushed, steps[pushed]);
                    pushed += 1;
                }
                while let Some(step) = queue.start() {
                    running.push(step);
                }
                prop_assert!(running.len() <= jobs);
                prop_assert!(running.len() <= 1 || running.iter().all(|&it| !steps[it]));
                if bits & 0x200 != 0 && !running.is_empty() {
                    running.remove((bits >> 20) as usize % running.len());
                    queue.finish();
                    done += 1;
                }
            }
        }
    }
}
