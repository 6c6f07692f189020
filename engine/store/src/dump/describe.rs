//! Records, pointers and values of every tree in words.

use engine_base::SnapshotId;

use super::Item;
use crate::api::{FileKind, SubvolumeKind, VersionNode};
use crate::btree::NodePointer;
use crate::damage::{Damage, Lost};
use crate::error::{Result, StoreError};
use crate::extent::Extent;
use crate::journal::Record;
use crate::key::{Position, Tree};
use crate::logged::Intent;
use crate::namespace::{Entry, Hashed, Inode, Slot, Xattr};
use crate::space::BucketKind;
use crate::space::format::{BucketCheckpoint, Tally, decode_counter};
use crate::subvolume::format::{PoolName, Root, decode_subvolume};
use crate::version::Area;

type Fields = Vec<(&'static str, Item)>;

/// The names of the trees, by number.
pub(super) const TREE_NAMES: [(&str, Tree); 14] = [
    ("extents", Tree::Extents),
    ("inodes", Tree::Inodes),
    ("dirents", Tree::Dirents),
    ("xattrs", Tree::Xattrs),
    ("subvolumes", Tree::Subvolumes),
    ("names", Tree::Names),
    ("operations", Tree::LoggedOps),
    ("buckets", Tree::Buckets),
    ("counters", Tree::Counters),
    ("regions", Tree::Regions),
    ("damage", Tree::Damage),
    ("tallies", Tree::Tallies),
    ("areas", Tree::Areas),
    ("versions", Tree::Versions),
];

pub(super) fn tree_name(tree: Tree) -> &'static str {
    TREE_NAMES.iter().find(|(_, of)| *of == tree).map_or("unknown", |(name, _)| name)
}

/// A position as `inode:offset:snapshot`.
pub(super) fn position(position: Position) -> Item {
    let Position { inode, offset, snapshot } = position;
    Item::Text(format!("{inode}:{offset}:{snapshot}"))
}

/// A record of a journal entry.
pub(super) fn record(ordinal: usize, record: &Record<'_>) -> Item {
    let mut fields: Fields = vec![("ordinal", (ordinal as u64).into())];
    let mut add = |more: Fields| fields.extend(more);
    match *record {
        Record::Put { tree, level, position: at, value: bytes, fresh } => add(vec![
            ("kind", "put".into()),
            ("tree", tree_name(tree).into()),
            ("level", level.into()),
            ("fresh", fresh.into()),
            ("position", position(at)),
            ("value", value(tree, level, at, bytes)),
        ]),
        Record::Delete { tree, level, position: at } => add(vec![
            ("kind", "delete".into()),
            ("tree", tree_name(tree).into()),
            ("level", level.into()),
            ("position", position(at)),
        ]),
        Record::Root { tree, level, pointer: bytes } => add(vec![
            ("kind", "root".into()),
            ("tree", tree_name(tree).into()),
            ("level", level.into()),
            ("pointer", decoded(NodePointer::decode(bytes).map(|found| pointer(&found)), bytes)),
        ]),
        Record::BucketOpen { member, bucket, generation, kind } => add(vec![
            ("kind", "bucket open".into()),
            ("member", member.into()),
            ("bucket", bucket.into()),
            ("generation", generation.into()),
            ("content", kind.into()),
        ]),
        Record::BucketLive { member, bucket, delta } => add(vec![
            ("kind", "bucket live".into()),
            ("member", member.into()),
            ("bucket", bucket.into()),
            ("delta", delta.into()),
        ]),
        Record::BucketSlot { member, bucket, slot, used } => add(vec![
            ("kind", "bucket slot".into()),
            ("member", member.into()),
            ("bucket", bucket.into()),
            ("slot", slot.into()),
            ("used", used.into()),
        ]),
        Record::CounterAdd { counter, delta } => add(vec![
            ("kind", "counter add".into()),
            ("counter", counter.into()),
            ("delta", delta.into()),
        ]),
        Record::CounterAtLeast { counter, least } => add(vec![
            ("kind", "counter at least".into()),
            ("counter", counter.into()),
            ("least", least.into()),
        ]),
        Record::Blacklist { first, last } => {
            add(vec![("kind", "blacklist".into()), ("first", first.into()), ("last", last.into())])
        }
    }
    Item::Map(fields)
}

/// A record that is none.
pub(super) fn failed(ordinal: usize, error: &StoreError) -> Item {
    Item::Map(vec![("ordinal", (ordinal as u64).into()), ("error", Item::Text(error.to_string()))])
}

/// A key of a node with its value.
pub(super) fn key(tree: Tree, level: u8, at: Position, bytes: &[u8]) -> Item {
    Item::Map(vec![("position", position(at)), ("value", value(tree, level, at, bytes))])
}

/// What a value says; one that does not decode is told with its bytes.
pub(super) fn value(tree: Tree, level: u8, at: Position, bytes: &[u8]) -> Item {
    if level > 0 {
        return decoded(NodePointer::decode(bytes).map(|found| pointer(&found)), bytes);
    }
    let item = match tree {
        Tree::Extents => Extent::decode(bytes).map(|found| extent(at, &found)),
        Tree::Inodes => Inode::decode_slot(bytes).map(|slot| match slot {
            Slot::Entry(found) => inode(&found),
            Slot::Whiteout => Item::Map(vec![("whiteout", true.into())]),
        }),
        Tree::Dirents => Entry::decode(bytes).map(entry),
        Tree::Xattrs => Xattr::decode(bytes).map(xattr),
        Tree::Subvolumes => subvolume(at, bytes),
        Tree::Names => PoolName::decode(bytes).map(|found| pool_name(&found)),
        Tree::LoggedOps => Intent::decode(bytes).map(|found| intent(&found)),
        Tree::Buckets => BucketCheckpoint::decode(bytes).map(|found| bucket(&found)),
        Tree::Counters => decode_counter(bytes).map(|(stamp, value)| {
            Item::Map(vec![
                ("value", value.into()),
                ("stamp_seq", stamp.0.into()),
                ("stamp_record", stamp.1.into()),
            ])
        }),
        Tree::Regions => match bytes {
            [low, high] => Ok(Item::Map(vec![("shard", u16::from_le_bytes([*low, *high]).into())])),
            _ => Err(StoreError::corrupt("region", format!("{} bytes", bytes.len()))),
        },
        Tree::Damage => Damage::decode(bytes).map(|found| damage(&found)),
        Tree::Tallies => Tally::decode(bytes).map(|found| tally(&found)),
        Tree::Areas => match bytes {
            [] => Ok(area(at)),
            _ => Err(StoreError::corrupt("area", format!("{} bytes", bytes.len()))),
        },
        Tree::Versions => {
            VersionNode::decode(SnapshotId(at.inode as u32), bytes).map(|found| version(&found))
        }
    };
    decoded(item, bytes)
}

fn area(at: Position) -> Item {
    let (version, area) = Area::at(at);
    let mut fields: Fields = vec![("version", version.0.into()), ("group", at.offset.into())];
    if area.is_data() {
        fields.push(("first_block", area.blocks().0.into()));
    }
    Item::Map(fields)
}

fn version(node: &VersionNode) -> Item {
    let id = |version: Option<SnapshotId>| version.map_or(0, |version| version.0).into();
    Item::Map(vec![("parent", id(node.parent)), ("absorbs", id(node.absorbs))])
}

fn decoded(item: Result<Item>, bytes: &[u8]) -> Item {
    item.unwrap_or_else(|error| {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Item::Map(vec![("error", Item::Text(error.to_string())), ("bytes", Item::Text(hex))])
    })
}

pub(super) fn pointer(pointer: &NodePointer) -> Item {
    let mut fields: Fields = vec![("node", pointer.node.into()), ("min", position(pointer.min))];
    match pointer.location {
        Some(location) => fields.extend([
            ("member", location.member.into()),
            ("block", location.block.into()),
            ("generation", location.generation.into()),
            ("written_blocks", pointer.written_blocks.into()),
            ("last_crc", pointer.last_crc.into()),
        ]),
        None => fields.push(("place", "in the journal only".into())),
    }
    Item::Map(fields)
}

fn extent(at: Position, extent: &Extent) -> Item {
    if extent.is_hole() {
        return Item::Map(vec![
            ("start", at.offset.saturating_sub(u64::from(extent.blocks)).into()),
            ("blocks", extent.blocks.into()),
            ("hole", true.into()),
        ]);
    }
    if let Some(address) = extent.address() {
        return Item::Map(vec![
            ("start", at.offset.saturating_sub(u64::from(extent.blocks)).into()),
            ("blocks", extent.blocks.into()),
            ("refers_to_space", Item::Text(format!("{:016x}", address.space))),
            ("refers_to_block", address.block.into()),
        ]);
    }
    let pointers = extent.pointers.iter().map(|pointer| {
        Item::Map(vec![
            ("member", pointer.member.into()),
            ("block", pointer.block.into()),
            ("generation", pointer.generation.into()),
        ])
    });
    let sums: Vec<_> = extent.checksums.iter().map(|sum| format!("{sum:08x}")).collect();
    let mut fields = vec![
        ("start", at.offset.saturating_sub(u64::from(extent.blocks)).into()),
        ("blocks", extent.blocks.into()),
        ("pointers", Item::List(pointers.collect())),
        ("checksums", Item::Text(sums.join(" "))),
    ];
    if let Some(holders) = extent.holders() {
        fields.push(("references", holders.count.into()));
    }
    if let Some(frame) = extent.frame {
        fields.push(("compression", Item::Text(frame.algorithm.to_string())));
        fields.push(("disk_blocks", extent.disk_blocks().into()));
        fields.push(("frame_blocks", frame.blocks.into()));
        fields.push(("first_in_frame", frame.offset.into()));
    }
    Item::Map(fields)
}

fn damage(damage: &Damage) -> Item {
    let mut fields: Fields = match &damage.lost {
        Lost::Block(pointer) => vec![
            ("lost", "block".into()),
            ("member", pointer.member.into()),
            ("block", pointer.block.into()),
            ("generation", pointer.generation.into()),
        ],
        Lost::Keys { tree, from, to } => vec![
            ("lost", "keys".into()),
            ("tree", tree_name(*tree).into()),
            ("from", position(*from)),
            ("to", position(*to)),
        ],
    };
    fields.push(("found_ns", damage.found_ns.into()));
    Item::Map(fields)
}

fn file_kind(kind: FileKind) -> Item {
    match kind {
        FileKind::File => "file".into(),
        FileKind::Directory => "directory".into(),
        FileKind::Symlink => "symlink".into(),
    }
}

pub(super) fn inode(inode: &Inode) -> Item {
    let mut fields: Fields = vec![
        ("kind", file_kind(inode.kind)),
        ("volume", inode.is_volume.into()),
        ("mode", Item::Text(format!("{:04o}", inode.mode))),
        ("uid", inode.uid.into()),
        ("gid", inode.gid.into()),
        ("links", inode.links.into()),
        ("generation", inode.generation.into()),
        ("size", inode.size.into()),
        ("data_limit", inode.data_limit.into()),
        ("parent", inode.parent.0.into()),
        ("hash_key", inode.hash_key.into()),
        ("atime_ns", inode.atime.into()),
        ("mtime_ns", inode.mtime.into()),
        ("ctime_ns", inode.ctime.into()),
        ("btime_ns", inode.btime.into()),
    ];
    if inode.kind == FileKind::Symlink {
        fields.push(("target", Item::Name(inode.target.clone())));
    }
    Item::Map(fields)
}

fn entry(slot: Slot<Entry>) -> Item {
    match slot {
        Slot::Whiteout => Item::Map(vec![("whiteout", true.into())]),
        Slot::Entry(entry) => Item::Map(vec![
            ("name", Item::Name(entry.name)),
            ("inode", entry.inode.0.into()),
            ("kind", file_kind(entry.kind)),
        ]),
    }
}

fn xattr(slot: Slot<Xattr>) -> Item {
    match slot {
        Slot::Whiteout => Item::Map(vec![("whiteout", true.into())]),
        Slot::Entry(xattr) => Item::Map(vec![
            ("name", Item::Name(xattr.name)),
            ("bytes", (xattr.value.len() as u64).into()),
            ("content", Item::Name(xattr.value)),
        ]),
    }
}

fn subvolume_kind(kind: SubvolumeKind) -> Item {
    match kind {
        SubvolumeKind::Volume => "volume".into(),
        SubvolumeKind::FileTree => "file tree".into(),
    }
}

fn subvolume(at: Position, bytes: &[u8]) -> Result<Item> {
    if at.offset == 1 {
        return Root::decode(bytes).map(|root| {
            Item::Map(vec![
                ("kind", subvolume_kind(root.kind)),
                ("version", root.snapshot.0.into()),
                ("inode", root.inode.0.into()),
            ])
        });
    }
    decode_subvolume(at.inode, bytes).map(|info| {
        Item::Map(vec![
            ("name", Item::Name(info.name.into_bytes())),
            ("kind", subvolume_kind(info.kind)),
            ("version", info.snapshot.0.into()),
            ("read_only", info.read_only.into()),
            ("origin", info.origin.map_or(0, |origin| origin.0).into()),
            ("root", info.root.0.into()),
            ("size", info.size_bytes.into()),
            ("block_size", info.block_size.into()),
            ("created_ns", info.created_ns.into()),
            ("uuid", Item::Uuid(info.uuid)),
        ])
    })
}

fn pool_name(name: &PoolName) -> Item {
    match name {
        PoolName::Subvolume { name, id } => Item::Map(vec![
            ("subvolume", Item::Name(name.clone().into_bytes())),
            ("id", id.0.into()),
        ]),
        PoolName::Record { collection, name, bytes } => Item::Map(vec![
            ("collection", Item::Name(collection.clone().into_bytes())),
            ("name", Item::Name(name.clone().into_bytes())),
            ("bytes", (bytes.len() as u64).into()),
        ]),
    }
}

pub(super) fn intent(intent: &Intent) -> Item {
    let fields: Fields = match intent {
        Intent::Create(new) => vec![
            ("operation", "create subvolume".into()),
            ("subvolume", new.id.0.into()),
            ("version", new.snapshot.0.into()),
            ("name", Item::Name(new.name.clone().into_bytes())),
            ("kind", subvolume_kind(new.kind)),
            ("size", new.size_bytes.into()),
        ],
        Intent::Resize { subvolume, name, inode, size_bytes } => vec![
            ("operation", "resize volume".into()),
            ("subvolume", subvolume.0.into()),
            ("name", Item::Name(name.clone().into_bytes())),
            ("inode", inode.0.into()),
            ("size", (*size_bytes).into()),
        ],
        Intent::Truncate { inode, snapshot, size } => vec![
            ("operation", "truncate file".into()),
            ("inode", inode.0.into()),
            ("version", snapshot.0.into()),
            ("size", (*size).into()),
        ],
        Intent::Remove { inode, snapshot } => vec![
            ("operation", "remove file".into()),
            ("inode", inode.0.into()),
            ("version", snapshot.0.into()),
        ],
    };
    Item::Map(fields)
}

pub(super) fn bucket_kind(kind: BucketKind) -> Item {
    match kind {
        BucketKind::Free => "free".into(),
        BucketKind::Data => "data".into(),
        BucketKind::Index => "index".into(),
    }
}

fn tally(tally: &Tally) -> Item {
    Item::Map(vec![
        ("data_buckets", tally.data_buckets.into()),
        ("index_buckets", tally.index_buckets.into()),
        ("used_slots", tally.used_slots.into()),
        ("live_blocks", tally.live_blocks.into()),
        ("least_live", tally.least_live.into()),
        ("oldest", tally.oldest.into()),
        ("newest", tally.newest.into()),
    ])
}

fn bucket(state: &BucketCheckpoint) -> Item {
    Item::Map(vec![
        ("kind", bucket_kind(state.kind)),
        ("generation", state.generation.into()),
        ("live_blocks", state.live_blocks.into()),
        ("slots", Item::Text(format!("{:#x}", state.slots))),
        ("stamp_seq", state.stamp.0.into()),
        ("stamp_record", state.stamp.1.into()),
        ("filled_at", state.filled_at.into()),
    ])
}
