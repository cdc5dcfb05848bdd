//! Any bytes as a state file of the cache folder: it opens, and nothing is read that was not written.
#![no_main]
#![allow(dead_code)] // the other target's function

mod inputs;

libfuzzer_sys::fuzz_target!(|input: &[u8]| inputs::store(input));
