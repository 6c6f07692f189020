//! Everything that is read from disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| engine_store::fuzz::decoders(bytes));
