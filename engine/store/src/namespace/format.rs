//! Inodes, directory entries and extended attributes on disk.

use engine_base::{InodeNumber, SnapshotId};
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::api::{
    Attributes, FileKind, NAME_BYTES_MAX, SIZE_BYTES_MAX, SYMLINK_BYTES_MAX, XATTR_VALUE_BYTES_MAX,
};
use crate::error::{Result, StoreError};
use crate::key::{Position, VALUE_BYTES_MAX, Value};

const VERSION: u8 = 1;

/// The inode is a block volume: no names, size fixed by the subvolume.
const FLAG_VOLUME: u16 = 1;
/// An older version has the inode, too.
const FLAG_COPIED: u16 = 2;
const FLAGS_KNOWN: u16 = FLAG_VOLUME | FLAG_COPIED;

/// Fixed part of an inode; the target of a symbolic link follows.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct InodeHeader {
    /// Version of this layout: 1.
    version: u8,
    /// 1 file, 2 directory, 3 symbolic link.
    kind: u8,
    /// Flags.
    flags: U16,
    /// Permission bits (07777).
    mode: U32,
    /// Owner.
    uid: U32,
    /// Group.
    gid: U32,
    /// Number of names.
    links: U32,
    /// Random number of this inode, so that a number used again by mistake is noticed.
    generation: U32,
    /// Size in bytes; entries of a directory; bytes of a link's target.
    size: U64,
    /// No block of this inode at or past this byte exists on any shard.
    data_limit: U64,
    /// Directory that names this directory, itself for a root; of others one that does, or did. 0 for a volume.
    parent: U64,
    /// Key of the hash that places names of entries and of extended attributes.
    hash_key: U64,
    /// Last access, nanoseconds since the epoch.
    atime: I64,
    /// Last change of content.
    mtime: I64,
    /// Last change of the inode.
    ctime: I64,
    /// Creation.
    btime: I64,
}

/// In place of an inode that an older version has, and this one not.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct InodeWhiteout {
    /// Version of this layout: 1.
    version: u8,
    /// 0.
    kind: u8,
    /// Reserved, zero.
    reserved: U16,
}

/// A directory entry or a whiteout; the name follows.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct EntryHeader {
    /// Version of this layout: 1.
    version: u8,
    /// 0 whiteout, else as in an inode.
    kind: u8,
    /// Bytes of the name.
    name_len: U16,
    /// Reserved, zero.
    reserved: U32,
    /// Inode; 0 for a whiteout.
    inode: U64,
}

/// An extended attribute or a whiteout; name and value follow.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct XattrHeader {
    /// Version of this layout: 1.
    version: u8,
    /// 0 whiteout, 1 attribute.
    kind: u8,
    /// Bytes of the name.
    name_len: U16,
}

const _: () = assert!(size_of::<InodeHeader>() == 88);
const _: () = assert!(size_of::<InodeWhiteout>() == 4);
const _: () = assert!(size_of::<EntryHeader>() == 16);
const _: () = assert!(size_of::<XattrHeader>() == 4);
const _: () = assert!(88 + SYMLINK_BYTES_MAX <= VALUE_BYTES_MAX);
const _: () = assert!(4 + NAME_BYTES_MAX + XATTR_VALUE_BYTES_MAX <= VALUE_BYTES_MAX);

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) kind: FileKind,
    pub(crate) is_volume: bool,
    /// An older version has it, too.
    pub(crate) copied: bool,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) links: u32,
    pub(crate) generation: u32,
    pub(crate) size: u64,
    pub(crate) data_limit: u64,
    pub(crate) parent: InodeNumber,
    pub(crate) hash_key: u64,
    pub(crate) atime: i64,
    pub(crate) mtime: i64,
    pub(crate) ctime: i64,
    pub(crate) btime: i64,
    pub(crate) target: Vec<u8>,
}

/// What a place in a hashed table holds, or that of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Slot<T> {
    /// Something was here, and what follows may have been displaced by it; or an older version has something here.
    Whiteout,
    /// An entry.
    Entry(T),
}

impl<T> Slot<T> {
    /// The entry.
    pub(crate) fn entry(self) -> Option<T> {
        match self {
            Self::Whiteout => None,
            Self::Entry(entry) => Some(entry),
        }
    }
}

/// A directory entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) inode: InodeNumber,
    pub(crate) kind: FileKind,
    pub(crate) name: Vec<u8>,
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Xattr {
    pub(crate) name: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

/// Where an inode lies.
pub(crate) fn inode_position(inode: InodeNumber, snapshot: SnapshotId) -> Position {
    Position::new(inode.0, 0, snapshot.0)
}

fn kind_to_disk(kind: FileKind) -> u8 {
    match kind {
        FileKind::File => 1,
        FileKind::Directory => 2,
        FileKind::Symlink => 3,
    }
}

fn kind_from_disk(number: u8) -> Option<FileKind> {
    match number {
        1 => Some(FileKind::File),
        2 => Some(FileKind::Directory),
        3 => Some(FileKind::Symlink),
        _ => None,
    }
}

impl Inode {
    pub(crate) fn encode(&self) -> Value {
        assert!(self.target.len() <= SYMLINK_BYTES_MAX);
        let flag = |is: bool, flag: u16| if is { flag } else { 0 };
        let flags = flag(self.is_volume, FLAG_VOLUME) | flag(self.copied, FLAG_COPIED);
        let header = InodeHeader {
            version: VERSION,
            kind: kind_to_disk(self.kind),
            flags: U16::new(flags),
            mode: U32::new(self.mode),
            uid: U32::new(self.uid),
            gid: U32::new(self.gid),
            links: U32::new(self.links),
            generation: U32::new(self.generation),
            size: U64::new(self.size),
            data_limit: U64::new(self.data_limit),
            parent: U64::new(self.parent.0),
            hash_key: U64::new(self.hash_key),
            atime: I64::new(self.atime),
            mtime: I64::new(self.mtime),
            ctime: I64::new(self.ctime),
            btime: I64::new(self.btime),
        };
        let mut value = Value::from_slice(header.as_bytes());
        value.extend_from_slice(&self.target);
        value
    }

    /// The bytes of a whiteout.
    pub(crate) fn whiteout() -> Value {
        let header = InodeWhiteout { version: VERSION, kind: 0, reserved: U16::ZERO };
        Value::from_slice(header.as_bytes())
    }

    /// Parses a value of the inodes tree.
    pub(crate) fn decode_slot(bytes: &[u8]) -> Result<Slot<Self>> {
        match InodeWhiteout::read_from_bytes(bytes) {
            Ok(InodeWhiteout { version: VERSION, kind: 0, reserved }) if reserved == 0 => {
                Ok(Slot::Whiteout)
            }
            _ => Self::decode(bytes).map(Slot::Entry),
        }
    }

    /// Parses an inode.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let bad = |why: &str| StoreError::corrupt("inode", why);
        let (header, target) =
            InodeHeader::read_from_prefix(bytes).map_err(|_| bad("shorter than its header"))?;
        if header.version != VERSION || header.flags.get() & !FLAGS_KNOWN != 0 {
            return Err(bad("version or flags are not known"));
        }
        let kind = kind_from_disk(header.kind).ok_or_else(|| bad("kind is not known"))?;
        let size = header.size.get();
        if size > SIZE_BYTES_MAX || header.data_limit.get() > SIZE_BYTES_MAX {
            return Err(bad("size is out of range"));
        }
        let target_len = if kind == FileKind::Symlink { size } else { 0 };
        if target.len() as u64 != target_len || target.len() > SYMLINK_BYTES_MAX {
            return Err(bad("length does not fit its link target"));
        }
        Ok(Self {
            kind,
            is_volume: header.flags.get() & FLAG_VOLUME != 0,
            copied: header.flags.get() & FLAG_COPIED != 0,
            mode: header.mode.get(),
            uid: header.uid.get(),
            gid: header.gid.get(),
            links: header.links.get(),
            generation: header.generation.get(),
            size,
            data_limit: header.data_limit.get(),
            parent: InodeNumber(header.parent.get()),
            hash_key: header.hash_key.get(),
            atime: header.atime.get(),
            mtime: header.mtime.get(),
            ctime: header.ctime.get(),
            btime: header.btime.get(),
            target: target.to_vec(),
        })
    }

    pub(crate) fn attributes(&self, inode: InodeNumber) -> Attributes {
        Attributes {
            inode,
            kind: self.kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            links: self.links,
            size: self.size,
            atime_ns: self.atime,
            mtime_ns: self.mtime,
            ctime_ns: self.ctime,
            btime_ns: self.btime,
        }
    }
}

/// A value of a hashed table.
pub(crate) trait Hashed: Sized {
    /// Whether it is a directory entry rather than an extended attribute.
    const IS_ENTRY: bool;
    /// The name that its place comes from.
    fn name(&self) -> &[u8];
    fn encode(&self) -> Value;
    /// The bytes of a whiteout.
    fn whiteout() -> Value;
    fn decode(bytes: &[u8]) -> Result<Slot<Self>>;
}

impl Hashed for Entry {
    const IS_ENTRY: bool = true;

    fn name(&self) -> &[u8] {
        &self.name
    }

    fn encode(&self) -> Value {
        assert!((1..=NAME_BYTES_MAX).contains(&self.name.len()));
        let header = EntryHeader {
            version: VERSION,
            kind: kind_to_disk(self.kind),
            name_len: U16::new(self.name.len() as u16),
            reserved: U32::ZERO,
            inode: U64::new(self.inode.0),
        };
        let mut value = Value::from_slice(header.as_bytes());
        value.extend_from_slice(&self.name);
        value
    }

    fn whiteout() -> Value {
        let header = EntryHeader {
            version: VERSION,
            kind: 0,
            name_len: U16::ZERO,
            reserved: U32::ZERO,
            inode: U64::ZERO,
        };
        Value::from_slice(header.as_bytes())
    }

    fn decode(bytes: &[u8]) -> Result<Slot<Self>> {
        let bad = |why: &str| StoreError::corrupt("directory entry", why);
        let (header, name) =
            EntryHeader::read_from_prefix(bytes).map_err(|_| bad("shorter than its header"))?;
        if header.version != VERSION {
            return Err(bad("version is not known"));
        }
        if name.len() != usize::from(header.name_len.get()) {
            return Err(bad("length does not fit its name"));
        }
        if header.kind == 0 {
            return if name.is_empty() { Ok(Slot::Whiteout) } else { Err(bad("named whiteout")) };
        }
        let kind = kind_from_disk(header.kind).ok_or_else(|| bad("kind is not known"))?;
        if name.is_empty() || name.len() > NAME_BYTES_MAX || header.inode.get() == 0 {
            return Err(bad("name or inode is out of range"));
        }
        let inode = InodeNumber(header.inode.get());
        Ok(Slot::Entry(Self { inode, kind, name: name.to_vec() }))
    }
}

impl Hashed for Xattr {
    const IS_ENTRY: bool = false;

    fn name(&self) -> &[u8] {
        &self.name
    }

    fn encode(&self) -> Value {
        assert!((1..=NAME_BYTES_MAX).contains(&self.name.len()));
        assert!(self.value.len() <= XATTR_VALUE_BYTES_MAX);
        let name_len = U16::new(self.name.len() as u16);
        let header = XattrHeader { version: VERSION, kind: 1, name_len };
        let mut value = Value::from_slice(header.as_bytes());
        value.extend_from_slice(&self.name);
        value.extend_from_slice(&self.value);
        value
    }

    fn whiteout() -> Value {
        let header = XattrHeader { version: VERSION, kind: 0, name_len: U16::ZERO };
        Value::from_slice(header.as_bytes())
    }

    fn decode(bytes: &[u8]) -> Result<Slot<Self>> {
        let bad = |why: &str| StoreError::corrupt("extended attribute", why);
        let (header, rest) =
            XattrHeader::read_from_prefix(bytes).map_err(|_| bad("shorter than its header"))?;
        if header.version != VERSION || header.kind > 1 {
            return Err(bad("version or kind is not known"));
        }
        if header.kind == 0 {
            return if rest.is_empty() { Ok(Slot::Whiteout) } else { Err(bad("long whiteout")) };
        }
        let (name, value) = rest
            .split_at_checked(usize::from(header.name_len.get()))
            .ok_or_else(|| bad("name is cut off"))?;
        let sizes_fit =
            (1..=NAME_BYTES_MAX).contains(&name.len()) && value.len() <= XATTR_VALUE_BYTES_MAX;
        if !sizes_fit {
            return Err(bad("name or value is out of range"));
        }
        Ok(Slot::Entry(Self { name: name.to_vec(), value: value.to_vec() }))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;

    fn survives_damage<T: Debug>(bytes: &[u8], decode: impl Fn(&[u8]) -> Result<T>) {
        for at in 0..bytes.len() {
            let _ = decode(&bytes[..at]);
            for bit in 0..8 {
                let mut damaged = bytes.to_vec();
                damaged[at] ^= 1 << bit;
                let _ = decode(&damaged);
            }
        }
    }

    #[test]
    fn inodes_encode_and_decode() {
        let inode = Inode {
            kind: FileKind::Symlink,
            is_volume: false,
            copied: true,
            mode: 0o777,
            uid: 1,
            gid: 2,
            links: 3,
            generation: 4,
            size: 6,
            data_limit: 8192,
            parent: InodeNumber(0),
            hash_key: 7,
            atime: -1,
            mtime: 2,
            ctime: 3,
            btime: 4,
            target: b"target".to_vec(),
        };
        let bytes = inode.encode();
        assert_eq!(Inode::decode_slot(&bytes), Ok(Slot::Entry(inode)));
        survives_damage(&bytes, Inode::decode_slot);
        assert_eq!(Inode::decode_slot(&Inode::whiteout()), Ok(Slot::Whiteout));
        assert!(Inode::decode(&Inode::whiteout()).is_err());
        survives_damage(&Inode::whiteout(), Inode::decode_slot);
    }

    #[test]
    fn entries_and_xattrs_encode_and_decode() {
        let entry = Entry { inode: InodeNumber(9), kind: FileKind::File, name: b"name".to_vec() };
        let bytes = entry.encode();
        assert_eq!(Entry::decode(&bytes), Ok(Slot::Entry(entry)));
        assert_eq!(Entry::decode(&Entry::whiteout()), Ok(Slot::Whiteout));
        survives_damage(&bytes, Entry::decode);
        let xattr = Xattr { name: b"user.a".to_vec(), value: vec![1, 2, 3] };
        let bytes = xattr.encode();
        assert_eq!(Xattr::decode(&bytes), Ok(Slot::Entry(xattr)));
        assert_eq!(Xattr::decode(&Xattr::whiteout()), Ok(Slot::Whiteout));
        survives_damage(&bytes, Xattr::decode);
    }
}
