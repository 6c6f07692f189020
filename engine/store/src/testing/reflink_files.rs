//! Copies of files by reference: of all lengths and places, within a tree, across trees, back from a snapshot.

use engine_base::random::Random;
use engine_base::{BLOCK_SIZE, InodeNumber, KIB, MIB};

use super::space::fsck;
use super::{Pool, bytes_of, data_of, with_seeds};
use crate::api::{
    CopyMode, CopyStats, CreateAttributes, FileKind, FilePlace, NewSnapshot, SetAttributes, TreeRef,
};
use crate::error::StoreError;

struct File {
    tree: TreeRef,
    inode: InodeNumber,
    bytes: Vec<u8>,
}

impl File {
    async fn new(pool: &Pool, tree: TreeRef, name: &str) -> Self {
        let (client, new) = (pool.client(), CreateAttributes::default());
        let made = client.create(tree, tree.root, name.as_bytes(), FileKind::File, new);
        Self { tree, inode: made.await.unwrap().inode, bytes: Vec::new() }
    }

    async fn write(&mut self, pool: &Pool, at: usize, bytes: &[u8], random: &mut Random) {
        for (number, part) in bytes.chunks(MIB as usize).enumerate() {
            let offset = (at + number * MIB as usize) as u64;
            let data = data_of(part, random);
            pool.client().file_write(self.tree, self.inode, offset, data).await.unwrap();
        }
        self.bytes.resize(self.bytes.len().max(at + bytes.len()), 0);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn place(&self, offset: u64) -> FilePlace {
        FilePlace { tree: self.tree, inode: self.inode, offset }
    }

    async fn verify(&self, pool: &Pool) {
        let found = pool.client().get_attributes(self.tree, self.inode).await.unwrap();
        assert_eq!(found.size, self.bytes.len() as u64);
        for (number, part) in self.bytes.chunks(MIB as usize).enumerate() {
            let (offset, len) = (number as u64 * MIB, part.len() as u32);
            let data = pool.client().file_read(self.tree, self.inode, offset, len).await.unwrap();
            assert!(bytes_of(&data) == part, "inode {} from byte {offset}", self.inode);
        }
    }
}

/// Copies, in the model, too.
async fn copy(pool: &Pool, from: &File, at: u64, to: &mut File, there: u64, len: u64) -> CopyStats {
    let stats = pool
        .client()
        .file_copy(from.place(at), to.place(there), len, CopyMode::Auto)
        .await
        .unwrap();
    let end = (at + len).min(from.bytes.len() as u64).max(at.min(from.bytes.len() as u64));
    let source = &from.bytes[at.min(end) as usize..end as usize];
    assert_eq!(stats.shared_bytes + stats.copied_bytes, source.len() as u64);
    if !source.is_empty() {
        let (there, until) = (there as usize, there as usize + source.len());
        to.bytes.resize(to.bytes.len().max(until), 0);
        to.bytes[there..until].copy_from_slice(source);
    }
    stats
}

#[test]
fn a_copy_of_a_file_is_shared_whatever_its_length() {
    with_seeds(|seed| {
        let pool = Pool::new(seed, 4);
        pool.run(async move |pool| {
            let mut random = Random::new(seed);
            let tree = TreeRef::from(&pool.client().tree_create("t").await.unwrap());
            for (number, len) in
                [1, 4096, 5000, 4 * MIB + 9, 11 * MIB + 4095].into_iter().enumerate()
            {
                let mut source = File::new(&pool, tree, &format!("s{number}")).await;
                let mut bytes = vec![0; len as usize];
                random.fill(&mut bytes);
                source.write(&pool, 0, &bytes, &mut random).await;
                let mut target = File::new(&pool, tree, &format!("t{number}")).await;
                let stats = copy(&pool, &source, 0, &mut target, 0, u64::MAX / 4).await;
                assert_eq!(stats, CopyStats { shared_bytes: len, copied_bytes: 0 });
                target.verify(&pool).await;
                // Each goes its own way.
                target.write(&pool, len as usize / 2, b"target", &mut random).await;
                source.write(&pool, len as usize / 2, b"source", &mut random).await;
                source.verify(&pool).await;
                target.verify(&pool).await;
                // Behind the end of the copy there were zeroes, and are.
                let set = SetAttributes { size: Some(len + 9000), ..SetAttributes::default() };
                pool.client().set_attributes(tree, target.inode, set).await.unwrap();
                target.bytes.resize(len as usize + 9000, 0);
                target.verify(&pool).await;
            }
            fsck(&pool).await;
        });
    });
}

#[test]
fn random_copies_between_files_are_what_was_done() {
    with_seeds(|seed| {
        let pool = Pool::new(seed, 4);
        let mut files = pool.run(async move |pool| {
            let client = pool.client();
            let mut files = Vec::new();
            for name in ["t", "u"] {
                let tree = TreeRef::from(&client.tree_create(name).await.unwrap());
                for number in 0..3 {
                    files.push(File::new(&pool, tree, &format!("f{number}")).await);
                }
            }
            files
        });
        for round in 0..3 {
            files = pool.run(async move |pool| {
                let mut random = Random::new(seed * 10 + round);
                for _ in 0..60 {
                    let (from, to) = (random.below(6) as usize, random.below(6) as usize);
                    let aligned = random.chance(2, 3);
                    let mut offset = |most: u64| match aligned {
                        true => random.below(most / BLOCK_SIZE) * BLOCK_SIZE,
                        false => random.below(most),
                    };
                    let (at, there) = (offset(6 * MIB), offset(6 * MIB));
                    let most = if random.chance(1, 2) { 6 * MIB } else { 20 * KIB };
                    let len = 1 + random.below(most);
                    if random.chance(1, 3) {
                        let mut bytes = vec![0; (len as usize).min(MIB as usize)];
                        random.fill(&mut bytes);
                        files[to].write(&pool, there as usize, &bytes, &mut random).await;
                        continue;
                    }
                    if from == to {
                        continue;
                    }
                    let there = if random.chance(1, 2) { at } else { there };
                    let tree = files[from].tree;
                    let none = File { tree, inode: InodeNumber(0), bytes: Vec::new() };
                    let mut target = std::mem::replace(&mut files[to], none);
                    copy(&pool, &files[from], at, &mut target, there, len).await;
                    files[to] = target;
                }
                for file in &files {
                    file.verify(&pool).await;
                }
                fsck(&pool).await;
                pool.client().flush().await.unwrap();
                files
            });
            pool.crash_and_open();
        }
    });
}

#[test]
fn a_file_comes_back_from_a_snapshot_by_reference() {
    let pool = Pool::new(5, 2);
    pool.run(async |pool| {
        let mut random = Random::new(5);
        let client = pool.client();
        let tree = TreeRef::from(&client.tree_create("t").await.unwrap());
        let mut file = File::new(&pool, tree, "f").await;
        let mut bytes = vec![0; 5 * MIB as usize + 77];
        random.fill(&mut bytes);
        file.write(&pool, 0, &bytes, &mut random).await;
        let new = NewSnapshot { source: "t".to_owned(), name: "s".to_owned(), writable: false };
        let snapshot = TreeRef::from(&client.snapshot_create(&[new]).await.unwrap()[0]);
        let kept = File { tree: snapshot, inode: file.inode, bytes: file.bytes.clone() };
        file.write(&pool, 0, &vec![7; 6 * MIB as usize], &mut random).await;
        let mut other = File::new(&pool, tree, "other").await;
        let stats = copy(&pool, &kept, 0, &mut other, 0, u64::MAX / 4).await;
        assert_eq!(stats.copied_bytes, 0);
        // The target is longer than the source: the rest of the last block stays.
        let stats = copy(&pool, &kept, 0, &mut file, 0, u64::MAX / 4).await;
        assert_eq!(stats.copied_bytes, 77);
        for one in [&file, &kept, &other] {
            one.verify(&pool).await;
        }
        let refused = client.file_copy(file.place(0), kept.place(0), 4096, CopyMode::Auto).await;
        assert!(matches!(refused, Err(StoreError::ReadOnly { .. })), "{refused:?}");
        client.subvolume_delete("s").await.unwrap();
        pool.quiet().await;
        fsck(&pool).await;
        file.verify(&pool).await;
        other.verify(&pool).await;
    });
}

#[test]
fn copies_of_files_are_refused_where_they_make_no_sense() {
    let pool = Pool::new(1, 2);
    pool.run(async |pool| {
        let mut random = Random::new(1);
        let client = pool.client();
        let tree = TreeRef::from(&client.tree_create("t").await.unwrap());
        let mut file = File::new(&pool, tree, "f").await;
        file.write(&pool, 0, &vec![9; 100_000], &mut random).await;
        let overlap = client.file_copy(file.place(0), file.place(4096), 8192, CopyMode::Auto).await;
        assert!(matches!(overlap, Err(StoreError::InvalidArgument { .. })), "{overlap:?}");
        let far = client
            .file_copy(file.place(0), file.place(u64::MAX - 8191), 8192, CopyMode::Auto)
            .await;
        assert!(matches!(far, Err(StoreError::InvalidArgument { .. })), "{far:?}");
        let folder = client
            .create(tree, tree.root, b"d", FileKind::Directory, CreateAttributes::default())
            .await
            .unwrap();
        let place = FilePlace { tree, inode: folder.inode, offset: 0 };
        for (from, to) in [(place, file.place(0)), (file.place(0), place)] {
            let refused = client.file_copy(from, to, 4096, CopyMode::Auto).await;
            assert!(matches!(refused, Err(StoreError::IsDirectory { .. })), "{refused:?}");
        }
        // Past the end there is nothing, and within one file it works.
        let none = client.file_copy(file.place(200_704), file.place(0), 4096, CopyMode::Auto).await;
        assert_eq!(none, Ok(CopyStats::default()));
        let done = client
            .file_copy(file.place(0), file.place(1 << 20), 8192, CopyMode::Auto)
            .await
            .unwrap();
        assert_eq!(done.shared_bytes, 8192);
        file.bytes.resize((1 << 20) + 8192, 0);
        file.bytes[1 << 20..].fill(9);
        file.verify(&pool).await;
        fsck(&pool).await;
    });
}
