//! What one operation of the engine costs, counted and not timed: heap allocations, buffers, bytes copied,
//! entries into the kernel, device commands, and device bytes for each byte of the client.
//!
//! `operation_costs randwrite --operations 20000` prints one line of JSON. Setting up and ageing are not
//! counted. `scripts/stages/costs.sh` compares the figures, and the instructions that valgrind counts, with
//! `benches/costs.txt`.
// A program that talks to people.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};
use clap::{Parser, ValueEnum};
use engine_base::random::Random;
use engine_device::{MemoryDevice, Traffic, kernel_entries};
use engine_embed::{FormatRequest, LocalLink, LocalPool};
use engine_memory::profile::{Kind, Profiler, report};
use engine_memory::{Buffer, Slice, copied_bytes};
use engine_store::api::{CreateAttributes, Data, FileKind, TreeRef};
use engine_store::client::{Client, VolumeRef};
use engine_store::pool::FormatOptions;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

#[global_allocator]
static HEAP: Profiler = Profiler;

const BLOCK: u64 = 4096;

/// Counts what operations of the engine cost.
#[derive(Parser)]
struct Args {
    /// What the operations are
    #[arg(value_enum)]
    pattern: Pattern,
    /// How many are counted
    #[arg(long, default_value_t = 20_000)]
    operations: u64,
    /// How many are in flight
    #[arg(long, default_value_t = 32)]
    depth: usize,
    /// Size of the pool, in memory unless --file is given
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(128..=65_536))]
    device_mib: u64,
    /// How much of the pool the volume takes
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=95))]
    fill_percent: u64,
    /// How often the volume is overwritten at random before anything is counted
    #[arg(long, default_value_t = 0)]
    overwrites: u64,
    /// Shards of the pool, all in this thread
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    shards: u16,
    /// Also prints by how much the counters of the shards grew, one a line, to stderr
    #[arg(long)]
    counters: bool,
    /// A file to make the pool on, which is destroyed
    #[arg(long)]
    file: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pattern {
    /// 4 KiB at random places of a volume
    Randread,
    /// The same, written
    Randwrite,
    /// Empty files in one directory
    Create,
}

/// All that is counted, so far.
#[derive(Clone, Copy)]
struct Counts {
    allocations: u64,
    buffers: u64,
    copied_bytes: u64,
    kernel_entries: u64,
    traffic: Traffic,
}

impl Counts {
    fn now(device: Option<&MemoryDevice>) -> Self {
        let (mut allocations, mut buffers) = (0, 0);
        for one in report().holdings {
            match one.kind {
                Kind::Heap => allocations += one.allocations,
                Kind::Buffers => buffers += one.allocations,
                Kind::Free => {}
            }
        }
        let traffic = device.map(MemoryDevice::traffic).unwrap_or_default();
        let (copied_bytes, kernel_entries) = (copied_bytes(), kernel_entries());
        Self { allocations, buffers, copied_bytes, kernel_entries, traffic }
    }

    /// For each of `operations`, since `before`.
    fn to_json(self, before: Self, operations: u64) -> String {
        let each = |now: u64, then: u64| (now - then) as f64 / operations as f64;
        let bytes = |now: u64, then: u64| each(now, then) / BLOCK as f64;
        let (traffic, then) = (self.traffic, before.traffic);
        format!(
            "{{\"allocations\":{:.2},\"buffers\":{:.2},\"copied_bytes\":{:.1},\
             \"kernel_entries\":{:.3},\"commands\":{:.3},\"read_amplification\":{:.3},\
             \"write_amplification\":{:.3}}}",
            each(self.allocations, before.allocations),
            each(self.buffers, before.buffers),
            each(self.copied_bytes, before.copied_bytes),
            each(self.kernel_entries, before.kernel_entries),
            each(traffic.commands, then.commands),
            bytes(traffic.read_bytes, then.read_bytes),
            bytes(traffic.written_bytes, then.written_bytes),
        )
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let words = |problems: Vec<String>| anyhow!(problems.join("; "));
    let (mut pool, device) = if let Some(file) = &args.file {
        let devices = vec![file.clone()];
        std::fs::File::create(file)?.set_len(args.device_mib << 20).context("sizing the file")?;
        engine_embed::format(&FormatRequest { devices, force: true, ..FormatRequest::default() })?;
        (LocalPool::open(std::slice::from_ref(file)).map_err(words)?, None)
    } else {
        let device = MemoryDevice::new("memory", args.device_mib << 20, BLOCK as u32);
        let options = FormatOptions { shards: Some(args.shards), ..FormatOptions::default() };
        (LocalPool::in_memory(std::slice::from_ref(&device), options).map_err(words)?, Some(device))
    };
    let line = pool
        .run(async move |client, _| match args.pattern {
            Pattern::Create => create(&client, &args, device.as_ref()).await,
            _ => blocks(&client, &args, device.as_ref()).await,
        })
        .map_err(|fault| anyhow!(fault))??;
    println!("{line}");
    Ok(())
}

/// Reads or writes blocks of a volume in random order.
async fn blocks(
    client: &Client<LocalLink>,
    args: &Args,
    device: Option<&MemoryDevice>,
) -> Result<String> {
    let available: u64 = client.status().await?.iter().map(|shard| shard.available_bytes).sum();
    let size = (available / 100 * args.fill_percent) >> 22 << 22;
    let volume = VolumeRef::from(&client.volume_create("load", size, BLOCK as u32).await?);
    let mut bytes = Buffer::try_new(1 << 20)?;
    Random::new(1).fill(&mut bytes);
    let bytes = bytes.freeze();
    for offset in (0..size).step_by(bytes.len()) {
        client.volume_write(&volume, offset, one_piece(bytes.clone()), false).await?;
    }
    client.flush().await?;
    let random = RefCell::new(Random::new(2));
    let one = |write: bool| {
        let offset = random.borrow_mut().below(size / BLOCK) * BLOCK;
        let piece = bytes.slice(0..BLOCK as usize);
        let (client, volume) = (client.clone(), volume.clone());
        async move {
            if write {
                client.volume_write(&volume, offset, one_piece(piece), false).await?;
            } else {
                client.volume_read(&volume, offset, BLOCK).await?;
            }
            anyhow::Ok(())
        }
    };
    many(args.overwrites * size / BLOCK, args.depth, |_| one(true)).await?;
    let (before, counters) = (Counts::now(device), counters(client).await?);
    many(args.operations, args.depth, |_| one(args.pattern == Pattern::Randwrite)).await?;
    let line = Counts::now(device).to_json(before, args.operations);
    if args.counters {
        for (name, value) in self::counters(client).await? {
            let before = counters.get(name).copied().unwrap_or_default();
            eprintln!("{name} {}", i128::from(value) - i128::from(before));
        }
    }
    Ok(line)
}

/// The counters of all shards, summed.
async fn counters(client: &Client<LocalLink>) -> Result<BTreeMap<&'static str, u64>> {
    let mut sums = BTreeMap::new();
    for (name, value) in client.status().await?.into_iter().flat_map(|shard| shard.counters) {
        *sums.entry(name).or_default() += value;
    }
    Ok(sums)
}

async fn create(
    client: &Client<LocalLink>,
    args: &Args,
    device: Option<&MemoryDevice>,
) -> Result<String> {
    let tree = TreeRef::from(&client.tree_create("load").await?);
    let attributes = CreateAttributes { mode: 0o644, uid: 0, gid: 0 };
    let before = Counts::now(device);
    many(args.operations, args.depth, |index| async move {
        let name = format!("file-{index:08}");
        client.create(tree, tree.root, name.as_bytes(), FileKind::File, attributes).await?;
        Ok(())
    })
    .await?;
    Ok(Counts::now(device).to_json(before, args.operations))
}

/// Carries out `count` operations, `depth` at a time.
async fn many<F: Future<Output = Result<()>>>(
    count: u64,
    depth: usize,
    operation: impl Fn(u64) -> F,
) -> Result<()> {
    let mut running = FuturesUnordered::new();
    for index in 0..count {
        if running.len() == depth.max(1) {
            running.next().await.context("one of them runs")??;
        }
        running.push(operation(index));
    }
    while let Some(done) = running.next().await {
        done?;
    }
    Ok(())
}

fn one_piece(piece: Slice) -> Data {
    std::iter::once(piece).collect()
}
