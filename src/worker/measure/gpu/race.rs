//! Several programs of one operation, or of one block, against each other on a GPU. As [`super`] measures one, in the rounds of
//! [`heats`].

use super::{Draw, Given, Kept, Meter, Rates, halved, rates, runs_of, stamped, warm_up};
use crate::{
    device::gpu::{
        Gpu,
        program::{Checks, LoadedProgram},
        run::{Session, Work},
    },
    measure::{
        heats::{self, Field},
        race::{RACE_VERSION, entrant, same},
        stats,
        tamper::{self, Tamper},
    },
    verify::gaming,
};
use kernelforge::{
    manifest::spec::Dtype,
    plan::{program::Program, stage::StageGraph},
    protocol::{Clock, Failure, FailureKind, tuning::Race},
};
use std::{mem, sync::Arc};

/// Samples of each ceiling before the race, and after it.
const CANARY_SAMPLES: usize = 9;
/// How often they are sampled before a race until the arithmetic moves by no more than this share.
const MOST_CANARIES: usize = 8;
const STEADY: f64 = 0.01;

/// Races programs, each with the texts of its shaders; the first one is what the others are held against. Where the device cannot
/// time one of them, because the host has a part in it, the host's clock times all.
///
/// # Errors
/// `BadInput` without an entrant or when the entrants do not compute the same; `OutOfMemory` when they do not fit together; else as
/// [`super::benchmark`].
pub fn race(gpu: &Arc<Gpu>, entrants: &[(Vec<String>, Program)], runs: u32) -> Result<Race, Failure> {
    let graphs: Vec<&StageGraph> = entrants.iter().map(|it| &it.1.graph).collect();
    let graph = same(&graphs)?;
    let of = |index: usize, it: Failure| Failure {
        message: format!("entrant {index} of {}: {}", entrants.len(), it.message),
        ..it
    };
    let meter = Meter::new(gpu)?;
    let metering = meter.session()?;
    let half = tamper::current() == Some(Tamper::HalfTheUnits);
    let load = |(index, (sources, program)): (usize, &(Vec<String>, Program))| {
        let load = |program: Program| LoadedProgram::load(gpu, program, sources, Checks::Off);
        let timed = || if half { load(halved(program)).map(Some) } else { Ok(None) };
        load(program.clone()).and_then(|it| Ok((it, timed()?))).map_err(|it| of(index, it))
    };
    let loaded = entrants.iter().enumerate().map(load).collect::<Result<Vec<_>, Failure>>()?;
    let by_host = !entrants.iter().all(|it| stamped(gpu, &it.1));
    let given = Given::draw(graph);
    let mut racers = Vec::with_capacity(loaded.len());
    for (index, (loaded, timed)) in loaded.iter().enumerate() {
        racers.push(Racer::new(loaded, timed.as_ref(), &given).map_err(|it| of(index, it))?);
    }
    let mut running = Running { racers, meter: &meter, metering: &metering, by_host, draw: 0, sampled: Vec::new() };
    let before = running.canary(graph)?;
    let budget = heats::budget(entrants.len(), runs, &mut running)?;
    let standings = heats::run(entrants.len(), 0, budget, &mut running)?;
    let after = running.canary(graph)?;
    let (peak, bytes_peak) = (before.peak.max(after.peak), before.bytes_peak.max(after.bytes_peak));
    let judged = running.racers.into_iter().zip(standings);
    let entrants = judged.map(|(racer, it)| entrant(graph, racer.results, it, peak, bytes_peak)).collect();
    let clock = if by_host { Clock::HostAroundSubmission } else { Clock::Device };
    let canaries = [before.ceilings, after.ceilings];
    Ok(Race { version: RACE_VERSION, clock, entrants, variants: Vec::new(), canaries })
}

struct Racer<'a> {
    session: Session<'a>,
    draws: [Draw<'a>; 2],
    kept: Kept,
    results: gaming::Timed,
    /// Runs of one sample; 0 until it is known.
    runs: u32,
    samples: usize,
}

impl<'a> Racer<'a> {
    /// `timed`: what is run in place of the program where the measurement is tampered with.
    fn new(loaded: &'a LoadedProgram, timed: Option<&'a LoadedProgram>, given: &'a Given) -> Result<Self, Failure> {
        let whole = Session::new(loaded, false)?;
        let timed = timed.map(|it| Session::new(it, false)).transpose()?;
        let draws = given.draws(&whole, timed.as_ref())?;
        let session = timed.unwrap_or(whole);
        let kept = Kept::new(&session)?;
        Ok(Self { session, draws, kept, results: gaming::Timed::default(), runs: 0, samples: 0 })
    }

    fn time(&self, runs: u32, by_host: bool) -> Result<Vec<f64>, Failure> {
        if by_host { self.session.time_by_host(Work::Block, runs) } else { self.session.time(Work::Block, runs) }
    }

    /// Nanoseconds of one run.
    fn glance(&self, by_host: bool) -> Result<f64, Failure> {
        self.draws[0].write_inputs(&self.session)?;
        let once = self.time(1, by_host)?.first().copied();
        once.ok_or_else(|| Failure::new(FailureKind::Internal, "a run without a time"))
    }

    fn sample(&mut self, draw: usize, by_host: bool) -> Result<Vec<f64>, Failure> {
        self.draws[draw].write_inputs(&self.session)?;
        if self.runs == 0 {
            self.time(1, by_host)?;
            self.runs = runs_of(self.time(1, by_host)?);
        }
        self.samples += 1;
        let times = if tamper::current() == Some(Tamper::FirstResultKept) && self.samples > 1 {
            vec![1e6; self.runs as usize]
        } else {
            self.time(self.runs, by_host)?
        };
        // Looked at when the round is over: the device would have nothing to do meanwhile.
        self.kept.take(&self.session)?;
        Ok(times)
    }
}

struct Running<'a> {
    racers: Vec<Racer<'a>>,
    meter: &'a Meter,
    metering: &'a Session<'a>,
    by_host: bool,
    draw: usize,
    /// Who ran in this round.
    sampled: Vec<usize>,
}

impl Running<'_> {
    /// The ceilings, once two looks at them agree: a device that was idle while the racers were made ready showed a fifth to a half of
    /// its rate 150 ms later, and the race was run again because of that.
    fn canary(&self, graph: &StageGraph) -> Result<Rates, Failure> {
        let mut last = self.ceilings(graph)?;
        // Software has no clock of its own.
        let more = if self.metering.gpu().facts.software() { 0 } else { MOST_CANARIES };
        for _ in 0..more {
            let now = self.ceilings(graph)?;
            let moved = (now.ceilings.gflops / last.ceilings.gflops - 1.0).abs();
            last = now;
            if moved <= STEADY {
                break;
            }
        }
        Ok(last)
    }

    fn ceilings(&self, graph: &StageGraph) -> Result<Rates, Failure> {
        warm_up(self.meter, self.metering)?;
        let mut samples = vec![Vec::new(); self.meter.ceilings().len()];
        for _ in 0..CANARY_SAMPLES {
            for (ceiling, samples) in self.meter.ceilings().iter().zip(&mut samples) {
                samples.extend(self.metering.time(self.meter.work(*ceiling), 1)?);
            }
        }
        let timings = samples.into_iter().map(stats::timing).collect::<Option<Vec<_>>>();
        let timings = timings.ok_or_else(|| Failure::new(FailureKind::Internal, "no ceiling was measured"))?;
        let half = graph.tensors.iter().any(|it| it.dtype == Dtype::F16);
        Ok(rates(self.metering.gpu(), self.meter, half, &timings))
    }
}

impl Field for Running<'_> {
    fn glance(&mut self, entrant: usize) -> Result<f64, Failure> {
        warm_up(self.meter, self.metering)?;
        self.racers[entrant].glance(self.by_host)
    }

    fn begin_round(&mut self, round: usize) -> Result<(), Failure> {
        self.draw = round % 2;
        warm_up(self.meter, self.metering)
    }

    fn sample(&mut self, racer: usize) -> Result<Vec<f64>, Failure> {
        self.sampled.push(racer);
        self.racers[racer].sample(self.draw, self.by_host)
    }

    fn end_round(&mut self) -> Result<(), Failure> {
        for racer in mem::take(&mut self.sampled) {
            let Racer { session, draws, kept, results, .. } = &mut self.racers[racer];
            draws[self.draw].compare(session, kept, Work::Block, results)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "race_tests.rs"]
mod tests;
