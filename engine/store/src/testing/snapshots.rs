//! Snapshots, clones and rollback of volumes, through the front door.

use std::collections::{BTreeMap, BTreeSet};

use engine_base::random::Random;
use engine_base::{BLOCK_SIZE, MIB};

use super::{Pool, bytes_of, data_of, with_seeds};
use crate::api::{NewSnapshot, SubvolumeInfo, Usage, Verify};
use crate::client::{Client, VolumeRef};
use crate::error::StoreError;
use crate::testing::pool::TestLink;

const SIZE: u64 = 12 * MIB;

fn new(source: &str, name: &str, writable: bool) -> NewSnapshot {
    NewSnapshot { source: source.to_owned(), name: name.to_owned(), writable }
}

async fn snapshot(client: &Client<TestLink>, source: &str, name: &str) -> SubvolumeInfo {
    client.snapshot_create(&[new(source, name, false)]).await.unwrap().remove(0)
}

async fn write(client: &Client<TestLink>, of: &SubvolumeInfo, block: u64, blocks: u64, stamp: u8) {
    let bytes = vec![stamp; (blocks * BLOCK_SIZE) as usize];
    let data = data_of(&bytes, &mut Random::new(1));
    client.volume_write(&VolumeRef::from(of), block * BLOCK_SIZE, data, false).await.unwrap();
}

/// Of each block of a volume the first byte.
async fn read(client: &Client<TestLink>, of: &SubvolumeInfo) -> Vec<u8> {
    let mut blocks = Vec::new();
    for at in (0..of.size_bytes).step_by(MIB as usize) {
        let len = MIB.min(of.size_bytes - at);
        let data = client.volume_read(&VolumeRef::from(of), at, len).await.unwrap();
        blocks.extend(bytes_of(&data).chunks(BLOCK_SIZE as usize).map(|block| block[0]));
    }
    blocks
}

async fn fsck(client: &Client<TestLink>) {
    let report = client.fsck(Verify::All).await.unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
}

#[test]
fn a_snapshot_stays_as_it_was_and_a_clone_goes_its_own_way() {
    with_seeds(|seed| {
        let pool = Pool::new(seed, 4);
        let expected = pool.run(async |pool| {
            let client = pool.client();
            let volume = client.volume_create("v", SIZE, 4096).await.unwrap();
            write(&client, &volume, 0, 2000, 1).await;
            let before = read(&client, &volume).await;
            let kept = snapshot(&client, "v", "kept").await;
            assert!(kept.read_only && kept.origin == Some(volume.id) && kept.id != volume.id);
            assert_eq!((kept.size_bytes, kept.root), (SIZE, volume.root));
            write(&client, &volume, 10, 40, 2).await;
            client.volume_discard(&VolumeRef::from(&volume), 0, 5 * BLOCK_SIZE).await.unwrap();
            let clone =
                client.snapshot_create(&[new("kept", "clone", true)]).await.unwrap().remove(0);
            write(&client, &clone, 12, 3, 3).await;
            let mut expected = before.clone();
            assert_eq!(read(&client, &kept).await, before);
            expected[12..15].fill(3);
            assert_eq!(read(&client, &clone).await, expected);
            let cloned = expected;
            let mut expected = before.clone();
            expected[10..50].fill(2);
            expected[0..5].fill(0);
            assert_eq!(read(&client, &volume).await, expected);
            let refused = client
                .volume_write(
                    &VolumeRef::from(&kept),
                    0,
                    data_of(&[9; 4096], &mut Random::new(1)),
                    false,
                )
                .await;
            assert!(matches!(refused, Err(StoreError::ReadOnly { .. })), "{refused:?}");
            let usage = client.subvolume_usage(volume.id).await.unwrap();
            let bytes = |blocks| blocks * BLOCK_SIZE;
            assert_eq!(
                usage,
                Usage { own_bytes: bytes(40), shared_bytes: bytes(2000), saved_bytes: 0 }
            );
            fsck(&client).await;
            (before, cloned, expected)
        });
        // All of it was durable when it was answered, but the writes after it.
        pool.crash_and_open();
        pool.run(async move |pool| {
            let client = pool.client();
            for (name, expected) in
                ["kept", "clone", "v"].into_iter().zip([expected.0, expected.1, expected.2])
            {
                let info = client.subvolume_get(name).await.unwrap();
                assert_eq!(read(&client, &info).await, expected, "{name}");
            }
            fsck(&client).await;
        });
    });
}

#[test]
fn what_is_deleted_gives_its_space_back_and_leaves_the_others_as_they_are() {
    with_seeds(|seed| {
        let pool = Pool::new(seed, 2);
        pool.run(async move |pool| {
            let (client, mut random) = (pool.client(), Random::new(seed));
            let volume = client.volume_create("v", SIZE, 4096).await.unwrap();
            let mut kept = Vec::new();
            for round in 1..=8_u8 {
                for _ in 0..30 {
                    let from = random.below(2900);
                    write(&client, &volume, from, random.range(1, 60), round).await;
                }
                let made = snapshot(&client, "v", &format!("s{round}")).await;
                kept.push((made.clone(), read(&client, &made).await));
            }
            let now = read(&client, &volume).await;
            let held = now.iter().position(|stamp| *stamp != 0).unwrap();
            while !kept.is_empty() {
                let gone = kept.remove(random.below(kept.len() as u64) as usize);
                client.subvolume_delete(&gone.0.name).await.unwrap();
                if random.chance(1, 2) {
                    // The volume is written to while it is being merged with what it was made from.
                    write(&client, &volume, held as u64, 1, now[held]).await;
                }
                if random.chance(1, 2) {
                    pool.quiet().await;
                }
                for (info, content) in &kept {
                    assert_eq!(read(&client, info).await, *content, "{}", info.name);
                }
                assert_eq!(read(&client, &volume).await, now);
            }
            pool.quiet().await;
            let held = now.iter().filter(|stamp| **stamp != 0).count() as u64 * BLOCK_SIZE;
            let usage = client.subvolume_usage(volume.id).await.unwrap();
            assert_eq!(usage, Usage { own_bytes: held, ..Usage::default() });
            fsck(&client).await;
            client.subvolume_delete("v").await.unwrap();
            pool.quiet().await;
            let status = client.status().await.unwrap();
            assert!(status.iter().all(|shard| shard.data_bytes == 0), "{status:?}");
            fsck(&client).await;
        });
    });
}

#[test]
fn a_volume_returns_to_a_snapshot_with_its_size() {
    let pool = Pool::new(5, 4);
    pool.run(async |pool| {
        let client = pool.client();
        let volume = client.volume_create("v", SIZE, 4096).await.unwrap();
        write(&client, &volume, 0, 3000, 1).await;
        snapshot(&client, "v", "s").await;
        let before = read(&client, &volume).await;
        write(&client, &volume, 100, 10, 2).await;
        client.volume_resize("v", 4 * MIB).await.unwrap();
        let rolled = client.subvolume_rollback("v", "s").await.unwrap();
        assert_eq!((rolled.id, rolled.size_bytes, rolled.read_only), (volume.id, SIZE, false));
        assert_eq!(read(&client, &rolled).await, before);
        write(&client, &rolled, 2999, 1, 3).await;
        pool.quiet().await;
        fsck(&client).await;
        client.volume_create("other", SIZE, 4096).await.unwrap();
        for (name, of) in [("other", "s"), ("s", "s"), ("v", "v")] {
            let refused = client.subvolume_rollback(name, of).await;
            assert!(matches!(refused, Err(StoreError::InvalidArgument { .. })), "{refused:?}");
        }
    });
}

#[test]
fn a_group_of_snapshots_is_of_one_instant() {
    with_seeds(|seed| {
        Pool::new(seed, 4).run(async move |pool| {
            let client = pool.client();
            let first = client.volume_create("a", SIZE, 4096).await.unwrap();
            let second = client.volume_create("b", SIZE, 4096).await.unwrap();
            // One writer, to one volume and the other by turns: it never is two ahead.
            let writer = async {
                for stamp in 1..=120_u8 {
                    write(&client, &first, u64::from(stamp) * 20, 1, stamp).await;
                    write(&client, &second, u64::from(stamp) * 20, 1, stamp).await;
                }
            };
            let snapshots = async {
                for round in 0..6 {
                    let names = [format!("a{round}"), format!("b{round}")];
                    let group = [new("a", &names[0], false), new("b", &names[1], round % 2 == 0)];
                    client.snapshot_create(&group).await.unwrap();
                }
            };
            futures::future::join(writer, snapshots).await;
            for round in 0..6 {
                let mut last = [0; 2];
                for (at, name) in [format!("a{round}"), format!("b{round}")].iter().enumerate() {
                    let info = client.subvolume_get(name).await.unwrap();
                    let content = read(&client, &info).await;
                    last[at] = content.iter().copied().max().unwrap_or(0);
                    // Whole up to there.
                    for stamp in 1..=last[at] {
                        assert_eq!(content[usize::from(stamp) * 20], stamp);
                    }
                }
                assert!(last[0] == last[1] || last[0] == last[1] + 1, "{last:?}");
            }
            fsck(&client).await;
        });
    });
}

#[test]
fn wrong_snapshots_are_refused_with_what_to_do() {
    Pool::new(3, 2).run(async |pool| {
        let client = pool.client();
        client.volume_create("v", MIB, 4096).await.unwrap();
        client.tree_create("t").await.unwrap();
        let cases = [
            (vec![], "1 to 64"),
            (vec![new("v", "x", false), new("v", "x", false)], "named twice"),
            (vec![new("v", ".x", false)], "subvolume name"),
            (vec![new("w", "x", false)], "not found"),
            (vec![new("v", "t", false)], "exists"),
            (vec![new("v", "x", false); 65], "1 to 64"),
        ];
        for (group, words) in cases {
            let error = client.snapshot_create(&group).await.unwrap_err().to_string();
            assert!(error.contains(words), "{error}, in place of {words}");
        }
        snapshot(&client, "v", "s").await;
        let refused = client.volume_resize("s", 2 * MIB).await;
        assert!(matches!(refused, Err(StoreError::ReadOnly { .. })), "{refused:?}");
        // Two of one source are of one instant, and share all.
        let two =
            client.snapshot_create(&[new("v", "x", false), new("v", "y", false)]).await.unwrap();
        assert_eq!(two[0].snapshot, two[1].snapshot);
        for name in ["x", "v", "y", "s"] {
            client.subvolume_delete(name).await.unwrap();
        }
        pool.quiet().await;
        fsck(&client).await;
    });
}

/// Blocks that a diff tells, and whether they have data.
async fn changed(
    client: &Client<TestLink>,
    base: Option<&SubvolumeInfo>,
    to: &SubvolumeInfo,
) -> BTreeMap<u64, bool> {
    let (mut blocks, mut from, mut last) = (BTreeMap::new(), Some(0), 0);
    while let Some(at) = from {
        let (ranges, next) = client.snapshot_diff(base, to, at).await.unwrap();
        for range in ranges {
            assert!(range.offset >= last && range.len > 0, "out of order");
            last = range.offset + range.len;
            for block in range.offset / BLOCK_SIZE..last / BLOCK_SIZE {
                blocks.insert(block, range.has_data);
            }
        }
        assert!(next.is_none_or(|next| next > at), "it does not go on");
        from = next;
    }
    blocks
}

#[test]
fn a_diff_tells_what_was_written_between_two_snapshots_and_little_else() {
    with_seeds(|seed| {
        let pool = Pool::new(seed, 4);
        pool.run(async move |pool| {
            let (client, mut random) = (pool.client(), Random::new(seed));
            let volume = client.volume_create("v", 40 * MIB, 4096).await.unwrap();
            // (snapshot, content), and the blocks that were touched since the one before.
            let mut kept: Vec<(SubvolumeInfo, Vec<u8>, BTreeSet<u64>)> = Vec::new();
            let (blocks, mut stamp) = (40 * MIB / BLOCK_SIZE, 0_u8);
            for round in 0..6 {
                let mut touched = BTreeSet::new();
                for _ in 0..random.below(40) {
                    let (from, len) = (random.below(blocks - 64), random.range(1, 64));
                    stamp = stamp % 250 + 1;
                    if random.chance(1, 4) {
                        let (at, len) = (from * BLOCK_SIZE, len * BLOCK_SIZE);
                        let of = VolumeRef::from(&volume);
                        client.volume_discard(&of, at, len).await.unwrap();
                    } else {
                        write(&client, &volume, from, len, stamp).await;
                    }
                    touched.extend(from..from + len);
                }
                let made = snapshot(&client, "v", &format!("s{round}")).await;
                let content = read(&client, &made).await;
                kept.push((made, content, touched));
            }
            // What is deleted in between is merged, also while it is looked at.
            let gone = random.range(1, 4) as usize;
            client.subvolume_delete(&format!("s{gone}")).await.unwrap();
            if random.chance(1, 2) {
                pool.quiet().await;
            }
            for _ in 0..12 {
                let (a, b) = (random.below(6) as usize, random.below(6) as usize);
                if a == gone || b == gone {
                    continue;
                }
                let told = changed(&client, Some(&kept[a].0), &kept[b].0).await;
                let between = kept[a.min(b) + 1..=a.max(b)].iter();
                let touched: BTreeSet<u64> =
                    between.flat_map(|(_, _, touched)| touched.iter().copied()).collect();
                for block in 0..blocks {
                    let at = block as usize;
                    let (before, after) = (kept[a].1[at], kept[b].1[at]);
                    let is_told = told.get(&block).copied();
                    assert!(before == after || is_told.is_some(), "{block} is not told");
                    assert!(is_told.is_none() || touched.contains(&block), "{block} is told");
                    assert!(is_told.is_none_or(|data| data == (after != 0)), "{block}");
                }
            }
            let all = changed(&client, None, &kept[5].0).await;
            for block in 0..blocks {
                assert_eq!(all.contains_key(&block), kept[5].1[block as usize] != 0);
            }
            let refused = client.snapshot_diff(None, &volume, 0).await;
            assert!(matches!(refused, Err(StoreError::InvalidArgument { .. })), "{refused:?}");
        });
    });
}

#[test]
fn what_a_deletion_would_free_is_what_it_frees() {
    with_seeds(|seed| {
        let pool = Pool::new(seed, 4);
        pool.run(async move |pool| {
            let (client, mut random) = (pool.client(), Random::new(seed));
            let volume = client.volume_create("v", SIZE, 4096).await.unwrap();
            let mut names = vec!["v".to_owned()];
            for round in 0..7_u8 {
                for _ in 0..20 {
                    let (from, len) = (random.below(2900), random.range(1, 60));
                    if random.chance(1, 5) {
                        let of = VolumeRef::from(&volume);
                        let (at, len) = (from * BLOCK_SIZE, len * BLOCK_SIZE);
                        client.volume_discard(&of, at, len).await.unwrap();
                    } else {
                        write(&client, &volume, from, len, round + 1).await;
                    }
                }
                let source = random.pick(&names).clone();
                let name = format!("s{round}");
                let made = new(&source, &name, random.chance(1, 3));
                client.snapshot_create(&[made]).await.unwrap();
                names.push(name);
            }
            let held = async || {
                let status = client.status().await.unwrap();
                status.iter().map(|shard| shard.data_bytes).sum::<u64>()
            };
            while !names.is_empty() {
                pool.quiet().await;
                let name = names.remove(random.below(names.len() as u64) as usize);
                let info = client.subvolume_get(&name).await.unwrap();
                let (before, told) = (held().await, client.freed_by_delete(info.id).await.unwrap());
                client.subvolume_delete(&name).await.unwrap();
                pool.quiet().await;
                assert_eq!(before - held().await, told, "{name}");
            }
            assert_eq!(held().await, 0);
        });
    });
}
