//! Hash maps whose order does not depend on the process, so that a seed reproduces a run.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// A hash map with a fixed hasher. For keys that no client chooses (ids, positions): it is fast and
/// reproducible, but not proof against chosen collisions. Use `BTreeMap` for keys from outside.
pub type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<MixHasher>>;
/// The set that goes with [`FastMap`].
pub type FastSet<K> = HashSet<K, BuildHasherDefault<MixHasher>>;

/// Multiply-and-fold hasher over 64-bit words.
#[derive(Default, Clone, Copy)]
pub struct MixHasher {
    state: u64,
}

impl MixHasher {
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.state ^ word ^ 0x9e37_79b9_7f4a_7c15)
            * u128::from(0xd6e8_feb8_6659_fd93_u64);
        self.state = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for MixHasher {
    fn finish(&self) -> u64 {
        self.state
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
        self.mix(bytes.len() as u64);
    }

    fn write_u8(&mut self, value: u8) {
        self.mix(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.mix(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.mix(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.mix(value as u64);
    }
}
