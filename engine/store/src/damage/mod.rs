//! The damage list of a shard: what was read and found to be lost.
//!
//! Kept in a tree of its own, so that it survives a restart without a scrub of everything, and whoever
//! finds damage once has told it for good. Bounded: past [`DAMAGE_MAX`] entries more are only counted.
//! An entry of data remembers the place that was bad. When the extent no longer points there (it was
//! written again, or removed) the entry is dropped as it is listed: so writes need to know nothing of
//! the list. Entries of lost keys stay until they are cleared.

mod client;
mod format;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use engine_base::{BLOCK_SIZE, InodeNumber, SnapshotId};

use crate::data::{BlockRange, lookup};
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::extent::Pointer;
use crate::journal::Class;
use crate::key::{Position, Tree};
use crate::sync::Notify;

pub use client::DamageLine;
pub(crate) use format::{Damage, Lost};

/// Entries of one shard's list. A device that loses more is to be replaced, not listed.
pub const DAMAGE_MAX: usize = 4096;
/// Entries that are saved or dropped by one transaction.
const BATCH: usize = 128;
/// Pause after a list could not be saved.
const PAUSE_NS: u64 = 1_000_000_000;

/// What is lost, as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamageEntry {
    /// Inode whose data or keys are concerned; the first, of keys.
    pub inode: InodeNumber,
    /// Version of it.
    pub snapshot: SnapshotId,
    /// First byte of lost data; 0 for keys.
    pub offset: u64,
    /// Bytes of lost data; 0 for keys.
    pub len: u64,
    /// When it was first found, nanoseconds since the epoch.
    pub found_ns: u64,
    /// What it is, for people: the device's place, or the range of keys.
    pub what: String,
}

/// The list in memory.
#[derive(Default)]
pub(crate) struct DamageList {
    entries: RefCell<BTreeMap<Position, Damage>>,
    unsaved: RefCell<BTreeSet<Position>>,
    /// Entries that had no place.
    pub(crate) more: Cell<u64>,
    pub(crate) noted: Notify,
}

impl Engine {
    /// Puts a block whose data is lost on the list; `bad` is its place.
    pub(crate) fn note_lost_block(&self, range: &BlockRange, block: u64, bad: Pointer) {
        let position = Position::new(range.inode.0, block, range.snapshot.0);
        self.note_damage(position, Lost::Block(bad));
    }

    /// Puts keys of `tree` that are lost on the list.
    pub(crate) fn note_lost_keys(&self, tree: Tree, from: Position, to: Position) {
        if tree == Tree::Tallies {
            // Nobody misses them: a repair counts them anew.
            return;
        }
        self.note_damage(format::keys_position(tree, from), Lost::Keys { tree, from, to });
    }

    fn note_damage(&self, position: Position, lost: Lost) {
        let mut entries = self.damage.entries.borrow_mut();
        if entries.get(&position).is_some_and(|known| known.lost == lost) {
            return;
        }
        if entries.len() >= DAMAGE_MAX && !entries.contains_key(&position) {
            self.damage.more.set(self.damage.more.get() + 1);
            return;
        }
        let found_ns = self.runtime().wall_clock_ns();
        tracing::debug!(shard = self.shard().0, ?position, ?lost, "damage found");
        entries.insert(position, Damage { lost, found_ns });
        self.damage.unsaved.borrow_mut().insert(position);
        self.damage.noted.notify_all();
    }

    /// Takes the list from its tree. One that cannot be read is begun anew: the damage is found again.
    pub(crate) async fn load_damage(&self) -> Result<()> {
        let mut from = Position::MIN;
        loop {
            let found = match self.read().next(Tree::Damage, from, Position::MAX).await {
                Ok(found) => found,
                Err(StoreError::Corrupt { .. } | StoreError::Device(_)) => return Ok(()),
                Err(error) => return Err(error),
            };
            let Some((position, value)) = found else { return Ok(()) };
            let mut entries = self.damage.entries.borrow_mut();
            if let Ok(damage) = Damage::decode(&value)
                && entries.len() < DAMAGE_MAX
            {
                entries.insert(position, damage);
            }
            from = position.successor();
        }
    }

    /// Writes what is new on the list into its tree.
    pub(crate) async fn save_damage(&self) -> Result<()> {
        loop {
            let batch: Vec<(Position, Damage)> = {
                let entries = self.damage.entries.borrow();
                let unsaved = self.damage.unsaved.borrow();
                let known = unsaved.iter().filter_map(|at| Some((*at, entries.get(at)?.clone())));
                known.take(BATCH).collect()
            };
            if batch.is_empty() {
                self.damage.unsaved.borrow_mut().clear();
                return Ok(());
            }
            self.transact_as(Class::Reclaim, async |transaction| {
                for (position, damage) in &batch {
                    transaction.put(Tree::Damage, *position, damage.encode());
                }
                Ok(())
            })
            .await?;
            let mut unsaved = self.damage.unsaved.borrow_mut();
            for (position, _) in &batch {
                unsaved.remove(position);
            }
        }
    }

    /// Saves the list as it grows.
    pub(crate) async fn damage_loop(self: Rc<Self>) {
        loop {
            let noted = self.damage.noted.notified();
            if self.stopped().is_some() {
                return;
            }
            if self.damage.unsaved.borrow().is_empty() {
                noted.await;
                continue;
            }
            if self.save_damage().await.is_err() {
                self.runtime().sleep(PAUSE_NS).await;
            }
        }
    }

    /// The list, `limit` entries after dropping those whose place is no longer named.
    ///
    /// # Errors
    /// When the index cannot be read or written.
    pub async fn damage(&self, limit: usize) -> Result<Vec<DamageEntry>> {
        let all: Vec<(Position, Damage)> =
            self.damage.entries.borrow().iter().map(|(at, it)| (*at, it.clone())).collect();
        let (mut gone, mut list) = (Vec::new(), Vec::<DamageEntry>::new());
        for (position, damage) in all {
            if !self.is_current(position, &damage).await? {
                gone.push(position);
                continue;
            }
            let entry = self.entry(position, &damage);
            let full = list.len() >= limit;
            match list.last_mut() {
                // Blocks side by side are one line.
                Some(last)
                    if last.len > 0
                        && (last.inode, last.snapshot) == (entry.inode, entry.snapshot)
                        && last.offset + last.len == entry.offset =>
                {
                    last.len += entry.len;
                }
                _ if !full => list.push(entry),
                _ => {}
            }
        }
        self.drop_damage(&gone).await?;
        Ok(list)
    }

    fn entry(&self, position: Position, damage: &Damage) -> DamageEntry {
        let snapshot = SnapshotId(position.snapshot);
        let (offset, len, what) = match &damage.lost {
            Lost::Block(pointer) => {
                let device = self.member(pointer.member).map_or_else(
                    |_| format!("member {}", pointer.member),
                    |queue| queue.info().name.clone(),
                );
                let byte = pointer.block.saturating_mul(BLOCK_SIZE);
                let offset = position.offset.saturating_mul(BLOCK_SIZE);
                (offset, BLOCK_SIZE, format!("data at byte {byte} of {device}"))
            }
            Lost::Keys { tree, from, to } => {
                (0, 0, format!("keys of tree {tree:?} from {from:?} to {to:?}"))
            }
        };
        let inode = InodeNumber(position.inode);
        DamageEntry { inode, snapshot, offset, len, found_ns: damage.found_ns, what }
    }

    /// Whether what is on the list is still what the index names.
    async fn is_current(&self, position: Position, damage: &Damage) -> Result<bool> {
        let Lost::Block(bad) = &damage.lost else { return Ok(true) };
        let (inode, snapshot) = (InodeNumber(position.inode), SnapshotId(position.snapshot));
        let to = position.offset.saturating_add(1);
        let range = BlockRange { inode, snapshot, from: position.offset, to };
        match lookup(self, &range).await {
            Ok(spans) => {
                Ok(spans.first().is_some_and(|span| span.at(position.offset).pointer == *bad))
            }
            // What cannot be told stays.
            Err(StoreError::Corrupt { .. } | StoreError::Device(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Takes entries off the list: those of an inode, or all. Gives how many.
    ///
    /// # Errors
    /// When the index cannot be written.
    pub async fn clear_damage(&self, inode: Option<InodeNumber>) -> Result<u64> {
        let meant: Vec<Position> = {
            let entries = self.damage.entries.borrow();
            let keys = entries.keys();
            keys.filter(|at| inode.is_none_or(|inode| inode.0 == at.inode)).copied().collect()
        };
        self.drop_damage(&meant).await?;
        Ok(meant.len() as u64)
    }

    async fn drop_damage(&self, positions: &[Position]) -> Result<()> {
        for batch in positions.chunks(BATCH) {
            self.transact_as(Class::Reclaim, async |transaction| {
                for position in batch {
                    transaction.delete(Tree::Damage, *position);
                }
                Ok(())
            })
            .await?;
            for position in batch {
                self.damage.entries.borrow_mut().remove(position);
                self.damage.unsaved.borrow_mut().remove(position);
            }
        }
        Ok(())
    }
}
