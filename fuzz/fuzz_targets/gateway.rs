//! See `hub::fuzz::gateway`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hub::fuzz::gateway(data));
