//! Volumes against a model that keeps every block.

use engine_base::random::Random;
use engine_base::{BLOCK_SIZE, MIB};

use super::{Pool, bytes_of, data_of, with_seeds};
use crate::api::{PutMode, Verify};
use crate::client::VolumeRef;
use crate::error::StoreError;

/// Expected content: one number per block fills the block; 0 is a hole.
struct Model {
    blocks: Vec<u32>,
    next: u32,
}

fn block_bytes(stamp: u32) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_SIZE as usize];
    if stamp != 0 {
        Random::new(u64::from(stamp)).fill(&mut bytes);
    }
    bytes
}

impl Model {
    fn new(size_bytes: u64) -> Self {
        Self { blocks: vec![0; (size_bytes / BLOCK_SIZE) as usize], next: 1 }
    }

    fn write(&mut self, from: usize, blocks: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for block in &mut self.blocks[from..from + blocks] {
            *block = self.next;
            self.next += 1;
            bytes.extend(block_bytes(*block));
        }
        bytes
    }

    fn expected(&self, from: usize, blocks: usize) -> Vec<u8> {
        self.blocks[from..from + blocks].iter().flat_map(|stamp| block_bytes(*stamp)).collect()
    }
}

/// A random range: mostly small, now and then larger than an extent.
fn range(random: &mut Random, blocks: usize) -> (usize, usize) {
    let from = random.below(blocks as u64) as usize;
    let most = *random.pick(&[1, 3, 8, 40, 300]);
    (from, (random.range(1, most) as usize).min(blocks - from))
}

async fn random_volume(pool: Pool, seed: u64) {
    let client = pool.client();
    let mut random = Random::new(seed);
    let size = 9 * MIB;
    let info = client.volume_create("v", size, 4096).await.unwrap();
    let volume = VolumeRef::from(&info);
    let mut model = Model::new(size);
    for step in 0..300 {
        let (from, blocks) = range(&mut random, model.blocks.len());
        let (offset, len) = (from as u64 * BLOCK_SIZE, blocks as u64 * BLOCK_SIZE);
        match random.below(10) {
            0..=4 => {
                let bytes = model.write(from, blocks);
                let data = data_of(&bytes, &mut random);
                client.volume_write(&volume, offset, data, random.chance(1, 8)).await.unwrap();
            }
            5 => {
                model.blocks[from..from + blocks].fill(0);
                client.volume_discard(&volume, offset, len).await.unwrap();
            }
            6 => client.volume_flush(&volume).await.unwrap(),
            _ => {
                let data = client.volume_read(&volume, offset, len).await.unwrap();
                let good = bytes_of(&data) == model.expected(from, blocks);
                assert!(good, "step {step}: blocks {from}+{blocks} differ");
            }
        }
    }
    let all = client.volume_read(&volume, 0, size).await.unwrap();
    assert!(bytes_of(&all) == model.expected(0, model.blocks.len()));
}

#[test]
fn a_volume_is_what_was_written_to_it() {
    with_seeds(|seed| {
        for shards in [1, 2, 4] {
            Pool::new(seed, shards).run(async move |pool| random_volume(pool, seed).await);
        }
    });
}

#[test]
fn a_shrunk_volume_forgets_what_was_cut_off() {
    Pool::new(7, 4).run(async |pool| {
        let client = pool.client();
        let mut random = Random::new(7);
        let info = client.volume_create("v", 20 * MIB, 512).await.unwrap();
        let old = VolumeRef::from(&info);
        let bytes = vec![7; MIB as usize];
        for mib in [0, 7, 13, 19] {
            let data = data_of(&bytes, &mut random);
            client.volume_write(&old, mib * MIB, data, false).await.unwrap();
        }
        let info = client.volume_resize("v", 8 * MIB).await.unwrap();
        assert_eq!(info.size_bytes, 8 * MIB);
        // A front end that still knows the old size.
        let late = client.volume_write(&old, 13 * MIB, data_of(&bytes, &mut random), false).await;
        assert!(matches!(late, Err(StoreError::InvalidArgument { .. })), "{late:?}");
        let info = client.volume_resize("v", 20 * MIB).await.unwrap();
        let volume = VolumeRef::from(&info);
        for (mib, kept) in [(0, true), (7, true), (13, false), (19, false)] {
            let data = client.volume_read(&volume, mib * MIB, MIB).await.unwrap();
            assert!(bytes_of(&data).iter().all(|byte| *byte == if kept { 7 } else { 0 }));
        }
        client.volume_write(&volume, 19 * MIB, data_of(&bytes, &mut random), true).await.unwrap();
    });
}

#[test]
fn a_deleted_volume_takes_no_writes_and_its_name_is_free() {
    Pool::new(8, 4).run(async |pool| {
        let client = pool.client();
        let mut random = Random::new(8);
        let first = client.volume_create("v", 8 * MIB, 4096).await.unwrap();
        let old = VolumeRef::from(&first);
        let bytes = vec![1; 8192];
        client.volume_write(&old, 0, data_of(&bytes, &mut random), false).await.unwrap();
        client.subvolume_delete("v").await.unwrap();
        assert!(matches!(client.subvolume_get("v").await, Err(StoreError::NotFound { .. })));
        let second = client.volume_create("v", 8 * MIB, 4096).await.unwrap();
        assert!(second.id != first.id && second.root != first.root);
        assert_ne!(second.snapshot, first.snapshot);
        pool.quiet().await;
        let late = client.volume_write(&old, 0, data_of(&bytes, &mut random), false).await;
        assert!(matches!(late, Err(StoreError::NotFound { .. })), "{late:?}");
        let data = client.volume_read(&VolumeRef::from(&second), 0, 8192).await.unwrap();
        assert!(bytes_of(&data).iter().all(|byte| *byte == 0));
    });
}

#[test]
fn subvolumes_are_listed_by_name_in_pages() {
    Pool::new(9, 2).run(async |pool| {
        let client = pool.client();
        for name in ["b", "a", "d", "c"] {
            client.tree_create(name).await.unwrap();
        }
        let names = |list: Vec<crate::api::SubvolumeInfo>| {
            list.into_iter().map(|info| info.name).collect::<Vec<_>>()
        };
        assert_eq!(names(client.subvolume_list("", 3).await.unwrap()), ["a", "b", "c"]);
        assert_eq!(names(client.subvolume_list("c", 3).await.unwrap()), ["d"]);
        let taken = client.tree_create("a").await;
        assert!(matches!(taken, Err(StoreError::AlreadyExists { .. })));
        for bad in ["", ".a", "-a", "a/b", "ä"] {
            let result = client.tree_create(bad).await;
            assert!(matches!(result, Err(StoreError::InvalidArgument { .. })), "{bad:?}");
        }
        for (size, block) in [(0, 4096), (4096 + 512, 512), (4096, 1024), (1 << 61, 4096)] {
            let result = client.volume_create("x", size, block).await;
            assert!(matches!(result, Err(StoreError::InvalidArgument { .. })), "{size}");
        }
    });
}

#[test]
fn records_keep_bytes_by_name() {
    Pool::new(10, 1).run(async |pool| {
        let client = pool.client();
        let put = async |name: &str, bytes: &[u8], mode| {
            client.record_put("exports", name, bytes.to_vec(), mode).await
        };
        put("nqn.2014-08.org:b", b"1", PutMode::Create).await.unwrap();
        put("a", b"2", PutMode::Any).await.unwrap();
        assert!(matches!(
            put("a", b"3", PutMode::Create).await,
            Err(StoreError::AlreadyExists { .. })
        ));
        assert!(matches!(put("c", b"3", PutMode::Replace).await, Err(StoreError::NotFound { .. })));
        put("a", b"3", PutMode::Replace).await.unwrap();
        let list = client.record_list("exports").await.unwrap();
        let expected =
            [("a".to_owned(), b"3".to_vec()), ("nqn.2014-08.org:b".to_owned(), b"1".to_vec())];
        assert_eq!(list, expected);
        assert!(client.record_list("export").await.unwrap().is_empty());
        client.record_delete("exports", "a").await.unwrap();
        let again = client.record_delete("exports", "a").await;
        assert!(matches!(again, Err(StoreError::NotFound { .. })));
        assert_eq!(client.record_list("exports").await.unwrap().len(), 1);
    });
}

#[test]
fn damaged_data_is_never_returned() {
    Pool::new(11, 1).run(async |pool| {
        let client = pool.client();
        let mut random = Random::new(11);
        let info = client.volume_create("v", MIB, 4096).await.unwrap();
        let volume = VolumeRef::from(&info);
        let mut model = Model::new(MIB);
        let bytes = model.write(0, 16);
        client.volume_write(&volume, 0, data_of(&bytes, &mut random), false).await.unwrap();
        let needle = &bytes[9 * 4096..10 * 4096];
        pool.device().with_bytes(|device| {
            let found = device.chunks_mut(4096).filter(|block| *block == needle);
            assert_eq!(found.map(|block| block[100] ^= 1).count(), 1);
        });
        let lost = client.volume_read(&volume, 0, 16 * 4096).await;
        let Err(StoreError::DataLoss { what }) = lost else { panic!("{lost:?}") };
        assert!(what.contains(&format!("inode {}", volume.inode)), "{what}");
        assert!(what.contains(&format!("offset {}", 9 * 4096)), "{what}");
        let rest = client.volume_read(&volume, 10 * 4096, 6 * 4096).await.unwrap();
        assert!(bytes_of(&rest) == model.expected(10, 6));
    });
}

#[test]
fn a_full_pool_refuses_writes_and_recovers() {
    Pool::new(12, 2).run(async |pool| {
        let client = pool.client();
        let mut random = Random::new(12);
        let info = client.volume_create("v", 1024 * MIB, 4096).await.unwrap();
        let volume = VolumeRef::from(&info);
        let tree = crate::api::TreeRef::from(&client.tree_create("t").await.unwrap());
        let new = crate::api::CreateAttributes::default();
        let kind = crate::api::FileKind::File;
        let file = client.create(tree, tree.root, b"f", kind, new).await.unwrap().inode;
        let bytes = vec![5; MIB as usize];
        client.file_write(tree, file, 0, data_of(&bytes, &mut random)).await.unwrap();
        let mut written = 0;
        let refused = loop {
            let data = data_of(&bytes, &mut random);
            match client.volume_write(&volume, written * MIB, data, false).await {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
            assert!(written < 256, "more was written than the device holds");
        };
        assert!(matches!(refused, StoreError::NoSpace { .. }), "{refused:?}");
        assert!(written > 100, "full after {written} MiB of 256");
        // The last write may have failed on either shard: what was answered is there.
        for mib in 0..written {
            let data = client.volume_read(&volume, mib * MIB, MIB).await.unwrap();
            assert!(bytes_of(&data).iter().all(|byte| *byte == 5));
        }
        // Space is given back by all that makes things smaller.
        let set = crate::api::SetAttributes { size: Some(0), ..Default::default() };
        client.set_attributes(tree, file, set).await.unwrap();
        client.remove(tree, tree.root, b"f", false).await.unwrap();
        client.volume_discard(&volume, 0, 1024 * MIB).await.unwrap();
        client.flush().await.unwrap();
        for mib in 0..written / 2 {
            let data = data_of(&bytes, &mut random);
            client.volume_write(&volume, mib * MIB, data, false).await.unwrap();
        }
        let report = client.fsck(Verify::All).await.unwrap();
        assert!(report.problems.is_empty(), "{:#?}", report.problems);
    });
}
