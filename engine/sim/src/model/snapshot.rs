//! Model of a snapshot of a volume: what its blocks may hold until they are seen, and do hold from then on.
//!
//! A snapshot is of one instant between its start and its answer. So of each block it holds a write that began before
//! the answer, and that no write came after which had ended before the start; and all of its blocks together are of
//! one instant: when one holds a write, then no other holds what was replaced before that write began.

use std::collections::BTreeMap;

use super::volume::{Broken, Copied, History, Shown, VolumeModel, version_of};
use crate::stamp::Found;

/// Model of one snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotModel {
    /// Tag in the stamps of its blocks: that of the volume.
    pub tag: u64,
    /// Size in blocks.
    pub size_blocks: u64,
    /// When it was begun.
    started: u64,
    /// What each block may hold; one that is not here holds zeroes.
    blocks: BTreeMap<u64, History>,
    /// What was copied to the volume from elsewhere.
    copied: Copied,
    /// What was seen of it.
    seen: BTreeMap<u64, u64>,
    /// Begins of the writes that were seen: it is of an instant after the last of them.
    not_before: u64,
}

impl SnapshotModel {
    /// A snapshot of `volume`, as that may be now, at the answer.
    #[must_use]
    pub fn new(volume: &VolumeModel, started: u64) -> Self {
        Self {
            tag: volume.tag,
            size_blocks: volume.size_blocks,
            started,
            blocks: volume.histories(),
            copied: volume.copied().clone(),
            seen: BTreeMap::new(),
            not_before: started,
        }
    }

    /// Blocks that may hold something.
    pub fn touched(&self) -> impl Iterator<Item = u64> {
        self.blocks.keys().copied().filter(|block| *block < self.size_blocks)
    }

    /// Checks what was read of some blocks, and remembers it.
    ///
    /// # Errors
    /// The first block that holds what it may not.
    pub fn check(&mut self, found: &BTreeMap<u64, Found>) -> Result<(), Broken> {
        for (&block, &found) in found {
            let version = version_of(&self.copied, found)
                .map_err(|other| self.message(block, &format!("holds {other:?}")))?;
            if let Some(known) = self.seen.get(&block) {
                if *known != version {
                    let why = format!("holds version {version}, and was {known} before");
                    return Err(self.message(block, &why));
                }
                continue;
            }
            match Shown::of(self.blocks.get(&block), version, self.started) {
                Some(shown) => self.not_before = self.not_before.max(shown.began),
                None => return Err(self.message(block, &format!("holds version {version}"))),
            }
            self.seen.insert(block, version);
        }
        // Again, now that more is known of the instant.
        for (&block, &version) in &self.seen {
            if Shown::of(self.blocks.get(&block), version, self.not_before).is_none() {
                let why = format!("holds version {version}, of an instant before that of others");
                return Err(self.message(block, &why));
            }
        }
        Ok(())
    }

    /// What a block holds, if that is known.
    #[must_use]
    pub fn known(&self, block: u64) -> Option<u64> {
        match self.blocks.contains_key(&block) {
            true => self.seen.get(&block).copied(),
            false => Some(0),
        }
    }

    fn message(&self, block: u64, why: &str) -> Broken {
        format!(
            "snapshot of volume {} at {} to {}: block {block} {why}; it may be {:?}",
            self.tag,
            self.started,
            self.not_before,
            self.blocks.get(&block)
        )
    }
}

#[cfg(test)]
mod tests {
    use engine_base::InodeNumber;

    use super::*;
    use crate::model::Promises;
    use crate::model::volume::Ending;

    fn write(promises: &mut Promises, model: &mut VolumeModel, block: u64) -> u64 {
        let ticket = model.start_write(promises, block, 1, false);
        model.end_write(promises, ticket, Ending::Done, false);
        ticket.version
    }

    fn found(blocks: &[(u64, u64)]) -> BTreeMap<u64, Found> {
        let found = |version| if version == 0 { Found::Zeroes } else { Found::Version(version) };
        blocks.iter().map(|(block, version)| (*block, found(*version))).collect()
    }

    #[test]
    fn a_snapshot_is_of_one_instant_and_stays_so() {
        let mut promises = Promises::new(1);
        let mut volume = VolumeModel::new(1, InodeNumber(2), 4096, 1);
        let old = write(&mut promises, &mut volume, 5);
        let started = promises.start();
        let first = write(&mut promises, &mut volume, 5);
        let second = write(&mut promises, &mut volume, 6);
        promises.end(started);
        let model = || SnapshotModel::new(&volume, started);
        for good in [[(5, old), (6, 0)], [(5, first), (6, 0)], [(5, first), (6, second)]] {
            assert_eq!(model().check(&found(&good)), Ok(()));
        }
        let torn = model().check(&found(&[(5, old), (6, second)]));
        assert!(torn.is_err(), "the second write came after the first");
        assert!(model().check(&found(&[(5, 0)])).is_err(), "older than the snapshot");
        let mut seen = model();
        assert_eq!(seen.check(&found(&[(5, old)])), Ok(()));
        assert!(seen.check(&found(&[(5, first)])).is_err(), "it changed");
        assert_eq!((seen.known(5), seen.known(6), seen.known(7)), (Some(old), None, Some(0)));
        assert!(seen.check(&found(&[(6, second)])).is_err(), "not the instant of the other");
    }
}
