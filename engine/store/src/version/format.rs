//! What shard 0 keeps of a version, at (version, 0, 0) of the tree `Versions`.

use engine_base::SnapshotId;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Node;
use crate::error::{Result, StoreError};
use crate::key::{Position, Value};

const VERSION: u8 = 1;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct NodeRecord {
    /// Version of this layout: 1.
    version: u8,
    /// Reserved, zero.
    reserved: [u8; 3],
    /// What it was made from; 0: nothing.
    parent: U32,
    /// The version that is being merged into it; 0: none.
    absorbs: U32,
    /// Reserved, zero.
    reserved2: U32,
}

const _: () = assert!(size_of::<NodeRecord>() == 16);

/// Where a version lies.
pub(crate) fn version_position(version: SnapshotId) -> Position {
    Position::new(u64::from(version.0), 0, 0)
}

impl Node {
    pub(crate) fn encode(self) -> Value {
        let number = |id: Option<SnapshotId>| U32::new(id.map_or(0, |id| id.0));
        let record = NodeRecord {
            version: VERSION,
            reserved: [0; 3],
            parent: number(self.parent),
            absorbs: number(self.absorbs),
            reserved2: U32::ZERO,
        };
        Value::from_slice(record.as_bytes())
    }

    /// Parses the value of a version.
    ///
    /// # Errors
    /// `Corrupt` when it is none, or names one that cannot be its parent or a part of it.
    pub(crate) fn decode(version: SnapshotId, bytes: &[u8]) -> Result<Self> {
        let bad = |why: &str| StoreError::corrupt(format!("version {version}"), why);
        let record = NodeRecord::read_from_bytes(bytes).map_err(|_| bad("length is wrong"))?;
        if record.version != VERSION {
            return Err(bad("version of the record is not known"));
        }
        let some = |id: U32| (id.get() != 0).then_some(SnapshotId(id.get()));
        let node = Self { parent: some(record.parent), absorbs: some(record.absorbs) };
        if node.parent.is_some_and(|parent| parent.0 <= version.0)
            || node.absorbs.is_some_and(|child| child.0 >= version.0)
        {
            return Err(bad("its parent is newer, or what it absorbs is older"));
        }
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_and_decodes() {
        let some = |id| Some(SnapshotId(id));
        for (parent, absorbs) in
            [(None, None), (some(9), None), (some(8), some(6)), (None, some(1))]
        {
            let node = Node { parent, absorbs };
            let bytes = node.encode();
            assert_eq!(Node::decode(SnapshotId(7), &bytes), Ok(node));
            for at in 0..bytes.len() {
                assert!(Node::decode(SnapshotId(7), &bytes[..at]).is_err());
                for bit in 0..8 {
                    let mut damaged = bytes.clone();
                    damaged[at] ^= 1 << bit;
                    let _ = Node::decode(SnapshotId(7), &damaged);
                }
            }
        }
        for (parent, absorbs) in
            [(some(7), None), (some(3), None), (None, some(7)), (None, some(8))]
        {
            assert!(Node::decode(SnapshotId(7), &Node { parent, absorbs }.encode()).is_err());
        }
    }
}
