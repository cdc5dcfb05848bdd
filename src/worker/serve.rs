//! The worker's end of the protocol: actions in, outcomes out, and the one dispatch of action kinds.
//!
//! What is not here: the wall clock (the tool kills a worker that is late) and any state between actions that an outcome could
//! depend on (an action reads its inputs from the store and leaves its outputs there, so a replaced worker has lost nothing but the
//! time that an open device or a remembered reference saves).

use crate::{audit, codegen, device, ir, limits, measure, mutate, on_gpu, run as run_kernel, tries, verify};
use kernelforge::{
    digest::Digest,
    host::{CpuFacts, Device},
    manifest::spec::{BlockSpec, Pass},
    plan::{Plan, kernel::Kernel, stage::StageGraph},
    protocol::{
        Action, ActionKind, Done, Failure, FailureKind, Fault, Hello, Outcome, PROTOCOL_VERSION,
        audit::Audit,
        blob, recipe,
        tuning::{entrant_kernel, entrant_object},
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

/// Outputs by name.
pub type Blobs = BTreeMap<&'static str, Vec<u8>>;

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
pub struct Rejected {
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
        ActionKind::Compile { device, shaders } => {
            let cpu = match device {
                Device::Gpu(gpu) => return Ok(on_gpu::compile(&inputs, gpu, shaders)?),
                Device::Cpu(cpu) => cpu,
            };
            audit::here(cpu)?;
            let (stages, plan) = (inputs.parse::<StageGraph>(blob::STAGES)?, inputs.parse::<Plan>(blob::PLAN)?);
            Ok(compiled(match inputs.optional(blob::LOWERED)? {
                None => codegen::cpu::compile(&stages, &plan, cpu)?,
                Some(text) => codegen::cpu::compile_given(&stages, &plan, cpu, text)?,
            })?)
        }
        ActionKind::Verify { block, device: Device::Gpu(gpu), seed, corpus, .. } => {
            on_gpu::verify(&inputs, gpu, block, *seed, corpus)
        }
        ActionKind::Verify { block, device: device @ Device::Cpu(cpu), threads, seed, corpus } => {
            audit::here(cpu)?;
            let (kernel, plan) = (inputs.parse::<Kernel>(blob::KERNEL)?, inputs.parse::<Plan>(blob::PLAN)?);
            let object = inputs.bytes(blob::OBJECT)?;
            let (asked, kernel, plan, threads, seed) = (*seed, &kernel, &plan, *threads, drawn(&object, *seed));
            let object = &object;
            let request =
                verify::Request { object, kernel, plan, block, device, threads, seed, corpus, generated: true };
            let (object, plan) = (inputs.digest(blob::OBJECT)?, inputs.digest(blob::PLAN)?);
            let (audit, failure) = audit::verify(&request, object, plan)?;
            // What was asked for is what makes the verification repeatable; the verdict has what was drawn from it.
            let audit = Audit { seed: Some(asked), ..audit };
            judged(one(blob::AUDIT, json(&audit)?), failure)
        }
        ActionKind::Benchmark { device: Device::Gpu(gpu), time_ms, .. } => on_gpu::benchmark(&inputs, gpu, *time_ms),
        ActionKind::Benchmark { device: Device::Cpu(cpu), threads, time_ms } => {
            audit::here(cpu)?;
            let (object, kernel) = (inputs.bytes(blob::OBJECT)?, inputs.parse(blob::KERNEL)?);
            inputs.require_audit(&CpuFacts::detect().fingerprint())?;
            let benchmark = measure::benchmark::benchmark(&object, &kernel, cpu, *threads, *time_ms)?;
            judged(one(blob::BENCHMARK, json(&benchmark)?), audit::rejection(&benchmark.checks))
        }
        ActionKind::Try { device: Device::Gpu(gpu), seed, shaders, .. } => {
            Ok(on_gpu::attempt(&inputs, gpu, *seed, shaders)?)
        }
        ActionKind::Try { device: Device::Cpu(cpu), threads, seed, .. } => {
            audit::here(cpu)?;
            let (graph, plan) = (&inputs.parse::<StageGraph>(blob::STAGES)?, &inputs.parse::<Plan>(blob::PLAN)?);
            let request = tries::Request { graph, plan, given: inputs.optional(blob::LOWERED)?, seed: *seed };
            Ok(compiled(tries::on_cpu(request, cpu, *threads)?)?)
        }
        ActionKind::Race { device: Device::Gpu(gpu), entrants, runs, .. } => {
            Ok(on_gpu::race(&inputs, gpu, *entrants, *runs)?)
        }
        ActionKind::Race { device: Device::Cpu(cpu), threads, entrants, runs, variants } => {
            audit::here(cpu)?;
            let rules = measure::race::Rules { threads: *threads, runs: *runs, variants: *variants };
            let race = measure::race::race(&inputs.entrants(*entrants)?, cpu, rules)?;
            Ok(one(blob::RACE, json(&race)?))
        }
        ActionKind::BenchMatmul { cpu, threads, time_ms } => {
            audit::here(cpu)?;
            let (object, kernel) = (inputs.bytes(blob::OBJECT)?, inputs.parse(blob::KERNEL)?);
            let benchmark = measure::matmul::bench_matmul(&object, &kernel, cpu, *threads, *time_ms)?;
            Ok(one(blob::BENCHMARK, json(&benchmark)?))
        }
        ActionKind::Run { block, device: Device::Gpu(gpu), seed, stages, .. } => {
            on_gpu::run(&inputs, gpu, block, *seed, *stages)
        }
        ActionKind::Run { block, device: Device::Cpu(_), threads, seed, stages } => {
            let (object, kernel) = (inputs.bytes(blob::OBJECT)?, inputs.parse(blob::KERNEL)?);
            inputs.require_audit(&CpuFacts::detect().fingerprint())?;
            let tensors = inputs.optional(blob::TENSORS)?;
            let (tensors, threads, seed, stages) = (tensors.as_deref(), *threads, *seed, *stages);
            let request = run_kernel::Request { object: &object, kernel, block, threads, seed, tensors, stages };
            Ok(one(blob::TENSORS, run_kernel::run(request)?))
        }
        ActionKind::ListMutants { block, passes, device: Device::Gpu(gpu) } => {
            on_gpu::list_mutants(&inputs, gpu, block, passes)
        }
        ActionKind::ListMutants { block, passes, device: Device::Cpu(cpu) } => {
            let mutants = inputs.with_built((block, passes, cpu), |built| Ok(mutate::list(&built)))?;
            Ok(one(blob::MUTANTS, json(&mutants)?))
        }
        ActionKind::Mutant { block, passes, device: Device::Gpu(gpu), seed, corpus, mutant, .. } => {
            on_gpu::mutant(&inputs, gpu, (block, passes), (*seed, corpus), mutant)
        }
        ActionKind::Mutant { block, passes, device: Device::Cpu(cpu), threads, seed, corpus, mutant } => {
            audit::here(cpu)?;
            let object = inputs.bytes(blob::OBJECT)?;
            let trial = mutate::Trial { object: &object, threads: *threads, seed: *seed, corpus };
            let judge = |built: mutate::Built<'_>| mutate::judge(&built, trial, mutant);
            Ok(one(blob::JUDGED, json(&inputs.with_built((block, passes, cpu), judge)?)?))
        }
        ActionKind::Probe => Ok(one(blob::GPUS, json(&device::gpu::probe())?)),
        ActionKind::SmokeTest { gpu } => Ok(one(blob::SMOKE, json(&device::gpu::smoke::test(gpu))?)),
        ActionKind::Fault { fault } if allow_faults => commit(*fault).map(|()| Blobs::new()).map_err(Into::into),
        ActionKind::Fault { .. } => {
            let refusal = Failure::new(FailureKind::Internal, "this worker was not started to make faults");
            Err(refusal.with_hint("`kforge-worker serve --allow-faults`; for tests only").into())
        }
    }
}

fn compiled(it: codegen::Compiled) -> Result<Blobs, Failure> {
    let kernel = json(&it.kernel)?;
    Ok(Blobs::from([(blob::OBJECT, it.object), (blob::KERNEL, kernel), (blob::LOWERED, it.lowered.into_bytes())]))
}

pub fn one(name: &'static str, bytes: Vec<u8>) -> Blobs {
    Blobs::from([(name, bytes)])
}

/// Indented, because `out/` shows these bytes to people.
pub fn json(value: &impl Serialize) -> Result<Vec<u8>, Failure> {
    let bytes = serde_json::to_vec_pretty(value);
    bytes.map_err(|error| Failure::new(FailureKind::Internal, format!("an output is no JSON: {error}")))
}

/// The seed of a verification: it follows from the compiled code, so that nobody who proposed the code could know it, and from
/// what the caller asked for.
pub fn drawn(object: &[u8], seed: u64) -> u64 {
    let digest = Digest::of(&[object, &seed.to_le_bytes()].concat());
    // 48 bits: a number that JSON and TOML can hold.
    digest.as_bytes().iter().take(6).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// The blobs, with the failure if there is one.
pub fn judged(blobs: Blobs, failure: Option<Failure>) -> Result<Blobs, Rejected> {
    match failure {
        None => Ok(blobs),
        Some(failure) => Err(Rejected { failure, blobs }),
    }
}

/// The action's inputs, read from the store when asked for.
pub struct Inputs<'a> {
    action: &'a Action,
    pub cas: &'a Cas,
}

impl Inputs<'_> {
    pub fn optional(&self, name: &str) -> Result<Option<Vec<u8>>, Failure> {
        self.action.inputs.get(name).map(|digest| self.read(name, digest)).transpose()
    }

    pub fn digest(&self, name: &str) -> Result<Digest, Failure> {
        let digest = self.action.inputs.get(name).copied();
        digest.ok_or_else(|| Failure::new(FailureKind::Internal, format!("the action names no input `{name}`")))
    }

    pub fn bytes(&self, name: &str) -> Result<Vec<u8>, Failure> {
        self.read(name, &self.digest(name)?)
    }

    pub fn parse<T: DeserializeOwned>(&self, name: &str) -> Result<T, Failure> {
        let bytes = self.bytes(name)?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Failure::new(FailureKind::Internal, format!("input `{name}` is not what its name says: {error}"))
        })
    }

    /// The kernels of a race, in order.
    pub fn entrants<K: DeserializeOwned>(&self, count: usize) -> Result<Vec<(Vec<u8>, K)>, Failure> {
        let entrant = |it: usize| Ok((self.bytes(&entrant_object(it))?, self.parse::<K>(&entrant_kernel(it))?));
        (0..count).map(entrant).collect()
    }

    /// Refuses the action unless its audit covers its kernel on the device with this fingerprint.
    pub fn require_audit(&self, device: &Digest) -> Result<(), Failure> {
        let refuse =
            |what: &str| Failure::new(FailureKind::NotVerified, format!("the kernel comes without its {what}"));
        let plan = self.action.inputs.get(blob::PLAN).ok_or_else(|| refuse("plan"))?;
        if !self.action.inputs.contains_key(blob::AUDIT) {
            return Err(refuse("audit"));
        }
        audit::require(&self.parse::<Audit>(blob::AUDIT)?, &self.digest(blob::OBJECT)?, plan, device)
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
    use crate::verify::samples;
    use kernelforge::{
        plan::operation,
        protocol::{
            Limits,
            audit::{Rejection, Ruling},
            mutation::KilledBy,
            tuning,
        },
    };

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
        let mut action = action(ActionKind::Benchmark { device: CpuFacts::detect().into(), threads: 1, time_ms: 1 });
        action.inputs.insert(blob::OBJECT.to_owned(), Digest::of(b"gone"));
        let failure = execute(&action, &cas, false).result.unwrap_err();
        assert_eq!(failure.kind, FailureKind::MissingBlob);
        assert!(failure.message.starts_with("input `object`: "), "{}", failure.message);
    }

    /// An action on blobs that say what `inputs` says.
    fn execute_on(kind: ActionKind, inputs: &[(&str, &[u8])]) -> Failure {
        let folder = tempfile::tempdir().unwrap();
        let cas = Cas::open(folder.path()).unwrap();
        let mut action = action(kind);
        action.inputs = inputs.iter().map(|(name, bytes)| ((*name).to_owned(), cas.put(bytes).unwrap())).collect();
        execute(&action, &cas, false).result.unwrap_err()
    }

    /// A matmul's kernel, its plan, and the audit that verifying it writes.
    fn verified() -> (Vec<u8>, Vec<u8>, Vec<u8>, Audit) {
        let block = samples::product((2, 4, 3), false);
        let stages = ir::build("plain", &block, &[], &BTreeMap::new()).unwrap().stages;
        let plan = samples::plan("plain", "cpu", BTreeMap::new());
        let cpu = CpuFacts::detect();
        let compiled = codegen::cpu::compile(&stages, &plan, &cpu).unwrap();
        let (object, kernel) = (&compiled.object, &compiled.kernel);
        let request = verify::Request {
            object,
            kernel,
            plan: &plan,
            block: &block,
            device: &cpu.clone().into(),
            threads: 1,
            seed: 1,
            corpus: &[],
            generated: true,
        };
        let plan = json(&plan).unwrap();
        let (audit, failure) = audit::verify(&request, Digest::of(object), Digest::of(&plan)).unwrap();
        assert_eq!((failure, audit.accepted()), (None, true));
        let kernel = json(&compiled.kernel).unwrap();
        (compiled.object, kernel, plan, audit)
    }

    fn uses() -> [ActionKind; 2] {
        let block = samples::product((2, 4, 3), false);
        [
            ActionKind::Benchmark { device: CpuFacts::detect().into(), threads: 1, time_ms: 1 },
            ActionKind::Run { block, device: CpuFacts::detect().into(), threads: 1, seed: 1, stages: false },
        ]
    }

    #[test]
    fn a_kernel_whose_audit_does_not_cover_it_is_neither_measured_nor_run() {
        let (object, kernel, plan, audit) = verified();
        let refused = |audit: Option<&Audit>, kind: ActionKind| {
            let audit = audit.map(|it| json(it).unwrap());
            let mut inputs: Vec<(&str, &[u8])> =
                vec![(blob::OBJECT, &object), (blob::KERNEL, &kernel), (blob::PLAN, &plan)];
            inputs.extend(audit.iter().map(|it| (blob::AUDIT, it.as_slice())));
            execute_on(kind, &inputs)
        };
        for kind in uses() {
            let it = refused(None, kind.clone());
            assert_eq!(
                (it.kind, it.message.as_str()),
                (FailureKind::NotVerified, "the kernel comes without its audit")
            );
            let other = Audit { object: Some(Digest::of(b"another")), ..audit.clone() };
            let it = refused(Some(&other), kind.clone());
            assert_eq!(it.kind, FailureKind::NotVerified);
            assert!(it.message.starts_with("the audit is of object "), "{}", it.message);
            let rejection = Rejection { kind: KilledBy::Memory, gate: None, stage: None, message: "why".to_owned() };
            let rejected = Audit { ruling: Ruling::Rejected(rejection), ..audit.clone() };
            let it = refused(Some(&rejected), kind.clone());
            assert_eq!(
                (it.kind, it.message.as_str()),
                (FailureKind::NotVerified, "the kernel was rejected: Memory: why")
            );
            let mut elsewhere = audit.clone();
            elsewhere.device.fingerprint = Digest::of(b"another machine");
            assert_eq!(refused(Some(&elsewhere), kind).kind, FailureKind::DeviceUnavailable);
        }
    }

    #[test]
    fn an_action_for_another_cpu_is_refused() {
        let cpu = CpuFacts { l2: CpuFacts::detect().l2 + 1, ..CpuFacts::detect() };
        let block = samples::product((2, 4, 3), false);
        for kind in [
            ActionKind::Compile { device: cpu.clone().into(), shaders: BTreeMap::new() },
            ActionKind::Verify { block, device: cpu.clone().into(), threads: 1, seed: 1, corpus: vec![] },
            ActionKind::Benchmark { device: cpu.clone().into(), threads: 1, time_ms: 1 },
            ActionKind::Try { device: cpu.clone().into(), threads: 1, seed: 1, shaders: BTreeMap::new() },
            ActionKind::Race { device: cpu.clone().into(), threads: 1, entrants: 1, runs: 1, variants: false },
            ActionKind::BenchMatmul { cpu, threads: 1, time_ms: 1 },
        ] {
            let failure = execute_on(kind, &[]);
            assert_eq!(failure.kind, FailureKind::DeviceUnavailable, "{failure:?}");
            assert!(failure.message.starts_with("the action is for device "), "{}", failure.message);
        }
    }

    #[test]
    fn what_was_tried_can_race() {
        let folder = tempfile::tempdir().unwrap();
        let cas = Cas::open(folder.path()).unwrap();
        let block = samples::product((2, 4, 3), false);
        let stages = ir::build("plain", &block, &[], &BTreeMap::new()).unwrap().stages;
        let mut graph = operation::isolate(&stages, &stages.stages[0]);
        let plan = samples::plan("op", "cpu", BTreeMap::new());
        // The stage that no pass asked a schedule for.
        graph.stages[0].scheduled = false;
        let device: Device = CpuFacts::detect().into();
        let mut it = action(ActionKind::Try { device: device.clone(), threads: 1, seed: 1, shaders: BTreeMap::new() });
        let put = |value: &[u8]| cas.put(value).unwrap();
        it.inputs.insert(blob::STAGES.to_owned(), put(&json(&graph).unwrap()));
        it.inputs.insert(blob::PLAN.to_owned(), put(&json(&plan).unwrap()));
        let tried = execute(&it, &cas, false).result.unwrap().outputs;
        assert_eq!(tried.keys().collect::<Vec<_>>(), [blob::KERNEL, blob::LOWERED, blob::OBJECT]);
        let mut it = action(ActionKind::Race { device, threads: 1, entrants: 2, runs: 1, variants: true });
        for entrant in 0..2 {
            it.inputs.insert(entrant_object(entrant), tried[blob::OBJECT]);
            it.inputs.insert(entrant_kernel(entrant), tried[blob::KERNEL]);
        }
        let raced = execute(&it, &cas, false).result.unwrap().outputs;
        let race: tuning::Race = serde_json::from_slice(&cas.get(&raced[blob::RACE]).unwrap()).unwrap();
        assert_eq!(race.entrants.len(), 2);
        assert!(race.variants.len() >= 3 && [true, false].iter().all(|it| race.drift(*it).is_finite()));
    }

    #[test]
    fn an_object_that_cannot_be_loaded_is_rejected_and_audited() {
        let (_, kernel, plan, audit) = verified();
        let kind = ActionKind::Verify {
            block: audit.workload.spec,
            device: CpuFacts::detect().into(),
            threads: 1,
            seed: 1,
            corpus: vec![],
        };
        let failure = execute_on(kind, &[(blob::OBJECT, b"no object"), (blob::KERNEL, &kernel), (blob::PLAN, &plan)]);
        assert_eq!((failure.kind, failure.outputs.len()), (FailureKind::Codegen, 1));
        assert!(failure.outputs.contains_key(blob::AUDIT));
    }
}
