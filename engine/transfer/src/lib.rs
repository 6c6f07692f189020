//! Snapshots as streams: a snapshot, or the difference of two, leaves one pool as bytes and becomes a snapshot of
//! another.
//!
//! A [`Sender`] reads a snapshot, which does not change, so a stream that was cut off goes on where the other side says
//! that it has come ([`ResumeToken`]). A [`Receiver`] writes to a subvolume that nobody else uses, notes from time to
//! time how far all is durable, and makes it a snapshot in one transaction at the end. What a stream looks like is in
//! docs/format.md, "Streams".
//!
//! Always holds: both keep a bounded part of the stream in memory; a stream that is damaged, cut off, put together from
//! two, or in another order is refused before anything of the damaged frame is written.

pub mod format;
mod receive;
mod send;
mod token;
pub mod tree_frame;

pub use receive::Receiver;
pub use send::Sender;
pub use token::ResumeToken;

use engine_store::StoreError;
use engine_store::api::{Link, SubvolumeInfo};
use engine_store::client::Client;

/// Bytes of data in one frame, at most.
pub const FRAME_DATA_MAX: usize = 1 << 20;
/// Bytes that are read or written at a time.
const BATCH_BYTES: u64 = 8 << 20;
/// Subvolumes that are asked for at a time.
const PAGE: u32 = 256;

/// What a snapshot holds, by a UUID: that of the snapshot from which it was received, else its own.
#[must_use]
pub fn content_of(info: &SubvolumeInfo) -> [u8; 16] {
    info.received.map_or(info.uuid, |received| received.source)
}

/// The snapshots that hold what `content` names.
async fn find<L: Link>(
    client: &Client<L>,
    content: [u8; 16],
) -> Result<Vec<SubvolumeInfo>, StoreError> {
    let (mut after, mut found) = (String::new(), Vec::new());
    loop {
        let page = client.subvolume_list(&after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(found) };
        after.clone_from(&last.name);
        let whole = |info: &SubvolumeInfo| info.read_only && info.receiving().is_none();
        found.extend(page.into_iter().filter(|info| whole(info) && content_of(info) == content));
    }
}
