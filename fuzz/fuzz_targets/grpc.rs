//! See `hub::fuzz::grpc`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hub::fuzz::grpc(data));
