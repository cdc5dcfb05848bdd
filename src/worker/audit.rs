//! Writes the audit of a kernel that was judged, and holds kernels that are to be used against theirs.

use crate::verify;
use kernelforge::{
    digest::Digest,
    host::CpuFacts,
    protocol::{
        Failure, FailureKind, Gate, GateResult, GateStatus, Verdict,
        audit::{Audit, Rejection, Subject, Uncovered},
    },
};
use std::time::Instant;

/// Runs every gate. A kernel that was rejected has its failure beside the audit.
///
/// # Errors
/// What is not the kernel's fault: `Internal`, and `DeviceUnavailable` where the request is for another CPU.
pub fn verify(
    request: &verify::Request<'_>,
    object: Digest,
    plan_digest: Digest,
) -> Result<(Audit, Option<Failure>), Failure> {
    let verify::Request { plan, block, device, threads, seed, .. } = *request;
    let stages = &request.kernel.graph;
    let subject = Subject { plan, plan_digest, block, stages, object: Some(object), device, threads, seed: Some(seed) };
    judge(&subject, || verify::verify(request))
}

/// As [`verify`], of whatever gives a verdict.
///
/// # Errors
/// As [`verify`].
pub fn judge(
    subject: &Subject<'_>,
    verify: impl FnOnce() -> Result<Verdict, Failure>,
) -> Result<(Audit, Option<Failure>), Failure> {
    let start = Instant::now();
    let (verdict, failure) = match verify() {
        Ok(verdict) => {
            let failure = rejection(&verdict.gates);
            (Some(verdict), failure)
        }
        Err(failure) => (None, Some(failure)),
    };
    let wall = start.elapsed();
    let rejection = match &failure {
        None => None,
        Some(it) => Some(Rejection::of(it, verdict.as_ref()).ok_or_else(|| it.clone())?),
    };
    Ok((subject.audit(verdict, rejection, wall), failure))
}

/// Refuses an action for a CPU that this process does not run on: what it found out would be recorded under the other's name.
///
/// # Errors
/// `DeviceUnavailable`.
pub fn here(cpu: &CpuFacts) -> Result<(), Failure> {
    let found = CpuFacts::detect();
    if *cpu == found {
        return Ok(());
    }
    let message = format!(
        "the action is for device {} ({}), this is device {} ({})",
        cpu.fingerprint().short(),
        cpu.model,
        found.fingerprint().short(),
        found.model
    );
    Err(Failure::new(FailureKind::DeviceUnavailable, message))
}

/// Refuses a kernel that its audit does not allow to be used on the device with this fingerprint.
///
/// # Errors
/// `NotVerified`; `DeviceUnavailable` where the audit was made on another device.
pub fn require(audit: &Audit, object: &Digest, plan: &Digest, device: &Digest) -> Result<(), Failure> {
    audit.covers(object, plan, device).map_err(|uncovered| {
        let kind = match uncovered {
            Uncovered::Device { .. } => FailureKind::DeviceUnavailable,
            _ => FailureKind::NotVerified,
        };
        Failure::new(kind, uncovered.to_string()).with_hint("`kforge build` verifies the kernel again")
    })
}

/// The failure that gates stand for, named after the first one that did not pass. No gate at all has decided nothing.
pub fn rejection(gates: &[GateResult]) -> Option<Failure> {
    let failed: Vec<_> = gates.iter().filter(|it| it.status != GateStatus::Passed).collect();
    let Some(gate) = failed.first() else {
        let unjudged = || Failure::new(FailureKind::NumericMismatch, "the kernel was not accepted: no gate was run");
        return gates.is_empty().then(unjudged);
    };
    let name = gate.gate.name();
    let at = gate.stage.as_ref().map(|it| format!(" at stage `{it}`")).unwrap_or_default();
    let message = format!("gate {name} ({}) did not pass{at}: {}", gate.case, gate.message);
    let failure = Failure::new(rejected_by(gate.gate), message).by_gate(gate.gate);
    let failure = failure.with_detail(format!("{} of {} checks did not pass", failed.len(), gates.len()));
    Some(match &gate.stage {
        None => failure,
        Some(stage) => failure.at_stage(stage),
    })
}

const fn rejected_by(gate: Gate) -> FailureKind {
    match gate {
        Gate::V0Legality => FailureKind::IllegalPlan,
        Gate::V4Memory => FailureKind::Memory,
        Gate::V7NoGaming => FailureKind::Implausible,
        _ => FailureKind::NumericMismatch,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let passed = GateResult { status: GateStatus::Passed, message: String::new(), ..gate.clone() };
        let failure = rejection(&[passed.clone(), gate]).unwrap();
        assert_eq!(failure.stage.as_deref(), Some("attn.q"));
        assert_eq!(failure.message, "gate v2-bound (normal) did not pass at stage `attn.q`: 3.0 times the bound");
        assert_eq!((failure.kind, failure.gate), (FailureKind::NumericMismatch, Some(Gate::V2Bound)));
        for (gate, kind) in [
            (Gate::V0Legality, FailureKind::IllegalPlan),
            (Gate::V4Memory, FailureKind::Memory),
            (Gate::V7NoGaming, FailureKind::Implausible),
        ] {
            let failed = GateResult { gate, status: GateStatus::Inconclusive, ..passed.clone() };
            assert_eq!(rejection(&[failed]).map(|it| it.kind), Some(kind));
        }
        assert_eq!(rejection(&[passed]), None);
        assert!(rejection(&[]).is_some());
    }
}
