//! See `hub::fuzz::http`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hub::fuzz::http(data));
