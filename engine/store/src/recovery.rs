//! Opening a shard: from superblock and journal to a running engine.
//!
//! 1. The superblock of every member must be of the same pool, each member in its place.
//! 2. The journal says which entries to replay: all up to the newest flush entry, and of those after it
//!    as many as are whole, with all that they name ([`crate::tail`]). A prefix of what was committed.
//! 3. Roots are taken from the newest entry; keys are replayed into nodes, top level first, so that
//!    each level is final before it is used to find the next.
//! 4. Counters, and the tables of regions in which a delta names a bucket, are their checkpoints plus the
//!    deltas after each one's stamp. Of all other regions the tally is read, and no more: what a mount
//!    costs depends on the journal and not on the pool. See [`crate::space`].
//!
//! What was replayed is dirty and pins the entries it came from. All members are flushed, and when there
//! were entries after the flush entry, a new one decides for good which of them count: from then on the
//! space that these freed is given again, so they could no longer be told whole.

mod members;
mod newest;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use engine_base::BLOCK_SIZE;
use engine_device::QueueExt as _;

use crate::btree::{Cache, Node, NodePointer};
use crate::codec::Codec;
use crate::damage::DamageList;
use crate::data::Unsharing;
use crate::engine::{Engine, EngineConfig, Held, Opening, Stamps};
use crate::error::{Result, StoreError};
use crate::journal::format::records;
use crate::journal::read::{Recovered, recover as read_journal};
use crate::journal::{Holder, Journal, Place, Record};
use crate::key::{Counter, Position, Tree, Value};
use crate::planted::{self, Bug};
use crate::reached::{Branch, mark};
use crate::repair::{MENDABLE, is_loss};
use crate::reserve::{ReadReserve, Reserve};
use crate::space::format::summary_blocks;
use crate::space::{Bucket, BucketKind, Space};
use crate::superblock::Superblock;
use crate::sync::Notify;
use crate::tail;
use crate::times::Waits;
use crate::version::{KnownAreas, Versions};

/// Last values of the keys in the journal: (tree, level) -> position -> (entry, value).
type Overlay = BTreeMap<(Tree, u8), BTreeMap<Position, (u64, Option<Value>)>>;

/// Builds the engine of a shard from what is on its devices.
pub(crate) async fn recover(
    config: EngineConfig,
    cache_bytes: usize,
    opening: Opening,
) -> Result<Engine> {
    let (superblock, mut notes) = members::superblock(&config).await?;
    let superblock = Rc::new(superblock);
    let bucket_blocks = superblock.bucket_bytes / BLOCK_SIZE as u32;
    let (place, ring_blocks) = journal_place(&config, &superblock);
    let summary_bytes = summary_blocks(bucket_blocks) * BLOCK_SIZE as u32;
    let write_bytes_max = superblock.node_bytes.max(summary_bytes) as usize;
    let mut recovered = read_journal(&place, ring_blocks, config.runtime.random_u64()).await?;
    let space = Rc::new(Space::new(superblock));
    let (kept, ended_by) = tail::whole_entries(&space, &config.members, &recovered.tail).await?;
    notes.extend(unreadable_note(&place, &recovered));
    notes.extend(tail_note(&place, &recovered, kept, ended_by));
    let newest = newest::verify(&space, &config.members, &recovered.entries).await?;
    if !newest.is_empty() {
        mark(Branch::FlushedLost);
    }
    notes.extend(newest);
    recovered.keep(kept);
    recovered.tell(place.shard);
    let waits = Rc::new(Waits::new(Rc::clone(&config.runtime)));
    let mut engine = Engine {
        journal: Rc::new(Journal::new(place, ring_blocks, &recovered, Rc::clone(&waits))?),
        waits,
        reserve: Reserve::try_new(write_bytes_max)?,
        read_reserve: ReadReserve::try_new(space.superblock().node_bytes as usize)?,
        cache: Cache::new(cache_bytes, space.superblock().node_bytes as usize),
        space,
        flights: Rc::default(),
        unsharing: Unsharing::default(),
        codec: Codec::default(),
        versions: Versions::default(),
        known_areas: KnownAreas::default(),
        counters: RefCell::default(),
        taken: RefCell::default(),
        stamps: RefCell::new(Stamps::default()),
        last_node_id: Cell::new(0),
        commits: Cell::new(0),
        restarts: Cell::new(0),
        replayed_keys: Cell::new(0),
        replay_dropped: Cell::new(recovered.dropped),
        recovery_notes: notes,
        damage: DamageList::default(),
        gc_active: Cell::new(false),
        held: Held::default(),
        committed: Notify::default(),
        reclaim_wanted: Notify::default(),
        config,
    };
    let lost = engine.replay(&recovered, opening).await?;
    let (shard, keys) = (engine.shard().0, engine.replayed_keys.get());
    tracing::debug!(shard, keys, nodes_lost = lost.len(), "journal replayed");
    engine.recovery_notes.extend(lost);
    engine.settle_for_good(recovered.unflushed).await?;
    Ok(engine)
}

/// Where the shard's journal lies, and its length in blocks.
fn journal_place(config: &EngineConfig, superblock: &Superblock) -> (Place, u32) {
    let area = superblock.journals[usize::from(config.shard.0)];
    let place = Place {
        member: area.member,
        queue: Rc::clone(&config.members[usize::from(area.member)]),
        base_bytes: u64::from(area.first_bucket) * u64::from(superblock.bucket_bytes),
        pool_uuid: superblock.pool_uuid,
        shard: config.shard.0,
    };
    (place, area.buckets * (superblock.bucket_bytes / BLOCK_SIZE as u32))
}

/// What is told of blocks of the journal that cannot be read, if there are any.
fn unreadable_note(place: &Place, recovered: &Recovered) -> Option<String> {
    let (shard, device, blocks) = (place.shard, &place.queue.info().name, recovered.unreadable);
    (blocks > 0).then(|| {
        format!(
            "journal of shard {shard} on {device}: {blocks} blocks cannot be read; a write that failed leaves such \
             blocks, but if the newest entry, {}, is not the last one that was flushed, what came after it is lost: \
             do not trust the device",
            recovered.flush_seq
        )
    })
}

/// What is told of the entries that are given up, if there are any.
fn tail_note(
    place: &Place,
    recovered: &Recovered,
    kept: usize,
    ended_by: Option<StoreError>,
) -> Option<String> {
    let given_up = recovered.dropped - kept as u64;
    if given_up == 0 {
        return None;
    }
    let newest = match kept.checked_sub(1) {
        Some(last) => recovered.tail[last].placed.seq,
        None => recovered.flush_seq,
    };
    let why = match (recovered.tail.get(kept), ended_by) {
        (Some(entry), Some(error)) => format!("entry {} is not whole: {error}", entry.placed.seq),
        _ => "the entry that follows it is missing or damaged".to_owned(),
    };
    let (shard, device) = (place.shard, &place.queue.info().name);
    Some(format!(
        "journal of shard {shard} on {device}: {given_up} entries after entry {newest} were not \
         taken: {why}; what they hold was not flushed and is lost, as after a loss of power"
    ))
}

impl Engine {
    /// What was found wrong when the shard was opened, and what was done about it: a line each, for
    /// people.
    #[must_use]
    pub fn recovery_notes(&self) -> &[String] {
        &self.recovery_notes
    }

    /// Makes durable what recovery took, and decides for good what of the tail counts. `unflushed`: whether
    /// there was any entry after the newest flush entry.
    async fn settle_for_good(&self, unflushed: bool) -> Result<()> {
        tracing::debug!(shard = self.shard().0, unflushed, "recovery makes durable what it took");
        if !unflushed {
            // After the end of a process, not of power, what was replayed may still be in a device's
            // cache: from here on it counts as durable.
            mark(Branch::FlushedAgain);
            for member in &self.config.members {
                member.flush().await?;
            }
            return Ok(());
        }
        if planted::is(Bug::NoFlushAfterRecovery) {
            return Ok(());
        }
        if !self.journal.has_room_for_flush() {
            let what = format!("journal of shard {}", self.shard());
            return Err(StoreError::corrupt(what, "has no room for a flush entry"));
        }
        mark(Branch::FlushEntryWritten);
        self.write_entry(true).await
    }

    /// Gives a line for each node that was given up.
    async fn replay(&self, recovered: &Recovered, opening: Opening) -> Result<Vec<String>> {
        let mut overlay = Overlay::new();
        let mut deltas = Vec::new();
        for entry in &recovered.entries {
            let seq = entry.placed.seq;
            for (ordinal, record) in records(&entry.records).enumerate() {
                match record? {
                    Record::Put { tree, level, position, value, .. } => {
                        mark(if level == 0 { Branch::ReplayLeaf } else { Branch::ReplayInterior });
                        let value = Some(Value::from_slice(value));
                        overlay.entry((tree, level)).or_default().insert(position, (seq, value));
                    }
                    Record::Delete { tree, level, position } => {
                        mark(Branch::ReplayDelete);
                        overlay.entry((tree, level)).or_default().insert(position, (seq, None));
                    }
                    Record::Root { .. } | Record::Blacklist { .. } => {}
                    record => deltas.push((seq, ordinal as u32, detach(&record))),
                }
            }
        }
        let mut lost = self.read_roots(recovered, opening).await?;
        self.replay_keys(overlay, opening, &mut lost).await?;
        self.load_tables(&deltas, opening).await?;
        self.load_counters().await?;
        self.load_damage().await?;
        for (seq, ordinal, record) in &deltas {
            self.replay_delta(*seq, *ordinal, record)?;
        }
        self.stamps.replace(Stamps::default());
        self.settle_tables(opening)?;
        Ok(lost)
    }

    /// Takes the roots from the newest entry.
    async fn read_roots(&self, recovered: &Recovered, opening: Opening) -> Result<Vec<String>> {
        let mut lost = Vec::new();
        let salvages = |tree| opening == Opening::Salvage && MENDABLE.contains(&tree);
        let bad = |why: &str| StoreError::corrupt("journal", why);
        let newest = recovered.entries.last().ok_or_else(|| bad("no entry to take roots from"))?;
        let mut roots: Vec<Option<Rc<Node>>> = vec![None; Tree::ALL.len()];
        for record in records(&newest.records) {
            if let Record::Root { tree, level, pointer } = record? {
                let pointer = NodePointer::decode(pointer)?;
                tracing::trace!(shard = self.shard().0, ?tree, level, ?pointer, "root");
                let placed = pointer.location.is_some();
                mark(if placed { Branch::RootRead } else { Branch::RootEmpty });
                let range = (Position::MIN, Position::MAX);
                let root = match self.read_root(tree, level, pointer).await {
                    Ok(root) => Rc::new(root),
                    Err(error) if salvages(tree) && is_loss(&error) => {
                        lost.push(format!("the root of tree {tree:?} is lost: {error}"));
                        self.note_lost_keys(tree, range.0, range.1);
                        let mut nodes = self.stand_in_for(tree, level, pointer.node, range);
                        nodes.pop().ok_or_else(|| bad("no root"))?
                    }
                    Err(error) => return Err(error),
                };
                roots[tree as usize] = Some(root);
            }
        }
        for (tree, root) in Tree::ALL.into_iter().zip(roots) {
            let root = root.ok_or_else(|| bad(&format!("no root of tree {tree:?}")))?;
            self.cache.insert(&root);
            self.cache.roots.borrow_mut().push(root);
        }
        Ok(lost)
    }

    async fn replay_keys(
        &self,
        mut overlay: Overlay,
        opening: Opening,
        lost: &mut Vec<String>,
    ) -> Result<()> {
        for tree in Tree::ALL {
            let top = self.cache.root(tree).level;
            for level in (0..=top).rev() {
                if opening == Opening::Salvage && MENDABLE.contains(&tree) {
                    lost.extend(self.stand_in_level(tree, level, false).await?);
                }
                for (position, (seq, value)) in overlay.remove(&(tree, level)).unwrap_or_default() {
                    let node = self.node_for(tree, level, position).await?;
                    // What was written out before the end is not dirty again.
                    if node.body.borrow().keys.get(&position) != value.as_ref() {
                        self.change_node(&node, position, value);
                        self.replay_dirty(&node, seq);
                    }
                    self.replayed_keys.set(self.replayed_keys.get() + 1);
                }
            }
        }
        match overlay.keys().next() {
            None => Ok(()),
            Some((tree, level)) => Err(StoreError::corrupt(
                "journal",
                format!("keys of tree {tree:?} at level {level}, above its root"),
            )),
        }
    }

    /// A replayed key pins the entry it came from, not the one being filled.
    fn replay_dirty(&self, node: &Node, seq: u64) {
        let older = {
            let mut body = node.body.borrow_mut();
            match body.dirty_seq {
                Some(known) if known <= seq => return,
                older => {
                    body.dirty_seq = Some(seq);
                    older
                }
            }
        };
        if let Some(older) = older {
            self.journal.unpin(older, Holder::Node(node.id));
        }
        self.journal.pin(seq, Holder::Node(node.id));
        self.cache.account(node);
    }

    fn replay_delta(&self, seq: u64, ordinal: u32, record: &Record<'_>) -> Result<()> {
        let at = (seq, ordinal);
        match *record {
            Record::BucketOpen { .. } | Record::BucketLive { .. } | Record::BucketSlot { .. } => {
                let Some(id) = self.bucket_of_delta(record)? else { return Ok(()) };
                let mut tables = self.space.tables.borrow_mut();
                let region = tables.region_of(id);
                // One that is not loaded lies past the end of its member, which was shrunk.
                if tables.is_loaded(region) {
                    // The tally may be older than the bucket's checkpoint: it still needs this entry.
                    self.dirty_region(&mut tables, region, seq);
                }
                drop(tables);
                if self.stamps.borrow().buckets.get(&id).is_some_and(|stamp| at < *stamp) {
                    mark(Branch::DeltaOfBucketStamped);
                    return Ok(());
                }
                mark(Branch::DeltaOfBucket);
                self.space.check_pointer(id.0, self.space.first_block(id), 1)?;
                self.replay_bucket(id, seq, record)
            }
            Record::CounterAdd { counter, .. } | Record::CounterAtLeast { counter, .. } => {
                let counter = Counter(counter);
                if self.stamps.borrow().counters.get(&counter).is_none_or(|stamp| at >= *stamp) {
                    mark(Branch::DeltaOfCounter);
                    self.change_counter(counter, record, seq);
                } else {
                    mark(Branch::DeltaOfCounterStamped);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn replay_bucket(&self, id: (u8, u32), seq: u64, record: &Record<'_>) -> Result<()> {
        let mut tables = self.space.tables.borrow_mut();
        if matches!(record, Record::BucketOpen { .. }) {
            tables.written_blocks += u64::from(self.space.data_blocks());
        }
        let filled_at = tables.written_blocks;
        let state = tables.bucket(id);
        match *record {
            Record::BucketOpen { generation, kind, .. } => {
                let dirty_seq = state.dirty_seq;
                *state = Bucket::new(BucketKind::from_disk(kind)?, generation);
                state.dirty_seq = dirty_seq;
                state.filled_at = filled_at;
            }
            Record::BucketLive { delta, .. } => {
                state.live_blocks = state.live_blocks.wrapping_add_signed(delta);
            }
            Record::BucketSlot { slot, used, .. } => {
                let mask = 1_u64.checked_shl(u32::from(slot)).unwrap_or(0);
                if used { state.slots |= mask } else { state.slots &= !mask }
            }
            _ => {}
        }
        self.dirty_bucket(&mut tables, id, seq);
        Ok(())
    }

    /// Loads what the deltas need: the tallies of all regions, and the tables of those in which a delta
    /// names a bucket. A repair wants all tables, and believes no tally.
    async fn load_tables(
        &self,
        deltas: &[(u64, u32, Record<'static>)],
        opening: Opening,
    ) -> Result<()> {
        self.load_tallies().await?;
        let mut regions = BTreeSet::new();
        for (_, _, record) in deltas {
            if let Some(id) = self.bucket_of_delta(record)? {
                regions.insert(self.space.tables.borrow().region_of(id));
            }
        }
        if opening == Opening::Salvage {
            regions.extend(self.regions_with_checkpoints().await?);
            regions.extend(self.space.tables.borrow().known_regions());
        }
        for region in regions {
            self.load_for_replay(region).await?;
        }
        Ok(())
    }

    /// The bucket that a delta names, if it is one of a bucket.
    fn bucket_of_delta(&self, record: &Record<'_>) -> Result<Option<(u8, u32)>> {
        let (Record::BucketOpen { member, bucket, .. }
        | Record::BucketLive { member, bucket, .. }
        | Record::BucketSlot { member, bucket, .. }) = *record
        else {
            return Ok(None);
        };
        if usize::from(member) >= self.superblock().members.len() {
            return Err(StoreError::corrupt("journal", "a member that is not known"));
        }
        Ok(Some((member, bucket)))
    }

    /// Derives what follows from the states of the buckets, and checks them.
    fn settle_tables(&self, opening: Opening) -> Result<()> {
        let mut tables = self.space.tables.borrow_mut();
        let loaded = tables.loaded_regions();
        if opening == Opening::Salvage {
            // The repair counts what is right.
            let (most, all) = (self.space.live_blocks_max(), self.space.all_slots());
            for state in tables.buckets.values_mut() {
                state.live_blocks = state.live_blocks.min(most);
                state.slots &= all;
                if state.kind == BucketKind::Free {
                    (state.live_blocks, state.slots) = (0, 0);
                }
            }
            let seq = self.journal.seq();
            for region in &loaded {
                self.dirty_region(&mut tables, *region, seq);
            }
            tables.keep_all_for_good();
        }
        for region in loaded {
            let settled = tables.settle_region(&self.space, region);
            if settled.is_err() {
                mark(Branch::BucketsContradict);
            }
            settled?;
        }
        tables.count_all();
        Ok(())
    }
}

/// A record of a delta, free of the entry's bytes.
pub(crate) fn detach(record: &Record<'_>) -> Record<'static> {
    match *record {
        Record::BucketOpen { member, bucket, generation, kind } => {
            Record::BucketOpen { member, bucket, generation, kind }
        }
        Record::BucketLive { member, bucket, delta } => {
            Record::BucketLive { member, bucket, delta }
        }
        Record::BucketSlot { member, bucket, slot, used } => {
            Record::BucketSlot { member, bucket, slot, used }
        }
        Record::CounterAdd { counter, delta } => Record::CounterAdd { counter, delta },
        Record::CounterAtLeast { counter, least } => Record::CounterAtLeast { counter, least },
        Record::Put { .. }
        | Record::Delete { .. }
        | Record::Root { .. }
        | Record::Blacklist { .. } => unreachable!("keys and roots are not deltas"),
    }
}
