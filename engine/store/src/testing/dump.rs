//! What dumps show, of whole pools and of damaged ones.

use engine_base::random::Random;

use super::{Pool, data_of};
use crate::api::{CreateAttributes, FileKind, TreeRef};
use crate::dump::{self, Item, Range, View};
use crate::error::StoreError;
use crate::key::Tree;

/// A field of a map.
pub(super) fn field<'i>(item: &'i Item, name: &str) -> Option<&'i Item> {
    let Item::Map(fields) = item else { return None };
    fields.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
}

pub(super) fn number(item: &Item, name: &str) -> Option<u64> {
    match field(item, name)? {
        Item::Number(number) => Some(*number),
        _ => None,
    }
}

/// A tree with the file /d/f of five megabytes over two shards, everything flushed.
fn filled(seed: u64) -> (Pool, u64) {
    let pool = Pool::new(seed, 2);
    let inode = pool.run(async |pool| {
        let client = pool.client();
        let tree = TreeRef::from(&client.tree_create("t").await.unwrap());
        let attributes = CreateAttributes::default();
        let root = tree.root;
        let folder =
            client.create(tree, root, b"d", FileKind::Directory, attributes).await.unwrap();
        let file =
            client.create(tree, folder.inode, b"f", FileKind::File, attributes).await.unwrap();
        let bytes = vec![7; 1 << 20];
        for part in 0..5 {
            let data = data_of(&bytes, &mut Random::new(1));
            client.file_write(tree, file.inode, part << 20, data).await.unwrap();
        }
        client.flush().await.unwrap();
        file.inode.0
    });
    (pool, inode)
}

fn with_view<T: 'static>(pool: &Pool, look: impl AsyncFnOnce(View) -> T + 'static) -> T {
    pool.run(async move |pool| look(View::open(&pool.queues()).await.unwrap()).await)
}

#[test]
fn a_path_leads_to_its_inode_and_extents_whether_in_nodes_or_in_the_journal() {
    for written_out in [false, true] {
        let (pool, inode) = filled(41);
        if written_out {
            pool.run(async |pool| {
                for shard in 0..2 {
                    pool.shard(shard).shutdown().await.unwrap();
                }
            });
        }
        let items = with_view(&pool, async |view| view.path("t", b"/d/f", 1000).await.unwrap());
        let names: Vec<_> = items.iter().filter_map(|item| field(item, "name").cloned()).collect();
        assert_eq!(names, [Item::Name(b"d".to_vec()), Item::Name(b"f".to_vec())]);
        let value = items.iter().find_map(|item| field(item, "value")).expect("the inode");
        assert_eq!(number(value, "size"), Some(5 << 20));
        let extents: Vec<_> = items.iter().filter_map(|item| field(item, "extent")).collect();
        let blocks: u64 = extents.iter().filter_map(|extent| number(extent, "blocks")).sum();
        assert_eq!(blocks, 5 << 8);
        assert!(items.iter().any(|item| number(item, "shard") == Some(1)));
        let direct = with_view(&pool, async move |view| view.inode(inode, None, 3).await.unwrap());
        assert_eq!(direct.len(), 4, "{direct:?}");
        assert!(field(&direct[3], "cut").is_some());
    }
}

#[test]
fn wrong_names_are_not_found() {
    let (pool, _) = filled(42);
    with_view(&pool, async |view| {
        for (name, path) in [("u", &b"/"[..]), ("t", b"/d/g"), ("t", b"/f")] {
            let found = view.path(name, path, 10).await;
            assert!(matches!(found, Err(StoreError::NotFound { .. })), "{found:?}");
        }
        assert!(matches!(view.shard(2).await, Err(StoreError::InvalidArgument { .. })));
    });
}

#[test]
fn journal_trees_tables_and_nodes_are_shown() {
    let (pool, inode) = filled(43);
    let home = (inode % 2) as u16;
    pool.run(async move |pool| pool.shard(home).shutdown().await.unwrap());
    let counters = pool.shard(home).engine().counter(crate::key::Counter::INODES);
    with_view(&pool, async move |view| {
        assert_eq!(view.notes, Vec::<String>::new());
        let entries = view.journal(home, (0, u64::MAX), true, 1000).await.unwrap();
        assert!(entries.iter().any(|entry| field(entry, "flush") == Some(&Item::Flag(true))));
        let some = view.journal(home, (0, u64::MAX), true, 1).await.unwrap();
        assert_eq!(some.len(), 2);
        let shard = view.shard(home).await.unwrap();
        assert_eq!(shard.roots().len(), Tree::ALL.len());
        let inodes = shard.tree(Tree::Inodes, 0, Range::ALL, 100).await.unwrap();
        assert_eq!(inodes.len() as u64, counters, "{inodes:?}");
        let nodes = shard.nodes(Tree::Inodes, 0, Range::ALL, 100).await.unwrap();
        let pointer = field(&nodes[0], "pointer").unwrap();
        let block = number(pointer, "block").expect("it was written out");
        let bsets = dump::node(&*view.member(0), block, 100).await.unwrap();
        assert_eq!(number(&bsets[0], "node"), number(pointer, "node"));
        let found = shard.counters(100).await.unwrap();
        let inodes = found.iter().find(|item| number(item, "counter") == Some(5)).unwrap();
        assert_eq!(number(inodes, "value"), Some(counters));
        let buckets = shard.buckets(1000).await.unwrap();
        let live: u64 = buckets.iter().filter_map(|item| number(item, "live_blocks")).sum();
        assert!(live > 0, "{buckets:?}");
        assert!(shard.tree(Tree::Inodes, 9, Range::ALL, 1).await.is_err(), "no such level");
    });
}

/// The table of buckets that a dump works out is the one that the engine keeps.
#[test]
fn buckets_equal_those_of_the_engine() {
    let (pool, _) = filled(44);
    let mut own: Vec<_> = Vec::new();
    for ((member, bucket), state) in &pool.shard(1).engine().space.tables.borrow().buckets {
        let live = u64::from(state.live_blocks);
        own.push((u64::from(*member), u64::from(*bucket), live, format!("{:#x}", state.slots)));
    }
    let shown =
        with_view(&pool, async |view| view.shard(1).await.unwrap().buckets(1000).await.unwrap());
    let shown: Vec<_> = shown
        .iter()
        .map(|item| {
            let Some(Item::Text(slots)) = field(item, "slots") else { panic!("{item:?}") };
            let get = |name| number(item, name).unwrap();
            (get("member"), get("bucket"), get("live_blocks"), slots.clone())
        })
        .collect();
    assert_eq!(shown, own);
}

#[test]
fn damaged_pools_are_shown_as_far_as_they_go() {
    let (pool, inode) = filled(45);
    let (home, other) = ((inode % 2) as u16, (1 - inode % 2) as u16);
    pool.run(async |pool| {
        for shard in 0..2 {
            pool.shard(shard).shutdown().await.unwrap();
        }
    });
    let superblock = pool.shard(0).engine().superblock().clone();
    let (block, offset) = with_view(&pool, async move |view| {
        let shard = view.shard(home).await.unwrap();
        let nodes = shard.nodes(Tree::Dirents, 0, Range::ALL, 1).await.unwrap();
        let block = number(field(&nodes[0], "pointer").unwrap(), "block").unwrap();
        (block, block as usize * 4096)
    });
    pool.device().with_bytes(|bytes| {
        bytes[offset + 90] ^= 1;
        bytes[65536 + 8] ^= 1;
        // The journal of the other shard is gone altogether.
        let area = superblock.journals[usize::from(other)];
        let start = (area.first_bucket * superblock.bucket_bytes) as usize;
        bytes[start..start + (area.buckets * superblock.bucket_bytes) as usize].fill(0);
    });
    let text = with_view(&pool, async move |view| {
        let shard = view.shard(home).await.unwrap();
        let entries = shard.tree(Tree::Dirents, 0, Range::ALL, 10).await.unwrap();
        assert!(field(&entries[0], "lost_from").is_some(), "{entries:?}");
        let raw = dump::node(&*view.member(0), block, 10).await.unwrap();
        assert!(field(&raw[0], "end").is_some(), "{raw:?}");
        let inodes = shard.tree(Tree::Inodes, 0, Range::ALL, 10).await.unwrap();
        assert!(inodes.len() > 2, "the rest is there");
        assert!(view.shard(other).await.is_err());
        assert_eq!(view.journal(other, (0, u64::MAX), true, 9).await.unwrap(), []);
        format!("{:?}", dump::superblock(&*view.member(0)).await)
    });
    assert!(text.contains("bad: ") || text.contains("no superblock"), "{text}");
}
