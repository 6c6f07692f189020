//! Finding what to replay.

use std::collections::BTreeMap;

use engine_device::{DeviceError, QueueExt};
use engine_memory::Buffer;

use super::format::{
    ENTRY_BYTES_MAX, EntryInfo, JOURNAL_BLOCK, Record, SEQ_MAX, parse_entry, records,
};
use super::ring::Placed;
use super::writer::Place;
use crate::error::{Result, StoreError};
use crate::planted::{self, Bug};
use crate::reached::{Branch, mark};

/// How far sequence numbers jump at a recovery, past the newest one seen: at least this, and up to
/// [`SEQ_JUMP_RANDOM`] more, so that numbers of entries and nodes which the device lost unseen are not
/// given again.
const SEQ_JUMP: u64 = 64;
const SEQ_JUMP_RANDOM: u64 = 1 << 16;
/// Bytes of the ring read by one command.
const READ_BYTES: usize = 1 << 20;

/// An entry to replay.
pub(crate) struct ReplayEntry {
    pub(crate) placed: Placed,
    pub(crate) records: Vec<u8>,
}

/// What the journal says after a crash or a clean close.
pub(crate) struct Recovered {
    /// Entries to replay, oldest first: up to the newest flush entry and, after [`Recovered::keep`], what
    /// of the tail was found whole.
    pub(crate) entries: Vec<ReplayEntry>,
    /// Entries after the newest flush entry, without a gap. What they name need not be on the
    /// devices.
    pub(crate) tail: Vec<ReplayEntry>,
    pub(crate) flush_seq: u64,
    pub(crate) last_seq: u64,
    pub(crate) next_seq: u64,
    pub(crate) blacklist: Vec<(u64, u64)>,
    /// Entries found after the newest one to replay.
    pub(crate) dropped: u64,
    /// Whether there was any entry after the newest flush entry, or may have been: where it cannot be read now,
    /// and may be read later.
    pub(crate) unflushed: bool,
    /// Blocks of the ring that could not be read.
    pub(crate) unreadable: u32,
}

impl Recovered {
    /// Number of the newest entry to replay.
    pub(crate) fn newest_seq(&self) -> u64 {
        self.entries.last().map_or(self.flush_seq, |entry| entry.placed.seq)
    }

    /// Tells the log what was found.
    pub(crate) fn tell(&self, shard: u16) {
        let Self { flush_seq, last_seq, next_seq, dropped, unflushed, .. } = self;
        let (oldest, newest) = (self.entries.first().map(|one| one.placed.seq), self.newest_seq());
        tracing::debug!(
            shard,
            oldest,
            newest,
            flush_seq,
            last_seq,
            next_seq,
            dropped,
            unflushed,
            "journal read"
        );
        for (first, last) in &self.blacklist {
            tracing::debug!(shard, first, last, "entries that never count");
        }
    }

    /// Takes the first `count` entries of the tail as committed, and gives up the rest.
    pub(crate) fn keep(&mut self, count: usize) {
        let mut kept = std::mem::take(&mut self.tail);
        kept.truncate(count);
        let Some(first) = kept.first().map(|entry| entry.placed.seq) else { return };
        self.dropped -= count as u64;
        self.entries.extend(kept);
        let newest = self.newest_seq();
        let given_up = self.blacklist.pop().map_or(self.next_seq - 1, |(_, last)| last);
        if first > self.flush_seq + 1 {
            mark(Branch::GivenUpBefore);
            self.blacklist.push((self.flush_seq + 1, first - 1));
        }
        if !planted::is(Bug::BlacklistForgotten) {
            self.blacklist.push((newest + 1, given_up));
        }
    }
}

/// A valid entry of the ring.
pub(crate) struct Found {
    pub(crate) info: EntryInfo,
    /// First block in the ring.
    pub(crate) start: u32,
    pub(crate) records: Vec<u8>,
}

/// What is in the ring.
pub(crate) struct Scan {
    /// Every valid entry, by number.
    pub(crate) found: BTreeMap<u64, Found>,
    /// Blocks that could not be read.
    pub(crate) unreadable: u32,
}

/// Reads the whole ring and decides what to replay.
///
/// # Errors
/// When the device fails, when there is no flush entry at all, or when an entry is missing that a
/// later flush entry proves to have been durable.
pub(crate) async fn recover(place: &Place, ring_blocks: u32, random: u64) -> Result<Recovered> {
    let Scan { found, unreadable } = scan(place, ring_blocks).await?;
    let shard = place.shard;
    let newest = found.values().rev().find(|found| found.info.flush).ok_or_else(|| {
        mark(Branch::JournalWithoutFlush);
        let (device, first) = (&place.queue.info().name, place.base_bytes);
        let last = first + u64::from(ring_blocks) * JOURNAL_BLOCK as u64;
        let why = format!(
            "no flush entry at bytes {first} to {last} of {device}; every journal has one from the \
             start: the device lost its content; nothing was changed: restore {device} from a copy"
        );
        StoreError::corrupt(format!("journal of shard {shard}"), why)
    })?;
    let (flush_seq, last_seq) = (newest.info.seq, newest.info.last_seq);
    let max_seen = found.keys().next_back().copied().unwrap_or(flush_seq);
    let mut blacklist = blacklist_of(newest)?;
    let listed = |seq: u64| blacklist.iter().find(|(first, last)| (*first..=*last).contains(&seq));
    let take = |entry: &Found| ReplayEntry {
        placed: Placed { seq: entry.info.seq, start: entry.start, blocks: entry.info.blocks },
        records: entry.records.clone(),
    };
    let mut entries = Vec::new();
    let mut seq = last_seq;
    while seq <= flush_seq {
        if let Some((_, last)) = listed(seq) {
            mark(Branch::JournalSkipsGivenUp);
            seq = last + 1;
            continue;
        }
        let Some(entry) = found.get(&seq) else {
            mark(Branch::JournalEntryLost);
            return Err(lost(place, &found, seq, flush_seq));
        };
        entries.push(take(entry));
        seq += 1;
    }
    let tail = match tail_start(&found, flush_seq) {
        Some(start) => (start..).map_while(|seq| found.get(&seq).map(take)).collect(),
        None => Vec::new(),
    };
    let next_seq = max_seen + SEQ_JUMP + random % SEQ_JUMP_RANDOM;
    blacklist.retain(|(_, last)| *last >= last_seq);
    if !planted::is(Bug::BlacklistForgotten) {
        blacklist.push((flush_seq + 1, next_seq - 1));
    }
    let dropped = found.keys().filter(|seq| **seq > flush_seq).count() as u64;
    Ok(Recovered {
        entries,
        tail,
        flush_seq,
        last_seq,
        next_seq,
        blacklist,
        dropped,
        unflushed: dropped > 0 || unreadable > 0,
        unreadable,
    })
}

/// The error for an entry that is missing: what, where, and what to do.
fn lost(place: &Place, found: &BTreeMap<u64, Found>, seq: u64, flush_seq: u64) -> StoreError {
    let device = &place.queue.info().name;
    let at = |block: u32| place.base_bytes + u64::from(block) * JOURNAL_BLOCK as u64;
    let before = found.range(..seq).next_back().map(|(_, entry)| entry.start + entry.info.blocks);
    let after = found.range(seq..).next().map(|(_, entry)| entry.start);
    let place_text = match (before, after) {
        (Some(from), Some(to)) if from < to => format!("bytes {} to {}", at(from), at(to)),
        (Some(from), _) => format!("byte {} or the start of the ring", at(from)),
        (None, _) => format!("before byte {}", at(after.unwrap_or(0))),
    };
    StoreError::corrupt(
        format!("journal of shard {}", place.shard),
        format!(
            "entry {seq} is missing or damaged ({place_text} of {device}), but entry {flush_seq} \
             proves it was durable: the device lost or changed it; nothing was changed: restore \
             {device} from a copy, or look at what is left with cairn dump"
        ),
    )
}

fn blacklist_of(entry: &Found) -> Result<Vec<(u64, u64)>> {
    let mut blacklist = Vec::new();
    for record in records(&entry.records) {
        if let Record::Blacklist { first, last } = record? {
            if first > last || last > SEQ_MAX + 2 * SEQ_JUMP_RANDOM {
                return Err(StoreError::corrupt("journal", "a blacklist range makes no sense"));
            }
            blacklist.push((first, last));
        }
    }
    Ok(blacklist)
}

/// Number of the first entry of the tail, if there is one. The newest range in the blacklist of the
/// newest entry says where the run began that wrote it: after the flush entry, when that run had not
/// flushed yet.
fn tail_start(found: &BTreeMap<u64, Found>, flush_seq: u64) -> Option<u64> {
    let (_, newest) = found.last_key_value()?;
    match blacklist_of(newest).ok()?.last() {
        Some((first, last)) if *last > flush_seq => {
            let follows = *first == flush_seq + 1;
            mark(if follows { Branch::TailAfterJump } else { Branch::TailUnconnected });
            follows.then_some(last + 1)
        }
        _ => Some(flush_seq + 1),
    }
}

/// Reads block by block what could not be read at once, and says how many could not even so. A block that cannot
/// be read holds no entry: a write that failed or was cut off may leave such blocks, and an entry that is needed is
/// missed later.
async fn read_by_blocks(
    place: &Place,
    offset: u64,
    len: usize,
    ring: &mut Vec<u8>,
    error: DeviceError,
) -> Result<u32> {
    mark(Branch::JournalReadByBlocks);
    let (mut any, mut unreadable) = (false, 0);
    for at in (0..len as u64).step_by(JOURNAL_BLOCK) {
        match place.queue.read(offset + at, Buffer::try_new(JOURNAL_BLOCK)?).await {
            Ok(block) => {
                ring.extend_from_slice(&block);
                any = true;
            }
            Err(_) => {
                unreadable += 1;
                ring.resize(ring.len() + JOURNAL_BLOCK, 0);
            }
        }
    }
    // A device that reads nothing at all is broken; its journal is not.
    if any { Ok(unreadable) } else { Err(error.into()) }
}

/// Looks through the ring.
///
/// # Errors
/// When the device reads nothing at all.
pub(crate) async fn scan(place: &Place, ring_blocks: u32) -> Result<Scan> {
    let ring_bytes = ring_blocks as usize * JOURNAL_BLOCK;
    let (mut ring, mut unreadable) = (Vec::new(), 0);
    ring.try_reserve_exact(ring_bytes)
        .map_err(|_| StoreError::OutOfMemory { what: "reading the journal".to_owned() })?;
    while ring.len() < ring_bytes {
        let len = READ_BYTES.min(ring_bytes - ring.len());
        let offset = place.base_bytes + ring.len() as u64;
        match place.queue.read(offset, Buffer::try_new(len)?).await {
            Ok(part) => ring.extend_from_slice(&part),
            Err(error) => {
                unreadable += read_by_blocks(place, offset, len, &mut ring, error).await?;
            }
        }
    }
    let mut found = BTreeMap::new();
    let mut block = 0;
    while block < ring_blocks {
        let at = block as usize * JOURNAL_BLOCK;
        let end = ring_bytes.min(at + ENTRY_BYTES_MAX);
        match parse_entry(&ring[at..end], place.pool_uuid, place.shard, at as u64) {
            Some((info, records)) => {
                let records = records.to_vec();
                found.insert(info.seq, Found { info, start: block, records });
                block += info.blocks;
            }
            None => block += 1,
        }
    }
    Ok(Scan { found, unreadable })
}
