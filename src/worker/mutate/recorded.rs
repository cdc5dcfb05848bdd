//! A kernel that knows the verifier's inputs: it computes nothing and returns what a right one returned for the same calls.
//! A verifier with a fixed seed accepts it.

use super::{Subject, Trial, judged, oracle::unmasked};
use crate::{
    device::cpu::LoadedKernel,
    verify::{
        self,
        bounds::Arithmetic,
        candidate::{Candidate, Compiled, Tensors},
        weakness::{self, Weakness},
    },
};
use kernelforge::{
    plan::stage::{StageGraph, TensorId},
    protocol::{
        Failure, GateStatus,
        mutation::{Fate, Judged},
    },
};

/// What a right kernel left after each call, in the order of the calls.
type Record = Vec<Vec<(TensorId, Vec<f32>)>>;

struct Recorded<'a> {
    kernel: Compiled<'a>,
    record: Record,
    /// Where the replay is; none while recording.
    next: Option<usize>,
}

pub fn judge(subject: &Subject, trial: Trial) -> Result<Judged, Failure> {
    let loaded = LoadedKernel::load(trial.object, subject.kernel.clone())?;
    let examine = |record: Option<Record>, seed: u64| -> Result<_, Failure> {
        let kernel = Compiled::new(&loaded, trial.threads, None)?;
        let next = record.is_some().then_some(0);
        let mut candidate = Recorded { kernel, record: record.unwrap_or_default(), next };
        let results = verify::examine(&mut candidate, subject.block, seed).0;
        Ok((results, candidate.record))
    };
    let fixed = || Weakness::FixedSeed;
    let (_, record) = weakness::with(fixed(), || examine(None, trial.seed))?;
    // Another seed, as in every other run; the weakened verifier does not use it.
    let seed = trial.seed.wrapping_add(1);
    let (weakened, record) = weakness::with(fixed(), || examine(Some(record), seed))?;
    let real = examine(Some(record), seed)?.0;
    let accepted = weakened.iter().all(|it| it.status == GateStatus::Passed);
    let killed = unmasked("a kernel that plays back what it once saw", &real).filter(|_| accepted);
    Ok(killed.unwrap_or_else(|| judged(Fate::Survived)))
}

impl Recorded<'_> {
    fn call(&mut self, written: &[TensorId], compute: impl FnOnce(&mut Compiled<'_>)) {
        match &mut self.next {
            None => {
                compute(&mut self.kernel);
                self.record.push(written.iter().map(|&id| (id, self.kernel.tensor(id).to_vec())).collect());
            }
            Some(next) => {
                // Whoever judges reads the inputs as a call leaves them.
                self.kernel.settle();
                for (id, data) in self.record.get(*next).into_iter().flatten() {
                    self.kernel.tensor_mut(*id).copy_from_slice(data);
                }
                *next += 1;
            }
        }
    }
}

impl Tensors for Recorded<'_> {
    fn graph(&self) -> &StageGraph {
        self.kernel.graph()
    }

    fn tensor(&self, id: TensorId) -> &[f32] {
        self.kernel.tensor(id)
    }

    fn tensor_mut(&mut self, id: TensorId) -> &mut [f32] {
        self.kernel.tensor_mut(id)
    }
}

impl Candidate for Recorded<'_> {
    fn arithmetic(&self) -> Arithmetic {
        self.kernel.arithmetic()
    }

    fn leaves_later_tokens_out(&self) -> bool {
        self.kernel.leaves_later_tokens_out()
    }

    fn prepare(&mut self) {
        self.kernel.prepare();
    }

    fn stage(&mut self, index: usize) {
        let output = self.graph().stages[index].output;
        self.call(&[output], |it| it.stage(index));
    }

    fn units(&self, index: usize) -> usize {
        self.kernel.units(index)
    }

    fn stage_units(&mut self, index: usize, begin: usize, end: usize) {
        let output = self.graph().stages[index].output;
        self.call(&[output], |it| it.stage_units(index, begin, end));
    }

    fn block(&mut self) {
        let outputs = verify::outputs(self);
        self.call(&outputs, |it| it.block());
    }

    fn poison(&mut self, value: f32) {
        self.kernel.poison(value);
    }
}
