//! The verifier is itself verified: right kernels pass every gate, and each wrong one is rejected by a gate that names it.

use super::{
    bounds::Arithmetic,
    examine, gates,
    interpreter::{Interpreter, Order, Wrong},
    samples::{self, gpt, llama},
};
use kernelforge::{
    manifest::spec::{Activation, BlockSpec, Dtype, MlpSpec, RowsSpec},
    plan::stage::{StageGraph, StageOp},
    protocol::{Gate, GateResult, GateStatus, corpus::Case},
};

fn failures(block: &BlockSpec, graph: StageGraph, order: Order, wrong: Option<Wrong>, seed: u64) -> Vec<GateResult> {
    let (mut results, _) = examine(&mut Interpreter::new(graph, order, wrong), block, seed);
    results.retain(|it| it.status != GateStatus::Passed);
    results
}

fn describe(results: &[GateResult]) -> String {
    let line = |it: &GateResult| format!("{:?} {:?} {} {:?}: {}\n", it.gate, it.stage, it.case, it.status, it.message);
    results.iter().map(line).collect()
}

#[test]
fn right_kernels_of_every_kind_pass_whatever_their_order_of_summation() {
    for (index, block) in samples::all().iter().enumerate() {
        for order in Order::ALL {
            let failed = failures(block, samples::graph(block), order, None, 10 * index as u64 + order as u64);
            assert!(failed.is_empty(), "{block:?} {order:?}\n{}", describe(&failed));
        }
    }
}

#[test]
fn right_kernels_of_every_kind_pass_in_16_bits_too() {
    for dtype in [Dtype::F16, Dtype::Bf16] {
        for (index, block) in samples::all().iter().map(|it| samples::stored(it, dtype)).enumerate() {
            for order in Order::ALL {
                let failed = failures(&block, samples::graph(&block), order, None, 10 * index as u64 + order as u64);
                assert!(failed.is_empty(), "{block:?} {order:?}\n{}", describe(&failed));
            }
        }
    }
}

/// What a GPU may do: softmax weights and hidden rows of half precision, operands below the normal range taken for zero.
#[test]
fn right_kernels_of_a_looser_arithmetic_pass_by_its_own_bounds() {
    let loose = Arithmetic { probabilities: Dtype::F16, hidden: Dtype::F16, flushes: true, ..Arithmetic::cpu() };
    for (index, block) in samples::all().iter().map(samples::halved).enumerate() {
        let mut candidate = Interpreter::new(samples::graph(&block), Order::Flushing, None).with(loose);
        let (mut results, _) = examine(&mut candidate, &block, 30 + index as u64);
        results.retain(|it| it.status != GateStatus::Passed);
        assert!(results.is_empty(), "{block:?}\n{}", describe(&results));
    }
}

/// In 16 bits too, every wrong kernel is rejected.
#[test]
fn every_wrong_kernel_is_rejected_in_16_bits_too() {
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let blocks = [samples::stored(&gpt(), dtype), samples::stored(&llama(), dtype)];
        for wrong in Wrong::ALL {
            // One part in 2^20 is 1 of 512 of what storing the result as f16 may be off by. And sums in another order differ in the
            // last bits of an f32, of which 16 are no part of a bf16.
            if wrong == Wrong::ScaleSlightlyOff || dtype == Dtype::Bf16 && wrong == Wrong::LastRowInAnotherOrder {
                continue;
            }
            let found: Vec<Gate> = blocks.iter().flat_map(|block| rejecting(block, wrong)).collect();
            assert!(!found.is_empty(), "{wrong:?} is accepted in {dtype:?}");
        }
    }
}

/// The gates that reject `wrong` in `block`.
fn rejecting(block: &BlockSpec, wrong: Wrong) -> Vec<Gate> {
    let mut gates: Vec<Gate> =
        failures(block, samples::graph(block), Order::Forward, Some(wrong), 7).iter().map(|it| it.gate).collect();
    gates.dedup();
    gates
}

#[test]
fn every_wrong_kernel_is_rejected_by_the_gates_meant_for_it() {
    use Gate::{
        V1Exactness as Exact, V2Bound as Bound, V3ErrorRatio as Ratio, V4Memory as Memory, V6Relations as Relations,
    };
    let expected = |wrong| match wrong {
        Wrong::StaleWorkspace | Wrong::InputModified | Wrong::BlockDiffers | Wrong::ReadsOutput => Memory,
        Wrong::LastRowSkipped | Wrong::UniformAttention | Wrong::NoMaxSubtraction => Bound,
        Wrong::UntransposedKeys | Wrong::MaskLate | Wrong::KvHeadByRemainder | Wrong::FewerTerms => Exact,
        Wrong::HalfPrecision | Wrong::TanhForErf => Exact,
        Wrong::ScaleSlightlyOff => Ratio,
        Wrong::LastRowInAnotherOrder => Relations,
        _ => Bound,
    };
    for wrong in Wrong::ALL {
        let found: Vec<Gate> = [gpt(), llama()].iter().flat_map(|block| rejecting(block, wrong)).collect();
        println!("{wrong:?}: {found:?}");
        assert!(found.contains(&expected(wrong)), "{wrong:?} is rejected by {found:?} only");
    }
}

#[test]
fn what_a_bound_lets_through_is_seen_in_the_errors_of_many_elements_and_between_runs() {
    let block = samples::gpt();
    assert_eq!(rejecting(&block, Wrong::ScaleSlightlyOff), [Gate::V3ErrorRatio]);
    assert_eq!(rejecting(&block, Wrong::LastRowInAnotherOrder), [Gate::V6Relations]);
}

/// The bound for any row allows the mean the rounding of a sum of 128 terms, and rows of one value have sums of few bits.
#[test]
fn a_mean_that_is_off_by_less_than_a_sum_may_be_is_seen_on_rows_that_hardly_vary() {
    for dtype in [Dtype::F32, Dtype::F16] {
        let rows = RowsSpec { batch: 1, seq: 9 };
        let block = BlockSpec::LayerNorm { rows, d_model: 128, norm: samples::LAYER_NORM, dtype };
        let failed = failures(&block, samples::graph(&block), Order::Forward, Some(Wrong::MeanFromDividend), 7);
        assert!(failed.iter().any(|it| it.case == "rows that hardly vary"), "{dtype:?}\n{}", describe(&failed));
    }
}

#[test]
fn a_mask_that_is_off_by_one_lets_later_tokens_through() {
    assert!(rejecting(&samples::gpt(), Wrong::MaskLate).contains(&Gate::V6Relations));
    assert!(rejecting(&samples::llama(), Wrong::KvHeadByRemainder).contains(&Gate::V6Relations));
}

/// What is replayed is what was found: the seed, the regime and the stage.
#[test]
fn a_case_of_the_corpus_is_replayed_with_its_seed() {
    let block = samples::gpt();
    let case = |gate, case: &str| Case {
        gate,
        op: "attention".to_owned(),
        case: case.to_owned(),
        seed: 11,
        found: "block/mutant".to_owned(),
    };
    let corpus = [
        case(Gate::V2Bound, "peaky"),
        case(Gate::V3ErrorRatio, "normal"),
        case(Gate::V6Relations, "other later tokens"),
        case(Gate::V1Exactness, "one-hot attention"),
        Case { op: "rope".to_owned(), ..case(Gate::V2Bound, "peaky") },
    ];
    let replay = |wrong| {
        let mut candidate = Interpreter::new(samples::graph(&block), Order::Forward, wrong);
        gates::regression::replay(&mut candidate, &block, &corpus)
    };
    let right = replay(None);
    assert!(right.iter().all(|it| it.status == GateStatus::Passed), "{}", describe(&right));
    // One for each case of a stage that the block has.
    assert_eq!(right.len(), 4, "{}", describe(&right));
    assert!(right[0].case.contains("with seed 11"), "{}", describe(&right));
    let failed = replay(Some(Wrong::NoMaxSubtraction));
    assert!(
        failed.iter().any(|it| it.gate == Gate::V2Bound && it.status == GateStatus::Failed),
        "{}",
        describe(&failed)
    );
}

#[test]
fn what_a_wide_bound_would_let_through_is_seen_on_exact_inputs() {
    let (rows, dtype) = (RowsSpec { batch: 1, seq: 3 }, samples::DTYPE);
    let mlp = MlpSpec { d_model: 400, d_ff: 900, activation: Activation::Gelu, gated: false, bias: true };
    let gated = MlpSpec { gated: true, bias: false, ..mlp };
    let activation = Some(Activation::Gelu);
    let matmul = BlockSpec::Matmul { m: 3, n: 300, k: 800, b: Default::default(), bias: true, activation, dtype };
    for block in [matmul, BlockSpec::Mlp { rows, mlp, dtype }, BlockSpec::Mlp { rows, mlp: gated, dtype }] {
        for wrong in [Wrong::TanhForErf, Wrong::HalfPrecision, Wrong::FewerTerms] {
            let found = rejecting(&block, wrong);
            assert!(found.contains(&Gate::V1Exactness), "{wrong:?} is rejected by {found:?} only: {block:?}");
        }
    }
}

/// Applies `change` to each stage's op and says whether the meaning gate alone sees it: the candidate computes faithfully
/// what the changed stages say.
#[track_caller]
fn changed_meaning(block: &BlockSpec, change: impl Fn(&mut StageOp)) {
    let mut graph = samples::graph(block);
    graph.stages.iter_mut().for_each(|it| change(&mut it.op));
    assert_ne!(graph, samples::graph(block), "the change changes nothing");
    let failed = failures(block, graph, Order::Forward, None, 3);
    let gates: Vec<Gate> = failed.iter().map(|it| it.gate).collect();
    assert!(!gates.is_empty() && gates.iter().all(|&it| it == Gate::V2Meaning), "{}", describe(&failed));
}

#[test]
fn stages_with_another_epsilon_do_not_mean_the_block() {
    for block in [gpt(), llama()] {
        changed_meaning(&block, |op| {
            if let StageOp::LayerNorm { eps, .. } | StageOp::RmsNorm { eps, .. } = op {
                *eps *= 10.0;
            }
        });
    }
}

#[test]
fn stages_with_an_epsilon_rounded_to_f32_do_not_mean_the_block() {
    changed_meaning(&gpt(), |op| {
        if let StageOp::LayerNorm { eps, .. } = op {
            *eps = f64::from(*eps as f32);
        }
    });
}

#[test]
fn stages_with_the_tanh_gelu_do_not_mean_the_erf_gelu() {
    changed_meaning(&gpt(), |op| {
        if let StageOp::Mlp { activation, .. } = op {
            *activation = Activation::GeluTanh;
        }
    });
}

#[test]
fn stages_without_the_scale_or_with_a_neighbouring_one_do_not_mean_the_block() {
    for factor in [4.0, (16f64 / 17.0).sqrt(), (16f64 / 15.0).sqrt()] {
        changed_meaning(&gpt(), |op| {
            if let StageOp::Attention { scale, .. } = op {
                *scale *= factor;
            }
        });
    }
}

#[test]
fn stages_without_the_mask_do_not_mean_the_block() {
    changed_meaning(&gpt(), |op| {
        if let StageOp::Attention { causal, .. } = op {
            *causal = false;
        }
    });
}

#[test]
fn a_residual_that_adds_the_branch_to_itself_does_not_mean_the_block() {
    let mut graph = samples::graph(&gpt());
    let residual = graph.stages.iter_mut().find(|it| it.name == "attn.residual").unwrap();
    residual.inputs[0] = residual.inputs[1];
    let failed = failures(&gpt(), graph, Order::Forward, None, 3);
    assert!(!failed.is_empty() && failed.iter().all(|it| it.gate == Gate::V2Meaning), "{}", describe(&failed));
}

#[test]
fn a_tensor_that_the_block_needs_and_the_stages_lack_is_named() {
    let mut graph = samples::graph(&gpt());
    graph.tensors.iter_mut().filter(|it| it.name == "attn.bq").for_each(|it| it.name = "attn.bias".to_owned());
    let failed = failures(&gpt(), graph, Order::Forward, None, 3);
    assert_eq!(failed[0].message, "the stages have no tensor `attn.bq`, which the block needs");
}
