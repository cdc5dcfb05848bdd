//! The plans that the store keeps, and what became of each.

use crate::{
    build::tune::ledger::{self, Best, Ledger},
    digest::Digest,
    protocol::{
        audit::{Audit, Ruling},
        blob,
    },
    store::{Store, out, records::Kept},
};
use serde::Serialize;
use std::collections::BTreeMap;

/// How the audit of a plan's kernel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judged {
    Accepted,
    Rejected,
    /// There is no audit of it.
    Not,
}

impl Judged {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Rejected => "rejected",
            Self::Not => "not verified",
        }
    }
}

/// One plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct KeptPlan {
    pub block: String,
    pub target: String,
    pub strategy: String,
    pub judged: Judged,
    /// Of the plan's blob.
    pub plan: Digest,
    /// When the plan was last made; seconds since 1970.
    pub made_unix: u64,
}

/// The best schedule of one operation that a verifier accepted on one device.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct KeptBest {
    pub operation: String,
    pub device: String,
    pub threads: usize,
    #[serde(flatten)]
    pub best: Best,
    /// The audit of the block that it was verified in.
    pub audit: Option<Digest>,
    pub found_unix: u64,
    /// Found and verified by this kforge: plans are made with it.
    pub current: bool,
}

/// The best known schedules, by operation and device.
pub fn best(store: &Store) -> Vec<KeptBest> {
    let all = Ledger { store }.all_best().into_iter();
    let mut all: Vec<_> = all
        .map(|(best, Kept { record, .. })| {
            let part = |name: &str| record.parts.get(name).unwrap_or("?").to_owned();
            KeptBest {
                operation: part("op"),
                device: part("device-name"),
                threads: part("threads").parse().unwrap_or(1),
                audit: record.outputs.get(blob::AUDIT).copied(),
                found_unix: record.finished_unix,
                current: best.recipes == ledger::recipe_digest(),
                best,
            }
        })
        .collect();
    all.sort_by(|a, b| (&a.operation, &a.device, a.threads).cmp(&(&b.operation, &b.device, b.threads)));
    all
}

/// Every plan whose blob is there, by block and target, the newest first.
pub fn kept(store: &Store) -> Vec<KeptPlan> {
    let records = store.records.kept();
    let rulings = rulings(store, &records);
    let mut plans: BTreeMap<(String, String, Digest), KeptPlan> = BTreeMap::new();
    for Kept { record, .. } in &records {
        let part = |name: &str| record.parts.get(name).unwrap_or("?").to_owned();
        // A record of another step reads a plan but has none among its outputs.
        let Some(&plan) = record.outputs.get(blob::PLAN).filter(|it| store.cas.contains(it)) else { continue };
        let (block, target, strategy) = (part("name"), part("target"), part("strategy"));
        let judged = rulings.get(&plan).copied().unwrap_or(Judged::Not);
        let made_unix = record.finished_unix;
        let known = plans.entry((block.clone(), target.clone(), plan)).or_insert(KeptPlan {
            block,
            target,
            strategy,
            judged,
            plan,
            made_unix,
        });
        known.made_unix = known.made_unix.max(made_unix);
    }
    let mut plans: Vec<_> = plans.into_values().collect();
    plans.sort_by_key(|it| (it.block.clone(), it.target.clone(), std::cmp::Reverse(it.made_unix), it.plan));
    plans
}

/// The last ruling on each plan. A rejection leaves no record, only the audit in the block's folder, which is of the last build.
fn rulings(store: &Store, records: &[Kept]) -> BTreeMap<Digest, Judged> {
    let recorded = records.iter().filter_map(|it| it.record.outputs.get(blob::AUDIT).copied());
    let folders = store.records.steps().into_iter().filter_map(|it| Some(it.step.rsplit_once(':')?.0.to_owned()));
    let mut folders: Vec<_> = folders.collect();
    folders.dedup();
    let shown = folders.iter().filter_map(|it| out::copied_from(&store.out(it), "audit.json"));
    let audits = recorded.chain(shown).filter_map(|it| serde_json::from_slice(&store.cas.get(&it).ok()?).ok());
    let ruling = |audit: Audit| match audit.ruling {
        Ruling::Accepted => (audit.plan_digest, Judged::Accepted),
        Ruling::Rejected(_) => (audit.plan_digest, Judged::Rejected),
    };
    audits.map(ruling).collect()
}
