//! What is recorded of one block, as text: the audit, the plan's schedule for every stage, the gates, the measured figures.

use super::{
    model::{BlockReport, Verification},
    terminal,
};
use crate::{
    host::Device,
    plan::{
        one_line,
        schedule::Schedule,
        stage::{Stage, StageGraph},
    },
    protocol::{
        Clock,
        audit::{Audit, Ruling},
    },
};
use anstyle::{AnsiColor, Style};

/// One block instance on one target, built and not stale.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub audit: &'a Audit,
    /// What the plan schedules.
    pub stages: &'a StageGraph,
    /// Absent where the kernel was rejected or not measured.
    pub report: Option<&'a BlockReport>,
}

/// The record as paragraphs and tables; ends with a newline.
pub fn text(record: &Record<'_>, width: usize, color: bool) -> String {
    let Record { audit, stages, report } = *record;
    let paint = |style: Style, text: &str| if color { format!("{style}{text}{style:#}") } else { text.to_owned() };
    let (style, word) = match audit.ruling {
        Ruling::Accepted => (AnsiColor::Green.on_default(), "accepted"),
        Ruling::Rejected(_) => (AnsiColor::Red.on_default().bold(), "rejected"),
    };
    let title = format!("{}@{}", audit.block, audit.target);
    let mut text = format!("{}: {}\n", paint(Style::new().bold(), &title), paint(style, word));
    let mut line = |name: &str, value: String| text += &format!("{name:<9} {value}\n");
    if let Ruling::Rejected(rejection) = &audit.ruling {
        line("reason", rejection.to_string());
    }
    let provenance = &audit.plan.provenance;
    let trials = if provenance.trials == 1 { "trial" } else { "trials" };
    line("plan", format!("{} by {}, {} {trials}", audit.plan_digest.short(), provenance.strategy, provenance.trials));
    line("workload", format!("{}, signature {}", audit.workload.spec.kind_name(), audit.workload.signature.short()));
    line("object", audit.object.map_or_else(|| "none".to_owned(), |it| it.short()));
    line("device", format!("{}, fingerprint {}", audit.device.facts.shown(), audit.device.fingerprint.short()));
    let on = match (&audit.device.facts, audit.threads) {
        (Device::Gpu(_), _) => String::new(),
        (Device::Cpu(_), 1) => " on 1 thread".to_owned(),
        (Device::Cpu(_), threads) => format!(" on {threads} threads"),
    };
    let wall = terminal::duration(audit.wall_us as f64 * 1e3);
    let seed = audit.seed.map_or_else(String::new, |it| format!(", seed {it}"));
    line("verified", format!("in {wall}{on}{seed}"));

    text.push('\n');
    let names = stages.stages.iter().map(|it| it.name.chars().count()).max().unwrap_or(0);
    for stage in &stages.stages {
        text += &format!("{:<names$}  {}\n", stage.name, schedule(audit, stages, stage));
    }
    if let Some(verdict) = &audit.verdict {
        // With the gate that looks at the measurement, where there was one.
        let judged = report.map_or_else(|| Verification::new(verdict, &[]), |it| it.verification.clone());
        text += &format!("\n{}", terminal::gates(&judged, width, color));
    }
    if let Some(report) = report {
        text += &format!("\n{}", terminal::stages(report, width, color));
        text += &format!("{}\n", terminal::ceilings(&report.device.facts, &report.device.ceilings));
        if report.clock == Clock::HostAroundSubmission {
            text += "times are the host's, around a submission: the device has no timestamps, or the host has a part in the run\n";
        }
    }
    text
}

/// The schedule that the stage was generated with: the plan's, or the plain one where no pass asked for one.
fn schedule(audit: &Audit, stages: &StageGraph, stage: &Stage) -> String {
    match audit.plan.stages.get(&stage.name).filter(|_| stage.scheduled) {
        Some(schedule) => one_line(schedule),
        None if stage.scheduled => "not in the plan".to_owned(),
        None => format!(
            "{}, plain",
            one_line(&Schedule::plain(&stage.op, stages.tensor(stage.output).dtype, &audit.device.facts))
        ),
    }
}
