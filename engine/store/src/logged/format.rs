//! The record of a logged operation on disk: a fixed header, then a name.

use engine_base::{InodeNumber, SnapshotId, SubvolumeId};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Intent, NewSubvolume};
use crate::api::SubvolumeOptions;
use crate::error::{Result, StoreError};
use crate::key::Value;
use crate::subvolume::{DiskOptions, kind_from_disk, kind_to_disk, some_uuid};

const VERSION: u8 = 1;

// 2 was the deletion of a subvolume.
const CREATE: u8 = 1;
const RESIZE: u8 = 3;
const TRUNCATE: u8 = 4;
const REMOVE: u8 = 5;

/// Fixed part; fields that an operation does not need are zero.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct IntentHeader {
    /// Version of this layout: 1.
    version: u8,
    /// Which operation.
    operation: u8,
    /// Kind of the subvolume.
    kind: u8,
    /// Bytes of the name that follows.
    name_len: u8,
    /// Version of the keys concerned.
    snapshot: U32,
    /// Subvolume.
    subvolume: U64,
    /// Inode.
    inode: U64,
    /// Size in bytes.
    size: U64,
    /// Time of creation, nanoseconds since the epoch.
    created: U64,
    /// UUID of the subvolume.
    uuid: [u8; 16],
    /// Logical block size of a volume.
    block_size: U32,
    /// Reserved, zero.
    reserved: U32,
    /// How data of a new subvolume is stored.
    options: DiskOptions,
    /// UUID of the snapshot that a new subvolume is received from; zeroes: none.
    source: [u8; 16],
}

const _: () = assert!(size_of::<IntentHeader>() == 88);

fn empty(operation: u8, snapshot: SnapshotId) -> IntentHeader {
    IntentHeader {
        version: VERSION,
        operation,
        kind: 0,
        name_len: 0,
        snapshot: U32::new(snapshot.0),
        subvolume: U64::ZERO,
        inode: U64::ZERO,
        size: U64::ZERO,
        created: U64::ZERO,
        uuid: [0; 16],
        block_size: U32::ZERO,
        reserved: U32::ZERO,
        options: DiskOptions::new(SubvolumeOptions::default()),
        source: [0; 16],
    }
}

impl Intent {
    pub(crate) fn encode(&self) -> Value {
        let mut name = "";
        let header = match self {
            Self::Create(new) => {
                name = &new.name;
                IntentHeader {
                    kind: kind_to_disk(new.kind),
                    name_len: name.len() as u8,
                    subvolume: U64::new(new.id.0),
                    size: U64::new(new.size_bytes),
                    created: U64::new(new.created_ns),
                    uuid: new.uuid,
                    block_size: U32::new(new.block_size),
                    options: DiskOptions::new(new.options),
                    source: new.source.unwrap_or_default(),
                    ..empty(CREATE, new.snapshot)
                }
            }
            Self::Resize { subvolume, name: of, inode, size_bytes } => {
                name = of;
                IntentHeader {
                    name_len: name.len() as u8,
                    subvolume: U64::new(subvolume.0),
                    inode: U64::new(inode.0),
                    size: U64::new(*size_bytes),
                    ..empty(RESIZE, SnapshotId(0))
                }
            }
            Self::Truncate { inode, snapshot, size } => IntentHeader {
                inode: U64::new(inode.0),
                size: U64::new(*size),
                ..empty(TRUNCATE, *snapshot)
            },
            Self::Remove { inode, snapshot } => {
                IntentHeader { inode: U64::new(inode.0), ..empty(REMOVE, *snapshot) }
            }
        };
        let mut value = Value::from_slice(header.as_bytes());
        value.extend_from_slice(name.as_bytes());
        value
    }

    /// Parses a value of the logged operations tree.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let bad = |why: &str| StoreError::corrupt("logged operation", why);
        let (header, name) =
            IntentHeader::read_from_prefix(bytes).map_err(|_| bad("shorter than its header"))?;
        if header.version != VERSION {
            return Err(bad("version is not known"));
        }
        if name.len() != usize::from(header.name_len) {
            return Err(bad("length does not fit its name"));
        }
        let name = str::from_utf8(name).map_err(|_| bad("name is not text"))?.to_owned();
        let (inode, snapshot) =
            (InodeNumber(header.inode.get()), SnapshotId(header.snapshot.get()));
        let (size, subvolume) = (header.size.get(), SubvolumeId(header.subvolume.get()));
        match header.operation {
            CREATE => Ok(Self::Create(NewSubvolume {
                id: subvolume,
                snapshot,
                name,
                kind: kind_from_disk(header.kind)?,
                size_bytes: size,
                block_size: header.block_size.get(),
                created_ns: header.created.get(),
                uuid: header.uuid,
                options: header.options.decode()?,
                source: some_uuid(header.source),
            })),
            RESIZE => Ok(Self::Resize { subvolume, name, inode, size_bytes: size }),
            TRUNCATE => Ok(Self::Truncate { inode, snapshot, size }),
            REMOVE => Ok(Self::Remove { inode, snapshot }),
            other => Err(bad(&format!("operation {other} is not known"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::api::{Compression, SubvolumeKind};

    use super::*;

    #[test]
    fn encodes_and_decodes() {
        let all = [
            Intent::Create(NewSubvolume {
                id: SubvolumeId(7),
                snapshot: SnapshotId(9),
                name: "vol".to_owned(),
                kind: SubvolumeKind::Volume,
                size_bytes: 1 << 30,
                block_size: 512,
                created_ns: 5,
                uuid: [3; 16],
                options: SubvolumeOptions { compression: Compression::Lz4, frame_bytes: 8192 },
                source: Some([6; 16]),
            }),
            Intent::Resize {
                subvolume: SubvolumeId(7),
                name: "vol".to_owned(),
                inode: InodeNumber(4),
                size_bytes: 4096,
            },
            Intent::Truncate { inode: InodeNumber(4), snapshot: SnapshotId(9), size: 77 },
            Intent::Remove { inode: InodeNumber(4), snapshot: SnapshotId(9) },
        ];
        for intent in all {
            let bytes = intent.encode();
            assert_eq!(Intent::decode(&bytes), Ok(intent));
            for at in 0..bytes.len() {
                assert!(Intent::decode(&bytes[..at]).is_err());
                for bit in 0..8 {
                    let mut damaged = bytes.clone();
                    damaged[at] ^= 1 << bit;
                    let _ = Intent::decode(&damaged);
                }
            }
        }
    }
}
