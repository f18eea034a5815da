//! See `hub::fuzz::v2_form`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hub::fuzz::v2_form(data));
