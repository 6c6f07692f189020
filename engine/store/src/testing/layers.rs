//! Versions of the blocks of one inode, made, written, merged and deleted at random, and compared with a model in
//! which each has a copy of its own.

use std::collections::BTreeMap;

use engine_base::random::Random;
use engine_base::{BLOCK_SIZE, InodeNumber, ShardId, SnapshotId};

use super::{Pool, bytes_of, data_of, with_seeds};
use crate::api::{FsckReport, KnownVersion, Link, Reply, Request, Whose};
use crate::data::absorb_blocks;
use crate::key::Tree;
use crate::version::Node;

/// Blocks that are written; they cross a chunk.
const FIRST: u64 = 1024 - 100;
const BLOCKS: u64 = 180;
const INODE: InodeNumber = InodeNumber(1000);

/// What each block holds, 0: nothing.
type Content = Vec<u8>;

struct Run {
    random: Random,
    nodes: BTreeMap<u32, Node>,
    /// Of those that can be read.
    content: BTreeMap<u32, Content>,
    next: u32,
}

fn known(version: u32) -> KnownVersion {
    KnownVersion { id: SnapshotId(version), epoch: 0 }
}

impl Run {
    fn new(seed: u64) -> Self {
        let root = 1_000_000;
        let nodes = BTreeMap::from([(root, Node { parent: None, absorbs: None })]);
        let content = BTreeMap::from([(root, vec![0; BLOCKS as usize])]);
        Self { random: Random::new(seed), nodes, content, next: root - 1 }
    }

    fn tell(&self, pool: &Pool) {
        let shard = pool.shard(0);
        for (version, node) in self.nodes.iter().rev() {
            shard.engine().versions.put(SnapshotId(*version), *node);
        }
    }

    fn children(&self, version: u32) -> Vec<u32> {
        let of = |node: &Node| node.parent == Some(SnapshotId(version));
        self.nodes.iter().filter(|(_, node)| of(node)).map(|(child, _)| *child).collect()
    }

    /// Into which version one is being merged.
    fn absorber(&self, version: u32) -> Option<u32> {
        let of = |node: &Node| node.absorbs == Some(SnapshotId(version));
        self.nodes.iter().find(|(_, node)| of(node)).map(|(into, _)| *into)
    }

    fn pick(&mut self, of: impl Fn(&Self, u32) -> bool) -> Option<u32> {
        let all: Vec<u32> = self.nodes.keys().copied().filter(|one| of(self, *one)).collect();
        (!all.is_empty()).then(|| *self.random.pick(&all))
    }

    fn range(&mut self) -> (u64, u64) {
        let from = self.random.below(BLOCKS);
        (from, self.random.range(1, (BLOCKS - from).min(60)))
    }

    async fn step(&mut self, pool: &Pool) {
        match self.random.below(100) {
            0..=44 => self.write(pool).await,
            45..=54 => self.discard(pool).await,
            55..=69 => self.read(pool).await,
            70..=79 => self.branch(pool),
            80..=84 => self.begin_merge(pool),
            85..=96 => self.merge(pool).await,
            _ => self.delete(pool).await,
        }
    }

    /// One that may be written.
    fn leaf(&mut self) -> Option<u32> {
        self.pick(|run, one| run.content.contains_key(&one) && run.children(one).is_empty())
    }

    async fn write(&mut self, pool: &Pool) {
        let Some(version) = self.leaf() else { return };
        let (mut at, len) = self.range();
        let end = at + len;
        while at < end {
            // One request is for one chunk.
            let border = if FIRST + at < 1024 { 1024 - FIRST } else { BLOCKS };
            let len = end.min(border) - at;
            let stamp = self.random.range(1, 255) as u8;
            let bytes = vec![stamp; (len * BLOCK_SIZE) as usize];
            let request = Request::DataWrite {
                inode: INODE,
                of: Whose::Version(known(version)),
                offset: (FIRST + at) * BLOCK_SIZE,
                data: data_of(&bytes, &mut self.random),
                fua: false,
            };
            pool.client().link().call(ShardId(0), request).await.unwrap();
            let content = self.content.get_mut(&version).unwrap();
            content[at as usize..(at + len) as usize].fill(stamp);
            at += len;
        }
    }

    async fn discard(&mut self, pool: &Pool) {
        let Some(version) = self.leaf() else { return };
        let (at, len) = self.range();
        let (from, to) = ((FIRST + at) * BLOCK_SIZE, (FIRST + at + len) * BLOCK_SIZE);
        let request = Request::DataPunch { inode: INODE, version: known(version), from, to };
        pool.client().link().call(ShardId(0), request).await.unwrap();
        self.content.get_mut(&version).unwrap()[at as usize..(at + len) as usize].fill(0);
    }

    async fn read(&mut self, pool: &Pool) {
        let Some(version) = self.pick(|run, one| run.content.contains_key(&one)) else { return };
        let (at, len) = self.range();
        self.compare(pool, version, at, at + len).await;
    }

    async fn compare(&self, pool: &Pool, version: u32, from: u64, to: u64) {
        let border = (1024 - FIRST).clamp(from, to);
        for (from, to) in [(from, border), (border, to)] {
            if from == to {
                continue;
            }
            let request = Request::DataRead {
                inode: INODE,
                of: Whose::Version(known(version)),
                offset: (FIRST + from) * BLOCK_SIZE,
                len: ((to - from) * BLOCK_SIZE) as u32,
            };
            let Reply::Data(data) = pool.client().link().call(ShardId(0), request).await.unwrap()
            else {
                panic!("not data");
            };
            let blocks = bytes_of(&data);
            for (block, bytes) in (from..).zip(blocks.chunks(BLOCK_SIZE as usize)) {
                let expected = self.content[&version][block as usize];
                assert!(
                    bytes.iter().all(|byte| *byte == expected),
                    "version {version} block {block}: {} in place of {expected}",
                    bytes[0]
                );
            }
        }
    }

    /// A version made from another.
    fn branch(&mut self, pool: &Pool) {
        if self.content.len() > 12 {
            return;
        }
        let Some(parent) = self.pick(|run, one| run.content.contains_key(&one)) else { return };
        // What is made of one that is being merged is made of what it becomes.
        let node = Node { parent: Some(SnapshotId(parent)), absorbs: None };
        self.nodes.insert(self.next, node);
        self.content.insert(self.next, self.content[&parent].clone());
        self.next -= 1;
        self.tell(pool);
    }

    /// One of which another was made, and no more, goes: the two are merged.
    fn begin_merge(&mut self, pool: &Pool) {
        let into = self.pick(|run, one| {
            let children = run.children(one);
            run.content.contains_key(&one)
                && children.len() == 1
                && run.absorber(one).is_none()
                && run.nodes[&children[0]].absorbs.is_none()
        });
        let Some(into) = into else { return };
        let child = self.children(into)[0];
        self.content.remove(&into);
        let node = self.nodes.get_mut(&into).unwrap();
        node.absorbs = Some(SnapshotId(child));
        // It is no child any more, but a part.
        self.nodes.get_mut(&child).unwrap().parent = None;
        self.tell(pool);
    }

    /// A part of what is to be moved, or the end of it.
    async fn merge(&mut self, pool: &Pool) {
        let Some(into) = self.pick(|run, one| run.nodes[&one].absorbs.is_some()) else { return };
        let child = self.nodes[&into].absorbs.unwrap();
        let shard = pool.shard(0);
        let engine = shard.engine();
        if let Some(area) = engine.next_area(child, None).await.unwrap() {
            let (from, to) = area.blocks();
            // Not always all of an area at once.
            let to = if self.random.chance(1, 2) { to } else { self.random.range(from, to) };
            let range = crate::data::BlockRange { inode: INODE, snapshot: child, from, to };
            absorb_blocks(engine, range, SnapshotId(into)).await.unwrap();
            if to == area.blocks().1 {
                engine
                    .transact(async |transaction| {
                        transaction.delete(Tree::Areas, area.position(child));
                        Ok(())
                    })
                    .await
                    .unwrap();
            }
            return;
        }
        for grandchild in self.children(child.0) {
            self.nodes.get_mut(&grandchild).unwrap().parent = Some(SnapshotId(into));
        }
        self.nodes.get_mut(&into).unwrap().absorbs = None;
        self.nodes.remove(&child.0);
        engine.versions.remove(child);
        if let Some(content) = self.content.remove(&child.0) {
            self.content.insert(into, content);
        }
        self.tell(pool);
    }

    async fn delete(&mut self, pool: &Pool) {
        let gone = self.pick(|run, one| {
            run.content.contains_key(&one)
                && run.children(one).is_empty()
                && run.absorber(one).is_none()
                && run.nodes[&one].absorbs.is_none()
                && run.nodes.len() > 2
        });
        let Some(gone) = gone else { return };
        self.content.remove(&gone);
        self.nodes.remove(&gone);
        let request = Request::VersionDelete { snapshot: SnapshotId(gone) };
        pool.client().link().call(ShardId(0), request).await.unwrap();
        pool.shard(0).engine().versions.remove(SnapshotId(gone));
    }

    /// Everything is as the model says, and nothing is left of what is gone.
    async fn check(&self, pool: &Pool) {
        for version in self.content.keys() {
            self.compare(pool, *version, 0, BLOCKS).await;
        }
        let shard = pool.shard(0);
        let mut report = FsckReport::default();
        assert!(shard.engine().check(&mut report).await.unwrap());
        assert_eq!(report.problems, Vec::<String>::new());
        let mut from = crate::key::Position::MIN;
        let mut transaction = shard.engine().read();
        let to = crate::key::Position::MAX;
        while let Some((position, _)) = transaction.next(Tree::Extents, from, to).await.unwrap() {
            assert!(self.nodes.contains_key(&position.snapshot), "left behind: {position:?}");
            from = position.successor();
        }
    }
}

#[test]
fn versions_that_share_blocks_are_what_copies_would_be() {
    with_seeds(|seed| {
        let pool = Pool::new(seed, 1);
        let mut run = Run::new(seed);
        for _ in 0..6 {
            run = pool.run(async move |pool| {
                run.tell(&pool);
                for _ in 0..150 {
                    run.step(&pool).await;
                }
                run.check(&pool).await;
                pool.client().flush().await.unwrap();
                run
            });
            pool.crash_and_open();
        }
        assert!(run.nodes.len() > 3 && run.next < 1_000_000 - 20, "{} versions", run.nodes.len());
    });
}
