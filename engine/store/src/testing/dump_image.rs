//! What a metadata image holds and what not, and who reads it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::rc::Rc;

use engine_base::random::Random;
use engine_device::{BlockDevice as _, DeviceQueue, MemoryDevice};

use super::dump::{field, number};
use super::{Pool, data_of, with_seeds};
use crate::api::{CreateAttributes, FileKind, PutMode, TreeRef};
use crate::btree::format::{BsetInfo, BsetWriter, read_bset};
use crate::dump::{self, Item, Range, View};
use crate::error::StoreError;
use crate::journal::format::{EntryInfo, HEADER_BYTES, seal_entry};
use crate::key::Tree;
use crate::pool::FormatOptions;

/// In every string that the tests give to a pool; no letters alone.
const NEEDLE: &str = "Secret9";
/// In all data.
const DATA: &[u8] = b"Data7-of-users.!";
const LIMIT: usize = 100_000;
const SHARDS: u16 = 2;
const KEY: [u64; 2] = [0x1234, 0x5678];

fn secret(what: &str) -> String {
    format!("{what}-{NEEDLE}-{what}")
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|part| part == needle)
}

fn data(bytes: usize) -> Vec<u8> {
    DATA.iter().copied().cycle().take(bytes).collect()
}

/// Files with data, directories, links, attributes, volumes and records, some of it written out to nodes
/// and summaries and some, after the newest flush, in the journal only.
fn filled(seed: u64) -> Pool {
    let options = FormatOptions {
        shards: Some(SHARDS),
        label: secret("pool"),
        member_labels: vec![secret("one"), secret("two")],
        node_bytes: Some(16 << 10),
        ..FormatOptions::default()
    };
    let pool = Pool::with_members(seed, &[64 << 20, 64 << 20], options);
    pool.run(async |pool| {
        change(&pool, "old", 300).await;
        for shard in 0..SHARDS {
            pool.shard(shard).shutdown().await.unwrap();
        }
    });
    pool.crash_and_open();
    pool.run(async |pool| {
        change(&pool, "new", 20).await;
        pool.client().flush().await.unwrap();
        change(&pool, "tail", 8).await;
    });
    pool
}

async fn change(pool: &Pool, part: &str, files: usize) {
    let client = pool.client();
    let attributes = CreateAttributes::default();
    for index in 0..2 {
        let name = secret(&format!("{part}.{index}"));
        client.volume_create(&format!("v-{name}"), 1 << 20, 4096).await.unwrap();
        client.volume_resize(&format!("v-{name}"), 2 << 20).await.unwrap();
        client.record_put(&secret("c"), &name, data(99), PutMode::Any).await.unwrap();
        let tree = TreeRef::from(&client.tree_create(&name).await.unwrap());
        for file in 0..files {
            let name = secret(&format!("{part}.{file}"));
            let made =
                client.create(tree, tree.root, name.as_bytes(), FileKind::File, attributes).await;
            let made = made.unwrap().inode;
            let value = secret(&format!("value.{file}"));
            let mode = PutMode::Any;
            let set = client.xattr_set(tree, made, name.as_bytes(), value.as_bytes(), mode);
            set.await.unwrap();
            if file % 4 == 0 {
                let target = secret(&format!("target.{file}"));
                let (name, target) = (format!("l-{name}"), target.as_bytes());
                client.symlink(tree, tree.root, name.as_bytes(), target, attributes).await.unwrap();
                let pieces = data_of(&data(100_000), &mut Random::new(3));
                client.file_write(tree, made, 0, pieces).await.unwrap();
            }
        }
    }
}

/// Devices with the image of a pool, and what was said about it.
fn image(pool: &Pool, key: [u64; 2]) -> (Vec<MemoryDevice>, Vec<Item>) {
    pool.run(async move |pool| {
        let view = View::open(&pool.queues()).await.unwrap();
        let sizes = view.image_sizes();
        let devices: Vec<_> =
            sizes.iter().map(|size| MemoryDevice::new("image", size.unwrap(), 4096)).collect();
        let targets: Vec<_> = queues(&pool, &devices).into_iter().map(Some).collect();
        let said = view.image(&targets, key).await.unwrap();
        (devices, said)
    })
}

fn queues(pool: &Pool, devices: &[MemoryDevice]) -> Vec<Rc<dyn DeviceQueue>> {
    let opened = devices.iter().map(|device| {
        let queue = device.open_queue(32).unwrap();
        pool.runtime.add_queue(Rc::clone(&queue));
        queue
    });
    opened.collect()
}

fn list<'i>(item: &'i Item, name: &str) -> &'i [Item] {
    let Some(Item::List(items)) = field(item, name) else { panic!("{item:?}") };
    items
}

/// The item with as many zeroes in place of names, and without what an image has otherwise: the key of
/// the hash of names, checksums of bsets, the device's name, and the mark.
fn nameless(item: &Item) -> Item {
    match item {
        Item::Name(name) => Item::Name(vec![0; name.len()]),
        Item::List(items) => Item::List(items.iter().map(nameless).collect()),
        Item::Map(fields) => {
            let other = ["hash_key", "crc", "crc_before", "last_crc", "device", "image"];
            let kept = fields.iter().filter(|(name, _)| !other.contains(name));
            Item::Map(kept.map(|(name, item)| (*name, nameless(item))).collect())
        }
        item => item.clone(),
    }
}

/// Everything that dumps show of a pool.
async fn shown(queues: &[Rc<dyn DeviceQueue>]) -> Vec<Item> {
    let view = View::open(queues).await.unwrap();
    let mut items: Vec<_> = view.notes.iter().map(|note| Item::Text(note.clone())).collect();
    for queue in queues {
        items.push(dump::superblock(&**queue).await);
    }
    for number in 0..SHARDS {
        items.extend(view.journal(number, (0, u64::MAX), true, LIMIT).await.unwrap());
        let shard = view.shard(number).await.unwrap();
        items.extend(shard.notes.iter().map(|note| Item::Text(note.clone())));
        items.extend(shard.operations(LIMIT).await.unwrap());
        items.extend(shard.counters(LIMIT).await.unwrap());
        for root in shard.roots() {
            let Some(Item::Text(name)) = field(&root, "tree").cloned() else { panic!("{root:?}") };
            let (tree, top) = (dump::tree_of(&name).unwrap(), super::dump::number(&root, "level"));
            items.push(root);
            for level in 0..=top.unwrap() as u8 {
                items.extend(shard.tree(tree, level, Range::ALL, LIMIT).await.unwrap());
                let nodes = shard.nodes(tree, level, Range::ALL, LIMIT).await.unwrap();
                items.extend(alone(queues, &nodes).await);
                items.extend(nodes);
            }
        }
        let buckets = shard.buckets(LIMIT).await.unwrap();
        for bucket in buckets.iter().filter(|it| field(it, "kind") == Some(&"data".into())) {
            let get = |name| super::dump::number(bucket, name).unwrap();
            let device = &queues[get("member") as usize];
            let found = dump::summary(&**device, get("bucket") as u32, LIMIT).await;
            items.extend(found.unwrap());
        }
        items.extend(buckets);
    }
    items
}

/// Nodes as they lie where pointers say, and what is left over behind them.
async fn alone(queues: &[Rc<dyn DeviceQueue>], nodes: &[Item]) -> Vec<Item> {
    let mut items = Vec::new();
    for pointer in nodes.iter().filter_map(|node| field(node, "pointer")) {
        if let (Some(member), Some(block)) = (number(pointer, "member"), number(pointer, "block")) {
            let bsets = dump::node(&*queues[member as usize], block, LIMIT).await.unwrap();
            items.extend(bsets.into_iter().filter(|bset| field(bset, "end").is_none()));
        }
    }
    items
}

#[test]
fn an_image_holds_neither_names_nor_data() {
    let pool = filled(51);
    let on_pool = |needle: &[u8]| {
        (0..2).any(|member| pool.member(member).with_bytes(|bytes| contains(bytes, needle)))
    };
    assert!(on_pool(NEEDLE.as_bytes()) && on_pool(DATA), "what is looked for is on the pool");
    let (devices, said) = image(&pool, KEY);
    for device in &devices {
        device.with_bytes(|bytes| {
            assert!(!contains(bytes, NEEDLE.as_bytes()));
            assert!(!contains(bytes, DATA));
            // Neither half of it, which a record or name might be cut to.
            assert!(!contains(bytes, &NEEDLE.as_bytes()[3..]));
        });
    }
    assert_eq!(number(&said[0], "superblock_copies"), Some(6), "{said:?}");
    assert!(number(&said[0], "nodes").unwrap() > 40, "{said:?}");
    assert!(number(&said[0], "summaries").unwrap() > 0, "{said:?}");
    for what in ["superblock_copies", "journals", "journal_entries", "nodes", "values"] {
        assert_eq!(number(&said[1], what), Some(0), "{what} of {said:?}");
    }
}

#[test]
fn dumps_of_pool_and_image_differ_in_names_only() {
    let pool = filled(52);
    let (devices, _) = image(&pool, KEY);
    pool.run(async move |pool| {
        let images = queues(&pool, &devices);
        let tails = View::open(&images).await.unwrap().superblock.image_tails.clone();
        assert!(tails.is_some_and(|tails| tails.iter().any(|tail| *tail > 0)), "no tail");
        let superblock = dump::superblock(&*images[0]).await;
        assert!(field(&superblock, "image").is_some());
        assert!(
            list(&superblock, "copies")
                .iter()
                .all(|copy| { field(copy, "state") == Some(&Item::Text("good".to_owned())) })
        );
        let (own, of_image) = (shown(&pool.queues()).await, shown(&images).await);
        assert!(own.len() > 1000, "{}", own.len());
        for (own, of_image) in own.iter().zip(&of_image) {
            assert_eq!(nameless(own), nameless(of_image));
        }
        assert_eq!(own.len(), of_image.len());
    });
}

/// All maps in the item that have a field of that name.
fn with_field<'i>(item: &'i Item, name: &str, found: &mut Vec<&'i Item>) {
    match item {
        Item::List(items) => items.iter().for_each(|item| with_field(item, name, found)),
        Item::Map(fields) => {
            fields.iter().for_each(|(_, item)| with_field(item, name, found));
            found.extend(field(item, name).is_some().then_some(item));
        }
        _ => {}
    }
}

/// What checksums of bsets are compared with.
struct Fits {
    /// Of each pointer of journals and of trees as they are: whether the bset that ends there has its
    /// checksum; `None`: none lies there. And the checksum.
    pointers: Vec<(Option<bool>, u64)>,
    /// Of each place that they name: whether each bset there follows the one before.
    follows: BTreeMap<(u64, u64), Vec<bool>>,
}

async fn fits(queues: &[Rc<dyn DeviceQueue>]) -> Fits {
    let shown = shown(queues).await;
    let mut pointers = Vec::new();
    // Pointers in bsets as they lie may have been replaced by later ones.
    let counts = shown.iter().filter(|item| field(item, "crc").is_none());
    counts.for_each(|item| with_field(item, "last_crc", &mut pointers));
    let mut nodes: BTreeMap<(u64, u64), Vec<Item>> = BTreeMap::new();
    let mut fits = Fits { pointers: Vec::new(), follows: BTreeMap::new() };
    for pointer in pointers {
        let get = |name| number(pointer, name).unwrap();
        let place = (get("member"), get("block"));
        if let Entry::Vacant(vacant) = nodes.entry(place) {
            let bsets = dump::node(&*queues[place.0 as usize], place.1, 0).await.unwrap();
            vacant.insert(bsets.into_iter().filter(|it| field(it, "end").is_none()).collect());
        }
        let end = place.1 + get("written_blocks");
        let last = nodes[&place].iter().find(|it| {
            number(it, "device_byte").unwrap() / 4096 + number(it, "blocks").unwrap() == end
        });
        let is_it = last.map(|last| field(last, "crc") == field(pointer, "last_crc"));
        fits.pointers.push((is_it, get("last_crc")));
    }
    for (place, bsets) in nodes {
        let crcs = bsets.iter().map(|it| number(it, "crc").unwrap());
        let previous = bsets.iter().map(|it| number(it, "crc_before").unwrap());
        let follows = previous.zip(std::iter::once(0).chain(crcs)).map(|(is, was)| is == was);
        fits.follows.insert(place, follows.collect());
    }
    fits
}

/// A bset with names scrubbed has another checksum, and so has what names it.
#[test]
fn checksums_in_pointers_and_bsets_fit_in_an_image_where_they_do_in_the_pool() {
    let pool = filled(59);
    let (devices, _) = image(&pool, KEY);
    pool.run(async move |pool| {
        let (own, of_image) = (fits(&pool.queues()).await, fits(&queues(&pool, &devices)).await);
        assert_eq!(own.pointers.len(), of_image.pointers.len());
        let (mut fit, mut changed) = (0, 0);
        for (own, of_image) in own.pointers.iter().zip(&of_image.pointers) {
            // Nodes that only old pointers lead to are not in the image.
            if of_image.0.is_some() {
                assert_eq!(own.0, of_image.0);
            }
            fit += u64::from(of_image.0 == Some(true));
            changed += u64::from(of_image.0 == Some(true) && own.1 != of_image.1);
        }
        assert!(fit > 100 && changed > 50, "{fit}, {changed} of {}", own.pointers.len());
        let (mut follow, mut stray) = (0, 0);
        for (place, follows) in of_image.follows.iter().filter(|(_, bsets)| !bsets.is_empty()) {
            assert_eq!(follows, &own.follows[place]);
            follow += follows.iter().skip(1).filter(|follows| **follows).count();
            stray += follows.iter().filter(|follows| !**follows).count();
        }
        assert!(follow > 20 && stray > 0, "{follow}, {stray}");
    });
}

/// A lost write over something valid shows in an image, and as what it is.
#[test]
fn a_bset_that_is_not_the_one_that_its_pointer_names_is_not_in_an_image_either() {
    let pool = filled(63);
    let of_leaf = |pool: &Pool, queues: Vec<Rc<dyn DeviceQueue>>| {
        pool.run(async move |_| {
            let view = View::open(&queues).await.unwrap();
            let shard = view.shard(0).await.unwrap();
            let keys = shard.tree(Tree::Xattrs, 0, Range::ALL, LIMIT).await.unwrap();
            let nodes = shard.nodes(Tree::Xattrs, 0, Range::ALL, LIMIT).await.unwrap();
            (keys.iter().find(|key| field(key, "lost_from").is_some()).cloned(), nodes)
        })
    };
    let (lost, nodes) = of_leaf(&pool, pool.queues());
    assert_eq!(lost, None);
    let pointer = field(&nodes[0], "pointer").unwrap();
    let get = |name| number(pointer, name).unwrap() as usize;
    let place = get("block") * 4096;
    pool.member(get("member")).with_bytes(|bytes| {
        let node = &mut bytes[place..place + (16 << 10)];
        let mut writer = BsetWriter::new();
        let found = read_bset(node, place as u64, |at, value| writer.push(at, value)).unwrap();
        let info = BsetInfo { journal_seq: found.info.journal_seq + 1, ..found.info };
        let (other, crc) = writer.seal(&info, place as u64);
        assert_ne!(crc, found.crc);
        node[..other.len()].copy_from_slice(&other);
    });
    let (devices, said) = image(&pool, KEY);
    assert_eq!(number(&said[1], "nodes"), Some(0), "{said:?}");
    let (own, _) = of_leaf(&pool, pool.queues());
    let (of_image, _) = of_leaf(&pool, queues(&pool, &devices));
    assert!(own.is_some() && own == of_image, "{own:?} {of_image:?}");
}

/// Which entries of the tail count depends on data, which the image does not have.
#[test]
fn the_tail_of_an_image_ends_where_that_of_the_pool_does() {
    let pool = filled(53);
    let last: &'static [u8] = b"LAST-WRITTEN-DATA";
    pool.run(async move |pool| {
        let client = pool.client();
        let tree = TreeRef::from(&client.tree_create("last").await.unwrap());
        client.flush().await.unwrap();
        // The first is whole, so that the tail of the image must not end where data is missing.
        for name in ["a", "b", "c"] {
            let attributes = CreateAttributes::default();
            let entry = name.as_bytes();
            let made = client.create(tree, tree.root, entry, FileKind::File, attributes);
            let made = made.await.unwrap().inode;
            let content = if name == "a" { DATA } else { last };
            let bytes: Vec<u8> = content.iter().copied().cycle().take(8192).collect();
            let pieces = data_of(&bytes, &mut Random::new(1));
            client.file_write(tree, made, 0, pieces).await.unwrap();
        }
    });
    for member in 0..2 {
        pool.member(member).with_bytes(|bytes| {
            let found = bytes.windows(last.len()).position(|part| part == last);
            if let Some(at) = found {
                bytes[at] ^= 1;
            }
        });
    }
    let (devices, _) = image(&pool, KEY);
    pool.run(async move |pool| {
        let mut cut = Vec::new();
        for queues in [pool.queues(), queues(&pool, &devices)] {
            let view = View::open(&queues).await.unwrap();
            let mut of_shards = Vec::new();
            for shard in 0..SHARDS {
                for note in view.shard(shard).await.unwrap().notes {
                    // Why is told by the pool only.
                    let what = note.split(" are not taken").next().unwrap_or_default();
                    of_shards.push((shard, what.to_owned()));
                }
            }
            cut.push(of_shards);
        }
        assert!(!cut[0].is_empty() && cut[0] == cut[1], "{cut:?}");
    });
}

#[test]
fn one_string_is_one_in_an_image_and_another_in_the_next() {
    let pool = filled(54);
    let mut names = Vec::new();
    for key in [KEY, [KEY[0], 1]] {
        let (devices, _) = image(&pool, key);
        names.push(pool.run(async move |pool| {
            let view = View::open(&queues(&pool, &devices)).await.unwrap();
            let shard = view.shard(0).await.unwrap();
            let mut of_trees = Vec::new();
            for (tree, name) in [(Tree::Names, "subvolume"), (Tree::Subvolumes, "name")] {
                let keys = shard.tree(tree, 0, Range::ALL, LIMIT).await.unwrap();
                let values = keys.iter().filter_map(|key| field(key, "value"));
                let mut names: Vec<_> =
                    values.filter_map(|value| field(value, name)).cloned().collect();
                names.sort_by_key(|name| format!("{name:?}"));
                of_trees.push(names);
            }
            assert_eq!(of_trees[0], of_trees[1]);
            assert_eq!(of_trees[0].len(), 12, "two volumes and two trees, three times");
            of_trees.swap_remove(0)
        }));
    }
    assert!(names[0].iter().all(|name| !names[1].contains(name)), "{names:?}");
}

#[test]
fn an_image_is_not_opened_nor_changed_by_the_attempt() {
    let pool = filled(55);
    let (devices, _) = image(&pool, KEY);
    let before: Vec<_> = devices.iter().map(|it| it.with_bytes(|bytes| bytes.clone())).collect();
    for (member, image) in before.iter().enumerate() {
        pool.member(member).with_bytes(|bytes| bytes.copy_from_slice(image));
    }
    for refused in [pool.try_crash_and_open(), pool.try_crash_and_salvage()] {
        let Err(error @ StoreError::Unsupported { .. }) = refused else { panic!("{refused:?}") };
        let words = "is a metadata image of a pool, without its data: only `cairn dump` reads it";
        assert!(error.to_string().contains(words), "{error}");
    }
    for (member, image) in before.iter().enumerate() {
        pool.member(member).with_bytes(|bytes| assert!(bytes == image, "member {member}"));
    }
}

#[test]
fn what_is_damaged_is_left_out_and_counted() {
    let pool = filled(56);
    let (entry, node) = pool.run(async |pool| {
        let view = View::open(&pool.queues()).await.unwrap();
        let entries = view.journal(0, (0, u64::MAX), false, LIMIT).await.unwrap();
        let shard = view.shard(0).await.unwrap();
        let nodes = shard.nodes(Tree::Xattrs, 0, Range::ALL, LIMIT).await.unwrap();
        let pointer = field(&nodes[0], "pointer").cloned().unwrap();
        // Journals are on the members in turn.
        (number(&entries[0], "device_byte").unwrap() as usize, pointer)
    });
    let place = number(&node, "block").unwrap() as usize * 4096;
    pool.member(number(&node, "member").unwrap() as usize).with_bytes(|bytes| {
        bytes[place + 100] ^= 1;
    });
    pool.member(0).with_bytes(|bytes| {
        bytes[entry + 60] ^= 1;
        bytes[65536 + 300] ^= 1;
    });
    let (devices, said) = image(&pool, KEY);
    for what in ["superblock_copies", "journal_entries", "nodes"] {
        assert_eq!(number(&said[1], what), Some(1), "{what} of {said:?}");
    }
    let notes = format!("{said:?}");
    assert!(notes.contains("checksum does not match") && notes.contains("no whole entry"));
    let member = number(&node, "member").unwrap() as usize;
    devices[member].with_bytes(|bytes| {
        assert!(bytes[place..place + 4096].iter().all(|byte| *byte == 0), "the node is a hole");
    });
    devices[0].with_bytes(|bytes| {
        assert!(bytes[entry..entry + 4096].iter().all(|byte| *byte == 0), "the entry is a hole");
    });
    // The same ranges are lost on both, and the rest of the tree is on both.
    pool.run(async move |pool| {
        let mut lost = Vec::new();
        for queues in [pool.queues(), queues(&pool, &devices)] {
            let view = View::open(&queues).await.unwrap();
            let shard = view.shard(0).await.unwrap();
            let keys = shard.tree(Tree::Xattrs, 0, Range::ALL, LIMIT).await.unwrap();
            let count = keys.len();
            let range = keys.iter().find_map(|key| {
                Some((field(key, "lost_from")?.clone(), field(key, "lost_to")?.clone()))
            });
            assert!(range.is_some() && count > 100, "{count}");
            lost.push((count, range));
        }
        assert_eq!(lost[0], lost[1]);
    });
}

/// An entry with a right checksum can still hold what no writer writes.
#[test]
fn records_that_are_none_do_not_get_into_an_image() {
    let pool = Pool::new(58, SHARDS);
    let superblock = pool.shard(0).engine().superblock().clone();
    let area = superblock.journals[0];
    let bucket_bytes = u64::from(superblock.bucket_bytes);
    let ring = u64::from(area.first_bucket) * bucket_bytes;
    let last = u64::from(area.buckets) * bucket_bytes - 3 * 4096;
    let put = |entry: &mut Vec<u8>, bytes: u16| {
        let tree = Tree::Dirents as u8;
        entry.extend_from_slice(&[1, tree, 0, 0]);
        entry.extend_from_slice(&(20 + bytes).to_le_bytes());
        entry.extend_from_slice(&[0; 20]);
        entry.extend(NEEDLE.bytes().cycle().take(usize::from(bytes)));
    };
    let mut unknown = vec![0; HEADER_BYTES];
    put(&mut unknown, 100);
    unknown.extend_from_slice(&[77, 0, 0, 0, 7, 0]);
    unknown.extend_from_slice(NEEDLE.as_bytes());
    let mut long = vec![0; HEADER_BYTES];
    put(&mut long, 2049);
    pool.member(usize::from(area.member)).with_bytes(|bytes| {
        for (index, entry) in [&mut unknown, &mut long].into_iter().enumerate() {
            let at = last + index as u64 * 4096;
            let info = EntryInfo { seq: 2 + index as u64, last_seq: 2, flush: false, blocks: 1 };
            seal_entry(entry, &info, superblock.pool_uuid, 0, at);
            let place = &mut bytes[(ring + at) as usize..][..4096];
            assert!(place.iter().all(|byte| *byte == 0), "the end of the ring is free");
            place.copy_from_slice(entry);
        }
    });
    let (devices, said) = image(&pool, KEY);
    assert_eq!(number(&said[1], "journal_entries_cut"), Some(2), "{said:?}");
    assert_eq!(number(&said[1], "values"), Some(1), "{said:?}");
    for device in &devices {
        device.with_bytes(|bytes| assert!(!contains(bytes, NEEDLE.as_bytes())));
    }
}

#[test]
fn no_damage_gets_a_name_into_an_image() {
    with_seeds(|seed| {
        let mut random = Random::new(seed);
        let pool = filled(seed + 60);
        for member in 0..2 {
            pool.member(member).with_bytes(|bytes| {
                // Where names are, so that it is metadata that is hit.
                let places: Vec<_> = (0..bytes.len() / 4096)
                    .filter(|block| {
                        contains(&bytes[block * 4096..][..4096], NEEDLE.as_bytes())
                            && !(16..48).contains(block)
                    })
                    .collect();
                for _ in 0..20.min(places.len()) {
                    let block = places[random.below(places.len() as u64) as usize];
                    bytes[block * 4096 + random.below(4096) as usize] ^= 1 << random.below(8);
                }
            });
        }
        let (devices, said) = image(&pool, KEY);
        for device in &devices {
            device.with_bytes(|bytes| assert!(!contains(bytes, NEEDLE.as_bytes()), "{said:?}"));
        }
    });
}

#[test]
fn a_pool_with_a_member_missing_has_an_image_of_the_rest() {
    let pool = filled(57);
    let (devices, said) = pool.run(async |pool| {
        let view = View::open(&pool.queues()[..1]).await.unwrap();
        let sizes = view.image_sizes();
        assert_eq!(sizes, [Some(64 << 20), None]);
        let devices = [MemoryDevice::new("image", 64 << 20, 4096)];
        let targets = [queues(&pool, &devices).pop(), None];
        let said = view.image(&targets, KEY).await.unwrap();
        (devices, said)
    });
    assert_eq!(number(&said[0], "superblock_copies"), Some(3), "{said:?}");
    assert_eq!(number(&said[1], "journals"), Some(1), "{said:?}");
    assert!(format!("{said:?}").contains("member 1 is not given"), "{said:?}");
    devices[0].with_bytes(|bytes| assert!(!contains(bytes, NEEDLE.as_bytes())));
}
