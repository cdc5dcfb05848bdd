//! Attention for one batch and head at a time, the scores of a block of rows in cache:
//!
//! ```text
//! K^T: the head's keys transposed into panels of `nr` keys       (register transposes of lanes x lanes)
//! V:   the head's values copied into panels of `nr` columns      (`pack_v`)
//! for each block of `row_block` query rows:
//!   for each panel of keys that a row may see, for each row tile: scores = Q K^T    (micro-kernel, depth head_dim)
//!   for each row tile: softmax over the visible keys, `softmax_rows` rows at a time, left unnormalised; zero up to the
//!                      tile's last key; 1/sum kept
//!   for each row tile: O = (P V) * 1/sum                                            (micro-kernel, depth = keys seen)
//! ```
//! With a causal mask, panels and keys beyond a tile's last row are never computed.
//!
//! Where they lie, the rows of one head's V are a whole model width apart and share a few sets of L1: every tile would read them
//! from L2 again.

use super::{
    emit::{Code, Kind, Lanes, Mem, Val},
    math,
    micro::{Epilogue, Micro, MicroKernels, Operands},
};
use kernelforge::plan::schedule::{AttentionSchedule, Dot};

/// Elements between rows of scores beyond the keys: a cache line against set conflicts. There is room for the last vectors too.
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

    /// Elements of the copied values.
    fn values_len(&self) -> usize {
        if self.schedule.pack_v { self.head_dim.next_multiple_of(self.schedule.nr) * self.seq } else { 0 }
    }

    /// The first element of the scores in the workspace, and of the reciprocal sums.
    fn scores_at(&self) -> usize {
        self.keys_len() + self.values_len()
    }

    fn sums_at(&self) -> usize {
        self.scores_at() + self.row_block() * self.lds()
    }

    /// Elements between rows of scores.
    fn lds(&self) -> usize {
        self.panels() * self.schedule.nr + ROW_PAD.max(self.last_vectors() * self.schedule.lanes)
    }

    /// With a causal mask: vectors from the last that a row sees whole to the tile's last key, at most.
    fn last_vectors(&self) -> usize {
        (self.schedule.mr + self.schedule.lanes - 1).div_ceil(self.schedule.lanes)
    }

    fn row_block(&self) -> usize {
        self.schedule.row_block.min(self.seq.next_multiple_of(self.schedule.mr))
    }

    /// f32 elements of working memory for one thread: transposed keys, copied values, scores, reciprocal sums.
    pub fn workspace(&self) -> usize {
        self.sums_at() + self.row_block().next_multiple_of(16)
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
            if self.schedule.pack_v {
                self.copy_values(code, buffers, kv_at);
            }
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

    /// Values [seq, head_dim] -> panels [head_dim / nr][seq][nr], filled up with zeros.
    fn copy_values(&self, code: &mut Code, buffers: &Buffers, kv_at: Val) {
        let (lanes, nr, stride) = (self.schedule.lanes, self.schedule.nr, self.kv_heads * self.head_dim);
        let (zero, seq) = (code.index(0), code.index(self.seq));
        code.for_(zero, seq, 1, |code, key| {
            let from = code.times(key, stride);
            let from = code.add(from, kv_at);
            let to = code.times(key, nr);
            let to = code.offset(to, self.keys_len());
            for column in (0..self.head_dim.next_multiple_of(nr)).step_by(lanes) {
                let at = code.offset(to, column / nr * nr * self.seq + column % nr);
                let value = if column < self.head_dim {
                    let (from, mask) =
                        (code.offset(from, column), code.first_lanes((self.head_dim - column).min(lanes)));
                    code.load(buffers.v, from, mask)
                } else {
                    code.splat(0.0)
                };
                code.store(value, buffers.workspace, at, Lanes::All);
            }
        });
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
        code.for_(zero, tiles, 1, |code, tile| self.softmax_tile(code, buffers.workspace, row, tile));
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
            unroll: self.schedule.unroll,
            dot: Dot::Fma,
            odd: false,
            whole_unroll: false,
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
        let c_at = code.offset(c_at, self.scores_at());
        let depth = code.index(self.head_dim);
        let micros = std::cell::RefCell::new(micros);
        self.by_rows(code, row, tile, |code, rows| {
            let micro = Micro {
                lda: q_stride,
                ldb: nr,
                ldc: self.lds(),
                a: buffers.q.kind(),
                b: buffers.workspace.kind(),
                c: buffers.workspace.kind(),
                b_padded: true,
                whole_unroll: self.head_dim.is_multiple_of(self.schedule.unroll),
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

    /// The softmax of a tile's rows, `softmax_rows` at a time.
    fn softmax_tile(&self, code: &mut Code, workspace: Mem, row: Val, tile: Val) {
        let first = code.times(tile, self.schedule.mr);
        self.by_rows(code, row, tile, |code, rows| {
            let together = self.schedule.softmax_rows.min(rows);
            let whole = rows / together * together;
            let (zero, high) = (code.index(0), code.index(whole));
            code.for_(zero, high, together, |code, local| {
                let local = code.add(first, local);
                self.softmax_rows(code, workspace, row, local, together);
            });
            if whole < rows {
                let local = code.offset(first, whole);
                self.softmax_rows(code, workspace, row, local, rows - whole);
            }
        });
    }

    /// Scores of `count` rows of a tile -> exp(scale (s - max)), zero from the last visible key to the tile's last one; 1/sum of
    /// each row is kept.
    ///
    /// Rows go together because one alone waits: for its maximum, for its sum, and in a short row for every exponential.
    fn softmax_rows(&self, code: &mut Code, workspace: Mem, row: Val, local: Val, count: usize) {
        let lanes = self.schedule.lanes;
        let at = code.times(local, self.lds());
        let at = code.offset(at, self.scores_at());
        let starts: Vec<_> = (0..count).map(|it| code.offset(at, it * self.lds())).collect();
        let query = code.add(row, local);
        // Keys that every row sees, in whole vectors.
        let whole = if self.causal {
            let visible = code.offset(query, 1);
            let whole = code.quotient(visible, lanes);
            code.times(whole, lanes)
        } else {
            code.index(self.seq / lanes * lanes)
        };
        // Vectors of which a row sees a part or nothing: where they begin, and what each row sees.
        let last: Vec<(Val, Vec<Val>)> = if self.causal {
            let masks = |code: &mut Code, vector: usize| {
                let key = code.offset(whole, vector * lanes);
                let mask = |it| {
                    let visible = code.offset(query, it + 1);
                    let seen = code.sub_or_zero(visible, key);
                    code.first_lanes_dynamic(seen)
                };
                (key, (0..count).map(mask).collect())
            };
            (0..self.last_vectors()).map(|vector| masks(code, vector)).collect()
        } else if self.seq.is_multiple_of(lanes) {
            Vec::new()
        } else {
            let width = code.index(self.seq % lanes);
            vec![(whole, vec![code.first_lanes_dynamic(width); count])]
        };
        // scale > 0 leaves the order of scores as it is, scale < 0 reverses it.
        let further = |code: &mut Code, value: Val, so_far: Val| {
            if self.scale < 0.0 { code.vmin(value, so_far) } else { code.vmax(value, so_far) }
        };
        let (zero, scale, none) = (code.index(0), code.splat(self.scale), code.splat(0.0));
        let nothing = code.splat(if self.scale < 0.0 { f32::INFINITY } else { f32::NEG_INFINITY });

        let mut furthest = code.fold((zero, whole, lanes), &vec![nothing; count], |code, key, carried| {
            let next = |(&start, &carried): (&Val, &Val)| {
                let at = code.add(start, key);
                let value = code.load(workspace, at, Lanes::All);
                further(code, value, carried)
            };
            starts.iter().zip(carried).map(next).collect()
        });
        for (key, masks) in &last {
            for (index, &mask) in masks.iter().enumerate() {
                let at = code.add(starts[index], *key);
                let value = code.load(workspace, at, Lanes::All);
                let value = code.select(mask, value, nothing);
                furthest[index] = further(code, value, furthest[index]);
            }
        }
        let kind = if self.scale < 0.0 { "minnumf" } else { "maxnumf" };
        for value in &mut furthest {
            let one = code.reduce(kind, *value);
            *value = code.broadcast(one);
        }

        let weight = |code: &mut Code, at: Val, furthest: Val| {
            let value = code.load(workspace, at, Lanes::All);
            let below = code.vsub(value, furthest);
            let z = code.vmul(below, scale);
            math::exp_up_to_one(code, z)
        };
        let mut sums = code.fold((zero, whole, lanes), &vec![none; count], |code, key, carried| {
            let next = |(index, &sum): (usize, &Val)| {
                let at = code.add(starts[index], key);
                let value = weight(code, at, furthest[index]);
                code.store(value, workspace, at, Lanes::All);
                code.vadd(sum, value)
            };
            carried.iter().enumerate().map(next).collect()
        });
        for (key, masks) in &last {
            for (index, &mask) in masks.iter().enumerate() {
                let at = code.add(starts[index], *key);
                let value = weight(code, at, furthest[index]);
                let value = code.select(mask, value, none);
                code.store(value, workspace, at, Lanes::All);
                sums[index] = code.vadd(sums[index], value);
            }
        }
        let one = code.scalar(1.0);
        for (index, sum) in sums.into_iter().enumerate() {
            let sum = code.reduce("add", sum);
            let reciprocal = code.scalar_op("divf", one, sum);
            let at = code.offset(local, self.sums_at() + index);
            code.store_scalar(reciprocal, workspace, at);
        }
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
        let scores_at = code.offset(scores_at, self.scores_at());
        let sums_at = code.offset(down, self.sums_at());
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
            let c_at = code.offset(o_at, first);
            let (b, b_at, ldb) = if self.schedule.pack_v {
                (buffers.workspace, code.index(self.keys_len() + first * self.seq), nr)
            } else {
                (buffers.v, code.offset(kv_at, first), kv_stride)
            };
            self.by_rows(code, row, tile, |code, rows| {
                let micro = Micro {
                    lda: self.lds(),
                    ldb,
                    ldc: q_stride,
                    b_padded: self.schedule.pack_v,
                    a: buffers.workspace.kind(),
                    b: b.kind(),
                    c: buffers.o.kind(),
                    scale: buffers.workspace.kind(),
                    epilogue: Some(Epilogue { row_scale: true, ..Epilogue::default() }),
                    ..self.micro(rows, columns)
                };
                let operands = Operands {
                    a: (buffers.workspace, scores_at),
                    b: (b, b_at),
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
