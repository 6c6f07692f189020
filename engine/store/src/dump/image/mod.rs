//! A metadata image of a pool, for bug reports: on a device for each member, the same structures at the
//! same places, without data and with other strings in place of names.
//!
//! Always holds: nothing is copied as it lies. Each structure is read, checked, taken apart, scrubbed
//! ([`scrub`]), and written with a checksum of its own; what cannot be read or is damaged is left out and
//! counted. Superblocks come last, with a mark by which nobody but a dump opens the image.
//!
//! Nodes get other checksums by it. Pointers and bsets that hold the old ones get the new ones, so a node is
//! written before what names it: leaves first, journals last. One that fits no node becomes one that fits
//! none either, and is not copied: it could be used to check guesses of names. So may one in an old value
//! of a key, which a later bset or the journal replaced: what it names may be left behind another node.
//!
//! One structure is in memory at a time, one shard's journal, twice, and the checksums of one shard's
//! bsets.

mod copy;
mod scrub;

use std::collections::BTreeSet;
use std::rc::Rc;

use engine_device::DeviceQueue;

use super::Item;
use super::shard::{Place, ShardView};
use super::view::View;
use crate::btree::NodePointer;
use crate::error::{Result, StoreError};
use crate::journal::Record;
use crate::key::{Position, Tree};
use crate::space::BucketKind;
use crate::space::format::BucketCheckpoint;

pub(crate) use scrub::Scrub;

/// Lines that an answer holds at most.
const NOTES_MAX: usize = 100;

/// What an image holds.
#[derive(Default)]
struct Copied {
    superblock_copies: u64,
    journal_entries: u64,
    nodes: u64,
    summaries: u64,
}

/// What an image lacks.
#[derive(Default)]
struct LeftOut {
    superblock_copies: u64,
    /// Whole journals, and all that only they lead to.
    journals: u64,
    /// Blocks of journals that cannot be read.
    journal_blocks: u64,
    journal_entries: u64,
    /// Entries of which the last records are left out.
    journal_entries_cut: u64,
    /// Nodes of which some bset is bad, and trees whose root is not known.
    nodes: u64,
    summaries: u64,
}

/// Makes an image.
struct Imager<'v> {
    view: &'v View,
    /// By member index; `None`: the member is not there.
    targets: &'v [Option<Rc<dyn DeviceQueue>>],
    scrub: Scrub,
    copied: Copied,
    left_out: LeftOut,
    notes: Vec<String>,
    notes_left_out: u64,
}

impl View {
    /// Bytes of the device of each member by index, rounded down to whole blocks: what its image needs.
    /// `None`: the member is not there.
    #[must_use]
    pub fn image_sizes(&self) -> Vec<Option<u64>> {
        let sizes = self.members.iter().map(|member| {
            // Past the end of a bucket nothing lies, and buckets are whole blocks.
            member.refresh_size().ok().map(|size| size / 4096 * 4096)
        });
        sizes.collect()
    }

    /// Writes a metadata image of the pool to `targets`, by member index: zeroed devices of
    /// [`View::image_sizes`]. `key` must be random and be kept nowhere: with it, guesses of names could
    /// be checked. Tells how much was written, and what was left out.
    ///
    /// # Errors
    /// When a target does not take a write, or memory is out. An image without superblocks is left
    /// then, which nothing takes for one.
    pub async fn image(
        &self,
        targets: &[Option<Rc<dyn DeviceQueue>>],
        key: [u64; 2],
    ) -> Result<Vec<Item>> {
        let mut imager = Imager {
            view: self,
            targets,
            scrub: Scrub::new(key),
            copied: Copied::default(),
            left_out: LeftOut::default(),
            notes: Vec::new(),
            notes_left_out: 0,
        };
        self.notes.iter().for_each(|note| imager.note(note.clone()));
        let mut tails = Vec::new();
        for shard in 0..self.superblock.shard_count() {
            let entries = imager.read_journal(shard).await?;
            match self.shard(shard).await {
                Ok(found) => {
                    tails.push(found.tail);
                    imager.shard(&found).await?;
                }
                Err(error @ StoreError::OutOfMemory { .. }) => return Err(error),
                Err(error) => {
                    tails.push(0);
                    imager.left_out.journals += 1;
                    imager.note(format!("shard {shard}: {error}"));
                }
            }
            imager.journal(shard, &entries).await?;
            // Pointers lead to nodes of the same shard only.
            imager.scrub.forget_checksums();
        }
        for member in 0..self.members.len() {
            imager.superblocks(member as u8, &tails).await?;
        }
        Ok(imager.into_items())
    }
}

impl Imager<'_> {
    fn note(&mut self, text: String) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(text);
        } else {
            self.notes_left_out += 1;
        }
    }

    /// The nodes of all trees of a shard, those below before those above, and the summaries of its buckets.
    async fn shard(&mut self, shard: &ShardView<'_>) -> Result<()> {
        for note in &shard.notes {
            self.note(format!("shard {}: {note}", shard.shard));
        }
        for tree in Tree::ALL {
            self.tree(shard, tree).await?;
        }
        self.buckets(shard).await
    }

    async fn tree(&mut self, shard: &ShardView<'_>, tree: Tree) -> Result<()> {
        let (top, root) = match shard.root(tree) {
            Ok(root) => root,
            Err(error) => {
                self.left_out.nodes += 1;
                self.note(format!("shard {}: {error}", shard.shard));
                return Ok(());
            }
        };
        for level in 1..=top {
            let mut from = Position::MIN;
            loop {
                let last = match shard.node_at(tree, level, from).await? {
                    Place::Node(node) => {
                        for (max, value) in node.keys.iter() {
                            match NodePointer::decode(value) {
                                Ok(child) => self.node((tree, level - 1), &child, *max).await?,
                                Err(_) => self.left_out.nodes += 1,
                            }
                        }
                        node.max
                    }
                    // Counted when its own pointer is met.
                    Place::Lost { max, .. } => max,
                };
                if last == Position::MAX {
                    break;
                }
                from = last.successor().max(from.successor());
            }
        }
        self.node((tree, top), &root, Position::MAX).await
    }

    async fn buckets(&mut self, shard: &ShardView<'_>) -> Result<()> {
        let opened = shard.deltas.iter().filter_map(|(_, record)| match record {
            Record::BucketOpen { member, bucket, kind, .. } => {
                let is_data = *kind == BucketKind::Data as u8;
                is_data.then_some((u64::from(*member), u64::from(*bucket)))
            }
            _ => None,
        });
        let opened: BTreeSet<_> = opened.collect();
        for (member, bucket) in &opened {
            self.summary(*member, *bucket).await?;
        }
        if shard.root(Tree::Buckets).is_err() {
            return Ok(());
        }
        let mut from = Position::MIN;
        loop {
            let last = match shard.node_at(Tree::Buckets, 0, from).await? {
                Place::Node(node) => {
                    for (at, value) in node.keys.iter() {
                        let state = BucketCheckpoint::decode(value);
                        if state.is_ok_and(|state| state.kind == BucketKind::Data)
                            && !opened.contains(&(at.inode, at.offset))
                        {
                            self.summary(at.inode, at.offset).await?;
                        }
                    }
                    node.max
                }
                Place::Lost { max, .. } => max,
            };
            if last == Position::MAX {
                return Ok(());
            }
            from = last.successor().max(from.successor());
        }
    }

    fn into_items(self) -> Vec<Item> {
        let Copied { superblock_copies, journal_entries, nodes, summaries } = self.copied;
        let mut items = vec![Item::Map(vec![
            ("written", "structures".into()),
            ("superblock_copies", superblock_copies.into()),
            ("journal_entries", journal_entries.into()),
            ("nodes", nodes.into()),
            ("summaries", summaries.into()),
        ])];
        let lacks = self.left_out;
        items.push(Item::Map(vec![
            ("left_out", "structures that are damaged or cannot be read".into()),
            ("superblock_copies", lacks.superblock_copies.into()),
            ("journals", lacks.journals.into()),
            ("journal_blocks", lacks.journal_blocks.into()),
            ("journal_entries", lacks.journal_entries.into()),
            ("journal_entries_cut", lacks.journal_entries_cut.into()),
            ("nodes", lacks.nodes.into()),
            ("values", self.scrub.unknown_values.into()),
            ("buckets_without_summary", lacks.summaries.into()),
        ]));
        let notes = self.notes.into_iter();
        items.extend(notes.map(|text| Item::Map(vec![("note", Item::Text(text))])));
        if self.notes_left_out > 0 {
            items.push(Item::Map(vec![("notes_not_shown", self.notes_left_out.into())]));
        }
        items
    }
}
