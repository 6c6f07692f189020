//! Entries of the damage list on disk; drawn in docs/format.md.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Result, StoreError};
use crate::extent::Pointer;
use crate::journal::format::DiskPosition;
use crate::key::{Position, Tree, Value};

const VERSION: u8 = 1;
const KIND_BLOCK: u8 = 1;
const KIND_KEYS: u8 = 2;
/// Set in the offset of a key that tells of lost keys: no block of a file has such a number.
const KEYS_BIT: u64 = 1 << 63;

/// The value of a key in the damage tree.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct DiskDamage {
    version: u8,
    /// 1 a block of data, 2 keys of a tree.
    kind: u8,
    /// Of a block.
    member: u8,
    /// Of keys.
    tree: u8,
    /// Of the bucket of a block.
    generation: U32,
    /// Block on the member.
    block: U64,
    /// Nanoseconds since the epoch.
    found: U64,
    /// Range of lost keys, both included; zero for a block.
    from: DiskPosition,
    to: DiskPosition,
}

const _: () = assert!(size_of::<DiskDamage>() == 64);

/// What is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// A block of data: where it lay.
    Block(Pointer),
    /// Keys of a tree.
    Keys { tree: Tree, from: Position, to: Position },
}

/// An entry of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) lost: Lost,
    /// When it was first found, nanoseconds since the epoch.
    pub(crate) found_ns: u64,
}

/// Where an entry for lost keys from `from` on lies.
pub(super) fn keys_position(tree: Tree, from: Position) -> Position {
    let low = from.offset & ((1 << 56) - 1);
    Position { offset: KEYS_BIT | (tree as u64) << 56 | low, ..from }
}

impl Damage {
    pub(crate) fn encode(&self) -> Value {
        let zero = Position::MIN;
        let (kind, pointer, tree, from, to) = match self.lost {
            Lost::Block(pointer) => (KIND_BLOCK, pointer, 0, zero, zero),
            Lost::Keys { tree, from, to } => {
                let nowhere = Pointer { member: 0, generation: 0, block: 0 };
                (KIND_KEYS, nowhere, tree as u8, from, to)
            }
        };
        let disk = DiskDamage {
            version: VERSION,
            kind,
            member: pointer.member,
            tree,
            generation: U32::new(pointer.generation),
            block: U64::new(pointer.block),
            found: U64::new(self.found_ns),
            from: from.into(),
            to: to.into(),
        };
        Value::from_slice(disk.as_bytes())
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let bad = |why: &str| StoreError::corrupt("damage entry", why);
        let disk = DiskDamage::read_from_bytes(bytes).map_err(|_| bad("length is wrong"))?;
        let lost = match (disk.version, disk.kind) {
            (VERSION, KIND_BLOCK) => Lost::Block(Pointer {
                member: disk.member,
                generation: disk.generation.get(),
                block: disk.block.get(),
            }),
            (VERSION, KIND_KEYS) => Lost::Keys {
                tree: Tree::from_disk(disk.tree)?,
                from: disk.from.into(),
                to: disk.to.into(),
            },
            _ => return Err(bad("version or kind is not known")),
        };
        Ok(Self { lost, found_ns: disk.found.get() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_round_trip() {
        let (from, to) = (Position::new(1, 2, 3), Position::new(4, 5, 6));
        for lost in [
            Lost::Block(Pointer { member: 3, generation: 9, block: 1 << 40 }),
            Lost::Keys { tree: Tree::Dirents, from, to },
        ] {
            let damage = Damage { lost, found_ns: 7 };
            assert_eq!(Damage::decode(&damage.encode()), Ok(damage));
        }
        assert!(Damage::decode(&[0; 64]).is_err());
        assert!(Damage::decode(&[1; 63]).is_err());
    }
}
