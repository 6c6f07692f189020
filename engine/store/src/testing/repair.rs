//! Pools that are damaged in their own structures, with right checksums or none left: found, and what
//! fsck makes of them.

use engine_base::InodeNumber;
use engine_base::random::Random;
use engine_base::runtime::Runtime as _;

use super::{Pool, bytes_of, data_of};
use crate::api::{CreateAttributes, FileKind, TreeRef, Verify};
use crate::dump::{Item, Range, View};
use crate::error::StoreError;
use crate::extent::Extent;
use crate::journal::Record;
use crate::key::{Counter, Position, Tree, Value};
use crate::namespace::{Entry, Hashed as _, Inode, Slot, inode_position};
use crate::pool::FormatOptions;
use crate::space::{Bucket, BucketKind};
use crate::transaction::{CounterUpdate, Transaction};

/// Files in the directory /d.
const FILES: u32 = 600;

/// A pool of one shard with small nodes: the file tree t with /d/f0, /d/f1, ...; all written out.
fn filled(seed: u64) -> (Pool, TreeRef) {
    let options = FormatOptions {
        shards: Some(1),
        bucket_bytes: Some(64 << 10),
        node_bytes: Some(16 << 10),
        journal_bytes: Some(1 << 20),
        ..FormatOptions::default()
    };
    let pool = Pool::with_members(seed, &[64 << 20], options);
    let tree = pool.run(async |pool| {
        let client = pool.client();
        let tree = TreeRef::from(&client.tree_create("t").await.unwrap());
        let attributes = CreateAttributes::default();
        let folder =
            client.create(tree, tree.root, b"d", FileKind::Directory, attributes).await.unwrap();
        for number in 0..FILES {
            let name = format!("f{number}").into_bytes();
            client.create(tree, folder.inode, &name, FileKind::File, attributes).await.unwrap();
        }
        tree
    });
    write_out(&pool);
    (pool, tree)
}

/// Writes all nodes out and opens the pool again: nothing is left in the journal or the cache.
fn write_out(pool: &Pool) {
    pool.run(async |pool| pool.shard(0).shutdown().await.unwrap());
    pool.crash_and_open();
}

/// Damages the leaf of a tree in the middle of it, on the device. Gives its range.
fn lose_leaf(pool: &Pool, tree: Tree) -> (String, String) {
    let (block, min, max) = pool.run(async move |pool| {
        let view = View::open(&pool.queues()).await.unwrap();
        let shard = view.shard(0).await.unwrap();
        let nodes = shard.nodes(tree, 0, Range::ALL, 1000).await.unwrap();
        assert!(nodes.len() > 2, "{tree:?} has {} leaves", nodes.len());
        let Item::Map(node) = &nodes[nodes.len() / 2] else { panic!() };
        let get = |fields: &Vec<(&'static str, Item)>, name| {
            fields.iter().find(|(known, _)| *known == name).unwrap().1.clone()
        };
        let Item::Map(pointer) = get(node, "pointer") else { panic!() };
        let (Item::Number(block), Item::Text(min), Item::Text(max)) =
            (get(&pointer, "block"), get(&pointer, "min"), get(node, "max"))
        else {
            panic!()
        };
        (block, min, max)
    });
    pool.device().with_bytes(|bytes| bytes[block as usize * 4096 + 90] ^= 1);
    (min, max)
}

fn problems(pool: &Pool) -> Vec<String> {
    pool.run(async |pool| pool.client().fsck(Verify::Nothing).await.unwrap()).problems
}

/// As a position is printed for debugging.
fn shown(text: &str) -> String {
    let part: Vec<u64> = text.split(':').map(|part| part.parse().unwrap()).collect();
    format!("{:?}", Position::new(part[0], part[1], part[2] as u32))
}

#[test]
fn a_lost_leaf_is_told_listed_and_walked_around() {
    let (pool, _) = filled(61);
    assert_eq!(problems(&pool), Vec::<String>::new());
    let (min, max) = lose_leaf(&pool, Tree::Dirents);
    pool.crash_and_open();
    let found = problems(&pool);
    let text = found.join("\n");
    assert!(text.contains("memory0") && text.contains("names, owners and data"), "{text}");
    assert_eq!(text.matches("tree Dirents level 0").count(), 1, "the rest is walked: {text}");
    let lines = pool.run(async |pool| pool.client().damage_list(10).await.unwrap());
    let what = &lines[0].entry.what;
    assert!(what.contains(&shown(&min)) && what.contains(&shown(&max)), "{what}");
}

/// Everything found wrong is repaired, a second fsck finds nothing, a second repair does nothing. Gives
/// what was said to be repaired.
#[track_caller]
fn repair(pool: &Pool) -> String {
    let done = pool.run(async |pool| pool.client().repair().await.unwrap());
    assert!(!done.notes.is_empty(), "there was something to repair");
    assert_eq!(problems(pool), Vec::<String>::new(), "{done:?}");
    let again = pool.run(async |pool| pool.client().repair().await.unwrap());
    assert_eq!(again.notes, Vec::<String>::new(), "a second repair");
    pool.run(async |pool| pool.client().flush().await.unwrap());
    pool.crash_and_open();
    assert_eq!(problems(pool), Vec::<String>::new(), "after a restart");
    done.notes.join("\n")
}

/// Names in /d and below lost+found.
fn names(pool: &Pool, tree: TreeRef) -> (Vec<String>, Vec<String>) {
    pool.run(async move |pool| {
        let client = pool.client();
        let list = async |directory| {
            let mut names = Vec::new();
            let mut cookie = 0;
            loop {
                let page = client.read_directory(tree, directory, cookie, 500).await.unwrap();
                let Some(last) = page.last() else { break };
                cookie = last.cookie;
                names.extend(page.into_iter().map(|it| String::from_utf8(it.name).unwrap()));
            }
            names.sort();
            names
        };
        let folder = client.lookup(tree, tree.root, b"d").await.unwrap().inode;
        let lost = match client.lookup(tree, tree.root, b"lost+found").await {
            Ok(found) => list(found.inode).await,
            Err(_) => Vec::new(),
        };
        (list(folder).await, lost)
    })
}

/// The first key of a tree from a position on.
async fn key(pool: &Pool, tree: Tree, from: Position) -> (Position, Value) {
    let shard = pool.shard(0);
    let mut transaction = shard.engine().read();
    transaction.next(tree, from, Position::MAX).await.unwrap().expect("a key")
}

/// Puts or deletes keys in one transaction, as they are.
async fn put(pool: &Pool, keys: &[(Tree, Position, Option<Value>)]) {
    let shard = pool.shard(0);
    let work = async |transaction: &mut Transaction<'_>| {
        for (tree, position, value) in keys {
            match value {
                Some(value) => transaction.put(*tree, *position, value.clone()),
                None => transaction.delete(*tree, *position),
            }
        }
        Ok(())
    };
    shard.engine().transact(work).await.unwrap();
    shard.engine().flush().await.unwrap();
}

async fn lookup(pool: &Pool, tree: TreeRef, name: &[u8]) -> InodeNumber {
    let client = pool.client();
    let folder = client.lookup(tree, tree.root, b"d").await.unwrap().inode;
    client.lookup(tree, folder, name).await.unwrap().inode
}

/// Where the entry of a name in /d lies.
async fn entry_of(pool: &Pool, tree: TreeRef, name: &[u8]) -> Position {
    let mut from = Position::MIN;
    loop {
        let (at, value) = key(pool, Tree::Dirents, from).await;
        if let Ok(Slot::Entry(entry)) = Entry::decode(&value)
            && entry.name == name
            && at.snapshot == pool.version_of(tree.subvolume).0
        {
            return at;
        }
        from = at.successor();
    }
}

fn write(pool: &Pool, tree: TreeRef, name: &'static [u8], byte: u8, blocks: usize) {
    pool.run(async move |pool| {
        let inode = lookup(&pool, tree, name).await;
        let data = data_of(&vec![byte; blocks * 4096], &mut Random::new(1));
        pool.client().file_write(tree, inode, 0, data).await.unwrap();
        pool.client().flush().await.unwrap();
    });
}

fn read(pool: &Pool, tree: TreeRef, name: &'static [u8]) -> Vec<u8> {
    pool.run(async move |pool| {
        let inode = lookup(&pool, tree, name).await;
        let data = pool.client().file_read(tree, inode, 0, 1 << 20).await.unwrap();
        bytes_of(&data)
    })
}

#[test]
fn accounting_is_set_to_what_the_index_says() {
    let (pool, tree) = filled(62);
    write(&pool, tree, b"f1", 1, 8);
    pool.run(async move |pool| {
        let shard = pool.shard(0);
        let engine = shard.engine();
        let seq = engine.journal.seq();
        engine.apply_counter(
            CounterUpdate::Add(Counter::data_blocks(pool.version_of(tree.subvolume).0), 9),
            seq,
        );
        engine.apply_counter(CounterUpdate::Add(Counter::data_blocks(4000), 5), seq);
        engine.apply_counter(CounterUpdate::Add(Counter::INODES, -2), seq);
        {
            let mut tables = engine.space.tables.borrow_mut();
            let holds =
                |kind| move |it: &(&(u8, u32), &Bucket)| it.1.kind == kind && !it.1.is_empty();
            let data = *tables.buckets.iter().find(holds(BucketKind::Data)).unwrap().0;
            let index = *tables.buckets.iter().find(holds(BucketKind::Index)).unwrap().0;
            let free = tables.free.pop_last().unwrap();
            for (member, bucket) in [data, free] {
                let state = tables.bucket((member, bucket));
                if state.kind == BucketKind::Free {
                    *state = Bucket::new(BucketKind::Data, state.generation + 1);
                    let generation = state.generation;
                    let open = Record::BucketOpen { member, bucket, generation, kind: 1 };
                    engine.journal.append(&[open]);
                }
                state.live_blocks += 3;
                engine.journal.append(&[Record::BucketLive { member, bucket, delta: 3 }]);
                engine.dirty_bucket(&mut tables, (member, bucket), seq);
            }
            let slots = tables.bucket(index).slots;
            let leaked = (0..4).find(|slot| slots >> slot & 1 == 0);
            if let Some(slot) = leaked {
                tables.bucket(index).slots |= 1 << slot;
                let (member, bucket) = index;
                engine.journal.append(&[Record::BucketSlot { member, bucket, slot, used: true }]);
                engine.dirty_bucket(&mut tables, index, seq);
            }
        }
        engine.flush().await.unwrap();
    });
    pool.crash_and_open();
    let found = problems(&pool);
    assert!(found.len() >= 4, "{found:?}");
    let done = repair(&pool);
    assert!(done.contains("live blocks") && done.contains("counter of blocks"), "{done}");
    assert!(done.contains("the counter of inodes"), "{done}");
    assert!(read(&pool, tree, b"f1") == vec![1; 8 * 4096]);
    // The space is usable again.
    write(&pool, tree, b"f2", 2, 200);
    assert_eq!(problems(&pool), Vec::<String>::new());
}

#[test]
fn names_links_and_sizes_are_put_right() {
    let (pool, tree) = filled(63);
    write(&pool, tree, b"f8", 8, 3);
    let orphan = pool.run(async move |pool| {
        let version = pool.version_of(tree.subvolume);
        let at = |inode| inode_position(inode, version);
        let orphan = lookup(&pool, tree, b"f6").await;
        let (gone, many) = (lookup(&pool, tree, b"f5").await, lookup(&pool, tree, b"f7").await);
        let folder = pool.client().lookup(tree, tree.root, b"d").await.unwrap().inode;
        let change = async |inode, change: &dyn Fn(&mut Inode)| {
            let (_, value) = key(&pool, Tree::Inodes, at(inode)).await;
            let mut inode = Inode::decode(&value).unwrap();
            change(&mut inode);
            Some(inode.encode())
        };
        let links = change(many, &|inode| inode.links = 9).await;
        let size = change(folder, &|inode| inode.size = 3).await;
        let entry = entry_of(&pool, tree, b"f6").await;
        let broken = entry_of(&pool, tree, b"f9").await;
        put(
            &pool,
            &[
                (Tree::Inodes, at(gone), None),
                (Tree::Inodes, at(many), links),
                (Tree::Inodes, at(folder), size),
                (Tree::Dirents, entry, None),
                (Tree::Dirents, broken, Some(Value::from_slice(b"none of ours"))),
            ],
        )
        .await;
        orphan
    });
    let text = problems(&pool).join("\n");
    for part in ["no name leads to it", "does not exist", "9 links, 1 names", "size 3"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    repair(&pool);
    let (names, lost) = names(&pool, tree);
    assert_eq!(names.len() as u32, FILES - 3);
    assert!(!names.iter().any(|name| ["f5", "f6", "f9"].contains(&name.as_str())));
    assert_eq!(lost.len(), 2, "{lost:?}");
    assert!(lost.contains(&format!("#{orphan}")), "{lost:?}");
    assert!(read(&pool, tree, b"f8") == vec![8; 3 * 4096], "what was whole is untouched");
}

#[test]
fn extents_that_cannot_be_are_cut_or_dropped() {
    let (pool, tree) = filled(64);
    for (name, byte) in [(&b"f1"[..], 1), (b"f2", 2), (b"f3", 3), (b"f4", 4)] {
        write(&pool, tree, name, byte, 8);
    }
    pool.run(async move |pool| {
        let shard = pool.shard(0);
        let engine = shard.engine();
        let of = async |name: &[u8]| {
            let inode = lookup(&pool, tree, name).await;
            key(&pool, Tree::Extents, Position::new(inode.0, 0, 0)).await
        };
        // Over the last half of the first: its own end, 4 blocks on.
        let (at, value) = of(b"f1").await;
        let over = Position { offset: at.offset + 4, ..at };
        engine.set_key(Tree::Extents, over, Some(value)).await.unwrap();
        // Before block 0.
        let (at, value) = of(b"f2").await;
        engine.set_key(Tree::Extents, at, None).await.unwrap();
        let early = Position { offset: 5, ..at };
        engine.set_key(Tree::Extents, early, Some(value)).await.unwrap();
        // Outside of the member, and none at all.
        let (at, value) = of(b"f3").await;
        let mut extent = Extent::decode(&value).unwrap();
        extent.pointers[0].block = 1 << 40;
        engine.set_key(Tree::Extents, at, Some(extent.encode())).await.unwrap();
        let none = Position { offset: 20, ..at };
        engine.set_key(Tree::Extents, none, Some(Value::from_slice(b"none"))).await.unwrap();
        engine.flush().await.unwrap();
    });
    pool.crash_and_open();
    let text = problems(&pool).join("\n");
    for part in ["overlaps the one before", "starts before its inode", "corrupt pointer"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let done = repair(&pool);
    assert_eq!(done.matches("cut to what it has alone").count(), 2, "{done}");
    assert_eq!(done.matches("dropped, it names no data").count(), 2, "{done}");
    assert!(read(&pool, tree, b"f1") == vec![1; 8 * 4096]);
    assert!(read(&pool, tree, b"f4") == vec![4; 8 * 4096], "what was whole is untouched");
    let listed = pool.run(async |pool| pool.client().damage_list(10).await.unwrap());
    assert_eq!(listed.len(), 2, "what is lost is listed: {listed:?}");
}

#[test]
fn lost_leaves_give_way_to_empty_ones() {
    for (seed, of) in [(65, Tree::Dirents), (66, Tree::Inodes)] {
        let (pool, tree) = filled(seed);
        let (min, _) = lose_leaf(&pool, of);
        pool.crash_and_open();
        let done = repair(&pool);
        assert!(done.contains("keys are lost") && done.contains("memory0"), "{done}");
        let (names, lost) = names(&pool, tree);
        let left = names.len() + lost.len();
        match of {
            // Every file is there, some under other names.
            Tree::Dirents => assert_eq!(left as u32, FILES),
            _ => assert!(left > FILES as usize / 2 && left < FILES as usize, "{left}"),
        }
        let listed = pool.run(async |pool| pool.client().damage_list(9).await.unwrap());
        assert!(listed.iter().any(|line| line.entry.what.contains(&shown(&min))), "{listed:?}");
    }
}

/// The journal holds keys for a leaf that is lost: the pool does not open but to be repaired.
#[test]
fn data_whose_extents_are_lost_is_listed_and_the_rest_is_there() {
    let (pool, tree) = filled(69);
    let all = |pool: &Pool, work: fn(u32) -> bool| {
        pool.run(async move |pool| {
            let folder = pool.client().lookup(tree, tree.root, b"d").await.unwrap().inode;
            let (mut whole, mut holes) = (0, 0);
            for number in 0..FILES {
                let name = format!("f{number}").into_bytes();
                let inode = pool.client().lookup(tree, folder, &name).await.unwrap().inode;
                let data = data_of(&[number as u8 | 1; 4096], &mut Random::new(1));
                if work(number) {
                    pool.client().file_write(tree, inode, 0, data).await.unwrap();
                    continue;
                }
                let found = pool.client().file_read(tree, inode, 0, 4096).await.unwrap();
                match bytes_of(&found) {
                    bytes if bytes == bytes_of(&data) => whole += 1,
                    bytes => {
                        assert!(bytes.iter().all(|byte| *byte == 0), "f{number}");
                        holes += 1;
                    }
                }
            }
            (whole, holes)
        })
    };
    all(&pool, |_| true);
    write_out(&pool);
    let (min, _) = lose_leaf(&pool, Tree::Extents);
    pool.crash_and_open();
    repair(&pool);
    let (whole, holes) = all(&pool, |_| false);
    assert!(holes > 0 && whole > FILES / 2, "{whole} whole, {holes} holes");
    let listed = pool.run(async |pool| pool.client().damage_list(9).await.unwrap());
    assert!(listed.iter().any(|line| line.entry.what.contains(&shown(&min))), "{listed:?}");
}

/// Without the table of buckets nobody knows what space is in use: no repair.
#[test]
fn trees_that_say_what_is_in_use_are_not_given_up() {
    let (pool, _) = filled(70);
    let block = pool.run(async |pool| {
        let view = View::open(&pool.queues()).await.unwrap();
        let roots = view.shard(0).await.unwrap().roots();
        let Item::Map(root) = &roots[Tree::Buckets as usize] else { panic!() };
        let Item::Map(pointer) = &root[2].1 else { panic!() };
        let (_, Item::Number(block)) = pointer.iter().find(|it| it.0 == "block").unwrap() else {
            panic!()
        };
        *block
    });
    pool.device().with_bytes(|bytes| bytes[block as usize * 4096 + 90] ^= 1);
    let before = pool.device().with_bytes(|bytes| bytes.clone());
    assert!(pool.try_crash_and_open().is_err());
    let refused = pool.try_crash_and_salvage();
    assert!(matches!(refused, Err(StoreError::Corrupt { .. })), "{refused:?}");
    assert!(pool.device().with_bytes(|bytes| *bytes == before), "a refusal changes nothing");
}

#[test]
fn a_pool_that_does_not_open_is_salvaged() {
    let (pool, tree) = filled(67);
    pool.run(async move |pool| {
        let folder = pool.client().lookup(tree, tree.root, b"d").await.unwrap().inode;
        for number in 0..40 {
            let name = format!("new{number}").into_bytes();
            let kind = FileKind::File;
            let attributes = CreateAttributes::default();
            pool.client().create(tree, folder, &name, kind, attributes).await.unwrap();
        }
        pool.client().flush().await.unwrap();
    });
    lose_leaf(&pool, Tree::Dirents);
    let refused = pool.try_crash_and_open();
    let Err(StoreError::Corrupt { why, .. }) = refused else { panic!("{refused:?}") };
    assert!(why.contains("memory0") && why.contains("at byte"), "{why}");
    pool.crash_and_salvage();
    assert!(pool.notes().iter().any(|note| note.contains("keys are lost")), "{:?}", pool.notes());
    repair(&pool);
    let (names, lost) = names(&pool, tree);
    assert_eq!((names.len() + lost.len()) as u32, FILES + 40);
    assert!(names.iter().filter(|name| name.starts_with("new")).count() > 20);
}

/// Wherever a repair ends, the pool opens and the next one finishes it.
#[test]
fn a_crash_during_a_repair_is_repaired() {
    for turns in [1, 3, 10, 30, 100, 300, 1000, 3000] {
        let (pool, tree) = filled(68);
        lose_leaf(&pool, Tree::Dirents);
        pool.crash_and_open();
        pool.run(async move |pool| {
            let client = pool.client();
            let part = std::pin::pin!(client.repair());
            let clock = std::pin::pin!(async {
                for _ in 0..turns {
                    pool.runtime.yield_now().await;
                }
            });
            let _ = futures::future::select(part, clock).await;
        });
        if pool.try_crash_and_open().is_err() {
            pool.crash_and_salvage();
        }
        pool.run(async |pool| pool.client().repair().await.unwrap());
        assert_eq!(problems(&pool), Vec::<String>::new(), "after {turns} turns");
        let (names, lost) = names(&pool, tree);
        assert_eq!((names.len() + lost.len()) as u32, FILES, "after {turns} turns");
    }
}
