//! Work on devices that no daemon uses: the two calls into the engine.

use std::path::PathBuf;

use engine_embed::members::uuid_text;
use engine_embed::{FormatError, LocalPool};
use engine_store::pool::FormatOptions;

use crate::failure::{Failure, Result, exit};

/// What `pool format` was asked for; checked by the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FormatRequest {
    /// Devices or files, 1 to 255.
    pub(crate) devices: Vec<PathBuf>,
    /// Label of the pool, at most 32 bytes.
    pub(crate) label: String,
    /// Bytes of a bucket; `None`: the engine's choice.
    pub(crate) bucket_bytes: Option<u32>,
    /// Shards, a power of two; `None`: the engine's choice.
    pub(crate) shard_count: Option<u16>,
    /// Missing files are created with this size in bytes.
    pub(crate) file_size_bytes: Option<u64>,
    /// Destroys what is there.
    pub(crate) force: bool,
}

/// A new pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FormatReport {
    /// UUID, 36 characters.
    pub(crate) pool_uuid: String,
    /// Shards.
    pub(crate) shard_count: u16,
    /// Bytes of all devices.
    pub(crate) size_bytes: u64,
}

/// What the offline check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CheckReport {
    /// One line a violated invariant.
    pub(crate) problems: Vec<String>,
    /// What was found and done when the pool was opened.
    pub(crate) notes: Vec<String>,
    /// What was looked at, and how many.
    pub(crate) checked: Vec<(String, u64)>,
}

/// Creates a pool.
pub(crate) fn format(request: &FormatRequest) -> Result<FormatReport> {
    let superblock = engine_embed::format(&engine_embed::FormatRequest {
        devices: request.devices.clone(),
        file_size_bytes: request.file_size_bytes,
        force: request.force,
        options: FormatOptions {
            label: request.label.clone(),
            shards: request.shard_count,
            bucket_bytes: request.bucket_bytes,
            ..FormatOptions::default()
        },
    })
    .map_err(|error| match error {
        FormatError::InUse { .. } => Failure::new(error.to_string())
            .code(exit::REFUSED)
            .hint("give --force to destroy what is there"),
        FormatError::Failed(text) => Failure::new(text),
    })?;
    Ok(FormatReport {
        pool_uuid: uuid_text(&superblock.pool_uuid),
        shard_count: superblock.shard_count(),
        size_bytes: superblock.members.iter().map(|member| member.size_bytes).sum(),
    })
}

/// Checks the pool on `devices`. Replays its journals in memory; what it finds is not repaired.
pub(crate) fn check(devices: &[PathBuf], verify_data: bool) -> Result<CheckReport> {
    let failed = |problem: String| Failure::new(problem);
    let mut pool = LocalPool::open(devices).map_err(|problems| {
        Failure::new(problems.join("; "))
            .hint("a pool that a daemon uses is checked with cairn fsck --online")
    })?;
    let report = pool
        .run(async move |client, _| client.fsck(verify_data).await)
        .map_err(failed)?
        .map_err(|error| Failure::new(error.to_string()))?;
    pool.close().map_err(failed)?;
    Ok(CheckReport {
        problems: report.problems,
        notes: report.notes,
        checked: report.checked.into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
    })
}
