//! One shard's engine: index, journal and space, behind transactions.
//!
//! (Scaffold: the index is in memory. The surface is final.)

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use engine_base::ShardId;
use engine_base::hash::FastMap;
use engine_base::runtime::Runtime;
use engine_device::DeviceQueue;
use smallvec::SmallVec;

use crate::error::{Result, StoreError};
use crate::extent::Pointer;
use crate::key::{Counter, Position, Tree, Value};
use crate::transaction::{CounterUpdate, ReadMark, Transaction};

/// What an engine is opened with.
#[derive(Clone)]
pub struct EngineConfig {
    /// Which shard of the pool.
    pub shard: ShardId,
    /// Shards in the pool, a power of two.
    pub shard_count: u16,
    /// Clock, timers, tasks, randomness.
    pub runtime: Rc<dyn Runtime>,
    /// This core's queue to each member, by member index.
    pub members: Vec<Rc<dyn DeviceQueue>>,
}

/// One shard's engine.
pub struct Engine {
    config: EngineConfig,
    index: RefCell<BTreeMap<(Tree, Position), Value>>,
    counters: RefCell<FastMap<Counter, u64>>,
    taken: RefCell<FastMap<Counter, u64>>,
    bump: Cell<u64>,
}

/// Space set aside for an operation before it starts. Dropping it gives back what is left.
pub struct Reservation {
    blocks: u64,
}

/// Where data is put: kinds of data that die together stay together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WritePoint {
    /// What clients write.
    Data,
    /// What copygc moves.
    Moved,
}

/// Blocks allocated and not yet named by the index. While it lives their bucket is not reused; drop
/// it after the transaction that names them (or to give up).
pub struct Allocation {
    /// Where.
    pub pointer: Pointer,
    /// How many blocks, at least one, possibly fewer than asked for.
    pub blocks: u32,
}

impl Engine {
    /// Opens the shard: reads its superblock, replays its journal.
    ///
    /// # Errors
    /// When a device fails or what is on it is not a shard that can be opened.
    pub async fn open(config: EngineConfig) -> Result<Rc<Self>> {
        Ok(Rc::new(Self {
            config,
            index: RefCell::default(),
            counters: RefCell::default(),
            taken: RefCell::default(),
            bump: Cell::new(4096),
        }))
    }

    /// Clock, timers, tasks, randomness.
    pub fn runtime(&self) -> &Rc<dyn Runtime> {
        &self.config.runtime
    }

    /// Which shard this is.
    pub fn shard(&self) -> ShardId {
        self.config.shard
    }

    /// Shards in the pool.
    pub fn shard_count(&self) -> u16 {
        self.config.shard_count
    }

    /// The queue to a member.
    ///
    /// # Errors
    /// `Corrupt` when there is no such member: the index came from disk.
    pub fn member(&self, member: u8) -> Result<&Rc<dyn DeviceQueue>> {
        self.config
            .members
            .get(usize::from(member))
            .ok_or_else(|| StoreError::corrupt("pointer", format!("member {member} is not known")))
    }

    /// Runs `work` in a transaction and commits it; runs it again while it meets conflicts. Committed
    /// means in memory and in the journal's buffer: durable after [`Engine::flush`].
    ///
    /// # Errors
    /// Those of `work` (nothing is changed then), and those of the commit.
    pub async fn transact<T>(
        &self,
        mut work: impl AsyncFnMut(&mut Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        loop {
            let mut transaction = Transaction::new(self);
            let result = match work(&mut transaction).await {
                Ok(value) => self.commit(transaction).await.map(|()| value),
                Err(error) => Err(error),
            };
            if !matches!(result, Err(StoreError::Restart)) {
                return result;
            }
        }
    }

    /// A transaction only to read. Its reads need not be of one instant; use
    /// [`Engine::transact`] where that matters.
    pub fn read(&self) -> Transaction<'_> {
        Transaction::new(self)
    }

    /// Makes all that was committed before the call durable, and the data it names.
    ///
    /// # Errors
    /// When a device fails; the engine then takes no more writes.
    pub async fn flush(&self) -> Result<()> {
        for member in &self.config.members {
            engine_device::QueueExt::flush(&**member).await?;
        }
        Ok(())
    }

    /// Current value of a counter.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.borrow().get(&counter).copied().unwrap_or(0)
    }

    /// Sets space aside for an operation that writes `blocks` data blocks, with what its index updates
    /// need. An operation that writes no data but may add keys reserves 0 blocks: it still waits for
    /// or is refused index space. Deletion needs no reservation.
    ///
    /// # Errors
    /// `NoSpace`, at once: nothing has been written.
    pub async fn reserve(&self, blocks: u64) -> Result<Reservation> {
        Ok(Reservation { blocks })
    }

    /// Allocates up to `blocks` adjacent blocks in one bucket, out of `reservation`.
    ///
    /// # Errors
    /// When the engine has stopped; space itself is there, it was reserved.
    pub async fn allocate(
        &self,
        _point: WritePoint,
        blocks: u32,
        reservation: &mut Reservation,
    ) -> Result<Allocation> {
        assert!(u64::from(blocks) <= reservation.blocks, "allocates more than was reserved");
        reservation.blocks -= u64::from(blocks);
        let block = self.bump.replace(self.bump.get() + u64::from(blocks));
        Ok(Allocation { pointer: Pointer { member: 0, generation: 1, block }, blocks })
    }

    /// Whether the bucket of `pointer` still is what it was when the pointer was made. Checked after
    /// a read: the bucket may have been emptied and reused meanwhile, then look the key up again.
    pub fn pointer_is_current(&self, _pointer: &Pointer) -> bool {
        true
    }

    pub(crate) fn take_number(&self, counter: Counter) -> u64 {
        let committed = self.counter(counter);
        let mut taken = self.taken.borrow_mut();
        let number = taken.entry(counter).or_insert(0);
        *number = (*number).max(committed) + 1;
        *number
    }

    pub(crate) async fn index_next(
        &self,
        tree: Tree,
        from: Position,
        to: Position,
        _reads: &mut SmallVec<[ReadMark; 8]>,
    ) -> Result<Option<(Position, Value)>> {
        let index = self.index.borrow();
        let found = index.range((tree, from)..=(tree, to)).next();
        Ok(found.map(|((_, position), value)| (*position, value.clone())))
    }

    pub(crate) async fn index_previous(
        &self,
        tree: Tree,
        from: Position,
        to: Position,
        _reads: &mut SmallVec<[ReadMark; 8]>,
    ) -> Result<Option<(Position, Value)>> {
        let index = self.index.borrow();
        let found = index.range((tree, from)..=(tree, to)).next_back();
        Ok(found.map(|((_, position), value)| (*position, value.clone())))
    }

    async fn commit(&self, transaction: Transaction<'_>) -> Result<()> {
        let mut index = self.index.borrow_mut();
        for update in transaction.updates {
            match update.value {
                Some(value) => index.insert((update.tree, update.position), value),
                None => index.remove(&(update.tree, update.position)),
            };
        }
        let mut counters = self.counters.borrow_mut();
        for update in transaction.counters {
            match update {
                CounterUpdate::Add(counter, delta) => {
                    let value = counters.entry(counter).or_insert(0);
                    *value = value.wrapping_add_signed(delta);
                }
                CounterUpdate::AtLeast(counter, least) => {
                    let value = counters.entry(counter).or_insert(0);
                    *value = (*value).max(least);
                }
            }
        }
        Ok(())
    }
}
