//! Space: buckets, the regions they come in, and who may have how much of it.
//!
//! A bucket belongs to one shard and holds either data (append-only, one open bucket per write point)
//! or node slots. Always holds:
//! - Live blocks of a data bucket equal the blocks that extents in the index point to in it; used slots
//!   of an index bucket equal the nodes that are in it. Both change in the transaction that changes the
//!   index.
//! - A bucket (a slot) is given out again only when the entry that emptied it is durable.
//! - Each time a bucket is opened its generation rises, so a stale pointer is recognised.
//! - Data may not take the last free buckets: copygc and the index always find one.
//! - Memory holds the states of buckets where something goes on, and sums of the rest ([`loaded`]).

mod alloc;
mod checkpoint;
mod copygc;
pub(crate) mod dead;
mod discard;
pub(crate) mod format;
mod give;
mod loaded;
mod moves;
mod regions;
mod reserve;
mod resize;
mod runs;
mod scrub;
mod summary;
mod table;
mod victims;

pub(crate) use alloc::SlotAllocation;
pub use alloc::{Allocation, WritePoint};
pub(crate) use loaded::RegionPin;
pub use regions::RegionSource;
pub use reserve::Reservation;
pub(crate) use table::{Bucket, BucketId, BucketKind, RegionId, Space};
