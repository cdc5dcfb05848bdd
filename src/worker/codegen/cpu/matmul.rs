//! The macro-kernel: the loops around the micro-kernel that keep a block of A and a panel of B in cache.
//!
//! ```text
//! for each block of `nc` columns, of `kc` depth:
//!   copy B's block in panels (pack-b = during)
//!   for each block of `mc` rows:
//!     copy A's block row by row (pack-a)          rows KC + 16 apart: no two rows of a tile share a cache set
//!     for each column panel, for each row tile    (or the other way round)
//!       micro-kernel: C tile (+)= A tile * B panel; on the last depth block bias, activation and so on
//! ```
//! B is packed into panels of `nr` columns, zero-padded to whole vectors: ahead, or here, block by block; or it is read where it
//! lies.
//!
//! Of operands of 16 bits a copy of A is f32, so that a row's element is widened once and not for every panel: without the copy a
//! product of 128x3072x768 takes three times as long. Packed weights stay as they are and are widened in registers: half the bytes
//! for one row (f16, 1x4096x4096: 10.9 ms, packed as f32 19.8, all f32 16.0), and for 128 rows no slower than weights that were
//! widened when they were packed (128x3072x768: 31.6 ms, 35.7, 32.4; medians on a busy machine with AVX2, `costs_tests`). C is
//! rounded once: sums over several depth blocks are kept in the workspace as f32.
//!
//! With `dot = pairs` a step of the depth is two terms: a pair of a row of A, 32 bits that are broadcast as one f32 is, with pairs
//! of two rows of B, which packing puts side by side. So all that is said of elements below holds for pairs, a packed buffer has
//! f32 in whose place the pairs are, and an odd depth is completed by a row of zeros; of A nothing is read beyond its last element.

use super::{
    emit::{Code, Kind, Lanes, Mem, Val},
    micro::{Epilogue, Micro, MicroKernels, Operands},
    pack::{Depth, Source},
};
pub use kernelforge::plan::schedule::MatmulSchedule as Schedule;
use kernelforge::{
    manifest::spec::Dtype,
    plan::schedule::{Dot, PackB, Split, TileOrder},
};

/// Elements between packed rows of A beyond the depth: one cache line, so that rows do not alias.
const ROW_PAD: usize = LINE;
/// f32 elements of a cache line.
const LINE: usize = 16;

/// One product C[m, n] = A[m, k] B[k, n] with its leading dimensions in elements.
pub struct Product<'a> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub lda: usize,
    pub ldc: usize,
    pub schedule: &'a Schedule,
    pub epilogue: Epilogue,
    /// How C is stored.
    pub result: Dtype,
    /// The most rows that one call of [`Product::emit`] is for.
    pub rows: usize,
}

/// The buffers of a product, each with the element that its first row and column are at.
#[derive(Clone, Copy)]
pub struct Buffers {
    pub a: (Mem, Val),
    /// Packed if the schedule packs ahead, else [k, n] row-major.
    pub b: Mem,
    pub c: (Mem, Val),
    pub bias: Option<Mem>,
    pub multiply: Option<(Mem, Val)>,
    pub residual: Option<(Mem, Val)>,
    /// At least [`Product::workspace`] elements.
    pub workspace: Option<(Mem, Val)>,
}

impl Product<'_> {
    fn row_tiles(&self) -> usize {
        self.m.div_ceil(self.schedule.mr)
    }

    fn panels(&self) -> usize {
        self.n.div_ceil(self.schedule.nr)
    }

    /// Independent units that a call can be split into.
    pub fn units(&self) -> usize {
        match self.schedule.split {
            Split::Rows => self.row_tiles(),
            Split::Columns => self.panels(),
        }
    }

    /// f32 elements of working memory for one thread: a block of A, a block of B, then sums.
    pub fn workspace(&self) -> usize {
        self.packed_a() + self.packed_b() + self.sums()
    }

    /// Elements of a block of A: no more rows than there are.
    fn packed_a(&self) -> usize {
        let rows = self.schedule.mc.min(self.rows.next_multiple_of(self.schedule.mr));
        // Whole lines, so that B's panels begin with one.
        if self.schedule.pack_a { (rows * self.packed_stride()).next_multiple_of(LINE) } else { 0 }
    }

    /// Elements of a block of B: no more panels, and no more depth, than there are.
    fn packed_b(&self) -> usize {
        let block = self.block_columns() * self.block_steps().min(self.steps());
        if self.schedule.pack_b == PackB::During { block.next_multiple_of(LINE) } else { 0 }
    }

    /// Columns of a block, the last panel whole.
    fn block_columns(&self) -> usize {
        (self.schedule.nc / self.schedule.nr).clamp(1, self.panels()) * self.schedule.nr
    }

    /// Steps of the whole depth.
    fn steps(&self) -> usize {
        self.k.div_ceil(self.schedule.dot.terms())
    }

    /// Steps of a block of depth.
    fn block_steps(&self) -> usize {
        self.schedule.kc / self.schedule.dot.terms()
    }

    /// Elements between rows of a copied block of A.
    fn packed_stride(&self) -> usize {
        self.block_steps().min(self.steps()) + ROW_PAD
    }

    fn depths(&self) -> usize {
        self.steps().div_ceil(self.block_steps())
    }

    /// Elements between rows of sums: a block of columns, and a cache line so that rows do not alias.
    fn sums_stride(&self) -> usize {
        self.block_columns() + ROW_PAD
    }

    /// Elements of the sums that depth blocks hand on, where C cannot hold them.
    fn sums(&self) -> usize {
        match self.result {
            Dtype::F16 | Dtype::Bf16 if self.depths() > 1 => {
                self.rows.next_multiple_of(self.schedule.mr) * self.sums_stride()
            }
            _ => 0,
        }
    }

    /// Emits the units `begin..end`.
    pub fn emit_units(&self, code: &mut Code, micros: &mut MicroKernels, buffers: Buffers, begin: Val, end: Val) {
        let zero = code.index(0);
        match self.schedule.split {
            Split::Rows => {
                let all = code.index(self.panels());
                self.emit(code, micros, buffers, (begin, end), (zero, all));
            }
            Split::Columns => {
                let all = code.index(self.row_tiles());
                self.emit(code, micros, buffers, (zero, all), (begin, end));
            }
        }
    }

    /// Emits the product of the row tiles `rows` with the column panels `panels`, both half-open ranges.
    pub fn emit(
        &self,
        code: &mut Code,
        micros: &mut MicroKernels,
        buffers: Buffers,
        rows: (Val, Val),
        panels: (Val, Val),
    ) {
        let s = self.schedule;
        let (row_step, panel_step) = ((s.mc / s.mr).max(1), (s.nc / s.nr).max(1));
        let depths = self.depths();
        code.for_(panels.0, panels.1, panel_step, |code, panel| {
            let panel_end = code.offset(panel, panel_step);
            let panel_end = code.min(panel_end, panels.1);
            let mut depth_block = |code: &mut Code, start: Val, depth: usize, first: bool, last: bool| {
                let b = self.pack_b(code, buffers, (panel, panel_end), Depth { start, steps: depth, last });
                code.for_(rows.0, rows.1, row_step, |code, row| {
                    let row_end = code.offset(row, row_step);
                    let row_end = code.min(row_end, rows.1);
                    let block = Block { product: self, buffers, b, origin: (rows.0, panel), start, depth, first, last };
                    block.emit(code, micros, (row, row_end), (panel, panel_end));
                });
            };
            // The first and the last depth block have code of their own: they start from zero, and they run the epilogue.
            let (zero, steps, kc) = (code.index(0), self.steps(), self.block_steps());
            depth_block(code, zero, kc.min(steps), true, depths == 1);
            if depths > 2 {
                let (low, high) = (code.index(kc), code.index((depths - 1) * kc));
                code.for_(low, high, kc, |code, start| depth_block(code, start, kc, false, false));
            }
            if depths > 1 {
                let start = (depths - 1) * kc;
                let at = code.index(start);
                depth_block(code, at, steps - start, false, true);
            }
        });
    }

    /// Emits the copy of a block of B, where the kernel packs; where it is.
    fn pack_b(&self, code: &mut Code, buffers: Buffers, panels: (Val, Val), depth: Depth) -> Option<(Mem, Val)> {
        let s = self.schedule;
        let (workspace, at) = buffers.workspace.filter(|_| s.pack_b == PackB::During)?;
        let at = code.offset(at, self.packed_a());
        Source { n: self.n, k: self.k, schedule: s, mem: buffers.b }.emit_block(code, panels, depth, (workspace, at));
        Some((workspace, at))
    }
}

/// One block of rows, columns and depth.
struct Block<'a> {
    product: &'a Product<'a>,
    buffers: Buffers,
    /// The copy of this block of B, which begins with its first panel.
    b: Option<(Mem, Val)>,
    /// The row tile and the panel that the sums begin with.
    origin: (Val, Val),
    /// First step of the depth.
    start: Val,
    /// In steps.
    depth: usize,
    first: bool,
    last: bool,
}

impl Block<'_> {
    fn emit(&self, code: &mut Code, micros: &mut MicroKernels, rows: (Val, Val), panels: (Val, Val)) {
        let s = self.product.schedule;
        let packed = s.pack_a.then(|| self.pack_a(code, rows));
        let mut tile = |code: &mut Code, row: Val, panel: Val| self.tile(code, micros, packed, rows.0, row, panel);
        match s.order {
            TileOrder::ColumnsOutside => code.for_(panels.0, panels.1, 1, |code, panel| {
                code.for_(rows.0, rows.1, 1, |code, row| tile(code, row, panel));
            }),
            TileOrder::RowsOutside => code.for_(rows.0, rows.1, 1, |code, row| {
                code.for_(panels.0, panels.1, 1, |code, panel| tile(code, row, panel));
            }),
        }
    }

    fn pack_a(&self, code: &mut Code, rows: (Val, Val)) -> Option<(Mem, Val)> {
        let (product, s) = (self.product, self.product.schedule);
        let (workspace, at) = self.buffers.workspace?;
        let (a, a_at) = self.buffers.a;
        let (first, end) = (code.times(rows.0, s.mr), code.times(rows.1, s.mr));
        let (m, terms) = (code.index(product.m), s.dot.terms());
        // Elements of A in this block: the last pair may have one.
        let valid = self.depth * terms - if self.last { product.k % terms } else { 0 };
        let load = |code: &mut Code, at: Val, valid: usize| match s.dot {
            Dot::Fma => {
                let lanes = code.first_lanes(valid);
                code.load(a, at, lanes)
            }
            Dot::Pairs => code.load_pairs(a, at, valid),
        };
        let end = code.min(end, m);
        code.with_lanes(s.lanes, |code| {
            code.for_(first, end, 1, |code, row| {
                let from = code.times(row, product.lda);
                let from = code.add(from, a_at);
                let start = code.times(self.start, terms);
                let from = code.add(from, start);
                let to = code.sub(row, first);
                let to = code.times(to, product.packed_stride());
                let to = code.add(to, at);
                let whole = valid / (s.lanes * terms) * s.lanes;
                let (low, high) = (code.index(0), code.index(whole));
                code.for_(low, high, s.lanes, |code, k| {
                    let along = code.times(k, terms);
                    let (from, to) = (code.add(from, along), code.add(to, k));
                    let value = load(code, from, s.lanes * terms);
                    code.store(value, workspace, to, Lanes::All);
                });
                if whole < self.depth {
                    let lanes = code.first_lanes(self.depth - whole);
                    let (from, to) = (code.offset(from, whole * terms), code.offset(to, whole));
                    let value = load(code, from, valid - whole * terms);
                    code.store(value, workspace, to, lanes);
                }
            });
        });
        Some((workspace, at))
    }

    /// One register tile: the full one or, on the last row or column, the tail's.
    fn tile(
        &self,
        code: &mut Code,
        micros: &mut MicroKernels,
        packed: Option<Option<(Mem, Val)>>,
        first_row: Val,
        row: Val,
        panel: Val,
    ) {
        let (product, s) = (self.product, self.product.schedule);
        let micros = std::cell::RefCell::new(micros);
        let by_rows = |code: &mut Code, columns: usize| {
            let call = |code: &mut Code, rows: usize| {
                self.call(code, &mut micros.borrow_mut(), packed.flatten(), first_row, row, panel, rows, columns);
            };
            match product.m % s.mr {
                0 => call(code, s.mr),
                tail if product.m < s.mr => call(code, tail),
                tail => code.if_equal(row, product.row_tiles() - 1, |code| call(code, tail), |code| call(code, s.mr)),
            }
        };
        match product.n % s.nr {
            0 => by_rows(code, s.nr),
            tail if product.n < s.nr => by_rows(code, tail),
            tail => code.if_equal(panel, product.panels() - 1, |code| by_rows(code, tail), |code| by_rows(code, s.nr)),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "coordinates of one tile")]
    fn call(
        &self,
        code: &mut Code,
        micros: &mut MicroKernels,
        packed: Option<(Mem, Val)>,
        first_row: Val,
        row: Val,
        panel: Val,
        rows: usize,
        columns: usize,
    ) {
        let (product, s, buffers) = (self.product, self.product.schedule, &self.buffers);
        let (top, left) = (code.times(row, s.mr), code.times(panel, s.nr));
        let (a, lda) = match packed {
            Some((mem, at)) => {
                let down = code.sub(row, first_row);
                let down = code.times(down, s.mr * product.packed_stride());
                ((mem, code.add(at, down)), product.packed_stride())
            }
            None => {
                let down = code.times(top, product.lda);
                let at = code.add(buffers.a.1, down);
                let start = code.times(self.start, s.dot.terms());
                ((buffers.a.0, code.add(at, start)), product.lda)
            }
        };
        let (b, b_at, ldb) = match (s.pack_b, self.b) {
            (PackB::During, Some((copy, at))) => {
                let panel_at = code.sub(panel, self.origin.1);
                let panel_at = code.times(panel_at, s.nr * self.depth);
                (copy, code.add(at, panel_at), s.nr)
            }
            (PackB::Ahead, _) => {
                let (panel_at, depth_at) = (code.times(panel, s.nr * product.steps()), code.times(self.start, s.nr));
                (buffers.b, code.add(panel_at, depth_at), s.nr)
            }
            (PackB::During | PackB::Never, _) => {
                let depth_at = code.times(self.start, product.n);
                (buffers.b, code.add(depth_at, left), product.n)
            }
        };
        // A copy has a zero for what the last pair lacks.
        let odd = self.last && packed.is_none() && !product.k.is_multiple_of(s.dot.terms());
        let depth = self.depth - usize::from(odd);
        let down = code.times(top, product.ldc);
        let tile_at = code.add(down, left);
        let sums = self.sums(code, row, panel);
        let mut like_c = |(mem, at): (Mem, Val)| (mem, code.add(at, tile_at));
        let c = match sums {
            Some(sums) if !self.last => sums,
            _ => like_c(buffers.c),
        };
        let operands = Operands {
            a,
            b: (b, b_at),
            c,
            sums: sums.filter(|_| self.last && !self.first),
            bias: buffers.bias.map(|mem| (mem, left)),
            row_scale: None,
            multiply: buffers.multiply.map(&mut like_c),
            residual: buffers.residual.map(&mut like_c),
            depth: code.index(depth),
            next: None,
        };
        let extra = buffers.multiply.or(buffers.residual);
        let micro = Micro {
            rows,
            vectors: columns.div_ceil(s.lanes),
            lanes: s.lanes,
            last: (columns - 1) % s.lanes + 1,
            b_padded: s.pack_b != PackB::Never,
            unroll: s.unroll,
            dot: s.dot,
            odd,
            whole_unroll: depth.is_multiple_of(s.unroll),
            lda,
            ldb,
            ldc: if sums.is_some() && !self.last { product.sums_stride() } else { product.ldc },
            accumulate: !self.first,
            sums: operands.sums.map(|it| (it.0.kind(), product.sums_stride())),
            prefetch: if self.prefetches() { s.mc / s.mr } else { 0 },
            epilogue: self.last.then_some(product.epilogue),
            a: a.0.kind(),
            b: b.kind(),
            c: c.0.kind(),
            bias: Kind::of(buffers.bias),
            scale: Kind::NONE,
            extra: Kind::of(extra.map(|it| it.0)),
        };
        let operands = Operands { next: self.next_panel(code, micro, b_at, first_row, row), ..operands };
        micros.call(code, micro, &operands);
    }

    /// Where the sums of this tile are, if they are not in C.
    fn sums(&self, code: &mut Code, row: Val, panel: Val) -> Option<(Mem, Val)> {
        let (product, s) = (self.product, self.product.schedule);
        let (workspace, at) = self.buffers.workspace.filter(|_| product.sums() > 0)?;
        let (down, right) = (code.sub(row, self.origin.0), code.sub(panel, self.origin.1));
        let (down, right) = (code.times(down, s.mr * product.sums_stride()), code.times(right, s.nr));
        let at = code.add(at, down);
        let at = code.add(at, right);
        Some((workspace, code.offset(at, product.packed_a() + product.packed_b())))
    }

    /// While the row tiles of a block walk over one panel of B in L2, they ask for the next one: without that the first tile of
    /// every panel waits for memory.
    fn prefetches(&self) -> bool {
        let s = self.product.schedule;
        let whole_lines = self.buffers.b.kind().line().is_multiple_of(s.unroll);
        s.prefetch && s.pack_b == PackB::Ahead && s.order == TileOrder::ColumnsOutside && whole_lines
    }

    /// Where the share of this row tile in the next panel begins.
    fn next_panel(&self, code: &mut Code, micro: Micro, b_at: Val, first_row: Val, row: Val) -> Option<Val> {
        if !self.prefetches() {
            return None;
        }
        let panel = code.offset(b_at, self.product.schedule.nr * self.product.steps());
        let tile = code.sub(row, first_row);
        let share = code.times(tile, micro.prefetch_share(self.depth));
        Some(code.add(panel, share))
    }
}
