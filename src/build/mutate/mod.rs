//! `kforge mutate` without its command line: which blocks are mutated, how their mutants are judged in workers, what follows.
//!
//! [`subject`] makes a block small enough for hundreds of trials, [`select`] chooses among its mutants, [`trial`] runs them,
//! [`score`] counts. [`manifests`] are the mistakes that need no worker. What a mutant is
//! and what it is judged by is the worker's business; here it is an id.

pub mod corpus;
pub mod manifests;
pub mod score;
pub mod select;
pub mod subject;
pub mod trial;
