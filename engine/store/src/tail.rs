//! The tail of the journal: the entries after the newest flush entry.
//!
//! Requests are answered once their entry is written, not flushed. When the process ends and the power
//! stays, the devices still hold all of it, and nothing that was answered may be lost. When the power
//! goes, some of it may be there and some not, in any order. So an entry of the tail is taken as
//! committed if all that it names is on the devices: the blocks of new extents by their checksums, the
//! bsets of nodes by theirs. The first entry that is not whole ends the tail: what is replayed stays a
//! prefix of what was committed.
//!
//! It is enough to look at what the tail itself names. What it does not name was durable with the flush
//! entry, and no space of it is given again before the next one.

use std::collections::BTreeMap;
use std::rc::Rc;

use engine_base::BLOCK_SIZE;
use engine_base::checksum::crc32c;
use engine_device::{DeviceQueue, QueueExt};
use engine_memory::Buffer;
use futures::stream::{self, TryStreamExt};

use crate::btree::NodePointer;
use crate::btree::format::{NODE_BLOCK, read_bset};
use crate::error::{Result, StoreError};
use crate::extent::Extent;
use crate::journal::Record;
use crate::journal::format::records;
use crate::journal::read::ReplayEntry;
use crate::key::{Position, Tree};
use crate::planted::{self, Bug};
use crate::reached::{Branch, mark};
use crate::space::Space;

/// Extents of one entry that are read side by side.
const READS_MAX: usize = 16;

/// A node as its pointer names it: identity, place, range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct NodeImage {
    tree: Tree,
    level: u8,
    node: u64,
    member: u8,
    block: u64,
    min: Position,
    max: Position,
}

/// Looks for what entries name.
pub(crate) struct Tail<'a> {
    space: &'a Space,
    members: &'a [Rc<dyn DeviceQueue>],
    /// After how many blocks each valid bset of a node ends, and its checksum.
    nodes: BTreeMap<NodeImage, Vec<(u16, u32)>>,
}

/// How many of the first entries of the tail are whole, and what is wrong with the one after them.
///
/// # Errors
/// `OutOfMemory` only: what cannot be read is not there.
pub(crate) async fn whole_entries(
    space: &Space,
    members: &[Rc<dyn DeviceQueue>],
    tail: &[ReplayEntry],
) -> Result<(usize, Option<StoreError>)> {
    if planted::is(Bug::ReplayPastFlush) {
        return Ok((tail.len(), None));
    }
    let mut look = Tail::new(space, members);
    for (count, entry) in tail.iter().enumerate() {
        match look.entry(&entry.records).await {
            Ok(()) => {}
            Err(error @ StoreError::OutOfMemory { .. }) => return Err(error),
            Err(error) => {
                mark(Branch::TailCut);
                return Ok((count, Some(error)));
            }
        }
    }
    mark(if tail.is_empty() { Branch::TailNone } else { Branch::TailWhole });
    Ok((tail.len(), None))
}

impl<'a> Tail<'a> {
    pub(crate) fn new(space: &'a Space, members: &'a [Rc<dyn DeviceQueue>]) -> Self {
        Self { space, members, nodes: BTreeMap::new() }
    }

    /// Looks for all that an entry names.
    async fn entry(&mut self, bytes: &[u8]) -> Result<()> {
        let mut extents = Vec::new();
        for record in records(bytes) {
            match record? {
                Record::Put { level: 0, value, fresh: true, .. } => {
                    extents.push(Extent::decode(value)?);
                }
                Record::Put { tree, level, position, value, .. } if level > 0 => {
                    self.node(tree, level - 1, position, value).await?;
                }
                Record::Root { tree, level, pointer } => {
                    self.node(tree, level, Position::MAX, pointer).await?;
                }
                _ => {}
            }
        }
        let look = &*self;
        stream::iter(extents.iter().map(Ok))
            .try_for_each_concurrent(READS_MAX, |extent| look.extent(extent))
            .await
    }

    /// The blocks of an extent are what its checksums say.
    pub(crate) async fn extent(&self, extent: &Extent) -> Result<()> {
        if planted::is(Bug::TailDataUnverified) {
            return Ok(());
        }
        for pointer in &extent.pointers {
            self.space.check_pointer(pointer.member, pointer.block, extent.disk_blocks())?;
            let len = u64::from(extent.disk_blocks()) * BLOCK_SIZE;
            let data = self.read(pointer.member, pointer.block, len).await?;
            let mut blocks = data.chunks_exact(BLOCK_SIZE as usize).zip(&extent.checksums);
            if blocks.any(|(block, checksum)| crc32c(block) != *checksum) {
                mark(Branch::TailExtentMissing);
                return Err(missing("the blocks of an extent"));
            }
        }
        Ok(())
    }

    /// The node is as long as its pointer says.
    pub(crate) async fn node(
        &mut self,
        tree: Tree,
        level: u8,
        max: Position,
        pointer: &[u8],
    ) -> Result<()> {
        let pointer = NodePointer::decode(pointer)?;
        // All its keys are in the journal.
        let Some(location) = pointer.location else {
            mark(Branch::TailNodeUnwritten);
            return Ok(());
        };
        let (member, block) = (location.member, location.block);
        let (node, min) = (pointer.node, pointer.min);
        let image = NodeImage { tree, level, node, member, block, min, max };
        if !self.nodes.contains_key(&image) {
            let ends = self.bset_ends(&image).await?;
            self.nodes.insert(image, ends);
        }
        let end = (pointer.written_blocks, pointer.last_crc);
        let whole = self.nodes.get(&image).is_some_and(|ends| ends.contains(&end));
        if whole {
            return Ok(());
        }
        mark(Branch::TailNodeMissing);
        Err(missing("a node"))
    }

    /// After how many blocks each of the valid bsets ends with which a node begins, and their checksums. One that does
    /// not follow the one before it was left by a run whose end recovery gave up.
    async fn bset_ends(&self, image: &NodeImage) -> Result<Vec<(u16, u32)>> {
        let node_blocks = self.space.node_blocks();
        self.space.check_pointer(image.member, image.block, node_blocks)?;
        let len = u64::from(node_blocks) * BLOCK_SIZE;
        let bytes = self.read(image.member, image.block, len).await?;
        let (mut at, mut ends, mut crc) = (0, Vec::new(), 0);
        while at < bytes.len() {
            let offset = image.block * BLOCK_SIZE + at as u64;
            let Ok(bset) = read_bset(&bytes[at..], offset, |_, _| {}) else { break };
            let info = bset.info;
            let expected = (image.tree, image.level, image.node, image.min, image.max);
            let found = (info.tree, info.level, info.node, info.min, info.max);
            let follows = usize::from(info.index) == ends.len() && info.previous == crc;
            if found != expected || !follows {
                break;
            }
            at += bset.blocks * NODE_BLOCK;
            crc = bset.crc;
            ends.push(((at / NODE_BLOCK) as u16, crc));
        }
        Ok(ends)
    }

    /// Reads a place that was checked.
    async fn read(&self, member: u8, block: u64, len: u64) -> Result<Buffer> {
        let member = self.members.get(usize::from(member)).ok_or_else(|| missing("a member"))?;
        Ok(member.read(block * BLOCK_SIZE, Buffer::try_new(len as usize)?).await?)
    }
}

fn missing(what: &str) -> StoreError {
    StoreError::corrupt("journal entry", format!("{what} that it names is not there"))
}
