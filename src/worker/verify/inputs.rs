//! Seeded tensors: weights and inputs of a whole block, and the input regimes of single stages. Everything that runs a
//! kernel without a user's tensors fills it here, so that timed, verified and printed runs see the same distributions.

use super::{
    bounds::{Arithmetic, Precision},
    candidate::Tensors,
};
use kernelforge::{
    half,
    manifest::spec::{BlockSpec, Dtype},
    plan::stage::{Role, Stage, StageOp, TensorId},
};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// Kinds of activations that a stage is given. Each stresses another term of the bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Regime {
    /// What the stages before it computed from a standard normal `x`.
    Normal,
    /// Rows that hardly vary: layer-norm variance close to epsilon, uniform attention.
    NearConstant,
    /// Rows around zero with a variance of epsilon: what it is shows in every element, and no mean hides it.
    NearEpsilon,
    /// Logits far apart, rows ruled by few elements.
    Peaky,
    /// Magnitudes around 2^30; of f16 what keeps results below 65504 (see `Sizes`). The range of bf16 is that of f32.
    Large,
    /// Magnitudes around 2^-30; of f16 around 2^-10.
    Small,
    /// Numbers below the normal range: whole rows for what works row by row, one in each row for products, whose time
    /// many of them would multiply.
    Subnormal,
    /// Equal logits far below zero: without the maximum subtracted, and with one that starts at zero, no weight is left.
    Sunk,
}

impl Regime {
    /// The regimes that a stage is given beside what it receives in the block.
    pub const SYNTHETIC: [Self; 7] =
        [Self::NearConstant, Self::NearEpsilon, Self::Peaky, Self::Large, Self::Small, Self::Subnormal, Self::Sunk];

    /// The seed of this regime's tensors in a verification of this seed.
    pub fn seed(self, seed: u64) -> u64 {
        let lane = Self::SYNTHETIC.iter().position(|it| *it == self).map_or(0, |it| it as u64 + 1);
        seed.wrapping_add(lane)
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::SYNTHETIC.into_iter().chain([Self::Normal]).find(|it| it.name() == name)
    }

    /// Whether the regime is one for this kind of stage. Where a candidate may take what is below the normal range for zero, a
    /// norm of rows of such numbers with an epsilon smaller than their squares may return anything: 2^-14 squared is 2^-28 for
    /// f16, with room for how the errors of a variance add up 2^-24. For f32 that is no epsilon.
    pub fn applies(self, op: &StageOp, precision: Precision) -> bool {
        let Precision { arithmetic, storage } = precision;
        let lost = |eps: f64| arithmetic.flushes && eps < 16.0 * f64::from(storage.min_positive()).powi(2);
        match (self, op) {
            (Self::NearEpsilon | Self::Subnormal, &(StageOp::LayerNorm { eps, .. } | StageOp::RmsNorm { eps, .. }))
            | (Self::NearConstant, &StageOp::RmsNorm { eps, .. })
                if lost(eps) =>
            {
                return false;
            }
            _ => {}
        }
        match self {
            Self::Sunk => matches!(op, StageOp::Attention { .. }),
            Self::NearEpsilon => matches!(op, StageOp::LayerNorm { .. } | StageOp::RmsNorm { .. }),
            _ => true,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::NearConstant => "near-constant rows",
            Self::NearEpsilon => "variance near epsilon",
            Self::Peaky => "peaky",
            Self::Large => "large magnitudes",
            Self::Small => "small magnitudes",
            Self::Subnormal => "subnormal numbers",
            Self::Sunk => "logits far below zero",
        }
    }
}

/// A reproducible stream of numbers. Streams with different `lane`s are independent.
pub struct Source(Pcg64Mcg);

impl Source {
    pub fn new(seed: u64, lane: u64) -> Self {
        Self(Pcg64Mcg::seed_from_u64(seed ^ lane.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// Mean 0, variance 1, close to normal: the sum of four uniforms. One draw of 64 bits; Box-Muller costs ten times as
    /// much, which for the 218 million weights of a Llama-3-8B block is seconds.
    pub fn normal(&mut self) -> f32 {
        let bits = self.0.next_u64();
        let sum = (0..4).map(|it| ((bits >> (16 * it)) & 0xffff) as u32).sum::<u32>();
        // The sum of four uniforms on 0..=65535 has mean 131070 and standard deviation 65536 / sqrt(3).
        (sum as f32 - 131_070.0) * (1.732_050_8 / 65_536.0)
    }

    /// A whole number of -limit..=limit.
    pub fn integer(&mut self, limit: u32) -> f32 {
        (self.below(2 * limit as usize + 1) as i64 - i64::from(limit)) as f32
    }

    /// An index of 0..bound; `bound` is at most 2^32.
    pub fn below(&mut self, bound: usize) -> usize {
        (((self.0.next_u64() >> 32) * bound as u64) >> 32) as usize
    }

    /// -1 or 1.
    pub fn sign(&mut self) -> f32 {
        if self.0.next_u64() >> 63 == 0 { 1.0 } else { -1.0 }
    }
}

/// The base of the block's rotary embedding, 0 where there is none.
pub fn rope_theta(block: &BlockSpec) -> f64 {
    match block {
        BlockSpec::Transformer { attention, .. }
        | BlockSpec::TransformerMicroblock { attention, .. }
        | BlockSpec::Attention { attention, .. } => attention.rope_theta,
        BlockSpec::Microblock { .. }
        | BlockSpec::Mlp { .. }
        | BlockSpec::Matmul { .. }
        | BlockSpec::LayerNorm { .. } => 0.0,
    }
}

/// One rotary table [seq, half], `half` = head_dim / 2: element (p, i) is f(p theta^(-i / half)), evaluated in f64 and
/// rounded once.
pub fn rope_table(table: &mut [f32], half: usize, theta: f64, f: fn(f64) -> f64) {
    for (position, row) in table.chunks_exact_mut(half).enumerate() {
        for (i, it) in row.iter_mut().enumerate() {
            *it = f(position as f64 * theta.powf(-(i as f64) / half as f64)) as f32;
        }
    }
}

/// Fills every input and weight of the graph: `x` standard normal, matrices normal with variance 1/K so that activations
/// keep their size, gains around 1, biases large enough that a dropped one is seen, rotary tables of base `rope_theta`.
pub fn fill(tensors: &mut dyn Tensors, rope_theta: f64, seed: u64) {
    let second_factors: Vec<TensorId> = tensors.graph().stages.iter().filter_map(second_factor).collect();
    for index in 0..tensors.graph().tensors.len() {
        let tensor = &tensors.graph().tensors[index];
        let (role, shape, name, dtype) = (tensor.role, tensor.shape.clone(), tensor.name.clone(), tensor.dtype);
        let mut source = Source::new(seed, index as u64);
        let data = tensors.tensor_mut(TensorId(index));
        match (role, shape.as_slice()) {
            (Role::Value | Role::Output, _) => {}
            (Role::Input, &[depth, _]) if second_factors.contains(&TensorId(index)) => {
                let scale = 1.0 / (depth as f32).sqrt();
                data.fill_with(|| scale * source.normal());
            }
            (Role::Input, _) => data.fill_with(|| source.normal()),
            (Role::Weight, &[_, half]) if name == "rope.cos" => rope_table(data, half, rope_theta, f64::cos),
            (Role::Weight, &[_, half]) if name == "rope.sin" => rope_table(data, half, rope_theta, f64::sin),
            (Role::Weight, &[depth, _]) => {
                let scale = 1.0 / (depth as f32).sqrt();
                data.fill_with(|| scale * source.normal());
            }
            (Role::Weight, _) if name.ends_with("gain") => data.fill_with(|| 1.0 + 0.25 * source.normal()),
            (Role::Weight, _) => data.fill_with(|| 0.5 * source.normal()),
        }
        round(data, dtype);
    }
}

/// The B of a product, where it may be an input.
fn second_factor(stage: &Stage) -> Option<TensorId> {
    if matches!(stage.op, StageOp::Matmul { .. }) { stage.inputs.get(1).copied() } else { None }
}

/// Rounds to what a tensor of this type stores, so that whoever reads what was drawn reads what the candidate is given.
fn round(data: &mut [f32], dtype: Dtype) {
    if dtype != Dtype::F32 {
        data.iter_mut().for_each(|it| *it = half::nearest(dtype, *it));
    }
}

/// Overwrites everything that `stage` reads and that is no weight with activations of a regime.
pub fn fill_stage(tensors: &mut dyn Tensors, stage: &Stage, regime: Regime, seed: u64) {
    for (position, &id) in stage.inputs.iter().enumerate() {
        let tensor = tensors.graph().tensor(id);
        // A product's B is drawn with the weights, whose magnitude it has, also where it is an input: two factors of the size of
        // a regime would have results of its square.
        if tensor.role == Role::Weight || Some(id) == second_factor(stage) {
            continue;
        }
        let (width, dtype) = (tensor.shape.last().copied().unwrap_or(1), tensor.dtype);
        let mut source = Source::new(seed, 0x5eed_0000 + id.0 as u64);
        let shape = row_shape(&stage.op, position, width, regime, dtype);
        for row in tensors.tensor_mut(id).chunks_mut(width) {
            // Logits of one sign need operands of one sign.
            let offset = if regime == Regime::Sunk { shape.offset } else { shape.offset * source.sign() };
            row.fill_with(|| offset + shape.deviation * source.normal());
            if shape.outlier != 1.0 {
                let at = source.below(width);
                row[at] *= shape.outlier;
            }
            round(row, dtype);
        }
    }
}

/// How the rows of one operand are drawn: offset +- deviation, one element of each row times `outlier`.
struct RowShape {
    offset: f32,
    deviation: f32,
    outlier: f32,
}

/// The magnitudes of the regimes, by the type that operands and results are stored as.
struct Sizes {
    large: f32,
    small: f32,
    /// Below the normal range.
    subnormal: f32,
    /// The element of a peaky row.
    outlier: f32,
}

impl Sizes {
    /// Of f16: numbers that [`Source::normal`] draws end at 3.47, so elements end at 3.47 times the size, and the largest results,
    /// sums of bias, residual and a product that keeps their size, at some 15 times it: 2^12 leaves room below 65504 = 2^16.
    /// Where two operands of the size are multiplied with each other (`mul`, a gated MLP), results go with its square: 2^5, and
    /// 16 for the outlier.
    fn of(op: &StageOp, dtype: Dtype) -> Self {
        let squared = matches!(op, StageOp::Mul { .. } | StageOp::Mlp { gated: true, .. });
        match (dtype, squared) {
            (Dtype::F32, _) => Self {
                large: 2f32.powi(30),
                small: 2f32.powi(-30),
                subnormal: if multiplies(op) { 2f32.powi(-140) } else { 2f32.powi(-132) },
                outlier: 256.0,
            },
            // 2^-133 is the smallest number of bf16.
            (Dtype::Bf16, _) => {
                Self { large: 2f32.powi(30), small: 2f32.powi(-30), subnormal: 2f32.powi(-129), outlier: 256.0 }
            }
            (Dtype::F16, true) => {
                Self { large: 2f32.powi(5), small: 2f32.powi(-10), subnormal: 2f32.powi(-18), outlier: 16.0 }
            }
            (Dtype::F16, false) => {
                Self { large: 2f32.powi(12), small: 2f32.powi(-10), subnormal: 2f32.powi(-18), outlier: 256.0 }
            }
        }
    }
}

/// Stages whose time many subnormal numbers would multiply.
fn multiplies(op: &StageOp) -> bool {
    matches!(op, StageOp::Matmul { .. } | StageOp::Mlp { .. } | StageOp::Attention { .. })
}

fn row_shape(op: &StageOp, position: usize, width: usize, regime: Regime, dtype: Dtype) -> RowShape {
    let plain = |deviation| RowShape { offset: 0.0, deviation, outlier: 1.0 };
    let Sizes { large, small, subnormal, outlier } = Sizes::of(op, dtype);
    match (op, regime) {
        // Variance equal to epsilon, around an offset as large as lets the bound decide: the mean's own error, gamma_n times
        // the offset, must stay well under the deviation (BERT's epsilon of 1e-12 leaves room for 3e-3 at width 768).
        (StageOp::LayerNorm { eps, .. }, Regime::NearConstant) => {
            let deviation = eps.sqrt();
            let decidable = deviation / (16.0 * Arithmetic::cpu().gamma(width));
            RowShape { offset: decidable.min(1.0) as f32, deviation: deviation as f32, outlier: 1.0 }
        }
        (StageOp::RmsNorm { eps, .. }, Regime::NearConstant) => plain(eps.sqrt() as f32),
        (StageOp::LayerNorm { eps, .. } | StageOp::RmsNorm { eps, .. }, Regime::NearEpsilon) => {
            plain(eps.sqrt() as f32)
        }
        // Keys that hardly differ make uniform weights.
        (StageOp::Attention { .. }, Regime::NearConstant) if position == 1 => plain(1.0 / 1024.0),
        // Logits of a deviation around 64: one key takes all the weight, and exp without the maximum subtracted overflows.
        (StageOp::Attention { .. }, Regime::Peaky) if position < 2 => plain(8.0),
        (StageOp::Attention { scale, head_dim, .. }, Regime::Sunk) if position < 2 => {
            // q.k scaled is -256, below which exp is no number of f32; powers of two, so that it is the same for every key.
            let offset = (256.0 / (scale.abs() * *head_dim as f64)).sqrt().log2().ceil().exp2() as f32;
            RowShape { offset: if position == 0 { -offset } else { offset }, deviation: 0.0, outlier: 1.0 }
        }
        (op, Regime::Subnormal) if multiplies(op) => RowShape { offset: 0.0, deviation: 1.0, outlier: subnormal },
        (_, Regime::Subnormal) => plain(subnormal),
        // Logits of 2^60 have a bound that is not finite; the values can be large all the same.
        (StageOp::Attention { .. }, Regime::Large) if position < 2 => plain(1.0),
        (StageOp::Attention { .. }, Regime::Peaky | Regime::NearConstant) => plain(1.0),
        (_, Regime::Normal | Regime::Sunk | Regime::NearEpsilon) => plain(1.0),
        (_, Regime::NearConstant) => RowShape { offset: 1.0, deviation: 1.0 / 1024.0, outlier: 1.0 },
        (_, Regime::Peaky) => RowShape { offset: 0.0, deviation: 1.0, outlier },
        (_, Regime::Large) => plain(large),
        (_, Regime::Small) => plain(small),
    }
}
