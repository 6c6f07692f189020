//! Work on devices that no daemon uses: the two calls into the engine.

use std::path::PathBuf;

use engine_embed::members::uuid_text;
use engine_embed::{FormatError, LocalPool, OpenError};
use engine_store::api::{FsckReport, Verify};
use engine_store::engine::Opening;
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

/// Why devices were not checked.
#[derive(Debug)]
pub(crate) enum NoCheck {
    /// What is on them cannot be opened as it is.
    Damaged(Failure),
    /// Anything else.
    Failed(Failure),
}

impl From<NoCheck> for Failure {
    fn from(cause: NoCheck) -> Self {
        match cause {
            NoCheck::Damaged(failure) | NoCheck::Failed(failure) => failure,
        }
    }
}

fn open(devices: &[PathBuf], opening: Opening) -> std::result::Result<LocalPool, NoCheck> {
    LocalPool::open_as(devices, opening).map_err(|error| match error {
        OpenError::Members(problems) => NoCheck::Failed(
            Failure::new(problems.join("; "))
                .hint("a pool that a daemon uses is checked with cairn fsck --online"),
        ),
        OpenError::Shard(problem) => NoCheck::Damaged(Failure::new(problem)),
    })
}

fn failed(problem: impl std::fmt::Display) -> NoCheck {
    NoCheck::Failed(Failure::new(problem.to_string()))
}

/// Checks the pool on `devices`. Replays its journals; what it finds is not repaired.
pub(crate) fn check(
    devices: &[PathBuf],
    verify: Verify,
) -> std::result::Result<CheckReport, NoCheck> {
    let mut pool = open(devices, Opening::Whole)?;
    let report = pool.run(async move |client, _| client.fsck(verify).await);
    let report = report.map_err(failed)?.map_err(failed)?;
    pool.close().map_err(failed)?;
    Ok(report.into())
}

/// Repairs the pool on `devices`, and checks it again. The notes say what was done.
pub(crate) fn repair(devices: &[PathBuf], verify: Verify, opening: Opening) -> Result<CheckReport> {
    let mut pool = open(devices, opening)?;
    let report = pool.run(async move |client, _| {
        let done = client.repair().await?;
        let mut report = client.fsck(verify).await?;
        report.notes.extend(done.notes);
        Ok::<_, engine_store::StoreError>(report)
    });
    let report = report.map_err(failed)?.map_err(failed)?;
    pool.close().map_err(failed)?;
    Ok(report.into())
}

impl From<FsckReport> for CheckReport {
    fn from(report: FsckReport) -> Self {
        let checked = report.checked.into_iter();
        Self {
            problems: report.problems,
            notes: report.notes,
            checked: checked.map(|(name, count)| (name.to_owned(), count)).collect(),
        }
    }
}
