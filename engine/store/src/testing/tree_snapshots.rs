//! Snapshots, clones and rollback of file trees, compared with copies of a model.

use std::collections::BTreeSet;

use engine_base::random::Random;
use engine_base::{BLOCK_SIZE, InodeNumber, MIB, SnapshotId};

use super::tree_model::Model;
use super::tree_random::{Compare, Run, start};
use super::{Pool, data_of, with_seeds};
use crate::api::{
    ChangeKind, CreateAttributes, FileKind, KnownVersion, Link, NewSnapshot, RenameMode, Reply,
    Request, SetAttributes, TreeDiffCursor, TreeRef, Verify, Whose,
};
use crate::client::{Client, VolumeRef};
use crate::error::StoreError;
use crate::logged::{self, Intent};
use crate::namespace::PLACES;
use crate::testing::pool::TestLink;

/// A snapshot or clone beside the tree that is worked on.
struct Other {
    name: String,
    tree: TreeRef,
    model: Model,
    writable: bool,
}

struct Family {
    run: Run,
    /// Name of the tree that is worked on.
    name: String,
    others: Vec<Other>,
    made: u32,
}

const OTHERS_MAX: usize = 7;

/// All paths of a tree with their inodes.
fn names_of(model: &Model) -> BTreeSet<(Vec<u8>, u64)> {
    let (mut all, mut directories) = (BTreeSet::new(), vec![(Vec::new(), model.root)]);
    while let Some((path, directory)) = directories.pop() {
        for (name, inode) in &model.nodes[&directory].entries {
            let path = [&path[..], b"/", &name[..]].concat();
            if model.nodes[inode].kind == FileKind::Directory {
                directories.push((path.clone(), *inode));
            }
            all.insert((path, *inode));
        }
    }
    all
}

/// The directory that a path's last name is in.
fn parent_of(model: &Model, path: &[u8]) -> u64 {
    let mut parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').skip(1).collect();
    parts.pop();
    parts.iter().fold(model.root, |at, name| model.nodes[&at].entries[*name])
}

async fn make(client: &Client<TestLink>, source: &str, name: &str, writable: bool) -> TreeRef {
    let new = NewSnapshot { source: source.to_owned(), name: name.to_owned(), writable };
    TreeRef::from(&client.snapshot_create(&[new]).await.unwrap()[0])
}

impl Family {
    async fn step(&mut self) {
        match self.run.random.below(12) {
            0 if self.others.len() < OTHERS_MAX => self.snapshot().await,
            1 => self.delete().await,
            2 => self.roll_back().await,
            3 => self.change_over(),
            4 => self.look().await,
            5 => self.compare_two().await,
            _ => {
                for _ in 0..6 {
                    self.run.step().await;
                }
            }
        }
    }

    /// Of the tree that is worked on, or of a snapshot.
    async fn snapshot(&mut self) {
        self.made += 1;
        let name = format!("s{}", self.made);
        let writable = self.run.random.chance(1, 3);
        let (source, model) = match self.run.random.below(3) {
            0 if !self.others.is_empty() => {
                let other = self.run.random.pick(&self.others);
                (other.name.clone(), other.model.clone())
            }
            _ => (self.name.clone(), self.run.model.clone()),
        };
        let tree = make(&self.run.client, &source, &name, writable).await;
        self.others.push(Other { name, tree, model, writable });
    }

    fn some(&mut self, wanted: impl Fn(&Other) -> bool) -> Option<usize> {
        let found = self.others.iter().enumerate().filter(|(_, other)| wanted(other));
        let found: Vec<usize> = found.map(|(index, _)| index).collect();
        if found.is_empty() { None } else { Some(*self.run.random.pick(&found)) }
    }

    async fn delete(&mut self) {
        let Some(index) = self.some(|_| true) else { return };
        let gone = self.others.remove(index);
        self.run.client.subvolume_delete(&gone.name).await.unwrap();
        let root = InodeNumber(gone.model.root);
        assert!(self.run.client.get_attributes(gone.tree, root).await.is_err());
    }

    async fn roll_back(&mut self) {
        let Some(index) = self.some(|other| !other.writable) else { return };
        let to = &self.others[index];
        let info = self.run.client.subvolume_rollback(&self.name, &to.name).await.unwrap();
        self.run.tree = TreeRef::from(&info);
        self.run.model = to.model.clone();
    }

    /// Goes on in a clone.
    fn change_over(&mut self) {
        let Some(index) = self.some(|other| other.writable) else { return };
        let other = &mut self.others[index];
        std::mem::swap(&mut self.name, &mut other.name);
        std::mem::swap(&mut self.run.tree, &mut other.tree);
        std::mem::swap(&mut self.run.model, &mut other.model);
    }

    async fn look(&mut self) {
        let Some(index) = self.some(|_| true) else { return };
        let other = &self.others[index];
        let client = &self.run.client;
        Compare { client, tree: other.tree, model: &other.model }.below(other.model.root).await;
        if other.writable {
            return;
        }
        let root = InodeNumber(other.model.root);
        let refused = client
            .create(other.tree, root, b"new", FileKind::File, CreateAttributes::default())
            .await;
        assert!(matches!(refused, Err(StoreError::ReadOnly { .. })), "{refused:?}");
    }

    /// What a diff of two snapshots tells is how their models differ.
    async fn compare_two(&mut self) {
        let Some(a) = self.some(|other| !other.writable) else { return };
        let Some(b) = self.some(|other| !other.writable) else { return };
        let (a, b) = (&self.others[a], &self.others[b]);
        let client = &self.run.client;
        let (base, snapshot) =
            (client.subvolume_get(&a.name).await.unwrap(), client.subvolume_get(&b.name).await);
        let snapshot = snapshot.unwrap();
        let (mut told, mut from) = (Vec::new(), Some(TreeDiffCursor::default()));
        while let Some(at) = from {
            let (paths, next) = client.tree_diff(Some(&base), &snapshot, at).await.unwrap();
            told.extend(paths);
            assert!(next.is_none_or(|next| next > at), "it does not go on");
            from = next;
        }
        let of = |kind| {
            let some = told.iter().filter(move |one| one.kind == kind);
            some.map(|one| (one.path.clone(), one.inode.0)).collect::<BTreeSet<_>>()
        };
        // What lies below a directory that was moved has other paths, and is not told for that.
        let (told_gone, told_come) = (of(ChangeKind::Removed), of(ChangeKind::Added));
        let entries = |model: &Model, told: &BTreeSet<(Vec<u8>, u64)>| {
            let is_told = |path: &[u8], inode| told.contains(&(path.to_vec(), inode));
            let mut all = BTreeSet::new();
            for (path, inode) in names_of(model) {
                let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
                let parent = parent_of(model, &path);
                all.insert((parent, name, inode, is_told(&path, inode)));
            }
            all
        };
        // Entry by entry: one that only one of the two has is told, no other is.
        let plain = |(parent, name, inode, _): (u64, Vec<u8>, u64, bool)| (parent, name, inode);
        let (old, new) = (entries(&a.model, &told_gone), entries(&b.model, &told_come));
        let (old_names, new_names): (BTreeSet<_>, BTreeSet<_>) =
            (old.iter().cloned().map(plain).collect(), new.iter().cloned().map(plain).collect());
        for one in old {
            assert_eq!(one.3, !new_names.contains(&plain(one.clone())), "{one:?}");
        }
        for one in new {
            assert_eq!(one.3, !old_names.contains(&plain(one.clone())), "{one:?}");
        }
        let modified: BTreeSet<u64> =
            of(ChangeKind::Modified).into_iter().map(|(_, inode)| inode).collect();
        for (inode, node) in &b.model.nodes {
            let before = a.model.nodes.get(inode);
            let differs = before.is_some_and(|before| {
                (before.mode, &before.content, &before.xattrs, before.entries.keys().len())
                    != (node.mode, &node.content, &node.xattrs, node.entries.keys().len())
            });
            assert!(!differs || modified.contains(inode), "inode {inode} was modified");
            assert!(before.is_some() || !modified.contains(inode), "inode {inode} is new");
        }
    }

    async fn compare_all(&self) {
        let client = &self.run.client;
        let here = (self.run.tree, &self.run.model);
        let others = self.others.iter().map(|other| (other.tree, &other.model));
        for (tree, model) in std::iter::once(here).chain(others) {
            Compare { client, tree, model }.below(model.root).await;
        }
    }

    /// Nothing is wrong, and each inode is counted once.
    async fn check(&self, pool: &Pool) {
        pool.quiet().await;
        let report = self.run.client.fsck(Verify::All).await.unwrap();
        assert_eq!(report.problems, Vec::<String>::new());
        let models = self.others.iter().map(|other| &other.model).chain([&self.run.model]);
        let inodes: BTreeSet<u64> = models.flat_map(|model| model.nodes.keys().copied()).collect();
        let status = self.run.client.status().await.unwrap();
        let counted: u64 = status.iter().map(|shard| shard.inodes).sum();
        assert_eq!(counted, inodes.len() as u64);
    }
}

fn family(seed: u64, shards: u16) {
    let pool = Pool::new(seed, shards);
    let mut family = pool.run(async move |pool| {
        let run = start(pool, seed).await;
        Family { run, name: "t".to_owned(), others: Vec::new(), made: 0 }
    });
    for _ in 0..3 {
        family = pool.run(async move |pool| {
            for _ in 0..60 {
                family.step().await;
            }
            family.compare_all().await;
            family.check(&pool).await;
            family.run.client.flush().await.unwrap();
            family
        });
        pool.crash_and_open();
        family = pool.run(async move |_| {
            family.compare_all().await;
            family
        });
    }
    // One after the other goes, and leaves the rest as it is.
    pool.run(async move |pool| {
        while !family.others.is_empty() {
            family.delete().await;
            if family.run.random.chance(1, 2) {
                pool.quiet().await;
            }
            family.compare_all().await;
        }
        family.check(&pool).await;
        family.run.client.subvolume_delete(&family.name).await.unwrap();
        pool.quiet().await;
        let status = family.run.client.status().await.unwrap();
        assert!(status.iter().all(|shard| (shard.inodes, shard.data_bytes) == (0, 0)));
        let report = family.run.client.fsck(Verify::All).await.unwrap();
        assert_eq!(report.problems, Vec::<String>::new());
    });
}

#[test]
fn trees_and_their_snapshots_do_what_copies_of_the_model_do() {
    with_seeds(|seed| {
        for shards in [1, 4] {
            family(seed, shards);
        }
    });
}

#[test]
fn names_that_collide_are_told_apart_in_all_versions() {
    PLACES.set(40);
    with_seeds(|seed| family(seed, 2));
    PLACES.set(u64::MAX);
}

/// A volume and two trees with something in each.
async fn of_all_kinds(client: &Client<TestLink>) -> (VolumeRef, [(TreeRef, InodeNumber); 2]) {
    let volume = VolumeRef::from(&client.volume_create("v", 8 * MIB, 4096).await.unwrap());
    let mut trees = Vec::new();
    for name in ["a", "b"] {
        let tree = TreeRef::from(&client.tree_create(name).await.unwrap());
        let new = CreateAttributes::default();
        let file = client.create(tree, tree.root, b"f", FileKind::File, new).await.unwrap();
        trees.push((tree, file.inode));
    }
    (volume, [trees[0], trees[1]])
}

#[test]
fn a_group_of_different_kinds_is_of_one_instant() {
    with_seeds(|seed| {
        Pool::new(seed, 4).run(async move |pool| {
            let client = pool.client();
            let (volume, trees) = of_all_kinds(&client).await;
            // One after the other gets the next number: whatever the instant, they are in step.
            let work = async {
                for number in 1..=40_u8 {
                    let block = || data_of(&[number; BLOCK_SIZE as usize], &mut Random::new(seed));
                    client.volume_write(&volume, 0, block(), false).await.unwrap();
                    for (tree, file) in trees {
                        client.file_write(tree, file, 5 * MIB, block()).await.unwrap();
                    }
                }
            };
            let new = |source: &str, round| NewSnapshot {
                source: source.to_owned(),
                name: format!("{source}-{round}"),
                writable: false,
            };
            let snapshots = async {
                for round in 0..6 {
                    let group = ["v", "a", "b"].map(|source| new(source, round));
                    let made = client.snapshot_create(&group).await.unwrap();
                    let of = VolumeRef::from(&made[0]);
                    let first = client.volume_read(&of, 0, BLOCK_SIZE).await.unwrap()[0][0];
                    let mut numbers = vec![first];
                    for (info, (_, file)) in made[1..].iter().zip(trees) {
                        let read = client.file_read(TreeRef::from(info), file, 5 * MIB, 1).await;
                        let read = read.unwrap();
                        numbers.push(read.first().map_or(0, |piece| piece[0]));
                    }
                    let in_step =
                        numbers.windows(2).all(|two| two[0] == two[1] || two[0] == two[1] + 1);
                    assert!(in_step && numbers[0] - numbers[2] <= 1, "{numbers:?}");
                }
            };
            futures::future::join(work, snapshots).await;
            let report = client.fsck(Verify::All).await.unwrap();
            assert_eq!(report.problems, Vec::<String>::new());
        });
    });
}

#[test]
fn what_is_cut_off_or_removed_after_a_snapshot_stays_in_it() {
    let pool = Pool::new(71, 4);
    pool.run(async |pool| {
        let client = pool.client();
        let tree = TreeRef::from(&client.tree_create("t").await.unwrap());
        let new = CreateAttributes::default();
        let mut files = Vec::new();
        for name in [b"a", b"b", b"c"] {
            let file = client.create(tree, tree.root, name, FileKind::File, new).await.unwrap();
            let data = data_of(&[7; 9000], &mut Random::new(1));
            for at in [0, 4 * MIB, 30 * MIB] {
                client.file_write(tree, file.inode, at, data.clone()).await.unwrap();
            }
            files.push(file.inode);
        }
        let kept = make(&client, "t", "kept", false).await;
        let shorter = SetAttributes { size: Some(5000), ..SetAttributes::default() };
        client.set_attributes(tree, files[0], shorter).await.unwrap();
        client.remove(tree, tree.root, b"b", false).await.unwrap();
        let (from, to) = ((tree.root, &b"a"[..]), (tree.root, &b"c"[..]));
        client.rename(tree, from, to, RenameMode::Replace).await.unwrap();
        // What grows again is zeroes, not what the snapshot has there.
        let longer = SetAttributes { size: Some(30 * MIB + 100), ..SetAttributes::default() };
        client.set_attributes(tree, files[0], longer).await.unwrap();
        let grown = client.file_read(tree, files[0], 30 * MIB, 100).await.unwrap();
        assert!(super::bytes_of(&grown).iter().all(|byte| *byte == 0));
        pool.quiet().await;
        let still_there = async || {
            for (name, file) in [b"a", b"b", b"c"].iter().zip(&files) {
                let found = client.lookup(kept, tree.root, &name[..]).await.unwrap();
                assert_eq!((found.inode, found.size), (*file, 30 * MIB + 9000));
                for at in [0, 4 * MIB, 30 * MIB] {
                    let read = client.file_read(kept, *file, at, 9000).await.unwrap();
                    assert!(super::bytes_of(&read) == [7; 9000]);
                }
            }
        };
        still_there().await;
        client.subvolume_delete("t").await.unwrap();
        pool.quiet().await;
        still_there().await;
        client.subvolume_delete("kept").await.unwrap();
        pool.quiet().await;
        let status = client.status().await.unwrap();
        assert!(status.iter().all(|shard| (shard.inodes, shard.data_bytes) == (0, 0)));
    });
}

#[test]
fn what_is_still_to_be_dropped_when_versions_are_merged_is_dropped_after_a_crash() {
    let pool = Pool::new(72, 2);
    let (tree, file) = pool.run(async |pool| {
        let client = pool.client();
        let tree = TreeRef::from(&client.tree_create("t").await.unwrap());
        make(&client, "t", "kept", false).await;
        let new = CreateAttributes::default();
        let file = client.create(tree, tree.root, b"f", FileKind::File, new).await.unwrap();
        for at in [0, 4 * MIB, 9 * MIB] {
            let data = data_of(&[7; 4096], &mut Random::new(1));
            client.file_write(tree, file.inode, at, data).await.unwrap();
        }
        // Its data is to go, and nobody has begun with that.
        let (inode, snapshot) = (file.inode, pool.version_of(tree.subvolume));
        let home = pool.shard(inode.home(2).0);
        home.engine()
            .transact(async |transaction| {
                logged::put(transaction, &Intent::Remove { inode, snapshot })?;
                Ok(())
            })
            .await
            .unwrap();
        client.flush().await.unwrap();
        client.subvolume_delete("kept").await.unwrap();
        pool.quiet().await;
        assert_ne!(pool.version_of(tree.subvolume), snapshot, "merged");
        let read = client.file_read(tree, inode, 4 * MIB, 1).await.unwrap();
        assert_eq!(super::bytes_of(&read), [7]);
        (tree, inode)
    });
    pool.crash_and_open();
    pool.run(async move |pool| {
        pool.quiet().await;
        let client = pool.client();
        for at in [0, 4 * MIB, 9 * MIB] {
            let read = client.file_read(tree, file, at, 1).await.unwrap();
            assert_eq!(super::bytes_of(&read), [0]);
        }
    });
}

#[test]
fn a_shard_waits_until_it_knows_as_much_of_versions_as_who_asks() {
    Pool::new(73, 2).run(async |pool| {
        let client = pool.client();
        let tree = TreeRef::from(&client.tree_create("t").await.unwrap());
        let new = CreateAttributes::default();
        let file = client.create(tree, tree.root, b"f", FileKind::File, new).await.unwrap();
        let far = (0..4).map(|chunk| chunk * 4 * MIB);
        let far = far.max_by_key(|at| file.inode.data_shard(*at, 2) != tree.root.home(2)).unwrap();
        let data = data_of(&[7; 4096], &mut Random::new(1));
        client.file_write(tree, file.inode, far, data).await.unwrap();
        let shard = file.inode.data_shard(far, 2);
        let epoch = pool.shard(shard.0).engine().versions.epoch() + 1;
        // Of a version that the shard is about to be told of.
        let id = SnapshotId(pool.version_of(tree.subvolume).0 - 1);
        let of = Whose::Version(KnownVersion { id, epoch });
        let request = Request::DataRead { inode: file.inode, of, offset: far, len: 4096 };
        let mut read = std::pin::pin!(client.link().call(shard, request));
        for _ in 0..100 {
            assert!(futures::poll!(read.as_mut()).is_pending(), "it knows nothing of that version");
            pool.shard(0).engine().runtime().yield_now().await;
        }
        make(&client, "t", "kept", false).await;
        assert_eq!(pool.version_of(tree.subvolume), id);
        let Reply::Data(found) = read.await.unwrap() else { panic!("not data") };
        assert_eq!(super::bytes_of(&found)[..4], [7; 4]);
    });
}
