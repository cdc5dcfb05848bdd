//! The tables of a terminal: one row for each block and target, or one for each stage of a block. Columns that do not fit
//! are left out, the least telling first; what is left out is in `report.json`.

use super::model::{BlockReport, GateSummary, Measured, Verification};
use crate::{
    host::Device,
    protocol::{Ceilings, Gate, GateStatus},
};
use anstyle::{AnsiColor, Style};

/// How this build came by a row.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Something of the block was made by this build.
    Built,
    UpToDate,
    /// The step that failed at first, and not when it was tried again.
    Flaky(String),
    /// The step that failed.
    Failed(String),
}

const GREEN: Style = AnsiColor::Green.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const RED: Style = AnsiColor::Red.on_default().bold();
const DIM: Style = Style::new().dimmed();
const PLAIN: Style = Style::new();

/// One block on one target, as text: what the table shows, and what can be kept to show it again without the report.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub state: State,
    /// Under `block@target`, and then under the columns of figures, as far as there are any.
    pub cells: Vec<String>,
}

impl Line {
    /// There is no report where a step failed before there was one.
    pub fn new(block: &str, target: &str, mut state: State, report: Option<&BlockReport>) -> Self {
        let mut cells = vec![format!("{block}@{target}")];
        if let Some(report) = report {
            if !report.verification.accepted && !matches!(state, State::Failed(_)) {
                state = State::Failed("verify".to_owned());
            }
            cells.push(report.stages.len().to_string());
            cells.extend(measured(&report.measured).map(|it| it.0));
            cells.push(report.verification.worst_ratio.map_or_else(absent, bound_share));
            // The CPU is the one that kforge runs on; a GPU is one of several, and perhaps no real one.
            if let Device::Gpu(gpu) = &report.device.facts {
                cells.push(gpu.shown());
            }
        }
        Self { state, cells }
    }
}

/// The table of a build. `width` is that of the terminal, in characters.
pub fn table(lines: &[Line], width: usize, color: bool) -> String {
    const SPREAD: usize = 4;
    const FIGURES: usize = 9;
    let mut columns = vec![
        Column { title: "block@target", right: false, worth: 9 },
        Column { title: "status", right: false, worth: 9 },
        Column { title: "stages", right: true, worth: 1 },
        Column { title: "time", right: true, worth: 9 },
        Column { title: "spread", right: true, worth: 2 },
        Column { title: "GFLOP/s", right: true, worth: 8 },
        Column { title: "of peak", right: true, worth: 7 },
        Column { title: "GB/s", right: true, worth: 4 },
        Column { title: "of memory", right: true, worth: 3 },
        Column { title: "error/bound", right: true, worth: 6 },
    ];
    if lines.iter().any(|it| it.cells.len() > FIGURES) {
        columns.push(Column { title: "device", right: false, worth: 5 });
    }
    let mut table = Table::new(&columns);
    for line in lines {
        let status = match &line.state {
            State::Failed(step) => (format!("failed: {step}"), RED),
            State::Flaky(step) => (format!("flaky: {step}"), YELLOW),
            State::Built => ("verified".to_owned(), GREEN),
            State::UpToDate => ("up to date".to_owned(), DIM),
        };
        let mut cells: Vec<Cell> = line.cells.iter().map(|it| (it.clone(), PLAIN)).collect();
        cells.insert(1.min(cells.len()), status);
        if let Some(spread) = cells.get_mut(SPREAD) {
            spread.1 = DIM;
        }
        table.push(cells);
    }
    table.render(width, color)
}

/// What the measured shares are shares of.
pub fn ceilings(device: &Device, it: &Ceilings) -> String {
    let of = match (device, it.threads) {
        (Device::Gpu(gpu), _) => gpu.shown(),
        (Device::Cpu(_), 1) => "1 thread".to_owned(),
        (Device::Cpu(_), threads) => format!("{threads} threads"),
    };
    format!("{of}: {:.1} GFLOP/s peak, {:.1} GB/s memory", it.gflops, it.gigabytes_per_s)
}

/// One row for each gate that ran.
pub fn gates(verification: &Verification, width: usize, color: bool) -> String {
    let mut gates = Table::new(&[
        Column { title: "gate", right: false, worth: 9 },
        Column { title: "status", right: false, worth: 9 },
        Column { title: "cases", right: true, worth: 2 },
        Column { title: "elements", right: true, worth: 3 },
        Column { title: "error/bound", right: true, worth: 5 },
        Column { title: "worst at", right: false, worth: 1 },
    ]);
    verification.gates.iter().for_each(|it| gates.push(gate(it)));
    gates.render(width, color)
}

/// One row for each stage, and one for the block.
pub fn stages(report: &BlockReport, width: usize, color: bool) -> String {
    let mut stages = Table::new(&[
        Column { title: "stage", right: false, worth: 9 },
        Column { title: "op", right: false, worth: 5 },
        Column { title: "share", right: true, worth: 6 },
        Column { title: "time", right: true, worth: 9 },
        Column { title: "spread", right: true, worth: 2 },
        Column { title: "GFLOP/s", right: true, worth: 8 },
        Column { title: "of peak", right: true, worth: 7 },
        Column { title: "GB/s", right: true, worth: 4 },
        Column { title: "of memory", right: true, worth: 3 },
        Column { title: "samples", right: true, worth: 1 },
    ]);
    let samples = |it: &Measured| (it.timing.samples.to_string(), PLAIN);
    for stage in &report.stages {
        let mut cells = vec![(stage.name.clone(), PLAIN), (stage.op.clone(), DIM), (percent(stage.time_share), PLAIN)];
        cells.extend(measured(&stage.measured));
        cells.push(samples(&stage.measured));
        stages.push(cells);
    }
    let mut whole =
        vec![("block".to_owned(), PLAIN), (report.spec.kind_name().to_owned(), DIM), (String::new(), PLAIN)];
    whole.extend(measured(&report.measured));
    whole.push(samples(&report.measured));
    stages.push(whole);
    stages.render(width, color)
}

/// Time, spread, GFLOP/s, share of peak, GB/s, share of bandwidth.
fn measured(it: &Measured) -> [Cell; 6] {
    let number = |it: Option<f64>| it.map_or_else(absent, |it| format!("{it:.1}"));
    let spread = it.spread.map_or_else(absent, |it| format!("±{:.1}%", it * 100.0));
    [
        (duration(it.timing.median_ns), PLAIN),
        (spread, DIM),
        (number(it.gflops), PLAIN),
        (percent(it.peak_share), PLAIN),
        (number(it.gigabytes_per_s), PLAIN),
        (percent(it.bandwidth_share), PLAIN),
    ]
}

fn gate(it: &GateSummary) -> Vec<Cell> {
    let name = match it.gate {
        Gate::V0Legality => "V0 legality",
        Gate::V1Exactness => "V1 exactness",
        Gate::V2Bound => "V2 bound",
        Gate::V2Meaning => "V2 meaning",
        Gate::V4Memory => "V4 memory",
        Gate::V3ErrorRatio => "V3 error ratio",
        Gate::V5Shapes => "V5 shapes",
        Gate::V6Relations => "V6 relations",
        Gate::V7NoGaming => "V7 no gaming",
    };
    let status = match it.status {
        GateStatus::Passed => ("passed".to_owned(), GREEN),
        GateStatus::Failed => ("failed".to_owned(), RED),
        GateStatus::Inconclusive => ("inconclusive".to_owned(), RED),
    };
    vec![
        (name.to_owned(), PLAIN),
        status,
        (it.results.to_string(), PLAIN),
        (it.checked.to_string(), PLAIN),
        (it.worst_ratio.map_or_else(absent, bound_share), PLAIN),
        (it.worst_stage.clone().unwrap_or_else(absent), PLAIN),
    ]
}

fn absent() -> String {
    "-".to_owned()
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(absent, |it| format!("{:.0}%", it * 100.0))
}

/// An error as a share of its bound: two digits, however small.
fn bound_share(ratio: f64) -> String {
    if (0.01..100.0).contains(&ratio) { format!("{ratio:.2}") } else { format!("{ratio:.1e}") }
}

/// A time with three significant digits.
pub fn duration(nanoseconds: f64) -> String {
    let units = [("ns", 1.0), ("µs", 1e3), ("ms", 1e6), ("s", 1e9)];
    // 999.6 of a unit would be shown as 1000 of it.
    let (unit, scale) = units.into_iter().find(|it| nanoseconds / it.1 < 999.5).unwrap_or(units[3]);
    let value = nanoseconds / scale;
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$} {unit}")
}

type Cell = (String, Style);

#[derive(Clone, Copy)]
struct Column {
    title: &'static str,
    right: bool,
    /// The column with the least worth is left out first.
    worth: u8,
}

struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

const GAP: usize = 2;

impl Table {
    fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    fn push(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    fn render(&self, width: usize, color: bool) -> String {
        let widths: Vec<_> = (0..self.columns.len()).map(|it| self.width(it)).collect();
        let mut shown: Vec<_> = (0..self.columns.len()).collect();
        while shown.len() > 1 && shown.iter().map(|it| widths[*it] + GAP).sum::<usize>() > width + GAP {
            let Some(least) = shown.iter().copied().min_by_key(|it| self.columns[*it].worth) else { break };
            if self.columns[least].worth == 9 {
                break; // A row without these says nothing: let it wrap.
            }
            shown.retain(|it| *it != least);
        }
        let line = |cell: &dyn Fn(usize) -> Cell| {
            let cells = shown.iter().map(|index| {
                let (text, style) = cell(*index);
                let (text, padding) = (text.as_str(), " ".repeat(widths[*index] - text.chars().count()));
                let painted = paint(color, style, text);
                if self.columns[*index].right { padding + &painted } else { painted + &padding }
            });
            cells.collect::<Vec<_>>().join(&" ".repeat(GAP)).trim_end().to_owned() + "\n"
        };
        let heads = line(&|index| (self.columns[index].title.to_owned(), DIM));
        let cell = |row: &[Cell], index: usize| row.get(index).cloned().unwrap_or_else(|| (String::new(), PLAIN));
        heads + &self.rows.iter().map(|row| line(&|index| cell(row, index))).collect::<String>()
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().filter_map(|it| it.get(column)).map(|it| it.0.chars().count());
        cells.chain([self.columns[column].title.chars().count()]).max().unwrap_or(0)
    }
}

fn paint(color: bool, style: Style, text: &str) -> String {
    if color && style != PLAIN { format!("{style}{text}{style:#}") } else { text.to_owned() }
}
