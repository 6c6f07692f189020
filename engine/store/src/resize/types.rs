//! What is asked about the sizes of members, and the answers.

use crate::superblock::Superblock;

/// Asks for a change of a member's size, or is a step of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResizeRequest {
    /// Starts to grow or shrink a member. -> `Resize`. Shard 0
    Start {
        /// Index of the member.
        member: u8,
        /// New size in bytes, rounded down to whole buckets; `None`: as large as its device.
        size_bytes: Option<u64>,
    },
    /// Sizes of the members, and how the newest change goes. -> `Resize`. Shard 0
    Status,
    /// Gives up shrinking: all space is used again. -> `Resize`. Shard 0
    Cancel,
    /// How many buckets the shard needs at least. -> `Count`
    Needed,
    /// Gives no regions from bucket `end` on any more. -> `Unit`
    Expect {
        /// Index of the member.
        member: u8,
        /// First bucket that will not be used.
        end: u32,
    },
    /// Gets regions until the shard could do without those from bucket `end` on. -> `Unit`
    Prepare {
        /// Index of the member.
        member: u8,
        /// First bucket that will not be used.
        end: u32,
    },
    /// Places nothing from bucket `end` on any more. -> `Unit`
    Close {
        /// Index of the member.
        member: u8,
        /// First bucket that is not used.
        end: u32,
    },
    /// Takes back what `Expect` and `Close` did. -> `Unit`
    Reopen,
    /// Takes over a superblock that is durable. -> `Unit`
    Adopt {
        /// It.
        superblock: Box<Superblock>,
    },
    /// What is left to be moved away. -> `ResizeLeft`
    Left,
}

/// How far a change of size is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResizePhase {
    /// It goes on.
    Running,
    /// It cannot go on at the moment; `why` says what is in the way. It is tried again.
    Blocked,
    /// The member has its new size.
    Done,
    /// It was given up: the member has its old size.
    Cancelled,
    /// It failed, `why` says how: the member has its old size.
    Failed,
}

/// A change of a member's size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResizeJob {
    /// Index of the member.
    pub member: u8,
    /// Size before, in bytes.
    pub from_bytes: u64,
    /// Size that is wanted, in bytes.
    pub to_bytes: u64,
    /// How far it is.
    pub phase: ResizePhase,
    /// Bytes that are still to be moved away.
    pub left_bytes: u64,
    /// What is in the way, or went wrong; empty: nothing.
    pub why: String,
}

/// The size of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberSize {
    /// Identity.
    pub uuid: [u8; 16],
    /// Bytes in use.
    pub size_bytes: u64,
}

/// Sizes of the members, and the newest change since the pool was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResizeStatus {
    /// By member index.
    pub members: Vec<MemberSize>,
    /// The change, if there was one.
    pub job: Option<ResizeJob>,
}

/// What a shard has left to move away from where a member is being shrunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardLeft {
    /// Number of the superblock that the shard goes by.
    pub sequence: u64,
    /// Bytes of data and nodes.
    pub bytes: u64,
    /// All of it is gone, durably.
    pub empty: bool,
    /// What went wrong at the last attempt, if anything did.
    pub why: Option<String>,
}
