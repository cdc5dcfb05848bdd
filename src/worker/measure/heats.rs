//! Successive halving: several racers are run in interleaved rounds, the better half goes on with twice as much time for each, and
//! what is compared is never two times but two times of the same round.
//!
//! The time is split evenly over the heats, so that a heat of half as many racers has twice as many rounds. (All of it for all
//! racers would tell the last two of eight apart with twice the error.)

use super::stats;
use kernelforge::protocol::{Failure, FailureKind, Timing, tuning::race_time};
use std::time::{Duration, Instant};

/// Rounds of a heat, reached even when its time is up: fewer have no median that one disturbed round does not move.
const FEWEST_ROUNDS: usize = 3;

/// More rounds move no median.
const MOST_ROUNDS: usize = 10_000;

/// How many times slower than the best one a racer is whom more rounds would not help. It would take their time from the others: one
/// of 20 times the best time is as long as all 20 racers of a heat.
const HOPELESS: f64 = 2.0;

/// The same before the first round, of what one run says: a schedule that loads element by element takes hundreds of times as long as
/// the best one, and its rounds would be most of a race.
const DISMISSED: f64 = 5.0;

/// Nanoseconds of a run that says so alone: a shorter one may seem that slow because the system took a time slice away from it.
const SHORTEST_GLANCE: f64 = 2e6;

/// What is run.
pub trait Field {
    /// Nanoseconds of one run of an entrant, roughly, before the first round.
    ///
    /// # Errors
    /// As [`Self::begin_round`].
    fn glance(&mut self, entrant: usize) -> Result<f64, Failure>;

    /// Called before every round.
    ///
    /// # Errors
    /// What the device has to say.
    fn begin_round(&mut self, round: usize) -> Result<(), Failure>;

    /// Nanoseconds of each run of one sample of a racer.
    ///
    /// # Errors
    /// As [`Self::begin_round`].
    fn sample(&mut self, racer: usize) -> Result<Vec<f64>, Failure>;

    /// Called after every round.
    ///
    /// # Errors
    /// As [`Self::begin_round`].
    fn end_round(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

/// What one racer showed.
#[derive(Debug, Clone, Default)]
pub struct Course {
    samples: Vec<f64>,
    /// For each round its time divided by that of racer 0.
    ratios: Vec<f64>,
    dismissed: bool,
}

/// A racer's figures.
#[derive(Debug, Clone)]
pub struct Standing {
    pub timing: Timing,
    /// Median of its ratios to racer 0, and the standard error of that; of one that was dismissed the ratio of one run, and all of it.
    pub relative: f64,
    pub noise: f64,
    /// It ran in no round.
    pub dismissed: bool,
}

impl Course {
    fn relative(&self) -> f64 {
        // Nothing runs less than one round.
        stats::median(&self.ratios).unwrap_or(f64::INFINITY)
    }

    fn standing(self) -> Result<Standing, Failure> {
        let relative = self.relative();
        let noise = if self.dismissed { relative } else { stats::median_error(&self.ratios) };
        let timing = stats::timing(self.samples);
        let timing = timing.ok_or_else(|| Failure::new(FailureKind::Internal, "nothing was measured"))?;
        Ok(Standing { timing, relative, noise, dismissed: self.dismissed })
    }
}

/// How long a race of so many goes on, by one run of the first.
///
/// # Errors
/// What the field says; `Internal` without an entrant.
pub fn budget(entrants: usize, runs: u32, field: &mut impl Field) -> Result<Duration, Failure> {
    let Some(count) = u32::try_from(entrants).ok().filter(|it| *it > 0) else {
        return Err(Failure::new(FailureKind::Internal, "nobody races"));
    };
    Ok(race_time(field.glance(0)?, runs) * count)
}

/// Runs `entrants` for about `budget`; the first of them, whom the others are held against, in every round. `others` run beside them,
/// decide nothing and are not eliminated. Standings are in the order of the racers: the entrants, then the others.
///
/// # Errors
/// What the field says; `Internal` without an entrant.
pub fn run(entrants: usize, others: usize, budget: Duration, field: &mut impl Field) -> Result<Vec<Standing>, Failure> {
    let mut courses = vec![Course::default(); entrants + others];
    let mut challengers: Vec<usize> = (1..entrants).collect();
    let mut others: Vec<usize> = (entrants..entrants + others).collect();
    dismiss(&mut challengers, &mut courses, field)?;
    let mut round = 0;
    let heats = heats(challengers.len());
    for _ in 0..heats {
        let (started, share) = (Instant::now(), budget / heats);
        let mut running = challengers.clone();
        for done in 0..MOST_ROUNDS {
            if done >= FEWEST_ROUNDS && started.elapsed() >= share {
                break;
            }
            if done == FEWEST_ROUNDS {
                let best = running.iter().map(|it| courses[*it].relative()).fold(1.0, f64::min);
                let hopeful = |it: &usize| courses[*it].relative() <= HOPELESS * best;
                running.retain(hopeful);
                others.retain(hopeful);
            }
            let racers = [&[0], running.as_slice(), others.as_slice()].concat();
            run_round(round, racers, &mut courses, field)?;
            round += 1;
        }
        challengers.sort_by(|a, b| courses[*a].relative().total_cmp(&courses[*b].relative()));
        challengers.truncate(challengers.len().div_ceil(2));
    }
    courses.into_iter().map(Course::standing).collect()
}

/// Takes those out whom one run shows to be [`DISMISSED`] times slower than racer 0.
fn dismiss(challengers: &mut Vec<usize>, courses: &mut [Course], field: &mut impl Field) -> Result<(), Failure> {
    if challengers.is_empty() {
        return Ok(());
    }
    let base = field.glance(0)?;
    for racer in std::mem::take(challengers) {
        let time = field.glance(racer)?;
        if time >= SHORTEST_GLANCE && time > DISMISSED * base {
            courses[racer] = Course { samples: vec![time], ratios: vec![time / base], dismissed: true };
        } else {
            challengers.push(racer);
        }
    }
    Ok(())
}

/// How many heats there are until one challenger has run alone with racer 0.
fn heats(challengers: usize) -> u32 {
    challengers.max(1).next_power_of_two().ilog2() + 1
}

/// One sample of each. Who comes first changes from round to round: the first one finds caches and clock as the end of the round
/// before left them.
fn run_round(
    round: usize,
    mut racers: Vec<usize>,
    courses: &mut [Course],
    field: &mut impl Field,
) -> Result<(), Failure> {
    let first = round % racers.len();
    racers.rotate_left(first);
    field.begin_round(round)?;
    let mut times = Vec::with_capacity(racers.len());
    for racer in racers {
        let samples = field.sample(racer)?;
        let median = stats::median(&samples);
        times.push((racer, median.ok_or_else(|| Failure::new(FailureKind::Internal, "a sample is empty"))?));
        courses[racer].samples.extend(samples);
    }
    field.end_round()?;
    let base = times.iter().find(|it| it.0 == 0).map_or(f64::NAN, |it| it.1);
    times.into_iter().for_each(|(racer, time)| courses[racer].ratios.push(time / base));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Racers of known times, of which each sample says a little more than the one before.
    struct Known {
        times: Vec<f64>,
        order: Vec<Vec<usize>>,
        drift: f64,
    }

    impl Known {
        fn new(times: &[f64]) -> Self {
            Self { times: times.to_vec(), order: Vec::new(), drift: 1.0 }
        }
    }

    impl Field for Known {
        fn glance(&mut self, racer: usize) -> Result<f64, Failure> {
            Ok(self.times[racer])
        }

        fn begin_round(&mut self, _: usize) -> Result<(), Failure> {
            self.order.push(Vec::new());
            self.drift += 0.1;
            Ok(())
        }

        fn sample(&mut self, racer: usize) -> Result<Vec<f64>, Failure> {
            if let Some(it) = self.order.last_mut() {
                it.push(racer);
            }
            Ok(vec![self.times[racer] * self.drift; 3])
        }
    }

    #[test]
    fn the_better_half_goes_on_and_the_first_runs_in_every_round() {
        let mut field = Known::new(&[10.0, 14.0, 12.0, 9.0, 11.0, 8.0, 13.0, 15.0]);
        let standings = run(8, 0, Duration::ZERO, &mut field).unwrap();
        // Heats of 7, 4, 2 and 1 challengers, each of the fewest rounds.
        let rounds: Vec<usize> = standings.iter().map(|it| it.timing.samples / 3 / FEWEST_ROUNDS).collect();
        assert_eq!(rounds, [4, 1, 2, 3, 2, 4, 1, 1]);
        assert_eq!((standings[0].relative, standings[0].noise), (1.0, 0.0));
        assert!((standings[5].relative - 0.8).abs() < 1e-12, "drift is in both times of a round");
    }

    #[test]
    fn everybody_comes_first_in_turn() {
        let mut field = Known::new(&[1.0, 1.0, 1.0]);
        run(3, 0, Duration::ZERO, &mut field).unwrap();
        let firsts: Vec<usize> = field.order[..3].iter().map(|it| it[0]).collect();
        assert_eq!(firsts, [0, 1, 2]);
    }

    #[test]
    fn the_hopeless_do_not_take_the_time_of_the_others() {
        let mut field = Known::new(&[10.0, 11.0, 40.0, 500.0]);
        let standings = run(3, 1, Duration::from_millis(20), &mut field).unwrap();
        assert_eq!(standings[2].timing.samples, 3 * FEWEST_ROUNDS);
        assert_eq!(standings[3].timing.samples, 3 * FEWEST_ROUNDS);
        assert!(standings[1].timing.samples > 6 * FEWEST_ROUNDS, "{standings:?}");
        assert_eq!(standings[3].relative, 50.0);
    }

    #[test]
    fn who_is_many_times_slower_in_one_run_does_not_race() {
        let mut field = Known::new(&[1e6, 4.9e6, 5.1e6, 0.9e6]);
        let standings = run(4, 0, Duration::ZERO, &mut field).unwrap();
        assert_eq!(standings.iter().map(|it| it.dismissed).collect::<Vec<_>>(), [false, false, true, false]);
        let it = &standings[2];
        assert_eq!((it.timing.samples, it.timing.median_ns, it.relative, it.noise), (1, 5.1e6, 5.1, 5.1));
        assert!(field.order.iter().all(|it| !it.contains(&2)), "{:?}", field.order);
    }

    #[test]
    fn a_race_is_as_long_as_its_first_entrant_runs_and_not_too_long() {
        let of = |ns: f64| budget(3, 10, &mut Known::new(&[ns, 1.0, 1.0])).unwrap().as_millis();
        assert_eq!([of(1e7), of(1e3), of(1e9), of(f64::NAN)], [300, 75, 1800, 75]);
        assert!(budget(0, 10, &mut Known::new(&[1.0])).is_err());
    }

    #[test]
    fn a_race_of_one_is_a_measurement() {
        let standings = run(1, 0, Duration::ZERO, &mut Known::new(&[7.0])).unwrap();
        assert_eq!((standings.len(), standings[0].timing.samples), (1, 3 * FEWEST_ROUNDS));
    }

    #[test]
    fn heats_halve_until_one_is_left() {
        assert_eq!([0, 1, 2, 3, 4, 5, 7, 8, 31].map(heats), [1, 1, 2, 3, 3, 4, 4, 4, 6]);
    }
}
