//! Puts a module together: one entry for each stage, one for each packed weight, one for the whole block, and the shared
//! micro-kernels; and describes it in a [`Kernel`].

use super::{
    attention::{self, Attention},
    elementwise::{Function, Map, Rope},
    emit::{Code, Kind, Mem, Val},
    matmul::{self, Product},
    memory,
    micro::{ActivationOrd, Epilogue, MicroKernels},
    mlp::{self, Mlp},
    norm::{self, Norm},
    pack,
};
use kernelforge::{
    host::{CpuFacts, Device},
    manifest::spec::Dtype,
    plan::{
        Plan, constraint,
        kernel::{Arg, Entry, KERNEL_VERSION, Kernel, Packed},
        schedule::{Dot, MatmulSchedule, PackB, Schedule},
        stage::{Role, Stage, StageGraph, StageOp, TensorId},
    },
    protocol::{Failure, FailureKind},
};
use std::{collections::BTreeMap, fmt::Write as _};

/// The module's text and its description.
///
/// # Errors
/// `IllegalPlan` when a scheduled stage has no schedule, one of another kind, or one that breaks a constraint.
pub fn generate(graph: &StageGraph, plan: &Plan, cpu: &CpuFacts) -> Result<(String, Kernel), Failure> {
    let mut module = Module {
        graph,
        prefix: identifier(&graph.block),
        text: String::new(),
        micros: MicroKernels::default(),
        packed: Vec::new(),
        packed_by: BTreeMap::new(),
    };
    let device = Device::Cpu(cpu.clone());
    let (mut stages, mut dot) = (Vec::new(), Dot::Fma);
    for stage in &graph.stages {
        let schedule = constraint::resolve(graph, stage, plan, &device)
            .map_err(|it| Failure::new(FailureKind::IllegalPlan, it.to_string()).at_stage(&stage.name))?;
        dot = dot.max(schedule.dot());
        stages.push(module.stage(stage, &schedule)?);
    }
    let (placements, values) = memory::place(graph);
    let block = module.block(&stages, &placements, values);
    let mut text = String::from("module {\n");
    text += &module.micros.into_text();
    text += &module.text;
    text += "}\n";
    let kernel =
        Kernel { version: KERNEL_VERSION, graph: graph.clone(), dot, packed: module.packed, stages, block, placements };
    Ok((text, kernel))
}

/// `name` with everything that C does not allow in an identifier replaced.
fn identifier(name: &str) -> String {
    name.chars().map(|it| if it.is_ascii_alphanumeric() { it } else { '_' }).collect()
}

struct Module<'a> {
    graph: &'a StageGraph,
    prefix: String,
    text: String,
    micros: MicroKernels,
    packed: Vec<Packed>,
    /// Packed weights by what decides their layout.
    packed_by: BTreeMap<(TensorId, usize, Dot), usize>,
}

/// An entry under construction: its argument table so far.
struct EntryCode {
    code: Code,
    table: Val,
    begin: Val,
    end: Val,
    args: Vec<Arg>,
}

impl EntryCode {
    fn new(lanes: usize) -> Self {
        let mut code = Code::new(lanes);
        let (table, begin, end) = (code.parameter(), code.parameter(), code.parameter());
        let (begin, end) = (
            code.op(format_args!("arith.index_cast {begin} : i64 to index")),
            code.op(format_args!("arith.index_cast {end} : i64 to index")),
        );
        Self { code, table, begin, end, args: Vec::new() }
    }

    /// The pointer of the next argument.
    fn pointer(&mut self, arg: Arg) -> Val {
        let index = self.args.len();
        self.args.push(arg);
        let table = self.table;
        let slot =
            self.code.op(format_args!("llvm.getelementptr {table}[{index}] : (!llvm.ptr) -> !llvm.ptr, !llvm.ptr"));
        self.code.op(format_args!("llvm.load {slot} : !llvm.ptr -> !llvm.ptr"))
    }

    /// The next argument as a flat buffer of `len` elements: a memref descriptor put together by hand, which the conversion of
    /// memref to LLVM takes apart again.
    fn buffer(&mut self, arg: Arg, len: usize, element: Dtype) -> Mem {
        let pointer = self.pointer(arg);
        self.at(pointer, Kind { len, element })
    }

    /// What is at `pointer`, as a flat buffer.
    fn at(&mut self, pointer: Val, Kind { len, element }: Kind) -> Mem {
        const TYPE: &str = "!llvm.struct<(ptr, ptr, i64, array<1 x i64>, array<1 x i64>)>";
        let code = &mut self.code;
        let mut descriptor = code.op(format_args!("llvm.mlir.poison : {TYPE}"));
        let (zero, size, one) = (
            code.op("llvm.mlir.constant(0 : i64) : i64"),
            code.op(format_args!("llvm.mlir.constant({len} : i64) : i64")),
            code.op("llvm.mlir.constant(1 : i64) : i64"),
        );
        for (value, place) in [(pointer, "0"), (pointer, "1"), (zero, "2"), (size, "3, 0"), (one, "4, 0")] {
            descriptor = code.op(format_args!("llvm.insertvalue {value}, {descriptor}[{place}] : {TYPE}"));
        }
        let ty = format!("memref<{len}x{}>", element.name());
        let val = code.op(format_args!("builtin.unrealized_conversion_cast {descriptor} : {TYPE} to {ty}"));
        Mem { val, len, element }
    }

    /// The workspace, as f32.
    fn workspace(&mut self, len: usize) -> Mem {
        self.buffer(Arg::Workspace, len, Dtype::F32)
    }

    fn finish(self, symbol: String, units: usize, workspace: usize, text: &mut String) -> Entry {
        // The three parameters were taken first, in this order.
        let header = format!("func.func @{symbol}(%0: !llvm.ptr, %1: i64, %2: i64)");
        *text += &self.code.finish(header);
        Entry { symbol, args: self.args, units, workspace }
    }
}

impl Module<'_> {
    fn stage(&mut self, stage: &Stage, schedule: &Schedule) -> Result<Entry, Failure> {
        let symbol = format!("{}__{}", self.prefix, identifier(&stage.name));
        let wrong = || {
            let message = format!(
                "stage `{}` is a {}: a {} schedule does not fit it",
                stage.name,
                stage.op.name(),
                schedule.name()
            );
            Failure::new(FailureKind::IllegalPlan, message).at_stage(&stage.name)
        };
        let mut inputs = Inputs { ids: stage.inputs.iter() };
        match (&stage.op, schedule) {
            (&StageOp::Matmul { m, n, k, bias, activation, residual }, Schedule::Matmul(schedule)) => {
                let epilogue =
                    Epilogue { bias, activation: activation.map(ActivationOrd), residual, ..Epilogue::default() };
                let result = self.graph.tensor(stage.output).dtype;
                let product = Product { m, n, k, lda: k, ldc: n, schedule, epilogue, result, rows: m };
                let mut entry = EntryCode::new(schedule.lanes);
                let zero = entry.code.index(0);
                let a = self.tensor(&mut entry, inputs.next());
                let b = self.weight(&mut entry, inputs.next(), (n, k), schedule);
                let bias = bias.then(|| self.tensor(&mut entry, inputs.next()));
                let residual = residual.then(|| (self.tensor(&mut entry, inputs.next()), zero));
                let c = self.tensor(&mut entry, stage.output);
                let workspace = product.workspace();
                let scratch = (workspace > 0).then(|| (entry.workspace(workspace), zero));
                let buffers = matmul::Buffers {
                    a: (a, zero),
                    b,
                    c: (c, zero),
                    bias,
                    multiply: None,
                    residual,
                    workspace: scratch,
                };
                let (begin, end) = (entry.begin, entry.end);
                product.emit_units(&mut entry.code, &mut self.micros, buffers, begin, end);
                Ok(entry.finish(symbol, product.units(), workspace * 4, &mut self.text))
            }
            (&StageOp::Mlp { rows, d_model, d_ff, activation, gated, bias, residual }, Schedule::Mlp(schedule)) => {
                let result = self.graph.tensor(stage.output).dtype;
                let mlp = Mlp { rows, d_model, d_ff, activation, gated, bias, residual, schedule, result };
                let mut entry = EntryCode::new(schedule.up.lanes);
                let x = self.tensor(&mut entry, inputs.next());
                let mut linear = |module: &mut Self, entry: &mut EntryCode, shape, schedule: &MatmulSchedule| {
                    let weight = module.weight(entry, inputs.next(), shape, schedule);
                    (weight, bias.then(|| module.tensor(entry, inputs.next())))
                };
                let gate = gated.then(|| linear(self, &mut entry, (d_ff, d_model), &schedule.up));
                let up = linear(self, &mut entry, (d_ff, d_model), &schedule.up);
                let down = linear(self, &mut entry, (d_model, d_ff), &schedule.down);
                let residual = residual.then(|| self.tensor(&mut entry, inputs.next()));
                let y = self.tensor(&mut entry, stage.output);
                let pointer = entry.pointer(Arg::Workspace);
                let hidden = entry.at(pointer, mlp.hidden());
                let workspace = entry.at(pointer, Kind { len: mlp.workspace(), element: Dtype::F32 });
                let buffers = mlp::Buffers { x, gate, up, down, residual, y, hidden, workspace };
                let (begin, end) = (entry.begin, entry.end);
                mlp.emit_units(&mut entry.code, &mut self.micros, &buffers, begin, end);
                Ok(entry.finish(symbol, mlp.units(), mlp.workspace() * 4, &mut self.text))
            }
            (
                &StageOp::Attention { batch, seq, heads, kv_heads, head_dim, causal, scale },
                Schedule::Attention(schedule),
            ) => {
                let attention =
                    Attention { seq, batch, heads, kv_heads, head_dim, causal, scale: scale as f32, schedule };
                let mut entry = EntryCode::new(schedule.lanes);
                let mut next = || self.tensor(&mut entry, inputs.next());
                let (q, k, v) = (next(), next(), next());
                let o = self.tensor(&mut entry, stage.output);
                let workspace = entry.workspace(attention.workspace());
                let buffers = attention::Buffers { q, k, v, o, workspace };
                let (begin, end) = (entry.begin, entry.end);
                attention.emit_units(&mut entry.code, &mut self.micros, &buffers, begin, end);
                Ok(entry.finish(symbol, attention.units(), attention.workspace() * 4, &mut self.text))
            }
            (
                &StageOp::LayerNorm { rows, width, eps } | &StageOp::RmsNorm { rows, width, eps },
                Schedule::Norm(schedule),
            ) => {
                let centred = matches!(stage.op, StageOp::LayerNorm { .. });
                let mut entry = EntryCode::new(schedule.lanes);
                let mut next = || self.tensor(&mut entry, inputs.next());
                let (x, gain, bias) = (next(), next(), centred.then(&mut next));
                let y = self.tensor(&mut entry, stage.output);
                let norm = Norm { width, eps: eps as f32, centred, schedule };
                let (begin, end) = (entry.begin, entry.end);
                norm.emit_units(&mut entry.code, &norm::Buffers { x, gain, bias, y }, begin, end);
                Ok(entry.finish(symbol, rows, 0, &mut self.text))
            }
            (&StageOp::Rope { batch, seq, heads, head_dim }, Schedule::Elementwise(schedule)) => {
                let rope = Rope { seq, heads, head_dim, schedule };
                let (mut entry, tables, y) = self.elementwise(stage, schedule.lanes);
                let (begin, end) = (entry.begin, entry.end);
                rope.emit_units(&mut entry.code, &tables, y, begin, end);
                Ok(entry.finish(symbol, batch * seq, 0, &mut self.text))
            }
            (op, Schedule::Elementwise(schedule)) => {
                let function = match *op {
                    StageOp::Activation { function, .. } => Function::Activation(function),
                    StageOp::Add { .. } => Function::Add,
                    StageOp::Mul { .. } => Function::Mul,
                    StageOp::Scale { factor, .. } => Function::Scale(factor),
                    _ => return Err(wrong()),
                };
                let map = Map { len: self.graph.tensor(stage.output).len(), function, schedule };
                let (mut entry, operands, y) = self.elementwise(stage, schedule.lanes);
                let (begin, end) = (entry.begin, entry.end);
                map.emit_units(&mut entry.code, &operands, y, begin, end);
                Ok(entry.finish(symbol, map.units(), 0, &mut self.text))
            }
            _ => Err(wrong()),
        }
    }

    fn elementwise(&self, stage: &Stage, lanes: usize) -> (EntryCode, Vec<Mem>, Mem) {
        let mut entry = EntryCode::new(lanes);
        let operands = stage.inputs.iter().map(|&id| self.tensor(&mut entry, id)).collect();
        let y = self.tensor(&mut entry, stage.output);
        (entry, operands, y)
    }

    fn tensor(&self, entry: &mut EntryCode, id: TensorId) -> Mem {
        let tensor = self.graph.tensor(id);
        entry.buffer(Arg::Tensor(id), tensor.len(), tensor.dtype)
    }

    /// The right-hand side of a product: packed ahead where the schedule says so and the tensor is a weight.
    fn weight(
        &mut self,
        entry: &mut EntryCode,
        id: TensorId,
        (n, k): (usize, usize),
        schedule: &MatmulSchedule,
    ) -> Mem {
        if schedule.pack_b != PackB::Ahead {
            return self.tensor(entry, id);
        }
        let Kind { len, element } = pack::packed(n, k, self.graph.tensor(id).dtype, schedule);
        let index = *self.packed_by.entry((id, schedule.nr, schedule.dot)).or_insert(self.packed.len());
        if index == self.packed.len() {
            let name = &self.graph.tensor(id).name;
            let pairs = if schedule.dot == Dot::Pairs { "_pairs" } else { "" };
            let symbol = format!("{}__pack_{}_{}{pairs}", self.prefix, identifier(name), schedule.nr);
            let mut pack = EntryCode::new(schedule.lanes);
            let source = self.tensor(&mut pack, id);
            let target = pack.buffer(Arg::Packed(index), len, element);
            let (begin, end) = (pack.begin, pack.end);
            pack::Source { n, k, schedule, mem: source }.emit_pack(&mut pack.code, target, begin, end);
            let prepare = pack.finish(symbol, n.div_ceil(schedule.nr), 0, &mut self.text);
            self.packed.push(Packed { weight: id, bytes: len * element.bytes(), prepare });
        }
        entry.buffer(Arg::Packed(index), len, element)
    }

    /// The block entry: every stage in turn on the calling thread. Its workspace holds the values, then what one stage needs.
    fn block(&mut self, stages: &[Entry], placements: &[kernelforge::plan::kernel::Placement], values: usize) -> Entry {
        let mut entry = EntryCode::new(1);
        let mut pointers: BTreeMap<Key, Val> = BTreeMap::new();
        let is_value = |id: TensorId| self.graph.tensor(id).role == Role::Value;
        for arg in stages.iter().flat_map(|it| &it.args) {
            let outside = match *arg {
                Arg::Tensor(id) => !is_value(id),
                Arg::Packed(_) => true,
                Arg::Workspace => false,
            };
            if outside && !pointers.contains_key(&key(*arg)) {
                let pointer = entry.pointer(*arg);
                pointers.insert(key(*arg), pointer);
            }
        }
        let scratch = stages.iter().map(|it| memory::aligned(it.workspace)).max().unwrap_or(0);
        if values + scratch > 0 {
            let base = entry.pointer(Arg::Workspace);
            let place = |code: &mut Code, offset: usize| {
                code.op(format_args!("llvm.getelementptr {base}[{offset}] : (!llvm.ptr) -> !llvm.ptr, i8"))
            };
            for placement in placements {
                let pointer = place(&mut entry.code, placement.offset);
                pointers.insert(key(Arg::Tensor(placement.tensor)), pointer);
            }
            let pointer = place(&mut entry.code, values);
            pointers.insert(key(Arg::Workspace), pointer);
        }
        let code = &mut entry.code;
        let slots = stages.iter().map(|it| it.args.len()).max().unwrap_or(0).max(1);
        let slots = code.op(format_args!("llvm.mlir.constant({slots} : i64) : i64"));
        let table = code.op(format_args!("llvm.alloca {slots} x !llvm.ptr : (i64) -> !llvm.ptr"));
        let zero = code.op("llvm.mlir.constant(0 : i64) : i64");
        for stage in stages {
            for (index, arg) in stage.args.iter().enumerate() {
                let slot =
                    code.op(format_args!("llvm.getelementptr {table}[{index}] : (!llvm.ptr) -> !llvm.ptr, !llvm.ptr"));
                code.line(format_args!("llvm.store {}, {slot} : !llvm.ptr, !llvm.ptr", pointers[&key(*arg)]));
            }
            let units = code.op(format_args!("llvm.mlir.constant({} : i64) : i64", stage.units));
            let i64 = || "i64".to_owned();
            code.call(&stage.symbol, &[(table, "!llvm.ptr".to_owned()), (zero, i64()), (units, i64())]);
        }
        let symbol = format!("{}__block", self.prefix);
        let mut text = String::new();
        let entry = entry.finish(symbol, 1, values + scratch, &mut text);
        let _ = write!(self.text, "{text}");
        entry
    }
}

/// An [`Arg`] as a map key.
type Key = (u8, usize);

fn key(arg: Arg) -> Key {
    match arg {
        Arg::Tensor(TensorId(index)) => (0, index),
        Arg::Packed(index) => (1, index),
        Arg::Workspace => (2, 0),
    }
}

/// The operands of a stage, taken in the order that [`StageOp`] documents. The IR's shape verifier has checked their number.
struct Inputs<'a> {
    ids: std::slice::Iter<'a, TensorId>,
}

impl Inputs<'_> {
    fn next(&mut self) -> TensorId {
        *self.ids.next().unwrap_or(&TensorId(usize::MAX))
    }
}
