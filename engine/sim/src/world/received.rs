//! Snapshots that are received from streams, of volumes and of trees.

use engine_store::api::{SubvolumeInfo, TreeRef};
use engine_store::client::VolumeRef;

use super::{NameState, SnapshotSlot, TreeSnapshotSlot, World};

impl World {
    /// Something that is received of a volume or a tree, not whole yet, and that no client is at.
    #[must_use]
    pub fn half_of(&self, source: &str) -> Option<String> {
        let of_volume = self.snapshots.iter().map(|(name, s)| (name, &s.volume, s.half && !s.busy));
        let of_tree =
            self.tree_snapshots.iter().map(|(name, s)| (name, &s.tree, s.half && !s.busy));
        let mut half =
            of_volume.chain(of_tree).filter(|(_, of, is_half)| *is_half && *of == source);
        half.next().map(|(name, ..)| name.clone())
    }

    /// Of what is received: whether it is not whole yet, and whether a client is at it.
    #[must_use]
    pub fn received(&self, name: &str) -> Option<(bool, bool)> {
        let of_volume = self.snapshots.get(name).map(|slot| (slot.half, slot.busy));
        of_volume.or_else(|| self.tree_snapshots.get(name).map(|slot| (slot.half, slot.busy)))
    }

    /// A client is at a snapshot, or has left it.
    pub fn set_busy(&mut self, name: &str, busy: bool) {
        if let Some(slot) = self.snapshots.get_mut(name) {
            slot.busy = busy;
        }
        if let Some(slot) = self.tree_snapshots.get_mut(name) {
            slot.busy = busy;
        }
    }

    /// A snapshot is not there any more.
    pub fn forget_snapshot(&mut self, name: &str) {
        self.snapshots.remove(name);
        self.tree_snapshots.remove(name);
    }

    /// Snapshots of a volume or a tree that were made here, and of which all can be known.
    #[must_use]
    pub fn sources_of(&self, source: &str) -> Vec<String> {
        let of_volume = self.snapshots.iter().filter(|(_, slot)| {
            slot.volume == source && slot.is_free() && !slot.received && !slot.unknown
        });
        let of_tree = self.tree_snapshots.iter().filter(|(_, slot)| {
            slot.tree == source && slot.is_free() && !slot.received && !slot.writable
        });
        of_volume.map(|(name, _)| name).chain(of_tree.map(|(name, _)| name)).cloned().collect()
    }

    /// Something begins to be received that must be what a snapshot is, of which all is known; `false`: nothing does.
    pub fn begin_received(&mut self, name: &str, source: &str) -> bool {
        if self.received(name).is_some() {
            // Another client was faster.
            return false;
        }
        if let Some(slot) = self.snapshots.get(source)
            && let Some(model) = slot.model.clone()
        {
            let begun = SnapshotSlot::begun(&slot.volume, self.promises.now());
            let slot = SnapshotSlot { model: Some(model), received: true, half: true, ..begun };
            self.snapshots.insert(name.to_owned(), slot);
            return true;
        }
        if let Some(slot) = self.tree_snapshots.get(source)
            && let Some(copy) = slot.copy.as_ref().and_then(|copy| copy.elsewhere())
        {
            let begun = TreeSnapshotSlot::in_doubt(&slot.tree, Some(copy), false);
            let slot = TreeSnapshotSlot { received: true, half: true, ..begun };
            self.tree_snapshots.insert(name.to_owned(), slot);
            return true;
        }
        false
    }

    /// All of it is there.
    pub fn end_received(&mut self, name: &str, info: &SubvolumeInfo) {
        if let Some(slot) = self.snapshots.get_mut(name) {
            (slot.state, slot.half) = (NameState::Present, false);
            slot.reference = Some(VolumeRef::from(info));
        }
        if let Some(slot) = self.tree_snapshots.get_mut(name) {
            (slot.state, slot.half) = (NameState::Present, false);
            slot.reference = Some(TreeRef::from(info));
        }
    }
}
