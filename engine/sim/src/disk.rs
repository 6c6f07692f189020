//! A simulated disk: a volatile write cache over a medium, on virtual time, with faults.
//!
//! The contract (that of [`DeviceQueue`]), each rule checked by a test here:
//! - Operations in flight end in any order; each takes a random time, now and then a long one.
//! - A completed write is seen by every read that starts later.
//! - A completed write is durable after a flush *submitted later* has ended, or at once with `fua`.
//! - [`SimDisk::power_loss`]: every other write, completed or in flight, is kept, lost or torn, each
//!   on its own. Tears fall on multiples of the atomic write unit. Writes that overlap and did not
//!   overlap in time keep their order.
//! - Discarded blocks read as zeroes, as garbage or as before; that change too may be lost.
//! - A failed write leaves each of its units old, new or unreadable. A failed flush may lose writes it
//!   covered; then every later flush, of whatever queue, fails too until the process is new, and the
//!   new process does not see those writes.
//! - Now and then an operation stalls: it takes very long, and ends well.
//! - [`SimDisk::vanish`]: from then on everything is answered `Gone`, what was in flight may be done or
//!   not. The device may come back, to the same process with its cache, or to the next one without.
//!
//! Beside the contract, on purpose: lies ([`DiskLie`]) and bits that rot ([`SimDisk::rot`]). What they
//! damage is remembered ([`SimDisk::damaged_pages`]).
//!
//! Overlapping operations in flight at the same time are done one after the other, never mixed within
//! a unit.

mod content;
mod cut;
mod damage;
mod image;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::RawFd;
use std::rc::Rc;

use engine_base::hash::FastSet;
use engine_base::random::Random;
use engine_device::{Completion, DeviceError, DeviceInfo, DeviceQueue, IoVec, Operation, Outcome};
use engine_memory::Buffer;

use crate::executor::Executor;
pub use content::DiskContent;
pub use cut::{CutPoint, CutStyle};
use image::{Image, PAGE_BYTES, Page, Piece, keep_some, page_parts};

/// Geometry of a simulated disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskGeometry {
    /// Bytes; a multiple of 4096.
    pub size_bytes: u64,
    /// Unit of offsets and lengths: 512 or 4096.
    pub block_size: u32,
    /// Bytes that a power loss never tears: a power of two, at least `block_size`.
    pub atomic_write_bytes: u32,
}

/// Chances of faults, each in parts per million of the operations concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRates {
    /// Reads that fail.
    pub read_error_ppm: u32,
    /// Writes that fail.
    pub write_error_ppm: u32,
    /// Flushes that fail.
    pub flush_error_ppm: u32,
}

/// How a disk answers in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// Shortest time of an operation in nanoseconds.
    pub least_ns: u64,
    /// Longest usual time in nanoseconds.
    pub usual_ns_max: u64,
    /// Operations per million that take up to `spike_ns_max` instead.
    pub spikes_ppm: u32,
    /// Longest time of those in nanoseconds.
    pub spike_ns_max: u64,
    /// Operations per million that stall: they take between a half and all of `stall_ns_max`.
    pub stalls_ppm: u32,
    /// Longest time of all in nanoseconds.
    pub stall_ns_max: u64,
}

impl Latency {
    /// No operation takes longer, in nanoseconds.
    #[must_use]
    pub fn longest_ns(&self) -> u64 {
        let stall_ns = if self.stalls_ppm > 0 { self.stall_ns_max } else { 0 };
        let spike_ns = if self.spikes_ppm > 0 { self.spike_ns_max } else { 0 };
        self.usual_ns_max.max(self.least_ns).max(spike_ns).max(stall_ns)
    }
}

/// Lies a disk can be told to tell: they break the contract, and the checker must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskLie {
    /// Answers flushes and does nothing.
    IgnoresFlush,
    /// Treats `fua` as a plain write.
    IgnoresFua,
    /// A flush covers only some of what it must.
    FlushesHalf,
    /// Now and then answers a write and keeps the old content.
    DropsWrites,
    /// Tears writes within the atomic unit, at 512 bytes, also durable ones.
    TearsFlushed,
    /// Now and then writes elsewhere instead: to the neighbouring block, or over something else that
    /// was written.
    Misdirects,
}

/// What happened on a disk, for reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStatistics {
    /// Reads ended.
    pub reads: u64,
    /// Writes ended.
    pub writes: u64,
    /// Flushes ended.
    pub flushes: u64,
    /// Discards and write-zeroes ended.
    pub discards: u64,
    /// Errors injected.
    pub errors: u64,
    /// Writes lost, wholly or in part, by power losses.
    pub lost: u64,
    /// Operations that stalled.
    pub stalls: u64,
    /// Bits rotten, writes misdirected or dropped, losses of power after a lie about a flush.
    pub damages: u64,
}

/// A change that is in the cache and on its way to the medium.
struct Cached {
    /// Ends in the order of completion; compared with the watermark of a flush.
    completed: u64,
    durable: bool,
    pieces: Vec<Piece>,
}

enum Work {
    Read {
        offset: u64,
        buffer: Buffer,
    },
    Change {
        pieces: Vec<Piece>,
        fua: bool,
        offset: u64,
        what: &'static str,
    },
    /// Covers what completed up to this number.
    Flush {
        watermark: u64,
    },
}

struct InFlight {
    since_ns: u64,
    work: Work,
    done: Completion,
    queue: Rc<Cell<usize>>,
}

struct State {
    random: Random,
    /// What reads see.
    image: Image,
    /// What survives: everything durable, nothing else.
    medium: Image,
    /// Changes not yet on the medium, in the order of completion.
    cache: VecDeque<Cached>,
    in_flight: BTreeMap<u64, InFlight>,
    next_id: u64,
    completed: u64,
    unreadable: FastSet<u64>,
    /// A failed flush has lost writes.
    flush_dead: bool,
    faults: FaultRates,
    latency: Latency,
    lie: Option<DiskLie>,
    /// Of so many writes, one is lied about.
    lie_one_in: u64,
    /// Pages that rotted, or that a lie left with another content than they should have.
    damaged: Vec<u64>,
    statistics: DiskStatistics,
    presence: Presence,
    /// Counts writes and other changes as they are submitted.
    cut: Option<Rc<CutPoint>>,
    /// The change that reached the cut.
    cut_at: Option<u64>,
}

/// Whether the device is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Here,
    /// Gone; it may come back as it was.
    Away,
    /// Gone for this process: it lost power, and with it its cache.
    AwayForProcess,
}

struct Inner {
    info: DeviceInfo,
    executor: Executor,
    state: RefCell<State>,
}

/// How often disks lie about writes that nobody told how often.
const LIE_ONE_IN: u64 = 200;

/// A simulated disk. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct SimDisk {
    inner: Rc<Inner>,
}

impl SimDisk {
    /// A disk full of zeroes.
    #[must_use]
    pub fn new(executor: &Executor, name: &str, geometry: DiskGeometry, latency: Latency) -> Self {
        assert!(geometry.size_bytes.is_multiple_of(PAGE_BYTES));
        assert!(geometry.atomic_write_bytes.is_power_of_two());
        assert!(geometry.atomic_write_bytes >= geometry.block_size);
        let info = DeviceInfo {
            name: name.to_owned(),
            size_bytes: geometry.size_bytes,
            block_size: geometry.block_size,
            atomic_write_bytes: geometry.atomic_write_bytes,
            volatile_write_cache: true,
            discard: true,
            write_zeroes: true,
            max_transfer_bytes: 1 << 20,
        };
        let state = State {
            random: executor.fork_random(),
            image: Image::default(),
            medium: Image::default(),
            cache: VecDeque::new(),
            in_flight: BTreeMap::new(),
            next_id: 0,
            completed: 0,
            unreadable: FastSet::default(),
            flush_dead: false,
            faults: FaultRates::default(),
            latency,
            lie: None,
            lie_one_in: LIE_ONE_IN,
            damaged: Vec::new(),
            statistics: DiskStatistics::default(),
            presence: Presence::Here,
            cut: None,
            cut_at: None,
        };
        let inner = Inner { info, executor: executor.clone(), state: RefCell::new(state) };
        Self { inner: Rc::new(inner) }
    }

    /// A queue of one core.
    #[must_use]
    pub fn queue(&self) -> Rc<dyn DeviceQueue> {
        Rc::new(SimQueue { disk: Rc::clone(&self.inner), in_flight: Rc::default() })
    }

    /// Sets the chances of errors from now on.
    pub fn set_faults(&self, faults: FaultRates) {
        self.inner.state.borrow_mut().faults = faults;
    }

    /// Operations so far.
    #[must_use]
    pub fn statistics(&self) -> DiskStatistics {
        self.inner.state.borrow().statistics
    }

    /// Since when the operation is in flight that was submitted first, and how many there are.
    #[must_use]
    pub fn in_flight(&self) -> (Option<u64>, usize) {
        let state = self.inner.state.borrow();
        (state.in_flight.values().next().map(|first| first.since_ns), state.in_flight.len())
    }

    /// Whether it fails operations, or is not there.
    #[must_use]
    pub fn is_faulty(&self) -> bool {
        let state = self.inner.state.borrow();
        state.faults != FaultRates::default() || state.presence != Presence::Here
    }

    /// A hash of what reads would see.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.inner.state.borrow().image.digest()
    }

    /// The process dies, the disk stays on: operations in flight end or not, the cache keeps all.
    /// Call after the tasks are gone.
    pub fn process_crash(&self) {
        let answered = {
            let state = &mut *self.inner.state.borrow_mut();
            state.see_what_is_left();
            state.presence = Presence::Here;
            let in_flight = std::mem::take(&mut state.in_flight);
            let mut answered = Vec::new();
            for (_, operation) in in_flight {
                operation.queue.set(operation.queue.get().saturating_sub(1));
                if let Work::Change { pieces, .. } = operation.work
                    && state.random.chance(1, 2)
                {
                    state.enter_cache(pieces, false);
                }
                answered.push(operation.done);
            }
            answered
        };
        drop(answered);
    }

    /// Power fails: see the module header for what survives. Call after the tasks are gone.
    pub fn power_loss(&self) {
        let answered = {
            let state = &mut *self.inner.state.borrow_mut();
            state.settle_power_loss(u64::from(self.inner.info.atomic_write_bytes))
        };
        drop(answered);
    }
}

/// How much of the unflushed writes a power loss takes.
#[derive(Clone, Copy)]
enum Loss {
    Everything,
    Nothing,
    /// Each write whole, with this chance out of 8 of surviving.
    Writes(u64),
    /// Each atomic unit, with this chance out of 8 of surviving.
    Units(u64),
}

impl State {
    fn settle_power_loss(&mut self, atomic: u64) -> Vec<Completion> {
        let loss = self.draw_loss();
        let unit = if self.lie == Some(DiskLie::TearsFlushed) { 512 } else { atomic };
        self.lose_cache(loss, unit);
        // What was in flight at the same time may have reached the medium in any order.
        let mut in_flight: Vec<InFlight> =
            std::mem::take(&mut self.in_flight).into_values().collect();
        let mut answered = Vec::new();
        while !in_flight.is_empty() {
            let at = self.random.below(in_flight.len() as u64) as usize;
            let operation = in_flight.swap_remove(at);
            operation.queue.set(operation.queue.get().saturating_sub(1));
            if let Work::Change { pieces, .. } = operation.work {
                self.survive(&pieces, false, loss, unit);
            }
            answered.push(operation.done);
        }
        self.flush_dead = false;
        self.presence = Presence::Here;
        self.image = self.medium.clone();
        answered
    }

    fn draw_loss(&mut self) -> Loss {
        match self.random.below(8) {
            0 => Loss::Everything,
            1 => Loss::Nothing,
            2 | 3 => Loss::Units(self.random.range(1, 7)),
            _ => Loss::Writes(self.random.range(1, 7)),
        }
    }

    /// What the cache holds reaches the medium or is lost.
    fn lose_cache(&mut self, loss: Loss, unit: u64) {
        let cached: Vec<Cached> = self.cache.drain(..).collect();
        let lied = matches!(self.lie, Some(DiskLie::IgnoresFlush | DiskLie::FlushesHalf));
        self.statistics.damages += u64::from(lied && !cached.is_empty());
        for write in cached {
            self.survive(&write.pieces, write.durable, loss, unit);
        }
    }

    /// What a failed flush has lost, reads no longer see.
    fn see_what_is_left(&mut self) {
        if std::mem::take(&mut self.flush_dead) {
            self.image = self.medium.clone();
            for piece in self.cache.iter().flat_map(|write| &write.pieces) {
                self.image.apply(piece);
            }
        }
    }

    fn survive(&mut self, pieces: &[Piece], durable: bool, loss: Loss, unit: u64) {
        let random = &mut self.random;
        let torn_anyway = self.lie == Some(DiskLie::TearsFlushed) && random.chance(1, 64);
        let kept = match loss {
            _ if torn_anyway => keep_some(pieces, unit, || random.chance(1, 2)),
            _ if durable => pieces.to_vec(),
            Loss::Everything => Vec::new(),
            Loss::Nothing => pieces.to_vec(),
            Loss::Writes(eighths) if random.chance(eighths, 8) => pieces.to_vec(),
            Loss::Writes(_) if random.chance(7, 8) => Vec::new(),
            // Some of those that are not kept whole are torn rather than lost.
            Loss::Writes(_) => keep_some(pieces, unit, || random.chance(1, 2)),
            Loss::Units(eighths) => keep_some(pieces, unit, || random.chance(eighths, 8)),
        };
        self.statistics.lost += u64::from(kept.len() < pieces.len());
        for piece in &kept {
            self.medium.apply(piece);
        }
    }

    fn latency_ns(&mut self) -> u64 {
        let latency = self.latency;
        if latency.stalls_ppm > 0 && self.random.below(1_000_000) < u64::from(latency.stalls_ppm) {
            self.statistics.stalls += 1;
            return self.random.range(latency.stall_ns_max / 2, latency.stall_ns_max);
        }
        let most = if self.random.below(1_000_000) < u64::from(latency.spikes_ppm) {
            latency.spike_ns_max
        } else {
            latency.usual_ns_max
        };
        self.random.range(latency.least_ns, most.max(latency.least_ns))
    }

    fn fails(&mut self, ppm: u32) -> bool {
        let fails = ppm > 0 && self.random.below(1_000_000) < u64::from(ppm);
        self.statistics.errors += u64::from(fails);
        fails
    }

    /// A change has reached the cache: reads see it.
    fn enter_cache(&mut self, pieces: Vec<Piece>, durable: bool) {
        for piece in &pieces {
            self.image.apply(piece);
            self.unreadable.remove(&piece.page);
        }
        self.completed += 1;
        self.cache.push_back(Cached { completed: self.completed, durable, pieces });
        self.write_back();
    }

    /// Moves what is durable, up to the first that is not, from the cache to the medium. In this
    /// order only, so that an older write never lands on a newer one.
    fn write_back(&mut self) {
        while self.cache.front().is_some_and(|write| write.durable) {
            if let Some(write) = self.cache.pop_front() {
                for piece in &write.pieces {
                    self.medium.apply(piece);
                }
            }
        }
    }

    fn finish_flush(&mut self, watermark: u64) {
        match self.lie {
            Some(DiskLie::IgnoresFlush) => return,
            Some(DiskLie::FlushesHalf) => {
                for write in self.cache.iter_mut().filter(|write| write.completed <= watermark) {
                    write.durable |= write.completed % 2 == 0;
                }
            }
            _ => {
                for write in self.cache.iter_mut().filter(|write| write.completed <= watermark) {
                    write.durable = true;
                }
            }
        }
        self.write_back();
    }

    /// A flush failed: what it covered may never reach the medium, though reads still see it.
    fn fail_flush(&mut self, watermark: u64) {
        let random = &mut self.random;
        if random.chance(1, 2) {
            self.flush_dead = true;
            self.cache.retain(|write| {
                write.durable || write.completed > watermark || random.chance(1, 2)
            });
            self.write_back();
        }
    }

    fn read(&mut self, offset: u64, mut buffer: Buffer, name: &str) -> Outcome {
        self.statistics.reads += 1;
        let unreadable = !self.unreadable.is_empty()
            && page_parts(offset, buffer.len() as u64)
                .any(|(page, _, _)| self.unreadable.contains(&page));
        if unreadable || self.fails(self.faults.read_error_ppm) {
            return Err(io_error(name, "read", offset));
        }
        self.image.read(offset, &mut buffer);
        Ok(Some(buffer))
    }

    fn change(
        &mut self,
        mut pieces: Vec<Piece>,
        mut fua: bool,
        (offset, what): (u64, &'static str),
        info: &DeviceInfo,
    ) -> Outcome {
        if what == "write" {
            self.statistics.writes += 1;
        } else {
            self.statistics.discards += 1;
        }
        if what == "write" && self.fails(self.faults.write_error_ppm) {
            let random = &mut self.random;
            let done =
                keep_some(&pieces, u64::from(info.atomic_write_bytes), || random.chance(1, 2));
            self.enter_cache(done, false);
            for piece in &pieces {
                if self.random.chance(1, 8) {
                    self.unreadable.insert(piece.page);
                }
            }
            return Err(io_error(&info.name, what, offset));
        }
        match self.lie {
            Some(DiskLie::IgnoresFua) => fua = false,
            Some(DiskLie::DropsWrites) if self.random.chance(1, self.lie_one_in) => {
                self.drop_write(&pieces);
                return Ok(None);
            }
            Some(DiskLie::Misdirects) if self.random.chance(1, self.lie_one_in) => {
                self.misdirect(&mut pieces, info.size_bytes / PAGE_BYTES);
            }
            _ => {}
        }
        self.enter_cache(pieces, fua);
        Ok(None)
    }
}

fn io_error(name: &str, what: &'static str, offset: u64) -> DeviceError {
    DeviceError::Io { device: name.to_owned(), what, offset, cause: "injected".to_owned() }
}

impl Inner {
    /// The pieces of a write. One copy of the data.
    fn write_pieces(offset: u64, data: &IoVec) -> Vec<Piece> {
        let mut sources = data.iter();
        let mut source: &[u8] = &[];
        let len: u64 = data.iter().map(|piece| piece.len() as u64).sum();
        page_parts(offset, len)
            .map(|(page, start, end)| {
                let mut bytes: Box<Page> = Box::new([0; PAGE_BYTES as usize]);
                let mut into = &mut bytes[usize::from(start)..usize::from(end)];
                while !into.is_empty() {
                    if source.is_empty() {
                        let next = sources.next();
                        source = next.map_or(&[], |slice| &slice[..]);
                        assert!(next.is_some(), "the pieces cover the whole length");
                        continue;
                    }
                    let take = into.len().min(source.len());
                    into[..take].copy_from_slice(&source[..take]);
                    into = &mut into[take..];
                    source = &source[take..];
                }
                Piece { page, start, end, bytes: Some(Rc::from(bytes)) }
            })
            .collect()
    }

    /// What a discarded range holds: zeroes, garbage, or (no pieces) what was there before.
    fn discard_pieces(random: &mut Random, offset: u64, len: u64) -> Vec<Piece> {
        let bytes = match random.below(3) {
            0 => return Vec::new(),
            1 => None,
            _ => {
                let mut garbage = Box::new([0; PAGE_BYTES as usize]);
                random.fill(&mut garbage[..]);
                Some(Rc::from(garbage))
            }
        };
        page_parts(offset, len)
            .map(|(page, start, end)| Piece { page, start, end, bytes: bytes.clone() })
            .collect()
    }

    fn start(self: &Rc<Self>, operation: Operation, done: Completion, queue: &Rc<Cell<usize>>) {
        let state = &mut *self.state.borrow_mut();
        let work = match operation {
            Operation::Read { offset, buffer } => Work::Read { offset, buffer },
            Operation::Write { offset, data, fua } => {
                let pieces = Self::write_pieces(offset, &data);
                Work::Change { pieces, fua, offset, what: "write" }
            }
            Operation::Flush => Work::Flush { watermark: state.completed },
            Operation::Discard { offset, len } => {
                let pieces = Self::discard_pieces(&mut state.random, offset, len);
                Work::Change { pieces, fua: false, offset, what: "discard" }
            }
            Operation::WriteZeroes { offset, len } => {
                let pieces = page_parts(offset, len)
                    .map(|(page, start, end)| Piece { page, start, end, bytes: None })
                    .collect();
                Work::Change { pieces, fua: false, offset, what: "write zeroes" }
            }
        };
        let id = state.next_id;
        state.next_id += 1;
        queue.set(queue.get() + 1);
        if let Work::Change { .. } = work
            && state.cut.as_ref().is_some_and(|cut| cut.count())
        {
            state.cut_at = Some(id);
        }
        let since_ns = self.executor.now_ns();
        state.in_flight.insert(id, InFlight { since_ns, work, done, queue: Rc::clone(queue) });
        let at_ns = since_ns + state.latency_ns();
        let disk = Rc::clone(self);
        self.executor.call_at(at_ns, move || disk.finish(id));
    }

    fn finish(&self, id: u64) {
        let (done, outcome) = {
            let state = &mut *self.state.borrow_mut();
            // A crash may have taken it.
            let Some(operation) = state.in_flight.remove(&id) else { return };
            operation.queue.set(operation.queue.get().saturating_sub(1));
            let outcome = match operation.work {
                work if state.presence != Presence::Here => {
                    state.finish_unseen(work);
                    Err(DeviceError::Gone { device: self.info.name.clone() })
                }
                Work::Read { offset, buffer } => state.read(offset, buffer, &self.info.name),
                Work::Change { pieces, fua, offset, what } => {
                    state.change(pieces, fua, (offset, what), &self.info)
                }
                Work::Flush { watermark } => {
                    state.statistics.flushes += 1;
                    if state.flush_dead || state.fails(state.faults.flush_error_ppm) {
                        state.fail_flush(watermark);
                        Err(io_error(&self.info.name, "flush", 0))
                    } else {
                        state.finish_flush(watermark);
                        Ok(None)
                    }
                }
            };
            (operation.done, outcome)
        };
        done.complete(outcome);
    }
}

struct SimQueue {
    disk: Rc<Inner>,
    in_flight: Rc<Cell<usize>>,
}

impl DeviceQueue for SimQueue {
    fn info(&self) -> &DeviceInfo {
        &self.disk.info
    }

    fn refresh_size(&self) -> Result<u64, DeviceError> {
        match self.disk.state.borrow().presence {
            Presence::Here => Ok(self.disk.info.size_bytes),
            _ => Err(DeviceError::Gone { device: self.disk.info.name.clone() }),
        }
    }

    fn submit(&self, operation: Operation, done: Completion) {
        if let Err(error) = self.disk.info.check(&operation) {
            done.complete(Err(error));
            return;
        }
        let len: u64 = match &operation {
            Operation::Read { buffer, .. } => buffer.len() as u64,
            Operation::Write { data, .. } => data.iter().map(|piece| piece.len() as u64).sum(),
            _ => 0,
        };
        if len > u64::from(self.disk.info.max_transfer_bytes) {
            let device = self.disk.info.name.clone();
            let what = "a transfer longer than max_transfer_bytes";
            done.complete(Err(DeviceError::Unsupported { device, what }));
            return;
        }
        self.disk.start(operation, done, &self.in_flight);
    }

    /// Operations end by themselves, at their time: there is nothing to fetch.
    fn poll(&self) -> usize {
        0
    }

    fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }

    fn prepare_to_sleep(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
