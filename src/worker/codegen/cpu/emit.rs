//! Writes MLIR text: one small method for each op the generators need, SSA names and types kept right here. Text and not
//! melior's op builders, because a kernel is thousands of ops and parsing them takes 1-3 ms, and because what is emitted can be
//! read, saved and mutated.

use kernelforge::manifest::spec::Dtype;
use std::{
    collections::BTreeMap,
    fmt::{self, Display, Write as _},
};

/// An SSA value. `result` counts the results of a multi-result op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Val {
    id: u32,
    result: Option<u32>,
}

impl Display for Val {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.result {
            None => write!(f, "%{}", self.id),
            Some(result) => write!(f, "%{}#{result}", self.id),
        }
    }
}

/// A flat buffer of a static length: `memref<LENxf32>`, or of f16 or bf16, whose elements are widened when loaded and rounded once
/// when stored, so that everything else here is f32. All addressing is explicit: strides are static, so LLVM turns
/// constant offsets into displacements and a register tile needs one base register.
#[derive(Debug, Clone, Copy)]
pub struct Mem {
    pub val: Val,
    pub len: usize,
    pub element: Dtype,
}

/// The length and the element type of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    pub len: usize,
    pub element: Dtype,
}

impl Kind {
    /// Of a buffer that is not there.
    pub const NONE: Self = Self { len: 0, element: Dtype::F32 };

    pub fn of(mem: Option<Mem>) -> Self {
        mem.map_or(Self::NONE, Mem::kind)
    }

    /// A cache line has so many elements.
    pub const fn line(self) -> usize {
        64 / self.element.bytes()
    }
}

/// The unmasked or masked lanes of a vector access.
#[derive(Debug, Clone, Copy)]
pub enum Lanes {
    All,
    /// Only lanes where this `vector<..xi1>` is set.
    Masked(Val),
}

/// One function under construction. `lanes` is the vector width of every vector op; 1 is scalar code.
pub struct Code {
    /// Constants, each once, at the function's head: a register tile names the same offsets hundreds of times.
    constants: BTreeMap<String, Val>,
    text: String,
    indent: usize,
    next: u32,
    lanes: usize,
}

/// A comparison of two vectors.
pub enum Compare {
    Less,
    Greater,
}

/// The bits of `value` as MLIR spells an f32: hexadecimal is exact and also covers infinities.
fn literal(value: f32) -> String {
    let decimal = format!("{value:?}");
    let plain = value.is_finite() && decimal.contains('.') && !decimal.contains('e');
    if plain && decimal.parse() == Ok(value) { decimal } else { format!("0x{:08X}", value.to_bits()) }
}

impl Code {
    pub fn new(lanes: usize) -> Self {
        Self { constants: BTreeMap::new(), text: String::new(), indent: 1, next: 0, lanes }
    }

    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// Runs `body` with another vector width.
    pub fn with_lanes<T>(&mut self, lanes: usize, body: impl FnOnce(&mut Self) -> T) -> T {
        let saved = std::mem::replace(&mut self.lanes, lanes);
        let result = body(self);
        self.lanes = saved;
        result
    }

    fn fresh(&mut self) -> Val {
        self.next += 1;
        Val { id: self.next - 1, result: None }
    }

    pub fn line(&mut self, line: impl Display) {
        let _ = writeln!(self.text, "{:width$}{line}", "", width = self.indent * 2);
    }

    pub fn op(&mut self, op: impl Display) -> Val {
        let val = self.fresh();
        self.line(format_args!("{val} = {op}"));
        val
    }

    /// A constant op, which lives at the function's head.
    pub fn constant(&mut self, op: String) -> Val {
        if let Some(&val) = self.constants.get(&op) {
            return val;
        }
        let val = self.fresh();
        self.constants.insert(op, val);
        val
    }

    pub fn vector_type(&self) -> String {
        format!("vector<{}xf32>", self.lanes)
    }

    /// A function's parameter.
    pub fn parameter(&mut self) -> Val {
        self.fresh()
    }

    /// The finished function `header { body }`; the body gets `return`.
    pub fn finish(mut self, header: impl Display) -> String {
        self.line("return");
        let mut constants: Vec<_> = self.constants.iter().collect();
        constants.sort_by_key(|it| it.1.id);
        let constants: String = constants.iter().map(|(op, val)| format!("  {val} = {op}\n")).collect();
        format!("{header} {{\n{constants}{}}}\n", self.text)
    }

    // Index arithmetic.

    pub fn index(&mut self, value: usize) -> Val {
        self.constant(format!("arith.constant {value} : index"))
    }

    pub fn add(&mut self, a: Val, b: Val) -> Val {
        self.op(format_args!("arith.addi {a}, {b} overflow<nsw> : index"))
    }

    pub fn sub(&mut self, a: Val, b: Val) -> Val {
        self.op(format_args!("arith.subi {a}, {b} : index"))
    }

    /// a + constant.
    pub fn offset(&mut self, a: Val, constant: usize) -> Val {
        if constant == 0 {
            return a;
        }
        let constant = self.index(constant);
        self.add(a, constant)
    }

    /// a * constant.
    pub fn times(&mut self, a: Val, constant: usize) -> Val {
        if constant == 1 {
            return a;
        }
        let constant = self.index(constant);
        self.op(format_args!("arith.muli {a}, {constant} overflow<nsw> : index"))
    }

    /// floor(a / constant), a >= 0.
    pub fn quotient(&mut self, a: Val, constant: usize) -> Val {
        if constant == 1 {
            return a;
        }
        let constant = self.index(constant);
        self.op(format_args!("arith.divui {a}, {constant} : index"))
    }

    /// ceil(a / constant), a >= 0.
    pub fn quotient_up(&mut self, a: Val, constant: usize) -> Val {
        let up = self.offset(a, constant - 1);
        self.quotient(up, constant)
    }

    pub fn remainder(&mut self, a: Val, constant: usize) -> Val {
        let constant = self.index(constant);
        self.op(format_args!("arith.remui {a}, {constant} : index"))
    }

    pub fn min(&mut self, a: Val, b: Val) -> Val {
        self.op(format_args!("arith.minui {a}, {b} : index"))
    }

    pub fn max(&mut self, a: Val, b: Val) -> Val {
        self.op(format_args!("arith.maxui {a}, {b} : index"))
    }

    /// max(a - b, 0).
    pub fn sub_or_zero(&mut self, a: Val, b: Val) -> Val {
        let top = self.max(a, b);
        self.sub(top, b)
    }

    // Control flow.

    /// `for iv in (low..high).step_by(step)`.
    pub fn for_(&mut self, low: Val, high: Val, step: usize, body: impl FnOnce(&mut Self, Val)) {
        let step = self.index(step);
        let iv = self.fresh();
        self.line(format_args!("scf.for {iv} = {low} to {high} step {step} {{"));
        self.indent += 1;
        body(self, iv);
        self.indent -= 1;
        self.line("}");
    }

    /// A loop that carries vectors: `body` gets the induction value and the carried vectors and returns their next values.
    pub fn fold(
        &mut self,
        (low, high, step): (Val, Val, usize),
        initial: &[Val],
        body: impl FnOnce(&mut Self, Val, &[Val]) -> Vec<Val>,
    ) -> Vec<Val> {
        let step = self.index(step);
        let iv = self.fresh();
        let carried: Vec<Val> = initial.iter().map(|_| self.fresh()).collect();
        let result = self.fresh();
        let count = initial.len();
        let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(", ");
        let pairs = list(&mut carried.iter().zip(initial).map(|(name, value)| format!("{name} = {value}")));
        let types = list(&mut (0..count).map(|_| self.vector_type()));
        self.line(format_args!(
            "{result}:{count} = scf.for {iv} = {low} to {high} step {step} iter_args({pairs}) -> ({types}) {{"
        ));
        self.indent += 1;
        let next = body(self, iv, &carried);
        let values = list(&mut next.iter().map(ToString::to_string));
        self.line(format_args!("scf.yield {values} : {types}"));
        self.indent -= 1;
        self.line("}");
        (0..count as u32).map(|index| Val { id: result.id, result: Some(index) }).collect()
    }

    /// `if a == constant { then } else { otherwise }`.
    pub fn if_equal(
        &mut self,
        a: Val,
        constant: usize,
        then: impl FnOnce(&mut Self),
        otherwise: impl FnOnce(&mut Self),
    ) {
        let constant = self.index(constant);
        let condition = self.op(format_args!("arith.cmpi eq, {a}, {constant} : index"));
        self.line(format_args!("scf.if {condition} {{"));
        self.indent += 1;
        then(self);
        self.indent -= 1;
        self.line("} else {");
        self.indent += 1;
        otherwise(self);
        self.indent -= 1;
        self.line("}");
    }

    pub fn call(&mut self, function: &str, arguments: &[(Val, String)]) {
        let values: Vec<_> = arguments.iter().map(|it| it.0.to_string()).collect();
        let types: Vec<_> = arguments.iter().map(|it| it.1.as_str()).collect();
        self.line(format_args!("func.call @{function}({}) : ({}) -> ()", values.join(", "), types.join(", ")));
    }

    // Memory.

    pub fn load_scalar(&mut self, mem: Mem, at: Val) -> Val {
        let value = self.op(format_args!("memref.load {}[{at}] : {}", mem.val, mem.ty()));
        self.widened(value, mem.element, "f32", mem.element.name())
    }

    pub fn store_scalar(&mut self, value: Val, mem: Mem, at: Val) {
        let value = self.rounded(value, mem.element, "f32", mem.element.name());
        self.line(format_args!("memref.store {value}, {}[{at}] : {}", mem.val, mem.ty()));
    }

    /// A loaded value as f32.
    fn widened(&mut self, value: Val, element: Dtype, wide: &str, stored: &str) -> Val {
        match element {
            Dtype::F32 => value,
            Dtype::F16 | Dtype::Bf16 => self.op(format_args!("arith.extf {value} : {stored} to {wide}")),
        }
    }

    /// A value as it is stored, rounded to the nearest.
    fn rounded(&mut self, value: Val, element: Dtype, wide: &str, stored: &str) -> Val {
        match element {
            Dtype::F32 => value,
            Dtype::F16 => self.op(format_args!("arith.truncf {value} : {wide} to {stored}")),
            Dtype::Bf16 => self.rounded_to_upper_half(value, wide, stored),
        }
    }

    /// The upper half of an f32, rounded to the nearest, of two the even one: half a unit in its last place is added, less one bit
    /// where the half is even, and the sum is cut off. A NaN would become another number by that, so it is cut off and made quiet.
    ///
    /// `arith.truncf` would be one op, and is one instruction with AVX512-BF16. Without it LLVM 22 calls `__truncsfbf2` for every
    /// element; and that instruction takes subnormal numbers for zero. These ops take 7 vector instructions for a vector that
    /// thousands of multiply-adds made, and give the same bits everywhere.
    fn rounded_to_upper_half(&mut self, value: Val, wide: &str, stored: &str) -> Val {
        let (bits, halves) = (wide.replace("f32", "i32"), stored.replace("bf16", "i16"));
        let constant = |code: &mut Self, it: u32| {
            let it = if bits == "i32" { it.to_string() } else { format!("dense<{it}>") };
            code.constant(format!("arith.constant {it} : {bits}"))
        };
        let integer = self.op(format_args!("arith.bitcast {value} : {wide} to {bits}"));
        let sixteen = constant(self, 16);
        let upper = self.op(format_args!("arith.shrui {integer}, {sixteen} : {bits}"));
        let one = constant(self, 1);
        let odd = self.op(format_args!("arith.andi {upper}, {one} : {bits}"));
        let below_half = constant(self, 0x7fff);
        let increment = self.op(format_args!("arith.addi {odd}, {below_half} : {bits}"));
        let sum = self.op(format_args!("arith.addi {integer}, {increment} : {bits}"));
        let nearest = self.op(format_args!("arith.shrui {sum}, {sixteen} : {bits}"));
        let quiet_bit = constant(self, 0x40);
        let quiet = self.op(format_args!("arith.ori {upper}, {quiet_bit} : {bits}"));
        let is_nan = self.op(format_args!("arith.cmpf uno, {value}, {value} : {wide}"));
        let types = if bits == "i32" { bits.clone() } else { format!("{}, {bits}", bits.replace("i32", "i1")) };
        let chosen = self.op(format_args!("arith.select {is_nan}, {quiet}, {nearest} : {types}"));
        let chosen = self.op(format_args!("arith.trunci {chosen} : {bits} to {halves}"));
        self.op(format_args!("arith.bitcast {chosen} : {halves} to {stored}"))
    }

    fn stored_type(&self, element: Dtype) -> String {
        format!("vector<{}x{}>", self.lanes, element.name())
    }

    /// Loads one vector; masked-off lanes read nothing and are 0.
    pub fn load(&mut self, mem: Mem, at: Val, lanes: Lanes) -> Val {
        let value = self.load_stored(mem, at, lanes);
        let (wide, stored) = (self.vector_type(), self.stored_type(mem.element));
        self.widened(value, mem.element, &wide, &stored)
    }

    /// A vector of zeros as they are stored.
    pub fn stored_zeros(&mut self, element: Dtype) -> Val {
        let vector = self.stored_type(element);
        self.constant(format!("arith.constant dense<0.0> : {vector}"))
    }

    /// Stores a whole vector that is as it is to be stored.
    pub fn store_stored(&mut self, value: Val, mem: Mem, at: Val) {
        let (ty, vector) = (mem.ty(), self.stored_type(mem.element));
        self.line(format_args!("vector.store {value}, {}[{at}] : {ty}, {vector}", mem.val));
    }

    /// Loads one vector as it is stored, which [`Self::store_stored`] puts elsewhere.
    pub fn load_stored(&mut self, mem: Mem, at: Val, lanes: Lanes) -> Val {
        let (vector, ty, width) = (self.stored_type(mem.element), mem.ty(), self.lanes);
        match lanes {
            Lanes::All => self.op(format_args!("vector.load {}[{at}] : {ty}, {vector}", mem.val)),
            Lanes::Masked(mask) => {
                let zero = self.stored_zeros(mem.element);
                self.op(format_args!(
                    "vector.maskedload {}[{at}], {mask}, {zero} : {ty}, vector<{width}xi1>, {vector} into {vector}",
                    mem.val
                ))
            }
        }
    }

    /// A buffer of f32 on the stack, for the time of the function.
    pub fn local(&mut self, len: usize) -> Mem {
        // At the head: elsewhere the stack pointer would move while the function runs.
        let val = self.constant(format!("memref.alloca() {{alignment = 64 : i64}} : memref<{len}xf32>"));
        Mem { val, len, element: Dtype::F32 }
    }

    /// Asks for a line of `mem` ahead of its use; an address beyond the buffer is ignored by the hardware.
    pub fn prefetch(&mut self, mem: Mem, at: Val) {
        self.line(format_args!("memref.prefetch {}[{at}], read, locality<2>, data : {}", mem.val, mem.ty()));
    }

    pub fn store(&mut self, value: Val, mem: Mem, at: Val, lanes: Lanes) {
        let (vector, ty, width) = (self.stored_type(mem.element), mem.ty(), self.lanes);
        let wide = self.vector_type();
        let value = self.rounded(value, mem.element, &wide, &vector);
        match lanes {
            Lanes::All => self.line(format_args!("vector.store {value}, {}[{at}] : {ty}, {vector}", mem.val)),
            Lanes::Masked(mask) => self.line(format_args!(
                "vector.maskedstore {}[{at}], {mask}, {value} : {ty}, vector<{width}xi1>, {vector}",
                mem.val
            )),
        }
    }

    /// Two neighbouring elements of 16 bits, in the place of one f32.
    pub fn load_pair(&mut self, mem: Mem, at: Val) -> Val {
        let pair = format!("vector<2x{}>", mem.element.name());
        let value = self.op(format_args!("vector.load {}[{at}] : {}, {pair}", mem.val, mem.ty()));
        let value = self.op(format_args!("vector.bitcast {value} : {pair} to vector<1xf32>"));
        self.op(format_args!("vector.extract {value}[0] : f32 from vector<1xf32>"))
    }

    /// An element of 16 bits and a zero, in the place of one f32.
    pub fn load_half_pair(&mut self, mem: Mem, at: Val) -> Val {
        let stored = mem.element.name();
        let value = self.op(format_args!("memref.load {}[{at}] : {}", mem.val, mem.ty()));
        let bits = self.op(format_args!("arith.bitcast {value} : {stored} to i16"));
        // The first of a pair has the lower half.
        let bits = self.op(format_args!("arith.extui {bits} : i16 to i32"));
        self.op(format_args!("arith.bitcast {bits} : i32 to f32"))
    }

    /// Loads twice as many elements of 16 bits as there are lanes, as pairs in the place of f32; masked-off ones are 0.
    pub fn load_pairs(&mut self, mem: Mem, at: Val, valid: usize) -> Val {
        let (count, wide) = (2 * self.lanes, self.vector_type());
        let value = self.with_lanes(count, |code| {
            let lanes = code.first_lanes(valid);
            code.load_stored(mem, at, lanes)
        });
        self.op(format_args!("vector.bitcast {value} : vector<{count}x{}> to {wide}", mem.element.name()))
    }

    /// Pairs of the elements of two vectors as they are stored, in the place of f32: (a[0], b[0]), (a[1], b[1]), ...
    pub fn paired(&mut self, element: Dtype, a: Val, b: Val) -> Val {
        let (stored, wide, lanes) = (self.stored_type(element), self.vector_type(), self.lanes);
        let order: Vec<_> = (0..2 * lanes).map(|it| (it / 2 + it % 2 * lanes).to_string()).collect();
        let both = self.op(format_args!("vector.shuffle {a}, {b} [{}] : {stored}, {stored}", order.join(", ")));
        self.op(format_args!("vector.bitcast {both} : vector<{}x{}> to {wide}", 2 * lanes, element.name()))
    }

    /// Vectors of pairs of bf16 that are in the place of f32, as [`Self::dot`] takes them.
    pub fn as_pairs(&mut self, value: Val) -> Val {
        let (wide, lanes) = (self.vector_type(), 2 * self.lanes);
        self.op(format_args!("vector.bitcast {value} : {wide} to vector<{lanes}xbf16>"))
    }

    /// c + a[2i + 1] b[2i + 1] + a[2i] b[2i] in every lane i, a and b of bf16: AVX512-BF16's `vdpbf16ps`, whose roundings are
    /// those of `Arithmetic::pairs`. The broadcast factor comes last, where the instruction can take it from memory.
    pub fn dot(&mut self, c: Val, a: Val, broadcast: Val) -> Val {
        let (wide, pairs, bits) = (self.vector_type(), format!("vector<{}xbf16>", 2 * self.lanes), 32 * self.lanes);
        self.op(format_args!(
            "llvm.call_intrinsic \"llvm.x86.avx512bf16.dpbf16ps.{bits}\"({c}, {a}, {broadcast}) : ({wide}, {pairs}, {pairs}) -> {wide}"
        ))
    }

    /// The mask of the first `count` lanes, known now.
    pub fn first_lanes(&mut self, count: usize) -> Lanes {
        if count == self.lanes {
            return Lanes::All;
        }
        let width = self.lanes;
        Lanes::Masked(self.constant(format!("vector.constant_mask [{count}] : vector<{width}xi1>")))
    }

    /// The mask of the first `count` lanes, known at run time; `count` beyond the width sets all.
    pub fn first_lanes_dynamic(&mut self, count: Val) -> Val {
        let width = self.lanes;
        self.op(format_args!("vector.create_mask {count} : vector<{width}xi1>"))
    }

    // Vector arithmetic.

    pub fn scalar(&mut self, value: f32) -> Val {
        self.constant(format!("arith.constant {} : f32", literal(value)))
    }

    pub fn splat(&mut self, value: f32) -> Val {
        let ty = self.vector_type();
        self.constant(format!("arith.constant dense<{}> : {ty}", literal(value)))
    }

    pub fn broadcast(&mut self, scalar: Val) -> Val {
        let ty = self.vector_type();
        self.op(format_args!("vector.broadcast {scalar} : f32 to {ty}"))
    }

    pub fn fma(&mut self, a: Val, b: Val, c: Val) -> Val {
        let ty = self.vector_type();
        self.op(format_args!("vector.fma {a}, {b}, {c} : {ty}"))
    }

    fn binary(&mut self, name: &str, a: Val, b: Val) -> Val {
        let ty = self.vector_type();
        self.op(format_args!("arith.{name} {a}, {b} : {ty}"))
    }

    pub fn vadd(&mut self, a: Val, b: Val) -> Val {
        self.binary("addf", a, b)
    }

    pub fn vsub(&mut self, a: Val, b: Val) -> Val {
        self.binary("subf", a, b)
    }

    pub fn vmul(&mut self, a: Val, b: Val) -> Val {
        self.binary("mulf", a, b)
    }

    pub fn vdiv(&mut self, a: Val, b: Val) -> Val {
        self.binary("divf", a, b)
    }

    /// `if x < y { y } else { x }`: one `vmaxps`, and a NaN in `x` stays. `arith.maximumf` costs three more instructions.
    pub fn vmax(&mut self, x: Val, y: Val) -> Val {
        let less = self.compare(Compare::Less, x, y);
        self.select(less, y, x)
    }

    /// `if x > y { y } else { x }`; a NaN in `x` stays.
    pub fn vmin(&mut self, x: Val, y: Val) -> Val {
        let greater = self.compare(Compare::Greater, x, y);
        self.select(greater, y, x)
    }

    pub fn compare(&mut self, compare: Compare, a: Val, b: Val) -> Val {
        let (ty, predicate) = (
            self.vector_type(),
            match compare {
                Compare::Less => "olt",
                Compare::Greater => "ogt",
            },
        );
        self.op(format_args!("arith.cmpf {predicate}, {a}, {b} : {ty}"))
    }

    pub fn select(&mut self, mask: Val, a: Val, b: Val) -> Val {
        let (ty, width) = (self.vector_type(), self.lanes);
        self.op(format_args!("arith.select {mask}, {a}, {b} : vector<{width}xi1>, {ty}"))
    }

    /// The sum or maximum over the lanes, a scalar.
    pub fn reduce(&mut self, kind: &str, a: Val) -> Val {
        let ty = self.vector_type();
        self.op(format_args!("vector.reduction <{kind}>, {a} : {ty} into f32"))
    }

    pub fn scalar_op(&mut self, name: &str, a: Val, b: Val) -> Val {
        self.op(format_args!("arith.{name} {a}, {b} : f32"))
    }

    pub fn sqrt(&mut self, a: Val) -> Val {
        self.op(format_args!("math.sqrt {a} : f32"))
    }
}

impl Mem {
    pub fn ty(self) -> String {
        format!("memref<{}x{}>", self.len, self.element.name())
    }

    /// What of it is part of the types of a function that takes it.
    pub fn kind(self) -> Kind {
        Kind { len: self.len, element: self.element }
    }

    pub fn argument(self) -> (Val, String) {
        (self.val, self.ty())
    }
}

#[cfg(test)]
mod tests {
    use super::literal;

    #[test]
    fn literals_are_exact() {
        assert_eq!(literal(1.0), "1.0");
        assert_eq!(literal(-0.5), "-0.5");
        assert_eq!(literal(f32::NEG_INFINITY), "0xFF800000");
        assert_eq!(literal(1e-30), format!("0x{:08X}", 1e-30f32.to_bits()));
    }
}
