//! The journal of a shard: what was committed, in order, and how far it is durable.
//!
//! Always holds:
//! - Sequence numbers rise by one from entry to entry, and jump after a recovery; the numbers jumped
//!   over are blacklisted: no entry with such a number is ever replayed.
//! - A *flush entry* is written with FUA after every member was flushed. So if it is found, all that
//!   was written before it is there: data, nodes and earlier entries.
//! - Recovery replays from the newest flush entry's `last_seq` to that entry, and after it the entries
//!   that are whole with all they name (see `tail`): a prefix of what was committed, not shorter than
//!   what was ever acknowledged as flushed, nor, unless the power went, than what was acknowledged.
//! - Ring space is reused only when a durable flush entry says that it is no longer needed.
//!
//! What pins entries (nodes, bucket and counter tables) is told here by [`Journal::pin`]; who writes
//! pinned things out is `engine`'s reclaim.

pub(crate) mod format;
mod pins;
pub(crate) mod read;
mod ring;
mod writer;

pub(crate) use format::{Record, RecordWriter};
pub(crate) use pins::Holder;
pub(crate) use writer::{Class, Journal, Next, Place};
