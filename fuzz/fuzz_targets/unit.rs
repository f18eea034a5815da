//! See `unit::fuzz::text`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| unit::fuzz::text(data));
