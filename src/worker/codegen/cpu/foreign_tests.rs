//! Kernels of CPUs that are not here: compiled to assembly and read, because nothing can run them. AVX-512 with products of pairs, and
//! NEON.

use super::{lower::Target, module};
use crate::verify::samples;
use kernelforge::{
    build::search::heuristic,
    host::CpuFacts,
    manifest::spec::Dtype,
    plan::{
        schedule::Schedule,
        stage::{StageGraph, StageOp},
    },
};
use std::collections::BTreeMap;

fn facts(arch: &str, model: &str, isa: &[&str], (lanes, vector_registers): (usize, usize)) -> CpuFacts {
    let isa = isa.iter().map(|it| (*it).to_owned()).collect();
    let (arch, model) = (arch.to_owned(), model.to_owned());
    CpuFacts { arch, model, isa, lanes, vector_registers, l1d: 64 << 10, l2: 1 << 20, l3: 32 << 20, cores: 8 }
}

/// A Neoverse N1.
fn neon() -> (CpuFacts, Target) {
    let target = Target::of("aarch64-unknown-linux-gnu", "neoverse-n1", "+neon");
    (facts("aarch64", "Neoverse", &["neon"], (4, 32)), target)
}

/// A Zen 4.
fn avx512() -> (CpuFacts, Target) {
    let isa = ["avx", "avx2", "avx512bf16", "avx512bw", "avx512dq", "avx512f", "avx512vl", "f16c", "fma"];
    (facts("x86_64", "AMD Zen 4", &isa, (16, 32)), Target::of("x86_64-unknown-linux-gnu", "znver4", ""))
}

/// The heuristic's schedules, changed by `change`.
fn assembly(graph: &StageGraph, (cpu, target): &(CpuFacts, Target), change: impl Fn(&mut Schedule)) -> String {
    let mut stages: BTreeMap<String, Schedule> = heuristic::propose(graph, cpu);
    stages.values_mut().for_each(change);
    let plan = samples::plan(&graph.block, "cpu", stages);
    let (text, _) = module::generate(graph, &plan, cpu).unwrap_or_else(|it| panic!("{it}\n{}", it.detail));
    super::lower::assembly(&text, target).unwrap_or_else(|it| panic!("{it}\n{}", it.detail))
}

fn product(dtype: Dtype) -> StageGraph {
    samples::graph(&samples::stored(&samples::product((64, 192, 128), false), dtype))
}

/// The instructions of the stretch between two labels in which `wanted` is most often, and how often that is.
fn hottest(assembly: &str, wanted: impl Fn(&str) -> bool) -> (Vec<&str>, usize) {
    let (mut best, mut current) = ((Vec::new(), 0), (Vec::new(), 0));
    for line in assembly.lines().chain(["end:"]) {
        if line.trim_end().ends_with(':') || line.contains(": ") && !line.starts_with('\t') {
            if current.1 > best.1 {
                best = current;
            }
            current = (Vec::new(), 0);
        } else if line.starts_with('\t') && !line.trim_start().starts_with('.') {
            current.1 += usize::from(wanted(line));
            current.0.push(line);
        }
    }
    best
}

/// Multiply-adds of the body of the depth loop, by the schedule.
fn body(graph: &StageGraph, cpu: &CpuFacts) -> usize {
    match heuristic::propose(graph, cpu).values().next() {
        Some(Schedule::Matmul(it)) => it.mr * it.nr / it.lanes * it.unroll,
        other => panic!("{other:?}"),
    }
}

fn neon_step(line: &str) -> bool {
    line.trim_start().starts_with("fmla\tv") && line.contains(".4s")
}

fn avx512_step(line: &str) -> bool {
    line.trim_start().starts_with("vfmadd") && line.contains("%zmm")
}

/// The body of a product's depth loop has the steps that the schedule says, and nothing of it is on the stack.
fn assert_in_registers(here: &(CpuFacts, Target), dtype: Dtype, step: fn(&str) -> bool, stack: &str) {
    let graph = product(dtype);
    let text = assembly(&graph, here, |_| {});
    let (lines, steps) = hottest(&text, step);
    assert_eq!(steps, body(&graph, &here.0), "{}", lines.join("\n"));
    assert!(!lines.iter().any(|it| it.contains(stack)), "{}", lines.join("\n"));
}

#[test]
fn a_product_for_neon_keeps_its_sums_in_registers() {
    assert_in_registers(&neon(), Dtype::F32, neon_step, "[sp");
}

#[test]
fn a_product_for_avx_512_keeps_its_sums_in_registers() {
    assert_in_registers(&avx512(), Dtype::F32, avx512_step, "(%rsp");
}

#[test]
fn pairs_of_bf16_are_one_instruction_of_avx_512() {
    let step = |it: &str| it.trim_start().starts_with("vdpbf16ps") && it.contains("%zmm");
    assert_in_registers(&avx512(), Dtype::Bf16, step, "(%rsp");
}

/// Whole blocks, whose functions are all written out: nothing is called.
#[test]
fn blocks_for_other_cpus_call_no_library() {
    for here in [neon(), avx512()] {
        for block in [samples::gpt(), samples::llama()] {
            let text = assembly(&samples::graph(&block), &here, |_| {});
            let callee = |line: &'_ str| {
                let (call, callee) = line.trim().split_once('\t')?;
                (call == "bl" || call.starts_with("call")).then(|| callee.trim_end_matches("@PLT").to_owned())
            };
            let own = |it: &String| text.contains(&format!("\n{it}:")) || it.starts_with("mem");
            let called: Vec<String> = text.lines().filter_map(callee).filter(|it| !own(it)).collect();
            assert!(called.is_empty(), "{}: {called:?}", here.0.arch);
            let is_vector = |it: &str| neon_step(it) || avx512_step(it);
            assert!(text.lines().any(is_vector), "{}", here.0.arch);
        }
    }
}

/// Another register tile and another unrolling are other code there too.
#[test]
fn knobs_change_the_code_for_neon() {
    let (graph, here) = (product(Dtype::F32), neon());
    let plain = assembly(&graph, &here, |_| {});
    let changes: [fn(&mut Schedule); 3] = [
        |it| {
            if let Schedule::Matmul(it) = it {
                it.unroll = 1
            }
        },
        |it| {
            if let Schedule::Matmul(it) = it {
                (it.mr, it.mc) = (6, 66)
            }
        },
        |it| {
            if let Schedule::Matmul(it) = it {
                (it.nr, it.nc) = (8, 192)
            }
        },
    ];
    for change in changes {
        assert_ne!(plain, assembly(&graph, &here, change));
    }
}

#[test]
fn a_schedule_for_vectors_of_another_cpu_is_refused() {
    let (graph, (neon, _), (avx512, _)) = (product(Dtype::F32), neon(), avx512());
    let plan = |cpu: &CpuFacts| samples::plan(&graph.block, "cpu", heuristic::propose(&graph, cpu));
    assert!(graph.stages.iter().all(|it| matches!(it.op, StageOp::Matmul { .. })));
    let refused = module::generate(&graph, &plan(&avx512), &neon).unwrap_err();
    assert_eq!(refused.kind, kernelforge::protocol::FailureKind::IllegalPlan, "{refused}");
    module::generate(&graph, &plan(&avx512), &avx512).unwrap();
}
