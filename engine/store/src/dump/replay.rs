//! Which journal entries a view takes, and the journal itself.

use engine_base::BLOCK_SIZE;

use super::describe::{self, record};
use super::view::View;
use super::{Bounded, Item};
use crate::error::{Result, StoreError};
use crate::journal::Place;
use crate::journal::format::records;
use crate::journal::read::{Found, recover, scan};
use crate::space::Space;
use crate::tail;

/// Entries to apply, oldest first.
pub(super) struct Entries {
    pub(super) entries: Vec<(u64, Vec<u8>)>,
    /// How many of them follow the newest flush entry.
    pub(super) tail: u32,
    pub(super) notes: Vec<String>,
}

/// Where the journal of a shard lies, and its length in blocks.
pub(super) fn place(view: &View, shard: u16) -> (Place, u32) {
    let superblock = &view.superblock;
    let area = superblock.journals[usize::from(shard)];
    let place = Place {
        member: area.member,
        queue: std::rc::Rc::clone(&view.members[usize::from(area.member)]),
        base_bytes: u64::from(area.first_bucket) * u64::from(superblock.bucket_bytes),
        pool_uuid: superblock.pool_uuid,
        shard,
    };
    (place, area.buckets * (superblock.bucket_bytes / BLOCK_SIZE as u32))
}

/// What recovery would replay; when it would refuse, every entry that is left.
pub(super) async fn entries(view: &View, shard: u16) -> Result<Entries> {
    let (place, ring_blocks) = place(view, shard);
    let mut notes = Vec::new();
    match recover(&place, ring_blocks, 0).await {
        Ok(mut recovered) => {
            let tails = view.superblock.image_tails.as_ref();
            let (kept, why) = match tails.and_then(|tails| tails.get(usize::from(shard))) {
                Some(kept) => ((*kept as usize).min(recovered.tail.len()), None),
                None => {
                    let space = Space::new(std::rc::Rc::clone(&view.superblock));
                    tail::whole_entries(&space, &view.members, &recovered.tail).await?
                }
            };
            recovered.keep(kept);
            if recovered.dropped > 0 {
                let why = why.map_or_else(String::new, |error| format!(" ({error})"));
                notes.push(format!("{} entries are not taken{why}", recovered.dropped));
            }
            let taken = recovered.entries.into_iter().map(|it| (it.placed.seq, it.records));
            Ok(Entries { entries: taken.collect(), tail: kept as u32, notes })
        }
        Err(error @ StoreError::OutOfMemory { .. }) => Err(error),
        Err(error) => {
            notes.push(format!("recovery would refuse: {error}; all entries found are taken"));
            let found = scan(&place, ring_blocks).await?.found;
            if found.is_empty() {
                return Err(error);
            }
            let taken = found.into_values().map(|it| (it.info.seq, it.records));
            Ok(Entries { entries: taken.collect(), tail: 0, notes })
        }
    }
}

impl View {
    /// The entries of a shard's journal with numbers `first ..= last`, oldest first; with `contents`,
    /// their records. Reads the ring as it is: nothing needs to be whole.
    ///
    /// # Errors
    /// When there is no such shard, or the device reads nothing of the ring.
    pub async fn journal(
        &self,
        shard: u16,
        (first, last): (u64, u64),
        contents: bool,
        limit: usize,
    ) -> Result<Vec<Item>> {
        if shard >= self.superblock.shard_count() || first > last {
            return Err(StoreError::invalid(format!(
                "shard {shard}, entries {first} to {last}: the pool has {} shards",
                self.superblock.shard_count()
            )));
        }
        let (place, ring_blocks) = place(self, shard);
        let found = scan(&place, ring_blocks).await?.found;
        let mut items = Bounded::new(limit);
        let mut before: Option<u64> = None;
        for entry in found.range(first..=last).map(|(_, entry)| entry) {
            if let Some(before) = before
                && before + 1 != entry.info.seq
            {
                let missing = entry.info.seq - before - 1;
                items.push(Item::Map(vec![("missing_entries", missing.into())]));
            }
            before = Some(entry.info.seq);
            if !items.push(self.entry(&place, entry, contents, limit)) {
                break;
            }
        }
        Ok(items.into_items())
    }

    fn entry(&self, place: &Place, entry: &Found, contents: bool, most: usize) -> Item {
        let at = place.base_bytes + u64::from(entry.start) * BLOCK_SIZE;
        let mut fields = vec![
            ("seq", entry.info.seq.into()),
            ("last_seq", entry.info.last_seq.into()),
            ("flush", entry.info.flush.into()),
            ("device_byte", at.into()),
            ("blocks", entry.info.blocks.into()),
            ("records", (records(&entry.records).count() as u64).into()),
        ];
        if contents {
            let mut list = Bounded::new(most);
            for (ordinal, found) in records(&entry.records).enumerate() {
                let item = match &found {
                    Ok(found) => record(ordinal, found),
                    Err(error) => describe::failed(ordinal, error),
                };
                if !list.push(item) {
                    break;
                }
            }
            fields.push(("contents", Item::List(list.into_items())));
        }
        Item::Map(fields)
    }
}
