//! A pool of shards in one thread, on devices in memory and virtual time, for tests of this crate.
//!
//! One seed decides everything: the order in which ready tasks run, delays of calls between shards,
//! and what the tests do. The simulator (engine/sim) shares nothing of this.

mod executor;
mod pool;
mod reflink;
mod reflink_files;
mod repair;

mod batches;
mod compression;
mod concurrency;
mod contents;
mod copygc;
mod damage;
mod damage_list;
mod data_cache;
mod doubt;
mod dump;
mod dump_image;
mod engine;
mod faults;
mod flight;
mod index_memory;
mod journal;
mod layers;
mod logged;
mod mount;
mod resize;
mod scrub;
mod snapshots;
mod space;
mod tail;
mod tree_model;
mod tree_random;
mod tree_snapshots;
mod volumes;

pub(crate) use executor::TestRuntime;
pub(crate) use pool::Pool;

use engine_base::random::Random;
use engine_memory::Buffer;

use crate::api::Data;

/// Runs `test` with the seeds to try: the one of CAIRN_SEED, else a few fixed ones.
pub(crate) fn with_seeds(test: impl Fn(u64)) {
    match std::env::var("CAIRN_SEED").ok().and_then(|text| text.parse().ok()) {
        Some(seed) => test(seed),
        None => (1..=4).for_each(|seed| {
            println!("CAIRN_SEED={seed}");
            test(seed);
        }),
    }
}

/// `bytes` as data of a request, in randomly cut pieces.
pub(crate) fn data_of(bytes: &[u8], random: &mut Random) -> Data {
    let slice = Buffer::try_copy_of(bytes).unwrap().freeze();
    let mut data = Data::new();
    let mut at = 0;
    while at < bytes.len() {
        let len = match random.below(3) {
            0 => bytes.len() - at,
            _ => random.range(1, (bytes.len() - at) as u64) as usize,
        };
        data.push(slice.slice(at..at + len));
        at += len;
    }
    data
}

/// All bytes of `data`.
pub(crate) fn bytes_of(data: &Data) -> Vec<u8> {
    data.iter().flat_map(|piece| piece.iter().copied()).collect()
}
