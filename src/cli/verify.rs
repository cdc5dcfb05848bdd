//! `kforge verify PLAN.json --block BLOCK[@TARGET]`: a plan from outside through the gates of a build.

use super::{
    error::{Error, Outcome},
    located::{self, Located},
    print::{self, GREEN, RED},
    project,
    worker::{Asked, Asker, any_seed},
};
use crate::{
    build::{
        engine::{action, worker::Request},
        graph::{BlockTarget, StepKind},
        report::{model::Verification, terminal},
        search::templates,
    },
    manifest::{error::SourceFile, spec::Origin},
    plan::{Plan, read, stage::StageGraph},
    protocol::{
        ActionKind, Blobs, Done, Failure, Limits,
        audit::{Audit, Rejection, Ruling, Subject},
        blob,
        corpus::Case,
    },
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// Bytes of the largest kernel text that is read; a block of the largest model has a hundredth of it.
const MAX_KERNEL: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 accepted, 1 rejected, 2 the plan file, the manifest or the command line, 3 no worker."
)]
pub struct Args {
    /// The plan to judge, as a build writes it to .kforge-cache/out/BLOCK@TARGET/plan.json
    #[arg(value_name = "PLAN.json")]
    plan: PathBuf,
    /// The block that the plan is for
    #[arg(long, value_name = "BLOCK[@TARGET]")]
    block: String,
    /// Judge this text of the generated code (a build's kernel.mlir, for a GPU its kernel.wgsl, perhaps edited) instead of what
    /// the generator makes of the plan. It is run
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Longest that the gates may take; a build gives them 900 seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: Option<u64>,
    /// Of the verifier's inputs; another one each time if not given, drawn after the kernel is compiled
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Print the audit record as JSON
    #[arg(long)]
    json: bool,
}

pub fn main(directory: &Path, args: Args) -> Result<Outcome, Error> {
    let project = project::load(directory)?;
    // The project is only asked what the block is: whatever comes of a stranger's plan is kept nowhere.
    let folder = tempfile::tempdir()?;
    let asker = Asker::new(folder.path())?;
    let finder = asker.finder();
    let (block, origins) = project::block_target_of(&project, &args.block, &finder)?;
    let (plan, plan_bytes) = read_plan(directory, &args.plan, &block)?;
    let shaders = templates::of_plan(&plan, &project.shaders).map_err(|it| {
        let hint = it.hint();
        Error::input(format!("{}: {it}", args.plan.display())).with_hint(hint)
    })?;
    let kernel = args.kernel.as_ref().map(|path| read_kernel(directory, path)).transpose()?;
    let trial = Trial {
        block: &block,
        origins: &origins,
        plan: &plan,
        plan_bytes: &plan_bytes,
        kernel: kernel.as_deref().map(|it| it.text.as_bytes()),
        shaders,
        timeout: args.timeout.map(Duration::from_secs),
        seed: args.seed,
        corpus: &project.cases,
    };
    let (audit, failure) = asker.with(|asked| trial.judge(asked, &asker))?;
    if args.json {
        print::json(&audit)?;
    } else {
        print::out(&text(&audit, failure.as_ref(), kernel.as_ref(), print::colored(&io::stdout())))?;
    }
    Ok(if audit.accepted() { Outcome::Done } else { Outcome::StepFailed })
}

/// At most one byte more than `limit` of a file: whoever sees that many knows that it is too large.
fn read_file(directory: &Path, path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let failed = |error: io::Error| Error::input(format!("cannot read `{}`: {error}", path.display()));
    let resolved = directory.join(path);
    // Opening a pipe would wait for ever.
    if !std::fs::metadata(&resolved).map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is not a regular file")));
    }
    let mut bytes = Vec::new();
    File::open(resolved).and_then(|it| it.take(limit + 1).read_to_end(&mut bytes)).map_err(failed)?;
    Ok(bytes)
}

fn read_plan(directory: &Path, path: &Path, block: &BlockTarget) -> Result<(Plan, Vec<u8>), Error> {
    let bytes = read_file(directory, path, read::MAX_PLAN)?;
    match read::read(&bytes, (&block.name, &block.target)) {
        Ok(plan) => Ok((plan, bytes)),
        Err(problems) => {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let file = Arc::new(SourceFile::new(path.display().to_string(), text));
            let located = |it: read::Problem| Located {
                file: Arc::clone(&file),
                span: it.span,
                message: it.kind.to_string(),
                code: it.kind.code(),
                label: it.kind.label(),
                help: Some(it.kind.help()),
            };
            Err(Error::located(problems.into_iter().map(located).collect()))
        }
    }
}

fn read_kernel(directory: &Path, path: &Path) -> Result<Arc<SourceFile>, Error> {
    let bytes = read_file(directory, path, MAX_KERNEL)?;
    if bytes.len() as u64 > MAX_KERNEL {
        let limit = MAX_KERNEL >> 20;
        return Err(Error::input(format!("`{}` has more than {limit} MiB: that is no kernel", path.display())));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let file = SourceFile::new(path.display().to_string(), String::from_utf8_lossy(error.as_bytes()).into_owned());
        Error::located(vec![Located {
            file: Arc::new(file),
            span: Some(at..at + 3), // the replacement character
            message: "the file is not UTF-8".to_owned(),
            code: "kernel::not-utf8",
            label: "here".to_owned(),
            help: Some("save the file as UTF-8".to_owned()),
        }])
    })?;
    Ok(Arc::new(SourceFile::new(path.display().to_string(), text)))
}

/// One plan to judge.
struct Trial<'a> {
    block: &'a BlockTarget,
    origins: &'a BTreeMap<String, Origin>,
    plan: &'a Plan,
    plan_bytes: &'a [u8],
    /// The MLIR to judge instead of the generated.
    kernel: Option<&'a [u8]>,
    /// The project's own templates that the plan uses.
    shaders: BTreeMap<String, String>,
    timeout: Option<Duration>,
    seed: Option<u64>,
    corpus: &'a [Case],
}

impl Trial<'_> {
    /// `ir -> compile -> verify`. The failure is that of a rejected kernel; whatever else goes wrong is an error.
    fn judge(&self, asked: &mut Asked<'_>, asker: &Asker) -> Result<(Audit, Option<Failure>), Error> {
        let BlockTarget { name, spec, passes, threads, device, .. } = self.block;
        let passes = passes.iter().filter(|it| !self.plan.without.contains(it)).copied().collect();
        let (block, origins) = (spec.clone(), self.origins.clone());
        let ir = ActionKind::Ir { name: name.clone(), block: block.clone(), passes, origins };
        let mut inputs = asked.action(ir, Blobs::new(), StepKind::Ir)?;
        let stages: StageGraph = asked.value(&inputs, blob::STAGES)?;
        let plan_digest = asker.cas.put(self.plan_bytes)?;
        inputs.insert(blob::PLAN.to_owned(), plan_digest);
        if let Some(text) = self.kernel {
            inputs.insert(blob::LOWERED.to_owned(), asker.cas.put(text)?);
        }
        let (plan, device, threads) = (self.plan, &**device, *threads);
        let mut subject =
            Subject { plan, plan_digest, block: spec, stages: &stages, object: None, device, threads, seed: None };
        let compile = ActionKind::Compile { device: device.clone(), shaders: self.shaders.clone() };
        match attempt(asked, compile, &inputs, action::limits(StepKind::Compile))? {
            Ok(outputs) => inputs.extend(outputs),
            Err((failure, wall)) => return rejected(&subject, failure, wall),
        }
        subject.object = inputs.get(blob::OBJECT).copied();
        // Drawn now, so that no kernel can know its inputs.
        let seed = self.seed.unwrap_or_else(any_seed);
        subject.seed = Some(seed);
        let mut limits = action::limits(StepKind::Verify);
        if let Some(timeout) = self.timeout {
            limits.wall_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        }
        let verify = ActionKind::Verify { block, device: device.clone(), threads, seed, corpus: self.corpus.to_vec() };
        match attempt(asked, verify, &inputs, limits)? {
            Ok(outputs) => Ok((asked.value(&outputs, blob::AUDIT)?, None)),
            Err((failure, _)) if failure.outputs.contains_key(blob::AUDIT) => {
                Ok((asked.value(&failure.outputs, blob::AUDIT)?, Some(failure)))
            }
            // The worker did not live to write it.
            Err((failure, wall)) => rejected(&subject, failure, wall),
        }
    }
}

type Attempt = Result<Blobs, (Failure, Duration)>;

fn attempt(asked: &mut Asked<'_>, kind: ActionKind, inputs: &Blobs, limits: Limits) -> Result<Attempt, Error> {
    let limits = action::with_driver(limits, &kind);
    let request = Request { kind, inputs: inputs.clone(), limits };
    let start = Instant::now();
    let result = asked.seat.execute(&request)?;
    Ok(result.map(|Done { outputs }| outputs).map_err(|failure| (failure, start.elapsed())))
}

/// The audit of a kernel that did not get as far as a verdict.
fn rejected(subject: &Subject<'_>, failure: Failure, wall: Duration) -> Result<(Audit, Option<Failure>), Error> {
    match Rejection::of(&failure, None) {
        Some(rejection) => Ok((subject.audit(None, Some(rejection), wall), Some(failure))),
        None => Err(failure.into()),
    }
}

/// The gates' table and the ruling; with the line of the kernel's text that the ruling names.
fn text(audit: &Audit, failure: Option<&Failure>, kernel: Option<&Arc<SourceFile>>, color: bool) -> String {
    let width = if color { print::width() } else { 160 };
    let mut text = audit
        .verdict
        .as_ref()
        .map_or_else(String::new, |verdict| terminal::gates(&Verification::new(verdict, &[]), width, color) + "\n");
    let seed = audit.seed.map_or_else(String::new, |it| format!(", seed {it}"));
    let name = format!("{}@{}, plan {}{seed}", audit.block, audit.target, audit.plan_digest.short());
    match &audit.ruling {
        Ruling::Accepted => {
            let wall = terminal::duration(audit.wall_us as f64 * 1e3);
            text += &format!("{}: {name}, {wall}\n", print::paint(color, GREEN, "accepted"));
        }
        Ruling::Rejected(rejection) => {
            text += &format!("{}: {name}\n", print::paint(color, RED, "rejected"));
            text += &format!("  {rejection}\n");
            for line in failure.map_or("", |it| it.detail.as_str()).lines() {
                text += &format!("  {line}\n");
            }
            if let Some(place) = kernel.and_then(|file| place(file, &rejection.message)) {
                text += &located::render(&[place], color, width);
            }
        }
    }
    text
}

/// Where in the kernel's text a message `kernel.mlir:LINE:COLUMN: ...` points.
fn place(file: &Arc<SourceFile>, message: &str) -> Option<Located> {
    let (line, rest) = message.strip_prefix("kernel.mlir:")?.split_once(':')?;
    let (column, message) = rest.split_once(": ")?;
    let (line, column): (usize, usize) = (line.parse().ok()?, column.parse().ok()?);
    let start: usize = file.text.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
    let at = (start + column.checked_sub(1)?).min(file.text.len());
    let at = file.text.floor_char_boundary(at);
    let end = at + file.text[at..].chars().next().map_or(0, char::len_utf8);
    Some(Located {
        file: Arc::clone(file),
        span: Some(at..end),
        message: message.to_owned(),
        code: "kernel::invalid",
        label: "here".to_owned(),
        help: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_the_kernels_text_is_found() {
        let file = Arc::new(SourceFile::new("mine.mlir".to_owned(), "module {\n  %1 = é\n}\n".to_owned()));
        let found = place(&file, "kernel.mlir:2:8: unknown `é`").unwrap();
        assert_eq!((&file.text[found.span.unwrap()], found.message.as_str()), ("é", "unknown `é`"));
        assert!(place(&file, "kernel.mlir:200:8: beyond").is_some_and(|it| it.span == Some(21..21)));
        assert!(place(&file, "gate v2-bound did not pass").is_none());
        assert!(place(&file, "kernel.mlir:0:0: nowhere").is_none());
    }
}
