//! Submission queue entries.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nvme_target::testing::sqe_parse(bytes));
