//! Filling, writing and waiting for journal entries.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use engine_device::{DeviceQueue, IoVec, QueueExt};
use engine_memory::alloc_scope;

use super::format::{
    ENTRY_BYTES_MAX, EntryInfo, HEADER_BYTES, JOURNAL_BLOCK, Record, RecordWriter, seal_entry,
    take_flush_flag,
};
use super::pins::{Holder, Pins};
use super::read::Recovered;
use super::ring::Ring;
use crate::error::{Result, StoreError};
use crate::planted::{self, Bug};
use crate::reserve::Reserve;
use crate::sync::Notify;
use crate::times::{Timed, Waits};

/// Room that every entry keeps for the roots and blacklist records that are added when it is sealed:
/// a root of each tree, of at most 64 bytes and 64 blacklist ranges.
const TRAILER_BYTES: usize = 4096;
/// Blocks of a flush entry without records of its own, at most.
const FLUSH_ENTRY_BLOCKS: u32 = (HEADER_BYTES + TRAILER_BYTES).div_ceil(JOURNAL_BLOCK) as u32;
/// Most ranges in the blacklist; one recovery adds one, and they leave as the journal moves on.
const BLACKLIST_MAX: usize = 64;
/// An entry is written without being asked for when it has grown to this, or to a quarter of what an
/// entry may hold: large enough for few commands, small enough to keep the device busy early.
const WRITE_AT_BYTES: usize = 256 * 1024;
/// Buffers that are kept for the next entries: as many as are mostly on their way.
const SPARES_MAX: usize = 4;
/// Longest buffer that is kept for the next entry: nearly all entries are shorter.
const SPARE_BYTES_MAX: usize = 64 * 1024;

/// Who wants journal space. What frees space gets the last of it, so the journal cannot wedge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Operations of clients; they leave a quarter of the ring alone.
    Normal,
    /// Writing out nodes and checkpoints; leaves a sixteenth, for flush entries.
    Reclaim,
}

/// Where a journal lies and whose it is.
#[derive(Clone)]
pub(crate) struct Place {
    /// The member that holds it.
    pub(crate) member: u8,
    pub(crate) queue: Rc<dyn DeviceQueue>,
    pub(crate) base_bytes: u64,
    pub(crate) pool_uuid: [u8; 16],
    pub(crate) shard: u16,
}

struct State {
    ring: Ring,
    pins: Pins,
    /// Number of the entry being filled.
    seq: u64,
    /// Room for the header, then the records of the entry being filled.
    buffer: Vec<u8>,
    /// Buffers of entries that were written, for the next ones: [`SPARES_MAX`] at most.
    spares: Vec<Vec<u8>>,
    /// Records in it so far.
    ordinal: u32,
    /// Newest entry that was written with all before it and the data they name, and newest durable
    /// flush entry.
    written_seq: u64,
    flushed_seq: u64,
    /// Entries on their way to the device, oldest first, and whether they have arrived. One whose data
    /// is on its way is so itself.
    on_the_way: VecDeque<(u64, bool)>,
    /// Entries that name data on its way, and how many writes that is.
    data: BTreeMap<u64, u32>,
    /// The entry by which data is named at another place than an entry before it says, where it could not be
    /// written: recovery would take nothing from there on. So nothing counts as written any more until a flush
    /// entry makes all of it durable.
    unproven: Option<u64>,
    /// `last_seq` of the newest durable flush entry.
    durable_last_seq: u64,
    /// Blocks of the ring that write-outs leave for flush entries. Less than a sixteenth after a
    /// recovery that had to put its flush entry there, until there is room again.
    reclaim_keep: u32,
    /// Flush wanted up to this entry.
    want_flush: u64,
    /// Somebody waits for the buffer to be written.
    want_write: bool,
    /// Somebody waits for ring space.
    want_space: bool,
    blacklist: Vec<(u64, u64)>,
    failed: Option<String>,
    entries_written: u64,
    flushes: u64,
    member_flushes: u64,
    bytes_written: u64,
    waits_for_space: u64,
}

/// The journal of a shard.
pub(crate) struct Journal {
    place: Place,
    waits: Rc<Waits>,
    state: RefCell<State>,
    unflushed: Unflushed,
    /// Room for one entry, for when memory is refused.
    reserve: Reserve,
    /// Something for the writer to do.
    pub(crate) work: Notify,
    /// Something that waiters wait for has happened.
    progress: Notify,
}

/// Members that were written to since they were last flushed. A write is noted when it is done, before
/// anything names what it wrote; so what a flush entry covers is on members that were noted before it was
/// sealed, and one that is noted while members are being flushed is flushed again the next time.
struct Unflushed([Cell<u64>; 4]);

impl Unflushed {
    /// Nothing is known of what was written before.
    fn all() -> Self {
        Self(std::array::from_fn(|_| Cell::new(u64::MAX)))
    }

    fn note(&self, member: u8) {
        let word = &self.0[usize::from(member / 64)];
        word.set(word.get() | 1 << (member % 64));
    }

    /// The members to be flushed now, of `members`.
    fn take(&self, members: usize) -> Vec<usize> {
        let words = self.0.each_ref().map(Cell::take);
        (0..members).filter(|member| words[member / 64] & (1 << (member % 64)) != 0).collect()
    }
}

/// What the journal's writer should do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    WriteFlush,
    Write,
    Wait,
    Stop,
}

impl Journal {
    /// A journal that goes on after `recovered`.
    ///
    /// # Errors
    /// When there is no memory for its reserve.
    pub(crate) fn new(
        place: Place,
        ring_blocks: u32,
        recovered: &Recovered,
        waits: Rc<Waits>,
    ) -> Result<Self> {
        let reserve = Reserve::try_new(entry_bytes_max(ring_blocks))?;
        let ring = Ring::new(ring_blocks, recovered.entries.iter().map(|entry| entry.placed));
        let state = State {
            reclaim_keep: reclaim_keep(ring_blocks, ring.free().saturating_sub(FLUSH_ENTRY_BLOCKS)),
            ring,
            pins: Pins::default(),
            seq: recovered.next_seq,
            buffer: vec![0; HEADER_BYTES],
            spares: Vec::with_capacity(SPARES_MAX),
            ordinal: 0,
            written_seq: recovered.newest_seq(),
            flushed_seq: recovered.flush_seq,
            on_the_way: VecDeque::new(),
            data: BTreeMap::new(),
            unproven: None,
            durable_last_seq: recovered.last_seq,
            want_flush: 0,
            want_write: false,
            want_space: false,
            blacklist: recovered.blacklist.clone(),
            failed: None,
            entries_written: 0,
            flushes: 0,
            member_flushes: 0,
            bytes_written: 0,
            waits_for_space: 0,
        };
        Ok(Self {
            place,
            waits,
            state: RefCell::new(state),
            unflushed: Unflushed::all(),
            reserve,
            work: Notify::default(),
            progress: Notify::default(),
        })
    }

    /// Number of the entry being filled.
    pub(crate) fn seq(&self) -> u64 {
        self.state.borrow().seq
    }

    /// (entry being filled, records in it): everything applied so far lies before this.
    pub(crate) fn stamp(&self) -> (u64, u32) {
        let state = self.state.borrow();
        (state.seq, state.ordinal)
    }

    /// Newest entry known to be durable.
    pub(crate) fn flushed_seq(&self) -> u64 {
        self.state.borrow().flushed_seq
    }

    /// The entry by which everything that has happened so far is durable once it is: an entry that
    /// was, is or will be written without anybody doing more.
    pub(crate) fn settled_by(&self) -> u64 {
        let state = self.state.borrow();
        if state.ordinal > 0 {
            state.seq
        } else {
            state.ring.newest().unwrap_or(state.flushed_seq).max(state.flushed_seq)
        }
    }

    pub(crate) fn failure(&self) -> Option<StoreError> {
        let state = self.state.borrow();
        state.failed.as_ref().map(|why| StoreError::ShuttingDown { why: why.clone() })
    }

    /// Stops all writing for good: what is in memory can no longer be made durable.
    pub(crate) fn fail(&self, why: &str) {
        tracing::debug!(shard = self.place.shard, why, "the journal takes no more writes");
        self.state.borrow_mut().failed.get_or_insert_with(|| why.to_owned());
        self.work.notify_all();
        self.progress.notify_all();
    }

    pub(crate) fn pin(&self, seq: u64, holder: Holder) {
        self.state.borrow_mut().pins.add(seq, holder);
    }

    pub(crate) fn unpin(&self, seq: u64, holder: Holder) {
        self.state.borrow_mut().pins.remove(seq, holder);
    }

    /// Appends records; the caller was admitted for their bytes in the same turn.
    pub(crate) fn append(&self, records: &[Record<'_>]) {
        let _scope = alloc_scope!("journal entries");
        let mut state = self.state.borrow_mut();
        for record in records {
            RecordWriter(&mut state.buffer).push(record);
        }
        state.ordinal += records.len() as u32;
        if state.buffer.len() >= WRITE_AT_BYTES.min(state.entry_bytes_max() / 4) {
            state.want_write = true;
            drop(state);
            self.work.notify_all();
        }
    }

    /// Whether the ring has a place for a flush entry without records.
    pub(crate) fn has_room_for_flush(&self) -> bool {
        self.state.borrow().ring.free_after(FLUSH_ENTRY_BLOCKS).is_some()
    }

    /// Whether records of `bytes` may be appended now.
    pub(crate) fn has_room(&self, bytes: usize, class: Class) -> bool {
        let state = self.state.borrow();
        state.entry_has_room(bytes) && state.ring_has_room(bytes, class)
    }

    /// Waits until records of `bytes` may be appended. Appending must follow in the same turn,
    /// checked again with [`Journal::has_room`].
    ///
    /// # Errors
    /// When the journal has failed.
    pub(crate) async fn admit(&self, bytes: usize, class: Class) -> Result<()> {
        let (mut waited, mut wait) = (false, None);
        loop {
            if let Some(error) = self.failure() {
                return Err(error);
            }
            let progress = {
                let mut state = self.state.borrow_mut();
                assert!(
                    HEADER_BYTES + bytes + TRAILER_BYTES <= state.entry_bytes_max(),
                    "a transaction of {bytes} bytes can never fit a journal entry"
                );
                if state.entry_has_room(bytes) && state.ring_has_room(bytes, class) {
                    return Ok(());
                }
                let room = state.entry_has_room(bytes);
                self.waits.go_on(&mut wait, state.why_no_room(room));
                if room {
                    state.want_space = true;
                    if !waited {
                        state.waits_for_space += 1;
                        let (shard, free) = (self.place.shard, state.ring.free());
                        tracing::debug!(shard, free, bytes, "waits for space in the journal");
                        waited = true;
                    }
                } else {
                    state.want_write = true;
                }
                self.progress.notified()
            };
            self.work.notify_all();
            progress.await;
        }
    }

    /// The entry being filled names data that is on its way; one more write of it.
    pub(crate) fn expect_data(&self) {
        let mut state = self.state.borrow_mut();
        let seq = state.seq;
        *state.data.entry(seq).or_default() += 1;
    }

    /// Data that entry `seq` names is on its device. Its write was noted.
    pub(crate) fn data_landed(&self, seq: u64) {
        let mut state = self.state.borrow_mut();
        if let Some(writes) = state.data.get_mut(&seq) {
            *writes -= 1;
            if *writes == 0 {
                state.data.remove(&seq);
            }
        }
        state.settle();
        drop(state);
        self.work.notify_all();
        self.progress.notify_all();
    }

    /// Data that entry `seq` names could not be written there; what was appended by now names it elsewhere.
    pub(crate) fn data_moved(&self, seq: u64) {
        let mut state = self.state.borrow_mut();
        let by = state.newest();
        state.unproven = Some(by);
        state.want_flush = state.want_flush.max(by);
        drop(state);
        self.data_landed(seq);
    }

    /// Whether no entry is on its way, nor data that one names but the one being filled.
    pub(crate) fn is_settled(&self) -> bool {
        self.state.borrow().on_the_way.is_empty()
    }

    /// Begins what [`Journal::written`] waits for.
    pub(crate) fn begin_write(&self) {
        let mut state = self.state.borrow_mut();
        state.want_write |= state.ordinal > 0;
        drop(state);
        self.work.notify_all();
    }

    /// Begins what [`Journal::flush`] waits for. Returns the entry that it is for.
    pub(crate) fn begin_flush(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        let target = state.newest();
        state.want_flush = state.want_flush.max(target);
        drop(state);
        self.work.notify_all();
        target
    }

    /// Makes all that was appended before the call durable.
    ///
    /// # Errors
    /// When the journal fails before that is done.
    pub(crate) async fn flush(&self) -> Result<()> {
        let target = self.begin_flush();
        let mut wait = None;
        loop {
            let progress = {
                let state = self.state.borrow();
                // Numbers below the first of this run that no entry has are durable by nature.
                if state.flushed_seq >= target || state.nothing_since_flush() {
                    return Ok(());
                }
                self.progress.notified()
            };
            if let Some(error) = self.failure() {
                return Err(error);
            }
            self.work.notify_all();
            self.waits.go_on(&mut wait, Timed::BlockedJournalFlush);
            progress.await;
        }
    }

    /// Waits until all that was appended before the call is on its way to outlive this process: given
    /// to the device, not flushed.
    ///
    /// # Errors
    /// When the journal fails before that is done.
    pub(crate) async fn written(&self) -> Result<()> {
        let target = {
            let mut state = self.state.borrow_mut();
            if state.ordinal > 0 {
                state.want_write = true;
                state.seq
            } else {
                state.seq - 1
            }
        };
        let mut wait = None;
        loop {
            let progress = {
                let state = self.state.borrow();
                // Numbers below the first of this run that no entry has are written by nature.
                let nothing =
                    state.ordinal == 0 && state.writing_done() && state.unproven.is_none();
                if state.written_seq >= target || nothing {
                    return Ok(());
                }
                self.progress.notified()
            };
            if let Some(error) = self.failure() {
                return Err(error);
            }
            self.work.notify_all();
            self.waits.go_on(&mut wait, Timed::BlockedJournalWrite);
            progress.await;
        }
    }

    /// Whether anything was appended or written since the last flush entry.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.state.borrow().nothing_since_flush()
    }

    /// What the writer should do now.
    pub(crate) fn next(&self) -> Next {
        let state = self.state.borrow();
        let unflushed = state.want_flush > state.flushed_seq && !state.nothing_since_flush();
        let oldest = state.pins.oldest().unwrap_or(state.seq);
        // A flush entry gives ring space back only if less is needed than the last one said.
        let space = state.want_space && oldest > state.durable_last_seq;
        if state.failed.is_some() {
            Next::Stop
        } else if unflushed || space {
            Next::WriteFlush
        } else if state.want_write && state.ordinal > 0 {
            Next::Write
        } else {
            Next::Wait
        }
    }

    /// Whether entries should be unpinned: the pins to work on are those older than the result.
    pub(crate) fn reclaim_before(&self) -> Option<u64> {
        let mut state = self.state.borrow_mut();
        let oldest = state.pins.oldest()?;
        if state.blacklist.len() > BLACKLIST_MAX / 2 {
            // Ranges leave the list when nothing older is needed any more.
            let past = state.blacklist[state.blacklist.len() / 2].1 + 1;
            if oldest < past {
                return Some(past);
            }
        }
        let used = state.ring.blocks() - state.ring.free();
        if used * 2 < state.ring.blocks() && !state.want_space {
            return None;
        }
        let (needed, all) = (state.seq - oldest, state.seq - state.durable_last_seq);
        if needed * 2 < all && !state.want_space {
            // Enough is unpinned: a flush entry that says so gives the space back.
            state.want_space = true;
            drop(state);
            self.work.notify_all();
            return None;
        }
        // Half of what lies between the oldest pin and now, at least one entry.
        Some(oldest + needed.div_ceil(2).max(1))
    }

    /// Up to `most` holders that pin entries older than `before`.
    pub(crate) fn holders_before(&self, before: u64, most: usize) -> Vec<Holder> {
        self.state.borrow().pins.holders_before(before, most)
    }

    /// Seals the entry being filled, before the first wait, and writes it; with `flush`, as a flush
    /// entry, after flushing `members`. `roots` adds the root records. Several may be on their way,
    /// but a flush entry is alone: no entry before it may still be on its way. It waits for the data that
    /// it names itself; when some of that could not be written there, it becomes an ordinary one.
    ///
    /// # Errors
    /// When a device fails; the journal has failed then.
    pub(crate) async fn write_entry(
        &self,
        mut flush: bool,
        members: &[Rc<dyn DeviceQueue>],
        roots: impl FnOnce(&mut RecordWriter<'_>),
    ) -> Result<()> {
        let (info, start, mut entry) = self.seal(flush, roots);
        assert!(!flush || self.state.borrow().on_the_way.len() == 1, "a flush entry goes alone");
        let (shard, EntryInfo { seq, last_seq, blocks, .. }) = (self.place.shard, info);
        tracing::trace!(shard, seq, last_seq, blocks, flush, "journal entry");
        if flush && !self.own_data(seq).await? {
            take_flush_flag(&mut entry, u64::from(start) * JOURNAL_BLOCK as u64);
            flush = false;
        }
        let kind = if flush { Timed::JournalFlushWrite } else { Timed::JournalWrite };
        let timed = self.waits.start(kind);
        let written = self.write_sealed(flush, members, start, &entry).await;
        drop(timed);
        if let Err(error) = written {
            self.fail(&format!("journal write failed: {error}"));
            return Err(error);
        }
        let mut state = self.state.borrow_mut();
        state.arrived(info.seq);
        state.entries_written += 1;
        state.bytes_written += entry.len() as u64;
        if flush {
            state.flushes += 1;
            state.flushed_seq = info.seq;
            state.written_seq = info.seq;
            state.unproven = state.unproven.filter(|by| *by > info.seq);
            state.durable_last_seq = info.last_seq;
            // Until now recovery went back to an older flush entry, and came here from there.
            state.blacklist.retain(|(_, last)| *last >= info.last_seq);
            state.ring.release_before(info.last_seq);
            let keep = reclaim_keep(state.ring.blocks(), state.ring.free());
            state.reclaim_keep = state.reclaim_keep.max(keep);
        }
        if entry.capacity() <= SPARE_BYTES_MAX && state.spares.len() < SPARES_MAX {
            state.spares.push(entry);
        }
        drop(state);
        self.progress.notify_all();
        Ok(())
    }

    fn seal(
        &self,
        flush: bool,
        roots: impl FnOnce(&mut RecordWriter<'_>),
    ) -> (EntryInfo, u32, Vec<u8>) {
        let mut state = self.state.borrow_mut();
        let seq = state.seq;
        let last_seq = state.pins.oldest().unwrap_or(seq);
        assert!(last_seq <= seq && last_seq >= state.durable_last_seq);
        if flush {
            state.want_space = false;
        }
        let _scope = alloc_scope!("journal entries");
        let mut next = state.spares.pop().unwrap_or_default();
        next.clear();
        next.resize(HEADER_BYTES, 0);
        let mut entry = std::mem::replace(&mut state.buffer, next);
        let records_end = entry.len();
        roots(&mut RecordWriter(&mut entry));
        for (first, last) in &state.blacklist {
            RecordWriter(&mut entry).push(&Record::Blacklist { first: *first, last: *last });
        }
        assert!(entry.len() - records_end <= TRAILER_BYTES, "too many recoveries in a row");
        let blocks = entry.len().div_ceil(JOURNAL_BLOCK) as u32;
        let Some(placed) = state.ring.place(seq, blocks) else {
            unreachable!("admission keeps room in the ring for the entry being filled");
        };
        let info = EntryInfo { seq, last_seq, flush, blocks };
        let offset = u64::from(placed.start) * JOURNAL_BLOCK as u64;
        seal_entry(&mut entry, &info, self.place.pool_uuid, self.place.shard, offset);
        state.on_the_way.push_back((seq, false));
        state.seq += 1;
        state.ordinal = 0;
        state.want_write = false;
        (info, placed.start, entry)
    }

    /// Waits for the data that flush entry `seq` names. False: some of it is elsewhere, by what was appended
    /// since.
    async fn own_data(&self, seq: u64) -> Result<bool> {
        loop {
            let progress = {
                let mut state = self.state.borrow_mut();
                if !state.data.contains_key(&seq) {
                    let proven = state.unproven.is_none_or(|by| by <= seq);
                    state.want_space |= !proven;
                    return Ok(proven);
                }
                self.progress.notified()
            };
            if let Some(error) = self.failure() {
                return Err(error);
            }
            progress.await;
        }
    }

    async fn write_sealed(
        &self,
        flush: bool,
        members: &[Rc<dyn DeviceQueue>],
        start: u32,
        entry: &[u8],
    ) -> Result<()> {
        if flush && !planted::is(Bug::NoPreflush) {
            self.flush_members(members).await?;
        }
        let copy = self.reserve.copy_of(entry).await?;
        let data = IoVec::from_iter([copy.data()]);
        let offset = self.place.base_bytes + u64::from(start) * JOURNAL_BLOCK as u64;
        let fua = flush && !planted::is(Bug::NoJournalFua);
        self.place.queue.write(offset, data, fua).await?;
        if !fua {
            self.note_written(self.place.member);
        }
        Ok(())
    }

    /// Flushes, side by side, the members that were written to since they were last flushed.
    async fn flush_members(&self, members: &[Rc<dyn DeviceQueue>]) -> Result<()> {
        let dirty = self.unflushed.take(members.len());
        if dirty.is_empty() {
            return Ok(());
        }
        self.state.borrow_mut().member_flushes += dirty.len() as u64;
        let _timed = self.waits.start(Timed::JournalMemberFlush);
        let flushes = dirty.iter().map(|member| members[*member].flush());
        for result in futures::future::join_all(flushes).await {
            result?;
        }
        Ok(())
    }

    /// Notes that a write to `member`, not durable by itself, is done; to be called before anything names what
    /// was written.
    pub(crate) fn note_written(&self, member: u8) {
        self.unflushed.note(member);
    }

    /// Named counters for metrics.
    pub(crate) fn counters(&self, out: &mut Vec<(&'static str, u64)>) {
        let state = self.state.borrow();
        out.push(("journal_entries_written", state.entries_written));
        out.push(("journal_flushes", state.flushes));
        out.push(("journal_member_flushes", state.member_flushes));
        out.push(("journal_entries_on_the_way", state.on_the_way.len() as u64));
        let oldest = state.pins.oldest().unwrap_or(state.seq);
        out.push(("journal_entries_pinned", state.seq - oldest));
        out.push(("journal_bytes_written", state.bytes_written));
        out.push(("journal_waits_for_space", state.waits_for_space));
        out.push(("journal_reserve_uses", self.reserve.uses()));
        out.push(("journal_pins", state.pins.len() as u64));
        out.push(("journal_ring_blocks", u64::from(state.ring.blocks())));
        out.push(("journal_ring_free_blocks", u64::from(state.ring.free())));
    }

    /// Bytes of the ring.
    pub(crate) fn ring_bytes(&self) -> u64 {
        u64::from(self.state.borrow().ring.blocks()) * JOURNAL_BLOCK as u64
    }
}

/// Longest entry of a ring of `ring_blocks`, in bytes.
fn entry_bytes_max(ring_blocks: u32) -> usize {
    ENTRY_BYTES_MAX.min(ring_blocks as usize / 8 * JOURNAL_BLOCK)
}

/// What write-outs leave free in a ring of `blocks`, of which `free` are.
fn reclaim_keep(blocks: u32, free: u32) -> u32 {
    (blocks / 16).min(free / 2)
}

impl State {
    fn nothing_since_flush(&self) -> bool {
        self.ordinal == 0
            && self.written_seq == self.flushed_seq
            && self.unproven.is_none()
            && self.writing_done()
    }

    /// The newest entry with records, which may be the one being filled.
    fn newest(&self) -> u64 {
        if self.ordinal > 0 { self.seq } else { self.seq - 1 }
    }

    /// No sealed entry is on its way to the device.
    fn writing_done(&self) -> bool {
        self.on_the_way.is_empty()
    }

    /// Entry `seq` is on the device.
    fn arrived(&mut self, seq: u64) {
        if let Some(entry) = self.on_the_way.iter_mut().find(|(on_the_way, _)| *on_the_way == seq) {
            entry.1 = true;
        }
        self.settle();
    }

    /// An entry counts as written once it is, with its data, and all before it are.
    fn settle(&mut self) {
        while let Some((seq, true)) = self.on_the_way.front().copied() {
            if self.data.contains_key(&seq) {
                break;
            }
            self.on_the_way.pop_front();
            if self.unproven.is_none() {
                self.written_seq = seq;
            }
        }
    }

    fn entry_bytes_max(&self) -> usize {
        entry_bytes_max(self.ring.blocks())
    }

    fn entry_has_room(&self, bytes: usize) -> bool {
        self.buffer.len() + bytes + TRAILER_BYTES <= self.entry_bytes_max()
    }

    /// What it is that an append waits for. `entry_room`: whether the entry being filled has room.
    fn why_no_room(&self, entry_room: bool) -> Timed {
        let pinned = self.pins.oldest().is_some_and(|oldest| oldest <= self.durable_last_seq);
        match (entry_room, pinned) {
            (false, _) => Timed::BlockedJournalEntryFull,
            (true, true) => Timed::BlockedJournalPins,
            (true, false) => Timed::BlockedJournalSpace,
        }
    }

    fn ring_has_room(&self, bytes: usize, class: Class) -> bool {
        let entry = self.buffer.len() + bytes + TRAILER_BYTES;
        let blocks = entry.div_ceil(JOURNAL_BLOCK) as u32;
        let keep = match class {
            Class::Normal => self.ring.blocks() / 4,
            Class::Reclaim => self.reclaim_keep,
        };
        self.ring.free_after(blocks).is_some_and(|left| left >= keep)
    }
}

const _: () = assert!(64 * 10 + BLACKLIST_MAX * 22 + 60 <= TRAILER_BYTES);
