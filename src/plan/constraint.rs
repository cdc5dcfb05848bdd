//! Which schedules are legal for an operation on a device (gate V0). Illegal schedules are never generated; a violation names
//! the knob, its value, the limit, and where the limit comes from.

use super::{
    Plan,
    schedule::{
        AttentionSchedule, Dot, ElementwiseSchedule, MatmulSchedule, MlpSchedule, NormSchedule, PackB, Schedule,
    },
    stage::{Role, Stage, StageGraph, StageOp},
};
use crate::{
    host::{CpuFacts, Device},
    manifest::spec::Dtype,
};

/// A knob outside its limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stage `{stage}`: `{knob}` = {value} {rule}")]
pub struct Violation {
    pub stage: String,
    /// E.g. `up.mr`.
    pub knob: String,
    pub value: String,
    /// E.g. `needs 35 vector registers (24 accumulators ...): the CPU has 32`.
    pub rule: String,
}

/// A schedule cannot be had for a stage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("the plan has no schedule for stage `{stage}` ({op})")]
    Missing { stage: String, op: String },
    #[error("stage `{stage}` is a {op}: a {schedule} schedule does not fit it")]
    WrongKind { stage: String, op: String, schedule: String },
    #[error(
        "stage `{stage}` stores f16, which {model} cannot convert: it has no F16C instructions, and calling a library for every \
         element would be slower than f32 by an order of magnitude"
    )]
    NoHalves { stage: String, model: String },
    #[error(transparent)]
    Violation(#[from] Violation),
}

/// The schedule that `stage` of `graph` is generated with: the plan's where a pass asked for one, else the plain one; checked.
pub fn resolve(graph: &StageGraph, stage: &Stage, plan: &Plan, device: &Device) -> Result<Schedule, PlanError> {
    let dtype = graph.tensor(stage.output).dtype;
    let schedule = if stage.scheduled {
        let missing = || PlanError::Missing { stage: stage.name.clone(), op: stage.op.name().to_owned() };
        plan.stages.get(&stage.name).ok_or_else(missing)?.clone()
    } else {
        Schedule::plain(&stage.op, dtype, device)
    };
    check(stage, dtype, &schedule, device)?;
    check_operands(graph, stage, &schedule)?;
    Ok(schedule)
}

/// Checks every constraint of `schedule` for `stage`, whose tensors have this type, on `device`.
pub fn check(stage: &Stage, dtype: Dtype, schedule: &Schedule, device: &Device) -> Result<(), PlanError> {
    match device {
        Device::Cpu(cpu) => check_cpu(stage, dtype, schedule, cpu),
        Device::Gpu(gpu) => super::gpu::check(stage, dtype, schedule, gpu),
    }
}

/// Checks what `schedule` asks of the tensors of `graph` that `stage` reads: only what is given once can be packed ahead.
pub fn check_operands(graph: &StageGraph, stage: &Stage, schedule: &Schedule) -> Result<(), PlanError> {
    let (Schedule::Matmul(MatmulSchedule { pack_b: PackB::Ahead, .. }), [_, b, ..]) = (schedule, &stage.inputs[..])
    else {
        return Ok(());
    };
    let b = graph.tensor(*b);
    if b.role == Role::Weight {
        return Ok(());
    }
    Err(PlanError::Violation(Violation {
        stage: stage.name.clone(),
        knob: "pack-b".to_owned(),
        value: "ahead".to_owned(),
        rule: format!(
            "packs a weight before the calls: `{}` is given with every call, so it is during or never",
            b.name
        ),
    }))
}

/// `schedule` is of no kernel that computes `stage`.
pub(super) fn wrong_kind(stage: &Stage, schedule: &Schedule) -> PlanError {
    PlanError::WrongKind {
        stage: stage.name.clone(),
        op: stage.op.name().to_owned(),
        schedule: schedule.name().to_owned(),
    }
}

fn check_cpu(stage: &Stage, dtype: Dtype, schedule: &Schedule, cpu: &CpuFacts) -> Result<(), PlanError> {
    if dtype == Dtype::F16 && !converts_halves(cpu) {
        let (stage, model) = (stage.name.clone(), cpu.model.clone());
        return Err(PlanError::NoHalves { stage, model });
    }
    let knobs = Knobs { stage: &stage.name, device: cpu };
    match (&stage.op, schedule) {
        (&StageOp::Matmul { n, k, .. }, Schedule::Matmul(it)) => knobs.matmul("", (n, k), dtype, it)?,
        (&StageOp::Mlp { d_model, d_ff, .. }, Schedule::Mlp(it)) => knobs.mlp((d_model, d_ff), dtype, it)?,
        (StageOp::Attention { .. }, Schedule::Attention(it)) => knobs.attention(it)?,
        (StageOp::LayerNorm { .. } | StageOp::RmsNorm { .. }, Schedule::Norm(NormSchedule { lanes, unroll }))
        | (
            StageOp::Rope { .. }
            | StageOp::Activation { .. }
            | StageOp::Add { .. }
            | StageOp::Mul { .. }
            | StageOp::Scale { .. },
            Schedule::Elementwise(ElementwiseSchedule { lanes, unroll }),
        ) => {
            knobs.lanes("lanes", *lanes)?;
            knobs.range("unroll", *unroll, 1, 8, "written-out copies of the loop body")?;
        }
        (_, schedule) => return Err(wrong_kind(stage, schedule)),
    }
    Ok(())
}

/// Whether the CPU has instructions between f16 and f32: F16C on x86-64, always on AArch64.
fn converts_halves(cpu: &CpuFacts) -> bool {
    match cpu.arch.as_str() {
        "x86_64" => cpu.isa.iter().any(|it| it == "f16c"),
        arch => arch == "aarch64",
    }
}

/// Judges the knobs of one stage on one device.
pub(super) struct Knobs<'a, Facts> {
    pub stage: &'a str,
    pub device: &'a Facts,
}

impl<Facts> Knobs<'_, Facts> {
    pub fn violation(&self, knob: &str, value: impl ToString, rule: impl Into<String>) -> Violation {
        Violation { stage: self.stage.to_owned(), knob: knob.to_owned(), value: value.to_string(), rule: rule.into() }
    }

    pub fn range(&self, knob: &str, value: usize, low: usize, high: usize, why: &str) -> Result<(), Violation> {
        if (low..=high).contains(&value) {
            return Ok(());
        }
        Err(self.violation(knob, value, format!("is outside {low}..={high} ({why})")))
    }

    pub fn multiple(&self, knob: &str, value: usize, of: &str, unit: usize) -> Result<(), Violation> {
        if value > 0 && unit > 0 && value.is_multiple_of(unit) {
            return Ok(());
        }
        Err(self.violation(knob, value, format!("is not a positive multiple of `{of}` = {unit}")))
    }
}

impl Knobs<'_, CpuFacts> {
    fn lanes(&self, knob: &str, lanes: usize) -> Result<(), Violation> {
        if !lanes.is_power_of_two() {
            return Err(self.violation(knob, lanes, "is not a power of two: vectors have 1, 2, 4, 8 or 16 lanes"));
        }
        let why = format!("f32 lanes of the widest vector of {}", self.device.model);
        self.range(knob, lanes, 1, self.device.lanes, &why)
    }

    /// The accumulators of an mr x nr tile, one row of B and one broadcast element of A must fit into the registers.
    fn registers(&self, prefix: &str, mr: usize, nr: usize, lanes: usize) -> Result<(), Violation> {
        let knob = format!("{prefix}mr");
        self.range(&knob, mr, 1, 32, "rows of a register tile")?;
        self.range(&format!("{prefix}nr"), nr, lanes, 32 * lanes, "columns of a register tile")?;
        let (accumulators, row) = (mr * (nr / lanes), nr / lanes);
        let needed = accumulators + row + 1;
        if needed <= self.device.vector_registers {
            return Ok(());
        }
        let rule = format!(
            "with `{prefix}nr` = {nr} needs {needed} vector registers ({accumulators} accumulators, {row} for B, 1 for A): \
             {} has {}",
            self.device.model, self.device.vector_registers
        );
        Err(self.violation(&knob, mr, rule))
    }

    /// Pairs are of bf16, for a CPU that has their instruction, in vectors that it has.
    fn dot(&self, prefix: &str, dtype: Dtype, s: &MatmulSchedule) -> Result<(), Violation> {
        const ISA: &str = "avx512bf16";
        if s.dot == Dot::Fma {
            return Ok(());
        }
        let (knob, value) = (format!("{prefix}dot"), "pairs");
        if dtype != Dtype::Bf16 {
            let rule = format!("multiplies bf16: the stage's tensors are {}", dtype.name());
            return Err(self.violation(&knob, value, rule));
        }
        if !self.device.isa.iter().any(|it| it == ISA) {
            return Err(self.violation(&knob, value, format!("needs `{ISA}`: {} lacks it", self.device.model)));
        }
        if s.pack_b == PackB::Never {
            let rule = format!(
                "needs `{prefix}pack-b` = ahead or during: packing puts the rows of B side by side that make pairs"
            );
            return Err(self.violation(&knob, value, rule));
        }
        self.range(&format!("{prefix}lanes"), s.lanes, 4, 16, "vectors that `dot` = pairs has")?;
        self.multiple(&format!("{prefix}kc"), s.kc, "elements of a pair", s.dot.terms())
    }

    fn matmul(&self, prefix: &str, (n, k): (usize, usize), dtype: Dtype, s: &MatmulSchedule) -> Result<(), Violation> {
        let knob = |name: &str| format!("{prefix}{name}");
        self.lanes(&knob("lanes"), s.lanes)?;
        self.multiple(&knob("nr"), s.nr, &knob("lanes"), s.lanes)?;
        self.registers(prefix, s.mr, s.nr, s.lanes)?;
        self.multiple(&knob("mc"), s.mc, &knob("mr"), s.mr)?;
        self.multiple(&knob("nc"), s.nc, &knob("nr"), s.nr)?;
        self.range(&knob("kc"), s.kc, 1, 1 << 20, "depth of a cache block")?;
        self.range(&knob("unroll"), s.unroll, 1, 16, "written-out steps of the depth loop")?;
        self.dot(prefix, dtype, s)?;
        if s.pack_a {
            let (bytes, limit) = (s.mc * s.kc * 4 / s.dot.terms(), self.device.l2.max(self.device.l3));
            if bytes > limit {
                let rule =
                    format!("with `{prefix}kc` = {} packs {bytes} bytes of A: the largest cache has {limit}", s.kc);
                return Err(self.violation(&knob("mc"), s.mc, rule));
            }
        }
        if s.pack_b == PackB::During {
            // No more than the product has: `nc` and `kc` may go beyond that.
            let steps = s.kc.min(k).div_ceil(s.dot.terms());
            let (bytes, limit) = (s.nc.min(n.next_multiple_of(s.nr)) * steps * 4, self.device.l2.max(self.device.l3));
            if bytes > limit {
                let rule = format!(
                    "with `{prefix}pack-b` = during and `{prefix}kc` = {} packs {bytes} bytes of B at a time: the largest cache \
                     has {limit}",
                    s.kc
                );
                return Err(self.violation(&knob("nc"), s.nc, rule));
            }
        }
        Ok(())
    }

    fn mlp(&self, (d_model, d_ff): (usize, usize), dtype: Dtype, s: &MlpSchedule) -> Result<(), Violation> {
        self.matmul("up.", (d_ff, d_model), dtype, &s.up)?;
        self.matmul("down.", (d_model, d_ff), dtype, &s.down)?;
        self.multiple("row-block", s.row_block, "up.mr", s.up.mr)?;
        if s.up.mr != s.down.mr {
            return Err(self.violation(
                "down.mr",
                s.down.mr,
                format!("is not `up.mr` = {}: both products walk the same row tiles", s.up.mr),
            ));
        }
        if s.up.lanes != s.down.lanes {
            return Err(self.violation("down.lanes", s.down.lanes, format!("is not `up.lanes` = {}", s.up.lanes)));
        }
        Ok(())
    }

    fn attention(&self, s: &AttentionSchedule) -> Result<(), Violation> {
        self.lanes("lanes", s.lanes)?;
        self.multiple("nr", s.nr, "lanes", s.lanes)?;
        self.registers("", s.mr, s.nr, s.lanes)?;
        self.multiple("row-block", s.row_block, "mr", s.mr)?;
        self.range("row-block", s.row_block, 1, 4096, "rows of scores in cache")?;
        self.range("unroll", s.unroll, 1, 16, "written-out steps of the depth loops")?;
        self.range("softmax-rows", s.softmax_rows, 1, s.mr, "rows of a register tile, `mr`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{
        schedule::{Split, TileOrder},
        stage::{Tensor, TensorId},
    };

    fn schedule(pack_b: PackB, nc: usize) -> Schedule {
        Schedule::Matmul(MatmulSchedule {
            mr: 4,
            nr: 8,
            lanes: 4,
            mc: 8,
            nc,
            kc: 1024,
            unroll: 2,
            dot: Dot::Fma,
            order: TileOrder::ColumnsOutside,
            pack_a: false,
            pack_b,
            prefetch: false,
            split: Split::Columns,
        })
    }

    fn product(b: Role) -> StageGraph {
        let (m, n, k) = (8, 4096, 1024);
        let tensor = |name: &str, shape: [usize; 2], role| Tensor {
            name: name.to_owned(),
            shape: shape.to_vec(),
            dtype: Dtype::F32,
            role,
        };
        let tensors = vec![tensor("x", [m, k], Role::Input), tensor("w", [k, n], b), tensor("y", [m, n], Role::Output)];
        let op = StageOp::Matmul { m, n, k, bias: false, activation: None, residual: false };
        let inputs = vec![TensorId(0), TensorId(1)];
        let stage = Stage { name: "matmul".to_owned(), op, inputs, output: TensorId(2), scheduled: true };
        StageGraph { block: "b".to_owned(), tensors, stages: vec![stage] }
    }

    #[test]
    fn only_a_weight_is_packed_ahead() {
        let check = |b, pack_b| {
            let graph = product(b);
            check_operands(&graph, &graph.stages[0], &schedule(pack_b, 64)).map_err(|it| it.to_string())
        };
        for pack_b in [PackB::Ahead, PackB::During, PackB::Never] {
            assert_eq!(check(Role::Weight, pack_b), Ok(()));
        }
        assert_eq!([PackB::During, PackB::Never].map(|it| check(Role::Input, it)), [Ok(()), Ok(())]);
        let refused = "stage `matmul`: `pack-b` = ahead packs a weight before the calls: `w` is given with every call, so it is \
                       during or never";
        assert_eq!(check(Role::Input, PackB::Ahead), Err(refused.to_owned()));
    }

    #[test]
    fn a_block_of_b_that_the_kernel_packs_fits_the_largest_cache() {
        let cpu = CpuFacts { l2: 256 << 10, l3: 1 << 20, lanes: 8, vector_registers: 16, ..CpuFacts::detect() };
        let graph = product(Role::Weight);
        let check = |schedule| check(&graph.stages[0], Dtype::F32, &schedule, &Device::from(cpu.clone()));
        assert_eq!(check(schedule(PackB::During, 256)), Ok(()));
        assert_eq!(check(schedule(PackB::Ahead, 4096)), Ok(()));
        let refused = check(schedule(PackB::During, 512)).unwrap_err().to_string();
        let expected = "stage `matmul`: `nc` = 512 with `pack-b` = during and `kc` = 1024 packs 2097152 bytes of B at a time: the \
                        largest cache has 1048576";
        assert_eq!(refused, expected);
    }
}
