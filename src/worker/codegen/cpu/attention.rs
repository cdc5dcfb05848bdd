//! Attention for one batch and head at a time, the scores of a block of rows in cache:
//!
//! ```text
//! K^T: the head's keys transposed into panels of `nr` keys       (register transposes of lanes x lanes)
//! for each block of `row_block` query rows:
//!   for each panel of keys that a row may see, for each row tile: scores = Q K^T    (micro-kernel, depth head_dim)
//!   for each row: softmax over the visible keys, left unnormalised; zero up to the tile's last key; 1/sum kept
//!   for each row tile: O = (P V) * 1/sum                                            (micro-kernel, depth = keys seen)
//! ```
//! With a causal mask, panels and keys beyond a tile's last row are never computed.

use super::{
    emit::{Code, Kind, Lanes, Mem, Val},
    math,
    micro::{Epilogue, Micro, MicroKernels, Operands},
};
use kernelforge::plan::schedule::{AttentionSchedule, Dot};

/// Elements between rows of scores beyond the keys: a cache line against set conflicts, and room for the last vector.
const ROW_PAD: usize = 16;

pub struct Attention<'a> {
    pub seq: usize,
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub causal: bool,
    pub scale: f32,
    pub schedule: &'a AttentionSchedule,
}

pub struct Buffers {
    pub q: Mem,
    pub k: Mem,
    pub v: Mem,
    pub o: Mem,
    pub workspace: Mem,
}

impl Attention<'_> {
    /// One unit for each batch and query head.
    pub fn units(&self) -> usize {
        self.batch * self.heads
    }

    fn panels(&self) -> usize {
        self.seq.div_ceil(self.schedule.nr)
    }

    fn keys_len(&self) -> usize {
        self.panels() * self.schedule.nr * self.head_dim
    }

    /// Elements between rows of scores.
    fn lds(&self) -> usize {
        self.panels() * self.schedule.nr + ROW_PAD.max(self.schedule.lanes)
    }

    fn row_block(&self) -> usize {
        self.schedule.row_block.min(self.seq.next_multiple_of(self.schedule.mr))
    }

    /// f32 elements of working memory for one thread: transposed keys, scores, reciprocal sums.
    pub fn workspace(&self) -> usize {
        self.keys_len() + self.row_block() * self.lds() + self.row_block().next_multiple_of(16)
    }

    pub fn emit_units(&self, code: &mut Code, micros: &mut MicroKernels, buffers: &Buffers, begin: Val, end: Val) {
        code.for_(begin, end, 1, |code, unit| {
            let batch = code.quotient(unit, self.heads);
            let head = code.remainder(unit, self.heads);
            let kv_head = code.quotient(head, self.heads / self.kv_heads);
            let first_token = code.times(batch, self.seq);
            let (q_stride, kv_stride) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
            let at = |code: &mut Code, stride: usize, head: Val| {
                let row = code.times(first_token, stride);
                let column = code.times(head, self.head_dim);
                code.add(row, column)
            };
            let (q_at, kv_at) = (at(code, q_stride, head), at(code, kv_stride, kv_head));
            self.transpose_keys(code, buffers, kv_at);
            let (zero, seq) = (code.index(0), code.index(self.seq));
            code.for_(zero, seq, self.row_block(), |code, row| {
                self.row_block_of(code, micros, buffers, q_at, kv_at, row)
            });
        });
    }

    /// Keys [seq, head_dim] -> panels [seq / nr][head_dim][nr]. Columns beyond the last key hold anything: no result
    /// depends on them.
    fn transpose_keys(&self, code: &mut Code, buffers: &Buffers, kv_at: Val) {
        let (lanes, nr, stride) = (self.schedule.lanes, self.schedule.nr, self.kv_heads * self.head_dim);
        let group = |code: &mut Code, first_key: Val, keys: usize| {
            let panel = code.quotient(first_key, nr);
            let panel_at = code.times(panel, nr * self.head_dim);
            let column = code.remainder(first_key, nr);
            let target = code.add(panel_at, column);
            let source = code.times(first_key, stride);
            let source = code.add(source, kv_at);
            let square = |code: &mut Code, source: Val, target: Val, depth: usize| {
                let zero = code.splat(0.0);
                let mask = code.first_lanes(depth);
                let rows: Vec<_> = (0..lanes)
                    .map(|row| {
                        if row >= keys {
                            return zero;
                        }
                        let at = code.offset(source, row * stride);
                        code.load(buffers.k, at, mask)
                    })
                    .collect();
                for (index, value) in transpose(code, rows).into_iter().take(depth).enumerate() {
                    let at = code.offset(target, index * nr);
                    code.store(value, buffers.workspace, at, Lanes::All);
                }
            };
            let whole = self.head_dim / lanes * lanes;
            let (zero, high) = (code.index(0), code.index(whole));
            code.for_(zero, high, lanes, |code, depth| {
                let down = code.times(depth, nr);
                let (source, target) = (code.add(source, depth), code.add(target, down));
                square(code, source, target, lanes);
            });
            if whole < self.head_dim {
                let (source, target) = (code.offset(source, whole), code.offset(target, whole * nr));
                square(code, source, target, self.head_dim - whole);
            }
        };
        let whole = self.seq / lanes * lanes;
        let (zero, high) = (code.index(0), code.index(whole));
        code.for_(zero, high, lanes, |code, key| group(code, key, lanes));
        if whole < self.seq {
            let key = code.index(whole);
            group(code, key, self.seq - whole);
        }
    }

    fn row_block_of(
        &self,
        code: &mut Code,
        micros: &mut MicroKernels,
        buffers: &Buffers,
        q_at: Val,
        kv_at: Val,
        row: Val,
    ) {
        let (mr, nr) = (self.schedule.mr, self.schedule.nr);
        let (zero, seq) = (code.index(0), code.index(self.seq));
        let end = code.offset(row, self.row_block());
        let end = code.min(end, seq);
        let rows = code.sub(end, row);
        let tiles = code.quotient_up(rows, mr);
        let keys = if self.causal { end } else { seq };
        let panels = code.quotient_up(keys, nr);
        code.for_(zero, panels, 1, |code, panel| {
            let first = if self.causal {
                let first_key = code.times(panel, nr);
                let below = code.sub_or_zero(first_key, row);
                code.quotient(below, mr)
            } else {
                zero
            };
            code.for_(first, tiles, 1, |code, tile| self.scores(code, micros, buffers, q_at, row, tile, panel));
        });
        code.for_(zero, rows, 1, |code, local| self.softmax_row(code, buffers.workspace, row, local));
        code.for_(zero, tiles, 1, |code, tile| self.output(code, micros, buffers, q_at, kv_at, row, tile));
    }

    /// Calls `body` with the number of rows of this tile: `mr`, or the tail's on the last tile of the sequence.
    fn by_rows(&self, code: &mut Code, row: Val, tile: Val, body: impl Fn(&mut Code, usize)) {
        let mr = self.schedule.mr;
        match self.seq % mr {
            0 => body(code, mr),
            tail if self.seq < mr => body(code, tail),
            tail => {
                let index = code.quotient(row, mr);
                let index = code.add(index, tile);
                code.if_equal(index, self.seq / mr, |code| body(code, tail), |code| body(code, mr));
            }
        }
    }

    fn micro(&self, rows: usize, columns: usize) -> Micro {
        let lanes = self.schedule.lanes;
        Micro {
            rows,
            vectors: columns.div_ceil(lanes),
            lanes,
            last: (columns - 1) % lanes + 1,
            b_padded: false,
            unroll: 1,
            dot: Dot::Fma,
            odd: false,
            whole_unroll: true,
            lda: 0,
            ldb: 0,
            ldc: 0,
            accumulate: false,
            sums: None,
            prefetch: 0,
            epilogue: None,
            a: Kind::NONE,
            b: Kind::NONE,
            c: Kind::NONE,
            bias: Kind::NONE,
            scale: Kind::NONE,
            extra: Kind::NONE,
        }
    }

    #[allow(clippy::too_many_arguments, reason = "coordinates of one tile")]
    fn scores(
        &self,
        code: &mut Code,
        micros: &mut MicroKernels,
        buffers: &Buffers,
        q_at: Val,
        row: Val,
        tile: Val,
        panel: Val,
    ) {
        let (nr, q_stride) = (self.schedule.nr, self.heads * self.head_dim);
        let down = code.times(tile, self.schedule.mr);
        let query = code.add(row, down);
        let query = code.times(query, q_stride);
        let a_at = code.add(q_at, query);
        let b_at = code.times(panel, nr * self.head_dim);
        let c_row = code.times(down, self.lds());
        let column = code.times(panel, nr);
        let c_at = code.add(c_row, column);
        let c_at = code.offset(c_at, self.keys_len());
        let depth = code.index(self.head_dim);
        let micros = std::cell::RefCell::new(micros);
        self.by_rows(code, row, tile, |code, rows| {
            let unroll = if self.head_dim.is_multiple_of(4) { 4 } else { 1 };
            let micro = Micro {
                lda: q_stride,
                ldb: nr,
                ldc: self.lds(),
                a: buffers.q.kind(),
                b: buffers.workspace.kind(),
                c: buffers.workspace.kind(),
                b_padded: true,
                unroll,
                ..self.micro(rows, nr)
            };
            let operands = Operands {
                a: (buffers.q, a_at),
                b: (buffers.workspace, b_at),
                c: (buffers.workspace, c_at),
                sums: None,
                depth,
                next: None,
                bias: None,
                row_scale: None,
                multiply: None,
                residual: None,
            };
            micros.borrow_mut().call(code, micro, &operands);
        });
    }

    /// Scores of one row -> exp(scale s - max), zero from the last visible key to the tile's last one; its 1/sum is kept.
    fn softmax_row(&self, code: &mut Code, workspace: Mem, row: Val, local: Val) {
        let (lanes, mr) = (self.schedule.lanes, self.schedule.mr);
        let at = code.times(local, self.lds());
        let at = code.offset(at, self.keys_len());
        let seq = code.index(self.seq);
        let visible = if self.causal {
            let query = code.add(row, local);
            code.offset(query, 1)
        } else {
            seq
        };
        let whole = code.quotient(visible, lanes);
        let whole = code.times(whole, lanes);
        // Without a mask the tail is known now, and there may be none.
        let tail = match (self.causal, self.seq % lanes) {
            (false, 0) => None,
            (false, count) => {
                let width = code.index(count);
                Some(code.first_lanes_dynamic(width))
            }
            (true, _) => {
                let width = code.sub(visible, whole);
                Some(code.first_lanes_dynamic(width))
            }
        };
        let (zero, scale) = (code.index(0), code.splat(self.scale));
        let lowest = code.splat(f32::NEG_INFINITY);
        let tail_at = code.add(at, whole);

        let scaled = |code: &mut Code, at: Val, lanes: Lanes| {
            let value = code.load(workspace, at, lanes);
            code.vmul(value, scale)
        };
        let maximum = code.fold((zero, whole, lanes), &[lowest], |code, key, carried| {
            let at = code.add(at, key);
            let value = scaled(code, at, Lanes::All);
            vec![code.vmax(value, carried[0])]
        })[0];
        let maximum = match tail {
            Some(mask) => {
                let value = scaled(code, tail_at, Lanes::Masked(mask));
                let value = code.select(mask, value, lowest);
                code.vmax(value, maximum)
            }
            None => maximum,
        };
        let maximum = code.reduce("maxnumf", maximum);
        let maximum = code.broadcast(maximum);

        let weight = |code: &mut Code, at: Val, lanes: Lanes| {
            let value = scaled(code, at, lanes);
            let z = code.vsub(value, maximum);
            math::exp(code, z)
        };
        let none = code.splat(0.0);
        let sum = code.fold((zero, whole, lanes), &[none], |code, key, carried| {
            let at = code.add(at, key);
            let value = weight(code, at, Lanes::All);
            code.store(value, workspace, at, Lanes::All);
            vec![code.vadd(carried[0], value)]
        })[0];
        let (sum, written) = match tail {
            Some(mask) => {
                let value = weight(code, tail_at, Lanes::Masked(mask));
                let value = code.select(mask, value, none);
                code.store(value, workspace, tail_at, Lanes::All);
                (code.vadd(sum, value), code.offset(whole, lanes))
            }
            None => (sum, whole),
        };
        if self.causal {
            let tile = code.quotient(local, mr);
            let tile_end = code.times(tile, mr);
            let tile_end = code.offset(tile_end, mr);
            let tile_end = code.add(tile_end, row);
            // The last tile reads no further than the sequence; a tall one ends beyond this row of scores, in the next row.
            let tile_end = code.min(tile_end, seq);
            code.for_(written, tile_end, lanes, |code, key| {
                let at = code.add(at, key);
                code.store(none, workspace, at, Lanes::All);
            });
        }
        let sum = code.reduce("add", sum);
        let one = code.scalar(1.0);
        let reciprocal = code.scalar_op("divf", one, sum);
        let at = code.offset(local, self.keys_len() + self.row_block() * self.lds());
        code.store_scalar(reciprocal, workspace, at);
    }

    #[allow(clippy::too_many_arguments, reason = "coordinates of one tile")]
    fn output(
        &self,
        code: &mut Code,
        micros: &mut MicroKernels,
        buffers: &Buffers,
        q_at: Val,
        kv_at: Val,
        row: Val,
        tile: Val,
    ) {
        let (mr, nr) = (self.schedule.mr, self.schedule.nr);
        let (q_stride, kv_stride) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let down = code.times(tile, mr);
        let scores_at = code.times(down, self.lds());
        let scores_at = code.offset(scores_at, self.keys_len());
        let sums_at = code.offset(down, self.keys_len() + self.row_block() * self.lds());
        let query = code.add(row, down);
        let seq = code.index(self.seq);
        let depth = if self.causal {
            let end = code.offset(query, mr);
            code.min(end, seq)
        } else {
            seq
        };
        let down = code.times(query, q_stride);
        let o_at = code.add(q_at, down);
        let micros = std::cell::RefCell::new(micros);
        for first in (0..self.head_dim).step_by(nr) {
            let columns = nr.min(self.head_dim - first);
            let (b_at, c_at) = (code.offset(kv_at, first), code.offset(o_at, first));
            self.by_rows(code, row, tile, |code, rows| {
                let micro = Micro {
                    lda: self.lds(),
                    ldb: kv_stride,
                    ldc: q_stride,
                    a: buffers.workspace.kind(),
                    b: buffers.v.kind(),
                    c: buffers.o.kind(),
                    scale: buffers.workspace.kind(),
                    epilogue: Some(Epilogue { row_scale: true, ..Epilogue::default() }),
                    ..self.micro(rows, columns)
                };
                let operands = Operands {
                    a: (buffers.workspace, scores_at),
                    b: (buffers.v, b_at),
                    c: (buffers.o, c_at),
                    sums: None,
                    depth,
                    next: None,
                    bias: None,
                    row_scale: Some((buffers.workspace, sums_at)),
                    multiply: None,
                    residual: None,
                };
                micros.borrow_mut().call(code, micro, &operands);
            });
        }
    }
}

/// The transpose of a lanes x lanes square held in `rows`: log2(lanes) rounds of exchanging blocks between row pairs.
fn transpose(code: &mut Code, mut rows: Vec<Val>) -> Vec<Val> {
    let lanes = rows.len();
    let ty = code.vector_type();
    let mut distance = 1;
    while distance < lanes {
        for low in (0..lanes).filter(|row| row & distance == 0) {
            let high = low | distance;
            let mut shuffle = |pick: &dyn Fn(usize) -> usize| {
                let order: Vec<_> = (0..lanes).map(|column| pick(column).to_string()).collect();
                code.op(format_args!(
                    "vector.shuffle {}, {} [{}] : {ty}, {ty}",
                    rows[low],
                    rows[high],
                    order.join(", ")
                ))
            };
            let upper = shuffle(&|column| if column & distance == 0 { column } else { lanes + column - distance });
            let lower = shuffle(&|column| if column & distance == 0 { column + distance } else { lanes + column });
            (rows[low], rows[high]) = (upper, lower);
        }
        distance *= 2;
    }
    rows
}
