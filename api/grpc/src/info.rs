//! Facts about the server and its pool that do not change while it runs.

/// A device of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// Index in the member table.
    pub index: u8,
    /// UUID.
    pub uuid: [u8; 16],
    /// Path it was opened from.
    pub path: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Block size in bytes.
    pub block_size: u32,
}

/// What the daemon tells about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInfo {
    /// Version of the daemon.
    pub version: String,
    /// UUID of the pool.
    pub pool_uuid: [u8; 16],
    /// Start of the daemon, nanoseconds since the Unix epoch.
    pub started_ns: u64,
    /// Devices of the pool, by index.
    pub members: Vec<MemberInfo>,
}
