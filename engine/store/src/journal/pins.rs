//! Who still needs which journal entry.

use std::collections::BTreeSet;

use crate::planted::{self, Bug};

/// Something in memory that is newer than its image on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Holder {
    /// A node with unwritten changes.
    Node(u64),
    /// A node whose changes are on their way to the device.
    NodeWriting(u64),
    /// A bucket whose state is newer than its checkpoint: (member, bucket).
    Bucket(u8, u32),
    /// A counter newer than its checkpoint.
    Counter(u64),
    /// The tally of a region newer than its checkpoint: (member, region).
    Region(u8, u32),
}

/// The pins of a journal: each holder pins one entry, the oldest it needs.
#[derive(Default)]
pub(crate) struct Pins {
    by_age: BTreeSet<(u64, Holder)>,
}

impl Pins {
    pub(crate) fn add(&mut self, seq: u64, holder: Holder) {
        self.by_age.insert((seq, holder));
    }

    pub(crate) fn remove(&mut self, seq: u64, holder: Holder) {
        let was = self.by_age.remove(&(seq, holder));
        assert!(was, "a pin is removed that was never set: {holder:?} at {seq}");
    }

    /// The oldest entry that is pinned.
    pub(crate) fn oldest(&self) -> Option<u64> {
        let writing = |holder: &Holder| matches!(holder, Holder::NodeWriting(_));
        let early = planted::is(Bug::PinDroppedEarly);
        self.by_age.iter().find(|(_, holder)| !early || !writing(holder)).map(|(seq, _)| *seq)
    }

    /// Up to `most` holders that pin entries older than `before`, oldest first.
    pub(crate) fn holders_before(&self, before: u64, most: usize) -> Vec<Holder> {
        self.by_age
            .iter()
            .take_while(|(seq, _)| *seq < before)
            .take(most)
            .map(|(_, holder)| *holder)
            .collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_age.len()
    }
}
