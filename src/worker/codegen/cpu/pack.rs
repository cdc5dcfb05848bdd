//! Copies of a row-major B [k, n] in panels of `nr` columns, zero-padded: of the whole in a prepare entry, or of a block of columns
//! and depth in the kernel itself, where it is hot in cache when the micro-kernel reads it.

use super::emit::{Code, Kind, Lanes, Mem, Val};
use kernelforge::{
    manifest::spec::Dtype,
    plan::schedule::{Dot, MatmulSchedule as Schedule},
};

/// Rows that are asked for before they are copied.
const ROWS_AHEAD: usize = 16;

/// The buffer of a weight [k, n] of this type that is packed for `schedule`.
pub fn packed(n: usize, k: usize, element: Dtype, schedule: &Schedule) -> Kind {
    let len = n.next_multiple_of(schedule.nr) * k.div_ceil(schedule.dot.terms());
    match schedule.dot {
        Dot::Fma => Kind { len, element },
        Dot::Pairs => Kind { len, element: Dtype::F32 },
    }
}

/// A matrix B [k, n] that is copied for `schedule`. Where the copy has other elements than B, they are widened.
pub struct Source<'a> {
    pub n: usize,
    pub k: usize,
    pub schedule: &'a Schedule,
    pub mem: Mem,
}

/// A block of depth, in steps.
#[derive(Clone, Copy)]
pub struct Depth {
    pub start: Val,
    pub steps: usize,
    /// The last step ends with the matrix: of a pair it may have the first row only.
    pub last: bool,
}

impl Source<'_> {
    /// Emits the packing of the panels `begin..end`, of all their depth.
    pub fn emit_pack(&self, code: &mut Code, target: Mem, begin: Val, end: Val) {
        let start = code.index(0);
        let depth = Depth { start, steps: self.k.div_ceil(self.schedule.dot.terms()), last: true };
        code.with_lanes(self.schedule.lanes, |code| {
            code.for_(begin, end, 1, |code, panel| {
                let at = code.times(panel, self.schedule.nr * depth.steps);
                let after = code.offset(panel, 1);
                self.copy(code, (panel, after), depth, (target, at), false);
            });
        });
    }

    /// Emits the packing of a block of depth of the panels `panels`, to `target` and on.
    pub fn emit_block(&self, code: &mut Code, panels: (Val, Val), depth: Depth, target: (Mem, Val)) {
        let prefetch = self.schedule.prefetch;
        code.with_lanes(self.schedule.lanes, |code| self.copy(code, panels, depth, target, prefetch));
    }

    /// Row by row, so that of a row all panels are read one after another.
    fn copy(&self, code: &mut Code, panels: (Val, Val), depth: Depth, target: (Mem, Val), prefetch: bool) {
        let (s, terms) = (self.schedule, self.schedule.dot.terms());
        let whole = code.index(self.n / s.nr);
        let tail = self.n % s.nr;
        let whole_end = code.min(panels.1, whole);
        let some = |code: &mut Code, (first, end): (Val, Val), columns: usize| {
            let row = |code: &mut Code, step: Val, rows: usize| {
                let from = code.add(depth.start, step);
                let (from, to) = (code.times(from, terms * self.n), code.times(step, s.nr));
                let to = code.add(to, target.1);
                code.for_(first, end, 1, |code, panel| {
                    let column = code.times(panel, s.nr);
                    let from = code.add(from, column);
                    let panel = code.sub(panel, panels.0);
                    let panel = code.times(panel, s.nr * depth.steps);
                    let to = code.add(to, panel);
                    if prefetch {
                        for at in (0..columns * terms).step_by(self.mem.kind().line()) {
                            let (row, column) = (ROWS_AHEAD * terms + at / columns, at % columns);
                            let at = code.offset(from, row * self.n + column);
                            code.prefetch(self.mem, at);
                        }
                    }
                    self.copy_step(code, from, (target.0, to), columns, rows);
                });
            };
            let odd = depth.last && !self.k.is_multiple_of(terms);
            let full = depth.steps - usize::from(odd);
            let (zero, full) = (code.index(0), code.index(full));
            code.for_(zero, full, 1, |code, step| row(code, step, terms));
            if odd {
                row(code, full, 1);
            }
        };
        if self.n >= s.nr {
            some(code, (panels.0, whole_end), s.nr);
        }
        if tail > 0 {
            let first = code.max(panels.0, whole);
            code.for_(first, panels.1, 1, |code, panel| {
                let after = code.offset(panel, 1);
                some(code, (panel, after), tail);
            });
        }
    }

    /// One step of one panel, of which so many columns, and of a pair so many rows, are B's.
    fn copy_step(&self, code: &mut Code, from: Val, (target, to): (Mem, Val), columns: usize, rows: usize) {
        let (s, element) = (self.schedule, self.mem.element);
        let widened = s.dot == Dot::Fma && target.element != element;
        for vector in 0..s.nr / s.lanes {
            let valid = columns.saturating_sub(vector * s.lanes).min(s.lanes);
            let load = |code: &mut Code, row: usize| {
                if valid == 0 || row >= rows {
                    return if widened { code.splat(0.0) } else { code.stored_zeros(element) };
                }
                let at = code.offset(from, row * self.n + vector * s.lanes);
                let lanes = code.first_lanes(valid);
                if widened { code.load(self.mem, at, lanes) } else { code.load_stored(self.mem, at, lanes) }
            };
            let first = load(code, 0);
            let value = match s.dot {
                Dot::Fma => first,
                Dot::Pairs => {
                    let second = load(code, 1);
                    code.paired(element, first, second)
                }
            };
            let at = code.offset(to, vector * s.lanes);
            if widened {
                code.store(value, target, at, Lanes::All);
            } else {
                code.store_stored(value, target, at);
            }
        }
    }
}
