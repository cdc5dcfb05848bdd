//! Proposers of plans. No IO.
