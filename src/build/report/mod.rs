//! What people and CI read: `report.json` of each block ([`model`]), the table that ends a build ([`terminal`]), and
//! what `kforge report` shows of one block ([`record`]).
//!
//! Pure functions of what the steps made: no IO, no clock, so a report is reproduced from its inputs and cut off early like
//! any other output.

pub mod model;
pub mod record;
pub mod terminal;

#[cfg(test)]
mod tests;

pub use model::{BlockReport, Inputs};
