//! Why a mutant that was accepted is no hole in the verifier. Its machine code may be the original's (that is seen before);
//! the line that it changes may never be reached; or a reviewed line of `equivalent.txt` says why it computes the same, and
//! then it must have returned the same bits too, so that a line that is too wide excuses nothing. (Other stages that mean the
//! same need not compute the same bits; the gate of meaning has found them equal in f64.)

use super::{Subject, Trial, code};
use crate::{
    codegen::cpu::assemble,
    device::{
        cpu::LoadedKernel,
        guard::{Edge, Guarded},
    },
    verify::{
        candidate::{Candidate, Compiled, Tensors},
        inputs::{self, Regime},
    },
};
use kernelforge::{
    digest::Digest,
    protocol::{Failure, mutation::Proof},
};
use std::collections::BTreeSet;

/// What shows that the accepted mutant, `rule` at a line of a function, is none.
///
/// # Errors
/// As loading and running fail.
pub fn prove(
    subject: &Subject,
    trial: Trial,
    (function, line, rule): (&str, usize, &str),
    id: &str,
) -> Result<Option<Proof>, Failure> {
    if never_reached(subject, trial, function, line)? {
        return Ok(Some(Proof::NeverExecuted));
    }
    let Some(Review { reason, .. }) = reviewed(&subject.kernel.graph.block, id) else { return Ok(None) };
    let Some(mutant) = code::apply(subject.module, function, line, rule) else { return Ok(None) };
    let patch = assemble(&mutant.patch(&BTreeSet::from([function.to_owned()])))?;
    let mutant = LoadedKernel::load_patched(trial.object, &patch, subject.kernel.clone())?;
    let original = LoadedKernel::load(trial.object, subject.kernel.clone())?;
    let same = results(&mutant, subject, trial)? == results(&original, subject, trial)?;
    Ok(same.then(|| Proof::Reviewed(reason.to_owned())))
}

/// Runs the original with a probe before the line: a read of a protected page, which is noted. Which code is reached depends
/// on the units that a call is asked for and on no tensor, because generated code has no branch on one.
fn never_reached(subject: &Subject, trial: Trial, function: &str, line: usize) -> Result<bool, Failure> {
    let mut page = Guarded::new(64, Edge::End)?;
    let address = page.pointer().wrapping_add(64) as u64;
    let Some(probed) = code::probed(subject.module, function, line, address) else { return Ok(false) };
    // A place that cannot be probed (the middle of an op) proves nothing.
    let Ok(patch) = assemble(&probed.patch(&BTreeSet::from([function.to_owned()]))) else { return Ok(false) };
    let kernel = LoadedKernel::load_patched(trial.object, &patch, subject.kernel.clone())?;
    results(&kernel, subject, trial)?;
    Ok(page.escapes().is_empty())
}

/// Digests of the bits of everything that a kernel computes: packing, every stage in every range of its units, the block; on usual and on
/// extreme numbers, in poisoned memory.
fn results(kernel: &LoadedKernel, subject: &Subject, trial: Trial) -> Result<Vec<Digest>, Failure> {
    let mut candidate = Compiled::new(kernel, 1, Some(Edge::End))?;
    let mut digests = Vec::new();
    let mut keep = |data: &[f32]| {
        let bytes: Vec<u8> = data.iter().flat_map(|it| it.to_bits().to_le_bytes()).collect();
        digests.push(Digest::of(&bytes));
    };
    let stages = candidate.graph().stages.clone();
    for (seed, regime) in (trial.seed..).zip([Regime::Normal, Regime::Peaky, Regime::NearConstant]) {
        inputs::fill(&mut candidate, inputs::rope_theta(subject.block), seed);
        candidate.prepare();
        for poison in [f32::NAN, 2f32.powi(100)] {
            candidate.poison(poison);
            candidate.block();
            crate::verify::outputs(&candidate).iter().for_each(|&id| keep(candidate.tensor(id)));
            for (index, stage) in stages.iter().enumerate() {
                if regime != Regime::Normal {
                    inputs::fill_stage(&mut candidate, stage, regime, seed);
                }
                let units = candidate.units(index);
                // All ranges of few units, all single ones of many.
                let longest = if units <= FEW { units } else { 1 };
                for length in 1..=longest {
                    for begin in 0..=units - length {
                        // What the range does not write is compared too.
                        candidate.tensor_mut(stage.output).fill(poison);
                        candidate.stage_units(index, begin, begin + length);
                        keep(candidate.tensor(stage.output));
                    }
                }
                candidate.stage(index);
                keep(candidate.tensor(stage.output));
            }
        }
    }
    // Nothing outside of the buffers may be touched either.
    keep(&vec![1.0; candidate.escapes().len()]);
    Ok(digests)
}

/// Units up to which all ranges of them are run.
const FEW: usize = 8;

/// A line of the reviewed list.
pub struct Review {
    pub reason: &'static str,
    /// Results of 16 bits may differ by roundings.
    pub rounded: bool,
}

/// The reviewed list's reason why `id` is no mistake.
pub fn reviewed(block: &str, id: &str) -> Option<Review> {
    let full = format!("{block}/{id}");
    let lines = include_str!("equivalent.txt").lines().filter(|it| !it.starts_with('#'));
    lines.filter_map(|it| it.split_once(": ")).find_map(|(pattern, reason)| {
        let exact = pattern.trim().trim_start_matches(ROUNDED);
        let found = [id, &full].iter().any(|id| matches(exact, id));
        found.then(|| Review { reason: reason.trim(), rounded: pattern.starts_with(ROUNDED) })
    })
}

/// What begins a line of the list whose mutants change how results of 16 bits are rounded.
const ROUNDED: char = '~';

/// `*` stands for any text without `/`.
fn matches(pattern: &str, id: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|it| id.strip_prefix(it)) else { return false };
    let parts: Vec<&str> = parts.collect();
    for (index, part) in parts.iter().enumerate() {
        let last = index + 1 == parts.len();
        let end = match rest.find('/') {
            Some(slash) if !part.contains('/') => slash,
            _ => rest.len(),
        };
        let found = if last { rest.ends_with(part).then(|| rest.len() - part.len()) } else { rest[..end].find(part) };
        let Some(at) = found.filter(|at| !rest[..*at].contains('/')) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_text_without_a_slash() {
        assert!(matches("code/tile_*/x@*", "code/tile_8x48_1/x@3"));
        assert!(matches("code/a/b", "code/a/b"));
        assert!(!matches("code/*", "code/a/b"));
        assert!(!matches("code/a", "code/a/b"));
        assert!(!matches("code/*/y@1", "code/a/x@1"));
    }

    #[test]
    fn every_line_of_the_reviewed_list_says_why() {
        for line in include_str!("equivalent.txt").lines().filter(|it| !it.starts_with('#')) {
            let (id, reason) = line.split_once(": ").unwrap_or_default();
            assert!(id.contains('/') && reason.len() > 20, "{line}");
        }
    }
}
