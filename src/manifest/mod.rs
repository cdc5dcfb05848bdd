//! The manifest: `kernelforge.toml` and `workloads/*.toml`, loaded with spans, validated as a whole, resolved to [`spec`].

pub mod spec;
