//! The data cache gives way to everybody else. A process of its own, for its limit of memory.
#![allow(clippy::unwrap_used)]

use engine_device::MemoryDevice;
use engine_embed::LocalPool;
use engine_memory::{Buffer, set_limit_bytes};
use engine_store::api::Data;
use engine_store::client::VolumeRef;
use engine_store::pool::FormatOptions;

const MIB: u64 = 1 << 20;
const PIECE: usize = 64 << 10;

fn cached_bytes(pool: &mut LocalPool) -> u64 {
    let status = pool.run(async |client, _| client.status().await.unwrap()).unwrap();
    let counters = status.iter().flat_map(|shard| &shard.counters);
    counters.filter(|(name, _)| *name == "data_cache_bytes").map(|(_, bytes)| bytes).sum()
}

fn read_all(pool: &mut LocalPool, volume: &VolumeRef) {
    let volume = volume.clone();
    let work = async move |client: engine_store::client::Client<_>, _| {
        for offset in (0..volume.size_bytes).step_by(PIECE) {
            let data = client.volume_read(&volume, offset, PIECE as u64).await.unwrap();
            assert!(data.iter().all(|piece| piece.iter().all(|byte| *byte == 7)));
        }
    };
    pool.run(work).unwrap();
}

#[test]
fn nobody_is_refused_memory_while_the_data_cache_has_some() {
    set_limit_bytes(32 * MIB).unwrap();
    let device = MemoryDevice::new("memory", 192 * MIB, 4096);
    let options = FormatOptions { shards: Some(2), ..FormatOptions::default() };
    let mut pool = LocalPool::in_memory(&[device], options).unwrap();
    let volume = pool
        .run(async |client, _| {
            let info = client.volume_create("v", 48 * MIB, 4096).await.unwrap();
            let volume = VolumeRef::from(&info);
            let mut bytes = Buffer::try_new(PIECE).unwrap();
            bytes.fill(7);
            let slice = bytes.freeze();
            for offset in (0..volume.size_bytes).step_by(PIECE) {
                let data: Data = std::iter::once(slice.clone()).collect();
                client.volume_write(&volume, offset, data, false).await.unwrap();
            }
            volume
        })
        .unwrap();

    // More than there is.
    pool.set_data_cache_bytes(64 << 20);
    read_all(&mut pool, &volume);
    let full = cached_bytes(&mut pool);
    assert!(full > 8 * MIB && full < 30 * MIB, "{full} bytes are cached");

    let mut held = Vec::new();
    while let Ok(buffer) = Buffer::try_new(256 << 10) {
        held.push(buffer);
    }
    assert!(held.len() as u64 * (256 << 10) > 16 * MIB, "{} buffers", held.len());
    assert_eq!(cached_bytes(&mut pool), 0, "refused, and the cache had some");

    // With a little memory the volume can be read, and it is cached again when there is more.
    held.truncate(held.len() / 4 * 3);
    read_all(&mut pool, &volume);
    drop(held);
    read_all(&mut pool, &volume);
    assert!(cached_bytes(&mut pool) > 8 * MIB);
    pool.close().unwrap();
}
