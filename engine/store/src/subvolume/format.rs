//! Records of the subvolume tables on disk.

use engine_base::{BLOCK_SIZE, InodeNumber, SnapshotId, SubvolumeId};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::api::{
    Algorithm, Compression, RECORD_BYTES_MAX, Received, Receiving, SubvolumeInfo, SubvolumeKind,
    SubvolumeOptions,
};
use crate::error::{Result, StoreError};
use crate::key::{Position, VALUE_BYTES_MAX, Value};

const VERSION: u8 = 1;

/// Longest name of a collection of records, in bytes.
pub(crate) const COLLECTION_BYTES_MAX: usize = 64;

const KIND_VOLUME: u8 = 1;
const KIND_FILE_TREE: u8 = 2;

const FLAG_READ_ONLY: u32 = 1;
const FLAG_RECEIVING: u32 = 2;

const NAME_OF_SUBVOLUME: u8 = 1;
const NAME_OF_RECORD: u8 = 2;

/// A subvolume, at (id, 0, 0) on shard 0; its name follows.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct SubvolumeHeader {
    /// Version of this layout: 1.
    version: u8,
    /// Volume or file tree.
    kind: u8,
    /// Bytes of the name.
    name_len: U16,
    /// Version of its keys.
    snapshot: U32,
    /// Inode of the volume or root directory.
    root: U64,
    /// Size of a volume in bytes.
    size: U64,
    /// Time of creation, nanoseconds since the epoch.
    created: U64,
    /// UUID.
    uuid: [u8; 16],
    /// Logical block size of a volume in bytes.
    block_size: U32,
    /// 1: nobody may write to it; 2: it is being received. Unknown flags are refused.
    flags: U32,
    /// What it is a snapshot or a clone of; 0: nothing.
    origin: U64,
    /// How new data is stored.
    options: DiskOptions,
    /// UUID of the snapshot that it was or is received from; zeroes: none.
    source: [u8; 16],
    /// UUID of the snapshot to which what is being received is the difference; zeroes: none.
    base: [u8; 16],
    /// Position in the stream that is being received, up to which all is there.
    position: U64,
}

/// How new data of a subvolume is stored.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct DiskOptions {
    /// 0 none, else the algorithm, as in an extent.
    compression: u8,
    /// Its level; 0 where it has none.
    level: u8,
    /// Blocks of a frame.
    frame_blocks: u8,
    /// Reserved, zero.
    reserved: [u8; 5],
}

impl DiskOptions {
    pub(crate) fn new(options: SubvolumeOptions) -> Self {
        Self {
            compression: options.compression.algorithm().map_or(0, Algorithm::to_disk),
            level: options.compression.level(),
            frame_blocks: options.frame_blocks() as u8,
            reserved: [0; 5],
        }
    }

    pub(crate) fn decode(&self) -> Result<SubvolumeOptions> {
        let bad =
            || StoreError::corrupt("options of a subvolume", "are not known, or out of range");
        let algorithm = match self.compression {
            0 => None,
            number => Some(Algorithm::from_disk(number).ok_or_else(bad)?),
        };
        let options = SubvolumeOptions {
            compression: Compression::new(algorithm, self.level).map_err(|_| bad())?,
            frame_bytes: u32::from(self.frame_blocks) * BLOCK_SIZE as u32,
        };
        options.check().map_err(|_| bad())?;
        Ok(options)
    }
}

/// The root of a subvolume, at (id, 1, 0) on its home shard: makes creating it idempotent.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RootHeader {
    /// Version of this layout: 1.
    version: u8,
    /// Volume or file tree.
    kind: u8,
    /// Reserved, zero.
    reserved: U16,
    /// Version of its keys.
    snapshot: U32,
    /// Inode of the volume or root directory.
    inode: U64,
}

/// A name, at (hash, index, 0) on shard 0; collection, name and bytes follow.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct NameHeader {
    /// Version of this layout: 1.
    version: u8,
    /// Of a subvolume or of a record.
    kind: u8,
    /// Bytes of the collection's name; 0 for a subvolume.
    collection_len: u8,
    /// Bytes of the name.
    name_len: u8,
    /// Reserved, zero.
    reserved: U32,
    /// Subvolume id; 0 for a record.
    id: U64,
}

const _: () = assert!(size_of::<SubvolumeHeader>() == 112);
const _: () = assert!(size_of::<DiskOptions>() == 8);
const _: () = assert!(size_of::<RootHeader>() == 16);
const _: () = assert!(size_of::<NameHeader>() == 16);
const _: () = assert!(16 + COLLECTION_BYTES_MAX + 255 + RECORD_BYTES_MAX <= VALUE_BYTES_MAX);

/// The root of a subvolume as its home shard knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) kind: SubvolumeKind,
    pub(crate) snapshot: SnapshotId,
    pub(crate) inode: InodeNumber,
}

/// A name of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PoolName {
    /// Of a subvolume.
    Subvolume { name: String, id: SubvolumeId },
    /// Of a record.
    Record { collection: String, name: String, bytes: Vec<u8> },
}

pub(crate) fn kind_to_disk(kind: SubvolumeKind) -> u8 {
    match kind {
        SubvolumeKind::Volume => KIND_VOLUME,
        SubvolumeKind::FileTree => KIND_FILE_TREE,
    }
}

pub(crate) fn kind_from_disk(number: u8) -> Result<SubvolumeKind> {
    match number {
        KIND_VOLUME => Ok(SubvolumeKind::Volume),
        KIND_FILE_TREE => Ok(SubvolumeKind::FileTree),
        _ => Err(StoreError::corrupt("subvolume kind", format!("{number} is not known"))),
    }
}

/// Where the subvolume `id` lies on shard 0.
pub(crate) fn subvolume_position(id: SubvolumeId) -> Position {
    Position::new(id.0, 0, 0)
}

/// Where the root of subvolume `id` lies on its home shard.
pub(crate) fn root_position(id: SubvolumeId) -> Position {
    Position::new(id.0, 1, 0)
}

/// Zeroes: none.
pub(crate) fn some_uuid(uuid: [u8; 16]) -> Option<[u8; 16]> {
    Some(uuid).filter(|uuid| *uuid != [0; 16])
}

pub(crate) fn encode_subvolume(info: &SubvolumeInfo) -> Value {
    let receiving = info.receiving();
    let mut flags = if info.read_only { FLAG_READ_ONLY } else { 0 };
    if receiving.is_some() {
        flags |= FLAG_RECEIVING;
    }
    let Receiving { base, position } = receiving.unwrap_or_default();
    let header = SubvolumeHeader {
        version: VERSION,
        kind: kind_to_disk(info.kind),
        name_len: U16::new(info.name.len() as u16),
        snapshot: U32::new(info.snapshot.0),
        root: U64::new(info.root.0),
        size: U64::new(info.size_bytes),
        created: U64::new(info.created_ns),
        uuid: info.uuid,
        block_size: U32::new(info.block_size),
        flags: U32::new(flags),
        origin: U64::new(info.origin.map_or(0, |origin| origin.0)),
        options: DiskOptions::new(info.options),
        source: info.received.map_or([0; 16], |received| received.source),
        base: base.unwrap_or_default(),
        position: U64::new(position),
    };
    let mut value = Value::from_slice(header.as_bytes());
    value.extend_from_slice(info.name.as_bytes());
    value
}

pub(crate) fn decode_subvolume(id: u64, bytes: &[u8]) -> Result<SubvolumeInfo> {
    let bad = |why: &str| StoreError::corrupt(format!("subvolume {id}"), why);
    let (header, name) =
        SubvolumeHeader::read_from_prefix(bytes).map_err(|_| bad("shorter than its header"))?;
    let flags = header.flags.get();
    if header.version != VERSION || flags & !(FLAG_READ_ONLY | FLAG_RECEIVING) != 0 {
        return Err(bad("version or flags are not known"));
    }
    let receiving = (flags & FLAG_RECEIVING != 0)
        .then(|| Receiving { base: some_uuid(header.base), position: header.position.get() });
    let received = some_uuid(header.source).map(|source| Received { source, receiving });
    if receiving.is_some() && received.is_none() {
        return Err(bad("is received from nothing"));
    }
    if name.len() != usize::from(header.name_len.get()) {
        return Err(bad("length does not fit its name"));
    }
    Ok(SubvolumeInfo {
        id: SubvolumeId(id),
        name: str::from_utf8(name).map_err(|_| bad("name is not text"))?.to_owned(),
        kind: kind_from_disk(header.kind)?,
        root: InodeNumber(header.root.get()),
        snapshot: SnapshotId(header.snapshot.get()),
        read_only: flags & FLAG_READ_ONLY != 0,
        origin: Some(SubvolumeId(header.origin.get())).filter(|origin| origin.0 != 0),
        size_bytes: header.size.get(),
        block_size: header.block_size.get(),
        used_bytes: 0,
        created_ns: header.created.get(),
        uuid: header.uuid,
        options: header.options.decode()?,
        received,
    })
}

impl Root {
    pub(crate) fn encode(&self) -> Value {
        let header = RootHeader {
            version: VERSION,
            kind: kind_to_disk(self.kind),
            reserved: U16::ZERO,
            snapshot: U32::new(self.snapshot.0),
            inode: U64::new(self.inode.0),
        };
        Value::from_slice(header.as_bytes())
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let bad = |why: &str| StoreError::corrupt("subvolume root", why);
        let header = RootHeader::read_from_bytes(bytes).map_err(|_| bad("length is wrong"))?;
        if header.version != VERSION {
            return Err(bad("version is not known"));
        }
        Ok(Self {
            kind: kind_from_disk(header.kind)?,
            snapshot: SnapshotId(header.snapshot.get()),
            inode: InodeNumber(header.inode.get()),
        })
    }
}

impl PoolName {
    /// Collection (empty for subvolumes) and name.
    pub(crate) fn key(&self) -> (&str, &str) {
        match self {
            Self::Subvolume { name, .. } => ("", name),
            Self::Record { collection, name, .. } => (collection, name),
        }
    }

    pub(crate) fn encode(&self) -> Value {
        let (collection, name) = self.key();
        let (kind, id, bytes) = match self {
            Self::Subvolume { id, .. } => (NAME_OF_SUBVOLUME, id.0, [].as_slice()),
            Self::Record { bytes, .. } => (NAME_OF_RECORD, 0, bytes.as_slice()),
        };
        assert!(collection.len() <= COLLECTION_BYTES_MAX && name.len() <= 255);
        let header = NameHeader {
            version: VERSION,
            kind,
            collection_len: collection.len() as u8,
            name_len: name.len() as u8,
            reserved: U32::ZERO,
            id: U64::new(id),
        };
        let mut value = Value::from_slice(header.as_bytes());
        value.extend_from_slice(collection.as_bytes());
        value.extend_from_slice(name.as_bytes());
        value.extend_from_slice(bytes);
        value
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let bad = |why: &str| StoreError::corrupt("name of the pool", why);
        let (header, rest) =
            NameHeader::read_from_prefix(bytes).map_err(|_| bad("shorter than its header"))?;
        if header.version != VERSION {
            return Err(bad("version is not known"));
        }
        let text = |bytes: &[u8]| str::from_utf8(bytes).map(str::to_owned);
        let collection_len = usize::from(header.collection_len);
        let (collection, rest) =
            rest.split_at_checked(collection_len).ok_or_else(|| bad("collection is cut off"))?;
        let (name, bytes) = rest
            .split_at_checked(usize::from(header.name_len))
            .ok_or_else(|| bad("name is cut off"))?;
        let collection = text(collection).map_err(|_| bad("collection is not text"))?;
        let name = text(name).map_err(|_| bad("name is not text"))?;
        match header.kind {
            NAME_OF_SUBVOLUME if collection.is_empty() && bytes.is_empty() => {
                Ok(Self::Subvolume { name, id: SubvolumeId(header.id.get()) })
            }
            NAME_OF_RECORD if !collection.is_empty() => {
                Ok(Self::Record { collection, name, bytes: bytes.to_vec() })
            }
            _ => Err(bad("kind is not known or does not fit")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_and_decodes() {
        let info = SubvolumeInfo {
            id: SubvolumeId(3),
            name: "data".to_owned(),
            kind: SubvolumeKind::Volume,
            root: InodeNumber(19),
            snapshot: SnapshotId(5),
            read_only: true,
            origin: Some(SubvolumeId(2)),
            size_bytes: 1 << 30,
            block_size: 4096,
            used_bytes: 0,
            created_ns: 77,
            uuid: [9; 16],
            options: SubvolumeOptions { compression: Compression::Zstd(7), frame_bytes: 1 << 15 },
            received: None,
        };
        let receiving = Receiving { base: Some([4; 16]), position: 1 << 40 };
        let states = [
            None,
            Some(Received { source: [5; 16], receiving: None }),
            Some(Received { source: [5; 16], receiving: Some(receiving) }),
        ];
        for received in states {
            let info = SubvolumeInfo { received, ..info.clone() };
            let bytes = encode_subvolume(&info);
            assert_eq!(decode_subvolume(3, &bytes), Ok(info));
        }
        let root =
            Root { kind: SubvolumeKind::FileTree, snapshot: SnapshotId(5), inode: InodeNumber(19) };
        assert_eq!(Root::decode(&root.encode()), Ok(root));
        let names = [
            PoolName::Subvolume { name: "data".to_owned(), id: SubvolumeId(3) },
            PoolName::Record {
                collection: "exports".to_owned(),
                name: "e".to_owned(),
                bytes: vec![1, 2],
            },
        ];
        for name in names {
            let bytes = name.encode();
            assert_eq!(PoolName::decode(&bytes), Ok(name));
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x55;
                let _ = PoolName::decode(&damaged);
                let _ = PoolName::decode(&bytes[..at]);
            }
        }
    }
}
