//! The micro-kernel: an `mr` x (`vectors` * lanes) register tile of C += A B, its accumulators carried through the depth loop
//! in registers, with what follows the product (bias, activation, residual) done before the tile is stored.
//!
//! One private function for each shape of tile, so that row and column tails have code of their own and the loops around stay
//! small. Micro-kernels are shared by matmul, the fused MLP and both products of attention.

use super::{
    emit::{Code, Lanes, Mem, Val},
    math,
};
use kernelforge::manifest::spec::Activation;
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

/// Everything that decides the code of one micro-kernel. Strides and lengths in elements.
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
    /// The depth of every call is a multiple of `unroll`.
    pub whole_unroll: bool,
    pub lda: usize,
    pub ldb: usize,
    pub ldc: usize,
    /// Start from C instead of zero.
    pub accumulate: bool,
    /// Present on the last depth block.
    pub epilogue: Option<Epilogue>,
    /// Lengths of the buffers, which are part of their types.
    pub a_len: usize,
    pub b_len: usize,
    pub c_len: usize,
    pub bias_len: usize,
    pub scale_len: usize,
    pub extra_len: usize,
}

/// Where one call of a micro-kernel reads and writes.
pub struct Operands {
    pub a: (Mem, Val),
    pub b: (Mem, Val),
    pub c: (Mem, Val),
    pub depth: Val,
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
        arguments.push((operands.depth, index));
        code.call(&self.names[&micro], &arguments);
    }
}

/// The operands that the epilogue of `micro` reads, in parameter order.
fn extras(micro: Micro, operands: &Operands) -> [Option<(Mem, Val)>; 4] {
    let epilogue = micro.epilogue.unwrap_or_default();
    [
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
    let mut buffer = |code: &mut Code, len: usize, present: bool| {
        present.then(|| {
            let (mem, at) = (Mem { val: code.parameter(), len }, code.parameter());
            header.push(format!("{}: {}, {at}: index", mem.val, mem.ty()));
            (mem, at)
        })
    };
    let epilogue = micro.epilogue.unwrap_or_default();
    let a = buffer(code_ref, micro.a_len, true);
    let b = buffer(code_ref, micro.b_len, true);
    let c = buffer(code_ref, micro.c_len, true);
    let row_scale = buffer(code_ref, micro.scale_len, epilogue.row_scale);
    let bias = buffer(code_ref, micro.bias_len, epilogue.bias);
    let multiply = buffer(code_ref, micro.extra_len, epilogue.multiply);
    let residual = buffer(code_ref, micro.extra_len, epilogue.residual);
    let depth = code_ref.parameter();
    header.push(format!("{depth}: index"));
    let (Some(a), Some(b), Some(c)) = (a, b, c) else { unreachable!("buffers that are always present") };

    let mut tile = Tile { code: code_ref, micro, masks: Vec::new() };
    tile.masks = tile.column_masks();
    let initial = tile.initial(c);
    let sums = tile.product(a, b, depth, initial);
    let sums = tile.finish(sums, row_scale, bias, multiply, residual);
    tile.store(c, sums);
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

    /// The value of `at(row, vector)` for the whole tile, row by row.
    fn each(&mut self, mut at: impl FnMut(&mut Self, usize, usize) -> Val) -> Vec<Val> {
        let Micro { rows, vectors, .. } = self.micro;
        let mut values = Vec::with_capacity(rows * vectors);
        for row in 0..rows {
            for vector in 0..vectors {
                values.push(at(self, row, vector));
            }
        }
        values
    }

    /// The vector of a matrix of C's layout at this place of the tile.
    fn load_like_c(&mut self, (mem, at): (Mem, Val), row: usize, vector: usize) -> Val {
        let at = self.code.offset(at, row * self.micro.ldc + vector * self.micro.lanes);
        self.code.load(mem, at, self.masks[vector])
    }

    fn initial(&mut self, c: (Mem, Val)) -> Vec<Val> {
        if self.micro.accumulate {
            return self.each(|tile, row, vector| tile.load_like_c(c, row, vector));
        }
        let zero = self.code.splat(0.0);
        vec![zero; self.micro.rows * self.micro.vectors]
    }

    /// The depth loop, `unroll` steps in its body, and one for the remainder where a call can have one.
    fn product(&mut self, a: (Mem, Val), b: (Mem, Val), depth: Val, initial: Vec<Val>) -> Vec<Val> {
        let (micro, masks) = (self.micro, self.masks.clone());
        let zero = self.code.index(0);
        let mut run = |code: &mut Code, low: Val, high: Val, unroll: usize, sums: Vec<Val>| {
            code.fold((low, high, unroll), &sums, |code, k, sums| {
                let row_of_b = code.times(k, micro.ldb);
                let (a_at, b_at) = (code.add(a.1, k), code.add(b.1, row_of_b));
                (0..unroll).fold(sums.to_vec(), |sums, step| {
                    one_step(code, micro, &masks, (a.0, a_at), (b.0, b_at), step, sums)
                })
            })
        };
        if micro.unroll == 1 || micro.whole_unroll {
            return run(self.code, zero, depth, micro.unroll, initial);
        }
        let whole = self.code.quotient(depth, micro.unroll);
        let whole = self.code.times(whole, micro.unroll);
        let sums = run(self.code, zero, whole, micro.unroll, initial);
        run(self.code, whole, depth, 1, sums)
    }

    fn finish(
        &mut self,
        mut sums: Vec<Val>,
        row_scale: Option<(Mem, Val)>,
        bias: Option<(Mem, Val)>,
        multiply: Option<(Mem, Val)>,
        residual: Option<(Mem, Val)>,
    ) -> Vec<Val> {
        let Micro { rows, vectors, lanes, .. } = self.micro;
        if let Some((mem, at)) = row_scale {
            let scales: Vec<_> = (0..rows)
                .map(|row| {
                    let at = self.code.offset(at, row);
                    let scalar = self.code.load_scalar(mem, at);
                    self.code.broadcast(scalar)
                })
                .collect();
            sums = self.each(|tile, row, vector| tile.code.vmul(sums[row * vectors + vector], scales[row]));
        }
        if let Some((mem, at)) = bias {
            let biases: Vec<_> = (0..vectors)
                .map(|vector| {
                    let at = self.code.offset(at, vector * lanes);
                    self.code.load(mem, at, self.masks[vector])
                })
                .collect();
            sums = self.each(|tile, row, vector| tile.code.vadd(sums[row * vectors + vector], biases[vector]));
        }
        if let Some(ActivationOrd(function)) = self.micro.epilogue.and_then(|it| it.activation) {
            sums = sums.into_iter().map(|value| math::activation(self.code, function, value)).collect();
        }
        if let Some(other) = multiply {
            sums = self.each(|tile, row, vector| {
                let value = tile.load_like_c(other, row, vector);
                tile.code.vmul(sums[row * vectors + vector], value)
            });
        }
        if let Some(other) = residual {
            sums = self.each(|tile, row, vector| {
                let value = tile.load_like_c(other, row, vector);
                tile.code.vadd(sums[row * vectors + vector], value)
            });
        }
        sums
    }

    fn store(&mut self, (mem, at): (Mem, Val), sums: Vec<Val>) {
        let Micro { vectors, lanes, ldc, .. } = self.micro;
        for (index, value) in sums.into_iter().enumerate() {
            let (row, vector) = (index / vectors, index % vectors);
            let at = self.code.offset(at, row * ldc + vector * lanes);
            self.code.store(value, mem, at, self.masks[vector]);
        }
    }
}

/// One rank-1 update: a row of B in vectors, each element of a column of A broadcast.
fn one_step(
    code: &mut Code,
    micro: Micro,
    masks: &[Lanes],
    (a, a_at): (Mem, Val),
    (b, b_at): (Mem, Val),
    step: usize,
    sums: Vec<Val>,
) -> Vec<Val> {
    let Micro { rows, vectors, lanes, lda, ldb, b_padded, .. } = micro;
    let b_row: Vec<_> = (0..vectors)
        .map(|vector| {
            let at = code.offset(b_at, step * ldb + vector * lanes);
            code.load(b, at, if b_padded { Lanes::All } else { masks[vector] })
        })
        .collect();
    let mut next = Vec::with_capacity(sums.len());
    for row in 0..rows {
        let at = code.offset(a_at, row * lda + step);
        let scalar = code.load_scalar(a, at);
        let a_value = code.broadcast(scalar);
        for vector in 0..vectors {
            next.push(code.fma(a_value, b_row[vector], sums[row * vectors + vector]));
        }
    }
    next
}
