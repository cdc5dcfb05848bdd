//! Random legal schedules on random ragged shapes, compiled and put through every gate: a correct kernel is accepted whatever
//! its knobs. Each test prints how many it tried (`--nocapture`).

use super::{Request, samples, verify};
use crate::codegen::cpu::compile;
use kernelforge::{
    host::CpuFacts,
    manifest::spec::{Activation, AttentionSpec, BlockSpec, Dtype, MlpSpec, NormKind, NormSpec, OperandB, RowsSpec},
    plan::{
        Plan, constraint,
        schedule::{
            AttentionSchedule, Dot, ElementwiseSchedule, MatmulSchedule, MlpSchedule, NormSchedule, PackB, Schedule,
            Split, TileOrder,
        },
        stage::{StageGraph, StageOp},
    },
    protocol::{Failure, GateStatus},
};
use proptest::{
    prelude::*,
    sample::select,
    test_runner::{TestCaseError, TestRunner},
};
use std::{cell::RefCell, collections::HashSet};

/// A block with a schedule for every kind of its stages, and how it is verified.
#[derive(Debug, Clone)]
struct Subject {
    block: BlockSpec,
    schedules: Schedules,
    threads: usize,
    seed: u64,
}

/// One schedule for each kind of stage; stages of a kind without one get the plain schedule.
#[derive(Debug, Clone, Default)]
struct Schedules {
    matmul: Option<MatmulSchedule>,
    attention: Option<AttentionSchedule>,
    norm: Option<NormSchedule>,
    elementwise: Option<ElementwiseSchedule>,
    mlp: Option<MlpSchedule>,
}

impl Schedules {
    fn of(&self, op: &StageOp) -> Option<Schedule> {
        match op {
            StageOp::Matmul { .. } => self.matmul.clone().map(Schedule::Matmul),
            StageOp::Mlp { .. } => self.mlp.clone().map(Schedule::Mlp),
            StageOp::Attention { .. } => self.attention.clone().map(Schedule::Attention),
            StageOp::LayerNorm { .. } | StageOp::RmsNorm { .. } => self.norm.clone().map(Schedule::Norm),
            StageOp::Rope { .. }
            | StageOp::Activation { .. }
            | StageOp::Add { .. }
            | StageOp::Mul { .. }
            | StageOp::Scale { .. } => self.elementwise.clone().map(Schedule::Elementwise),
        }
    }
}

impl Subject {
    /// The stages, the residual of the attention in the epilogue of its matmul where there is one, and their plan.
    fn planned(&self) -> (StageGraph, Plan) {
        let mut graph = samples::graph(&self.block);
        fuse_residual(&mut graph);
        let mut stages = std::collections::BTreeMap::new();
        for stage in &mut graph.stages {
            let schedule = self.schedules.of(&stage.op);
            stage.scheduled = schedule.is_some();
            stages.extend(schedule.map(|it| (stage.name.clone(), it)));
        }
        let plan = samples::plan("sample", "cpu", stages);
        (graph, plan)
    }
}

/// Moves an add behind a matmul into the matmul, as the pass does: no block is a matmul with a residual alone.
fn fuse_residual(graph: &mut StageGraph) {
    let Some(at) = graph.stages.iter().position(|it| matches!(it.op, StageOp::Add { .. })) else { return };
    let add = graph.stages.remove(at);
    let matmul = &mut graph.stages[at - 1];
    let StageOp::Matmul { residual, .. } = &mut matmul.op else { panic!("{:?} is no matmul", matmul.op) };
    *residual = true;
    assert_eq!(add.inputs[1], matmul.output);
    matmul.inputs.push(add.inputs[0]);
    matmul.output = add.output;
}

/// What a test tried.
#[derive(Default)]
struct Tried {
    accepted: usize,
    refused: usize,
    distinct: HashSet<String>,
    gates: usize,
}

/// Compiles and verifies a subject: the number of its gate results, all of them passed; `None` for an illegal schedule.
fn judge(subject: &Subject, cpu: &CpuFacts) -> Result<Option<usize>, TestCaseError> {
    let (graph, plan) = subject.planned();
    if graph.stages.iter().any(|it| constraint::resolve(&graph, it, &plan, &cpu.clone().into()).is_err()) {
        return Ok(None);
    }
    let fail = |it: Failure| TestCaseError::fail(format!("{it}\n{}", it.detail));
    let compiled = compile(&graph, &plan, cpu).map_err(fail)?;
    let verdict = verify(&Request {
        object: &compiled.object,
        kernel: &compiled.kernel,
        plan: &plan,
        block: &subject.block,
        device: &cpu.clone().into(),
        threads: subject.threads,
        seed: subject.seed,
        corpus: &[],
        // Judging the schedule at other shapes compiles it again: for some is enough.
        generated: subject.seed.is_multiple_of(4),
    })
    .map_err(fail)?;
    let failed: Vec<_> = verdict.gates.iter().filter(|it| it.status != GateStatus::Passed).collect();
    prop_assert!(verdict.accepted, "{failed:#?}");
    Ok(Some(verdict.gates.len()))
}

/// Every gate passes each of `cases` subjects.
fn all_are_accepted(name: &str, cases: u32, subjects: impl Strategy<Value = Subject>) {
    let (cpu, tried) = (CpuFacts::detect(), RefCell::new(Tried::default()));
    let config = ProptestConfig { source_file: Some(file!()), ..ProptestConfig::with_cases(cases) };
    let judged = TestRunner::new(config).run(&subjects, |subject| {
        let results = judge(&subject, &cpu)?;
        let mut tried = tried.borrow_mut();
        match results {
            Some(gates) => {
                tried.accepted += 1;
                tried.gates += gates;
                tried.distinct.insert(format!("{:?} {:?}", subject.block, subject.schedules));
            }
            None => tried.refused += 1,
        }
        Ok(())
    });
    if let Err(error) = judged {
        panic!("{name}: {error}");
    }
    let Tried { accepted, refused, distinct, gates } = tried.into_inner();
    println!(
        "{name}: {accepted} schedules accepted ({} distinct, {gates} gate results), {refused} illegal",
        distinct.len()
    );
    // A generator that mostly makes illegal or equal schedules would show nothing.
    assert!(refused * 10 <= accepted, "{refused} of {} are illegal", accepted + refused);
    assert!(distinct.len() * 10 >= accepted * 9, "{} of {accepted} are distinct", distinct.len());
}

/// Attention with the given heads, tokens and register tile.
fn attention_of(seq: usize, (heads, head_dim): (usize, usize), (mr, nr, lanes): (usize, usize, usize)) -> Subject {
    let attention = AttentionSpec {
        d_model: 3,
        heads,
        kv_heads: 1,
        head_dim,
        qkv_bias: false,
        out_bias: false,
        causal: true,
        rope_theta: 0.0,
    };
    let schedule = AttentionSchedule { row_block: mr, mr, nr, lanes, unroll: 1, pack_v: true, softmax_rows: mr.min(4) };
    Subject {
        block: BlockSpec::Attention { rows: RowsSpec { batch: 1, seq }, attention, dtype: samples::DTYPE },
        schedules: Schedules { attention: Some(schedule), ..Schedules::default() },
        threads: 1,
        seed: 1,
    }
}

/// The zeros behind a row's last visible key once went on to the end of a tile of 21 rows, into the next row's scores.
#[test]
fn a_row_tile_that_is_taller_than_the_rest_of_the_sequence_spares_the_next_row() {
    let cpu = CpuFacts::detect();
    let judged = judge(&attention_of(23, (1, 4), (21, 4, 4)), &cpu);
    // 21 accumulators need 23 registers.
    let legal = cpu.vector_registers >= 23;
    assert!(matches!(judged, Ok(accepted) if accepted.is_some() == legal), "{judged:?}");
}

/// Of the rows that V3 draws for itself, one of this seed's holds two equal elements around 2^30. It once was called undecided.
#[test]
fn a_drawn_row_that_cannot_be_judged_is_no_evidence() {
    let norm = NormSpec { kind: NormKind::LayerNorm, eps: 1e-5 };
    let rows = RowsSpec { batch: 3, seq: 1 };
    let subject = Subject {
        block: BlockSpec::LayerNorm { rows, d_model: 2, norm, dtype: samples::DTYPE },
        schedules: Schedules { norm: Some(NormSchedule { lanes: 1, unroll: 1 }), ..Schedules::default() },
        threads: 1,
        seed: 17_068_386_086_372_420_004,
    };
    let judged = judge(&subject, &CpuFacts::detect());
    assert!(matches!(judged, Ok(Some(_))), "{judged:?}");
}

/// The reference's scores of such heads once lay column by column, where no softmax was taken of their rows.
#[test]
fn attention_heads_of_one_column_are_accepted() {
    let judged = judge(&attention_of(3, (4, 1), (2, 4, 4)), &CpuFacts::detect());
    assert!(matches!(judged, Ok(Some(_))), "{judged:?}");
}

/// Sizes around a multiple of a tile: one, primes, one less, one more.
fn around(tile: usize, limit: usize) -> impl Strategy<Value = usize> {
    let edges = [1, tile.saturating_sub(1), tile, tile + 1, 2 * tile - 1, 2 * tile + 1, 3 * tile];
    let edges: Vec<usize> = edges.into_iter().filter(|it| (1..=limit).contains(it)).collect();
    let primes: Vec<usize> = [2, 3, 5, 7, 11, 13, 17, 23, 31, 37, 61].into_iter().filter(|it| *it <= limit).collect();
    prop_oneof![4 => select(edges), 1 => select(primes), 1 => 1..=limit]
}

fn lanes() -> impl Strategy<Value = usize> {
    let widest = CpuFacts::detect().lanes;
    select([1, 2, 4, 8, 16].into_iter().filter(|it| *it <= widest).collect::<Vec<_>>())
}

/// Rows and columns of a register tile that the registers hold: mr rows of v vectors, v for a row of B, one for A.
fn tiles() -> impl Strategy<Value = (usize, usize, usize)> {
    let registers = CpuFacts::detect().vector_registers;
    (lanes(), 1usize..=5).prop_flat_map(move |(lanes, vectors)| {
        let rows = ((registers - 1) / vectors).saturating_sub(1).clamp(1, 32);
        (1..=rows).prop_map(move |mr| (mr, vectors * lanes, lanes))
    })
}

fn matmul_with((mr, nr, lanes): (usize, usize, usize)) -> impl Strategy<Value = MatmulSchedule> {
    let blocks = (1usize..5, 1usize..4, 1usize..40, 1usize..=16);
    let order = select(vec![TileOrder::ColumnsOutside, TileOrder::RowsOutside]);
    let pack_b = select(vec![PackB::Ahead, PackB::During, PackB::Never]);
    let split = select(vec![Split::Rows, Split::Columns]);
    (blocks, order, any::<bool>(), pack_b, any::<bool>(), split).prop_map(
        move |((tall, wide, kc, unroll), order, pack_a, pack_b, prefetch, split)| MatmulSchedule {
            mr,
            nr,
            lanes,
            mc: tall * mr,
            nc: wide * nr,
            kc,
            unroll,
            dot: Dot::Fma,
            order,
            pack_a,
            pack_b,
            prefetch,
            split,
        },
    )
}

fn matmuls() -> impl Strategy<Value = MatmulSchedule> {
    tiles().prop_flat_map(matmul_with)
}

/// Both products have the same row tiles and lanes; the columns of a tile may differ, as far as the registers hold them.
fn mlps() -> impl Strategy<Value = MlpSchedule> {
    let registers = CpuFacts::detect().vector_registers;
    tiles().prop_flat_map(move |(mr, nr, lanes)| {
        let vectors = 1..=((registers - 1) / (mr + 1)).clamp(1, 5);
        let down = vectors.prop_flat_map(move |it| matmul_with((mr, it * lanes, lanes)));
        (matmul_with((mr, nr, lanes)), down, 1usize..4).prop_map(move |(up, down, blocks)| MlpSchedule {
            row_block: blocks * mr,
            up,
            down,
        })
    })
}

fn attentions() -> impl Strategy<Value = AttentionSchedule> {
    let knobs = (1usize..5, 1usize..=5, any::<bool>(), 1usize..=6);
    (tiles(), knobs).prop_map(|((mr, nr, lanes), (blocks, unroll, pack_v, together))| AttentionSchedule {
        row_block: blocks * mr,
        mr,
        nr,
        lanes,
        unroll,
        pack_v,
        softmax_rows: together.min(mr),
    })
}

fn norms() -> impl Strategy<Value = NormSchedule> {
    (lanes(), 1usize..=8).prop_map(|(lanes, unroll)| NormSchedule { lanes, unroll })
}

fn elementwise() -> impl Strategy<Value = ElementwiseSchedule> {
    (lanes(), 1usize..=8).prop_map(|(lanes, unroll)| ElementwiseSchedule { lanes, unroll })
}

fn norm_specs() -> impl Strategy<Value = NormSpec> {
    let kinds = vec![NormKind::LayerNorm, NormKind::RmsNorm];
    (select(kinds), select(vec![1e-5, 1e-6, 1e-12])).prop_map(|(kind, eps)| NormSpec { kind, eps })
}

/// One to three sequences of a length around `tile`.
fn rows_around(tile: usize, limit: usize) -> impl Strategy<Value = RowsSpec> {
    (1usize..=3, around(tile, limit)).prop_map(|(batch, seq)| RowsSpec { batch, seq })
}

fn subject(blocks: impl Strategy<Value = (BlockSpec, Schedules)>) -> impl Strategy<Value = Subject> {
    (blocks, 1usize..=2, any::<u64>()).prop_map(|((block, schedules), threads, seed)| Subject {
        block,
        schedules,
        threads,
        seed,
    })
}

#[test]
fn matmuls_of_any_legal_schedule_are_accepted() {
    let blocks = matmuls().prop_flat_map(|it| {
        let shape = (around(it.mr, 70), around(it.nr, 170), around(it.kc, 90));
        let activation = prop_oneof![Just(None), select(Activation::ALL.to_vec()).prop_map(Some)];
        (shape, any::<bool>(), any::<bool>(), activation).prop_map(move |((m, n, k), given, bias, activation)| {
            // Only a weight is packed ahead.
            let b = if given && it.pack_b != PackB::Ahead { OperandB::Input } else { OperandB::Weight };
            let block = BlockSpec::Matmul { m, n, k, b, bias, activation, dtype: samples::DTYPE };
            (block, Schedules { matmul: Some(it.clone()), ..Schedules::default() })
        })
    });
    all_are_accepted("matmul", 60, subject(blocks));
}

/// With tails of rows, of columns and of depth, of every type, on one thread and on two, of a weight and of an input.
#[test]
fn odd_products_whose_b_the_kernel_packs_are_accepted() {
    let cpu = CpuFacts::detect();
    let lanes = cpu.lanes;
    let schedule = MatmulSchedule {
        mr: 4,
        nr: 3 * lanes,
        lanes,
        mc: 64,
        nc: 6 * lanes,
        kc: 256,
        unroll: 2,
        dot: Dot::Fma,
        order: TileOrder::ColumnsOutside,
        pack_a: false,
        pack_b: PackB::During,
        prefetch: true,
        split: Split::Columns,
    };
    let shapes = [(127, 765, 768), (1, 100, 770), (130, 50, 301)];
    for (index, (m, n, k)) in shapes.into_iter().enumerate() {
        for dtype in Dtype::ALL {
            for (threads, b) in [(1, OperandB::Input), (2, OperandB::Weight), (2, OperandB::Input)] {
                let it = MatmulSchedule { pack_a: index == 1, ..schedule.clone() };
                let block = BlockSpec::Matmul { m, n, k, b, bias: false, activation: None, dtype };
                let schedules = Schedules { matmul: Some(it), ..Schedules::default() };
                let judged = judge(&Subject { block, schedules, threads, seed: 1 }, &cpu);
                assert!(matches!(judged, Ok(Some(_))), "{m}x{n}x{k} {dtype:?} {b:?}: {judged:?}");
            }
        }
    }
}

/// Heads in groups of one to three over one to three key/value heads, sequences around the row and the key tiles.
fn attention_blocks(
    it: AttentionSchedule,
    ropes: ElementwiseSchedule,
) -> impl Strategy<Value = (BlockSpec, Schedules)> {
    let tile = prop_oneof![Just(it.mr), Just(it.nr), Just(it.row_block)];
    let rows = tile.prop_flat_map(|tile| rows_around(tile, 70));
    let heads = (1usize..=3, 1usize..=3);
    let shape = (1usize..=9, heads, around(it.lanes, 40), prop_oneof![Just(0.0), Just(10_000.0)]);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (rows, shape, flags).prop_map(
        move |(rows, (d_model, (groups, kv_heads), head_dim, rope_theta), (qkv_bias, out_bias, causal))| {
            // A rotation turns pairs.
            let head_dim = if rope_theta == 0.0 { head_dim } else { head_dim.next_multiple_of(2) };
            let heads = groups * kv_heads;
            let attention =
                AttentionSpec { d_model, heads, kv_heads, head_dim, qkv_bias, out_bias, causal, rope_theta };
            let schedules =
                Schedules { attention: Some(it.clone()), elementwise: Some(ropes.clone()), ..Schedules::default() };
            (BlockSpec::Attention { rows, attention, dtype: samples::DTYPE }, schedules)
        },
    )
}

#[test]
fn attention_of_any_legal_schedule_is_accepted() {
    let blocks = (attentions(), elementwise()).prop_flat_map(|(it, ropes)| attention_blocks(it, ropes));
    all_are_accepted("attention", 60, subject(blocks));
}

#[test]
fn norms_of_any_legal_schedule_are_accepted() {
    let blocks = (norms(), norm_specs()).prop_flat_map(|(it, norm)| {
        let width = around(it.lanes * it.unroll, 300);
        (rows_around(4, 9), width).prop_map(move |(rows, d_model)| {
            let block = BlockSpec::LayerNorm { rows, d_model, norm, dtype: samples::DTYPE };
            (block, Schedules { norm: Some(it.clone()), ..Schedules::default() })
        })
    });
    all_are_accepted("norm", 100, subject(blocks));
}

fn mlp_blocks(it: MlpSchedule) -> impl Strategy<Value = (BlockSpec, Schedules)> {
    let tile = prop_oneof![Just(it.up.mr), Just(it.row_block)];
    let rows = tile.prop_flat_map(|tile| rows_around(tile, 40));
    let wide = prop_oneof![Just(it.down.nr), Just(it.up.kc)].prop_flat_map(|tile| around(tile, 70));
    let deep = prop_oneof![Just(it.up.nr), Just(it.down.kc)].prop_flat_map(|tile| around(tile, 90));
    let flags = (any::<bool>(), any::<bool>());
    (rows, wide, deep, flags, select(Activation::ALL.to_vec())).prop_map(
        move |(rows, d_model, d_ff, (gated, bias), activation)| {
            let mlp = MlpSpec { d_model, d_ff, activation, gated, bias };
            let block = BlockSpec::Mlp { rows, mlp, dtype: samples::DTYPE };
            (block, Schedules { mlp: Some(it.clone()), ..Schedules::default() })
        },
    )
}

#[test]
fn mlps_of_any_legal_schedule_are_accepted() {
    all_are_accepted("mlp", 60, subject(mlps().prop_flat_map(mlp_blocks)));
}

/// The only blocks whose matmul and MLP add a residual.
#[test]
fn transformers_of_any_legal_schedules_are_accepted() {
    let schedules = (matmuls(), attentions(), norms(), elementwise(), mlps());
    let blocks = (schedules, norm_specs()).prop_flat_map(|((matmul, attention, norm, elementwise, mlp), norm_spec)| {
        let blocks = (attention_blocks(attention, elementwise), mlp_blocks(mlp));
        blocks.prop_map(move |((attention, one), (mlp, other))| {
            let (BlockSpec::Attention { rows, attention, dtype }, BlockSpec::Mlp { mlp, .. }) = (attention, mlp) else {
                panic!("other blocks than asked for")
            };
            let mlp = MlpSpec { d_model: attention.d_model, ..mlp };
            let block = BlockSpec::Transformer { rows, attention, norm: norm_spec, mlp, dtype };
            let schedules = Schedules { matmul: Some(matmul.clone()), norm: Some(norm.clone()), mlp: other.mlp, ..one };
            (block, schedules)
        })
    });
    all_are_accepted("transformer", 12, subject(blocks));
}
