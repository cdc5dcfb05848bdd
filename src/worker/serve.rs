//! The worker's end of the protocol: actions in, outcomes out, and the one dispatch of action kinds.
//!
//! What is not here: the wall clock (the tool kills a worker that is late) and any state between actions (an action reads
//! its inputs from the store and leaves its outputs there, so a replaced worker has lost nothing).

use crate::{codegen, ir, limits, measure, mutate, run as run_kernel, verify};
use kernelforge::{
    digest::Digest,
    host::CpuFacts,
    manifest::spec::{BlockSpec, Pass},
    plan::{Plan, kernel::Kernel, stage::StageGraph},
    protocol::{
        Action, ActionKind, Done, Failure, FailureKind, Fault, GateStatus, Hello, Outcome, PROTOCOL_VERSION, Verdict,
        blob, recipe,
    },
    store::cas::Cas,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, Write},
    panic::{self, AssertUnwindSafe},
    path::Path,
    process::ExitCode,
    sync::mpsc,
    thread,
    time::Instant,
};

type Blobs = BTreeMap<&'static str, Vec<u8>>;

/// Answers actions from stdin on stdout until stdin ends.
pub fn serve(store: &Path, allow_faults: bool) -> ExitCode {
    let session = match open(store) {
        Ok(session) => session,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(3);
        }
    };
    match session.answer(allow_faults) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Does the action in the file `action`, prints its outcome, and exits 0 if it is done, 1 if it failed.
pub fn run(action: &Path, store: &Path) -> ExitCode {
    let outcome = || -> io::Result<Outcome> {
        let mut session = open(store)?;
        let action: Action = serde_json::from_slice(&std::fs::read(action)?)?;
        let outcome = execute(&action, &session.cas, false);
        send(&mut session.replies, &outcome)?;
        Ok(outcome)
    };
    match outcome() {
        Ok(outcome) if outcome.result.is_ok() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}: {error}", action.display());
            ExitCode::from(2)
        }
    }
}

struct Session {
    replies: File,
    cas: Cas,
}

fn open(store: &Path) -> io::Result<Session> {
    let cas = Cas::open(store).map_err(|error| io::Error::other(format!("{}: {error}", store.display())))?;
    Ok(Session { replies: take_stdout()?, cas })
}

/// Moves stdout to a descriptor that only the protocol knows, and points descriptor 1 at stderr: a library that prints
/// (LLVM does, in some failures) then reaches the log and not the middle of a message.
fn take_stdout() -> io::Result<File> {
    let replies = rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3)?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok(File::from(replies))
}

fn send(replies: &mut File, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    replies.write_all(&line)
}

impl Session {
    fn answer(mut self, allow_faults: bool) -> io::Result<()> {
        limits::die_with_parent()?;
        let (sender, actions) = mpsc::channel();
        let hello = Hello { protocol: PROTOCOL_VERSION, recipe: recipe::WORKER, pid: std::process::id() };
        send(&mut self.replies, &hello)?;
        // A thread of its own, so that the end of stdin ends the process in the middle of an action too: nobody is left who
        // wants the answer. It is the portable half of `die_with_parent`.
        thread::spawn(move || {
            for line in io::stdin().lock().lines() {
                let Ok(line) = line else { break };
                if sender.send(line).is_err() {
                    break;
                }
            }
            limits::die()
        });
        for line in actions {
            let action: Action = serde_json::from_str(&line)
                .map_err(|error| io::Error::other(format!("a message is no action: {error}: {line}")))?;
            let outcome = execute(&action, &self.cas, allow_faults);
            send(&mut self.replies, &outcome)?;
        }
        Ok(())
    }
}

/// Does one action under its memory limit; a panic is a failure like any other.
fn execute(action: &Action, cas: &Cas, allow_faults: bool) -> Outcome {
    let start = Instant::now();
    let result = panic::catch_unwind(AssertUnwindSafe(|| attempt(action, cas, allow_faults)));
    let result = result.unwrap_or_else(|payload| {
        let message = payload.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("(no message)");
        Err(Failure::new(FailureKind::Internal, format!("the worker panicked: {message}")))
    });
    let wall_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    Outcome { id: action.id, result, wall_us }
}

fn attempt(action: &Action, cas: &Cas, allow_faults: bool) -> Result<Done, Failure> {
    let limit = limits::AddressSpace::limit(action.limits.memory_bytes)
        .map_err(|error| Failure::new(FailureKind::Internal, format!("no address-space limit: {error}")))?;
    let (blobs, failure) = match dispatch(action, cas, allow_faults) {
        Ok(blobs) => (blobs, None),
        Err(Rejected { failure, blobs }) => (blobs, Some(failure)),
    };
    drop(limit);
    let mut outputs = BTreeMap::new();
    for (name, bytes) in blobs {
        let digest = cas
            .put(&bytes)
            .map_err(|error| Failure::new(FailureKind::Io, format!("output `{name}` cannot be stored: {error}")))?;
        outputs.insert(name.to_owned(), digest);
    }
    match failure {
        None => Ok(Done { outputs }),
        Some(failure) => Err(Failure { outputs, ..failure }),
    }
}

/// A failure, and the blobs that exist all the same.
struct Rejected {
    failure: Failure,
    blobs: Blobs,
}

impl From<Failure> for Rejected {
    fn from(failure: Failure) -> Self {
        Self { failure, blobs: Blobs::new() }
    }
}

fn dispatch(action: &Action, cas: &Cas, allow_faults: bool) -> Result<Blobs, Rejected> {
    let inputs = Inputs { action, cas };
    match &action.kind {
        ActionKind::Ir { name, block, passes, origins } => {
            let products = ir::build(name, block, passes, origins)?;
            Ok(Blobs::from([
                (blob::MODULE, products.module.into_bytes()),
                (blob::OPTIMIZED, products.optimized.into_bytes()),
                (blob::STAGES, json(&products.stages)?),
                (blob::PASSES, json(&products.passes)?),
            ]))
        }
        ActionKind::IrText { name, block, passes, origins, view } => {
            Ok(one(blob::TEXT, ir::text(name, block, passes, origins, *view)?.into_bytes()))
        }
        ActionKind::Compile { cpu } => {
            let (stages, plan) = (inputs.parse::<StageGraph>(blob::STAGES)?, inputs.parse::<Plan>(blob::PLAN)?);
            let compiled = codegen::cpu::compile(&stages, &plan, cpu)?;
            Ok(Blobs::from([
                (blob::OBJECT, compiled.object),
                (blob::KERNEL, json(&compiled.kernel)?),
                (blob::LOWERED, compiled.lowered.into_bytes()),
            ]))
        }
        ActionKind::Verify { block, cpu, threads, seed } => {
            let (kernel, plan) = (inputs.parse::<Kernel>(blob::KERNEL)?, inputs.parse::<Plan>(blob::PLAN)?);
            let object = inputs.bytes(blob::OBJECT)?;
            let verdict = verify::verify(&verify::Request {
                object: &object,
                kernel: &kernel,
                plan: &plan,
                block,
                cpu,
                threads: *threads,
                seed: *seed,
            })?;
            let blobs = one(blob::VERDICT, json(&verdict)?);
            match rejection(&verdict) {
                None => Ok(blobs),
                Some(failure) => Err(Rejected { failure, blobs }),
            }
        }
        ActionKind::Benchmark { cpu, threads, time_ms } => {
            let (object, kernel) = (inputs.bytes(blob::OBJECT)?, inputs.parse(blob::KERNEL)?);
            Ok(one(blob::BENCHMARK, json(&measure::benchmark::benchmark(&object, &kernel, cpu, *threads, *time_ms)?)?))
        }
        ActionKind::BenchMatmul { cpu, threads, time_ms } => {
            let (object, kernel) = (inputs.bytes(blob::OBJECT)?, inputs.parse(blob::KERNEL)?);
            let benchmark = measure::matmul::bench_matmul(&object, &kernel, cpu, *threads, *time_ms)?;
            Ok(one(blob::BENCHMARK, json(&benchmark)?))
        }
        ActionKind::Run { block, threads, seed, stages } => {
            let (object, kernel) = (inputs.bytes(blob::OBJECT)?, inputs.parse(blob::KERNEL)?);
            let tensors = inputs.optional(blob::TENSORS)?;
            let (tensors, threads, seed, stages) = (tensors.as_deref(), *threads, *seed, *stages);
            let request = run_kernel::Request { object: &object, kernel, block, threads, seed, tensors, stages };
            Ok(one(blob::TENSORS, run_kernel::run(request)?))
        }
        ActionKind::ListMutants { block, passes, cpu } => {
            let mutants = inputs.with_built((block, passes, cpu), |built| Ok(mutate::list(&built)))?;
            Ok(one(blob::MUTANTS, json(&mutants)?))
        }
        ActionKind::Mutant { block, passes, cpu, threads, seed, mutant } => {
            let object = inputs.bytes(blob::OBJECT)?;
            let trial = mutate::Trial { object: &object, threads: *threads, seed: *seed };
            let judge = |built: mutate::Built<'_>| mutate::judge(&built, trial, mutant);
            Ok(one(blob::JUDGED, json(&inputs.with_built((block, passes, cpu), judge)?)?))
        }
        ActionKind::Fault { fault } if allow_faults => commit(*fault).map(|()| Blobs::new()).map_err(Into::into),
        ActionKind::Fault { .. } => {
            let refusal = Failure::new(FailureKind::Internal, "this worker was not started to make faults");
            Err(refusal.with_hint("`kforge-worker serve --allow-faults`; for tests only").into())
        }
    }
}

fn one(name: &'static str, bytes: Vec<u8>) -> Blobs {
    Blobs::from([(name, bytes)])
}

/// Indented, because `out/` shows these bytes to people.
fn json(value: &impl Serialize) -> Result<Vec<u8>, Failure> {
    let bytes = serde_json::to_vec_pretty(value);
    bytes.map_err(|error| Failure::new(FailureKind::Internal, format!("an output is no JSON: {error}")))
}

/// The failure that a verdict stands for, named after its first gate that did not pass.
fn rejection(verdict: &Verdict) -> Option<Failure> {
    if verdict.accepted {
        return None;
    }
    let failed: Vec<_> = verdict.gates.iter().filter(|it| it.status != GateStatus::Passed).collect();
    let failure = match failed.first() {
        None => Failure::new(FailureKind::NumericMismatch, "the kernel was not accepted, though no gate failed"),
        Some(gate) => {
            let name = serde_json::to_string(&gate.gate).unwrap_or_default().replace('"', "");
            let at = gate.stage.as_ref().map(|it| format!(" at stage `{it}`")).unwrap_or_default();
            let message = format!("gate {name} ({}) did not pass{at}: {}", gate.case, gate.message);
            let failure = Failure::new(FailureKind::NumericMismatch, message);
            let failure =
                failure.with_detail(format!("{} of {} checks did not pass", failed.len(), verdict.gates.len()));
            match &gate.stage {
                None => failure,
                Some(stage) => failure.at_stage(stage),
            }
        }
    };
    Some(failure)
}

/// The action's inputs, read from the store when asked for.
struct Inputs<'a> {
    action: &'a Action,
    cas: &'a Cas,
}

impl Inputs<'_> {
    fn optional(&self, name: &str) -> Result<Option<Vec<u8>>, Failure> {
        self.action.inputs.get(name).map(|digest| self.read(name, digest)).transpose()
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>, Failure> {
        let bytes = self.optional(name)?;
        bytes.ok_or_else(|| Failure::new(FailureKind::Internal, format!("the action names no input `{name}`")))
    }

    fn parse<T: DeserializeOwned>(&self, name: &str) -> Result<T, Failure> {
        let bytes = self.bytes(name)?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Failure::new(FailureKind::Internal, format!("input `{name}` is not what its name says: {error}"))
        })
    }

    /// Calls `act` with the files of a built block.
    fn with_built<T>(
        &self,
        (block, passes, cpu): (&BlockSpec, &[Pass], &CpuFacts),
        act: impl FnOnce(mutate::Built<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (kernel, plan) = (&self.parse(blob::KERNEL)?, &self.parse(blob::PLAN)?);
        let lowered = &String::from_utf8_lossy(&self.bytes(blob::LOWERED)?).into_owned();
        act(mutate::Built { block, passes, cpu, plan, kernel, lowered })
    }

    fn read(&self, name: &str, digest: &Digest) -> Result<Vec<u8>, Failure> {
        let bytes = self.cas.get(digest);
        bytes.map_err(|error| Failure::new(FailureKind::MissingBlob, format!("input `{name}`: {error}")))
    }
}

/// Does on purpose what broken generated code would do by accident.
fn commit(fault: Fault) -> Result<(), Failure> {
    match fault {
        Fault::Segfault => {
            use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
            // SAFETY: a fresh private mapping at an address of the kernel's choice touches no memory that is in use.
            let page = unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, ProtFlags::empty(), MapFlags::PRIVATE) };
            let page = page.map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
            // SAFETY: the page is ours and no object lives there; it is mapped without access, so the write ends the process,
            // which is the point.
            unsafe { page.cast::<u8>().write_volatile(1) };
            Ok(())
        }
        Fault::LoopForever => loop {
            std::hint::spin_loop();
        },
        Fault::AllocateForever => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(vec![0u8; 16 << 20]);
                std::hint::black_box(&hoard);
            }
        }
        Fault::Panic => panic!("a panic was asked for"),
        Fault::Exit => std::process::exit(3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernelforge::protocol::{Gate, GateResult, Limits};

    fn action(kind: ActionKind) -> Action {
        let limits = Limits { wall_ms: 1000, memory_bytes: 1 << 30 };
        Action { id: 7, kind, inputs: BTreeMap::new(), limits }
    }

    fn execute_alone(kind: ActionKind, allow_faults: bool) -> Outcome {
        let folder = tempfile::tempdir().unwrap();
        execute(&action(kind), &Cas::open(folder.path()).unwrap(), allow_faults)
    }

    #[test]
    fn a_panic_is_a_failure_with_its_message() {
        let outcome = execute_alone(ActionKind::Fault { fault: Fault::Panic }, true);
        let failure = outcome.result.unwrap_err();
        assert_eq!((outcome.id, failure.kind), (7, FailureKind::Internal));
        assert_eq!(failure.message, "the worker panicked: a panic was asked for");
    }

    #[test]
    fn faults_are_refused_unless_asked_for() {
        let outcome = execute_alone(ActionKind::Fault { fault: Fault::Segfault }, false);
        assert_eq!(outcome.result.unwrap_err().message, "this worker was not started to make faults");
    }

    #[test]
    fn an_input_that_is_not_in_the_store_is_a_missing_blob() {
        let folder = tempfile::tempdir().unwrap();
        let cas = Cas::open(folder.path()).unwrap();
        let mut action = action(ActionKind::Benchmark { cpu: CpuFacts::detect(), threads: 1, time_ms: 1 });
        action.inputs.insert(blob::OBJECT.to_owned(), Digest::of(b"gone"));
        let failure = execute(&action, &cas, false).result.unwrap_err();
        assert_eq!(failure.kind, FailureKind::MissingBlob);
        assert!(failure.message.starts_with("input `object`: "), "{}", failure.message);
    }

    #[test]
    fn a_rejected_verdict_is_a_failure_that_names_the_gate_and_the_stage() {
        let gate = GateResult {
            gate: Gate::V2Bound,
            stage: Some("attn.q".to_owned()),
            case: "normal".to_owned(),
            status: GateStatus::Failed,
            checked: 4,
            worst_ratio: Some(3.0),
            mismatch: None,
            message: "3.0 times the bound".to_owned(),
        };
        let mut verdict = Verdict { version: 1, accepted: false, seed: 0, gates: vec![gate] };
        let failure = rejection(&verdict).unwrap();
        assert_eq!(failure.stage.as_deref(), Some("attn.q"));
        assert_eq!(failure.message, "gate v2-bound (normal) did not pass at stage `attn.q`: 3.0 times the bound");
        verdict.accepted = true;
        assert_eq!(rejection(&verdict), None);
    }
}
