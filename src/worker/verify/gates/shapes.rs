//! V5: the same schedules at other shapes. A kernel is generated for one shape, so a generator that is wrong for the next
//! one (a tile that is not filled, a last vector of one lane, one row, one key) is not seen by judging that kernel. Every
//! schedule of the plan is therefore generated again for shapes around its own tiles, small ones, and judged by the
//! rounding bound in memory between protected pages.

use super::Judged;
use crate::verify::{
    Maker,
    candidate::{Call, Candidate},
    inputs,
    reference::Detail,
    tally::Tally,
};
use kernelforge::{
    host::Device,
    manifest::spec::Dtype,
    plan::{
        Plan, constraint,
        gpu::{
            attention::GpuAttention,
            matmul::{GpuMatmul, GpuMlp},
            rows::{GpuElementwise, GpuNorm},
        },
        schedule::{AttentionSchedule, ElementwiseSchedule, MatmulSchedule, MlpSchedule, NormSchedule, Schedule},
        stage::{Role, Stage, StageGraph, StageOp, Tensor, TensorId},
    },
    protocol::{Failure, FailureKind, Gate, GateResult},
};

/// One stage of the block, and the variant of it that stands for it.
struct Variant<'a> {
    /// The stage whose schedule this is.
    of: &'a Stage,
    case: String,
}

/// Judges every distinct schedule of the plan at shapes of its own.
///
/// # Errors
/// `OutOfMemory`, `Internal`. A schedule that cannot be generated for a shape is a result that failed.
pub fn check(graph: &StageGraph, plan: &Plan, maker: &dyn Maker, seed: u64) -> Result<Vec<GateResult>, Failure> {
    let (variants, shaped, shaped_plan) = variants(graph, plan, maker.device());
    let mut results = Vec::new();
    let made = maker.make(&shaped, &shaped_plan, &mut |candidate| results = judge(candidate, &variants, seed));
    match made {
        Ok(()) => Ok(results),
        Err(failure) if matches!(failure.kind, FailureKind::IllegalPlan | FailureKind::Codegen) => {
            let mut tally = Tally::default();
            tally.expect(false, || format!("the plan cannot be generated for other shapes: {}", failure.message));
            Ok(vec![tally.result(Gate::V5Shapes, failure.stage.as_deref(), "other shapes")])
        }
        Err(failure) => Err(failure),
    }
}

fn judge(candidate: &mut dyn Candidate, variants: &[Variant<'_>], seed: u64) -> Vec<GateResult> {
    inputs::fill(candidate, 0.0, seed);
    candidate.prepare();
    candidate.poison(f32::NAN);
    let mut results = Vec::new();
    for (index, Variant { of, case }) in variants.iter().enumerate() {
        candidate.stage(index);
        let stage = &candidate.graph().stages[index];
        let rows: Vec<usize> = (0..crate::verify::coverage::output_shape(&stage.op).0).collect();
        let judged = Judged { gate: Gate::V5Shapes, stage, case, detail: Detail::Bound, seed };
        let judged = judged.judge(candidate, &rows);
        results.extend(judged.into_iter().map(|it| GateResult { stage: Some(of.name.clone()), ..it }));
    }
    for left in candidate.escapes() {
        let (stage, case) = match left.call {
            Call::Stage(index) => (Some(variants[index].of.name.as_str()), variants[index].case.as_str()),
            Call::Prepare | Call::Block => (None, "packing"),
        };
        let mut tally = Tally::default();
        tally.expect(false, || format!("the kernel {} {}", left.escape.text(), left.buffer));
        results.push(tally.result(Gate::V5Shapes, stage, case));
    }
    results
}

/// One graph of independent stages, with the plan's schedules.
fn variants<'a>(graph: &'a StageGraph, plan: &Plan, device: &Device) -> (Vec<Variant<'a>>, StageGraph, Plan) {
    let mut variants = Vec::new();
    let mut shaped = StageGraph { block: "shapes".to_owned(), tensors: Vec::new(), stages: Vec::new() };
    let mut shaped_plan = Plan { stages: Default::default(), ..plan.clone() };
    let mut seen: Vec<(StageOp, Schedule)> = Vec::new();
    for of in &graph.stages {
        let Ok(schedule) = constraint::resolve(graph, of, plan, device) else { continue };
        let dtype = graph.tensor(of.output).dtype;
        // A schedule with parts of K, say, is for no product that is shorter than its parts.
        let legal = |op: &StageOp| {
            let stage = Stage { op: op.clone(), ..of.clone() };
            constraint::check(&stage, dtype, &schedule, device).is_ok()
        };
        for (op, case) in shapes(&of.op, &schedule).into_iter().filter(|it| legal(&it.0)) {
            if seen.contains(&(op.clone(), schedule.clone())) {
                continue;
            }
            seen.push((op.clone(), schedule.clone()));
            let name = format!("shape{}", variants.len());
            push(&mut shaped, &name, op, graph.tensor(of.output).dtype);
            shaped_plan.stages.insert(name, schedule.clone());
            variants.push(Variant { of, case });
        }
    }
    (variants, shaped, shaped_plan)
}

/// Small shapes around the schedule's tiles: one row, a prime, a tile and one, a tile less one.
fn shapes(op: &StageOp, schedule: &Schedule) -> Vec<(StageOp, String)> {
    match (op.clone(), schedule) {
        (StageOp::Matmul { bias, activation, residual, .. }, Schedule::Matmul(MatmulSchedule { mr, nr, .. })) => {
            [(1, nr + 1, 7), (mr + 1, (nr - 1).max(1), 13)]
                .map(|(m, n, k)| (StageOp::Matmul { m, n, k, bias, activation, residual }, format!("{m}x{n}x{k}")))
                .to_vec()
        }
        (StageOp::Mlp { activation, gated, bias, residual, .. }, Schedule::Mlp(MlpSchedule { up, down, .. })) => {
            [(1, down.nr + 1, up.nr - 1), (up.mr + 1, 7, up.nr + 1)]
                .map(|(rows, d_model, d_ff)| {
                    let d_ff = d_ff.max(1);
                    let op = StageOp::Mlp { rows, d_model, d_ff, activation, gated, bias, residual };
                    (op, format!("{rows}x{d_model}x{d_ff}"))
                })
                .to_vec()
        }
        (
            StageOp::Attention { heads, kv_heads, causal, scale, .. },
            Schedule::Attention(AttentionSchedule { mr, nr, lanes, .. }),
        ) => {
            let (heads, kv_heads) = if heads == kv_heads { (2, 2) } else { (4, 2) };
            [(2, 1, lanes + 1), (2, nr + 1, 5), (1, (mr - 1).max(2), 2 * lanes)]
                .map(|(batch, seq, head_dim)| {
                    let op = StageOp::Attention { batch, seq, heads, kv_heads, head_dim, causal, scale };
                    (op, format!("{batch} of {seq} keys, {heads} heads of {head_dim}"))
                })
                .to_vec()
        }
        (op, Schedule::Norm(NormSchedule { lanes, unroll })) => {
            rows_by_width(&op, [(1, lanes * unroll + 1), (3, (lanes - 1).max(1)), (2, 1)])
        }
        (op, Schedule::Elementwise(ElementwiseSchedule { lanes, unroll })) => {
            rows_by_width(&op, [(1, lanes * unroll + 1), (3, (lanes - 1).max(1)), (2, 1)])
        }
        (op, schedule) => on_gpu(&op, schedule),
    }
}

/// As [`shapes`], around the tiles of a GPU's schedule. Loads of several elements need sizes that they divide.
fn on_gpu(op: &StageOp, schedule: &Schedule) -> Vec<(StageOp, String)> {
    /// Rows and columns of a tile, its depth, elements of a load.
    fn tile(it: &GpuMatmul) -> [usize; 4] {
        match it {
            GpuMatmul::Tiled(it) => [it.tile_m, it.tile_n, it.tile_k, it.vector],
            GpuMatmul::Cooperative(it) => [it.tile_m, it.tile_n, it.tile_k, it.vector],
            // At most eight rows, whatever the tile.
            GpuMatmul::Gemv(it) => [2, it.threads / it.slices * it.vector, it.slices * it.unroll, it.vector],
        }
    }
    match (op.clone(), schedule) {
        (StageOp::Matmul { bias, activation, residual, .. }, Schedule::GpuMatmul(it)) => {
            let ([rows, columns, depth, vector], parts) = (tile(it), it.split_k());
            let depth = (parts * depth).next_multiple_of(vector);
            [(1, columns + vector, depth + vector), (rows + 1, (columns - 1) / vector * vector, depth + 3 * vector)]
                .map(|(m, n, k)| (m, n.max(vector), k))
                .map(|(m, n, k)| (StageOp::Matmul { m, n, k, bias, activation, residual }, format!("{m}x{n}x{k}")))
                .to_vec()
        }
        (StageOp::Mlp { activation, gated, bias, residual, .. }, Schedule::GpuMlp(GpuMlp { up, down, .. })) => {
            let ([rows, up_columns, up_depth, up_vector], [_, columns, depth, vector]) = (tile(up), tile(down));
            let vector = up_vector.max(vector);
            let d_model = (columns.max(up.split_k() * up_depth)).next_multiple_of(vector) + vector;
            let d_ff = (up_columns.max(down.split_k() * depth)).next_multiple_of(vector) + vector;
            [1, rows + 1]
                .map(|rows| {
                    let op = StageOp::Mlp { rows, d_model, d_ff, activation, gated, bias, residual };
                    (op, format!("{rows}x{d_model}x{d_ff}"))
                })
                .to_vec()
        }
        (StageOp::Attention { heads, kv_heads, causal, scale, .. }, Schedule::GpuAttention(it)) => {
            let (rows, keys, head_dim) = match it {
                GpuAttention::Online(it) => (it.tile_q, it.tile_k, 3 * it.vector),
                GpuAttention::Cooperative(it) => (it.tile_q, it.tile_k, 16),
                GpuAttention::HostSoftmax(it) => (it.tile_q, it.tile_k, 5),
            };
            let (heads, kv_heads) = if heads == kv_heads { (2, 2) } else { (4, 2) };
            [(2, 1), (2, keys + 1), (1, (rows - 1).max(2))]
                .map(|(batch, seq)| {
                    let op = StageOp::Attention { batch, seq, heads, kv_heads, head_dim, causal, scale };
                    (op, format!("{batch} of {seq} keys, {heads} heads of {head_dim}"))
                })
                .to_vec()
        }
        (op, Schedule::GpuNorm(GpuNorm { width, rows, vector, .. })) => {
            let row = width * vector;
            rows_by_width(&op, [(1, row + vector), (rows + 1, (row - vector).max(*vector)), (2, *vector)])
        }
        (op, Schedule::GpuElementwise(GpuElementwise { threads, vector, unroll })) => {
            let group = threads * vector * unroll;
            rows_by_width(&op, [(1, group + vector), (3, (group - vector).max(*vector)), (2, *vector)])
        }
        _ => Vec::new(),
    }
}

fn rows_by_width(op: &StageOp, shapes: [(usize, usize); 3]) -> Vec<(StageOp, String)> {
    let shaped = |(rows, width): (usize, usize)| {
        let case = format!("{rows}x{width}");
        Some(match *op {
            StageOp::LayerNorm { eps, .. } => (StageOp::LayerNorm { rows, width, eps }, case),
            StageOp::RmsNorm { eps, .. } => (StageOp::RmsNorm { rows, width, eps }, case),
            StageOp::Activation { function, .. } => (StageOp::Activation { rows, width, function }, case),
            StageOp::Add { .. } => (StageOp::Add { rows, width }, case),
            StageOp::Mul { .. } => (StageOp::Mul { rows, width }, case),
            StageOp::Scale { factor, .. } => (StageOp::Scale { rows, width, factor }, case),
            StageOp::Rope { .. } => {
                let op = StageOp::Rope { batch: 2, seq: rows, heads: 2, head_dim: 2 * width };
                (op, format!("2 of {rows} rows, 2 heads of {}", 2 * width))
            }
            StageOp::Matmul { .. } | StageOp::Mlp { .. } | StageOp::Attention { .. } => return None,
        })
    };
    shapes.into_iter().filter_map(shaped).collect()
}

/// Appends a stage with tensors of its own.
fn push(graph: &mut StageGraph, stage: &str, op: StageOp, dtype: Dtype) {
    let rope = matches!(op, StageOp::Rope { .. });
    let mut tensor = |name: &str, shape: &[usize], role| {
        let name = format!("{stage}.{name}");
        // Rotary tables are f32 in every block.
        let dtype = if rope && role == Role::Weight { Dtype::F32 } else { dtype };
        graph.tensors.push(Tensor { name, shape: shape.to_vec(), dtype, role });
        TensorId(graph.tensors.len() - 1)
    };
    let (input, weight) = (Role::Input, Role::Weight);
    let mut inputs = Vec::new();
    match op {
        StageOp::Matmul { m, n, k, bias, residual, .. } => {
            inputs.extend([tensor("x", &[m, k], input), tensor("w", &[k, n], weight)]);
            inputs.extend(bias.then(|| tensor("b", &[n], weight)));
            inputs.extend(residual.then(|| tensor("residual", &[m, n], input)));
        }
        StageOp::Mlp { rows, d_model, d_ff, gated, bias, residual, .. } => {
            inputs.push(tensor("x", &[rows, d_model], input));
            let layers = [("gate", d_model, d_ff), ("up", d_model, d_ff), ("down", d_ff, d_model)];
            for (name, k, n) in layers.into_iter().skip(usize::from(!gated)) {
                inputs.push(tensor(&format!("w_{name}"), &[k, n], weight));
                inputs.extend(bias.then(|| tensor(&format!("b_{name}"), &[n], weight)));
            }
            inputs.extend(residual.then(|| tensor("residual", &[rows, d_model], input)));
        }
        StageOp::Attention { batch, seq, heads, kv_heads, head_dim, .. } => {
            inputs.push(tensor("q", &[batch * seq, heads * head_dim], input));
            inputs.extend(["k", "v"].map(|it| tensor(it, &[batch * seq, kv_heads * head_dim], input)));
        }
        StageOp::Rope { batch, seq, heads, head_dim } => {
            inputs.push(tensor("x", &[batch * seq, heads * head_dim], input));
            inputs.extend(["cos", "sin"].map(|it| tensor(it, &[seq, head_dim / 2], weight)));
        }
        StageOp::LayerNorm { rows, width, .. } => {
            inputs.push(tensor("x", &[rows, width], input));
            inputs.extend(["gain", "bias"].map(|it| tensor(it, &[width], weight)));
        }
        StageOp::RmsNorm { rows, width, .. } => {
            inputs.extend([tensor("x", &[rows, width], input), tensor("gain", &[width], weight)]);
        }
        StageOp::Add { rows, width } | StageOp::Mul { rows, width } => {
            inputs.extend(["a", "b"].map(|it| tensor(it, &[rows, width], input)));
        }
        StageOp::Activation { rows, width, .. } | StageOp::Scale { rows, width, .. } => {
            inputs.push(tensor("x", &[rows, width], input));
        }
    }
    let (rows, width) = crate::verify::coverage::output_shape(&op);
    let output = tensor("y", &[rows, width], Role::Output);
    graph.stages.push(Stage { name: stage.to_owned(), op, inputs, output, scheduled: true });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        codegen::{self, cpu::compile},
        verify::{Cpu, samples},
    };
    use kernelforge::{
        host::CpuFacts,
        protocol::{FailureKind, GateStatus},
    };

    /// Has its code written by `compile`.
    struct Sabotaged<F>(Device, F);

    impl<F: Fn(&StageGraph, &Plan, &CpuFacts) -> Result<codegen::Compiled, Failure>> Maker for Sabotaged<F> {
        fn device(&self) -> &Device {
            &self.0
        }

        fn make(
            &self,
            graph: &StageGraph,
            plan: &Plan,
            act: &mut dyn FnMut(&mut dyn Candidate),
        ) -> Result<(), Failure> {
            Cpu::run(self.1(graph, plan, &CpuFacts::detect())?, act)
        }
    }

    fn plain() -> (StageGraph, Plan, Device) {
        let mut graph = samples::graph(&samples::gpt());
        // Without a pass every stage has its plain schedule, and a plan schedules nothing.
        graph.stages.iter_mut().for_each(|it| it.scheduled = false);
        let plan = samples::plan(&graph.block, "cpu", Default::default());
        (graph, plan, CpuFacts::detect().into())
    }

    #[test]
    fn every_kind_of_stage_is_judged_at_other_shapes() {
        let (graph, plan, device) = plain();
        let results = check(&graph, &plan, &Sabotaged(device, compile), 5).unwrap();
        assert!(results.iter().all(|it| it.status == GateStatus::Passed), "{results:#?}");
        for stage in &graph.stages {
            let same = |it: &&GateResult| {
                let judged = it.stage.as_deref().and_then(|it| graph.stage(it));
                judged.is_some_and(|it| it.op.name() == stage.op.name())
            };
            assert!(results.iter().filter(same).count() >= 2, "{}", stage.op.name());
        }
    }

    #[test]
    fn a_generator_that_is_wrong_for_one_row_is_found_out() {
        let (graph, plan, device) = plain();
        // Where the block has several rows the code is right.
        let wrong = |graph: &StageGraph, plan: &Plan, cpu: &CpuFacts| {
            let mut other = graph.clone();
            for stage in &mut other.stages {
                if let StageOp::LayerNorm { rows: 1, eps, .. } = &mut stage.op {
                    *eps *= 2.0;
                }
            }
            let compiled = compile(&other, plan, cpu)?;
            let kernel = kernelforge::plan::kernel::Kernel { graph: graph.clone(), ..compiled.kernel };
            Ok(codegen::Compiled { kernel, ..compiled })
        };
        let results = check(&graph, &plan, &Sabotaged(device, wrong), 5).unwrap();
        let failed: Vec<_> = results.iter().filter(|it| it.status != GateStatus::Passed).collect();
        assert!(
            failed.iter().all(|it| it.stage.as_deref() == Some("norm1") && it.case.starts_with("1x")),
            "{failed:#?}"
        );
        assert_eq!(failed.len(), 1, "{failed:#?}");
    }

    #[test]
    fn a_schedule_that_cannot_be_generated_is_a_result_and_no_error() {
        let (graph, plan, device) = plain();
        let refuse = |_: &StageGraph, _: &Plan, _: &CpuFacts| Err(Failure::new(FailureKind::Codegen, "no such tile"));
        let results = check(&graph, &plan, &Sabotaged(device, refuse), 5).unwrap();
        assert_eq!((results.len(), results[0].status), (1, GateStatus::Failed));
        assert!(results[0].message.ends_with("other shapes: no such tile"), "{}", results[0].message);
    }
}
