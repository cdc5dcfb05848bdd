//! The regression corpus, replayed: each case on every stage of its kind, with the seed that it was found with, before
//! anything else is looked at.

use super::{exactness, relations};
use crate::verify::{
    candidate::Candidate,
    check_regime,
    inputs::{self, Regime},
};
use kernelforge::{
    manifest::spec::BlockSpec,
    protocol::{
        Gate, GateResult,
        corpus::{Case, REPLAYED},
    },
};
use std::collections::BTreeSet;

/// Overwrites all tensors, weights included.
pub fn replay(candidate: &mut dyn Candidate, block: &BlockSpec, corpus: &[Case]) -> Vec<GateResult> {
    let ops: Vec<&str> = candidate.graph().stages.iter().map(|it| it.op.name()).collect();
    let corpus: Vec<&Case> = corpus.iter().filter(|it| ops.contains(&it.op.as_str())).collect();
    let seeds: BTreeSet<u64> = corpus.iter().map(|it| it.seed).collect();
    let mut results = Vec::new();
    for seed in seeds {
        let mut cases: Vec<&Case> = corpus.iter().filter(|it| it.seed == seed).copied().collect();
        // Exact cases come last: they bring weights of their own.
        cases.sort_by_key(|it| it.gate == Gate::V1Exactness);
        inputs::fill(candidate, inputs::rope_theta(block), seed);
        candidate.prepare();
        (0..candidate.graph().stages.len()).for_each(|it| candidate.stage(it));
        let exact: Vec<&Case> = cases.iter().filter(|it| it.gate == Gate::V1Exactness).copied().collect();
        for case in cases.iter().filter(|it| it.gate != Gate::V1Exactness) {
            results.extend(stages(candidate, case).flat_map(|it| replay_one(candidate, it, case)));
        }
        if !exact.is_empty() {
            exactness::fill_all_weights(candidate, seed);
            for case in exact {
                let found = stages(candidate, case)
                    .flat_map(|it| exactness::check_stage(candidate, it, seed, Some(&case.case)));
                results.extend(found.map(|it| named(it, case)).collect::<Vec<_>>());
            }
        }
    }
    results
}

/// The stages that a case is about.
fn stages(candidate: &dyn Candidate, case: &Case) -> std::vec::IntoIter<usize> {
    let stages = candidate.graph().stages.iter().enumerate();
    stages.filter(|it| it.1.op.name() == case.op).map(|it| it.0).collect::<Vec<_>>().into_iter()
}

fn replay_one(candidate: &mut dyn Candidate, index: usize, case: &Case) -> Vec<GateResult> {
    let results = match (case.gate, Regime::from_name(&case.case)) {
        (gate @ (Gate::V2Bound | Gate::V3ErrorRatio), Some(regime)) => {
            let judged = check_regime(candidate, index, regime, case.seed);
            judged.into_iter().filter(|it| it.gate == gate).collect()
        }
        (Gate::V6Relations, _) => relations::check_stage(candidate, index, case.seed, Some(&case.case)),
        // Cases of other gates are the same in every verification: there is nothing to replay.
        _ => Vec::new(),
    };
    results.into_iter().map(|it| named(it, case)).collect()
}

fn named(result: GateResult, case: &Case) -> GateResult {
    GateResult { case: format!("{REPLAYED}{} with seed {}", result.case, case.seed), ..result }
}
