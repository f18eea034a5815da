//! See `hub::fuzz::disk`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hub::fuzz::disk(data));
