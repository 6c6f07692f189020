//! Random operations on a file tree, compared with the model.

use engine_base::InodeNumber;
use engine_base::random::Random;

use super::tree_model::{Model, Outcome, cause, node};
use super::{Pool, bytes_of, data_of, with_seeds};
use crate::api::{CreateAttributes, FileKind, PutMode, RenameMode, SetAttributes, TreeRef, Verify};
use crate::client::Client;
use crate::error::Result;
use crate::namespace::PLACES;
use crate::testing::pool::TestLink;

/// Sizes around the boundaries of blocks, extents and chunks.
const INTERESTING: [u64; 9] =
    [0, 1, 4095, 4096, 4097, 131_072, 4_194_303, 4_194_304, 8_388_608 + 100];

/// A tree that is worked on.
pub(super) struct Run {
    pub(super) client: Client<TestLink>,
    pub(super) tree: TreeRef,
    pub(super) model: Model,
    pub(super) random: Random,
    /// Every inode there ever was, so that gone ones are asked for too.
    seen: Vec<u64>,
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: Result<T>, expected: Outcome<T>) {
    let got = got.map_err(|error| cause(&error));
    assert_eq!(got, expected, "{what}");
}

impl Run {
    fn inode(&mut self) -> InodeNumber {
        InodeNumber(*self.random.pick(&self.seen))
    }

    /// Mostly a directory.
    fn directory(&mut self) -> InodeNumber {
        for _ in 0..20 {
            let inode = self.inode();
            if self.model.get(inode.0).is_ok_and(|node| node.kind == FileKind::Directory) {
                return inode;
            }
        }
        self.inode()
    }

    /// Mostly a file.
    fn file(&mut self) -> InodeNumber {
        for _ in 0..20 {
            let inode = self.inode();
            if self.model.get(inode.0).is_ok_and(|node| node.kind == FileKind::File) {
                return inode;
            }
        }
        self.inode()
    }

    fn name(&mut self) -> Vec<u8> {
        format!("n{}", self.random.below(12)).into_bytes()
    }

    fn offset(&mut self) -> u64 {
        match self.random.below(2) {
            0 => *self.random.pick(&INTERESTING),
            _ => self.random.below(20_000),
        }
    }

    /// One operation, compared with the model.
    pub(super) async fn step(&mut self) {
        match self.random.below(20) {
            0..=3 => self.create().await,
            4 => self.link().await,
            5..=6 => self.remove().await,
            7..=8 => self.rename().await,
            9..=12 => self.write().await,
            13..=14 => self.read().await,
            15 => self.resize().await,
            16 => self.punch().await,
            17 => self.xattr().await,
            18 => self.sync().await,
            _ => self.look().await,
        }
    }

    async fn create(&mut self) {
        let (directory, name) = (self.directory(), self.name());
        let mode = self.random.below(0o10000) as u32;
        let attributes = CreateAttributes { mode, uid: 5, gid: 6 };
        let target = vec![b't'; self.random.range(1, 100) as usize];
        let kind = *self.random.pick(&[FileKind::File, FileKind::Directory, FileKind::Symlink]);
        let expected = self.model.free(directory.0, &name);
        let got = match kind {
            FileKind::Symlink => {
                self.client.symlink(self.tree, directory, &name, &target, attributes).await
            }
            _ => self.client.create(self.tree, directory, &name, kind, attributes).await,
        };
        same("create", got.as_ref().map(|_| ()).map_err(Clone::clone), expected);
        let Ok(created) = got else { return };
        let mut node = node(kind, mode);
        if kind == FileKind::Symlink {
            node.mode = 0o777;
            node.content = target;
        }
        self.seen.push(created.inode.0);
        self.model.insert(directory.0, &name, created.inode.0, node);
    }

    async fn link(&mut self) {
        let (inode, directory, name) = (self.inode(), self.directory(), self.name());
        let got = self.client.link_inode(self.tree, inode, directory, &name).await.map(drop);
        same("link", got, self.model.link(inode.0, directory.0, &name));
    }

    async fn remove(&mut self) {
        let (directory, name) = (self.directory(), self.name());
        let rmdir = self.random.chance(1, 2);
        let got = self.client.remove(self.tree, directory, &name, rmdir).await;
        same("remove", got, self.model.remove(directory.0, &name, rmdir));
    }

    async fn rename(&mut self) {
        let (from, from_name) = (self.directory(), self.name());
        let (to, to_name) = (self.directory(), self.name());
        let modes = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
        let mode = *self.random.pick(&modes);
        let got = self.client.rename(self.tree, (from, &from_name), (to, &to_name), mode).await;
        let expected = self.model.rename((from.0, &from_name), (to.0, &to_name), mode);
        same("rename", got, expected);
    }

    async fn write(&mut self) {
        let (inode, offset) = (self.file(), self.offset());
        let most = *self.random.pick(&[10, 5000, 20_000, 300_000]);
        let mut bytes = vec![0; self.random.below(most) as usize];
        self.random.fill(&mut bytes);
        let data = data_of(&bytes, &mut self.random);
        let got = self.client.file_write(self.tree, inode, offset, data).await;
        let expected = self.model.write(inode.0, offset as usize, &bytes);
        same("write", got.map(drop), expected);
    }

    async fn read(&mut self) {
        let (inode, offset) = (self.file(), self.offset());
        let len = self.random.below(300_000) as u32;
        let got = self.client.file_read(self.tree, inode, offset, len).await;
        let got = got.map(|data| bytes_of(&data)).map_err(|error| cause(&error));
        let expected = self.model.file(inode.0).map(|file| {
            let size = file.content.len();
            let from = (offset as usize).min(size);
            file.content[from..(from + len as usize).min(size)].to_vec()
        });
        assert!(got == expected, "read of {inode} at {offset}+{len} differs");
    }

    async fn resize(&mut self) {
        let (inode, size) = (self.file(), self.offset());
        let set = SetAttributes { size: Some(size), mode: Some(0o640), ..Default::default() };
        let got = self.client.set_attributes(self.tree, inode, set).await;
        let expected = self.model.file(inode.0).map(|file| {
            file.content.resize(size as usize, 0);
            file.mode = 0o640;
        });
        same("resize", got.map(drop), expected);
    }

    async fn punch(&mut self) {
        let (inode, offset) = (self.file(), self.offset());
        let len = *self.random.pick(&[1, 100, 4096, 9000, 5_000_000]);
        let got = self.client.file_punch(self.tree, inode, offset, len).await;
        let expected = self.model.file(inode.0).map(|file| {
            let size = file.content.len();
            let from = (offset as usize).min(size);
            file.content[from..(from + len as usize).min(size)].fill(0);
        });
        same("punch", got, expected);
    }

    async fn xattr(&mut self) {
        let inode = self.inode();
        let name = format!("user.{}", self.random.below(6)).into_bytes();
        if self.random.chance(1, 3) {
            let got = self.client.xattr_remove(self.tree, inode, &name).await;
            let found = self.model.nodes.get_mut(&inode.0);
            let removed = found.and_then(|node| node.xattrs.remove(&name)).map(drop);
            same("remove xattr", got, removed.ok_or("not found"));
            return;
        }
        let value = vec![self.random.below(256) as u8; self.random.below(1500) as usize];
        let mode = *self.random.pick(&[PutMode::Any, PutMode::Create, PutMode::Replace]);
        let got = self.client.xattr_set(self.tree, inode, &name, &value, mode).await;
        same("set xattr", got, self.model.xattr_set(inode.0, &name, &value, mode));
    }

    async fn sync(&mut self) {
        let inode = self.inode();
        let got = self.client.file_sync(self.tree, inode).await;
        same("sync", got, self.model.get(inode.0).map(drop));
    }

    async fn look(&mut self) {
        let (directory, name) = (self.directory(), self.name());
        let got = self.client.lookup(self.tree, directory, &name).await;
        same("lookup", got.map(|found| found.inode.0), self.model.lookup(directory.0, &name));
    }

    async fn check(&self, pool: &Pool) {
        pool.quiet().await;
        let report = self.client.fsck(Verify::All).await.unwrap();
        assert!(report.problems.is_empty(), "{:#?}", report.problems);
        let status = self.client.status().await.unwrap();
        let inodes: u64 = status.iter().map(|shard| shard.inodes).sum();
        assert_eq!(inodes, self.model.nodes.len() as u64);
    }

    async fn compare(&self, directory: u64) {
        let (client, tree, model) = (&self.client, self.tree, &self.model);
        Compare { client, tree, model }.below(directory).await;
    }
}

/// A tree and what it must be.
pub(super) struct Compare<'a> {
    pub(super) client: &'a Client<TestLink>,
    pub(super) tree: TreeRef,
    pub(super) model: &'a Model,
}

impl Compare<'_> {
    /// Everything below a directory: names, attributes, contents, xattrs.
    pub(super) async fn below(&self, directory: u64) {
        let model = &self.model.nodes[&directory];
        let mut listed = Vec::new();
        let mut cookie = 0;
        loop {
            let number = InodeNumber(directory);
            let page = self.client.read_directory(self.tree, number, cookie, 5).await.unwrap();
            let Some(last) = page.last() else { break };
            cookie = last.cookie;
            listed.extend(page);
        }
        let mut names: Vec<_> =
            listed.iter().map(|entry| (entry.name.clone(), entry.attributes.inode.0)).collect();
        names.sort();
        let expected: Vec<_> =
            model.entries.iter().map(|(name, inode)| (name.clone(), *inode)).collect();
        assert_eq!(names, expected, "entries of {directory}");
        for entry in listed {
            self.compare_inode(entry.attributes.inode).await;
            if entry.attributes.kind == FileKind::Directory {
                Box::pin(self.below(entry.attributes.inode.0)).await;
            }
        }
    }

    async fn compare_inode(&self, number: InodeNumber) {
        let node = &self.model.nodes[&number.0];
        let attributes = self.client.get_attributes(self.tree, number).await.unwrap();
        let size =
            if node.kind == FileKind::Directory { node.entries.len() } else { node.content.len() };
        assert_eq!(
            (attributes.kind, attributes.mode, attributes.links, attributes.size),
            (node.kind, node.mode, node.links, size as u64),
            "inode {number}"
        );
        let mut names = self.client.xattr_list(self.tree, number).await.unwrap();
        names.sort();
        assert_eq!(names, node.xattrs.keys().cloned().collect::<Vec<_>>());
        for (name, value) in &node.xattrs {
            let got = self.client.xattr_get(self.tree, number, name).await.unwrap();
            assert_eq!(&got, value);
        }
        match node.kind {
            FileKind::Symlink => {
                let target = self.client.read_link(self.tree, number).await.unwrap();
                assert_eq!(target, node.content);
            }
            FileKind::File => {
                let mut content = Vec::new();
                loop {
                    let offset = content.len() as u64;
                    let part = self.client.file_read(self.tree, number, offset, 1 << 20).await;
                    let part = bytes_of(&part.unwrap());
                    if part.is_empty() {
                        break;
                    }
                    content.extend(part);
                }
                assert!(content == node.content, "content of {number} differs");
            }
            FileKind::Directory => {}
        }
    }
}

/// A new tree.
pub(super) async fn start(pool: Pool, seed: u64) -> Run {
    let client = pool.client();
    let info = client.tree_create("t").await.unwrap();
    let (tree, root) = (TreeRef::from(&info), info.root.0);
    let random = Random::new(seed);
    Run { client, tree, model: Model::new(root), random, seen: vec![root] }
}

async fn work(pool: Pool, mut run: Run) -> Run {
    for _ in 0..200 {
        run.step().await;
    }
    run.compare(run.model.root).await;
    run.check(&pool).await;
    run.client.flush().await.unwrap();
    run
}

async fn end(pool: Pool, run: Run) {
    let version = pool.version_of(run.tree.subvolume);
    run.client.subvolume_delete("t").await.unwrap();
    pool.quiet().await;
    let root = InodeNumber(run.model.root);
    assert!(run.client.get_attributes(run.tree, root).await.is_err());
    let report = run.client.fsck(Verify::All).await.unwrap();
    assert!(report.problems.is_empty(), "{:#?}", report.problems);
    assert!(run.client.status().await.unwrap().iter().all(|shard| shard.inodes == 0));
    assert_eq!(pool.data_blocks_of(version), 0);
}

/// Works, flushes, crashes: everything is still there, and work goes on.
fn random_tree(seed: u64, shards: u16) {
    let pool = Pool::new(seed, shards);
    let mut run = pool.run(async move |pool| start(pool, seed).await);
    for _ in 0..3 {
        run = pool.run(async move |pool| work(pool, run).await);
        pool.crash_and_open();
        run = pool.run(async move |_| {
            run.compare(run.model.root).await;
            run
        });
    }
    pool.run(async move |pool| end(pool, run).await);
}

#[test]
fn a_tree_does_what_the_model_does() {
    with_seeds(|seed| {
        for shards in [1, 2, 4] {
            random_tree(seed, shards);
        }
    });
}

#[test]
fn colliding_names_are_told_apart() {
    // 40 places for all names: chains, whiteouts and reuse at every turn.
    PLACES.set(40);
    with_seeds(|seed| {
        random_tree(seed, 2);
    });
    PLACES.set(u64::MAX);
}
