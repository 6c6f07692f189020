//! Opening a pool that was left without a close: a small one and a large one with the same journal. The
//! files are sparse, so the large one takes no more of the disk than what is written to it.
//!
//! A pool is left by a process that ends: each step is one of this program.

use std::fs::{File, remove_file};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow, ensure};
use engine_base::random::Random;
use engine_base::{BLOCK_SIZE, GIB, MIB};
use engine_embed::{FormatRequest, LocalPool};
use engine_memory::Buffer;
use engine_store::api::Data;
use engine_store::client::VolumeRef;
use engine_store::pool::FormatOptions;

/// Journal of each shard: the same for all sizes, or it would be compared as well.
const JOURNAL_BYTES: u64 = 16 * MIB;
/// Times each pool is opened; each time finds what the one before left.
const ROUNDS: usize = 3;

/// Has a pool made by [`leave`], and opened. Gives a line of JSON.
pub(crate) fn measure(path: &Path, gib: u64, fill_mib: u64, overwrites: u64) -> Result<String> {
    let words = [gib, fill_mib, overwrites].map(|number| number.to_string());
    let sizes = ["--sizes-gib", &words[0], "--fill-mib", &words[1], "--operations", &words[2]];
    run(path, "mount-leave", &sizes)?;
    let mut seconds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        seconds.push(run(path, "engine-open", &[])?.trim().to_owned());
    }
    let opened = seconds.join(",");
    Ok(format!(
        "{{\"gib\":{gib},\"written_mib\":{fill_mib},\"overwrites\":{overwrites},\"opened\":[{opened}]}}"
    ))
}

/// What this program prints for another subject.
fn run(path: &Path, subject: &str, options: &[&str]) -> Result<String> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--subject", subject, "--file"]).arg(path).args(options);
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{subject} failed");
    Ok(String::from_utf8(output.stdout)?)
}

/// Makes a pool of `gib` GiB on the file (what it held is lost), writes `fill_mib` MiB in sequence and then
/// `overwrites` blocks at random, and leaves it.
pub(crate) fn leave(path: &Path, gib: u64, fill_mib: u64, overwrites: u64) -> Result<()> {
    ensure!(fill_mib * MIB <= gib * GIB / 2, "{fill_mib} MiB are too much for {gib} GiB");
    if path.exists() {
        remove_file(path).context("the file of the run before")?;
    }
    File::create(path)?.set_len(gib * GIB)?;
    let request = FormatRequest {
        devices: vec![path.to_owned()],
        options: FormatOptions {
            journal_bytes: Some(JOURNAL_BYTES),
            bucket_bytes: Some(MIB as u32),
            ..FormatOptions::default()
        },
        ..FormatRequest::default()
    };
    engine_embed::format(&request)?;
    let mut pool = open(path)?;
    pool.run(async move |client, _| -> Result<()> {
        let info = client.volume_create("bench", fill_mib * MIB, 4096).await?;
        let volume = VolumeRef::from(&info);
        let mut bytes = Buffer::try_new(MIB as usize)?;
        Random::new(1).fill(&mut bytes);
        let bytes = bytes.freeze();
        for at in 0..fill_mib {
            let piece: Data = std::iter::once(bytes.clone()).collect();
            client.volume_write(&volume, at * MIB, piece, false).await?;
        }
        let mut random = Random::new(2);
        for _ in 0..overwrites {
            let offset = random.below(fill_mib * MIB / BLOCK_SIZE) * BLOCK_SIZE;
            let block: Data = std::iter::once(bytes.slice(0..BLOCK_SIZE as usize)).collect();
            client.volume_write(&volume, offset, block, false).await?;
        }
        client.flush().await?;
        Ok(())
    })
    .map_err(|fault| anyhow!(fault))?
}

fn open(path: &Path) -> Result<LocalPool> {
    LocalPool::open(&[path.to_owned()]).map_err(|problems| anyhow!(problems.join("; ")))
}
