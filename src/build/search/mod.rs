//! Proposers of plans. No IO: a proposer sees stages and facts and returns schedules, which the worker checks before it
//! generates anything. The one strategy so far is the analytic [`heuristic`].

pub mod gpu_attention;
pub mod gpu_matmul;
pub mod gpu_rows;
pub mod heuristic;

use crate::{
    host::CpuFacts,
    plan::{PLAN_VERSION, Plan, Provenance, stage::StageGraph},
};

/// The heuristic's plan for one block on one target.
pub fn plan(graph: &StageGraph, block: &str, target: &str, cpu: &CpuFacts) -> Plan {
    Plan {
        version: PLAN_VERSION,
        block: block.to_owned(),
        target: target.to_owned(),
        provenance: Provenance { strategy: "heuristic".to_owned(), trials: 0 },
        stages: heuristic::propose(graph, cpu),
    }
}
