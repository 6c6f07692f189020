//! Bounds that are part of the interface or of its safety, each with its reason.

/// Entries of a page when the client does not say.
pub const PAGE_SIZE_DEFAULT: u32 = 100;
/// Most entries of a page: what one engine request returns.
pub const PAGE_SIZE_MAX: u32 = 1000;
/// Longest path in bytes (PATH_MAX of Linux without its NUL).
pub const PATH_BYTES_MAX: usize = 4095;
/// Most symbolic links followed for one path (MAXSYMLINKS of Linux).
pub const SYMLINKS_MAX: u32 = 40;
/// Deepest directory that a recursive remove descends into: what the longest path can name.
pub const REMOVE_DEPTH_MAX: usize = PATH_BYTES_MAX / 2 + 1;
/// Engine requests of up to 1 MiB in flight for one read stream.
pub const READ_REQUESTS_MAX: usize = 4;
/// Engine requests of up to 1 MiB in flight for one write stream.
pub const WRITE_REQUESTS_MAX: usize = 4;
/// Messages waiting for the client of a server stream.
pub const STREAM_QUEUE_MAX: usize = 4;
/// Most problems that a check reports in full.
pub const PROBLEMS_MAX: usize = 1000;
/// Longest text of one problem, and of a status message, in bytes: a status travels in HTTP/2
/// headers, which peers cap at 8 to 16 KiB.
pub const MESSAGE_TEXT_BYTES_MAX: usize = 1000;
/// Longest NQN in bytes (NVMe Base Specification 2.1, 4.7).
pub const NQN_BYTES_MAX: usize = 223;
/// Most namespaces of an export; with names of 255 bytes they must fit the engine's record limit
/// as the daemon encodes them, so the daemon may refuse earlier.
pub const EXPORT_NAMESPACES_MAX: usize = 128;
/// Rows of time statistics in one answer: a row with its buckets takes about 500 bytes, a message 2 MiB.
pub const TIME_STATS_MAX: usize = 3000;
/// Waits listed when the client does not say.
pub const WAITS_DEFAULT: u32 = 100;
/// Most waits listed.
pub const WAITS_MAX: u32 = 1000;
/// Longest part of a name that is searched for, in bytes.
pub const FILTER_BYTES_MAX: usize = 100;
/// Longest filter of the log, in bytes: room for a directive for each of our modules.
pub const LOG_FILTER_BYTES_MAX: usize = 2000;
/// Longest time after which a filter of the log goes by itself, in seconds: a week.
pub const LOG_FILTER_SECONDS_MAX: u32 = 7 * 24 * 60 * 60;
/// Largest namespace identifier.
pub const NSID_MAX: u32 = 1024;
/// Most hosts listed in an export.
pub const EXPORT_HOSTS_MAX: usize = 128;
