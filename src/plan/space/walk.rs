//! The order in which a space is searched without knowing anything.

use super::{MISSES, MISSES_AT_FIRST, MISSES_RESTRICTED, Point, Schedule, Space};

/// Goes through the legal points of a space, each once, so that every beginning of the way covers it evenly: the families in turn,
/// and each family in steps of the golden section of its length, around and around.
///
/// Such steps cover the leading knobs as evenly as any sequence can (the points of every beginning have at most three different
/// distances), and, having no factor in common with the length, run through the trailing knobs in their own number of steps.
#[derive(Debug, Clone)]
pub struct Walk {
    families: Vec<Steps>,
    /// The family whose turn it is.
    turn: usize,
}

#[derive(Debug, Clone)]
struct Steps {
    family: usize,
    length: u128,
    step: u128,
    at: u128,
    left: u128,
    /// A legal point was among those so far.
    found: bool,
}

impl Steps {
    fn new(space: &Space, family: usize) -> Self {
        let length = space.families[family].len();
        let mut step = (length * 618_034 / 1_000_000).max(1);
        while greatest_common_divisor(step, length) > 1 {
            step += 1;
        }
        Self { family, length, step, at: 0, left: length, found: false }
    }

    fn next(&mut self, space: &Space) -> Option<(Point, Schedule)> {
        let family = &space.families[self.family];
        let most = match (family.is_restricted(), self.found) {
            (false, _) => MISSES,
            (true, false) => MISSES_AT_FIRST,
            (true, true) => MISSES_RESTRICTED,
        };
        let mut misses = 0;
        while self.left > 0 && misses < most {
            self.at = (self.at + self.step) % self.length;
            self.left -= 1;
            let point = Point { family: self.family, choices: family.choices(self.at) };
            if let Some(schedule) = space.schedule(&point) {
                self.found = true;
                return Some((point, schedule));
            }
            misses += 1;
        }
        self.left = 0;
        None
    }
}

impl Walk {
    pub fn new(space: &Space) -> Self {
        let families = (0..space.families.len()).map(|it| Steps::new(space, it)).collect();
        Self { families, turn: 0 }
    }

    /// Of one family.
    pub(super) fn only(space: &Space, family: usize) -> Self {
        Self { families: vec![Steps::new(space, family)], turn: 0 }
    }

    /// The next legal point of `space`, which the walk was made for, and its schedule.
    pub fn next(&mut self, space: &Space) -> Option<(Point, Schedule)> {
        while !self.families.is_empty() {
            self.turn %= self.families.len();
            if let Some(found) = self.families[self.turn].next(space) {
                self.turn += 1;
                return Some(found);
            }
            self.families.remove(self.turn);
        }
        None
    }
}

const fn greatest_common_divisor(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
