//! `kforge doctor`: what this machine offers, whether the worker starts and can use MLIR, and what its GPUs do.

mod gpus;

use super::{
    error::{Error, Outcome},
    print,
    worker::{Asked, Asker},
};
use crate::{
    build::graph::StepKind,
    host::CpuFacts,
    manifest::spec::{BlockSpec, Dtype, Pass},
    protocol::{ActionKind, IrView, PROTOCOL_VERSION, blob, recipe},
};
use gpus::Graphics;
use serde::Serialize;
use std::{collections::BTreeMap, path::Path};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 the worker works, and every GPU that the project here declares a target for was found; 3 \
                        something is missing, with what to do about it."
)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Diagnosis {
    version: &'static str,
    protocol: u32,
    recipe: String,
    cpu: CpuFacts,
    fingerprint: String,
    worker: Check,
    mlir: Check,
    #[serde(flatten)]
    graphics: Graphics,
}

/// One thing that works, with what it is, or does not, with why.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Check {
    ok: bool,
    text: String,
}

impl Check {
    fn of(result: Result<String, String>) -> Self {
        match result {
            Ok(text) => Self { ok: true, text },
            Err(text) => Self { ok: false, text },
        }
    }
}

pub fn main(directory: &Path, args: Args) -> Result<Outcome, Error> {
    let cpu = CpuFacts::detect();
    let folder = tempfile::tempdir()?;
    let asker = Asker::new(folder.path())?;
    let (worker, mlir, graphics) = asker.with(|asked| {
        let (worker, mlir) = toolchain(asked)?;
        let found = worker.ok.then(|| gpus::look(asked)).transpose()?;
        Ok((worker, mlir, Graphics::new(found, gpus::targets(directory))))
    })?;
    let fingerprint = cpu.fingerprint().to_string();
    let (version, recipe) = (env!("CARGO_PKG_VERSION"), recipe::WORKER.short());
    let diagnosis = Diagnosis { version, protocol: PROTOCOL_VERSION, recipe, cpu, fingerprint, worker, mlir, graphics };
    let ok = diagnosis.worker.ok && diagnosis.mlir.ok && diagnosis.graphics.ok();
    if args.json {
        print::json(&diagnosis)?;
    } else {
        print::out(&text(&diagnosis))?;
    }
    Ok(if ok { Outcome::Done } else { Outcome::Environment })
}

/// Whether a worker starts, and whether it builds a small module, which takes MLIR and the dialect.
fn toolchain(asked: &mut Asked<'_>) -> Result<(Check, Check), Error> {
    let worker = match asked.seat.hello() {
        Ok(hello) => Ok(format!("started as process {}, recipe {}", hello.pid, hello.recipe.short())),
        Err(error) => Err(error.hint().map_or_else(|| error.to_string(), |hint| format!("{error}; {hint}"))),
    };
    if worker.is_err() {
        return Ok((Check::of(worker), Check::of(Err("not asked: there is no worker".to_owned()))));
    }
    let block =
        BlockSpec::Matmul { m: 4, n: 4, k: 4, b: Default::default(), bias: false, activation: None, dtype: Dtype::F32 };
    let (passes, view) = (Pass::ALL.to_vec(), IrView::Optimized);
    let ask = ActionKind::IrText { name: "doctor".to_owned(), block, passes, origins: BTreeMap::new(), view };
    let mlir = match asked.action(ask, BTreeMap::new(), StepKind::Ir) {
        Ok(outputs) => {
            Ok(format!("a module of {} bytes was built and optimised", asked.text(&outputs, blob::TEXT)?.len()))
        }
        Err(error) => Err(error.to_string()),
    };
    Ok((Check::of(worker), Check::of(mlir)))
}

fn text(diagnosis: &Diagnosis) -> String {
    let cpu = &diagnosis.cpu;
    let check = |it: &Check| format!("{} {}", if it.ok { "ok:" } else { "PROBLEM:" }, it.text);
    let kib = |bytes: usize| format!("{} KiB", bytes >> 10);
    let rows = [
        ("kforge", format!("{}, protocol {}, recipe {}", diagnosis.version, diagnosis.protocol, diagnosis.recipe)),
        ("cpu", cpu.model.clone()),
        ("isa", format!("{}: {}", cpu.arch, cpu.isa.join(" "))),
        ("vectors", format!("{} registers of {} f32", cpu.vector_registers, cpu.lanes)),
        ("caches", format!("L1d {}, L2 {}, L3 {}", kib(cpu.l1d), kib(cpu.l2), kib(cpu.l3))),
        ("cores", cpu.cores.to_string()),
        ("fingerprint", diagnosis.fingerprint.chars().take(12).collect()),
        ("worker", check(&diagnosis.worker)),
        ("mlir", check(&diagnosis.mlir)),
    ];
    let mut rows: Vec<_> = rows.map(|(name, value)| vec![name.to_owned(), value]).into();
    rows.extend(diagnosis.graphics.rows());
    print::columns(&rows, false)
}
