//! PDU headers: what parses is consistent and within its limits.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nvme_target::testing::pdu_header(bytes));
