//! The search for the schedule of one operation: the heuristic's schedule, then what the strategy proposes, in batches, until the
//! budget is used up; then the leaders again, measured anew.
//!
//! What was tried before is told from the store. So a search that was interrupted goes on where it was, and one with a larger budget
//! tries the difference: the strategy proposes the same again when it is told the same again.

use super::{
    Progress, Stop,
    lab::{Bench, Operation},
    ledger::{Ledger, Scope},
    time::Pace,
};
use crate::{
    build::search::propose::{Problem, Proposal, Proposer},
    digest::Digest,
    plan::schedule::Schedule,
    protocol::{
        Blobs,
        tuning::{Measured, TRIAL_VERSION, Trial, TrialOutcome, Variant, race_time},
    },
};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Schedules that are proposed, and raced, together. More would make generations coarser, fewer the canaries' share of a race larger.
const BATCH: usize = 8;
/// Leaders that are measured again.
const FINALISTS: usize = 3;
/// Runs of the heuristic's schedule that each entrant of a race may take. Half of the entrants drop out again and again, so that those
/// who stay have more; with 40, a batch of an MLP of 15 ms was raced for 7 s, where trying it took 2.
const RUNS: u32 = 12;
/// Of a final, and where one is measured alone: 40 settle a median within a percent.
pub const FINAL_RUNS: u32 = 40;
/// Within this share of what the device can do, there is nothing left to find.
const NEAR_FLOOR: f64 = 1.02;
/// A schedule that is not better by more than this, or by more than twice its noise, does not replace another one.
const LEAST_GAIN: f64 = 0.01;

/// Why a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// All trials of the budget were made.
    Trials,
    /// The strategy has nothing left to propose.
    Exhausted,
    Time,
    /// The best is as fast as the device can be.
    Floor,
}

impl Ended {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trials => "trials",
            Self::Exhausted => "nothing left",
            Self::Time => "time",
            Self::Floor => "at the floor",
        }
    }
}

/// What a search of one operation found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Found {
    /// A stage that is this operation.
    pub stage: String,
    /// How many stages of the block are.
    pub stages: usize,
    pub operation: String,
    pub winner: Winner,
    /// Nanoseconds of the heuristic's schedule, and the least that the device could do it in.
    pub heuristic_ns: f64,
    pub floor_ns: f64,
    /// Told to the strategy: those known before and the new ones.
    pub trials: usize,
    /// Of them, made now.
    pub new: usize,
    pub refused: usize,
    pub ended: Ended,
    /// The best relative time after each trial, for a plot.
    pub best_after: Vec<f64>,
    pub variants: Vec<Variant>,
    pub remarks: Vec<String>,
    pub seconds: f64,
}

/// The schedule that the operation is to be generated with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Winner {
    pub schedule: Schedule,
    /// `heuristic`, or who proposed it.
    pub origin: String,
    /// Its time as a share of the heuristic's, and the standard error of that.
    pub relative: f64,
    pub noise: f64,
    pub median_ns: f64,
}

/// How long a search may go on.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    pub trials: usize,
    pub until: Option<Instant>,
}

pub struct Search<'a> {
    pub bench: &'a Bench<'a>,
    pub ledger: Ledger<'a>,
    pub scope: &'a Scope,
    pub operation: &'a Operation,
    pub problem: &'a Problem,
    /// For progress.
    pub stage: &'a str,
    pub number: (usize, usize),
    pub observe: &'a dyn Fn(&Progress<'_>),
}

/// What was found so far.
#[derive(Default)]
struct State {
    told: Vec<Trial>,
    /// Of those that were compiled in this search.
    compiled: Vec<(Schedule, Blobs)>,
    new: usize,
    best_after: Vec<f64>,
    variants: Vec<Variant>,
}

impl State {
    fn best(&self) -> f64 {
        self.best_after.last().copied().unwrap_or(1.0)
    }

    fn tell(&mut self, trial: Trial) {
        let best = trial.relative().unwrap_or(f64::INFINITY).min(self.best());
        self.best_after.push(best);
        self.told.push(trial);
    }

    fn is_near_floor(&self) -> bool {
        let near = |it: &Measured| it.floor_ns > 0.0 && it.timing.median_ns <= it.floor_ns * NEAR_FLOOR;
        self.told.iter().filter_map(Trial::measured).any(near)
    }
}

/// A search whose heuristic's schedule was measured.
pub struct Begun {
    state: State,
    heuristic: Measured,
    seconds: f64,
}

impl Begun {
    /// Nanoseconds that a better schedule could save at most, in one run.
    pub fn gain(&self) -> f64 {
        (self.heuristic.timing.median_ns - self.heuristic.floor_ns).max(0.0)
    }
}

impl Search<'_> {
    /// The first trial: the heuristic's schedule.
    ///
    /// # Errors
    /// When there is no worker, the store cannot be written, or the heuristic's schedule itself is refused: a defect.
    pub fn begin(&self) -> Result<Begun, Stop> {
        let start = Instant::now();
        let mut state = State::default();
        let heuristic = self.heuristic(&mut state)?;
        Ok(Begun { state, heuristic, seconds: start.elapsed().as_secs_f64() })
    }

    /// The others.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn finish(&self, begun: Begun, proposer: &mut dyn Proposer, budget: Budget) -> Result<Found, Stop> {
        let start = Instant::now();
        let Begun { mut state, heuristic, seconds } = begun;
        proposer.tell(std::slice::from_ref(&state.told[0]));
        let mut pace = Pace::new(race_time(heuristic.timing.median_ns, RUNS));
        let last = race_time(heuristic.timing.median_ns, FINAL_RUNS) * (FINALISTS as u32 + 1);
        let ended = loop {
            self.progress(&state, budget, seconds + start.elapsed().as_secs_f64());
            if state.is_near_floor() {
                break Ended::Floor;
            }
            if state.told.len() >= budget.trials {
                break Ended::Trials;
            }
            let left = budget.until.map(|it| it.saturating_duration_since(Instant::now()));
            let fit = left.map_or(BATCH, |it| pace.fit(it.saturating_sub(last)));
            if fit == 0 {
                break Ended::Time;
            }
            let batch = proposer.ask(BATCH.min(fit).min(budget.trials - state.told.len()));
            if batch.is_empty() {
                break Ended::Exhausted;
            }
            let (from, new, began) = (state.told.len(), state.new, Instant::now());
            self.batch(batch, &mut state)?;
            pace.took(state.new - new, began.elapsed());
            proposer.tell(&state.told[from..]);
        };
        let winner = self.decide(&mut state, &heuristic)?;
        let refused = state.told.iter().filter(|it| it.measured().is_none()).count();
        Ok(Found {
            stage: self.stage.to_owned(),
            stages: 1,
            operation: self.scope.operation.clone(),
            winner,
            heuristic_ns: heuristic.timing.median_ns,
            floor_ns: heuristic.floor_ns,
            trials: state.told.len(),
            new: state.new,
            refused,
            ended,
            best_after: state.best_after,
            variants: state.variants,
            remarks: proposer.remarks(),
            seconds: seconds + start.elapsed().as_secs_f64(),
        })
    }

    fn progress(&self, state: &State, budget: Budget, seconds: f64) {
        (self.observe)(&Progress {
            what: self.stage,
            operation: self.number,
            trials: (state.told.len(), budget.trials),
            new: state.new,
            best: state.best(),
            seconds,
        });
    }

    fn known(&self, schedule: &Schedule) -> Option<Trial> {
        self.ledger.trial(self.scope, schedule, &self.bench.own_templates(self.operation, schedule))
    }

    fn record(&self, proposal: Proposal, outcome: TrialOutcome, state: &mut State) -> Result<Trial, Stop> {
        let Proposal { schedule, origin } = proposal;
        let trial = Trial { version: TRIAL_VERSION, schedule, origin, outcome };
        self.ledger.record_trial(self.scope, &trial, &self.bench.own_templates(self.operation, &trial.schedule))?;
        state.new += 1;
        Ok(trial)
    }

    /// The first trial of every search.
    fn heuristic(&self, state: &mut State) -> Result<Measured, Stop> {
        let schedule = &self.problem.heuristic;
        let trial = match self.known(schedule) {
            Some(trial) => trial,
            None => {
                let compiled = self.compiled(schedule, state)?;
                let raced = self.bench.race(&compiled, &[], (FINAL_RUNS, true))?;
                let outcome =
                    raced.reference.ok_or_else(|| Stop::defect("the heuristic was not measured".to_owned()))?;
                self.ledger.record_choice(self.scope, &variants(), &raced.variants)?;
                self.record(Proposal::new(schedule.clone(), HEURISTIC), outcome, state)?
            }
        };
        state.variants = self.ledger.choice(self.scope, &variants()).unwrap_or_default();
        match &trial.outcome {
            TrialOutcome::Measured(it) => {
                let measured = it.clone();
                state.tell(trial);
                Ok(measured)
            }
            TrialOutcome::Rejected(it) => {
                let message = format!("the heuristic's schedule for {}: {}", self.scope.operation, it.message);
                Err(Stop::Failed(crate::protocol::Failure::new(it.kind, message).at_stage(self.stage)))
            }
        }
    }

    /// The object of a schedule that passed its tries before.
    fn compiled(&self, schedule: &Schedule, state: &mut State) -> Result<Blobs, Stop> {
        if let Some((_, blobs)) = state.compiled.iter().find(|it| it.0 == *schedule) {
            return Ok(blobs.clone());
        }
        let tried = self.bench.try_all(self.operation, &[schedule])?.pop();
        match tried {
            Some(Ok(blobs)) => {
                state.compiled.push((schedule.clone(), blobs.clone()));
                Ok(blobs)
            }
            Some(Err(refusal)) => {
                let message =
                    format!("a schedule of {} that is to be measured: {}", self.scope.operation, refusal.message);
                Err(Stop::Failed(crate::protocol::Failure::new(refusal.kind, message).at_stage(self.stage)))
            }
            None => Err(Stop::defect("a try without a reply".to_owned())),
        }
    }

    /// Tells of one batch, in the order in which it was proposed: what is known from the store, the rest tried and raced.
    fn batch(&self, batch: Vec<Proposal>, state: &mut State) -> Result<(), Stop> {
        let mut trials: Vec<Option<Trial>> = batch.iter().map(|it| self.known(&it.schedule)).collect();
        let missing: Vec<usize> = (0..batch.len()).filter(|it| trials[*it].is_none()).collect();
        if !missing.is_empty() {
            let schedules: Vec<&Schedule> = missing.iter().map(|it| &batch[*it].schedule).collect();
            let tried = self.bench.try_all(self.operation, &schedules)?;
            let mut racing: Vec<(usize, Blobs)> = Vec::new();
            for (index, tried) in missing.into_iter().zip(tried) {
                match tried {
                    Ok(blobs) => racing.push((index, blobs)),
                    Err(refusal) => {
                        let outcome = TrialOutcome::Rejected(refusal);
                        trials[index] = Some(self.record(batch[index].clone(), outcome, state)?);
                    }
                }
            }
            if !racing.is_empty() {
                let reference = self.compiled(&self.problem.heuristic, state)?;
                let others: Vec<&Blobs> = racing.iter().map(|it| &it.1).collect();
                let raced = self.bench.race(&reference, &others, (RUNS, false))?;
                for ((index, blobs), outcome) in racing.into_iter().zip(raced.outcomes) {
                    state.compiled.push((batch[index].schedule.clone(), blobs));
                    trials[index] = Some(self.record(batch[index].clone(), outcome, state)?);
                }
            }
        }
        for trial in trials {
            state.tell(trial.ok_or_else(|| Stop::defect("a proposal was not tried".to_owned()))?);
        }
        Ok(())
    }

    /// Measures the leaders anew, against the heuristic before and after; the heuristic's schedule stays where none is better by
    /// more than the noise. Of several that are as good, the one that was proposed first is taken.
    fn decide(&self, state: &mut State, heuristic: &Measured) -> Result<Winner, Stop> {
        let stays = Winner {
            schedule: self.problem.heuristic.clone(),
            origin: HEURISTIC.to_owned(),
            relative: 1.0,
            noise: heuristic.noise,
            median_ns: heuristic.timing.median_ns,
        };
        let mut leaders: Vec<(usize, &Trial, f64)> = Vec::new();
        for (place, trial) in state.told.iter().enumerate().skip(1) {
            leaders.extend(trial.relative().filter(|it| *it < 1.0).map(|relative| (place, trial, relative)));
        }
        leaders.sort_by(|a, b| a.2.total_cmp(&b.2).then(a.0.cmp(&b.0)));
        leaders.truncate(FINALISTS);
        leaders.sort_by_key(|it| it.0);
        let mut finalists: Vec<Proposal> =
            leaders.iter().map(|it| Proposal::new(it.1.schedule.clone(), it.1.origin.clone())).collect();
        // What an unrestricted search found is not for one that may not choose it.
        let restricted = self.problem.restricted_space();
        if let Some(best) = self.ledger.best(self.scope)
            && restricted.is_none_or(|it| it.admits(&best.schedule).is_ok())
            && best.schedule != self.problem.heuristic
            && !finalists.iter().any(|it| it.schedule == best.schedule)
        {
            finalists.push(Proposal::new(best.schedule, best.origin));
        }
        if finalists.is_empty() {
            return Ok(stays);
        }
        let compared = finalists.iter().map(|it| serde_json::to_string(&it.schedule).unwrap_or_default());
        let compared = Digest::of(compared.collect::<Vec<_>>().join("\n").as_bytes());
        if let Some(winner) = self.ledger.choice(self.scope, &compared) {
            return Ok(winner);
        }
        let reference = self.compiled(&self.problem.heuristic, state)?;
        let blobs = finalists.iter().map(|it| self.compiled(&it.schedule, state)).collect::<Result<Vec<_>, _>>()?;
        let entrants: Vec<&Blobs> = blobs.iter().collect();
        let raced = self.bench.race(&reference, &entrants, (FINAL_RUNS, false))?;
        let best = best_of(finalists.into_iter().zip(raced.outcomes), (1.0, 0.0));
        let winner = best.map_or(stays, |(Proposal { schedule, origin }, it)| {
            let Measured { timing, relative, noise, .. } = it;
            Winner { schedule, origin, relative, noise, median_ns: timing.median_ns }
        });
        self.ledger.record_choice(self.scope, &compared, &winner)?;
        Ok(winner)
    }
}

/// Who proposes the first trial.
pub const HEURISTIC: &str = "heuristic";

/// Under what the hand-written kernels are kept that ran beside the heuristic's.
fn variants() -> Digest {
    Digest::of(b"hand-written variants")
}

/// The winner of a final: who is better than what stays, whose relative time and noise these are, by more than noise, and of those
/// that are as good as the best the first.
pub fn best_of<T>(
    finalists: impl Iterator<Item = (T, TrialOutcome)>,
    (stays, own_noise): (f64, f64),
) -> Option<(T, Measured)> {
    let mut better: Vec<(T, Measured)> = Vec::new();
    for (it, outcome) in finalists {
        let TrialOutcome::Measured(measured) = outcome else { continue };
        if measured.relative + LEAST_GAIN.max(2.0 * measured.noise.max(own_noise)) <= stays {
            better.push((it, measured));
        }
    }
    let best = better.iter().map(|it| it.1.relative + it.1.noise).min_by(f64::total_cmp)?;
    better.into_iter().find(|it| it.1.relative <= best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::schedule::NormSchedule,
        protocol::{FailureKind, Timing, tuning::Refusal},
    };

    fn schedule(unroll: usize) -> Schedule {
        Schedule::Norm(NormSchedule { lanes: 8, unroll })
    }

    fn finalist(unroll: usize, relative: f64, noise: f64) -> (Proposal, TrialOutcome) {
        let timing = Timing { samples: 9, median_ns: 100.0 * relative, min_ns: 1.0, q1_ns: 1.0, q3_ns: 1.0 };
        let outcome = TrialOutcome::Measured(Measured { timing, relative, noise, floor_ns: 1.0 });
        (Proposal::new(schedule(unroll), "random"), outcome)
    }

    fn winner(finalists: Vec<(Proposal, TrialOutcome)>) -> Schedule {
        best_of(finalists.into_iter(), (1.0, 0.0)).map_or(schedule(1), |it| it.0.schedule)
    }

    #[test]
    fn a_winner_is_better_by_more_than_the_noise() {
        assert_eq!(winner(vec![]), schedule(1));
        assert_eq!(winner(vec![finalist(2, 0.995, 0.0)]), schedule(1));
        assert_eq!(winner(vec![finalist(2, 0.95, 0.03)]), schedule(1));
        assert_eq!(winner(vec![finalist(2, 0.95, 0.01)]), schedule(2));
    }

    #[test]
    fn of_equals_the_first_is_taken_and_what_was_refused_never() {
        assert_eq!(winner(vec![finalist(2, 0.902, 0.004), finalist(3, 0.9, 0.004)]), schedule(2));
        assert_eq!(winner(vec![finalist(2, 0.95, 0.004), finalist(3, 0.9, 0.004)]), schedule(3));
        let refusal = Refusal { kind: FailureKind::Crash, gate: None, message: "it fell".to_owned() };
        assert_eq!(winner(vec![(Proposal::new(schedule(4), "llm"), TrialOutcome::Rejected(refusal))]), schedule(1));
    }
}
