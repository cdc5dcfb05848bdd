//! The engine with steps that take no time: random projects, random edits, failures, interruptions and lost blobs, held
//! against a model ([`model`]), and what that found as plain cases ([`found`]).

mod found;
mod model;
mod plant;
mod project;
