//! Bounds of everything a peer can make grow.

/// Limits of a target. All are per what their name says; the defaults suit a storage node.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections on one core, including those that are being torn down.
    pub connections_per_core_max: usize,
    /// Entries of a submission queue (CAP.MQES + 1), 2 to 4096. Each has a command slot.
    pub queue_entries_max: u16,
    /// I/O queues of one controller.
    pub io_queues_max: u16,
    /// Data bytes in a command capsule of an I/O queue; a multiple of 16, 8192 or more because
    /// Linux puts up to 8 KiB in capsules of the admin queue.
    pub in_capsule_data_max: u32,
    /// log2 of the largest transfer in bytes (told as MDTS), 12 to 22.
    pub transfer_len_max_log2: u8,
    /// Bytes of reads and of writes by R2T in flight on a connection. At least one largest transfer.
    pub inflight_bytes_per_connection_max: u64,
    /// The same for all connections of a core.
    pub inflight_bytes_per_core_max: u64,
    /// A connection that did not get through ICReq and Connect in this time is cut.
    pub handshake_timeout_ms: u64,
    /// How long a terminated connection waits for the peer to close.
    pub linger_timeout_ms: u64,
    /// Send C2HData with SUCCESS (no response capsule) only to hosts that disabled submission queue
    /// flow control, as the standard has it. Off: to all hosts, as SPDK does by default.
    pub success_needs_flow_control_off: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_per_core_max: 1024,
            queue_entries_max: 256,
            io_queues_max: 64,
            in_capsule_data_max: 8192,
            transfer_len_max_log2: 20,
            inflight_bytes_per_connection_max: 16 << 20,
            inflight_bytes_per_core_max: 256 << 20,
            handshake_timeout_ms: 10_000,
            linger_timeout_ms: 2_000,
            success_needs_flow_control_off: true,
        }
    }
}

impl Limits {
    /// Bytes of the largest transfer.
    #[must_use]
    pub fn transfer_len_max(&self) -> u32 {
        1 << self.transfer_len_max_log2
    }

    /// Whether the limits fit each other.
    ///
    /// # Errors
    /// A sentence that names the one that does not.
    pub fn check(&self) -> Result<(), &'static str> {
        let rules = [
            (
                (1..=65536).contains(&self.connections_per_core_max),
                "1 to 65536 connections per core",
            ),
            ((32..=4096).contains(&self.queue_entries_max), "32 to 4096 queue entries"),
            ((1..=1024).contains(&self.io_queues_max), "1 to 1024 I/O queues"),
            (
                (8192..=65536).contains(&self.in_capsule_data_max)
                    && self.in_capsule_data_max.is_multiple_of(16),
                "in-capsule data of 8192 to 65536 bytes, a multiple of 16",
            ),
            (
                (12..=22).contains(&self.transfer_len_max_log2),
                "a largest transfer of 4 KiB to 4 MiB",
            ),
            (
                self.inflight_bytes_per_connection_max >= u64::from(self.transfer_len_max()),
                "room for one largest transfer per connection",
            ),
            (
                self.inflight_bytes_per_core_max >= self.inflight_bytes_per_connection_max,
                "at least as many bytes per core as per connection",
            ),
            (self.handshake_timeout_ms > 0, "a handshake timeout"),
        ];
        rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, rule)| Err(rule))
    }
}

/// Asynchronous event requests a controller keeps (AERL + 1), as most controllers do.
pub(crate) const ASYNC_EVENTS_MAX: usize = 4;
/// Aborts in flight (ACL + 1).
pub(crate) const ABORTS_MAX: usize = 4;
/// Entries of a controller's error log (ELPE + 1).
pub(crate) const ERROR_LOG_MAX: usize = 64;
/// Greatest namespace identifier (NN and MNAN).
pub(crate) const NAMESPACES_MAX: u32 = 1024;
/// Controllers of one subsystem.
pub(crate) const CONTROLLERS_MAX: usize = 4096;
/// Subsystems of a target; the discovery log holds them times the listeners.
pub(crate) const SUBSYSTEMS_MAX: usize = 4096;
/// Listeners of a target.
pub(crate) const LISTENERS_MAX: usize = 64;
/// Source ranges of one Copy (MSRC + 1): with 32 bytes each they fit a page, which Linux hands over.
pub(crate) const COPY_RANGES_MAX: usize = 128;
/// Bytes of one Copy (MCL), so that one that must be read and written ends long before a host's patience
/// (30 s with Linux), and what it does to others is bounded.
pub(crate) const COPY_BYTES_MAX: u32 = 64 << 20;
/// Keep alive granularity (KAS): 1 s, in units of 100 ms.
pub(crate) const KEEP_ALIVE_GRANULARITY_100MS: u16 = 10;
/// Longest keep alive timeout accepted, so that a dead host's controller goes within the hour.
pub(crate) const KEEP_ALIVE_MS_MAX: u32 = 3_600_000;
/// Bytes of the staging area in which PDU headers and small payloads arrive.
pub(crate) const STAGING_LEN: usize = 32 << 10;
/// Staging that is offered while large payloads are expected, so that they land in their buffers.
pub(crate) const STAGING_LEN_BEFORE_LARGE_DATA: usize = 4 << 10;

const _: () = assert!(STAGING_LEN_BEFORE_LARGE_DATA >= 256, "a header of 128 + 4 bytes fits");
const _: () = assert!(STAGING_LEN_BEFORE_LARGE_DATA < STAGING_LEN);
