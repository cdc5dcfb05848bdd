//! The audit record: what was judged, by whom, on what, and how it ended. Written for accepted and for rejected kernels, it
//! is what a kernel must carry to be used again ([`Audit::covers`]).

use super::{Failure, FailureKind, Gate, GateStatus, Verdict, corpus::REPLAYED, mutation::KilledBy, recipe};
use crate::{
    digest::Digest,
    host,
    manifest::spec::BlockSpec,
    plan::{Plan, stage::StageGraph},
};
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// The version of `audit.json`. A reader refuses a larger one; a field that is only added leaves it as it is.
pub const AUDIT_VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Audit {
    pub version: u32,
    /// The block instance and the target that the plan names.
    pub block: String,
    pub target: String,
    pub plan: Plan,
    /// Of the plan's blob.
    pub plan_digest: Digest,
    pub workload: Workload,
    /// Of the object file; `None` where the plan never became one.
    pub object: Option<Digest>,
    pub device: Device,
    pub threads: usize,
    /// Of the inputs that the gates drew; `None` where none were drawn.
    pub seed: Option<u64>,
    pub recipes: Recipes,
    /// Every gate's figures; `None` where the kernel ended the verification before there was a verdict.
    pub verdict: Option<Verdict>,
    /// Wall time of the verification, in microseconds.
    pub wall_us: u64,
    pub ruling: Ruling,
}

/// What the kernel is to compute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Workload {
    /// The digest of `spec` and of the stages that the passes made of it: equal signatures, equal work.
    pub signature: Digest,
    pub spec: BlockSpec,
}

/// What the kernel ran on when it was judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Device {
    pub fingerprint: Digest,
    #[serde(flatten)]
    pub facts: host::Device,
}

/// Which kforge made the code and judged it: the digests of the sources that decide either.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Recipes {
    pub compile: Digest,
    pub verify: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ruling {
    Accepted,
    Rejected(Rejection),
}

/// Why a kernel was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rejection {
    pub kind: KilledBy,
    /// The first gate that did not pass; `None` where the kernel was refused, crashed or hung outside of a gate's verdict.
    pub gate: Option<Gate>,
    pub stage: Option<String>,
    /// One line: what is wrong, with place, value and limit.
    pub message: String,
}

impl Rejection {
    /// The rejection that a failure of compiling or verifying is; `None` for failures that are not the kernel's, such as a
    /// store that cannot be read.
    pub fn of(failure: &Failure, verdict: Option<&Verdict>) -> Option<Self> {
        let not_passed = verdict.and_then(|it| it.gates.iter().find(|it| it.status != GateStatus::Passed));
        let mut kind = kind(failure)?;
        let failed = verdict.iter().flat_map(|it| &it.gates).filter(|it| it.status != GateStatus::Passed);
        if not_passed.is_some() && failed.into_iter().all(|it| it.case.starts_with(REPLAYED)) {
            kind = KilledBy::RegressionCase;
        }
        // A schedule is checked before it is generated from, by the constraints that are gate V0.
        let legality = (failure.kind == FailureKind::IllegalPlan).then_some(Gate::V0Legality);
        // Gate and stage are told apart from the message, which for a build's log names them too.
        let at = failure.stage.as_ref().map(|it| format!("stage `{it}`: ")).unwrap_or_default();
        Some(match not_passed {
            Some(it) => Self {
                kind,
                gate: Some(it.gate),
                stage: it.stage.clone(),
                message: format!("{} ({})", it.message.strip_prefix(&at).unwrap_or(&it.message), it.case),
            },
            None => Self {
                kind,
                gate: legality,
                stage: failure.stage.clone(),
                message: failure.message.strip_prefix(&at).unwrap_or(&failure.message).to_owned(),
            },
        })
    }

    /// The kind as the verification protocol spells it.
    pub const fn kind_name(&self) -> &'static str {
        match self.kind {
            KilledBy::Validation => "Validation",
            KilledBy::NumericMismatch => "NumericMismatch",
            KilledBy::Memory => "Memory",
            KilledBy::RegressionCase => "RegressionCase",
            KilledBy::Timeout => "Timeout",
            KilledBy::Crash => "Crash",
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind_name())?;
        if let Some(gate) = self.gate {
            write!(f, ", gate {}", gate.name())?;
        }
        if let Some(stage) = &self.stage {
            write!(f, ", stage `{stage}`")?;
        }
        write!(f, ": {}", self.message)
    }
}

fn kind(failure: &Failure) -> Option<KilledBy> {
    Some(match failure.kind {
        FailureKind::InvalidIr | FailureKind::IllegalPlan | FailureKind::Codegen => KilledBy::Validation,
        // Results or times that differ between verification and measurement are wrong numbers of their own kind.
        FailureKind::NumericMismatch | FailureKind::Implausible => KilledBy::NumericMismatch,
        FailureKind::Memory => KilledBy::Memory,
        FailureKind::Timeout => KilledBy::Timeout,
        FailureKind::Crash | FailureKind::OutOfMemory => KilledBy::Crash,
        // The verifier gave up on it (an index beyond a tensor): refused, in words that are not a gate's.
        FailureKind::Internal if failure.message.starts_with("the worker panicked") => KilledBy::Crash,
        FailureKind::DeviceUnavailable
        | FailureKind::NotVerified
        | FailureKind::BadInput
        | FailureKind::MissingBlob
        | FailureKind::Io
        | FailureKind::Internal
        | FailureKind::Cancelled => return None,
    })
}

/// All that is known of a kernel before it is judged.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub plan: &'a Plan,
    /// Of the plan's blob.
    pub plan_digest: Digest,
    pub block: &'a BlockSpec,
    pub stages: &'a StageGraph,
    pub object: Option<Digest>,
    pub device: &'a host::Device,
    pub threads: usize,
    pub seed: Option<u64>,
}

impl Subject<'_> {
    /// The record of how the verification ended: accepted, unless there is a rejection.
    pub fn audit(&self, verdict: Option<Verdict>, rejection: Option<Rejection>, wall: Duration) -> Audit {
        let Self { plan, plan_digest, block, stages, object, device, threads, seed } = *self;
        Audit {
            version: AUDIT_VERSION,
            block: plan.block.clone(),
            target: plan.target.clone(),
            plan: plan.clone(),
            plan_digest,
            workload: Workload { signature: signature(block, stages), spec: block.clone() },
            object,
            device: Device { fingerprint: device.fingerprint(), facts: device.clone() },
            threads,
            seed,
            recipes: Recipes { compile: recipe::COMPILE, verify: recipe::VERIFY },
            verdict,
            wall_us: u64::try_from(wall.as_micros()).unwrap_or(u64::MAX),
            ruling: rejection.map_or(Ruling::Accepted, Ruling::Rejected),
        }
    }
}

/// The digest of what a block means and of the stages that compute it.
pub fn signature(block: &BlockSpec, stages: &StageGraph) -> Digest {
    // Plain data: a value that is no JSON would be a defect, and must not make two workloads equal.
    let text = serde_json::to_string(&(block, stages)).unwrap_or_else(|error| format!("{error}: {block:?} {stages:?}"));
    Digest::of(text.as_bytes())
}

/// Why an audit does not allow a kernel to be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Uncovered {
    #[error("the kernel was rejected: {0}")]
    Rejected(Rejection),
    #[error("the audit is of version {found}, this kforge knows versions up to {AUDIT_VERSION}")]
    Version { found: u32 },
    #[error("the audit is of object {}, the kernel is object {}", audited.map_or_else(|| "none".to_owned(), |it| it.short()), given.short())]
    Object { audited: Option<Digest>, given: Digest },
    #[error("the audit is of plan {}, the kernel's is {}", audited.short(), given.short())]
    Plan { audited: Digest, given: Digest },
    #[error("the kernel was verified on device {}, this is device {}", audited.short(), given.short())]
    Device { audited: Digest, given: Digest },
}

impl Audit {
    pub fn accepted(&self) -> bool {
        self.ruling == Ruling::Accepted
    }

    /// Whether the audit allows the object made from `plan` to be used on the device: it was accepted, and it is about exactly
    /// these.
    pub fn covers(&self, object: &Digest, plan: &Digest, device: &Digest) -> Result<(), Uncovered> {
        if self.version > AUDIT_VERSION {
            return Err(Uncovered::Version { found: self.version });
        }
        if self.object != Some(*object) {
            return Err(Uncovered::Object { audited: self.object, given: *object });
        }
        if self.plan_digest != *plan {
            return Err(Uncovered::Plan { audited: self.plan_digest, given: *plan });
        }
        if self.device.fingerprint != *device {
            return Err(Uncovered::Device { audited: self.device.fingerprint, given: *device });
        }
        match &self.ruling {
            Ruling::Accepted => Ok(()),
            Ruling::Rejected(rejection) => Err(Uncovered::Rejected(rejection.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        manifest::spec::Dtype,
        plan::{PLAN_VERSION, Provenance},
        protocol::GateResult,
    };
    use std::collections::BTreeMap;

    fn audit(rejection: Option<Rejection>) -> Audit {
        let plan = Plan {
            version: PLAN_VERSION,
            block: "plain".to_owned(),
            target: "cpu".to_owned(),
            provenance: Provenance::new("heuristic"),
            without: Vec::new(),
            stages: BTreeMap::new(),
            shaders: BTreeMap::new(),
        };
        let subject = Subject {
            plan: &plan,
            plan_digest: Digest::of(b"plan"),
            block: &matmul(4),
            stages: &StageGraph { block: "plain".to_owned(), tensors: vec![], stages: vec![] },
            object: Some(Digest::of(b"object")),
            device: &host::CpuFacts::detect().into(),
            threads: 1,
            seed: Some(3),
        };
        subject.audit(None, rejection, Duration::from_millis(2))
    }

    fn matmul(m: usize) -> BlockSpec {
        BlockSpec::Matmul { m, n: 4, k: 4, b: Default::default(), bias: false, activation: None, dtype: Dtype::F32 }
    }

    fn crash() -> Rejection {
        Rejection { kind: KilledBy::Crash, gate: None, stage: None, message: "it fell".to_owned() }
    }

    #[test]
    fn an_audit_covers_its_object_plan_and_device_and_nothing_else() {
        let (object, plan, device) =
            (Digest::of(b"object"), Digest::of(b"plan"), host::CpuFacts::detect().fingerprint());
        let other = Digest::of(b"other");
        let it = audit(None);
        assert_eq!(it.covers(&object, &plan, &device), Ok(()));
        assert!(matches!(it.covers(&other, &plan, &device), Err(Uncovered::Object { .. })));
        assert!(matches!(it.covers(&object, &other, &device), Err(Uncovered::Plan { .. })));
        assert!(matches!(it.covers(&object, &plan, &other), Err(Uncovered::Device { .. })));
        assert_eq!(audit(Some(crash())).covers(&object, &plan, &device), Err(Uncovered::Rejected(crash())));
        let newer = Audit { version: AUDIT_VERSION + 1, ..it.clone() };
        assert!(matches!(newer.covers(&object, &plan, &device), Err(Uncovered::Version { .. })));
        let unmade = Audit { object: None, ..it };
        assert!(matches!(unmade.covers(&object, &plan, &device), Err(Uncovered::Object { audited: None, .. })));
    }

    #[test]
    fn an_audit_survives_its_own_json() {
        for it in [audit(None), audit(Some(crash()))] {
            assert_eq!(serde_json::from_str::<Audit>(&serde_json::to_string(&it).unwrap()).unwrap(), it);
        }
    }

    #[test]
    fn a_signature_is_of_the_specification_and_of_the_stages() {
        let stages = |block: &str| StageGraph { block: block.to_owned(), tensors: vec![], stages: vec![] };
        assert_eq!(signature(&matmul(4), &stages("a")), signature(&matmul(4), &stages("a")));
        assert_ne!(signature(&matmul(4), &stages("a")), signature(&matmul(5), &stages("a")));
        assert_ne!(signature(&matmul(4), &stages("a")), signature(&matmul(4), &stages("b")));
    }

    #[test]
    fn a_rejection_has_the_kind_of_its_failure_and_the_first_gate_that_did_not_pass() {
        let gate = |gate, status| GateResult {
            gate,
            stage: Some("norm1".to_owned()),
            case: "normal".to_owned(),
            status,
            checked: 1,
            worst_ratio: None,
            mismatch: None,
            message: "off by one".to_owned(),
        };
        let gates = vec![gate(Gate::V1Exactness, GateStatus::Passed), gate(Gate::V2Bound, GateStatus::Failed)];
        let verdict = Verdict { version: 1, accepted: false, seed: 0, gates };
        let failure = Failure::new(FailureKind::NumericMismatch, "gate v2-bound did not pass").at_stage("norm1");
        let rejection = Rejection::of(&failure, Some(&verdict)).unwrap();
        assert_eq!(rejection.to_string(), "NumericMismatch, gate v2-bound, stage `norm1`: off by one (normal)");
        let replayed = GateResult { case: format!("{REPLAYED}peaky"), ..gate(Gate::V2Bound, GateStatus::Failed) };
        let verdict = Verdict { version: 1, accepted: false, seed: 0, gates: vec![replayed] };
        assert_eq!(Rejection::of(&failure, Some(&verdict)).unwrap().kind, KilledBy::RegressionCase);
        let failure = Failure::new(FailureKind::IllegalPlan, "stage `norm1`: `lanes` = 3").at_stage("norm1");
        let rejection = Rejection::of(&failure, None).unwrap();
        assert_eq!(rejection.to_string(), "Validation, gate v0-legality, stage `norm1`: `lanes` = 3");
        let of = |kind| Rejection::of(&Failure::new(kind, "why"), None).map(|it| it.to_string());
        assert_eq!(of(FailureKind::IllegalPlan).unwrap(), "Validation, gate v0-legality: why");
        assert_eq!(of(FailureKind::Codegen).unwrap(), "Validation: why");
        assert_eq!(of(FailureKind::Memory).unwrap(), "Memory: why");
        assert_eq!(of(FailureKind::Timeout).unwrap(), "Timeout: why");
        assert_eq!(of(FailureKind::OutOfMemory).unwrap(), "Crash: why");
        for kind in [FailureKind::Internal, FailureKind::MissingBlob, FailureKind::Cancelled, FailureKind::Io] {
            assert_eq!(of(kind), None);
        }
    }
}
