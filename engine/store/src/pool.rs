//! Making a pool: geometry from the sizes of its members, then superblocks and empty journals.

use std::rc::Rc;

use engine_base::random::Random;
use engine_base::{BLOCK_SIZE, MIB};
use engine_device::{DeviceQueue, IoVec, QueueExt};
use engine_memory::Buffer;

use crate::btree::NodePointer;
use crate::error::{Result, StoreError};
use crate::journal::format::{EntryInfo, HEADER_BYTES, JOURNAL_BLOCK, seal_entry};
use crate::journal::{Record, RecordWriter};
use crate::key::{Position, Tree};
use crate::superblock::{
    self, JOURNAL_BYTES_MAX, JOURNAL_BYTES_MIN, JournalArea, Member, SHARDS_MAX, Superblock,
};

pub use crate::superblock::{ProbeError, probe};

/// Least size of a member in bytes.
pub const MEMBER_BYTES_MIN: u64 = 16 * MIB;
/// Largest journal of a shard that is chosen without being asked for.
const JOURNAL_BYTES_USUAL: u64 = 64 * MIB;

/// How to make a pool. `None` fields are chosen from the sizes of the members.
#[derive(Clone, Debug, Default)]
pub struct FormatOptions {
    /// Label of the pool, at most 32 bytes.
    pub label: String,
    /// Labels of members by index, at most 32 bytes each; absent: empty.
    pub member_labels: Vec<String>,
    /// Shards, a power of two up to 256.
    pub shards: Option<u16>,
    /// Bytes of a bucket, a power of two from 64 KiB to 64 MiB.
    pub bucket_bytes: Option<u32>,
    /// Bytes of an index node, a power of two from 16 KiB to the bucket size.
    pub node_bytes: Option<u32>,
    /// Buckets of a region.
    pub region_buckets: Option<u32>,
    /// Bytes of each shard's journal, at least 1 MiB; rounded up to whole buckets.
    pub journal_bytes: Option<u64>,
    /// Time of creation, nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// Seed of the UUIDs: must be random, and new for each pool.
    pub uuid_seed: [u64; 2],
}

/// Makes a pool of `members`, whose content is lost. Durable when it returns.
///
/// # Errors
/// `InvalidArgument` when the options or the members cannot make a pool, saying what would; device
/// errors.
pub async fn format(
    members: &[Rc<dyn DeviceQueue>],
    options: &FormatOptions,
) -> Result<Superblock> {
    let superblock = plan(members, options)?;
    for member in members {
        superblock::erase(&**member).await?;
    }
    for shard in 0..superblock.shard_count() {
        write_empty_journal(members, &superblock, shard).await?;
    }
    for member in members {
        member.flush().await?;
    }
    for (index, member) in members.iter().enumerate() {
        superblock::write(&**member, &superblock, index as u8).await?;
    }
    Ok(superblock)
}

/// Chooses the geometry.
fn plan(members: &[Rc<dyn DeviceQueue>], options: &FormatOptions) -> Result<Superblock> {
    let invalid = |why: String| Err(StoreError::invalid(why));
    let shards = options.shards.unwrap_or(4);
    if !shards.is_power_of_two() || shards > SHARDS_MAX {
        return invalid(format!("{shards} shards: use a power of two from 1 to {SHARDS_MAX}"));
    }
    if members.is_empty() || members.len() > superblock::MEMBERS_MAX {
        let most = superblock::MEMBERS_MAX;
        return invalid(format!("{} members: use 1 to {most} devices", members.len()));
    }
    if options.label.len() > 32 || options.member_labels.iter().any(|label| label.len() > 32) {
        return invalid("a label is longer than 32 bytes".to_owned());
    }
    let smallest = members.iter().map(|member| member.info().size_bytes).min().unwrap_or(0);
    if smallest < MEMBER_BYTES_MIN {
        let least = MEMBER_BYTES_MIN / MIB;
        return invalid(format!("a device of {smallest} bytes: {least} MiB are the least"));
    }
    if let Some(member) = members.iter().find(|member| member.info().block_size > BLOCK_SIZE as u32)
    {
        let (name, size) = (&member.info().name, member.info().block_size);
        return invalid(format!("{name} has blocks of {size} bytes: 4096 are the most"));
    }
    let total: u64 = members.iter().map(|member| member.info().size_bytes).sum();
    let bucket_bytes = options.bucket_bytes.unwrap_or_else(|| default_bucket_bytes(total, shards));
    if !bucket_bytes.is_power_of_two() || !(64 << 10..=64 << 20).contains(&bucket_bytes) {
        return invalid(format!("bucket size {bucket_bytes}: use a power of two from 64K to 64M"));
    }
    let node_bytes = options.node_bytes.unwrap_or((bucket_bytes / 4).clamp(16 << 10, 256 << 10));
    let bucket = u64::from(bucket_bytes);
    let journal_bytes = options.journal_bytes.unwrap_or_else(|| {
        (total / u64::from(shards) / 32).clamp(JOURNAL_BYTES_MIN, JOURNAL_BYTES_USUAL)
    });
    if !(JOURNAL_BYTES_MIN..=JOURNAL_BYTES_MAX).contains(&journal_bytes) {
        return invalid(format!("a journal of {journal_bytes} bytes: use 1 MiB to 1 GiB"));
    }
    let journal_buckets = journal_bytes.div_ceil(bucket) as u32;
    let mut random = Random::new(options.uuid_seed[0] ^ options.uuid_seed[1].rotate_left(32));
    let mut superblock = Superblock {
        pool_uuid: uuid(&mut random, options.uuid_seed[1]),
        label: options.label.clone(),
        sequence: 1,
        created_ns: options.created_ns,
        bucket_bytes,
        node_bytes,
        region_buckets: 1,
        members: Vec::new(),
        journals: Vec::new(),
        image_tails: None,
    };
    for (index, member) in members.iter().enumerate() {
        let uuid = uuid(&mut random, options.uuid_seed[1]);
        let label = options.member_labels.get(index).cloned().unwrap_or_default();
        let size_bytes = member.info().size_bytes / bucket * bucket;
        superblock.members.push(Member::new(uuid, size_bytes, label));
    }
    let mut next = vec![superblock.head_buckets(); members.len()];
    for shard in 0..usize::from(shards) {
        let member = shard % members.len();
        let first_bucket = next[member];
        next[member] += journal_buckets;
        let area = JournalArea { member: member as u8, first_bucket, buckets: journal_buckets };
        superblock.journals.push(area);
    }
    let usable =
        |index: usize| superblock.member_buckets(index as u8).saturating_sub(next[index] + 1);
    let buckets: u64 = (0..members.len()).map(|index| u64::from(usable(index))).sum();
    if (0..members.len()).any(|index| usable(index) == 0) || buckets < 24 * u64::from(shards) {
        return invalid(format!(
            "{buckets} buckets of {bucket_bytes} bytes are left beside the journals: {shards} \
             shards need 24 each; use larger devices, fewer shards or smaller buckets"
        ));
    }
    // Thirty-two regions or more for each shard, so that what one shard holds follows its needs.
    let region = (buckets / u64::from(shards) / 32).clamp(1, 256) as u32;
    superblock.region_buckets = options.region_buckets.unwrap_or(region);
    superblock.validate()?;
    Ok(superblock)
}

/// 1 MiB, less for small pools so that each shard has enough of them, more for large ones so that
/// tables stay small.
fn default_bucket_bytes(total: u64, shards: u16) -> u32 {
    let wanted = (total / u64::from(shards) / 256).clamp(64 << 10, MIB);
    let least = (total / (4 << 20)).next_power_of_two().min(64 * MIB);
    (wanted.next_power_of_two().min(MIB)).max(least) as u32
}

/// A version 4 UUID.
fn uuid(random: &mut Random, salt: u64) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&random.next_u64().to_le_bytes());
    uuid[8..].copy_from_slice(&(random.next_u64() ^ salt).to_le_bytes());
    uuid[6] = (uuid[6] & 0x0f) | 0x40;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    uuid
}

/// Clears a journal and writes its first entry: empty trees.
async fn write_empty_journal(
    members: &[Rc<dyn DeviceQueue>],
    superblock: &Superblock,
    shard: u16,
) -> Result<()> {
    let area = superblock.journals[usize::from(shard)];
    let member = &members[usize::from(area.member)];
    let base = u64::from(area.first_bucket) * u64::from(superblock.bucket_bytes);
    let bytes = u64::from(area.buckets) * u64::from(superblock.bucket_bytes);
    let zeroes = Buffer::try_new(superblock.bucket_bytes.min(1 << 20) as usize)?.freeze();
    let mut at = 0;
    while at < bytes {
        member.write(base + at, IoVec::from_iter([zeroes.clone()]), false).await?;
        at += zeroes.len() as u64;
    }
    let mut entry = vec![0; HEADER_BYTES];
    for tree in Tree::ALL {
        let node = 1 + tree as u64;
        let root = NodePointer::unwritten(node, Position::MIN).encode();
        RecordWriter(&mut entry).push(&Record::Root { tree, level: 0, pointer: &root });
    }
    let blocks = entry.len().div_ceil(JOURNAL_BLOCK) as u32;
    let info = EntryInfo { seq: 1, last_seq: 1, flush: true, blocks };
    seal_entry(&mut entry, &info, superblock.pool_uuid, shard, 0);
    let data = IoVec::from_iter([Buffer::try_copy_of(&entry)?.freeze()]);
    Ok(member.write(base, data, true).await?)
}
