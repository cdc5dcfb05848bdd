//! Proposers of plans. No IO.

pub mod heuristic;
