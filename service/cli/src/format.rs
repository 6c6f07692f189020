//! Work on devices that no daemon uses: the two calls into the engine.

use std::path::PathBuf;

use crate::failure::{Failure, Result};

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
    /// What was looked at, and how many.
    pub(crate) checked: Vec<(String, u64)>,
}

/// Creates a pool.
pub(crate) fn format(request: &FormatRequest) -> Result<FormatReport> {
    Err(unsupported("formatting", request.devices.len()))
}

/// Checks the pool on `devices`.
pub(crate) fn check(devices: &[PathBuf], verify_data: bool) -> Result<CheckReport> {
    let what = if verify_data { "checking with data" } else { "checking" };
    Err(unsupported(what, devices.len()).hint("check a running pool with cairn fsck --online"))
}

fn unsupported(what: &str, devices: usize) -> Failure {
    Failure::new(format!("{what} {devices} devices offline is not supported by this build"))
}
