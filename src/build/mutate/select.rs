//! Which of all mutants are tried. A project's blocks have much code in common, so the same mistake in the same kind of code
//! would be tried dozens of times.

use crate::protocol::mutation::Mutant;
use std::collections::BTreeMap;

/// Marks at most `limit` mutants of each kind over all blocks, spread evenly from the first to the last: `lists` has one list
/// for each block. `limit` 0 means all.
pub fn spread(lists: &[Vec<&Mutant>], limit: usize) -> Vec<Vec<bool>> {
    let mut chosen: Vec<Vec<bool>> = lists.iter().map(|it| vec![limit == 0; it.len()]).collect();
    let mut kinds: BTreeMap<&str, Vec<(usize, usize)>> = BTreeMap::new();
    for (list, mutants) in lists.iter().enumerate() {
        for (index, mutant) in mutants.iter().enumerate() {
            kinds.entry(&mutant.kind).or_default().push((list, index));
        }
    }
    for places in kinds.values() {
        let count = limit.min(places.len());
        for it in 0..count {
            let at = if count == 1 { places.len() / 2 } else { it * (places.len() - 1) / (count - 1) };
            let (list, index) = places[at];
            chosen[list][index] = true;
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::mutation::Family;

    fn mutants(kinds: &[&str]) -> Vec<Mutant> {
        let mutant = |(index, kind): (usize, &&str)| Mutant {
            id: index.to_string(),
            family: Family::Code,
            kind: (*kind).to_owned(),
            stage: None,
            description: String::new(),
        };
        kinds.iter().enumerate().map(mutant).collect()
    }

    #[test]
    fn a_kind_is_tried_in_the_first_and_the_last_block_that_have_it() {
        let lists = [mutants(&["a", "a", "b"]), mutants(&["a"]), mutants(&["c", "a", "a"])];
        let lists: Vec<Vec<&Mutant>> = lists.iter().map(|it| it.iter().collect()).collect();
        let chosen = spread(&lists, 2);
        assert_eq!(chosen, [vec![true, false, true], vec![false], vec![true, false, true]]);
        assert!(spread(&lists, 0).concat().iter().all(|it| *it));
        assert_eq!(spread(&lists, 3).concat().iter().filter(|it| **it).count(), 5);
    }
}
