//! Other strings in place of what users wrote.
//!
//! Every value is decoded and encoded anew, so nothing gets into an image that its decoder does not know.
//! A string keeps its length and becomes letters, the same for the same string. They come from a hash
//! whose key is made for one image and kept nowhere: who has the image cannot check a guess.

use engine_base::SnapshotId;
use siphasher::sip128::{Hasher128 as _, SipHasher24};
use std::collections::BTreeMap;
use std::hash::Hasher as _;

use crate::api::VersionNode;
use crate::damage::Damage;
use crate::error::Result;
use crate::extent::Extent;
use crate::journal::Record;
use crate::key::{Position, Tree, Value};
use crate::logged::Intent;
use crate::namespace::{Entry, Hashed, Inode, Slot, Xattr};
use crate::space::format::{BucketCheckpoint, Tally, decode_counter, encode_counter};
use crate::subvolume::format::{
    COLLECTION_BYTES_MAX, PoolName, Root, decode_subvolume, encode_subvolume,
};
use crate::superblock::Superblock;
use crate::{btree::NodePointer, btree::format::Location, error::StoreError};

const LETTERS: &[u8; 52] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Letters of one hash of 64 bits: 52^10 is less than 2^58.
const LETTERS_OF_A_HASH: usize = 10;
/// What stands for each byte of a value that is not understood: no value of these decodes.
const UNKNOWN: u8 = 0xff;

/// A bset as a pointer names it: member, first block of its node, blocks up to its end, checksum.
type NamedBset = (u8, u64, u16, u32);

/// Scrubs what goes into one image.
pub(crate) struct Scrub {
    key: [u64; 2],
    /// Values that were not understood and left out.
    pub(super) unknown_values: u64,
    /// Checksums that bsets have in the image.
    checksums: BTreeMap<NamedBset, u32>,
}

impl Scrub {
    /// `key` must be random, and known to nobody.
    pub(crate) fn new(key: [u64; 2]) -> Self {
        Self { key, unknown_values: 0, checksums: BTreeMap::new() }
    }

    fn hash(&self, kind: u8, bytes: &[u8]) -> [u64; 2] {
        let mut hasher = SipHasher24::new_with_keys(self.key[0], self.key[1]);
        hasher.write_u8(kind);
        hasher.write(bytes);
        let hash = hasher.finish128();
        [hash.h1, hash.h2]
    }

    /// Letters in place of `bytes`, as many.
    fn letters(&self, bytes: &[u8]) -> String {
        let own = self.hash(0, bytes);
        let mut letters = String::with_capacity(bytes.len());
        let mut left = bytes.len();
        let mut round = 0_u64;
        while left > 0 {
            let mut hasher = SipHasher24::new_with_keys(own[0], own[1]);
            hasher.write_u64(round);
            let mut hash = hasher.finish128().h1;
            for _ in 0..left.min(LETTERS_OF_A_HASH) {
                letters.push(char::from(LETTERS[(hash % 52) as usize]));
                hash /= 52;
            }
            left = left.saturating_sub(LETTERS_OF_A_HASH);
            round += 1;
        }
        letters
    }

    fn bytes(&self, bytes: &[u8]) -> Vec<u8> {
        self.letters(bytes).into_bytes()
    }

    /// A value of a tree at `level`, of the same length. One that does not decode is left out: bytes
    /// that do not decode either stand in its place.
    pub(crate) fn value(&mut self, tree: Tree, level: u8, at: Position, bytes: &[u8]) -> Value {
        let found = match level {
            0 => self.leaf(tree, at, bytes),
            _ => NodePointer::decode(bytes).map(|pointer| self.pointer(pointer).encode()),
        };
        match found {
            Ok(value) if value.len() == bytes.len() => value,
            _ => {
                self.unknown_values += 1;
                Value::from_elem(UNKNOWN, bytes.len())
            }
        }
    }

    /// Notes that the bset that ends `blocks` behind the start of the node there has other checksums in
    /// pool and image.
    pub(super) fn checksum(&mut self, node: Location, blocks: u16, (pool, image): (u32, u32)) {
        self.checksums.insert((node.member, node.block, blocks, pool), image);
    }

    /// Forgets what [`Scrub::checksum`] noted.
    pub(super) fn forget_checksums(&mut self) {
        self.checksums.clear();
    }

    /// In place of the checksum of a bset that is not there. It tells about the names in it.
    pub(super) fn stray_checksum(&self, checksum: u32) -> u32 {
        match checksum {
            // Of no bset.
            0 => 0,
            _ => self.hash(2, &checksum.to_le_bytes())[0] as u32,
        }
    }

    /// The pointer with the checksum that the bset has in the image.
    fn pointer(&self, mut pointer: NodePointer) -> NodePointer {
        if let Some(Location { member, block, .. }) = pointer.location {
            let named = (member, block, pointer.written_blocks, pointer.last_crc);
            let known = self.checksums.get(&named).copied();
            pointer.last_crc = known.unwrap_or_else(|| self.stray_checksum(pointer.last_crc));
        }
        pointer
    }

    fn leaf(&self, tree: Tree, at: Position, bytes: &[u8]) -> Result<Value> {
        match tree {
            Tree::Extents => Extent::decode(bytes).map(|extent| extent.encode()),
            Tree::Inodes => Inode::decode_slot(bytes).map(|slot| match slot {
                Slot::Entry(inode) => self.inode(inode),
                Slot::Whiteout => Inode::whiteout(),
            }),
            Tree::Dirents => Entry::decode(bytes).map(|slot| match slot {
                Slot::Whiteout => Entry::whiteout(),
                Slot::Entry(entry) => Entry { name: self.bytes(&entry.name), ..entry }.encode(),
            }),
            Tree::Xattrs => Xattr::decode(bytes).map(|slot| match slot {
                Slot::Whiteout => Xattr::whiteout(),
                Slot::Entry(Xattr { name, value }) => {
                    Xattr { name: self.bytes(&name), value: self.bytes(&value) }.encode()
                }
            }),
            Tree::Subvolumes if at.offset == 1 => Root::decode(bytes).map(|root| root.encode()),
            Tree::Subvolumes => decode_subvolume(at.inode, bytes).map(|mut info| {
                info.name = self.letters(info.name.as_bytes());
                encode_subvolume(&info)
            }),
            Tree::Names => PoolName::decode(bytes).and_then(|name| self.pool_name(name)),
            Tree::LoggedOps => Intent::decode(bytes).map(|intent| self.intent(intent).encode()),
            Tree::Buckets => BucketCheckpoint::decode(bytes).map(|bucket| bucket.encode()),
            Tree::Counters => {
                decode_counter(bytes).map(|(stamp, value)| encode_counter(stamp, value))
            }
            Tree::Regions if bytes.len() == 2 => Ok(Value::from_slice(bytes)),
            Tree::Regions => Err(StoreError::corrupt("region", "length is wrong")),
            Tree::Damage => Damage::decode(bytes).map(|damage| damage.encode()),
            Tree::Tallies => Tally::decode(bytes).map(|tally| tally.encode()),
            Tree::Areas if bytes.is_empty() => Ok(Value::new()),
            Tree::Areas => Err(StoreError::corrupt("area", "length is wrong")),
            Tree::Versions => {
                VersionNode::decode(SnapshotId(at.inode as u32), bytes).map(|node| node.encode())
            }
        }
    }

    /// The key that places names goes too: with it, the places would tell which guess of a name is right.
    fn inode(&self, mut inode: Inode) -> Value {
        inode.hash_key = self.hash(1, &inode.hash_key.to_le_bytes())[0];
        inode.target = self.bytes(&inode.target);
        inode.encode()
    }

    fn pool_name(&self, name: PoolName) -> Result<Value> {
        let scrubbed = match name {
            PoolName::Subvolume { name, id } => {
                PoolName::Subvolume { name: self.letters(name.as_bytes()), id }
            }
            PoolName::Record { collection, name, bytes } => {
                if collection.len() > COLLECTION_BYTES_MAX {
                    return Err(StoreError::corrupt("name of the pool", "collection is too long"));
                }
                PoolName::Record {
                    collection: self.letters(collection.as_bytes()),
                    name: self.letters(name.as_bytes()),
                    bytes: self.bytes(&bytes),
                }
            }
        };
        Ok(scrubbed.encode())
    }

    fn intent(&self, intent: Intent) -> Intent {
        match intent {
            Intent::Create(mut new) => {
                new.name = self.letters(new.name.as_bytes());
                Intent::Create(new)
            }
            Intent::Resize { subvolume, name, inode, size_bytes } => {
                let name = self.letters(name.as_bytes());
                Intent::Resize { subvolume, name, inode, size_bytes }
            }
            other @ (Intent::Truncate { .. } | Intent::Remove { .. }) => other,
        }
    }

    /// Hands the scrubbed record to `push`.
    pub(super) fn record(&mut self, record: &Record<'_>, push: impl FnOnce(&Record<'_>)) {
        match *record {
            Record::Put { tree, level, position, value, fresh } => {
                let value = self.value(tree, level, position, value);
                push(&Record::Put { tree, level, position, value: &value, fresh });
            }
            Record::Root { tree, level, pointer } => {
                // As the value of a key above the root would be.
                let pointer = self.value(tree, 1, Position::MAX, pointer);
                push(&Record::Root { tree, level, pointer: &pointer });
            }
            Record::Delete { .. }
            | Record::BucketOpen { .. }
            | Record::BucketLive { .. }
            | Record::BucketSlot { .. }
            | Record::CounterAdd { .. }
            | Record::CounterAtLeast { .. }
            | Record::Blacklist { .. } => push(record),
        }
    }

    /// The superblock of an image.
    pub(super) fn superblock(&self, mut superblock: Superblock, tails: &[u32]) -> Superblock {
        superblock.label = self.letters(superblock.label.as_bytes());
        for member in &mut superblock.members {
            member.label = self.letters(member.label.as_bytes());
            member.failure_domain = self.letters(member.failure_domain.as_bytes());
        }
        superblock.image_tails = Some(tails.to_vec());
        superblock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_keep_length_and_sameness_within_an_image_only() {
        let (one, other) = (Scrub::new([1, 2]), Scrub::new([1, 3]));
        for len in [0, 1, 9, 10, 11, 255, 1536] {
            let name = vec![0xe9; len];
            let scrubbed = one.bytes(&name);
            assert_eq!(scrubbed.len(), len);
            assert!(scrubbed.iter().all(u8::is_ascii_alphabetic));
            assert_eq!(one.bytes(&name), scrubbed);
            if len > 8 {
                assert_ne!(other.bytes(&name), scrubbed);
                assert_ne!(one.bytes(&vec![0xea; len]), scrubbed);
            }
        }
    }

    /// What stands in place of a value that does not decode must not be taken for one.
    #[test]
    fn values_that_do_not_decode_leave_no_byte_and_still_do_not_decode() {
        let mut scrub = Scrub::new([1, 2]);
        let mut unknown = 0;
        for (tree, level) in Tree::ALL.into_iter().flat_map(|tree| [(tree, 0), (tree, 1)]) {
            for len in [0, 1, 3, 16, 23, 40, 44, 48, 64, 300, 2048] {
                for filled in [3, 0x71, 0xfe] {
                    let bytes = vec![filled; len];
                    let before = scrub.unknown_values;
                    let value = scrub.value(tree, level, Position::MIN, &bytes);
                    assert_eq!(value.len(), len);
                    if scrub.unknown_values == before {
                        continue;
                    }
                    unknown += 1;
                    assert!(value.iter().all(|byte| *byte == UNKNOWN));
                    scrub.value(tree, level, Position::MIN, &value);
                    assert_eq!(scrub.unknown_values, before + 2, "{tree:?} {level} {len}");
                }
            }
        }
        assert!(unknown > 500, "{unknown}");
    }

    #[test]
    fn a_collection_longer_than_any_is_left_out() {
        let mut bytes = vec![b'c'; 16 + 80];
        bytes[..16].copy_from_slice(&[1, 2, 70, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(PoolName::decode(&bytes).is_ok());
        let mut scrub = Scrub::new([1, 2]);
        assert_eq!(scrub.value(Tree::Names, 0, Position::MIN, &bytes).as_slice(), [UNKNOWN; 96]);
        assert_eq!(scrub.unknown_values, 1);
    }
}
