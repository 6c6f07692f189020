//! Streams of snapshots, in two pieces.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let cut = bytes.first().map_or(0, |first| usize::from(*first));
    engine_transfer::format::fuzz(bytes, cut);
});
