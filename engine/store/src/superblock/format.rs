//! The superblock on disk; drawn in docs/format.md.

use engine_base::checksum::{crc32c, crc32c_append};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Result, StoreError};

/// Bytes of one copy: room for the header, 255 members and the journals of 256 shards.
pub const SUPERBLOCK_BYTES: usize = 64 * 1024;
/// Most members of a pool; member index 255 means none.
pub const MEMBERS_MAX: usize = 255;
/// Most shards of a pool.
pub const SHARDS_MAX: u16 = 256;
/// Least journal of a shard in bytes: room for several entries and the reserves among them.
pub const JOURNAL_BYTES_MIN: u64 = 1 << 20;
/// Largest journal of a shard in bytes: recovery reads it whole.
pub const JOURNAL_BYTES_MAX: u64 = 1 << 30;
/// "CAIRNPL\0"
const MAGIC: [u8; 8] = *b"CAIRNPL\0";
/// Version of this layout.
const VERSION: u32 = 0;
/// Least buckets of a member.
const MEMBER_BUCKETS_MIN: u32 = 8;
/// Bit of `features_incompatible`: the members of a metadata image, see [`Superblock::image_tails`].
const FEATURE_METADATA_IMAGE: u64 = 1;
const LABEL_BYTES: usize = 32;
const MEMBERS_OFFSET: usize = 4096;
const MEMBER_BYTES: usize = 128;
const JOURNALS_OFFSET: usize = 40 * 1024;
const JOURNAL_BYTES: usize = 16;

/// The fixed part.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Header {
    /// CRC-32C of the whole copy with this field zero, then of the copy's byte offset on its device:
    /// catches rot and misdirected writes.
    crc: U32,
    /// Version of the layout; another one is refused.
    version: U32,
    magic: [u8; 8],
    /// Bits a reader may ignore; may ignore when it only reads; must know.
    features_compatible: U64,
    features_read_only: U64,
    features_incompatible: U64,
    pool_uuid: [u8; 16],
    /// UUID of the member this copy lies on: catches a device that was copied or swapped.
    member_uuid: [u8; 16],
    /// Rises with every write of the superblock.
    sequence: U64,
    /// Nanoseconds since the Unix epoch.
    created_ns: U64,
    /// Size of a bucket; a power of two.
    bucket_bytes: U32,
    /// Size of an index node; a power of two, at most a bucket, at least a 64th of it.
    node_bytes: U32,
    /// Buckets of a region.
    region_buckets: U32,
    /// Shards, a power of two.
    shards: U16,
    members: U16,
    /// log2 of the bytes of a chunk.
    chunk_bytes_log2: u8,
    /// Copies of metadata and data that are kept: 1 in this version.
    metadata_replicas: u8,
    data_replicas: u8,
    reserved: u8,
    /// Options by which wrapped keys will be found: none in this version, zero.
    key_slots: U32,
    /// UTF-8, padded with zeroes.
    label: [u8; LABEL_BYTES],
}

/// One member on disk.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct DiskMember {
    uuid: [u8; 16],
    /// Bytes in use of the device, a multiple of the bucket size.
    size_bytes: U64,
    /// 0 read-write; others are reserved.
    state: u8,
    /// How many copies one copy on this member counts for.
    durability: u8,
    reserved: [u8; 6],
    /// Per-member sequence for split-brain detection.
    sequence: U64,
    label: [u8; LABEL_BYTES],
    failure_domain: [u8; LABEL_BYTES],
    /// Size that the member is being shrunk to; 0: it is not.
    shrink_to_bytes: U64,
    reserved2: [u8; 16],
}

/// Where a shard's journal lies.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct DiskJournal {
    member: u8,
    reserved: [u8; 3],
    first_bucket: U32,
    buckets: U32,
    /// In a metadata image: entries after the newest flush entry that count. Else zero.
    image_tail: U32,
}

const _: () = assert!(size_of::<Header>() == 144);
const _: () = assert!(size_of::<DiskMember>() == MEMBER_BYTES);
const _: () = assert!(size_of::<DiskJournal>() == JOURNAL_BYTES);
const _: () = assert!(size_of::<Header>() <= MEMBERS_OFFSET);
const _: () = assert!(MEMBERS_OFFSET + MEMBERS_MAX * MEMBER_BYTES <= JOURNALS_OFFSET);
const _: () = assert!(JOURNALS_OFFSET + SHARDS_MAX as usize * JOURNAL_BYTES <= SUPERBLOCK_BYTES);

impl Header {
    /// Refuses what this version does not do; it opens pools to write only.
    fn check_supported(&self) -> Result<()> {
        let unknown = self.features_incompatible.get() & !FEATURE_METADATA_IMAGE;
        if self.version.get() != VERSION || unknown != 0 {
            let what = format!(
                "on-disk format {} with features {unknown:#x}; this program knows format {VERSION}",
                self.version.get(),
            );
            return Err(StoreError::Unsupported { what });
        }
        if self.features_read_only.get() != 0
            || u32::from(self.chunk_bytes_log2) != engine_base::ids::CHUNK_SIZE_LOG2
            || (self.metadata_replicas, self.data_replicas) != (1, 1)
            || self.key_slots.get() != 0
        {
            let what =
                "a pool with features to read only, several replicas, keys or another chunk \
                        size"
                    .to_owned();
            return Err(StoreError::Unsupported { what });
        }
        Ok(())
    }
}

/// A member device of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Identity.
    pub uuid: [u8; 16],
    /// Bytes in use, a multiple of the bucket size.
    pub size_bytes: u64,
    /// Label for people and for targets, at most 32 bytes.
    pub label: String,
    /// What fails together, at most 32 bytes; empty: the member alone.
    pub failure_domain: String,
    /// How many copies one copy on this member counts for.
    pub durability: u8,
    /// Bytes that will be left of it when it is empty behind them, a multiple of the bucket size and less
    /// than `size_bytes`; 0: it is not being shrunk.
    pub shrink_to_bytes: u64,
}

impl Member {
    /// One that fails alone and counts once.
    pub(crate) fn new(uuid: [u8; 16], size_bytes: u64, label: String) -> Self {
        let failure_domain = String::new();
        Self { uuid, size_bytes, label, failure_domain, durability: 1, shrink_to_bytes: 0 }
    }
}

/// Where a shard's journal lies: adjacent buckets of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalArea {
    /// Member index.
    pub member: u8,
    /// First bucket.
    pub first_bucket: u32,
    /// Number of buckets.
    pub buckets: u32,
}

/// What a pool is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Identity of the pool.
    pub pool_uuid: [u8; 16],
    /// Label for people, at most 32 bytes.
    pub label: String,
    /// Rises with every write.
    pub sequence: u64,
    /// Nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// Bytes of a bucket.
    pub bucket_bytes: u32,
    /// Bytes of an index node.
    pub node_bytes: u32,
    /// Buckets of a region.
    pub region_buckets: u32,
    /// Members by index.
    pub members: Vec<Member>,
    /// Journals by shard; as many as there are shards.
    pub journals: Vec<JournalArea>,
    /// Not `None`: these are the members of a *metadata image*, which holds no data, and other strings
    /// in place of names. By shard, how many journal entries after the newest flush entry count: an
    /// image cannot tell, since that depends on data.
    pub image_tails: Option<Vec<u32>>,
}

impl Superblock {
    /// Shards of the pool.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        self.journals.len() as u16
    }

    /// Fails when it is of a metadata image; `device` names what it was found on.
    ///
    /// # Errors
    /// `Unsupported`, in words for people.
    pub fn refuse_image(&self, device: &str) -> Result<()> {
        if self.image_tails.is_none() {
            return Ok(());
        }
        let what = format!(
            "{device} is a metadata image of a pool, without its data: only `cairn dump` reads it"
        );
        Err(StoreError::Unsupported { what })
    }

    /// Buckets of a member.
    #[must_use]
    pub fn member_buckets(&self, member: u8) -> u32 {
        (self.members[usize::from(member)].size_bytes / u64::from(self.bucket_bytes)) as u32
    }

    /// Regions of a member, the last one possibly short.
    #[must_use]
    pub fn member_regions(&self, member: u8) -> u32 {
        self.member_buckets(member).div_ceil(self.region_buckets)
    }

    /// Buckets at the start of each member that hold the superblock's first two copies.
    #[must_use]
    pub fn head_buckets(&self) -> u32 {
        (3 * SUPERBLOCK_BYTES as u32).div_ceil(self.bucket_bytes)
    }

    /// Whether a bucket belongs to a superblock copy or a journal and is never allocated.
    #[must_use]
    pub fn is_reserved(&self, member: u8, bucket: u32) -> bool {
        bucket < self.head_buckets()
            || bucket + 1 >= self.member_buckets(member)
            || self.journals.iter().any(|journal| {
                journal.member == member
                    && (journal.first_bucket..journal.first_bucket + journal.buckets)
                        .contains(&bucket)
            })
    }

    /// The bucket of a member from which on none is given out: the last one, with the third copy, or the
    /// one that will be the last.
    #[must_use]
    pub fn member_end(&self, member: u8) -> u32 {
        let shape = &self.members[usize::from(member)];
        let bytes = match shape.shrink_to_bytes {
            0 => shape.size_bytes,
            bytes => bytes,
        };
        (bytes / u64::from(self.bucket_bytes)) as u32 - 1
    }

    /// Bytes of the smallest member at `member` that holds the copies, the journals on it and `buckets`
    /// more.
    #[must_use]
    pub fn size_for(&self, member: u8, buckets: u64) -> u64 {
        let journals = self.journals.iter().filter(|journal| journal.member == member);
        let (mut taken, mut end) = (u64::from(self.head_buckets()), 0);
        for journal in journals {
            taken += u64::from(journal.buckets);
            end = end.max(u64::from(journal.first_bucket) + u64::from(journal.buckets));
        }
        let all = (taken + buckets).max(end) + 1;
        all.max(u64::from(MEMBER_BUCKETS_MIN)) * u64::from(self.bucket_bytes)
    }

    /// Buckets of region `index` of a member before bucket `end` that can be allocated.
    #[must_use]
    pub fn usable_buckets(&self, member: u8, index: u32, end: u32) -> u32 {
        let first = index.saturating_mul(self.region_buckets);
        let last = self.member_buckets(member) - 1;
        let end = end.min(last).min(first.saturating_add(self.region_buckets)).max(first);
        let overlap = |from: u32, to: u32| to.min(end).saturating_sub(from.max(first));
        let journals = self.journals.iter().filter(|journal| journal.member == member);
        let taken: u32 = journals
            .map(|journal| overlap(journal.first_bucket, journal.first_bucket + journal.buckets))
            .sum();
        end - first - taken - overlap(0, self.head_buckets())
    }

    /// Byte offsets of the three copies on a member of `size_bytes` (a multiple of 64 KiB).
    #[must_use]
    pub fn copy_offsets(size_bytes: u64) -> [u64; 3] {
        let copy = SUPERBLOCK_BYTES as u64;
        [copy, 2 * copy, size_bytes - copy]
    }

    /// The copy for byte `offset` of member `index`.
    #[must_use]
    pub fn encode(&self, index: u8, offset: u64) -> Vec<u8> {
        let mut bytes = vec![0; SUPERBLOCK_BYTES];
        let header = Header {
            crc: U32::new(0),
            version: U32::new(VERSION),
            magic: MAGIC,
            features_compatible: U64::new(0),
            features_read_only: U64::new(0),
            features_incompatible: U64::new(match self.image_tails {
                Some(_) => FEATURE_METADATA_IMAGE,
                None => 0,
            }),
            pool_uuid: self.pool_uuid,
            member_uuid: self.members[usize::from(index)].uuid,
            sequence: U64::new(self.sequence),
            created_ns: U64::new(self.created_ns),
            bucket_bytes: U32::new(self.bucket_bytes),
            node_bytes: U32::new(self.node_bytes),
            region_buckets: U32::new(self.region_buckets),
            shards: U16::new(self.shard_count()),
            members: U16::new(self.members.len() as u16),
            chunk_bytes_log2: engine_base::ids::CHUNK_SIZE_LOG2 as u8,
            metadata_replicas: 1,
            data_replicas: 1,
            reserved: 0,
            key_slots: U32::new(0),
            label: pad(&self.label),
        };
        bytes[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        for (slot, member) in bytes[MEMBERS_OFFSET..].chunks_mut(MEMBER_BYTES).zip(&self.members) {
            let disk = DiskMember {
                uuid: member.uuid,
                size_bytes: U64::new(member.size_bytes),
                state: 0,
                durability: member.durability,
                reserved: [0; 6],
                sequence: U64::new(self.sequence),
                label: pad(&member.label),
                failure_domain: pad(&member.failure_domain),
                shrink_to_bytes: U64::new(member.shrink_to_bytes),
                reserved2: [0; 16],
            };
            slot.copy_from_slice(disk.as_bytes());
        }
        let slots = bytes[JOURNALS_OFFSET..].chunks_mut(JOURNAL_BYTES);
        for (shard, (slot, area)) in slots.zip(&self.journals).enumerate() {
            let tail = self.image_tails.as_ref().and_then(|tails| tails.get(shard));
            let disk = DiskJournal {
                member: area.member,
                reserved: [0; 3],
                first_bucket: U32::new(area.first_bucket),
                buckets: U32::new(area.buckets),
                image_tail: U32::new(tail.copied().unwrap_or(0)),
            };
            slot.copy_from_slice(disk.as_bytes());
        }
        Self::seal(&mut bytes, offset);
        bytes
    }

    /// Puts the right checksum into a copy for byte `offset`.
    pub(crate) fn seal(bytes: &mut [u8], offset: u64) {
        let crc = checksum(bytes, offset);
        bytes[..4].copy_from_slice(U32::new(crc).as_bytes());
    }

    /// Whether bytes begin as a superblock does, valid or not.
    pub(crate) fn has_magic(bytes: &[u8]) -> bool {
        Header::read_from_prefix(bytes).is_ok_and(|(header, _)| header.magic == MAGIC)
    }

    /// Parses the copy read at byte `offset`; also gives the UUID of the member it was written for.
    ///
    /// # Errors
    /// `Corrupt` when it is not a valid copy; `Unsupported` when it is one of another version.
    pub fn decode(bytes: &[u8], offset: u64) -> Result<(Self, [u8; 16])> {
        let bad = |why: String| StoreError::corrupt("superblock", why);
        if bytes.len() != SUPERBLOCK_BYTES {
            return Err(bad(format!("{} bytes long", bytes.len())));
        }
        let (header, _) = Header::read_from_prefix(bytes).map_err(|_| bad("short".to_owned()))?;
        if header.magic != MAGIC {
            return Err(bad("magic is absent: not a Cairn member".to_owned()));
        }
        if header.crc.get() != checksum(bytes, offset) {
            return Err(bad(format!("checksum does not match at byte {offset}")));
        }
        header.check_supported()?;
        let members = bytes[MEMBERS_OFFSET..]
            .chunks(MEMBER_BYTES)
            .take(usize::from(header.members.get()))
            .filter_map(|slot| DiskMember::read_from_bytes(slot).ok())
            .map(|disk| Member {
                uuid: disk.uuid,
                size_bytes: disk.size_bytes.get(),
                label: unpad(&disk.label),
                failure_domain: unpad(&disk.failure_domain),
                durability: disk.durability,
                shrink_to_bytes: disk.shrink_to_bytes.get(),
            })
            .collect();
        let (mut journals, mut tails) = (Vec::new(), Vec::new());
        let slots = bytes[JOURNALS_OFFSET..].chunks(JOURNAL_BYTES);
        for disk in slots
            .take(usize::from(header.shards.get()))
            .filter_map(|slot| DiskJournal::read_from_bytes(slot).ok())
        {
            journals.push(JournalArea {
                member: disk.member,
                first_bucket: disk.first_bucket.get(),
                buckets: disk.buckets.get(),
            });
            tails.push(disk.image_tail.get());
        }
        let is_image = header.features_incompatible.get() & FEATURE_METADATA_IMAGE != 0;
        let superblock = Self {
            pool_uuid: header.pool_uuid,
            label: unpad(&header.label),
            sequence: header.sequence.get(),
            created_ns: header.created_ns.get(),
            bucket_bytes: header.bucket_bytes.get(),
            node_bytes: header.node_bytes.get(),
            region_buckets: header.region_buckets.get(),
            members,
            journals,
            image_tails: is_image.then_some(tails),
        };
        superblock.validate()?;
        Ok((superblock, header.member_uuid))
    }

    /// Checks every relation between the fields; nothing past this looks at unproven numbers.
    ///
    /// # Errors
    /// `Corrupt` naming the relation that does not hold.
    pub fn validate(&self) -> Result<()> {
        let bad = |why: &str| Err(StoreError::corrupt("superblock", why));
        let (bucket, node) = (self.bucket_bytes, self.node_bytes);
        if !bucket.is_power_of_two() || !(64 * 1024..=64 << 20).contains(&bucket) {
            return bad("bucket size is not a power of two from 64 KiB to 64 MiB");
        }
        if !node.is_power_of_two() || node < 16 * 1024 || node > bucket || bucket / node > 64 {
            return bad("node size is not a power of two from 16 KiB to the bucket size");
        }
        if self.region_buckets == 0 || self.region_buckets > 1 << 16 {
            return bad("buckets of a region are out of range");
        }
        if self.members.is_empty() || self.members.len() > MEMBERS_MAX {
            return bad("number of members is out of range");
        }
        if !self.shard_count().is_power_of_two() || self.shard_count() > SHARDS_MAX {
            return bad("number of shards is not a power of two up to 256");
        }
        for member in &self.members {
            let buckets = member.size_bytes / u64::from(bucket);
            if !member.size_bytes.is_multiple_of(u64::from(bucket))
                || buckets < u64::from(MEMBER_BUCKETS_MIN)
                || buckets > u64::from(u32::MAX >> 1)
            {
                return bad("size of a member is out of range");
            }
            let to = member.shrink_to_bytes;
            if to != 0
                && (!to.is_multiple_of(u64::from(bucket))
                    || to / u64::from(bucket) < u64::from(MEMBER_BUCKETS_MIN)
                    || to >= member.size_bytes)
            {
                return bad("size that a member is being shrunk to is out of range");
            }
        }
        for journal in &self.journals {
            let bytes = u64::from(journal.buckets) * u64::from(bucket);
            if usize::from(journal.member) >= self.members.len()
                || !(JOURNAL_BYTES_MIN..=JOURNAL_BYTES_MAX).contains(&bytes)
                || journal.first_bucket < self.head_buckets()
                || u64::from(journal.first_bucket) + u64::from(journal.buckets)
                    > u64::from(self.member_end(journal.member))
            {
                return bad("a journal lies outside its member or its size is out of range");
            }
        }
        let overlap = |one: &JournalArea, other: &JournalArea| {
            one.member == other.member
                && one.first_bucket < other.first_bucket + other.buckets
                && other.first_bucket < one.first_bucket + one.buckets
        };
        for (index, journal) in self.journals.iter().enumerate() {
            if self.journals[..index].iter().any(|other| overlap(journal, other)) {
                return bad("two journals overlap");
            }
        }
        Ok(())
    }
}

fn checksum(bytes: &[u8], offset: u64) -> u32 {
    let crc = crc32c_append(crc32c(&[0; 4]), &bytes[4..]);
    crc32c_append(crc, &offset.to_le_bytes())
}

fn pad(text: &str) -> [u8; LABEL_BYTES] {
    let mut bytes = [0; LABEL_BYTES];
    let len = text.len().min(LABEL_BYTES);
    bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
    bytes
}

fn unpad(bytes: &[u8; LABEL_BYTES]) -> String {
    let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(LABEL_BYTES);
    String::from_utf8_lossy(&bytes[..len]).into_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Superblock {
        Superblock {
            pool_uuid: [7; 16],
            label: "tank".to_owned(),
            sequence: 3,
            created_ns: 5,
            bucket_bytes: 256 << 10,
            node_bytes: 64 << 10,
            region_buckets: 16,
            members: vec![Member {
                uuid: [9; 16],
                size_bytes: 256 << 20,
                label: "ssd.0".to_owned(),
                failure_domain: String::new(),
                durability: 1,
                shrink_to_bytes: 128 << 20,
            }],
            journals: vec![
                JournalArea { member: 0, first_bucket: 1, buckets: 8 },
                JournalArea { member: 0, first_bucket: 9, buckets: 8 },
            ],
            image_tails: None,
        }
    }

    #[test]
    fn round_trip_and_misplacement() {
        let superblock = sample();
        let bytes = superblock.encode(0, 65536);
        assert_eq!(Superblock::decode(&bytes, 65536), Ok((superblock, [9; 16])));
        assert!(Superblock::decode(&bytes, 131_072).is_err(), "a misdirected copy is refused");
    }

    #[test]
    fn an_image_is_marked_and_refused_and_unknown_features_are() {
        let image = Superblock { image_tails: Some(vec![0, 7]), ..sample() };
        let mut bytes = image.encode(0, 65536);
        assert_eq!(Superblock::decode(&bytes, 65536), Ok((image.clone(), [9; 16])));
        let refused = image.refuse_image("disk").map_err(|error| error.to_string());
        let words = "disk is a metadata image of a pool, without its data: only `cairn dump` reads";
        assert!(refused.is_err_and(|text| text.contains(words)));
        assert_eq!(sample().refuse_image("disk"), Ok(()));
        for bit in 1..64 {
            bytes[32..40].copy_from_slice(&(FEATURE_METADATA_IMAGE | 1 << bit).to_le_bytes());
            Superblock::seal(&mut bytes, 65536);
            let found = Superblock::decode(&bytes, 65536);
            assert!(matches!(found, Err(StoreError::Unsupported { .. })), "bit {bit}");
        }
    }

    #[test]
    fn usable_buckets_are_those_not_reserved() {
        let superblock = sample();
        assert_eq!(superblock.member_end(0), 511);
        for (index, before) in (0..superblock.member_regions(0))
            .flat_map(|at| [0, 5, 12, 511, 520, 1023, 1024, 5000].map(|before| (at, before)))
        {
            let first = index * superblock.region_buckets;
            let end = superblock.member_buckets(0).min(first + superblock.region_buckets);
            let counted = (first..end)
                .filter(|bucket| *bucket < before && !superblock.is_reserved(0, *bucket))
                .count();
            let usable = superblock.usable_buckets(0, index, before);
            assert_eq!(usable as usize, counted, "region {index} before {before}");
        }
        assert_eq!(superblock.size_for(0, 100), (1 + 16 + 100 + 1) * (256 << 10));
    }

    #[test]
    fn every_single_bit_flip_is_refused() {
        let bytes = sample().encode(0, 65536);
        for at in (0..4400).chain(40 * 1024..40 * 1024 + 64).chain(60_000..60_064) {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(Superblock::decode(&bad, 65536).is_err(), "byte {at}");
        }
    }
}
