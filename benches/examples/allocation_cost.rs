//! The 4 KiB path on a device in memory, for counting the instructions that allocation profiling
//! adds: `allocation_cost PATTERN OPERATIONS DEPTH`, run under callgrind with and without the feature
//! `plain-heap`. docs/benchmarks.md has the commands and the figures.
// A program that talks to people.
#![allow(clippy::print_stdout)]

use anyhow::{Context as _, Result, anyhow, ensure};
use engine_base::random::Random;
use engine_device::MemoryDevice;
use engine_embed::{LocalLink, LocalPool};
use engine_memory::profile::{Kind, report};
use engine_memory::{Buffer, Slice};
use engine_store::api::Data;
use engine_store::client::{Client, VolumeRef};
use engine_store::pool::FormatOptions;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

#[cfg(not(feature = "plain-heap"))]
#[global_allocator]
static HEAP: engine_memory::profile::Profiler = engine_memory::profile::Profiler;

const DEVICE_BYTES: u64 = 512 << 20;
const VOLUME_BYTES: u64 = 64 << 20;
const BLOCK: u64 = 4096;
const SHARDS: u16 = 4;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pattern, operations, depth] = &arguments[..] else {
        return Err(anyhow!("usage: allocation_cost randread|randwrite OPERATIONS DEPTH"));
    };
    let is_write = match pattern.as_str() {
        "randread" => false,
        "randwrite" => true,
        other => return Err(anyhow!("no pattern {other}: randread or randwrite")),
    };
    let operations: u64 = operations.parse().context("OPERATIONS")?;
    let depth: usize = depth.parse().context("DEPTH")?;
    ensure!((1..=256).contains(&depth), "a depth of 1 to 256");
    let device = MemoryDevice::new("memory", DEVICE_BYTES, 4096);
    let options = FormatOptions { shards: Some(SHARDS), ..FormatOptions::default() };
    let mut pool = LocalPool::in_memory(&[device], options)
        .map_err(|problems| anyhow!(problems.join("; ")))?;
    let (allocations, objects) = pool
        .run(async move |client, _| load(&client, is_write, operations, depth).await)
        .map_err(|fault| anyhow!(fault))??;
    println!(
        "{pattern} {operations} operations, depth {depth}: {:.1} heap allocations and {:.1} buffers \
         for each",
        allocations as f64 / operations as f64,
        objects as f64 / operations as f64
    );
    Ok(())
}

/// Heap allocations and buffers so far.
fn allocated() -> (u64, u64) {
    let (mut heap, mut buffers) = (0, 0);
    for one in report().holdings {
        match one.kind {
            Kind::Heap => heap += one.allocations,
            Kind::Buffers => buffers += one.allocations,
            Kind::Free => {}
        }
    }
    (heap, buffers)
}

/// Fills a volume, then reads or writes blocks of it in random order.
async fn load(
    client: &Client<LocalLink>,
    is_write: bool,
    operations: u64,
    depth: usize,
) -> Result<(u64, u64)> {
    let volume = VolumeRef::from(&client.volume_create("load", VOLUME_BYTES, 4096).await?);
    let mut bytes = Buffer::try_new(1 << 20)?;
    Random::new(1).fill(&mut bytes);
    let bytes = bytes.freeze();
    for offset in (0..VOLUME_BYTES).step_by(bytes.len()) {
        client.volume_write(&volume, offset, one_piece(bytes.clone()), false).await?;
    }
    client.flush().await?;
    let mut random = Random::new(2);
    let before = allocated();
    let mut running = FuturesUnordered::new();
    for _ in 0..operations {
        if running.len() == depth {
            running.next().await.context("one of them runs")??;
        }
        let offset = random.below(VOLUME_BYTES / BLOCK) * BLOCK;
        let piece = bytes.slice(0..BLOCK as usize);
        let (client, volume) = (client.clone(), volume.clone());
        running.push(async move {
            if is_write {
                client.volume_write(&volume, offset, one_piece(piece), false).await?;
            } else {
                client.volume_read(&volume, offset, BLOCK).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = running.next().await {
        done?;
    }
    let after = allocated();
    Ok((after.0 - before.0, after.1 - before.1))
}

fn one_piece(piece: Slice) -> Data {
    std::iter::once(piece).collect()
}
