//! The micro-kernel: an `mr` x (`vectors` * lanes) register tile of C += A B, its accumulators carried through the depth loop
//! in registers, with what follows the product (bias, activation, residual) done before the tile is stored.
//!
//! One private function for each shape of tile, so that row and column tails have code of their own and the loops around stay
//! small. Micro-kernels are shared by matmul, the fused MLP and both products of attention.

use super::{
    emit::{Code, Kind, Lanes, Mem, Val},
    math,
};
use kernelforge::{
    manifest::spec::{Activation, Dtype},
    plan::schedule::Dot,
};
use std::collections::BTreeMap;

/// What happens to a finished tile, in this order: `act(acc * scale[row] + bias[column]) * multiply + residual`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Epilogue {
    /// Each row is multiplied by an element of a vector: the softmax denominators of attention.
    pub row_scale: bool,
    pub bias: bool,
    pub activation: Option<ActivationOrd>,
    /// Times the element of another matrix of C's layout: the gate of a gated MLP.
    pub multiply: bool,
    /// Plus the element of another matrix of C's layout.
    pub residual: bool,
}

/// [`Activation`] with an order, so that a micro-kernel's shape can be a map key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActivationOrd(pub Activation);

impl PartialOrd for ActivationOrd {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ActivationOrd {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.name().cmp(other.0.name())
    }
}

/// Everything that decides the code of one micro-kernel. Strides and lengths in elements; the depth, and A and B along it, in
/// steps, which are elements, or pairs of them (`dot`). Pairs of B, and of A where it was copied, are in the place of f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micro {
    pub rows: usize,
    pub vectors: usize,
    pub lanes: usize,
    /// Valid lanes of the last vector; `lanes` when all are.
    pub last: usize,
    /// B is padded to whole vectors (packed): its loads need no mask.
    pub b_padded: bool,
    pub unroll: usize,
    pub dot: Dot,
    /// After the last step of pairs one element of A is left, whose pair in B is completed by zeros.
    pub odd: bool,
    /// The depth of every call is a multiple of `unroll`.
    pub whole_unroll: bool,
    pub lda: usize,
    pub ldb: usize,
    pub ldc: usize,
    /// Start from what the depth blocks before have summed instead of zero: from C itself, or where C is no f32 from `sums`.
    pub accumulate: bool,
    /// The sums of the depth blocks before where they are not in C, and the elements between their rows.
    pub sums: Option<(Kind, usize)>,
    /// Over how many calls the next panel of B is asked into L2, an equal share by each; 0: not at all.
    pub prefetch: usize,
    /// Present on the last depth block.
    pub epilogue: Option<Epilogue>,
    /// The buffers' types.
    pub a: Kind,
    pub b: Kind,
    pub c: Kind,
    pub bias: Kind,
    pub scale: Kind,
    pub extra: Kind,
}

impl Micro {
    /// Lines of the next panel that each trip of the depth loop asks for, so that all calls together cover it.
    fn prefetch_lines(&self) -> usize {
        (self.unroll * self.ldb).div_ceil(self.prefetch * self.b.line())
    }

    /// Elements of A that one step of the depth takes.
    fn a_step(&self) -> usize {
        if self.dot == Dot::Pairs && self.a.element != Dtype::F32 { 2 } else { 1 }
    }

    /// Elements of the next panel that one call of this depth asks for.
    pub fn prefetch_share(&self, depth: usize) -> usize {
        depth / self.unroll * self.prefetch_lines() * self.b.line()
    }
}

/// Where one call of a micro-kernel reads and writes.
pub struct Operands {
    pub a: (Mem, Val),
    pub b: (Mem, Val),
    pub c: (Mem, Val),
    /// With `accumulate`, where C is no f32.
    pub sums: Option<(Mem, Val)>,
    pub depth: Val,
    /// With `prefetch`: where this call's share of the next panel of B begins.
    pub next: Option<Val>,
    /// Bias vector and the tile's first column.
    pub bias: Option<(Mem, Val)>,
    /// Row scales and the tile's first row.
    pub row_scale: Option<(Mem, Val)>,
    /// Matrices of C's layout; addressed like C.
    pub multiply: Option<(Mem, Val)>,
    pub residual: Option<(Mem, Val)>,
}

/// The micro-kernels that a module needs, each emitted once.
#[derive(Default)]
pub struct MicroKernels {
    names: BTreeMap<Micro, String>,
    text: String,
}

impl MicroKernels {
    /// The functions' text, to be put into the module.
    pub fn into_text(self) -> String {
        self.text
    }

    /// Emits a call of the micro-kernel of this shape, and the kernel itself the first time.
    pub fn call(&mut self, code: &mut Code, micro: Micro, operands: &Operands) {
        if !self.names.contains_key(&micro) {
            let name =
                format!("tile_{}x{}_{}", micro.rows, (micro.vectors - 1) * micro.lanes + micro.last, self.names.len());
            self.text += &emit(&name, micro);
            self.names.insert(micro, name);
        }
        let mut arguments = Vec::new();
        let index = "index".to_owned();
        let pairs = [Some(operands.a), Some(operands.b), Some(operands.c)].into_iter().chain(extras(micro, operands));
        for (mem, at) in pairs.flatten() {
            arguments.push(mem.argument());
            arguments.push((at, index.clone()));
        }
        arguments.push((operands.depth, index.clone()));
        if micro.prefetch > 0 {
            arguments.extend(operands.next.map(|it| (it, index)));
        }
        code.call(&self.names[&micro], &arguments);
    }
}

/// The operands of `micro` beyond the product's own, in parameter order.
fn extras(micro: Micro, operands: &Operands) -> [Option<(Mem, Val)>; 5] {
    let epilogue = micro.epilogue.unwrap_or_default();
    [
        operands.sums.filter(|_| micro.sums.is_some()),
        operands.row_scale.filter(|_| epilogue.row_scale),
        operands.bias.filter(|_| epilogue.bias),
        operands.multiply.filter(|_| epilogue.multiply),
        operands.residual.filter(|_| epilogue.residual),
    ]
}

fn emit(name: &str, micro: Micro) -> String {
    let mut code = Code::new(micro.lanes);
    let code_ref = &mut code;
    let mut header = Vec::new();
    let mut buffer = |code: &mut Code, Kind { len, element }: Kind, present: bool| {
        present.then(|| {
            let (mem, at) = (Mem { val: code.parameter(), len, element }, code.parameter());
            header.push(format!("{}: {}, {at}: index", mem.val, mem.ty()));
            (mem, at)
        })
    };
    let epilogue = micro.epilogue.unwrap_or_default();
    let a = buffer(code_ref, micro.a, true);
    let b = buffer(code_ref, micro.b, true);
    let c = buffer(code_ref, micro.c, true);
    let sums = buffer(code_ref, micro.sums.map_or(Kind::NONE, |it| it.0), micro.sums.is_some());
    let row_scale = buffer(code_ref, micro.scale, epilogue.row_scale);
    let bias = buffer(code_ref, micro.bias, epilogue.bias);
    let multiply = buffer(code_ref, micro.extra, epilogue.multiply);
    let residual = buffer(code_ref, micro.extra, epilogue.residual);
    let depth = code_ref.parameter();
    header.push(format!("{depth}: index"));
    let next = (micro.prefetch > 0).then(|| {
        let next = code_ref.parameter();
        header.push(format!("{next}: index"));
        next
    });
    let (Some(a), Some(b), Some(c)) = (a, b, c) else { unreachable!("buffers that are always present") };

    let mut tile = Tile { code: code_ref, micro, masks: Vec::new() };
    tile.masks = tile.column_masks();
    let initial = tile.initial(sums.unwrap_or(c));
    let sums = tile.product(a, b, next, depth, initial);
    let extras = Extras { row_scale, bias, multiply, residual };
    tile.finish(c, sums, &extras);
    let header =
        format!("func.func private @{name}({}) attributes {{passthrough = [\"noinline\"]}}", header.join(", "));
    code.finish(header)
}

/// A tile being emitted: `rows` x `vectors` values, row by row.
struct Tile<'a> {
    code: &'a mut Code,
    micro: Micro,
    /// Of each vector of a row.
    masks: Vec<Lanes>,
}

impl Tile<'_> {
    fn column_masks(&mut self) -> Vec<Lanes> {
        let Micro { vectors, last, .. } = self.micro;
        let tail = self.code.first_lanes(last);
        (0..vectors).map(|vector| if vector + 1 == vectors { tail } else { Lanes::All }).collect()
    }

    fn initial(&mut self, before: (Mem, Val)) -> Vec<Val> {
        if self.micro.accumulate {
            let stride = self.micro.sums.map_or(self.micro.ldc, |it| it.1);
            let mut values = Vec::new();
            for row in 0..self.micro.rows {
                let row = self.code.index(row);
                values.extend((0..self.micro.vectors).map(|vector| self.load_at(before, stride, row, vector)));
            }
            return values;
        }
        let zero = self.code.splat(0.0);
        vec![zero; self.micro.rows * self.micro.vectors]
    }

    /// The depth loop, `unroll` steps in its body, and one for the remainder where a call can have one.
    fn product(&mut self, a: (Mem, Val), b: (Mem, Val), next: Option<Val>, depth: Val, initial: Vec<Val>) -> Vec<Val> {
        let (micro, masks) = (self.micro, self.masks.clone());
        let zero = self.code.index(0);
        let run = |code: &mut Code, low: Val, high: Val, unroll: usize, sums: Vec<Val>| {
            code.fold((low, high, unroll), &sums, |code, k, sums| {
                let (along_a, row_of_b) = (code.times(k, micro.a_step()), code.times(k, micro.ldb));
                let (a_at, b_at) = (code.add(a.1, along_a), code.add(b.1, row_of_b));
                if let Some(next) = next.filter(|_| unroll == micro.unroll) {
                    let ahead = code.times(k, micro.prefetch_lines() * micro.b.line() / unroll);
                    let ahead = code.add(next, ahead);
                    for line in 0..micro.prefetch_lines() {
                        let at = code.offset(ahead, line * micro.b.line());
                        code.prefetch(b.0, at);
                    }
                }
                (0..unroll).fold(sums.to_vec(), |sums, step| {
                    one_step(code, micro, &masks, (a.0, a_at), (b.0, b_at), Step::Whole(step), sums)
                })
            })
        };
        let sums = if micro.unroll == 1 || micro.whole_unroll {
            run(self.code, zero, depth, micro.unroll, initial)
        } else {
            let whole = self.code.quotient(depth, micro.unroll);
            let whole = self.code.times(whole, micro.unroll);
            let sums = run(self.code, zero, whole, micro.unroll, initial);
            run(self.code, whole, depth, 1, sums)
        };
        if !micro.odd {
            return sums;
        }
        let (along_a, row_of_b) = (self.code.times(depth, micro.a_step()), self.code.times(depth, micro.ldb));
        let (a_at, b_at) = (self.code.add(a.1, along_a), self.code.add(b.1, row_of_b));
        one_step(self.code, micro, &masks, (a.0, a_at), (b.0, b_at), Step::Half, sums)
    }

    /// Runs the epilogue and stores the tile. Without an activation that happens in registers. With one, the raw tile is stored on
    /// the stack and finished row by row: an activation needs 15 registers of its own, so the accumulators were spilled anyway,
    /// and written out for a whole tile it is some 600 vector ops for LLVM to schedule. In C itself the raw rows would wait for
    /// lines that are not in L1, and where they are a multiple of 4 KiB apart for each other's stores: 128x3072x768 with
    /// GELU took 3.7 % longer, the MLP of GPT-2 small 1.6 %. And where C is no f32 its results are rounded once.
    fn finish(&mut self, c: (Mem, Val), sums: Vec<Val>, extras: &Extras) {
        let Micro { rows, vectors, epilogue, .. } = self.micro;
        let in_memory = epilogue.is_some_and(|it| it.activation.is_some());
        let zero = self.code.index(0);
        let (raw, stride) = if in_memory {
            let stride = vectors * self.micro.lanes;
            ((self.code.local(rows * stride), zero), stride)
        } else {
            (c, self.micro.ldc)
        };
        for (row, values) in sums.chunks(vectors).enumerate() {
            let row = self.code.index(row);
            let values = if in_memory { values.to_vec() } else { self.epilogue(row, values.to_vec(), extras) };
            self.store_row(raw, stride, row, values);
        }
        if in_memory {
            let rows = self.code.index(rows);
            self.code.for_(zero, rows, 1, |code, row| {
                let mut tile = Tile { micro: self.micro, masks: self.masks.clone(), code };
                let values = (0..vectors).map(|vector| tile.load_at(raw, stride, row, vector)).collect();
                let values = tile.epilogue(row, values, extras);
                tile.store_row(c, tile.micro.ldc, row, values);
            });
        }
    }

    /// `act(value * scale[row] + bias[column]) * multiply + residual` for one row of the tile.
    fn epilogue(&mut self, row: Val, mut values: Vec<Val>, extras: &Extras) -> Vec<Val> {
        if let Some((mem, at)) = extras.row_scale {
            let at = self.code.add(at, row);
            let scale = self.code.load_scalar(mem, at);
            let scale = self.code.broadcast(scale);
            values = values.into_iter().map(|it| self.code.vmul(it, scale)).collect();
        }
        if let Some((mem, at)) = extras.bias {
            values = self.zip(values, |tile, vector, value| {
                let at = tile.code.offset(at, vector * tile.micro.lanes);
                let bias = tile.code.load(mem, at, tile.masks[vector]);
                tile.code.vadd(value, bias)
            });
        }
        if let Some(ActivationOrd(function)) = self.micro.epilogue.and_then(|it| it.activation) {
            values = values.into_iter().map(|it| math::activation(self.code, function, it)).collect();
        }
        if let Some(other) = extras.multiply {
            values = self.zip(values, |tile, vector, value| {
                let other = tile.load_at(other, tile.micro.ldc, row, vector);
                tile.code.vmul(value, other)
            });
        }
        if let Some(other) = extras.residual {
            values = self.zip(values, |tile, vector, value| {
                let other = tile.load_at(other, tile.micro.ldc, row, vector);
                tile.code.vadd(value, other)
            });
        }
        values
    }

    fn zip(&mut self, values: Vec<Val>, mut each: impl FnMut(&mut Self, usize, Val) -> Val) -> Vec<Val> {
        values.into_iter().enumerate().map(|(vector, value)| each(self, vector, value)).collect()
    }

    /// Where a vector of this row of the tile is, in a matrix whose rows are so many elements apart.
    fn place(&mut self, at: Val, stride: usize, row: Val, vector: usize) -> Val {
        let down = self.code.times(row, stride);
        let at = self.code.add(at, down);
        self.code.offset(at, vector * self.micro.lanes)
    }

    fn load_at(&mut self, (mem, at): (Mem, Val), stride: usize, row: Val, vector: usize) -> Val {
        let at = self.place(at, stride, row, vector);
        self.code.load(mem, at, self.masks[vector])
    }

    fn store_row(&mut self, (mem, at): (Mem, Val), stride: usize, row: Val, values: Vec<Val>) {
        for (vector, value) in values.into_iter().enumerate() {
            let at = self.place(at, stride, row, vector);
            self.code.store(value, mem, at, self.masks[vector]);
        }
    }
}

/// The operands of an epilogue, each with the element that belongs to the tile's first row and column.
struct Extras {
    row_scale: Option<(Mem, Val)>,
    bias: Option<(Mem, Val)>,
    multiply: Option<(Mem, Val)>,
    residual: Option<(Mem, Val)>,
}

/// Which step of a loop's body, or the one after the loop that has half a pair of A.
#[derive(Clone, Copy)]
enum Step {
    Whole(usize),
    Half,
}

/// One rank-1 update, or with pairs of rank 2: a row of B in vectors, each element of a column of A broadcast.
fn one_step(
    code: &mut Code,
    micro: Micro,
    masks: &[Lanes],
    (a, a_at): (Mem, Val),
    (b, b_at): (Mem, Val),
    step: Step,
    sums: Vec<Val>,
) -> Vec<Val> {
    let Micro { rows, vectors, lanes, lda, ldb, b_padded, dot, .. } = micro;
    let (step, half) = match step {
        Step::Whole(step) => (step, false),
        Step::Half => (0, true),
    };
    let b_row: Vec<_> = (0..vectors)
        .map(|vector| {
            let at = code.offset(b_at, step * ldb + vector * lanes);
            let value = code.load(b, at, if b_padded { Lanes::All } else { masks[vector] });
            if dot == Dot::Pairs { code.as_pairs(value) } else { value }
        })
        .collect();
    let mut next = Vec::with_capacity(sums.len());
    for row in 0..rows {
        let at = code.offset(a_at, row * lda + step * micro.a_step());
        let scalar = match (dot, a.element) {
            (Dot::Fma, _) | (Dot::Pairs, Dtype::F32) => code.load_scalar(a, at),
            (Dot::Pairs, _) if half => code.load_half_pair(a, at),
            (Dot::Pairs, _) => code.load_pair(a, at),
        };
        let a_value = code.broadcast(scalar);
        let a_value = if dot == Dot::Pairs { code.as_pairs(a_value) } else { a_value };
        for vector in 0..vectors {
            let (b_value, sum) = (b_row[vector], sums[row * vectors + vector]);
            next.push(match dot {
                Dot::Fma => code.fma(a_value, b_value, sum),
                Dot::Pairs => code.dot(sum, b_value, a_value),
            });
        }
    }
    next
}
