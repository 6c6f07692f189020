//! Bytes into a live connection over a memory backend.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nvme_target::testing::connection_stream(bytes));
