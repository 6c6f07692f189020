//! A bounded memory of inodes, oldest first.

use std::collections::BTreeMap;

/// Inodes with something known about each, in the order in which they came.
pub(super) struct Recent<V> {
    items: BTreeMap<u64, (u64, V)>,
    order: BTreeMap<u64, u64>,
    next: u64,
    max: usize,
}

impl<V> Recent<V> {
    pub(super) fn new(max: usize) -> Self {
        Self { items: BTreeMap::new(), order: BTreeMap::new(), next: 0, max: max.max(1) }
    }

    pub(super) fn get_mut(&mut self, inode: u64) -> Option<&mut V> {
        self.items.get_mut(&inode).map(|(_, value)| value)
    }

    pub(super) fn contains(&self, inode: u64) -> bool {
        self.items.contains_key(&inode)
    }

    /// The oldest inode, if one more would be too many.
    pub(super) fn overflow(&self) -> Option<u64> {
        if self.items.len() < self.max {
            return None;
        }
        self.order.first_key_value().map(|(_, inode)| *inode)
    }

    pub(super) fn insert(&mut self, inode: u64, value: V) {
        self.remove(inode);
        self.items.insert(inode, (self.next, value));
        self.order.insert(self.next, inode);
        self.next += 1;
    }

    pub(super) fn remove(&mut self, inode: u64) -> Option<V> {
        let (number, value) = self.items.remove(&inode)?;
        self.order.remove(&number);
        Some(value)
    }
}
