//! The references and the bounds of every kind of stage against 192-bit arithmetic, on random and adversarial inputs: the f64
//! reference is the exact result as far as the bound can tell; the correctly rounded result and naive f32 kernels, in any
//! order of summation and with or without subnormals, are never further away than the bound; and some kernel comes close
//! enough to it that the bound is worth having. Each test prints what it saw (`--nocapture`).

use super::{
    bounds::{self, Arithmetic, Precision},
    candidate::{Candidate, Tensors},
    coverage,
    inputs::Source,
    interpreter::{Interpreter, Order},
    precise,
    reference::{self, Detail, Operand},
};
use kernelforge::{
    half,
    manifest::spec::{Activation, Dtype},
    plan::stage::{Factor, Role, Stage, StageGraph, StageOp, Tensor, TensorId},
};
use proptest::{prelude::*, sample::select, test_runner::TestRunner};

/// How the numbers of one sum are drawn. Each stresses another rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Normal,
    /// No cancellation: the largest sums.
    Positive,
    /// One number again and again, no power of two: all roundings in one direction.
    Flat,
    /// Signs alternate, sizes hardly differ: sums near zero of terms near one.
    Alternating,
    /// The second half undoes the first: the exact sum is zero.
    Mirrored,
    /// A one, then terms that are each rounded away, times `Flat` too.
    Lost,
    /// The same, each term rounded up.
    Raised,
    /// One element a million times the others.
    Outlier,
    /// An offset of 1000, a deviation of 2^-10.
    NearConstant,
    /// Deviation 8: peaky logits.
    Wide,
    /// Around 2^20.
    Large,
    /// Around 2^50.
    Huge,
    /// Around 2^-65: products below the normal range.
    Tiny,
    /// Around the smallest normal number, on both sides.
    Least,
    /// Below the normal range.
    Subnormal,
    /// Exponents anywhere in -30..30.
    Mixed,
}

impl Family {
    const ALL: [Self; 16] = [
        Self::Normal,
        Self::Positive,
        Self::Flat,
        Self::Alternating,
        Self::Mirrored,
        Self::Lost,
        Self::Raised,
        Self::Outlier,
        Self::NearConstant,
        Self::Wide,
        Self::Large,
        Self::Huge,
        Self::Tiny,
        Self::Least,
        Self::Subnormal,
        Self::Mixed,
    ];

    /// Without magnitudes whose products of three leave the range of f32.
    fn moderate() -> Vec<Self> {
        Self::ALL.into_iter().filter(|it| *it != Self::Huge).collect()
    }

    fn draw(self, n: usize, source: &mut Source) -> Vec<f32> {
        let lost = 2f32.powi(-24);
        let mut row: Vec<f32> = (0..n)
            .map(|i| match self {
                Self::Normal | Self::Outlier | Self::Mirrored => source.normal(),
                Self::Positive => source.normal().abs() + 0.5,
                Self::Flat => 1.1,
                Self::Alternating => (if i % 2 == 0 { 1.0 } else { -1.0 }) * (1.0 + 1e-3 * source.normal()),
                Self::Lost => {
                    if i == 0 {
                        1.0
                    } else {
                        0.9 * lost
                    }
                }
                Self::Raised => {
                    if i == 0 {
                        1.0
                    } else {
                        1.01 * lost
                    }
                }
                Self::NearConstant => 1000.0 + 2f32.powi(-10) * source.normal(),
                Self::Wide => 8.0 * source.normal(),
                Self::Large => 2f32.powi(20) * source.normal(),
                Self::Huge => 2f32.powi(50) * source.normal(),
                Self::Tiny => 2f32.powi(-65) * source.normal(),
                Self::Least => f32::MIN_POSITIVE * 2.0 * source.normal(),
                Self::Subnormal => f32::MIN_POSITIVE * 0.25 * source.normal(),
                Self::Mixed => 2f32.powi(source.integer(30) as i32) * source.normal(),
            })
            .collect();
        match self {
            Self::Outlier => row[n / 2] *= 1e6,
            Self::Mirrored => (0..n / 2).for_each(|i| row[n - 1 - i] = -row[i]),
            _ => {}
        }
        row
    }
}

/// The shapes of a stage's operands, and whether sums run down their columns.
fn operands(op: &StageOp) -> Vec<(usize, usize, bool)> {
    let (rows, width) = coverage::output_shape(op);
    match *op {
        StageOp::Matmul { m, n, k, bias, residual, .. } => {
            let mut shapes = vec![(m, k, false), (k, n, true)];
            shapes.extend(bias.then_some((1, n, false)));
            shapes.extend(residual.then_some((m, n, false)));
            shapes
        }
        StageOp::Mlp { rows, d_model, d_ff, gated, bias, residual, .. } => {
            let mut shapes = vec![(rows, d_model, false)];
            let layers = [(d_model, d_ff), (d_model, d_ff), (d_ff, d_model)];
            for (k, n) in layers.into_iter().skip(usize::from(!gated)) {
                shapes.push((k, n, true));
                shapes.extend(bias.then_some((1, n, false)));
            }
            shapes.extend(residual.then_some((rows, d_model, false)));
            shapes
        }
        StageOp::Attention { kv_heads, head_dim, .. } => {
            vec![(rows, width, false), (rows, kv_heads * head_dim, false), (rows, kv_heads * head_dim, true)]
        }
        StageOp::LayerNorm { width, .. } => vec![(rows, width, false), (1, width, false), (1, width, false)],
        StageOp::RmsNorm { width, .. } => vec![(rows, width, false), (1, width, false)],
        StageOp::Rope { seq, head_dim, .. } => {
            vec![(rows, width, false), (seq, head_dim / 2, false), (seq, head_dim / 2, false)]
        }
        StageOp::Activation { .. } | StageOp::Scale { .. } => vec![(rows, width, false)],
        StageOp::Add { .. } | StageOp::Mul { .. } => vec![(rows, width, false); 2],
    }
}

/// Operands of `op`, drawn from one family each; operands beyond them are normal.
fn draw(op: &StageOp, families: &[Family], seed: u64) -> Vec<Vec<f32>> {
    let fill = |(position, (rows, columns, down)): (usize, (usize, usize, bool))| {
        let family = families.get(position).copied().unwrap_or(Family::Normal);
        let mut source = Source::new(seed, position as u64);
        if !down {
            return (0..rows).flat_map(|_| family.draw(columns, &mut source)).collect();
        }
        let drawn: Vec<Vec<f32>> = (0..columns).map(|_| family.draw(rows, &mut source)).collect();
        (0..rows * columns).map(|at| drawn[at % columns][at / columns]).collect()
    };
    operands(op).into_iter().enumerate().map(fill).collect()
}

/// The graph of one stage.
fn alone(op: &StageOp, dtype: Dtype) -> StageGraph {
    let output = coverage::output_shape(op);
    let shapes: Vec<(usize, usize)> = operands(op).into_iter().map(|(rows, columns, _)| (rows, columns)).collect();
    let tensor = |(index, (rows, columns)): (usize, (usize, usize))| Tensor {
        name: format!("t{index}"),
        shape: if rows == 1 { vec![columns] } else { vec![rows, columns] },
        dtype,
        role: if index == shapes.len() { Role::Output } else { Role::Input },
    };
    let tensors = shapes.iter().copied().chain([output]).enumerate().map(tensor).collect();
    let inputs = (0..shapes.len()).map(TensorId).collect();
    let output = TensorId(shapes.len());
    let stage = Stage { name: "stage".to_owned(), op: op.clone(), inputs, output, scheduled: true };
    StageGraph { block: "alone".to_owned(), tensors, stages: vec![stage] }
}

/// What one bound was held against.
#[derive(Debug, Default)]
struct Seen {
    cases: usize,
    elements: usize,
    /// Elements with a bound that decides; the verifier accepts nothing on the others.
    decided: usize,
    /// Largest error / bound of a kernel where the bound is more than what the smallest numbers lose: a kernel that flushes
    /// those comes close to any bound.
    worst: f64,
    /// Largest error / bound of the f64 reference.
    reference: f64,
}

impl Seen {
    fn judge(
        &mut self,
        op: &StageOp,
        data: &[Vec<f32>],
        precision: Precision,
        what: &dyn std::fmt::Debug,
    ) -> Result<(), TestCaseError> {
        let Precision { arithmetic, storage } = precision;
        let stored = |it: &Vec<f32>| it.iter().map(|it| half::nearest(storage, *it)).collect::<Vec<f32>>();
        let data: &[Vec<f32>] = &data.iter().map(stored).collect::<Vec<_>>();
        // What rounding to the type made infinite says nothing.
        if data.iter().flatten().any(|it| !it.is_finite()) {
            return Ok(());
        }
        let inputs: Vec<&[f32]> = data.iter().map(Vec::as_slice).collect();
        let operands: Vec<Operand> = inputs.iter().map(|it| Operand::F32(it)).collect();
        let rows: Vec<usize> = (0..coverage::output_shape(op).0).collect();
        let exact = precise::evaluate(op, &inputs);
        let reference = reference::evaluate(op, &operands, &rows, Detail::Bound, precision);
        let mut kernels = vec![(
            "rounded",
            exact.iter().map(|it| half::nearest(storage, precise::nearest(it))).collect::<Vec<f32>>(),
        )];
        for order in Order::ALL {
            let mut naive = Interpreter::new(alone(op, storage), order, None).with(arithmetic);
            data.iter().enumerate().for_each(|(at, it)| naive.tensor_mut(TensorId(at)).copy_from_slice(it));
            naive.stage(0);
            kernels.push((order.name(), naive.tensor(TensorId(data.len())).to_vec()));
        }
        self.cases += 1;
        for (at, exact) in exact.iter().enumerate() {
            self.elements += 1;
            let at_element = [at / reference.value.ncols(), at % reference.value.ncols()];
            let (value, bound) = (reference.value[at_element], reference.bound[at_element]);
            if !bound.is_finite() || value.abs() + bound > f64::from(storage.max()) {
                continue;
            }
            self.decided += 1;
            let off = precise::distance(value, exact);
            prop_assert!(
                off <= REFERENCE_SHARE * bound,
                "{op:?} {what:?} {at_element:?}: the reference {value:e} is off by {off:e}, bound {bound:e}"
            );
            self.reference = self.reference.max(if off == 0.0 { 0.0 } else { off / bound });
            for (kernel, output) in &kernels {
                let error = (f64::from(output[at]) - value).abs();
                prop_assert!(
                    error <= bound,
                    "{op:?} {what:?} {at_element:?}, {kernel}: {:e} for {value:e} is off by {error:e}, bound {bound:e}",
                    output[at]
                );
                if bound > LEAST_TELLING.max(if storage == Dtype::F16 { 1e-6 } else { 0.0 }) {
                    self.worst = self.worst.max(error / bound);
                }
            }
        }
        Ok(())
    }
}

/// A bound of this size has room for a million results below the normal range.
const LEAST_TELLING: f64 = 1e6 * bounds::ETA;

/// The f64 reference's own error, which bounds do not count, may be no more of a bound than this.
const REFERENCE_SHARE: f64 = 1e-3;

/// Holds the bound of `ops` against every pair of `families` in its first two operands (`fixed` gives those after them), and
/// against random shapes, families and numbers. At least one error must be a `factor`-th of its bound or more.
#[track_caller]
fn hold(name: &str, ops: &[StageOp], families: &[Family], factor: f64) {
    hold_in(name, ops, families, factor, Precision::cpu(Dtype::F32));
}

#[track_caller]
fn hold_in(name: &str, ops: &[StageOp], families: &[Family], factor: f64, precision: Precision) {
    let mut seen = Seen::default();
    for (index, op) in ops.iter().enumerate() {
        let second = if operands(op).len() > 1 { families } else { &families[..1] };
        for first in families {
            for second in second {
                // The scores decide what the values are multiplied by, so queries and keys are of one kind.
                let case = match op {
                    StageOp::Attention { .. } => vec![*first, *first, *second],
                    _ => vec![*first, *second],
                };
                if let Err(error) = seen.judge(op, &draw(op, &case, index as u64), precision, &case) {
                    panic!("{name}: {error}");
                }
            }
        }
    }
    let (systematic_cases, worst) = (seen.cases, seen.worst);
    let all = proptest::collection::vec(select(families.to_vec()), 8);
    let random = (select(ops.to_vec()), all, any::<u64>());
    let seen = std::cell::RefCell::new(seen);
    let config = ProptestConfig { source_file: Some(file!()), ..ProptestConfig::with_cases(RANDOM_CASES) };
    let found = TestRunner::new(config).run(&random, |(op, families, seed)| {
        seen.borrow_mut().judge(&op, &draw(&op, &families, seed), precision, &families)
    });
    if let Err(error) = found {
        panic!("{name}: {error}");
    }
    let Seen { cases, elements, decided, reference, .. } = seen.into_inner();
    println!(
        "{name:<22} {systematic_cases:>5} + {:>3} cases {elements:>7} elements {decided:>7} decided; largest error / bound {worst:.3} \
         (needs {:.3}), reference {reference:.1e}",
        cases - systematic_cases,
        1.0 / factor
    );
    assert!(decided * 2 > elements, "{name}: only {decided} of {elements} bounds decide");
    // Of the systematic cases alone: what random ones find is different in every run.
    assert!(worst >= 1.0 / factor, "{name}: no error comes closer than {worst:.1e} of its bound");
}

const RANDOM_CASES: u32 = 64;

fn matmul(m: usize, n: usize, k: usize) -> StageOp {
    StageOp::Matmul { m, n, k, bias: false, activation: None, residual: false }
}

#[test]
fn products_are_within_their_bound() {
    hold("product", &[matmul(1, 1, 1), matmul(2, 2, 3), matmul(2, 1, 50), matmul(1, 1, 1000)], &Family::ALL, 1.3);
    let long = [Family::Normal, Family::Flat, Family::Alternating, Family::Lost, Family::Raised];
    hold("long product", &[matmul(1, 1, 10_000)], &long, 1.3);
}

#[test]
fn products_with_bias_activation_and_residual_are_within_their_bound() {
    let with = |k, bias, activation, residual| StageOp::Matmul { m: 2, n: 2, k, bias, activation, residual };
    hold("product, bias", &[with(3, true, None, false), with(40, true, None, true)], &Family::ALL, 1.7);
    let activated = Activation::ALL.map(|it| with(9, true, Some(it), true));
    hold("product, activation", &activated, &Family::ALL, 3.0);
}

#[test]
fn activations_are_within_their_bound() {
    // ReLU has no error, and its bound is zero.
    for (function, factor) in Activation::ALL.into_iter().zip([10.0, 10.0, 6.0, f64::INFINITY]) {
        let op = |width| StageOp::Activation { rows: 1, width, function };
        hold(function.name(), &[op(1), op(40)], &Family::ALL, factor);
    }
}

#[test]
fn attention_is_within_its_bound() {
    let attention = |seq, (heads, kv_heads), head_dim, causal| StageOp::Attention {
        batch: 1,
        seq,
        heads,
        kv_heads,
        head_dim,
        causal,
        scale: 1.0 / (head_dim as f64).sqrt(),
    };
    let ops = [
        attention(1, (1, 1), 1, false),
        attention(3, (2, 1), 1, true),
        attention(5, (1, 1), 5, true),
        attention(10, (1, 1), 2, false),
    ];
    let dull = [Family::Positive, Family::Mirrored, Family::Raised, Family::Subnormal];
    let families: Vec<Family> = Family::ALL.into_iter().filter(|it| !dull.contains(it)).collect();
    hold("attention", &ops, &families, 5.0);
}

#[test]
fn norms_are_within_their_bounds() {
    for (eps, factor) in [(1e-5, 2.5), (1e-12, 6.0)] {
        let layer = |rows, width| StageOp::LayerNorm { rows, width, eps };
        let rms = |rows, width| StageOp::RmsNorm { rows, width, eps };
        hold("layer norm", &[layer(2, 1), layer(2, 2), layer(2, 7), layer(1, 100)], &Family::ALL, 2.0);
        hold("RMS norm", &[rms(2, 1), rms(2, 2), rms(2, 7), rms(1, 100)], &Family::ALL, factor);
    }
}

#[test]
fn fused_mlps_are_within_their_bound() {
    let mlp = |d_model, d_ff, activation, gated| StageOp::Mlp {
        rows: 1,
        d_model,
        d_ff,
        activation,
        gated,
        bias: true,
        residual: true,
    };
    let ops = |gated| {
        let mut ops = Activation::ALL.map(|it| mlp(2, 3, it, gated)).to_vec();
        ops.push(mlp(1, 1, Activation::Relu, gated));
        ops
    };
    hold("MLP", &ops(false), &Family::moderate(), 3.5);
    hold("gated MLP", &ops(true), &Family::moderate(), 5.0);
}

#[test]
fn elementwise_results_are_within_their_bounds() {
    let rope = |seq, heads, head_dim| StageOp::Rope { batch: 2, seq, heads, head_dim };
    hold("rotation", &[rope(1, 1, 2), rope(3, 2, 6)], &Family::ALL, 2.2);
    hold("sum", &[StageOp::Add { rows: 1, width: 1 }, StageOp::Add { rows: 2, width: 30 }], &Family::ALL, 1.2);
    hold("factors", &[StageOp::Mul { rows: 1, width: 1 }, StageOp::Mul { rows: 2, width: 30 }], &Family::ALL, 1.2);
    let scale = |factor| StageOp::Scale { rows: 2, width: 30, factor };
    let constants: Vec<_> = [0.3, 1.0, 1e-3, 1e3].into_iter().map(|it| scale(Factor::Value(it))).collect();
    hold("scale", &constants, &Family::ALL, 1.4);
    let roots: Vec<_> = [1.0, 3.0, 64.0, 100.0].into_iter().map(|it| scale(Factor::InverseSqrt(it))).collect();
    hold("scale by a root", &roots, &Family::ALL, 4.0);
}

/// Stored in 16 bits, by the arithmetic of a CPU and by one that rounds softmax weights and hidden rows to the same type and takes
/// what is below the normal range for zero.
#[test]
fn results_stored_in_16_bits_are_within_their_bounds() {
    let half = [Family::Normal, Family::Positive, Family::Flat, Family::Alternating, Family::Mirrored, Family::Wide];
    let small = [Family::Normal, Family::Tiny, Family::Subnormal];
    let (families, rope) = ([&half[..], &small].concat(), StageOp::Rope { batch: 2, seq: 3, heads: 2, head_dim: 6 });
    let loose = Arithmetic { probabilities: Dtype::F16, hidden: Dtype::F16, flushes: true, ..Arithmetic::cpu() };
    let attention = |seq, causal| StageOp::Attention {
        batch: 1,
        seq,
        heads: 2,
        kv_heads: 1,
        head_dim: 5,
        causal,
        scale: 5f64.sqrt().recip(),
    };
    let mlp = |activation, gated| StageOp::Mlp {
        rows: 1,
        d_model: 7,
        d_ff: 20,
        activation,
        gated,
        bias: true,
        residual: true,
    };
    let mlps: Vec<_> = Activation::ALL.iter().flat_map(|&it| [mlp(it, false), mlp(it, true)]).collect();
    let (layer, rms) =
        (StageOp::LayerNorm { rows: 2, width: 9, eps: 1e-5 }, StageOp::RmsNorm { rows: 2, width: 9, eps: 1e-5 });
    let activated =
        StageOp::Matmul { m: 2, n: 2, k: 9, bias: true, activation: Some(Activation::Gelu), residual: true };
    let brain = Arithmetic { hidden: Dtype::Bf16, ..loose };
    for (storage, arithmetic) in [
        (Dtype::F16, Arithmetic::cpu()),
        (Dtype::F16, loose),
        (Dtype::Bf16, Arithmetic::cpu()),
        (Dtype::Bf16, Arithmetic { probabilities: Dtype::Bf16, ..brain }),
    ] {
        let (precision, name) = (Precision { arithmetic, storage }, |what: &str| format!("{} {what}", storage.name()));
        let products = [matmul(2, 2, 3), matmul(1, 1, 1000), activated.clone()];
        hold_in(&name("product"), &products, &families, 1.5, precision);
        hold_in(&name("attention"), &[attention(3, true), attention(11, false)], &families, 5.0, precision);
        hold_in(&name("norms"), &[layer.clone(), rms.clone()], &families, 2.0, precision);
        hold_in(&name("MLPs"), &mlps, &families, 3.5, precision);
        let elementwise = [rope.clone(), StageOp::Mul { rows: 2, width: 30 }];
        hold_in(&name("elementwise"), &elementwise, &families, 1.5, precision);
    }
}

/// One stage with given operands.
#[track_caller]
fn holds(op: &StageOp, data: &[Vec<f32>]) {
    let mut seen = Seen::default();
    if let Err(error) = seen.judge(op, data, Precision::cpu(Dtype::F32), &"given operands") {
        panic!("{error}");
    }
    assert_eq!(seen.decided, seen.elements, "{op:?}: not every bound decides");
}

/// Each key's weight times its value is half of the smallest normal number: hardware that flushes loses all of them.
#[test]
fn weighted_values_may_all_vanish() {
    let (seq, least) = (65, f32::MIN_POSITIVE);
    let op = StageOp::Attention { batch: 1, seq, heads: 1, kv_heads: 1, head_dim: 1, causal: false, scale: 1.0 };
    let first_and = |first: f32, others: f32| {
        let mut row = vec![others; seq];
        row[0] = first;
        row
    };
    // exp(-14.6) = 2^-21.06.
    holds(&op, &[vec![1.0; seq], first_and(0.0, -14.6), first_and(0.0, 2f32.powi(20) * least)]);
}

#[test]
fn normalised_elements_may_vanish_before_a_large_gain() {
    let (small, gain) = (1.1 * f32::MIN_POSITIVE, vec![1000.0; 4]);
    let op = StageOp::RmsNorm { rows: 1, width: 4, eps: 1e-5 };
    holds(&op, &[vec![4.0, small, -small, 3.0], gain.clone()]);
    // The mean, and each deviation from it.
    let op = StageOp::LayerNorm { rows: 1, width: 4, eps: 1e-12 };
    holds(&op, &[vec![small; 4], gain.clone(), vec![0.0; 4]]);
    holds(&op, &[vec![small, 0.9 * small, 1.1 * small, small], gain, vec![0.0; 4]]);
}

/// A row of one element is its own mean, however large.
#[test]
fn a_row_of_one_large_element_can_be_judged() {
    holds(&StageOp::LayerNorm { rows: 2, width: 1, eps: 1e-12 }, &[vec![2f32.powi(30), -3e20], vec![1.5], vec![0.25]]);
}

/// Scores of heads of one column: a matrix product that may come back column by column.
#[test]
fn heads_of_one_column_have_a_softmax_too() {
    let op = StageOp::Attention { batch: 2, seq: 3, heads: 4, kv_heads: 2, head_dim: 1, causal: false, scale: 1.0 };
    holds(&op, &draw(&op, &[Family::Normal; 3], 4));
}
