//! A bounded memory of files, oldest first.

use std::collections::BTreeMap;

use super::FileKey;

/// Files with something known about each, in the order in which they came.
pub(super) struct Recent<V> {
    items: BTreeMap<FileKey, (u64, V)>,
    order: BTreeMap<u64, FileKey>,
    next: u64,
    max: usize,
}

impl<V> Recent<V> {
    pub(super) fn new(max: usize) -> Self {
        Self { items: BTreeMap::new(), order: BTreeMap::new(), next: 0, max: max.max(1) }
    }

    pub(super) fn get_mut(&mut self, file: FileKey) -> Option<&mut V> {
        self.items.get_mut(&file).map(|(_, value)| value)
    }

    pub(super) fn get(&self, file: FileKey) -> Option<&V> {
        self.items.get(&file).map(|(_, value)| value)
    }

    pub(super) fn contains(&self, file: FileKey) -> bool {
        self.items.contains_key(&file)
    }

    /// The oldest file, if one more would be too many.
    pub(super) fn overflow(&self) -> Option<FileKey> {
        if self.items.len() < self.max {
            return None;
        }
        self.order.first_key_value().map(|(_, file)| *file)
    }

    pub(super) fn insert(&mut self, file: FileKey, value: V) {
        self.remove(file);
        self.items.insert(file, (self.next, value));
        self.order.insert(self.next, file);
        self.next += 1;
    }

    pub(super) fn remove(&mut self, file: FileKey) -> Option<V> {
        let (number, value) = self.items.remove(&file)?;
        self.order.remove(&number);
        Some(value)
    }
}
