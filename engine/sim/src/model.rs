//! What was promised to clients, in the simplest form that can be checked.
//!
//! Time in here is a counter that moves at every start and end of an operation ([`Promises`]). One
//! operation comes before another when it ended before the other started; operations that overlap have
//! no order.
//!
//! A shard recovers to a prefix of what it committed. So what an operation left behind after a crash
//! proves that everything that came before it on that shard is there too: this is how the prefix is
//! checked without knowing the order of commits.

pub mod snapshot;
pub mod tree;
pub mod volume;

use std::collections::BTreeSet;

/// The floor of a shard of which nothing was flushed: before the first instant, and not 0.
const FLOOR_OF_NOTHING: u64 = 1;

/// The model's clock, and how much of each shard is durable.
#[derive(Debug)]
pub struct Promises {
    now: u64,
    /// Per shard: what ended before this instant is durable.
    floors: Vec<u64>,
    /// A crash that only ended the process: what ended before this instant is on the disks, on all
    /// shards, until the power goes.
    outlived: Option<u64>,
    /// The power has gone since the last recovery that was checked.
    power_lost: bool,
    /// When each operation in progress started.
    active: BTreeSet<u64>,
    /// Nothing is forgotten because it is durable: a device that damages what it holds may take the
    /// pool back to any state it was in.
    keeps_history: bool,
    /// Damage may have taken a shard back to an older state than it flushed, unseen.
    may_roll_back: bool,
}

impl Promises {
    /// The start: nothing has happened on `shard_count` shards.
    #[must_use]
    pub fn new(shard_count: u16) -> Self {
        Self {
            now: 1,
            floors: vec![FLOOR_OF_NOTHING; usize::from(shard_count)],
            outlived: None,
            power_lost: false,
            active: BTreeSet::new(),
            keeps_history: false,
            may_roll_back: false,
        }
    }

    /// From now on nothing is forgotten because it is durable.
    pub fn keep_history(&mut self) {
        self.keeps_history = true;
    }

    /// Whether nothing is forgotten because it is durable.
    #[must_use]
    pub fn keeps_history(&self) -> bool {
        self.keeps_history
    }

    /// From now on a crash may take any shard back to an older state than it flushed.
    pub fn allow_roll_back(&mut self) {
        assert!(self.keeps_history, "what is forgotten cannot be compared with");
        self.may_roll_back = true;
    }

    /// An operation starts: a new instant.
    pub fn start(&mut self) -> u64 {
        self.now += 1;
        self.active.insert(self.now);
        self.now
    }

    /// The operation that started at `started` ends: a new instant.
    pub fn end(&mut self, started: u64) -> u64 {
        assert!(self.active.remove(&started), "an operation ends once");
        self.now += 1;
        self.now
    }

    /// All operations in progress are cut off: a new instant. `outlives`: what was acknowledged
    /// must still be there.
    pub fn crash(&mut self, outlives: bool) -> u64 {
        self.active.clear();
        self.now += 1;
        self.power_lost |= !outlives;
        self.outlived = if self.power_lost { None } else { self.outlived.or(Some(self.now)) };
        self.now
    }

    /// A recovery was checked: the next crash starts from what it found.
    pub fn recovered(&mut self) {
        (self.outlived, self.power_lost) = (None, false);
    }

    /// What ended on `shard` before this instant must be there after the crash.
    #[must_use]
    pub fn present(&self, shard: u16) -> u64 {
        if self.may_roll_back {
            return 0;
        }
        self.floors[usize::from(shard)].max(self.outlived.unwrap_or(0))
    }

    /// Whether all that was acknowledged must be there after the crash, on all shards.
    #[must_use]
    pub fn all_present(&self) -> bool {
        self.outlived.is_some()
    }

    /// What ended on `shard` before this instant is durable for good; 0: nothing is, not even what
    /// asked to be.
    #[must_use]
    pub fn floor(&self, shard: u16) -> u64 {
        if self.keeps_history { 0 } else { self.floors[usize::from(shard)] }
    }

    /// Everything that ended on `shard` before `instant` has become durable.
    pub fn raise_floor(&mut self, shard: u16, instant: u64) {
        let floor = &mut self.floors[usize::from(shard)];
        *floor = (*floor).max(instant);
    }

    /// A start such that no operation in progress started before it.
    #[must_use]
    pub fn oldest_active(&self) -> u64 {
        self.active.first().copied().unwrap_or(self.now + 1)
    }

    /// The present instant.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now
    }
}
