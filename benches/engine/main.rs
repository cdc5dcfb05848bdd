//! What a build with nothing to do costs, by the number of steps, beside ninja on the same graph.
//!
//! `cargo bench --no-default-features --bench engine [-- STEPS...]`; 1,000, 10,000 and 100,000 steps if none are given. ninja
//! gets one file for each step, the same edges, and a build log of its own from a first run. Its runs and ours alternate.
//! `-- generate FOLDER STEPS` leaves the two projects in a folder.

mod project;

use nix::sys::resource::{UsageWho, getrusage};
use project::Generated;
use std::{
    env,
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

const KFORGE: &str = env!("CARGO_BIN_EXE_kforge");

/// Runs of each command; the median is shown.
const RUNS: usize = 15;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).filter(|it| it != "--bench").collect();
    if let [mode, command @ ..] = arguments.as_slice()
        && mode == "memory"
    {
        return memory(command);
    }
    if let [mode, folder, steps] = arguments.as_slice()
        && mode == "generate"
    {
        let generated = project::generate(Path::new(folder), steps.parse().expect("a number of steps"));
        println!("{} and {}", generated.kforge.display(), generated.ninja.display());
        return ExitCode::SUCCESS;
    }
    let mut sizes: Vec<usize> = arguments.iter().filter_map(|it| it.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![1_000, 10_000, 100_000];
    }
    println!(
        "{:>8} {:>10} {:>10} {:>7} {:>10} {:>12} {:>11} {:>11}",
        "steps", "kforge ms", "ninja ms", "ratio", "us/step", "field edited", "memory MiB", "edited MiB"
    );
    let mut points = Vec::new();
    for size in sizes {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let generated = project::generate(folder.path(), size);
        let row = measure(&generated);
        println!(
            "{:>8} {:>10.2} {:>10} {:>7} {:>10.2} {:>12.1} {:>11.0} {:>11.0}",
            generated.steps,
            row.kforge,
            row.ninja.map_or("absent".to_owned(), |it| format!("{it:.2}")),
            row.ninja.map_or(String::new(), |it| format!("{:.2}", it / row.kforge)),
            row.kforge * 1e3 / generated.steps as f64,
            row.edited,
            row.memory,
            row.edited_memory,
        );
        points.push((generated.steps, row.kforge));
    }
    plot(&points);
    ExitCode::SUCCESS
}

/// Medians in milliseconds, memory in MiB.
struct Row {
    kforge: f64,
    ninja: Option<f64>,
    /// `kforge build -n` after one field of one block was edited: all that is not a no-op.
    edited: f64,
    memory: f64,
    edited_memory: f64,
}

fn measure(generated: &Generated) -> Row {
    let (kforge, ninja) = (generated.kforge.as_path(), generated.ninja.as_path());
    let build = || command(KFORGE, &["build"], kforge);
    let has_ninja = Command::new("ninja").arg("--version").output().is_ok_and(|it| it.status.success());
    let ours = output(build());
    assert!(ours.contains("0 steps run"), "not a no-op: {ours}");
    if has_ninja {
        run(command("ninja", &[], ninja));
        let theirs = output(command("ninja", &[], ninja));
        assert!(theirs.contains("no work to do"), "not a no-op: {theirs}");
    }
    let (mut kforge_times, mut ninja_times, mut edited_times) = (Vec::new(), Vec::new(), Vec::new());
    run(build());
    for _ in 0..RUNS {
        kforge_times.push(run(build()));
        if has_ninja {
            ninja_times.push(run(command("ninja", &[], ninja)));
        }
    }
    let dry = || command(KFORGE, &["build", "-n"], kforge);
    let memory = resident(&["build"], kforge);
    generated.edit_one_field();
    for _ in 0..RUNS.min(7) {
        edited_times.push(run(dry()));
    }
    let edited_memory = resident(&["build", "-n"], kforge);
    Row {
        kforge: median(kforge_times),
        ninja: has_ninja.then(|| median(ninja_times)),
        edited: median(edited_times),
        memory,
        edited_memory,
    }
}

fn command(program: &str, arguments: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    command
}

fn run(mut command: Command) -> Duration {
    let start = Instant::now();
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("the command starts");
    let time = start.elapsed();
    assert!(status.success(), "{command:?}: {status}");
    time
}

fn output(mut command: Command) -> String {
    let output = command.output().expect("the command starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// The largest resident set of `kforge` with these arguments, in MiB: measured by a process that has no other child.
fn resident(arguments: &[&str], folder: &Path) -> f64 {
    let this = env::current_exe().expect("the path of this program");
    let mut command = command(&this.to_string_lossy(), &["memory"], folder);
    command.arg(KFORGE).args(arguments);
    output(command).trim().parse().expect("a number of KiB")
}

/// Runs a command and prints the largest resident set of its process in MiB.
fn memory(command: &[String]) -> ExitCode {
    let status = Command::new(&command[0]).args(&command[1..]).stdout(Stdio::null()).status();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the usage of a child");
    println!("{}", usage.max_rss() / 1024);
    if status.is_ok_and(|it| it.success()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Time over steps, both logarithmic: a straight line of slope one is linear cost.
fn plot(points: &[(usize, f64)]) {
    const WIDTH: f64 = 50.0;
    let Some(most) = points.iter().map(|it| it.1).reduce(f64::max) else { return };
    let Some(least) = points.iter().map(|it| it.1).reduce(f64::min) else { return };
    println!();
    for (steps, time) in points {
        let share = if most > least { (time / least).ln() / (most / least).ln() } else { 1.0 };
        println!("{steps:>8} |{}* {time:.2} ms", " ".repeat((share * WIDTH) as usize));
    }
    for pair in points.windows(2) {
        let slope = (pair[1].1 / pair[0].1).ln() / (pair[1].0 as f64 / pair[0].0 as f64).ln();
        println!("{:>8} to {}: time grows with steps^{slope:.2}", pair[0].0, pair[1].0);
    }
}
