//! V4, the part about bounds: between protected pages nothing outside of a buffer is read or written. All other gates run
//! in memory that ends at a protected page; [`check_begin`] runs the kernel once more in memory that begins after one.

use crate::verify::{
    candidate::{Call, Candidate, Left},
    tally::Tally,
};
use kernelforge::{
    plan::stage::{Role, TensorId},
    protocol::{Gate, GateResult},
};

/// What the runs of all other gates left: one result for each stage, one for packing, one for the block's entry.
pub fn check_end(candidate: &mut dyn Candidate) -> Vec<GateResult> {
    let left = candidate.escapes();
    results(candidate, &left, "protected pages after the buffers")
}

/// Runs everything once. The candidate's tensors must be filled as they were for the run that left `outputs`, and that is
/// what must come out: bits do not depend on where a buffer lies.
pub fn check_begin(candidate: &mut dyn Candidate, outputs: &[Vec<f32>]) -> Vec<GateResult> {
    candidate.prepare();
    candidate.poison(f32::NAN);
    (0..candidate.graph().stages.len()).for_each(|it| candidate.stage(it));
    candidate.block();
    let left = candidate.escapes();
    let mut results = results(candidate, &left, "protected pages before the buffers");
    let mut tally = Tally::default();
    for (&id, expected) in self::outputs(candidate).iter().zip(outputs) {
        let width = candidate.graph().tensor(id).shape.last().copied().unwrap_or(1);
        tally.compare_bits(width, candidate.tensor(id), expected);
    }
    results.push(tally.result(Gate::V4Memory, None, "the same tensors at other addresses"));
    results
}

/// The tensors that the block returns.
pub fn outputs(candidate: &dyn Candidate) -> Vec<TensorId> {
    candidate.graph().with_role(Role::Output).map(|it| it.0).collect()
}

fn results(candidate: &dyn Candidate, left: &[Left], case: &str) -> Vec<GateResult> {
    let stages = &candidate.graph().stages;
    let calls = (0..stages.len()).map(Call::Stage).chain([Call::Prepare, Call::Block]);
    let result = |call| {
        let mut tally = Tally::default();
        let here: Vec<String> =
            left.iter().filter(|it| it.call == call).map(|it| format!("{} {}", it.escape.text(), it.buffer)).collect();
        tally.expect(here.is_empty(), || format!("the kernel {}", here.join(", ")));
        let (stage, case) = match call {
            Call::Stage(index) => (Some(stages[index].name.as_str()), case.to_owned()),
            Call::Prepare => (None, format!("packing, {case}")),
            Call::Block => (None, format!("block, {case}")),
        };
        tally.result(Gate::V4Memory, stage, case)
    };
    calls.map(result).collect()
}
