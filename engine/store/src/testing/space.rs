//! Space: filling, emptying and overwriting small pools, to the last block.

use engine_base::random::Random;
use engine_base::runtime::Runtime;
use engine_base::{BLOCK_SIZE, MIB};
use engine_device::BlockDevice;
use engine_memory::Buffer;

use super::{Pool, with_seeds};
use crate::api::{CreateAttributes, Data, FileKind, SetAttributes, TreeRef, Usage, Verify};
use crate::client::VolumeRef;
use crate::error::{Result, StoreError};
use crate::pool::FormatOptions;

/// Blocks that are written to one shard before it is the next one's turn.
const PIECE: usize = 64;

/// A small pool with as many buckets as a large one has per shard in a region or two.
pub(super) fn small_pool(seed: u64, shards: u16, mib: u64) -> Pool {
    let options = FormatOptions {
        shards: Some(shards),
        bucket_bytes: Some(256 << 10),
        node_bytes: Some(64 << 10),
        journal_bytes: Some(2 << 20),
        ..FormatOptions::default()
    };
    Pool::with_members(seed, &[mib * MIB], options)
}

/// A volume and what its blocks hold: one number in each, 0 for a hole.
pub(super) struct Written {
    pool: Pool,
    volume: VolumeRef,
    pub(super) blocks: Vec<u32>,
    next: u32,
    client_blocks: u64,
}

fn block_of(stamp: u32) -> [u8; BLOCK_SIZE as usize] {
    let mut bytes = [0; BLOCK_SIZE as usize];
    for word in bytes.chunks_exact_mut(4) {
        word.copy_from_slice(&stamp.to_le_bytes());
    }
    bytes
}

impl Written {
    pub(super) async fn new(pool: &Pool, bytes: u64) -> Self {
        let info = pool.client().volume_create("v", bytes, 4096).await.unwrap();
        let blocks = vec![0; (bytes / BLOCK_SIZE) as usize];
        let volume = VolumeRef::from(&info);
        Self { pool: pool.clone(), volume, blocks, next: 1, client_blocks: 0 }
    }

    pub(super) async fn write(&mut self, from: usize, count: usize) -> Result<()> {
        let bytes: Vec<u8> = (0..count as u32).flat_map(|at| block_of(self.next + at)).collect();
        let data = Data::from_iter([Buffer::try_copy_of(&bytes).unwrap().freeze()]);
        let offset = from as u64 * BLOCK_SIZE;
        let result = self.pool.client().volume_write(&self.volume, offset, data, false).await;
        if result.is_ok() {
            for (at, block) in self.blocks[from..from + count].iter_mut().enumerate() {
                *block = self.next + at as u32;
            }
            self.client_blocks += count as u64;
        }
        self.next += count as u32;
        result
    }

    pub(super) async fn discard(&mut self, from: usize, count: usize) {
        let (offset, len) = (from as u64 * BLOCK_SIZE, count as u64 * BLOCK_SIZE);
        self.pool.client().volume_discard(&self.volume, offset, len).await.unwrap();
        self.blocks[from..from + count].fill(0);
    }

    pub(super) async fn verify(&self) {
        let client = self.pool.client();
        for (at, blocks) in self.blocks.chunks(256).enumerate() {
            let (offset, len) = (at as u64 * 256 * BLOCK_SIZE, blocks.len() as u64 * BLOCK_SIZE);
            let data = client.volume_read(&self.volume, offset, len).await.unwrap();
            let bytes = super::bytes_of(&data);
            for (block, stamp) in bytes.chunks_exact(BLOCK_SIZE as usize).zip(blocks) {
                assert!(*block == block_of(*stamp), "near block {}", at * 256);
            }
        }
    }

    /// Blocks that all shards together say can be written.
    pub(super) async fn free_blocks(&self) -> usize {
        let status = self.pool.client().status().await.unwrap();
        (status.iter().map(|shard| shard.available_bytes).sum::<u64>() / BLOCK_SIZE) as usize
    }

    /// The volume's block that is filled as number `at`: in turns on all shards, a piece on each.
    pub(super) fn place(&self, at: usize) -> usize {
        let (shards, chunk) = (usize::from(self.pool.shard_count()), 1024);
        let (piece, within) = (at / PIECE, at % PIECE);
        let (group, turn) = (piece / (shards * chunk / PIECE), piece % (shards * chunk / PIECE));
        let (shard, in_chunk) = (turn % shards, turn / shards);
        (group * shards + shard) * chunk + in_chunk * PIECE + within
    }

    /// Writes what is not written yet up to block number `want`, or until the pool is full.
    pub(super) async fn fill(
        &mut self,
        random: &mut Random,
        filled: &mut usize,
        want: usize,
    ) -> Result<()> {
        let mut most = PIECE;
        while *filled < want {
            let until_next = PIECE - *filled % PIECE;
            let count = (want - *filled).min(until_next).min(random.range(1, most as u64) as usize);
            match self.write(self.place(*filled), count).await {
                Ok(()) => *filled += count,
                // Too large a piece is refused before the last block is full.
                Err(StoreError::NoSpace { .. }) if most > 1 => most /= 2,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

pub(super) fn counter(pool: &Pool, name: &str) -> u64 {
    let mut sum = 0;
    for shard in 0.. {
        let Some(shard) = pool.open_shard(shard) else { return sum };
        let counters = shard.engine().counters();
        sum += counters.iter().find(|(known, _)| *known == name).expect("it is counted").1;
    }
    sum
}

pub(super) async fn fsck(pool: &Pool) {
    let report = pool.client().fsck(Verify::All).await.unwrap();
    assert!(report.problems.is_empty(), "{:#?}", report.problems);
}

/// Device blocks written for each block that a client wrote, over `count` overwrites.
async fn amplification(written: &mut Written, count: u32, mut place: impl FnMut() -> usize) -> f64 {
    let before = (written.pool.asked().written_bytes.get(), written.client_blocks);
    for _ in 0..count {
        let at = place();
        written.write(at, 1).await.unwrap();
    }
    written.pool.client().flush().await.unwrap();
    let device = (written.pool.asked().written_bytes.get() - before.0) / BLOCK_SIZE;
    device as f64 / (written.client_blocks - before.1) as f64
}

#[test]
fn hot_blocks_cost_less_than_scattered_ones() {
    let measure = |hot: bool| {
        small_pool(3, 1, 32).run(async move |pool| {
            let mut random = Random::new(4);
            let mut written = Written::new(&pool, 24 * MIB).await;
            let blocks = 18 * 256;
            written.fill(&mut random, &mut 0, blocks).await.unwrap();
            let mut place = move || match hot && random.chance(9, 10) {
                true => random.below(blocks as u64 / 20) as usize,
                false => random.below(blocks as u64) as usize,
            };
            amplification(&mut written, 6000, &mut place).await;
            let moved = counter(&pool, "copygc_blocks_moved");
            let all = amplification(&mut written, 6000, &mut place).await;
            let moved = counter(&pool, "copygc_blocks_moved") - moved;
            println!("hot {hot}: {all:.2} device blocks per block, {moved} moved");
            written.verify().await;
            fsck(&pool).await;
            moved
        })
    };
    let (scattered, hot) = (measure(false), measure(true));
    assert!(hot * 2 < scattered, "moved {hot} blocks with a hot twentieth, {scattered} without");
}

/// Fills a pool to the last block and empties it, again and again; at 95 % full it is overwritten. At each
/// step no more was promised than could be written in the end, and hardly less; overwrites cut extents, and what the
/// index grows by then goes off what was promised before. With several shards less than a region of each other one
/// may be left when one is full.
async fn fill_and_empty(pool: Pool, seed: u64, rounds: u32, overwrites: u32) {
    let mut random = Random::new(seed);
    let mut written = Written::new(&pool, 2 * pool.device().info().size_bytes).await;
    let first = written.free_blocks().await;
    // Less than a region cannot go to another shard that is full.
    let region_blocks = pool.shard(0).engine().superblock().region_buckets as usize * 64;
    let left = region_blocks * (usize::from(pool.shard_count()) - 1);
    for round in 0..rounds {
        let capacity = written.free_blocks().await;
        assert!(capacity > first * 9 / 10, "round {round}: {capacity} of {first} blocks are left");
        let (mut filled, mut factor, mut grown) = (0, 0.0, 0);
        let index = || counter(&pool, "space_buckets_index") as usize * 64;
        let mut promised = vec![capacity];
        for percent in [50, 90, 95, 99] {
            let want = capacity * percent / 100;
            written.fill(&mut random, &mut filled, want).await.unwrap();
            if percent == 95 {
                let mut places = random.fork();
                let count = overwrites;
                let before = index();
                factor = overwrite(&mut written, count, filled, &mut places).await;
                grown = index().saturating_sub(before);
            }
            promised.push(filled + written.free_blocks().await);
        }
        let full = written.fill(&mut random, &mut filled, usize::MAX).await.unwrap_err();
        assert!(matches!(full, StoreError::NoSpace { .. }), "{full:?}");
        println!(
            "round {round}: {filled} written, promised {promised:?}; overwritten at {factor:.2}, \
             {grown} blocks of index"
        );
        for (step, promise) in promised.iter().enumerate() {
            // The capacity, and the promises at 50 and 90 %, are from before the overwrites.
            let could = filled + left + if step < 3 { grown } else { 0 };
            let kept = could >= *promise && could - promise < filled / 8;
            assert!(kept, "round {round}, step {step}: {promise} promised, {filled} written");
        }
        if round % 5 == 0 {
            written.verify().await;
            fsck(&pool).await;
        }
        let count = written.blocks.len();
        written.discard(0, count).await;
    }
    fsck(&pool).await;
}

async fn overwrite(written: &mut Written, count: u32, filled: usize, random: &mut Random) -> f64 {
    let places: Vec<usize> =
        (0..count).map(|_| written.place(random.below(filled as u64) as usize)).collect();
    let mut places = places.into_iter();
    amplification(written, count, || places.next().unwrap()).await
}

#[test]
fn a_pool_is_filled_and_emptied_twenty_times() {
    let seed = std::env::var("CAIRN_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    println!("CAIRN_SEED={seed}");
    small_pool(seed, 1, 32).run(async move |pool| fill_and_empty(pool, seed, 20, 500).await);
}

/// The same with a pool of more shards and regions, and more overwrites.
#[test]
fn a_larger_pool_is_filled_and_emptied_twenty_times() {
    small_pool(1, 4, 512).run(async move |pool| fill_and_empty(pool, 1, 20, 10_000).await);
}

/// Every second block of every extent is dropped, which makes keys of one into sixteen.
#[test]
fn discards_that_add_keys_are_not_refused_by_a_full_pool() {
    small_pool(7, 1, 32).run(async move |pool| {
        let mut written = Written::new(&pool, 64 * MIB).await;
        let mut filled = 0;
        while written.write(filled, 64).await.is_ok() {
            filled += 64;
        }
        for at in (0..filled).step_by(2) {
            written.discard(at, 1).await;
        }
        written.verify().await;
        fsck(&pool).await;
        let free = written.free_blocks().await;
        assert!(free > filled / 3, "{free} blocks are free of {filled} that were written");
        written.discard(0, filled).await;
        written.write(0, 256).await.unwrap();
        written.verify().await;
    });
}

/// A pool full of names: nothing but deletion works, and that does.
#[test]
fn names_are_removed_from_a_full_pool() {
    small_pool(8, 1, 24).run(async move |pool| {
        let client = pool.client();
        let tree = TreeRef::from(&client.tree_create("t").await.unwrap());
        let new = CreateAttributes::default();
        let mut written = Written::new(&pool, 64 * MIB).await;
        let file = client.create(tree, tree.root, b"big", FileKind::File, new).await.unwrap().inode;
        let bytes = Buffer::try_copy_of(&[7; 1 << 20]).unwrap().freeze();
        let data = Data::from_iter([bytes]);
        client.file_write(tree, file, 0, data).await.unwrap();
        while written.write(written.blocks.len() / 2 + written.next as usize, 1).await.is_ok() {}
        let mut names = 0;
        let full = loop {
            let name = format!("a name that is long enough to fill the pool sooner, {names}");
            let kind = FileKind::File;
            match client.create(tree, tree.root, name.as_bytes(), kind, new).await {
                Ok(_) => names += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(full, StoreError::NoSpace { .. }), "{full:?}");
        let set = SetAttributes { size: Some(4096), ..SetAttributes::default() };
        client.set_attributes(tree, file, set).await.unwrap();
        client.file_punch(tree, file, 1, 4000).await.unwrap();
        client.remove(tree, tree.root, b"big", false).await.unwrap();
        for at in 0..names {
            let name = format!("a name that is long enough to fill the pool sooner, {at}");
            client.remove(tree, tree.root, name.as_bytes(), false).await.unwrap();
        }
        client.subvolume_delete("v").await.unwrap();
        pool.quiet().await;
        fsck(&pool).await;
        let mut again = Written::new(&pool, 64 * MIB).await;
        again.write(0, 2048).await.unwrap();
    });
}

/// The device fills with garbage what is discarded: nothing that is needed may be among it.
#[test]
fn emptied_buckets_are_discarded_and_nothing_else() {
    with_seeds(|seed| {
        let pool = small_pool(seed, 1, 32);
        let (blocks, kept) = (16 * 256, 3000);
        let content = pool.run(async move |pool| {
            pool.shard(0).engine().set_discard_delay_ns(5_000_000);
            let mut random = Random::new(seed);
            let mut written = Written::new(&pool, 32 * MIB).await;
            written.fill(&mut random, &mut 0, blocks).await.unwrap();
            pool.client().flush().await.unwrap();
            assert!(pool.asked().discards.borrow().is_empty(), "nothing was emptied yet");
            written.discard(0, kept / 2).await;
            written.discard(blocks / 2 + kept / 2, blocks / 2 - kept / 2).await;
            assert!(pool.asked().discards.borrow().is_empty(), "it is not durable yet");
            pool.client().flush().await.unwrap();
            for _ in 0..400 {
                let at = random.below(blocks as u64) as usize;
                written.write(at, 1).await.unwrap();
            }
            pool.client().flush().await.unwrap();
            pool.runtime.sleep(1_000_000_000).await;
            let discarded = pool.asked().discards.borrow().iter().map(|(_, len)| len).sum::<u64>();
            assert!(discarded > 3 * MIB, "{discarded} bytes were discarded");
            assert_eq!(counter(&pool, "space_discarded_bytes"), discarded);
            written.verify().await;
            fsck(&pool).await;
            // One is on its way when the process ends.
            written.discard(0, 1024).await;
            written
        });
        pool.crash_and_open();
        pool.run(async move |pool| {
            content.verify().await;
            fsck(&pool).await;
        });
    });
}

#[test]
fn a_device_that_fails_a_discard_is_not_asked_again() {
    small_pool(9, 1, 32).run(async move |pool| {
        pool.asked().discard_fails.set(true);
        pool.shard(0).engine().set_discard_delay_ns(5_000_000);
        let mut written = Written::new(&pool, 32 * MIB).await;
        for _ in 0..3 {
            written.fill(&mut Random::new(1), &mut 0, 1024).await.unwrap();
            written.discard(0, 1024).await;
            pool.client().flush().await.unwrap();
            pool.runtime.sleep(1_000_000_000).await;
        }
        assert_eq!(pool.asked().discards.borrow().len(), 1);
        written.fill(&mut Random::new(1), &mut 0, 4096).await.unwrap();
        written.verify().await;
        fsck(&pool).await;
    });
}

/// The regions that each open shard takes for its own.
fn owned_regions(pool: &Pool) -> Vec<std::collections::BTreeSet<(u8, u32)>> {
    (0..pool.shard_count())
        .map(|shard| pool.shard(shard).engine().space.tables.borrow().regions.clone())
        .collect()
}

pub(super) fn no_region_has_two_owners(pool: &Pool) {
    let all = owned_regions(pool);
    let together = all.iter().flatten().collect::<std::collections::BTreeSet<_>>().len();
    assert_eq!(together, all.iter().map(|regions| regions.len()).sum::<usize>());
}

/// One shard after the other is filled with all that the pool has; what the one has more the other has less.
#[test]
fn one_shard_can_use_the_whole_pool() {
    for seed in [1, 2] {
        let pool = small_pool(seed, 2, 48);
        let mut content = pool.run(async move |pool| {
            let mut written = Written::new(&pool, 192 * MIB).await;
            written.fill(&mut Random::new(seed), &mut 0, 5000).await.unwrap();
            written
        });
        let mut most = 0;
        for round in 0..4 {
            content = pool.run(async move |pool| {
                let free = content.free_blocks().await;
                let mut filled = 0;
                // Chunks of 4 MiB lie on the two shards in turns.
                let chunks = (0..48).filter(|chunk| chunk % 2 == round % 2);
                'full: for at in
                    chunks.flat_map(|chunk| (0..16).map(move |at| chunk * 1024 + at * 64))
                {
                    if content.blocks[at] == 0 {
                        match content.write(at, 64).await {
                            Ok(()) => filled += 64,
                            Err(StoreError::NoSpace { .. }) => break 'full,
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
                println!("seed {seed} round {round}: {filled} written of {free}");
                // The reserves of the other shard, and less than a region of its own.
                assert!(filled * 10 > free * 8, "{filled} blocks written of {free} that were free");
                no_region_has_two_owners(&pool);
                content.verify().await;
                content
            });
            if round % 2 == 1 {
                pool.crash_and_open();
            }
            content = pool.run(async move |pool| {
                no_region_has_two_owners(&pool);
                content.verify().await;
                if round > 1 {
                    fsck(&pool).await;
                }
                for chunk in (0..48).filter(|chunk| chunk % 2 == round % 2) {
                    content.discard(chunk * 1024, 1024).await;
                }
                pool.client().flush().await.unwrap();
                content
            });
            most = most.max(counter(&pool, "space_regions_given"));
        }
        assert!(most > 10, "{most} regions were given");
    }
}

/// What a host drops (Deallocate, Write Zeroes) is free to the block, whatever extents it cuts.
#[test]
fn what_clients_discard_is_free_to_the_block() {
    with_seeds(|seed| {
        small_pool(seed, 2, 48).run(async move |pool| {
            let mut random = Random::new(seed);
            let mut written = Written::new(&pool, 16 * MIB).await;
            for _ in 0..200 {
                let from = random.below(4000) as usize;
                let count = random.range(1, 96) as usize;
                match random.chance(1, 2) {
                    true => written.write(from, count).await.unwrap(),
                    false => written.discard(from, count).await,
                }
                let held = written.blocks.iter().filter(|stamp| **stamp != 0).count() as u64;
                let id = written.volume.subvolume;
                let usage = pool.client().subvolume_usage(id).await.unwrap();
                let own_bytes = held * BLOCK_SIZE;
                assert_eq!(usage, Usage { own_bytes, ..Usage::default() });
            }
            written.verify().await;
        });
    });
}
