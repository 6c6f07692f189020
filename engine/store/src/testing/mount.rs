//! What opening a shard costs: in proportion to its journal, not to the pool.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::RawFd;
use std::rc::Rc;

use engine_base::random::Random;
use engine_base::runtime::Runtime;
use engine_base::{BLOCK_SIZE, InodeNumber, MIB, ShardId, SnapshotId};
use engine_device::{Completion, DeviceError, DeviceInfo, DeviceQueue, Operation, Outcome};
use engine_memory::Buffer;

use super::engine::OwnRegions;
use super::space::{Written, counter, fsck, small_pool};
use super::{TestRuntime, with_seeds};
use crate::api::{Data, Region};
use crate::data::{BlockRange, DataPath, Until};
use crate::engine::{Engine, EngineConfig};
use crate::key::{Position, Tree, Value};
use crate::pool::FormatOptions;
use crate::space::BucketKind;
use crate::space::format::{BucketCheckpoint, Tally};

const BLOCK: usize = BLOCK_SIZE as usize;
const GIB: u64 = 1 << 30;

/// A device of any size that keeps what was written to it, and counts what is read.
struct Sparse {
    info: DeviceInfo,
    blocks: RefCell<BTreeMap<u64, Box<[u8]>>>,
    waiting: RefCell<VecDeque<(Operation, Completion)>>,
    reads: Cell<u64>,
    read_bytes: Cell<u64>,
}

impl Sparse {
    fn new(size_bytes: u64) -> Rc<Self> {
        let info = DeviceInfo {
            name: "sparse".to_owned(),
            size_bytes,
            block_size: BLOCK_SIZE as u32,
            atomic_write_bytes: BLOCK_SIZE as u32,
            volatile_write_cache: false,
            discard: false,
            write_zeroes: false,
            max_transfer_bytes: 1 << 20,
        };
        Rc::new(Self {
            info,
            blocks: RefCell::default(),
            waiting: RefCell::default(),
            reads: Cell::new(0),
            read_bytes: Cell::new(0),
        })
    }

    fn execute(&self, operation: Operation) -> Outcome {
        let mut blocks = self.blocks.borrow_mut();
        match operation {
            Operation::Read { offset, mut buffer } => {
                self.reads.set(self.reads.get() + 1);
                self.read_bytes.set(self.read_bytes.get() + buffer.len() as u64);
                for (at, block) in buffer.chunks_exact_mut(BLOCK).enumerate() {
                    match blocks.get(&(offset / BLOCK_SIZE + at as u64)) {
                        Some(bytes) => block.copy_from_slice(bytes),
                        None => block.fill(0),
                    }
                }
                return Ok(Some(buffer));
            }
            Operation::Write { offset, data, .. } => {
                let bytes: Vec<u8> = data.iter().flat_map(|piece| piece.iter().copied()).collect();
                for (at, block) in bytes.chunks_exact(BLOCK).enumerate() {
                    blocks.insert(offset / BLOCK_SIZE + at as u64, block.into());
                }
            }
            Operation::Flush => {}
            Operation::Discard { .. } | Operation::WriteZeroes { .. } => {
                panic!("the device does not offer this")
            }
        }
        Ok(None)
    }
}

impl DeviceQueue for Sparse {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn refresh_size(&self) -> Result<u64, DeviceError> {
        Ok(self.info.size_bytes)
    }

    fn submit(&self, operation: Operation, done: Completion) {
        self.waiting.borrow_mut().push_back((operation, done));
    }

    fn poll(&self) -> usize {
        let waiting = self.waiting.take();
        let answered = waiting.len();
        for (operation, done) in waiting {
            done.complete(self.execute(operation));
        }
        answered
    }

    fn in_flight(&self) -> usize {
        self.waiting.borrow().len()
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }

    fn prepare_to_sleep(&self) -> bool {
        self.waiting.borrow().is_empty()
    }
}

async fn open(runtime: &Rc<TestRuntime>, device: &Rc<Sparse>) -> Rc<Engine> {
    let queue = Rc::clone(device) as Rc<dyn DeviceQueue>;
    runtime.add_queue(Rc::clone(&queue));
    let config = EngineConfig {
        shard: ShardId(0),
        shard_count: 1,
        runtime: Rc::clone(runtime) as Rc<dyn Runtime>,
        members: vec![queue],
    };
    let engine = Engine::open(config).await.unwrap();
    engine.set_region_source(Rc::new(OwnRegions(Rc::downgrade(&engine))));
    engine
}

async fn format(runtime: &Rc<TestRuntime>, device: &Rc<Sparse>) {
    let queue = Rc::clone(device) as Rc<dyn DeviceQueue>;
    runtime.add_queue(Rc::clone(&queue));
    let options = FormatOptions {
        shards: Some(1),
        bucket_bytes: Some(MIB as u32),
        node_bytes: Some(256 << 10),
        region_buckets: Some(256),
        journal_bytes: Some(8 * MIB),
        ..FormatOptions::default()
    };
    crate::pool::format(&[queue], &options).await.unwrap();
}

/// Makes the tables say that `buckets` buckets of each region but the first are half full. Gives the live
/// blocks. (The index does not name any data there; opening does not ask it.)
async fn pretend_to_be_full(engine: &Engine, buckets: u32) -> u64 {
    let regions = engine.superblock().member_regions(0);
    let (of_region, half) = (engine.superblock().region_buckets, engine.space.data_blocks() / 2);
    for index in 0..regions {
        let owner = Value::from_slice(&0_u16.to_le_bytes());
        let position = Position::new(0, u64::from(index), 0);
        engine.set_key(Tree::Regions, position, Some(owner)).await.unwrap();
        if index == 0 || index + 1 == regions {
            continue;
        }
        for bucket in 0..buckets {
            let state = BucketCheckpoint {
                stamp: (0, 0),
                generation: 1,
                live_blocks: half,
                slots: 0,
                kind: BucketKind::Data,
                filled_at: 1,
            };
            let position = Position::new(0, u64::from(index * of_region + bucket), 0);
            engine.set_key(Tree::Buckets, position, Some(state.encode())).await.unwrap();
        }
        let tally = Tally {
            data_buckets: buckets,
            live_blocks: u64::from(buckets) * u64::from(half),
            least_live: half,
            oldest: 1,
            newest: 1,
            ..Tally::default()
        };
        engine.set_key(Tree::Tallies, position, Some(tally.encode())).await.unwrap();
    }
    u64::from(regions.saturating_sub(2)) * u64::from(buckets) * u64::from(half)
}

/// Writes and overwrites, so that the journal is full of changes of extents and buckets.
async fn write_for_a_while(engine: &Rc<Engine>) {
    let data = DataPath::new(Rc::clone(engine)).unwrap();
    let mut random = Random::new(17);
    for step in 0..600 {
        let from = random.below(2000);
        let range =
            BlockRange { inode: InodeNumber(1 << 16), snapshot: SnapshotId(1), from, to: from + 4 };
        let bytes = Buffer::try_copy_of(&[step as u8; 4 * BLOCK]).unwrap().freeze();
        data.write(range, Data::from_iter([bytes]), Until::Written).await.unwrap();
    }
    engine.flush().await.unwrap();
}

#[derive(Debug)]
struct Cost {
    reads: u64,
    read_bytes: u64,
    tables: usize,
    regions: u32,
    replayed: u64,
}

fn cost_of_a_mount(size_bytes: u64, buckets_in_use: u32) -> Cost {
    let runtime = TestRuntime::new(5);
    let device = Sparse::new(size_bytes);
    let (inner, disk) = (Rc::clone(&runtime), Rc::clone(&device));
    let (pretended, live) = runtime.block_on(async move {
        format(&inner, &disk).await;
        let engine = open(&inner, &disk).await;
        let pretended = pretend_to_be_full(&engine, buckets_in_use).await;
        engine.close().await.unwrap();
        let engine = open(&inner, &disk).await;
        write_for_a_while(&engine).await;
        let live = engine.space.tables.borrow().live_blocks;
        (pretended, live)
    });
    runtime.crash();
    let inner = Rc::clone(&runtime);
    runtime.block_on(async move {
        let before = (device.reads.get(), device.read_bytes.get());
        let engine = open(&inner, &device).await;
        let (reads, read_bytes) =
            (device.reads.get() - before.0, device.read_bytes.get() - before.1);
        let status = engine.status().await.unwrap();
        assert_eq!(status.data_bytes, live * BLOCK_SIZE, "of all buckets, read or not");
        assert!(live >= pretended && live < pretended + 2010);
        let tables = engine.space.tables.borrow();
        let regions = engine.superblock().member_regions(0);
        let used = u64::from(buckets_in_use) * u64::from(regions - 2);
        let others = tables.index_buckets + 20;
        let free = tables.free_buckets() as u64;
        assert!((tables.owned - used - others..=tables.owned - used).contains(&free), "{free}");
        Cost {
            reads,
            read_bytes,
            tables: tables.loaded_regions().len(),
            regions,
            replayed: engine.replayed_keys.get(),
        }
    })
}

#[test]
fn mount_reads_in_proportion_to_the_journal_not_the_pool() {
    let small = cost_of_a_mount(4 * GIB, 0);
    let large = cost_of_a_mount(1024 * GIB, 16);
    println!("{small:?}\n{large:?}");
    assert!(small.replayed > 500 && large.regions > 200 * small.regions);
    assert!(large.reads <= 2 * small.reads, "{large:?}");
    assert!(large.read_bytes <= 2 * small.read_bytes, "{large:?}");
    assert!(large.tables <= small.tables + 1, "{large:?}");
}

#[test]
fn tables_are_dropped_when_idle_and_come_back_the_same() {
    with_seeds(|seed| {
        let pool = small_pool(seed, 2, 64);
        let mut content = pool.run(async move |pool| {
            let mut written = Written::new(&pool, 48 * MIB).await;
            written.fill(&mut Random::new(seed), &mut 0, 8000).await.unwrap();
            written
        });
        for round in 0..3 {
            content = pool.run(async move |pool| {
                for shard in 0..2 {
                    pool.shard(shard).engine().set_region_tables_max(1);
                }
                let mut random = Random::new(seed * 100 + round);
                for _ in 0..15 {
                    for _ in 0..20 {
                        let at = random.below(8000) as usize;
                        content.write(content.place(at), 1).await.unwrap();
                    }
                    // What is on disk can be dropped.
                    for shard in 0..2 {
                        pool.shard(shard).engine().write_out_all().await.unwrap();
                    }
                }
                let (loads, drops) =
                    (counter(&pool, "space_table_loads"), counter(&pool, "space_table_drops"));
                assert!(loads > 40 && drops > 40, "{loads} loads, {drops} drops");
                content.verify().await;
                fsck(&pool).await;
                content
            });
            pool.crash_and_open();
        }
        pool.run(async move |pool| {
            content.verify().await;
            fsck(&pool).await;
        });
    });
}

/// A region that the index does not know is what an empty pool has: no key tells of it.
#[test]
fn what_nobody_uses_costs_nothing() {
    let runtime = TestRuntime::new(6);
    let device = Sparse::new(1024 * GIB);
    let inner = Rc::clone(&runtime);
    runtime.block_on(async move {
        format(&inner, &device).await;
        let engine = open(&inner, &device).await;
        write_for_a_while(&engine).await;
        engine.close().await.unwrap();
        let engine = open(&inner, &device).await;
        assert_eq!(engine.space.tables.borrow().known_regions().len(), 1);
        assert!(engine.space.tables.borrow().loaded_regions().len() <= 1);
        engine.ensure_regions().await.unwrap();
        let given = engine.region_list(ShardId(0)).await.unwrap();
        assert_eq!(given, [Region { member: 0, index: 0 }]);
        assert!(engine.space.tables.borrow().loaded_regions().len() <= 1);
        let status = engine.status().await.unwrap();
        assert!(status.unassigned_bytes > 1023 * GIB);
    });
}
