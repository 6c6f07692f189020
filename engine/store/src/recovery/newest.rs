//! Whether what the newest flushed entries name is on the devices.
//!
//! A flush entry proves that the devices answered a flush. A device that answered and did not do it
//! (a cache that lies, a bridge that swallows flushes) shows after a loss of power: the newest of what
//! it had promised is not there. So the newest entries up to the flush entry are looked at: the blocks
//! of extents and the nodes that they put last, up to a bound. What is missing is told with the name
//! of its device. It is not an error: reads of the range concerned fail by their checksums.
//!
//! Only what is still named by the newest of these entries is looked at: the rest may have been freed
//! and given again.

use std::collections::BTreeMap;
use std::rc::Rc;

use engine_device::DeviceQueue;
use futures::stream::{self, StreamExt as _};

use crate::btree::NodePointer;
use crate::error::{Result, StoreError};
use crate::extent::Extent;
use crate::journal::Record;
use crate::journal::format::records;
use crate::journal::read::ReplayEntry;
use crate::key::{Position, Tree, Value};
use crate::space::Space;
use crate::tail::Tail;

/// Blocks of data that are read, at most: 16 MiB, a fraction of a second on a disk, since they were
/// written one after the other.
const BLOCKS_MAX: u32 = 4096;
/// Extents that are read side by side.
const READS_MAX: usize = 16;
/// Nodes that are read, at most.
const NODES_MAX: u32 = 64;
/// Losses that are told one by one; the rest is counted.
const LINES_MAX: usize = 16;

/// Looks, newest entry first; gives a line for each thing that is missing.
///
/// # Errors
/// `OutOfMemory`, and entries that are not of this format.
pub(super) async fn verify(
    space: &Space,
    members: &[Rc<dyn DeviceQueue>],
    flushed: &[ReplayEntry],
) -> Result<Vec<String>> {
    let mut look = Look {
        tail: Tail::new(space, members),
        members,
        blocks_left: BLOCKS_MAX,
        extents: Vec::new(),
        nodes_left: NODES_MAX,
        lines: Vec::new(),
        more: 0,
    };
    // The last word on each key; newer entries are looked at first.
    let mut seen: BTreeMap<(Tree, u8, Position), ()> = BTreeMap::new();
    for entry in flushed.iter().rev() {
        if look.blocks_left == 0 && look.nodes_left == 0 {
            break;
        }
        for (key, value) in last_words(&entry.records)? {
            if seen.insert(key, ()).is_none()
                && let Some(value) = value
            {
                look.key(key, &value, entry.placed.seq).await?;
            }
        }
    }
    look.extents().await?;
    if look.more > 0 {
        look.lines.push(format!("and {} more things that were flushed are lost", look.more));
    }
    Ok(look.lines)
}

type LastWords = BTreeMap<(Tree, u8, Position), Option<Value>>;

/// The last value of each extent and node pointer in an entry.
fn last_words(bytes: &[u8]) -> Result<LastWords> {
    let mut last = LastWords::new();
    for record in records(bytes) {
        match record? {
            Record::Put { tree, level, position, value, .. }
                if level > 0 || tree == Tree::Extents =>
            {
                last.insert((tree, level, position), Some(Value::from_slice(value)));
            }
            Record::Delete { tree, level, position } if level > 0 || tree == Tree::Extents => {
                last.insert((tree, level, position), None);
            }
            _ => {}
        }
    }
    Ok(last)
}

struct Look<'a> {
    tail: Tail<'a>,
    members: &'a [Rc<dyn DeviceQueue>],
    blocks_left: u32,
    /// Extents to read, each with its position and the entry that names it.
    extents: Vec<(Position, Extent, u64)>,
    nodes_left: u32,
    lines: Vec<String>,
    more: u64,
}

impl Look<'_> {
    async fn key(&mut self, key: (Tree, u8, Position), value: &[u8], seq: u64) -> Result<()> {
        let (tree, level, position) = key;
        if level == 0 {
            // What this program cannot read is told by whoever needs it.
            let Ok(extent) = Extent::decode(value) else { return Ok(()) };
            if extent.pointers.is_empty() {
                return Ok(());
            }
            if extent.disk_blocks() > self.blocks_left {
                self.blocks_left = 0;
                return Ok(());
            }
            self.blocks_left -= extent.disk_blocks();
            self.extents.push((position, extent, seq));
            return Ok(());
        }
        if self.nodes_left == 0 {
            return Ok(());
        }
        self.nodes_left -= 1;
        let Ok(pointer) = NodePointer::decode(value) else { return Ok(()) };
        let Some(location) = pointer.location else { return Ok(()) };
        let found = self.tail.node(tree, level - 1, position, value).await;
        let what =
            format!("node {} of tree {tree:?} ({:?} to {position:?})", pointer.node, pointer.min);
        self.note(found, &what, (location.member, location.block), seq)
    }

    async fn extents(&mut self) -> Result<()> {
        let extents = std::mem::take(&mut self.extents);
        let tail = &self.tail;
        let reads = stream::iter(extents.iter().map(|(_, extent, _)| tail.extent(extent)));
        let found: Vec<Result<()>> = reads.buffered(READS_MAX).collect().await;
        for ((position, extent, seq), found) in extents.iter().zip(found) {
            let pointer = extent.pointers[0];
            let start = position.offset.saturating_sub(u64::from(extent.blocks));
            let what = format!(
                "blocks {start} to {} of inode {} version {}",
                position.offset, position.inode, position.snapshot
            );
            self.note(found, &what, (pointer.member, pointer.block), *seq)?;
        }
        Ok(())
    }

    fn note(
        &mut self,
        found: Result<()>,
        what: &str,
        (member, block): (u8, u64),
        seq: u64,
    ) -> Result<()> {
        let error = match found {
            Ok(()) => return Ok(()),
            Err(error @ StoreError::OutOfMemory { .. }) => return Err(error),
            Err(error) => error,
        };
        if self.lines.len() >= LINES_MAX {
            self.more += 1;
            return Ok(());
        }
        let device = self
            .members
            .get(usize::from(member))
            .map_or_else(|| format!("member {member}"), |queue| queue.info().name.clone());
        self.lines.push(format!(
            "{device} answered a flush and does not hold what it covered: {what}, at byte {} of the \
             device, named by journal entry {seq}: {error}; reads of it fail; do not trust this \
             device, or the cache before it, with flushes",
            block.saturating_mul(engine_base::BLOCK_SIZE)
        ));
        Ok(())
    }
}
