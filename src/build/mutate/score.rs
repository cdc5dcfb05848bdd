//! What a run of `kforge mutate` amounts to.

use super::trial::Trial;
use crate::protocol::{
    Gate,
    mutation::{Family, Fate, KilledBy},
};
use serde::Serialize;
use std::collections::BTreeMap;

/// Counts of one family, or of all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Counts {
    pub mutants: usize,
    pub killed: usize,
    pub survived: usize,
    pub equivalent: usize,
    pub stillborn: usize,
}

impl Counts {
    fn add(&mut self, fate: &Fate) {
        self.mutants += 1;
        *match fate {
            Fate::Killed { .. } => &mut self.killed,
            Fate::Equivalent { .. } => &mut self.equivalent,
            Fate::Survived => &mut self.survived,
            Fate::Stillborn { .. } => &mut self.stillborn,
        } += 1;
    }

    /// Killed among those that are wrong, 0..=1; `None` without any.
    pub fn score(self) -> Option<f64> {
        let wrong = self.killed + self.survived;
        (wrong > 0).then(|| self.killed as f64 / wrong as f64)
    }
}

/// What one gate did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct GateCounts {
    /// Mutants that it rejected.
    pub rejected: usize,
    /// Mutants that no other gate rejected.
    pub alone: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Score {
    pub total: Counts,
    pub families: BTreeMap<Family, Counts>,
    pub killed_by: BTreeMap<KilledBy, usize>,
    pub gates: BTreeMap<Gate, GateCounts>,
    /// Killed of killed and survived, in percent; `None` without any.
    pub percent: Option<f64>,
}

impl Score {
    pub fn new(trials: &[Trial]) -> Self {
        let mut score = Self::default();
        for Trial { mutant, fate, .. } in trials {
            score.total.add(fate);
            score.families.entry(mutant.family).or_default().add(fate);
            if let Fate::Killed { by, gates, .. } = fate {
                *score.killed_by.entry(*by).or_default() += 1;
                for gate in gates {
                    let counts = score.gates.entry(*gate).or_default();
                    counts.rejected += 1;
                    counts.alone += usize::from(gates.len() == 1);
                }
            }
        }
        score.percent = score.total.score().map(|it| it * 100.0);
        score
    }

    /// Nothing wrong was accepted, and something wrong was tried.
    pub fn perfect(&self) -> bool {
        self.total.survived == 0 && self.total.killed > 0
    }

    /// Gates without which the score would be the same.
    pub fn redundant(&self) -> Vec<Gate> {
        let alone = |gate: &Gate| self.gates.get(gate).map_or(0, |it| it.alone);
        Gate::ALL.into_iter().filter(|it| alone(it) == 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::mutation::{Evidence, Mutant, Proof};
    use std::time::Duration;

    fn trial(family: Family, fate: Fate) -> Trial {
        let mutant =
            Mutant { id: "id".to_owned(), family, kind: String::new(), stage: None, description: String::new() };
        Trial {
            block: "block".to_owned(),
            mutant,
            fate,
            stages: Vec::new(),
            witnesses: Vec::new(),
            wall: Duration::ZERO,
        }
    }

    fn killed(gates: &[Gate]) -> Fate {
        let evidence =
            Evidence { gate: gates.first().copied(), stage: None, case: String::new(), message: String::new() };
        Fate::Killed { by: KilledBy::NumericMismatch, evidence, gates: gates.to_vec() }
    }

    #[test]
    fn equivalents_and_stillborns_count_neither_for_nor_against() {
        let trials = [
            trial(Family::Code, killed(&[Gate::V2Bound])),
            trial(Family::Code, Fate::Equivalent { proof: Proof::IdenticalCode }),
            trial(Family::Code, Fate::Stillborn { message: String::new() }),
        ];
        let score = Score::new(&trials);
        assert_eq!((score.percent, score.perfect()), (Some(100.0), true));
        assert_eq!(score.families[&Family::Code].mutants, 3);
    }

    #[test]
    fn one_survivor_spoils_the_score() {
        let trials = [trial(Family::Ir, killed(&[Gate::V2Bound])), trial(Family::Host, Fate::Survived)];
        let score = Score::new(&trials);
        assert_eq!((score.percent, score.perfect()), (Some(50.0), false));
    }

    #[test]
    fn no_mutant_at_all_is_not_perfect() {
        assert!(!Score::new(&[]).perfect());
        assert!(!Score::new(&[trial(Family::Ir, Fate::Equivalent { proof: Proof::IdenticalCode })]).perfect());
    }

    #[test]
    fn a_gate_that_never_rejects_alone_is_redundant() {
        let trials = [
            trial(Family::Ir, killed(&[Gate::V1Exactness, Gate::V2Bound])),
            trial(Family::Ir, killed(&[Gate::V2Bound])),
        ];
        let redundant = Score::new(&trials).redundant();
        assert!(redundant.contains(&Gate::V1Exactness) && !redundant.contains(&Gate::V2Bound), "{redundant:?}");
        // One that rejected nothing has not shown that it is needed either.
        assert!(redundant.contains(&Gate::V7NoGaming));
    }
}
