//! Pools that are damaged in their own structures, with right checksums or none left: found, and what
//! fsck makes of them.

use super::Pool;
use crate::api::{CreateAttributes, FileKind, TreeRef};
use crate::dump::{Item, Range, View};
use crate::key::{Position, Tree};
use crate::pool::FormatOptions;

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
    pool.run(async |pool| pool.client().fsck(false).await.unwrap()).problems
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
