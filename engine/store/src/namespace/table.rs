//! Names hashed into the offsets of a tree: directory entries and extended attributes.
//!
//! A name's place is a keyed 63-bit hash; a place that is taken leads to the next one. So all names of
//! one hash follow each other without a gap: an entry that is removed from within such a chain
//! leaves a whiteout. An entry never moves, so its place is also the cookie of a listing.
//!
//! A place holds what the nearest version has there ([`crate::version`]): what is removed while an older version has
//! something at its place leaves a whiteout, too. So a whiteout may also be the end of a chain.

use std::hash::Hasher;

use engine_base::{InodeNumber, SnapshotId};
use siphasher::sip::SipHasher13;

use super::format::{Hashed, Slot};
use crate::error::{Result, StoreError};
use crate::key::{Position, Tree, Value};
use crate::planted::{self, Bug};
use crate::transaction::Transaction;

/// Places below are not used: cookie 0 is the start of a listing.
const PLACE_MIN: u64 = 16;
/// Places fit 63 bits (off_t), with room for chains.
const PLACE_MAX: u64 = (1 << 63) - 1 - PROBES_MAX;
/// Longest chain. With a keyed hash of 63 bits more than two in a row are a wonder.
const PROBES_MAX: u64 = 1024;

/// A table: the names of one inode in one tree.
#[derive(Clone, Copy)]
pub(crate) struct NameTable {
    pub(crate) tree: Tree,
    pub(crate) inode: InodeNumber,
    pub(crate) snapshot: SnapshotId,
    pub(crate) hash_key: u64,
}

/// What a search came to.
pub(crate) struct Found<T> {
    /// Where the name is, or could be put.
    pub(crate) place: u64,
    /// What is there.
    pub(crate) entry: Option<T>,
}

#[cfg(test)]
thread_local! {
    /// Tests make collisions: places of this thread are below this.
    pub(crate) static PLACES: std::cell::Cell<u64> = const { std::cell::Cell::new(u64::MAX) };
}

/// The first place of `name`.
pub(crate) fn home_place(hash_key: u64, name: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(hash_key, 0);
    hasher.write(name);
    let hash = hasher.finish() >> 1;
    #[cfg(test)]
    let hash = hash % PLACES.get();
    hash.clamp(PLACE_MIN, PLACE_MAX)
}

impl NameTable {
    pub(crate) fn position(&self, place: u64) -> Position {
        Position::new(self.inode.0, place, self.snapshot.0)
    }

    async fn slot<T: Hashed>(
        &self,
        transaction: &mut Transaction<'_>,
        place: u64,
    ) -> Result<Option<Slot<T>>> {
        let value = transaction.seen(self.tree, self.position(place)).await?;
        value.map(|value| T::decode(&value)).transpose()
    }

    /// Whether an older version has something at the place.
    async fn is_taken_above(&self, transaction: &mut Transaction<'_>, place: u64) -> Result<bool> {
        let above = transaction.seen_above(self.tree, self.position(place)).await?;
        Ok(above.is_some() && !planted::is(Bug::WhiteoutForgotten))
    }

    /// Searches for `name`.
    pub(crate) async fn find<T: Hashed>(
        &self,
        transaction: &mut Transaction<'_>,
        name: &[u8],
    ) -> Result<Found<T>> {
        let first = home_place(self.hash_key, name);
        let mut free = None;
        for place in first..first + PROBES_MAX {
            match self.slot::<T>(transaction, place).await? {
                None => return Ok(Found { place: free.unwrap_or(place), entry: None }),
                Some(Slot::Whiteout) => free = free.or(Some(place)),
                Some(Slot::Entry(entry)) if entry.name() == name => {
                    return Ok(Found { place, entry: Some(entry) });
                }
                Some(Slot::Entry(_)) => {}
            }
        }
        match free {
            Some(place) => Ok(Found { place, entry: None }),
            None => Err(StoreError::Overloaded {
                what: format!("inode {}: {PROBES_MAX} names of one hash", self.inode),
            }),
        }
    }

    /// Puts `entry` where [`NameTable::find`] said.
    pub(crate) fn put<T: Hashed>(&self, transaction: &mut Transaction<'_>, place: u64, entry: &T) {
        transaction.put_layered(self.tree, self.position(place), entry.encode());
    }

    /// Removes what is at `place`: leaves a whiteout if the chain goes on or an older version has something there, else
    /// also takes away the whiteouts before it that are of no use then.
    pub(crate) async fn remove<T: Hashed>(
        &self,
        transaction: &mut Transaction<'_>,
        place: u64,
    ) -> Result<()> {
        if self.slot::<T>(transaction, place + 1).await?.is_some()
            || self.is_taken_above(transaction, place).await?
        {
            transaction.put_layered(self.tree, self.position(place), T::whiteout());
            return Ok(());
        }
        transaction.delete_layered(self.tree, self.position(place));
        let mut before = place - 1;
        while let Some(Slot::Whiteout) = self.slot::<T>(transaction, before).await? {
            if self.is_taken_above(transaction, before).await? {
                break;
            }
            transaction.delete_layered(self.tree, self.position(before));
            before -= 1;
        }
        Ok(())
    }

    /// The first entry after `place`, and its place.
    pub(crate) async fn next<T: Hashed>(
        &self,
        transaction: &mut Transaction<'_>,
        place: u64,
    ) -> Result<Option<(u64, T)>> {
        let view = transaction.engine().versions.view(self.snapshot);
        let is_seen = |position: Position| match &view {
            Some(view) => view.rank(position.snapshot).is_some(),
            None => position.snapshot == self.snapshot.0,
        };
        let keep = |position: Position, value: &Value| is_seen(position).then(|| value.clone());
        let mut from = Position::new(self.inode.0, place.saturating_add(1), 0);
        let to = Position::new(self.inode.0, u64::MAX, u32::MAX);
        while let Some((position, value)) = transaction.next_as(self.tree, from, to, keep).await? {
            let Some(value) = value else {
                from = position.successor();
                continue;
            };
            // The nearest at its place: those after it there are hidden.
            if let Slot::Entry(entry) = T::decode(&value)? {
                return Ok(Some((position.offset, entry)));
            }
            from = Position { snapshot: u32::MAX, ..position }.successor();
        }
        Ok(None)
    }
}
