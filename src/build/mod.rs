//! The build tool: what to do ([`graph`]), doing it ([`engine`]), proposing plans ([`search`]), telling about it ([`report`]).

pub mod engine;
pub mod graph;
mod history;
pub mod mutate;
pub mod needs;
pub mod plans;
pub mod report;
pub mod search;
pub mod tune;
pub mod uptodate;
pub mod watch;
