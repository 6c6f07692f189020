//! Single structures of one device: superblock copies, a node at a block, the summary of a bucket.

use engine_base::BLOCK_SIZE;
use engine_device::{DeviceQueue, QueueExt as _};
use engine_memory::Buffer;

use super::describe::{position, tree_name, value};
use super::{Bounded, Item};
use crate::btree::format::{Bset, NODE_BLOCK, read_bset};
use crate::error::{Result, StoreError};
use crate::key::{Position, Value};
use crate::space::format::{decode_any_summary, summary_blocks};
use crate::superblock::{CopyState, Superblock, inspect};

/// Largest node: what is read when no superblock tells the size.
const NODE_BYTES_MAX: u64 = 64 << 20;
/// Bytes of a node that are looked at when its size is not known: the usual size.
const NODE_BYTES_USUAL: u64 = 256 << 10;

/// The superblock of a device: the state of each copy and what the newest says.
pub async fn superblock(device: &dyn DeviceQueue) -> Item {
    let name = Item::Text(device.info().name.clone());
    let found = match inspect(device).await {
        Ok(found) => found,
        Err(error) => {
            return Item::Map(vec![("device", name), ("error", Item::Text(error.to_string()))]);
        }
    };
    let copies = found.copies.iter().map(|(offset, state)| {
        let state = match state {
            CopyState::Good => "good".to_owned(),
            CopyState::Old { sequence } => format!("old, number {sequence}"),
            CopyState::Bad { why } => format!("bad: {why}"),
        };
        Item::Map(vec![("device_byte", (*offset).into()), ("state", Item::Text(state))])
    });
    let mut fields = vec![
        ("device", name),
        ("member_uuid", Item::Uuid(found.member_uuid)),
        ("copies", Item::List(copies.collect())),
    ];
    fields.extend(content(&found.newest));
    Item::Map(fields)
}

fn content(superblock: &Superblock) -> Vec<(&'static str, Item)> {
    let members = superblock.members.iter().enumerate().map(|(index, member)| {
        Item::Map(vec![
            ("member", (index as u64).into()),
            ("uuid", Item::Uuid(member.uuid)),
            ("size", member.size_bytes.into()),
            ("shrink_to", member.shrink_to_bytes.into()),
            ("label", Item::Name(member.label.clone().into_bytes())),
            ("failure_domain", Item::Name(member.failure_domain.clone().into_bytes())),
            ("durability", member.durability.into()),
        ])
    });
    let journals = superblock.journals.iter().enumerate().map(|(shard, area)| {
        Item::Map(vec![
            ("shard", (shard as u64).into()),
            ("member", area.member.into()),
            ("first_bucket", area.first_bucket.into()),
            ("buckets", area.buckets.into()),
        ])
    });
    let mut fields = vec![
        ("pool_uuid", Item::Uuid(superblock.pool_uuid)),
        ("label", Item::Name(superblock.label.clone().into_bytes())),
        ("sequence", superblock.sequence.into()),
        ("created_ns", superblock.created_ns.into()),
        ("bucket_bytes", superblock.bucket_bytes.into()),
        ("node_bytes", superblock.node_bytes.into()),
        ("region_buckets", superblock.region_buckets.into()),
        ("shards", superblock.shard_count().into()),
        ("members", Item::List(members.collect())),
        ("journals", Item::List(journals.collect())),
    ];
    if superblock.image_tails.is_some() {
        let what = "a metadata image: it holds no data, and other strings in place of names";
        fields.push(("image", what.into()));
    }
    fields
}

/// The size of a node or bucket as a device's superblock tells.
async fn geometry(device: &dyn DeviceQueue) -> Option<Superblock> {
    inspect(device).await.ok().map(|found| found.newest)
}

/// The bsets at `block` of a device, one after the other until there is none; with their keys, `limit`
/// over all. No superblock is needed, nor a pointer to the node.
///
/// # Errors
/// When the device does not read there.
pub async fn node(device: &dyn DeviceQueue, block: u64, limit: usize) -> Result<Vec<Item>> {
    let start = block.checked_mul(BLOCK_SIZE).filter(|start| *start < device.info().size_bytes);
    let Some(start) = start else {
        let size = device.info().size_bytes / BLOCK_SIZE;
        return Err(StoreError::invalid(format!("block {block}: the device has {size}")));
    };
    let known = geometry(device).await;
    let bytes = known.map_or(NODE_BYTES_USUAL, |superblock| u64::from(superblock.node_bytes));
    let len = bytes.min(NODE_BYTES_MAX).min(device.info().size_bytes - start);
    let len = len / BLOCK_SIZE * BLOCK_SIZE;
    let bytes = device.read(start, Buffer::try_new(len as usize)?).await?;
    let mut items = Vec::new();
    let (mut at, mut left) = (0, limit);
    while at < bytes.len() {
        let offset = start + at as u64;
        let mut keys = Keys::new();
        let mut more = 0_u64;
        let found = read_bset(&bytes[at..], offset, |position, value| {
            if keys.len() < left {
                keys.push((position, value.map(Value::from_slice)));
            } else {
                more += 1;
            }
        });
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                // After the last valid one anything may lie, as a lost append.
                items.push(Item::Map(vec![
                    ("device_byte", offset.into()),
                    ("end", Item::Text(format!("no valid bset follows: {error}"))),
                ]));
                break;
            }
        };
        left -= keys.len();
        items.push(bset(&found, offset, &keys, more));
        at += found.blocks * NODE_BLOCK;
    }
    Ok(items)
}

/// Keys of a bset, deleted ones too.
type Keys = Vec<(Position, Option<Value>)>;

fn bset(found: &Bset, offset: u64, keys: &Keys, more: u64) -> Item {
    let info = &found.info;
    let list = keys.iter().map(|(at, found)| {
        let what = match found {
            Some(bytes) => ("value", value(info.tree, info.level, *at, bytes)),
            None => ("deleted", true.into()),
        };
        Item::Map(vec![("position", position(*at)), what])
    });
    let mut fields = vec![
        ("device_byte", offset.into()),
        ("blocks", (found.blocks as u64).into()),
        ("bset", info.index.into()),
        ("crc", found.crc.into()),
        ("crc_before", info.previous.into()),
        ("tree", tree_name(info.tree).into()),
        ("level", info.level.into()),
        ("node", info.node.into()),
        ("journal_seq", info.journal_seq.into()),
        ("min", position(info.min)),
        ("max", position(info.max)),
        ("keys", Item::List(list.collect())),
    ];
    if more > 0 {
        fields.push(("keys_not_shown", more.into()));
    }
    Item::Map(fields)
}

/// The summary of a bucket of a device.
///
/// # Errors
/// When the device has no superblock that tells the size of a bucket, or no such bucket, or does not
/// read there.
pub async fn summary(device: &dyn DeviceQueue, bucket: u32, limit: usize) -> Result<Vec<Item>> {
    let superblock = geometry(device).await.ok_or_else(|| {
        let name = &device.info().name;
        StoreError::invalid(format!("{name} has no superblock that tells the size of a bucket"))
    })?;
    let bucket_blocks = superblock.bucket_bytes / BLOCK_SIZE as u32;
    let blocks = summary_blocks(bucket_blocks);
    let first = u64::from(bucket) * u64::from(bucket_blocks);
    let offset = (first + u64::from(bucket_blocks - blocks)) * BLOCK_SIZE;
    let len = u64::from(blocks) * BLOCK_SIZE;
    if offset + len > device.info().size_bytes {
        return Err(StoreError::invalid(format!("bucket {bucket}: the device ends before it")));
    }
    let bytes = device.read(offset, Buffer::try_new(len as usize)?).await?;
    let Some((generation, entries)) = decode_any_summary(&bytes, offset) else {
        let why = "no valid summary: the bucket is open, holds nodes, or was never filled";
        return Ok(vec![Item::Map(vec![("bucket", bucket.into()), ("summary", why.into())])]);
    };
    let mut items = Bounded::new(limit);
    items.push(Item::Map(vec![
        ("bucket", bucket.into()),
        ("device_byte", offset.into()),
        ("generation", generation.into()),
        ("entries", (entries.len() as u64).into()),
    ]));
    for entry in entries {
        let item = Item::Map(vec![
            ("inode", entry.inode.into()),
            ("end", entry.end.into()),
            ("version", entry.snapshot.into()),
            ("start_block", entry.start_block.into()),
            ("blocks", u32::from(entry.blocks).into()),
            ("disk_blocks", u32::from(entry.disk_blocks).into()),
        ]);
        if !items.push(item) {
            break;
        }
    }
    Ok(items.into_items())
}
