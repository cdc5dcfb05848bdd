//! The fused MLP: for each block of rows both products run back to back, the hidden rows in the workspace, so that they are
//! read again while a cache still holds them and no d_ff-wide tensor exists. They are f32, or bf16 where the second product takes
//! pairs of bf16; what the gate makes of them stays f32 until it is multiplied.

use super::{
    emit::{Code, Kind, Mem, Val},
    matmul::{self, Product},
    micro::{ActivationOrd, Epilogue, MicroKernels},
};
use kernelforge::{
    manifest::spec::{Activation, Dtype},
    plan::schedule::{Dot, MlpSchedule},
};

pub struct Mlp<'a> {
    pub rows: usize,
    pub d_model: usize,
    pub d_ff: usize,
    pub activation: Activation,
    pub gated: bool,
    pub bias: bool,
    pub residual: bool,
    pub schedule: &'a MlpSchedule,
    /// How y is stored.
    pub result: Dtype,
}

pub struct Buffers {
    pub x: Mem,
    pub gate: Option<(Mem, Option<Mem>)>,
    pub up: (Mem, Option<Mem>),
    pub down: (Mem, Option<Mem>),
    pub residual: Option<Mem>,
    pub y: Mem,
    /// The workspace's first elements, as [`Mlp::hidden`].
    pub hidden: Mem,
    pub workspace: Mem,
}

impl Mlp<'_> {
    /// A unit is one row tile of the up product; `down` has the same `mr`.
    pub fn units(&self) -> usize {
        self.rows.div_ceil(self.schedule.up.mr)
    }

    fn row_block(&self) -> usize {
        self.schedule.row_block.min(self.rows.next_multiple_of(self.schedule.up.mr))
    }

    fn hidden_type(&self) -> Dtype {
        if self.schedule.down.dot == Dot::Pairs { Dtype::Bf16 } else { Dtype::F32 }
    }

    /// Elements between hidden rows: padded by a cache line, because 8 rows that are a multiple of 4 KiB apart (d_ff = 3072)
    /// fall into one set of L1 and evict each other.
    fn hidden_stride(&self) -> usize {
        let line = Kind { len: 0, element: self.hidden_type() }.line();
        self.d_ff.next_multiple_of(line) + line
    }

    fn hidden_len(&self) -> usize {
        self.row_block() * self.hidden_stride()
    }

    /// The hidden rows.
    pub fn hidden(&self) -> Kind {
        Kind { len: self.hidden_len(), element: self.hidden_type() }
    }

    /// f32 elements that the hidden rows take, whole cache lines, and those of the gate's.
    fn before_scratch(&self) -> (usize, usize) {
        let hidden = self.hidden_len() * self.hidden_type().bytes() / Dtype::F32.bytes();
        (hidden, if self.gated { self.hidden_len() } else { 0 })
    }

    /// The gate's product, the up product, the down product. All address rows by their place in the whole, so that row tails are
    /// the whole's.
    fn products(&self) -> (Option<Product<'_>>, Product<'_>, Product<'_>) {
        let Self { rows: m, d_model, d_ff, schedule, .. } = *self;
        let activation = Some(ActivationOrd(self.activation));
        let first = Epilogue { bias: self.bias, activation, ..Epilogue::default() };
        let second = Epilogue { bias: self.bias, multiply: true, ..Epilogue::default() };
        let down = Epilogue { bias: self.bias, residual: self.residual, ..Epilogue::default() };
        let hidden = self.hidden_stride();
        let rows = self.row_block();
        let into_hidden = |epilogue, result| Product {
            m,
            n: d_ff,
            k: d_model,
            lda: d_model,
            ldc: hidden,
            schedule: &schedule.up,
            epilogue,
            result,
            rows,
        };
        (
            self.gated.then(|| into_hidden(first, Dtype::F32)),
            into_hidden(if self.gated { second } else { first }, self.hidden_type()),
            Product {
                m,
                n: d_model,
                k: d_ff,
                lda: hidden,
                ldc: d_model,
                schedule: &schedule.down,
                epilogue: down,
                result: self.result,
                rows,
            },
        )
    }

    /// f32 elements of working memory: the hidden rows (twice when gated), and what the products need.
    pub fn workspace(&self) -> usize {
        let ((hidden, gate), (_, up, down)) = (self.before_scratch(), self.products());
        hidden + gate + up.workspace().max(down.workspace())
    }

    pub fn emit_units(&self, code: &mut Code, micros: &mut MicroKernels, buffers: &Buffers, begin: Val, end: Val) {
        let mr = self.schedule.up.mr;
        let tiles = self.row_block() / mr;
        let (gate, up, down) = self.products();
        code.for_(begin, end, tiles, |code, first| {
            let last = code.offset(first, tiles);
            let last = code.min(last, end);
            // The hidden rows begin at the block's first.
            let first_row = code.times(first, mr);
            let hidden_before = code.times(first_row, self.hidden_stride());
            let zero = code.index(0);
            let (hidden_floats, gate_floats) = self.before_scratch();
            let hidden = {
                let at = code.index(0);
                (buffers.hidden, code.sub(at, hidden_before))
            };
            let scratch = {
                let at = code.index(hidden_floats + gate_floats);
                Some((buffers.workspace, at))
            };
            let mut run = |code: &mut Code, product: &Product<'_>, buffers: matmul::Buffers| {
                let panels = code.index(product.n.div_ceil(product.schedule.nr));
                product.emit(code, micros, buffers, (first, last), (zero, panels));
            };
            let input = matmul::Buffers {
                a: (buffers.x, zero),
                b: buffers.up.0,
                c: hidden,
                bias: buffers.up.1,
                multiply: None,
                residual: None,
                workspace: scratch,
            };
            match (&gate, buffers.gate) {
                (Some(gate), Some((weight, bias))) => {
                    let at = code.index(hidden_floats);
                    let gated = (buffers.workspace, code.sub(at, hidden_before));
                    run(code, gate, matmul::Buffers { b: weight, c: gated, bias, ..input });
                    run(code, &up, matmul::Buffers { multiply: Some(gated), ..input });
                }
                _ => run(code, &up, input),
            }
            let output = matmul::Buffers {
                a: hidden,
                b: buffers.down.0,
                c: (buffers.y, zero),
                bias: buffers.down.1,
                multiply: None,
                residual: buffers.residual.map(|it| (it, zero)),
                workspace: scratch,
            };
            run(code, &down, output);
        });
    }
}
