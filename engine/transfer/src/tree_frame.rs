//! Frames of a stream of a file tree: docs/format.md, "Streams".

use engine_store::StoreError;
use engine_store::api::FileKind;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::{ATTRIBUTES, NAME, NAMED, NEW, NODE, REMOVED, XATTR, bad};

/// Bytes of the longest path that a frame takes.
pub(crate) const PATH_BYTES_MAX: usize = u16::MAX as usize;

/// What is told of a file tree. Inodes are numbered as where they were sent; the numbers mean nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeFrame {
    /// A name that is gone, or leads elsewhere now.
    Removed {
        /// The inode to which it led.
        id: u64,
        /// The name, as a path of the base.
        path: Vec<u8>,
    },
    /// An inode that is not in the base.
    New {
        /// Its number.
        id: u64,
        /// What it is.
        kind: FileKind,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Where a symbolic link leads.
        target: Vec<u8>,
    },
    /// A name.
    Name {
        /// The inode to which it leads.
        id: u64,
        /// A path of that in the base; `None`: it is new.
        in_base: Option<Vec<u8>>,
        /// The directory.
        directory: u64,
        /// A path of that in the base; `None`: it is new.
        directory_in_base: Option<Vec<u8>>,
        /// The name in it.
        name: Vec<u8>,
    },
    /// All names are told.
    Named,
    /// An inode of which the content follows.
    Node {
        /// What it is.
        kind: FileKind,
        /// Size of a file in bytes.
        size: u64,
        /// A path of it, now.
        path: Vec<u8>,
    },
    /// An extended attribute of it.
    Xattr {
        /// The name.
        name: Vec<u8>,
        /// The value.
        value: Vec<u8>,
    },
    /// Its attributes: all else of it was told.
    Attributes(NodeAttributes),
}

/// Attributes of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAttributes {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access, nanoseconds since the Unix epoch.
    pub atime_ns: i64,
    /// Last change of content.
    pub mtime_ns: i64,
    /// Names of its extended attributes; all others are gone.
    pub xattrs: Vec<Vec<u8>>,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct NewPayload {
    id: U64,
    mode: U32,
    uid: U32,
    gid: U32,
    kind: u8,
    reserved: [u8; 3],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct NamePayload {
    id: U64,
    directory: U64,
    /// Bytes of a path; 0: none.
    in_base: U16,
    directory_in_base: U16,
    name: U16,
    reserved: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct AttributesPayload {
    mode: U32,
    uid: U32,
    gid: U32,
    xattrs: U32,
    atime: I64,
    mtime: I64,
}

const _: () = assert!(size_of::<NewPayload>() == 24);
const _: () = assert!(size_of::<NamePayload>() == 24);
const _: () = assert!(size_of::<AttributesPayload>() == 32);

fn kind_to_stream(kind: FileKind) -> u8 {
    match kind {
        FileKind::File => 1,
        FileKind::Directory => 2,
        FileKind::Symlink => 3,
    }
}

fn kind_from_stream(number: u8) -> Result<FileKind, StoreError> {
    match number {
        1 => Ok(FileKind::File),
        2 => Ok(FileKind::Directory),
        3 => Ok(FileKind::Symlink),
        other => Err(bad(format!("inodes of kind {other} are not known"))),
    }
}

fn short() -> StoreError {
    bad("a frame is shorter than what it holds")
}

fn long() -> StoreError {
    bad("a frame is longer than what it holds")
}

/// The first bytes of `payload`, and the rest.
fn fixed<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    payload: &[u8],
) -> Result<(T, &[u8]), StoreError> {
    T::read_from_prefix(payload).map_err(|_| short())
}

impl TreeFrame {
    /// Kind and payload. Paths are of [`PATH_BYTES_MAX`] bytes at most.
    pub(crate) fn encode(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Removed { id, path } => (REMOVED, [&id.to_le_bytes()[..], path].concat()),
            Self::New { id, kind, mode, uid, gid, target } => {
                let fixed = NewPayload {
                    id: U64::new(*id),
                    mode: U32::new(*mode),
                    uid: U32::new(*uid),
                    gid: U32::new(*gid),
                    kind: kind_to_stream(*kind),
                    reserved: [0; 3],
                };
                (NEW, [fixed.as_bytes(), target].concat())
            }
            Self::Name { id, in_base, directory, directory_in_base, name } => {
                let (node, parent) =
                    (in_base.as_deref().unwrap_or_default(), directory_in_base.as_deref());
                let parent = parent.unwrap_or_default();
                let fixed = NamePayload {
                    id: U64::new(*id),
                    directory: U64::new(*directory),
                    in_base: U16::new(node.len() as u16),
                    directory_in_base: U16::new(parent.len() as u16),
                    name: U16::new(name.len() as u16),
                    reserved: U16::ZERO,
                };
                (NAME, [fixed.as_bytes(), node, parent, name].concat())
            }
            Self::Named => (NAMED, Vec::new()),
            Self::Node { kind, size, path } => {
                let kind = [kind_to_stream(*kind), 0, 0, 0, 0, 0, 0, 0];
                (NODE, [&kind[..], &size.to_le_bytes(), path].concat())
            }
            Self::Xattr { name, value } => (XATTR, [&[name.len() as u8][..], name, value].concat()),
            Self::Attributes(attributes) => (ATTRIBUTES, attributes.encode()),
        }
    }

    pub(crate) fn decode(kind: u8, payload: &[u8]) -> Result<Self, StoreError> {
        match kind {
            REMOVED => {
                let (id, path) = payload.split_first_chunk().ok_or_else(short)?;
                Ok(Self::Removed { id: u64::from_le_bytes(*id), path: path.to_vec() })
            }
            NEW => {
                let (new, target) = fixed::<NewPayload>(payload)?;
                Ok(Self::New {
                    id: new.id.get(),
                    kind: kind_from_stream(new.kind)?,
                    mode: new.mode.get(),
                    uid: new.uid.get(),
                    gid: new.gid.get(),
                    target: target.to_vec(),
                })
            }
            NAME => Self::decode_name(payload),
            NAMED if payload.is_empty() => Ok(Self::Named),
            NODE => {
                let (kind, rest) = payload.split_first_chunk::<8>().ok_or_else(short)?;
                let (size, path) = rest.split_first_chunk().ok_or_else(short)?;
                let (kind, size) = (kind_from_stream(kind[0])?, u64::from_le_bytes(*size));
                Ok(Self::Node { kind, size, path: path.to_vec() })
            }
            XATTR => {
                let (len, rest) = payload.split_first().ok_or_else(short)?;
                let (name, value) = rest.split_at_checked(usize::from(*len)).ok_or_else(short)?;
                Ok(Self::Xattr { name: name.to_vec(), value: value.to_vec() })
            }
            ATTRIBUTES => NodeAttributes::decode(payload).map(Self::Attributes),
            other => Err(bad(format!("a frame of kind {other} does not fit"))),
        }
    }

    fn decode_name(payload: &[u8]) -> Result<Self, StoreError> {
        let (fixed, rest) = fixed::<NamePayload>(payload)?;
        let mut rest = rest;
        let mut take = |len: U16| -> Result<Vec<u8>, StoreError> {
            let (part, left) = rest.split_at_checked(usize::from(len.get())).ok_or_else(short)?;
            rest = left;
            Ok(part.to_vec())
        };
        let some = |path: Vec<u8>| Some(path).filter(|path| !path.is_empty());
        let in_base = some(take(fixed.in_base)?);
        let directory_in_base = some(take(fixed.directory_in_base)?);
        let name = take(fixed.name)?;
        if !rest.is_empty() {
            return Err(long());
        }
        let (id, directory) = (fixed.id.get(), fixed.directory.get());
        Ok(Self::Name { id, in_base, directory, directory_in_base, name })
    }
}

impl NodeAttributes {
    fn encode(&self) -> Vec<u8> {
        let fixed = AttributesPayload {
            mode: U32::new(self.mode),
            uid: U32::new(self.uid),
            gid: U32::new(self.gid),
            xattrs: U32::new(self.xattrs.len() as u32),
            atime: I64::new(self.atime_ns),
            mtime: I64::new(self.mtime_ns),
        };
        let mut bytes = fixed.as_bytes().to_vec();
        for name in &self.xattrs {
            bytes.push(name.len() as u8);
            bytes.extend_from_slice(name);
        }
        bytes
    }

    fn decode(payload: &[u8]) -> Result<Self, StoreError> {
        let (fixed, mut rest) = fixed::<AttributesPayload>(payload)?;
        let mut xattrs = Vec::new();
        for _ in 0..fixed.xattrs.get() {
            let (len, after) = rest.split_first().ok_or_else(short)?;
            let (name, left) = after.split_at_checked(usize::from(*len)).ok_or_else(short)?;
            xattrs.push(name.to_vec());
            rest = left;
        }
        if !rest.is_empty() {
            return Err(long());
        }
        Ok(Self {
            mode: fixed.mode.get(),
            uid: fixed.uid.get(),
            gid: fixed.gid.get(),
            atime_ns: fixed.atime.get(),
            mtime_ns: fixed.mtime.get(),
            xattrs,
        })
    }
}
