//! Wrong code: one line of the generated MLIR is rewritten, in every way that a generator's author gets it wrong.
//!
//! The rules are applied to every line that they fit. There are thousands of such places in one block, most of them in
//! unrolled copies of one loop body, so for every rule and class of functions (micro-kernels, packing, one class for each
//! kind of stage, the block's entry) a few are taken, spread evenly over all places, which is to say over all functions too.

use super::{
    Body, Mutation, Subject,
    module::{Function, Module},
};
use kernelforge::protocol::mutation::Family;
use std::collections::BTreeMap;

/// Places taken for each rule and class of functions.
const PLACES: usize = 2;

/// The lines that take the place of a line; `None` where the rule does not fit.
type Rewrite = fn(&Line<'_>) -> Option<Vec<String>>;

struct Rule {
    name: &'static str,
    description: &'static str,
    rewrite: Rewrite,
}

macro_rules! rules {
    ($($name:literal, $description:literal, $rewrite:expr;)*) => {
        [$(Rule { name: $name, description: $description, rewrite: $rewrite }),*]
    };
}

/// Names that no generated value has: those are numbers.
const NEW: [&str; 2] = ["%mutant0", "%mutant1"];

const RULES: &[Rule] = &rules! {
    "addf-to-subf", "a sum is a difference", |it| it.renamed("arith.addf", "arith.subf");
    "subf-to-addf", "a difference is a sum", |it| it.renamed("arith.subf", "arith.addf");
    "subf-swapped", "a difference has its operands swapped", |it| it.swapped_difference();
    "mulf-to-addf", "a product is a sum", |it| it.renamed("arith.mulf", "arith.addf");
    "divf-to-mulf", "a quotient is a product", |it| it.renamed("arith.divf", "arith.mulf");
    "fma-operands", "a b + c is c b + a", |it| it.permuted("vector.fma", [2, 1, 0]);
    "fma-restarts", "the accumulator is lost", |it| it.fma_without_addend();
    "fma-first-factor", "the second factor and the addend are lost (a norm without gain and bias)", |it| it.fma_first_factor();
    "fma-in-f16", "the accumulator is in half precision", |it| it.narrowed("f16");
    "fma-in-bf16", "the accumulator is in bfloat16", |it| it.narrowed("bf16");
    "rounded-towards-zero", "a stored half is cut off instead of rounded", |it| it.cut_off();
    "rounded-away", "a bfloat16 is rounded away from zero instead of to the nearest", |it| it.renamed("dense<32767>", "dense<65535>");
    "cut-off", "a bfloat16 is cut off instead of rounded", |it| it.renamed("dense<32767>", "dense<0>");
    "widened-as-bf16", "a half is read as a bfloat16, or the other way round", |it| it.misread_half();
    "dot-restarts", "the accumulator of a product of pairs is lost", |it| it.dot_without_addend();
    "dot-in-bf16", "the accumulator of a product of pairs is in bfloat16", |it| it.narrowed_dot();
    "index-plus-1", "a size, stride or offset is one too large", |it| it.index_constant(1);
    "index-minus-1", "a size, stride or offset is one too small", |it| it.index_constant(-1);
    "addi-to-subi", "an offset is subtracted", |it| it.subtracted_offset();
    "muli-to-addi", "a stride is added", |it| it.renamed("arith.muli", "arith.addi");
    "divui-to-remui", "a remainder instead of a quotient", |it| it.renamed("arith.divui", "arith.remui");
    "remui-to-divui", "a quotient instead of a remainder", |it| it.renamed("arith.remui", "arith.divui");
    "minui-to-maxui", "the larger instead of the smaller", |it| it.renamed("arith.minui", "arith.maxui");
    "maxui-to-minui", "the smaller instead of the larger", |it| it.renamed("arith.maxui", "arith.minui");
    "subi-to-addi", "a difference of indices is a sum", |it| it.renamed("arith.subi", "arith.addi");
    "cmpi-eq-to-ne", "a condition is inverted", |it| it.renamed("arith.cmpi eq", "arith.cmpi ne");
    "cmpi-ult-to-ule", "`<=` for `<`", |it| it.renamed("arith.cmpi ult", "arith.cmpi ule");
    "cmpi-slt-to-sle", "`<=` for `<`", |it| it.renamed("arith.cmpi slt", "arith.cmpi sle");
    "cmpf-olt-to-oge", "a comparison of numbers is inverted", |it| it.renamed("arith.cmpf olt", "arith.cmpf oge");
    "cmpf-ogt-to-ole", "a comparison of numbers is inverted", |it| it.renamed("arith.cmpf ogt", "arith.cmpf ole");
    "select-swapped", "the arms of a selection are swapped", |it| it.permuted("arith.select", [0, 2, 1]);
    "guard-inverted", "a guarded part runs exactly when it should not", |it| it.inverted_guard();
    "guard-dropped", "a guarded part always runs", |it| it.dropped_guard();
    "loop-first-skipped", "the first iteration is skipped", |it| it.loop_bound(Bound::FirstSkipped);
    "loop-last-skipped", "the last iteration is skipped", |it| it.loop_bound(Bound::LastSkipped);
    "loop-one-more", "there is an iteration too many", |it| it.loop_bound(Bound::OneMore);
    "loop-step-doubled", "every other iteration is skipped", |it| it.loop_bound(Bound::StepDoubled);
    "loop-starts-anew", "a loop forgets what it has summed", |it| it.yields_first_operand();
    "depth-halved", "a product has half its terms", |it| it.halved_depth();
    "mask-plus-1", "the mask has a lane too many", |it| it.mask("arith.addi");
    "mask-minus-1", "the mask lacks a lane", |it| it.mask("arith.subi");
    "store-unmasked", "the tail guard of a store is dropped", |it| it.unmasked_store();
    "load-unmasked", "the tail guard of a load is dropped", |it| it.unmasked_load();
    "load-offset", "reads the next element", |it| it.offset(&["vector.load", "memref.load", "vector.maskedload"]);
    "store-offset", "writes to the next element", |it| it.offset(&["vector.store", "memref.store", "vector.maskedstore"]);
    "store-dropped", "a result is never written", |it| it.dropped(&["vector.store ", "memref.store ", "vector.maskedstore "]);
    "store-nan", "the result is NaN", |it| it.stored_nan();
    "sum-starts-at-1", "an accumulator begins with 1", |it| it.renamed("arith.constant dense<0.0>", "arith.constant dense<1.0>");
    "maximum-starts-at-0", "a maximum begins with 0", |it| it.renamed("dense<0xFF800000>", "dense<0.0>");
    "constant-one-percent", "a constant is one percent too large", |it| it.scaled_constant(1.01);
    "constant-negated", "a constant has the wrong sign", |it| it.scaled_constant(-1.0);
    "count-minus-1", "a whole constant is one too small (a mean over n - 1)", |it| it.count_minus_one();
    "reduction-add-to-mul", "a product over lanes instead of a sum", |it| it.renamed("vector.reduction <add>", "vector.reduction <mul>");
    "reduction-max-to-min", "a minimum over lanes instead of a maximum", |it| it.renamed("vector.reduction <maxnumf>", "vector.reduction <minnumf>");
    "shuffle-swapped", "a step of a transposition has its operands swapped", |it| it.swapped("vector.shuffle");
    "sqrt-dropped", "no square root", |it| it.renamed("math.sqrt", "math.absf");
    "rounding-dropped", "not rounded to a whole number", |it| it.unrounded();
    "shift-by-other", "an exponent is shifted to the wrong place", |it| it.renamed("arith.shli", "arith.shrui");
    "call-dropped", "a part of the work is not done", |it| it.dropped(&["func.call "]);
    "argument-store-dropped", "a callee gets the argument of the call before", |it| it.dropped(&["llvm.store "]);
    "argument-moved", "an argument is written to the next place", |it| it.moved_argument();
    "value-misplaced", "a value lies 64 bytes further than it should", |it| it.misplaced();
    "value-overlapping", "a value lies where another one does", |it| it.overlapping();
};

pub fn mutations(subject: &Subject) -> Vec<Mutation> {
    let module = subject.module;
    // By (class, rule): all places, in the module's order.
    let mut places: BTreeMap<(String, usize), Vec<(usize, usize)>> = BTreeMap::new();
    for (function, it) in module.functions.iter().enumerate() {
        let class = subject.class(&it.name);
        for line in 1..it.lines.len() {
            let at = Line { lines: &it.lines, at: line };
            for (rule, it) in RULES.iter().enumerate() {
                if (it.rewrite)(&at).is_some() {
                    places.entry((class.clone(), rule)).or_default().push((function, line));
                }
            }
        }
    }
    let mut all = Vec::new();
    for ((_, rule), places) in places {
        for &(function, line) in spread(&places, PLACES) {
            let same = places.iter().filter(|it| it.0 == function && it.1 < line).count();
            all.push(at_place(subject, &module.functions[function], line, &RULES[rule], same));
        }
    }
    all.extend(whole_function_mutations(subject));
    all
}

/// The `same`-th place in this function that the rule fits.
fn at_place(subject: &Subject, function: &Function, line: usize, rule: &'static Rule, same: usize) -> Mutation {
    let id = format!("code/{}/{}@{same}", subject.short(&function.name), rule.name);
    let description = format!("{}: `{}`", rule.description, shortened(function.lines[line].trim()));
    let body = Body::Code { function: function.name.clone(), line, rule: rule.name };
    let kind = (Family::Code, format!("{}/{}", subject.class(&function.name), rule.name));
    Mutation::new(kind, id, subject.stage_of(&function.name), description, body)
}

/// The mutant of this id, whether it is one of those taken or not.
pub fn mutation(subject: &Subject, id: &str) -> Option<Mutation> {
    let (short, place) = id.strip_prefix("code/")?.split_once('/')?;
    let Some((rule, same)) = place.split_once('@') else {
        return whole_function_mutations(subject).into_iter().find(|it| it.mutant.id == id);
    };
    let (rule, same) = (RULES.iter().find(|it| it.name == rule)?, same.parse().ok()?);
    let function = subject.module.functions.iter().find(|it| subject.short(&it.name) == short)?;
    let fits = |at: &usize| (rule.rewrite)(&Line { lines: &function.lines, at: *at }).is_some();
    let line = (1..function.lines.len()).filter(fits).nth(same)?;
    Some(at_place(subject, function, line, rule, same))
}

/// What takes more than one line: transpositions that do nothing.
fn whole_function_mutations(subject: &Subject) -> Vec<Mutation> {
    let functions = subject.module.functions.iter().filter(|it| untransposed(&it.lines).is_some());
    let mutation = |it: &Function| {
        let id = format!("code/{}/untransposed", subject.short(&it.name));
        let description = "tiles are copied where they should be transposed (K instead of its transpose)".to_owned();
        let body = Body::Code { function: it.name.clone(), line: 0, rule: UNTRANSPOSED };
        let kind = (Family::Code, UNTRANSPOSED.to_owned());
        Mutation::new(kind, id, subject.stage_of(&it.name), description, body)
    };
    functions.map(mutation).collect()
}

const UNTRANSPOSED: &str = "untransposed";

/// Every place in the callees of the last stage, or in itself, where a result can be made NaN.
pub fn nan_stores(subject: &Subject) -> Vec<Module> {
    let places = places_of_last_stage(subject).into_iter();
    places.filter_map(|(function, line)| apply(subject.module, &function, line, "store-nan")).collect()
}

/// The subject's module with the results of one store of its last stage times `factor`, for each store.
pub fn scaled_stores(subject: &Subject, factor: f32) -> impl Iterator<Item = Module> {
    places_of_last_stage(subject).into_iter().filter_map(move |(function, line)| {
        let mut module = subject.module.clone();
        let lines = &mut module.functions.iter_mut().find(|it| it.name == function)?.lines;
        let new = Line { lines, at: line }.stored_scaled(factor)?;
        lines.splice(line..=line, new);
        Some(module)
    })
}

/// The lines of the last stage and of what it calls, by their functions, the last ones first.
fn places_of_last_stage(subject: &Subject) -> Vec<(String, usize)> {
    let module = subject.module;
    let Some(last) = subject.kernel.stages.last() else { return Vec::new() };
    let Some(entry) = module.get(&last.symbol) else { return Vec::new() };
    let called = entry.calls();
    let functions = module.functions.iter().filter(|it| it.name == last.symbol || called.contains(it.name.as_str()));
    functions.rev().flat_map(|it| (1..it.lines.len()).rev().map(|line| (it.name.clone(), line))).collect()
}

/// The module with the rule applied at the place.
pub fn apply(module: &Module, function: &str, line: usize, rule: &str) -> Option<Module> {
    let mut module = module.clone();
    let lines = &mut module.functions.iter_mut().find(|it| it.name == function)?.lines;
    if rule == UNTRANSPOSED {
        *lines = untransposed(lines)?;
    } else {
        let rule = RULES.iter().find(|it| it.name == rule)?;
        let new = (rule.rewrite)(&Line { lines, at: line })?;
        lines.splice(line..=line, new);
    }
    Some(module)
}

/// The module with a volatile read of `address` before the line.
pub fn probed(module: &Module, function: &str, line: usize, address: u64) -> Option<Module> {
    let mut module = module.clone();
    let lines = &mut module.functions.iter_mut().find(|it| it.name == function)?.lines;
    let at = Line { lines, at: line };
    let (indent, [constant, pointer]) = (at.indent().to_owned(), NEW);
    let probe = [
        format!("{indent}{constant} = llvm.mlir.constant({address} : i64) : i64"),
        format!("{indent}{pointer} = llvm.inttoptr {constant} : i64 to !llvm.ptr"),
        format!("{indent}%mutant2 = llvm.load volatile {pointer} : !llvm.ptr -> f32"),
    ];
    lines.splice(line..line, probe);
    Some(module)
}

/// Every vector that is loaded, shuffled with others and stored is stored as it was loaded.
fn untransposed(lines: &[String]) -> Option<Vec<String>> {
    let first = lines.iter().position(|it| it.contains("vector.shuffle"))?;
    // Of halves it is the widened value that is stored.
    let widened = lines[..first].iter().any(|it| it.contains("arith.extf "));
    let is_load = |it: &&String| it.contains(if widened { "arith.extf " } else { "vector.load " });
    let result = |it: &String| it.trim().split(' ').next().map(str::to_owned);
    let mut loaded: Vec<String> = lines[..first]
        .iter()
        .rev()
        .take_while(|it| !it.contains("scf.for"))
        .filter(is_load)
        .filter_map(result)
        .collect();
    loaded.reverse();
    let mut new = lines.to_vec();
    let stores = new.iter_mut().skip(first).filter(|it| it.contains("vector.store "));
    let mut count = 0;
    for (store, value) in stores.zip(&loaded) {
        let Some(old) = operands(store).first().map(|it| (*it).to_owned()) else { break };
        *store = store.replacen(&format!("vector.store {old},"), &format!("vector.store {value},"), 1);
        count += 1;
    }
    (count > 1 && new != lines).then_some(new)
}

/// At most `count` of them, the first and the last among them.
fn spread<T>(all: &[T], count: usize) -> impl Iterator<Item = &T> {
    let chosen = count.min(all.len());
    (0..chosen).map(move |it| &all[if chosen == 1 { all.len() / 2 } else { it * (all.len() - 1) / (chosen - 1) }])
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(100) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

/// The line without its results. A loop without results has a ` = ` of its own.
fn operation(line: &str) -> &str {
    let line = line.trim_start();
    line.split_once(" = ").filter(|it| it.0.starts_with('%')).map_or(line, |it| it.1)
}

/// The values of a line right of its `=`, as `%12` or `%12#0`, in order.
fn operands(line: &str) -> Vec<&str> {
    let right = operation(line);
    let mut found = Vec::new();
    for (at, _) in right.match_indices('%') {
        let len =
            right[at + 1..].find(|it: char| !it.is_ascii_alphanumeric() && it != '#').unwrap_or(right.len() - at - 1);
        found.push(&right[at..at + 1 + len]);
    }
    found
}

enum Bound {
    FirstSkipped,
    LastSkipped,
    OneMore,
    StepDoubled,
}

/// One line of a function, with the function around it.
struct Line<'a> {
    lines: &'a [String],
    at: usize,
}

impl Line<'_> {
    fn text(&self) -> &str {
        &self.lines[self.at]
    }

    fn indent(&self) -> &str {
        let text = self.text();
        &text[..text.len() - text.trim_start().len()]
    }

    fn is(&self, op: &str) -> bool {
        operation(self.text()).starts_with(op)
    }

    fn renamed(&self, from: &str, to: &str) -> Option<Vec<String>> {
        let text = self.text();
        let fits = text.contains(&format!("{from} "))
            || text.contains(&format!("{from},"))
            || (from.ends_with('>') && text.contains(from));
        // `nsw` promises what a mutant does not keep; without it LLVM may assume nothing.
        fits.then(|| vec![text.replacen(from, to, 1).replace(" overflow<nsw>", "")])
    }

    fn permuted<const N: usize>(&self, op: &str, order: [usize; N]) -> Option<Vec<String>> {
        if !self.is(op) {
            return None;
        }
        let text = self.text();
        let old = operands(text);
        let new: Vec<&str> = order.iter().map(|it| old.get(*it).copied()).collect::<Option<_>>()?;
        let changed = text.replacen(&old[..N].join(", "), &new.join(", "), 1);
        (changed != text).then(|| vec![changed])
    }

    fn swapped(&self, op: &str) -> Option<Vec<String>> {
        self.permuted(op, [1, 0])
    }

    /// Not where the difference is squared: there its sign does not matter.
    fn swapped_difference(&self) -> Option<Vec<String>> {
        let result = self.text().trim().split(' ').next()?;
        let squared =
            self.lines.get(self.at + 1).is_some_and(|it| it.contains(&format!("arith.mulf {result}, {result} ")));
        if squared { None } else { self.swapped("arith.subf") }
    }

    fn fma_first_factor(&self) -> Option<Vec<String>> {
        self.first_operand("vector.fma")
    }

    /// Exp rounds by adding a number and subtracting it again. Rounding down instead is no mistake: the reduced argument then lies in
    /// 0..ln 2 and its polynomial, though less accurate there, stays within the bounds and within four times the error of plain
    /// code.
    fn unrounded(&self) -> Option<Vec<String>> {
        if !self.is("arith.subf") {
            return None;
        }
        let added = self.lines.get(self.at.checked_sub(1)?)?;
        let (sum, right) = added.trim().split_once(" = ")?;
        let (terms, [minuend, subtrahend]) = (operands(right), operands(self.text()).try_into().ok()?);
        if !right.starts_with("vector.fma ") || minuend != sum || terms.get(2) != Some(&subtrahend) {
            return None;
        }
        let (left, kind) = (self.text().split_once(" = ")?.0, self.text().rsplit_once(" : ")?.1);
        Some(vec![format!("{left} = arith.mulf {}, {} : {kind}", terms[0], terms[1])])
    }

    /// The operation's first operand, plus zero, instead of its result.
    fn first_operand(&self, op: &str) -> Option<Vec<String>> {
        if !self.is(op) {
            return None;
        }
        let (left, right) = self.text().split_once(" = ")?;
        let (first, kind, zero) = (*operands(self.text()).first()?, right.rsplit_once(" : ")?.1, NEW[0]);
        let constant = format!("{}{zero} = arith.constant dense<0.0> : {kind}", self.indent());
        Some(vec![constant, format!("{left} = arith.addf {first}, {zero} : {kind}")])
    }

    fn fma_without_addend(&self) -> Option<Vec<String>> {
        if !self.is("vector.fma") {
            return None;
        }
        let text = self.text();
        let all = operands(text);
        let addend = format!(", {}", all.get(2)?);
        let at = text.rfind(&format!("{addend} :"))?;
        let without = format!("{}{}", &text[..at], &text[at + addend.len()..]);
        Some(vec![without.replacen("vector.fma", "arith.mulf", 1)])
    }

    fn narrowed(&self, narrow: &str) -> Option<Vec<String>> {
        let wide = if self.is("vector.fma") { self.text().rsplit_once(" : ")?.1 } else { return None };
        self.narrowed_to(wide, narrow)
    }

    /// The `vdpbf16ps` of AVX512-BF16, as its result's type.
    fn dot(&self) -> Option<&str> {
        let found = self.is("llvm.call_intrinsic") && self.text().contains(".dpbf16ps.");
        if found { self.text().rsplit_once(" -> ").map(|it| it.1) } else { None }
    }

    fn narrowed_dot(&self) -> Option<Vec<String>> {
        self.narrowed_to(self.dot()?, "bf16")
    }

    fn dot_without_addend(&self) -> Option<Vec<String>> {
        let (kind, addend, zero) = (self.dot()?, *operands(self.text()).first()?, NEW[0]);
        Some(vec![
            format!("{}{zero} = arith.constant dense<0.0> : {kind}", self.indent()),
            self.text().replacen(&format!("({addend},"), &format!("({zero},"), 1),
        ])
    }

    /// The operation's result, rounded to `narrow`.
    fn narrowed_to(&self, wide: &str, narrow: &str) -> Option<Vec<String>> {
        let (result, right) = self.text().trim().split_once(" = ")?;
        let narrow = wide.replace("f32", narrow);
        let (indent, [sum, rounded]) = (self.indent(), NEW);
        Some(vec![
            format!("{indent}{sum} = {right}"),
            format!("{indent}{rounded} = arith.truncf {sum} : {wide} to {narrow}"),
            format!("{indent}{result} = arith.extf {rounded} : {narrow} to {wide}"),
        ])
    }

    /// The 13 bits that f16 lacks are cleared before the rounding, which then has nothing to round.
    fn cut_off(&self) -> Option<Vec<String>> {
        if !self.is("arith.truncf") {
            return None;
        }
        let (left, right) = self.text().split_once(" = ")?;
        let (value, types) = (*operands(self.text()).first()?, right.rsplit_once(" : ")?.1);
        let (wide, half) = types.split_once(" to ").filter(|it| it.1.contains("f16"))?;
        let integers = wide.replace("f32", "i32");
        let mask = if wide.starts_with("vector") { "dense<-8192>" } else { "-8192" };
        let (indent, [bits, cut]) = (self.indent(), NEW);
        Some(vec![
            format!("{indent}%mutant2 = arith.constant {mask} : {integers}"),
            format!("{indent}{bits} = arith.bitcast {value} : {wide} to {integers}"),
            format!("{indent}%mutant3 = arith.andi {bits}, %mutant2 : {integers}"),
            format!("{indent}{cut} = arith.bitcast %mutant3 : {integers} to {wide}"),
            format!("{left} = arith.truncf {cut} : {wide} to {half}"),
        ])
    }

    fn misread_half(&self) -> Option<Vec<String>> {
        if !self.is("arith.extf") {
            return None;
        }
        let (left, right) = self.text().split_once(" = ")?;
        let (value, types) = (*operands(self.text()).first()?, right.rsplit_once(" : ")?.1);
        let (half, wide) = types.split_once(" to ").filter(|it| it.0.contains("f16"))?;
        let (from, to) = if half.contains("bf16") { ("bf16", "f16") } else { ("f16", "bf16") };
        let (indent, misread, other) = (self.indent(), NEW[0], half.replace(from, to));
        Some(vec![
            format!("{indent}{misread} = arith.bitcast {value} : {half} to {other}"),
            format!("{left} = arith.extf {misread} : {other} to {wide}"),
        ])
    }

    /// Not where the sum is clipped right away: a difference below 0 wraps round and is clipped to the same end.
    fn subtracted_offset(&self) -> Option<Vec<String>> {
        let result = self.text().trim().split(' ').next()?;
        let clipped = self.lines.get(self.at + 1).is_some_and(|it| it.contains(&format!("arith.minui {result},")));
        if clipped { None } else { self.renamed("arith.addi", "arith.subi") }
    }

    /// The last argument of a micro-kernel is the depth of its product.
    fn halved_depth(&self) -> Option<Vec<String>> {
        let (left, right) = self.text().split_once(" = arith.constant ")?;
        let value: usize = right.strip_suffix(" : index")?.parse().ok()?;
        (self.is_depth() && value > 1).then(|| vec![format!("{left} = arith.constant {} : index", value / 2)])
    }

    /// A constant that is used as a depth and as nothing else.
    fn is_depth(&self) -> bool {
        let Some(result) = self.text().trim().split(' ').next() else { return false };
        let mut uses = self.lines[self.at + 1..].iter().filter(|it| operands(it).contains(&result)).peekable();
        let last = format!(", {result}) :");
        uses.peek().is_some() && uses.all(|it| it.contains("func.call @tile_") && it.contains(&last))
    }

    /// Depths and steps have rules of their own: loops over them round up, so that one more or less may be none.
    fn index_constant(&self, by: i64) -> Option<Vec<String>> {
        let text = self.text();
        let step = format!(" step {} ", text.trim().split(' ').next()?);
        if self.is_depth() || self.lines[self.at..].iter().any(|it| it.contains(&step)) {
            return None;
        }
        let (left, right) = text.split_once(" = arith.constant ")?;
        let value: i64 = right.strip_suffix(" : index")?.parse().ok()?;
        (value + by >= 0).then(|| vec![format!("{left} = arith.constant {} : index", value + by)])
    }

    fn inverted_guard(&self) -> Option<Vec<String>> {
        self.guard(|condition, indent| {
            let [always, inverted] = NEW;
            vec![
                format!("{indent}{always} = arith.constant true"),
                format!("{indent}{inverted} = arith.xori {condition}, {always} : i1"),
            ]
        })
    }

    fn dropped_guard(&self) -> Option<Vec<String>> {
        self.guard(|_, indent| vec![format!("{indent}{} = arith.constant true", NEW[1])])
    }

    fn guard(&self, make: impl FnOnce(&str, &str) -> Vec<String>) -> Option<Vec<String>> {
        if !self.is("scf.if") {
            return None;
        }
        let condition = *operands(self.text()).first()?;
        let mut lines = make(condition, self.indent());
        lines.push(self.text().replacen(condition, NEW[1], 1));
        Some(lines)
    }

    fn loop_bound(&self, bound: Bound) -> Option<Vec<String>> {
        if !self.is("scf.for") {
            return None;
        }
        let text = self.text();
        let all = operands(text);
        let &[_, low, high, step, ..] = all.as_slice() else { return None };
        let (new, indent) = (NEW[0], self.indent());
        let (op, from, to) = match bound {
            Bound::FirstSkipped => (format!("arith.addi {low}, {step}"), format!("= {low} to"), format!("= {new} to")),
            Bound::LastSkipped => {
                (format!("arith.subi {high}, {step}"), format!("to {high} step"), format!("to {new} step"))
            }
            Bound::OneMore => {
                (format!("arith.addi {high}, {step}"), format!("to {high} step"), format!("to {new} step"))
            }
            Bound::StepDoubled => {
                (format!("arith.addi {step}, {step}"), format!("step {step} "), format!("step {new} "))
            }
        };
        Some(vec![format!("{indent}{new} = {op} : index"), text.replacen(&from, &to, 1)])
    }

    /// A yield of the loop's own argument: nothing is carried from one iteration to the next.
    fn yields_first_operand(&self) -> Option<Vec<String>> {
        if !self.is("scf.yield") {
            return None;
        }
        let depth = self.indent().len() - 2;
        let header = self.lines[..self.at].iter().rev().find(|it| it.len() - it.trim_start().len() == depth)?;
        let argument = header.split_once("iter_args(")?.1.split(' ').next()?;
        let first = *operands(self.text()).first()?;
        (first != argument).then(|| vec![self.text().replacen(first, argument, 1)])
    }

    fn mask(&self, op: &str) -> Option<Vec<String>> {
        if !self.is("vector.create_mask") {
            return None;
        }
        let count = *operands(self.text()).first()?;
        let (indent, [one, changed]) = (self.indent(), NEW);
        Some(vec![
            format!("{indent}{one} = arith.constant 1 : index"),
            format!("{indent}{changed} = {op} {count}, {one} : index"),
            self.text().replacen(&format!("create_mask {count}"), &format!("create_mask {changed}"), 1),
        ])
    }

    /// `vector.maskedstore %m[%i], %mask, %v : memref, mask type, vector type`.
    fn unmasked_store(&self) -> Option<Vec<String>> {
        if !self.is("vector.maskedstore") {
            return None;
        }
        let &[memory, index, _, value] = operands(self.text()).as_slice() else { return None };
        let types: Vec<&str> = self.text().rsplit_once(" : ")?.1.split(", ").collect();
        let &[memref, _, vector] = types.as_slice() else { return None };
        Some(vec![format!("{}vector.store {value}, {memory}[{index}] : {memref}, {vector}", self.indent())])
    }

    fn unmasked_load(&self) -> Option<Vec<String>> {
        if !self.is("vector.maskedload") {
            return None;
        }
        let &[memory, index, ..] = operands(self.text()).as_slice() else { return None };
        let (result, right) = self.text().split_once(" = ")?;
        let (memref, vector) = (right.rsplit_once(" : ")?.1.split(", ").next()?, right.rsplit_once(" into ")?.1);
        Some(vec![format!("{result} = vector.load {memory}[{index}] : {memref}, {vector}")])
    }

    /// Index + 1 in a memory access.
    fn offset(&self, ops: &[&str]) -> Option<Vec<String>> {
        if !ops.iter().any(|it| self.is(&format!("{it} "))) {
            return None;
        }
        let (_, rest) = self.text().split_once('[')?;
        let index = rest.split_once(']')?.0;
        let (indent, [one, moved]) = (self.indent(), NEW);
        Some(vec![
            format!("{indent}{one} = arith.constant 1 : index"),
            format!("{indent}{moved} = arith.addi {index}, {one} : index"),
            self.text().replacen(&format!("[{index}]"), &format!("[{moved}]"), 1),
        ])
    }

    fn dropped(&self, ops: &[&str]) -> Option<Vec<String>> {
        ops.iter().any(|it| self.is(it)).then(Vec::new)
    }

    fn stored_nan(&self) -> Option<Vec<String>> {
        let vector = self.text().rsplit_once(", ").map(|it| it.1).filter(|_| self.is("vector.store "))?;
        let value = *operands(self.text()).first()?;
        let (indent, nan) = (self.indent(), NEW[0]);
        let bits = match vector {
            it if it.contains("xf16") => "0x7E00",
            it if it.contains("xbf16") => "0x7FC0",
            _ => "0x7FC00000",
        };
        Some(vec![
            format!("{indent}{nan} = arith.constant dense<{bits}> : {vector}"),
            self.text().replacen(value, nan, 1),
        ])
    }

    fn stored_scaled(&self, factor: f32) -> Option<Vec<String>> {
        let vector = self.text().rsplit_once(", ").map(|it| it.1).filter(|_| self.is("vector.store "))?;
        let value = *operands(self.text()).first()?;
        let (indent, [constant, scaled]) = (self.indent(), NEW);
        if vector.contains("f16") {
            let wide = vector.replace("bf16", "f32").replace("f16", "f32");
            return Some(vec![
                format!("{indent}{constant} = arith.constant dense<0x{:08X}> : {wide}", factor.to_bits()),
                format!("{indent}%mutant2 = arith.extf {value} : {vector} to {wide}"),
                format!("{indent}%mutant3 = arith.mulf %mutant2, {constant} : {wide}"),
                format!("{indent}{scaled} = arith.truncf %mutant3 : {wide} to {vector}"),
                self.text().replacen(value, scaled, 1),
            ]);
        }
        Some(vec![
            format!("{indent}{constant} = arith.constant dense<0x{:08X}> : {vector}", factor.to_bits()),
            format!("{indent}{scaled} = arith.mulf {value}, {constant} : {vector}"),
            self.text().replacen(value, scaled, 1),
        ])
    }

    /// A floating-point constant times `factor`.
    fn scaled_constant(&self, factor: f32) -> Option<Vec<String>> {
        let (literal, start) = self.float_literal()?;
        let value = match literal.strip_prefix("0x") {
            Some(bits) => f32::from_bits(u32::from_str_radix(bits, 16).ok()?),
            None => literal.parse().ok()?,
        };
        if value == 0.0 || !value.is_finite() {
            return None;
        }
        self.with_literal(&literal, start, value * factor)
    }

    fn count_minus_one(&self) -> Option<Vec<String>> {
        let (literal, start) = self.float_literal()?;
        let value: f32 = literal.parse().ok().filter(|it: &f32| it.fract() == 0.0 && *it > 2.0)?;
        self.with_literal(&literal, start, value - 1.0)
    }

    fn float_literal(&self) -> Option<(String, usize)> {
        let text = self.text();
        let at = text.find(" = arith.constant ")? + " = arith.constant ".len();
        if !text.ends_with("f32") && !text.ends_with("f32>") {
            return None;
        }
        let dense = text[at..].strip_prefix("dense<");
        let start = if dense.is_some() { at + "dense<".len() } else { at };
        let literal: String = text[start..].chars().take_while(|it| !matches!(it, '>' | ' ')).collect();
        Some((literal, start))
    }

    fn with_literal(&self, literal: &str, start: usize, value: f32) -> Option<Vec<String>> {
        let text = self.text();
        Some(vec![format!("{}0x{:08X}{}", &text[..start], value.to_bits(), &text[start + literal.len()..])])
    }

    /// `%n = llvm.getelementptr %table[I] : (!llvm.ptr) -> !llvm.ptr, !llvm.ptr` right before a store.
    fn moved_argument(&self) -> Option<Vec<String>> {
        if !self.lines.get(self.at + 1)?.trim_start().starts_with("llvm.store ") {
            return None;
        }
        self.element_pointer("!llvm.ptr", 1)
    }

    fn misplaced(&self) -> Option<Vec<String>> {
        self.element_pointer("i8", 64)
    }

    fn overlapping(&self) -> Option<Vec<String>> {
        let text = self.text();
        let first = self.is("llvm.getelementptr") && text.ends_with(", i8") && !text.contains("[0]");
        let (left, rest) = first.then(|| text.split_once('['))??;
        Some(vec![format!("{left}[0]{}", rest.split_once(']')?.1)])
    }

    fn element_pointer(&self, kind: &str, by: usize) -> Option<Vec<String>> {
        let text = self.text();
        if !self.is("llvm.getelementptr") || !text.ends_with(&format!(", {kind}")) {
            return None;
        }
        let (left, rest) = text.split_once('[')?;
        let (index, right) = rest.split_once(']')?;
        let index: usize = index.parse().ok()?;
        Some(vec![format!("{left}[{}]{right}", index + by)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn rewritten(rule: &str, line: &str) -> Vec<String> {
        let lines = [line.to_owned()];
        let rule = RULES.iter().find(|it| it.name == rule).unwrap();
        let new = (rule.rewrite)(&Line { lines: &lines, at: 0 }).expect("the rule fits");
        assert_ne!(new, lines);
        new
    }

    #[test]
    fn operands_are_found_right_of_the_result() {
        assert_eq!(operands("  %1 = vector.fma %2, %3#1, %40 : vector<16xf32>"), ["%2", "%3#1", "%40"]);
        assert_eq!(operands("  vector.store %2, %3[%4] : memref<1xf32>"), ["%2", "%3", "%4"]);
    }

    #[test]
    fn an_fma_loses_its_addend_or_its_order() {
        let line = "  %9 = vector.fma %1, %2, %3 : vector<16xf32>";
        assert_eq!(rewritten("fma-restarts", line), ["  %9 = arith.mulf %1, %2 : vector<16xf32>"]);
        assert_eq!(rewritten("fma-operands", line), ["  %9 = vector.fma %3, %2, %1 : vector<16xf32>"]);
        assert_eq!(rewritten("fma-in-f16", line).len(), 3);
    }

    #[test]
    fn a_rounding_by_adding_and_subtracting_is_dropped() {
        let lines = ["  %4 = vector.fma %1, %2, %3 : vector<8xf32>", "  %5 = arith.subf %4, %3 : vector<8xf32>"];
        let lines = lines.map(str::to_owned);
        let unrounded = Line { lines: &lines, at: 1 }.unrounded();
        assert_eq!(unrounded, Some(vec!["  %5 = arith.mulf %1, %2 : vector<8xf32>".to_owned()]));
        assert_eq!(Line { lines: &lines[1..], at: 0 }.unrounded(), None);
    }

    #[test]
    fn halves_are_cut_off_or_misread() {
        let cut = rewritten("rounded-towards-zero", "  %9 = arith.truncf %1 : vector<8xf32> to vector<8xf16>");
        assert_eq!(cut[1], "  %mutant0 = arith.bitcast %1 : vector<8xf32> to vector<8xi32>");
        assert_eq!(cut[4], "  %9 = arith.truncf %mutant1 : vector<8xf32> to vector<8xf16>");
        assert_eq!(
            rewritten("widened-as-bf16", "  %9 = arith.extf %1 : f16 to f32")[1],
            "  %9 = arith.extf %mutant0 : bf16 to f32"
        );
        let store = "  vector.store %1, %2[%3] : memref<8xf16>, vector<8xf16>";
        assert!(rewritten("store-nan", store)[0].ends_with("dense<0x7E00> : vector<8xf16>"));
        let store = store.replace("f16", "bf16");
        assert!(rewritten("store-nan", &store)[0].ends_with("dense<0x7FC0> : vector<8xbf16>"));
        assert_eq!(
            rewritten("widened-as-bf16", "  %9 = arith.extf %1 : bf16 to f32")[1],
            "  %9 = arith.extf %mutant0 : f16 to f32"
        );
        let constant = "  %9 = arith.constant dense<32767> : vector<8xi32>";
        assert_eq!(rewritten("cut-off", constant), ["  %9 = arith.constant dense<0> : vector<8xi32>"]);
    }

    #[test]
    fn products_of_pairs_lose_their_sums() {
        let dot = "  %9 = llvm.call_intrinsic \"llvm.x86.avx512bf16.dpbf16ps.512\"(%1, %2, %3) : \
            (vector<16xf32>, vector<32xbf16>, vector<32xbf16>) -> vector<16xf32>";
        let restarted = rewritten("dot-restarts", dot);
        assert!(restarted[0].ends_with("dense<0.0> : vector<16xf32>") && restarted[1].contains("(%mutant0, %2, %3)"));
        assert!(rewritten("dot-in-bf16", dot)[2].ends_with("extf %mutant1 : vector<16xbf16> to vector<16xf32>"));
    }

    #[test]
    fn loops_skip_iterations() {
        let line = "  scf.for %1 = %2 to %3 step %4 {";
        assert_eq!(
            rewritten("loop-last-skipped", line),
            ["  %mutant0 = arith.subi %3, %4 : index", "  scf.for %1 = %2 to %mutant0 step %4 {"]
        );
        assert_eq!(rewritten("loop-step-doubled", line)[1], "  scf.for %1 = %2 to %3 step %mutant0 {");
    }

    #[test]
    fn accesses_move_and_lose_their_masks() {
        let load =
            "  %1 = vector.maskedload %2[%3], %4, %5 : memref<8xf32>, vector<4xi1>, vector<4xf32> into vector<4xf32>";
        assert_eq!(rewritten("load-unmasked", load), ["  %1 = vector.load %2[%3] : memref<8xf32>, vector<4xf32>"]);
        assert_eq!(rewritten("load-offset", load)[1], "  %mutant1 = arith.addi %3, %mutant0 : index");
        let store = "  vector.maskedstore %2[%3], %4, %5 : memref<8xf32>, vector<4xi1>, vector<4xf32>";
        assert_eq!(rewritten("store-unmasked", store), ["  vector.store %5, %2[%3] : memref<8xf32>, vector<4xf32>"]);
    }

    #[test]
    fn constants_change_in_every_spelling() {
        assert_eq!(
            rewritten("count-minus-1", "  %1 = arith.constant 64.0 : f32"),
            ["  %1 = arith.constant 0x427C0000 : f32"]
        );
        let dense = rewritten("constant-negated", "  %1 = arith.constant dense<0x3F800000> : vector<16xf32>");
        assert_eq!(dense, ["  %1 = arith.constant dense<0xBF800000> : vector<16xf32>"]);
        assert_eq!(
            rewritten("index-minus-1", "  %1 = arith.constant 64 : index"),
            ["  %1 = arith.constant 63 : index"]
        );
    }

    #[test]
    fn rule_names_are_unique() {
        let mut names: Vec<_> = RULES.iter().map(|it| it.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), RULES.len());
    }

    #[test]
    fn places_are_spread_from_the_first_to_the_last() {
        let all: Vec<usize> = (0..10).collect();
        assert_eq!(spread(&all, 3).copied().collect::<Vec<_>>(), [0, 4, 9]);
        assert_eq!(spread(&all[..1], 3).copied().collect::<Vec<_>>(), [0]);
    }
}
