//! Any bytes as the files of a project: it loads, or it says what is wrong.
#![no_main]
#![allow(dead_code)] // the other target's function

mod inputs;

libfuzzer_sys::fuzz_target!(|input: &[u8]| inputs::manifest(input));
