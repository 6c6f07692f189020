//! One measurement of one of our layers, to be set against a peer's by `benches/run.sh`.
//!
//! `benches --subject device --file PATH --pattern randread --block-kib 4 --depth 32 --seconds 3`
//! prints one line of JSON. It measures in process, on one thread; comparing, repeating and judging
//! are the script's. A further layer is a module beside [`device`] and a word of [`SubjectName`].
// A program that talks to people and measures time.
#![allow(clippy::print_stdout, clippy::disallowed_methods)]

mod copies;
mod cores;
mod device;
mod engine;
mod files;
mod histogram;
mod load;
mod mount;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::{Parser, ValueEnum};
use engine_store::api::{Compression, SubvolumeOptions};

use crate::load::{Load, Pattern, Subject, measure};

/// Measures one of our layers under a load like fio's.
#[derive(Parser)]
struct Args {
    /// What is measured
    #[arg(long, value_enum)]
    subject: SubjectName,
    /// The file it works on, of full size; writes destroy its content
    #[arg(long, required_unless_present = "memory_mib")]
    file: Option<PathBuf>,
    /// Size of the device in memory, instead of a file
    #[arg(long, conflicts_with = "file")]
    memory_mib: Option<u64>,
    /// As fio's rw
    #[arg(long, value_enum, default_value = "randread")]
    pattern: Pattern,
    /// Size of an operation
    #[arg(long, default_value_t = 4)]
    block_kib: u32,
    /// Operations in flight
    #[arg(long, default_value_t = 1)]
    depth: u32,
    /// How long
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// How many operations, instead of how long
    #[arg(long)]
    operations: Option<u64>,
    /// How much of a new pool the volume takes
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u64).range(1..=95))]
    fill_percent: u64,
    /// How the volume of a new pool is compressed, as in zstd:3
    #[arg(long, default_value = "none")]
    compression: Compression,
    /// Bytes that are compressed as one
    #[arg(long, default_value_t = 16)]
    frame_kib: u32,
    /// How much of what is written is always the same, as fio's buffer_compress_percentage
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=100))]
    compressible_percent: u64,
    /// Shards of a new pool: one measures what one core does with one shard, as the load runs on one thread
    #[arg(long)]
    shards: Option<u16>,
    /// Cores that engine-cores works on, and its load
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    cores: u16,
    /// Leave the pool without closing it
    #[arg(long)]
    crash: bool,
    /// Memory for data of the engine; with none it compares with peers that use O_DIRECT
    #[arg(long, default_value_t = 0)]
    data_cache_mib: usize,
    /// Makes a snapshot of the volume before the load, and deletes it afterwards
    #[arg(long)]
    snapshot: bool,
    /// A flush after every so many writes
    #[arg(long, default_value_t = 0)]
    flush_every: u64,
    /// Sizes of the pools that are opened
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1024])]
    sizes_gib: Vec<u64>,
    /// How much is written to each of them
    #[arg(long, default_value_t = 400)]
    fill_mib: u64,
    /// Size of the file that is copied
    #[arg(long, default_value_t = 1024)]
    file_mib: u64,
    /// 4 KiB pieces that are overwritten at random before it is copied, of a thousand
    #[arg(long, default_value_t = 0)]
    overwritten_permille: u64,
    /// Seed of the random offsets
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The layers that can be measured.
#[derive(Clone, Copy, ValueEnum)]
enum SubjectName {
    /// The file device: what the engine stands on
    Device,
    /// A volume of a pool on the file, checksums on, through the whole engine in process
    Engine,
    /// The same on several cores, as the daemon runs it: each has its shards and its part of the load
    EngineCores,
    /// Creation, attributes and removal of --operations files in one directory of a file tree, through the
    /// whole engine in process
    EngineFiles,
    /// The same in the directory that --file names, through the kernel, one after the other
    KernelFiles,
    /// Copies by reference of a file of --file-mib in a new pool on the file
    EngineCopies,
    /// Opening the pool on the file
    EngineOpen,
    /// Opening pools of --sizes-gib, one after the other on --file (sparse), that were left without a close
    /// after --fill-mib were written to each and --operations blocks overwritten
    Mount,
    /// A part of it: makes one of these pools, and leaves it
    MountLeave,
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!((1..=4096).contains(&args.depth), "a depth of 1 to 4096");
    ensure!((4..=1024).contains(&args.block_kib), "blocks of 4 to 1024 KiB");
    ensure!(args.block_kib.is_multiple_of(4), "blocks are multiples of 4 KiB");
    let load = Load {
        pattern: args.pattern,
        block_bytes: args.block_kib * 1024,
        depth: args.depth,
        duration: Duration::from_secs(args.seconds),
        operations: args.operations,
        seed: args.seed,
        flush_every: args.flush_every,
    };
    if let (SubjectName::EngineCores, Some(file)) = (args.subject, &args.file) {
        ensure!(args.flush_every == 0 && args.operations.is_none(), "it takes --seconds alone");
        make_pool(file, &args)?;
        println!("{}", cores::measure(file, args.cores.into(), &load)?.to_json());
        return Ok(());
    }
    if without_load(&args)? {
        return Ok(());
    }
    let subject: Box<dyn Subject> = match (args.subject, &args.file, args.memory_mib) {
        (SubjectName::Device, Some(file), _) => {
            Box::new(device::DeviceSubject::open(file, args.depth)?)
        }
        (SubjectName::Engine, Some(file), _) => {
            let subject = engine::EngineSubject::open(file, args.shards, new_volume(&args))?;
            subject.set_data_cache(args.data_cache_mib);
            subject.keep_snapshot(args.snapshot)?;
            if args.compression != Compression::None {
                eprintln!("compression ratio {:.2}", subject.ratio()?);
            }
            Box::new(subject)
        }
        (SubjectName::Engine, None, Some(mib)) => {
            ensure!((64..=65_536).contains(&mib), "64 to 65536 MiB of memory");
            let subject = engine::EngineSubject::in_memory(mib << 20, new_volume(&args))?;
            subject.set_data_cache(args.data_cache_mib);
            Box::new(subject)
        }
        _ => bail!("the device needs a file: give --file"),
    };
    let measured = measure(subject.as_ref(), &load)?;
    println!("{}", measured.to_json());
    if !args.crash {
        subject.close()?;
    }
    Ok(())
}

fn new_volume(args: &Args) -> engine::NewVolume {
    let frame_bytes = args.frame_kib * 1024;
    engine::NewVolume {
        fill_percent: args.fill_percent,
        options: SubvolumeOptions { compression: args.compression, frame_bytes },
        compressible_percent: args.compressible_percent,
    }
}

/// Makes the pool, and fills its volume, if it is not there: in a process of its own, which locks the file.
fn make_pool(file: &Path, args: &Args) -> Result<()> {
    let mut maker = Command::new(std::env::current_exe()?);
    maker.args(["--subject", "engine", "--operations", "1", "--file"]).arg(file);
    maker.args(["--fill-percent", &args.fill_percent.to_string()]);
    if let Some(shards) = args.shards {
        maker.args(["--shards", &shards.to_string()]);
    }
    let made = maker.stdout(Stdio::null()).status()?;
    ensure!(made.success(), "the pool could not be made: {made}");
    Ok(())
}

/// The subjects that are not put under a load, or put themselves under one. False: it is another.
fn without_load(args: &Args) -> Result<bool> {
    let count = args.operations.unwrap_or(10_000);
    match (args.subject, &args.file) {
        (SubjectName::EngineFiles, Some(file)) => {
            println!("{}", files::engine(file, count, args.depth)?);
        }
        (SubjectName::KernelFiles, Some(directory)) => {
            println!("{}", files::kernel(directory, count)?);
        }
        (SubjectName::EngineCopies, Some(file)) => {
            let (mib, overwritten) = (args.file_mib, args.overwritten_permille);
            println!("{}", copies::engine(file, mib, overwritten, args.seed)?);
        }
        (SubjectName::Mount, Some(file)) => {
            for gib in &args.sizes_gib {
                println!("{}", mount::measure(file, *gib, args.fill_mib, count)?);
            }
        }
        (SubjectName::MountLeave, Some(file)) => {
            for gib in &args.sizes_gib {
                mount::leave(file, *gib, args.fill_mib, count)?;
            }
        }
        (SubjectName::EngineOpen, Some(file)) => {
            println!("{{\"seconds\":{:.4}}}", engine::open_seconds(file)?);
        }
        _ => return Ok(false),
    }
    Ok(true)
}
