//! .
pub mod context;
pub mod diagnostics;
pub use context::context;
