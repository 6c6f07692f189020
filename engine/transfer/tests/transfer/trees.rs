//! File trees: random changes between snapshots, and what must be the same on the other side.

use std::collections::BTreeMap;

use engine_base::InodeNumber;
use engine_base::random::Random;
use engine_embed::LocalLink;
use engine_memory::Buffer;
use engine_store::StoreError;
use engine_store::api::{
    CreateAttributes, Data, FileKind, PutMode, RenameMode, SetAttributes, TreeRef,
};
use engine_store::client::Client;
use engine_transfer::ResumeToken;

use crate::Node;

/// All of a tree, by path.
type Whole = BTreeMap<Vec<u8>, Found>;

#[derive(Debug, PartialEq, Eq)]
struct Found {
    kind: FileKind,
    mode: u32,
    owner: (u32, u32),
    size: u64,
    times: (i64, i64),
    links: u32,
    target: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    content: Vec<u8>,
    /// The first path of the same inode.
    same_as: Vec<u8>,
}

/// Directories and other inodes of a tree, with a path of each.
struct Paths {
    directories: Vec<(InodeNumber, Vec<u8>)>,
    /// Directory, name, inode.
    names: Vec<(InodeNumber, Vec<u8>, InodeNumber, FileKind)>,
}

async fn walk(client: &Client<LocalLink>, tree: TreeRef) -> Paths {
    let mut paths = Paths { directories: vec![(tree.root, Vec::new())], names: Vec::new() };
    let mut at = 0;
    while let Some((directory, path)) = paths.directories.get(at).cloned() {
        at += 1;
        for entry in client.read_directory(tree, directory, 0, 1000).await.unwrap() {
            let attributes = entry.attributes;
            if attributes.kind == FileKind::Directory {
                let below = [&path[..], b"/", &entry.name].concat();
                paths.directories.push((attributes.inode, below));
            }
            paths.names.push((directory, entry.name, attributes.inode, attributes.kind));
        }
    }
    paths
}

impl Node {
    fn tree(&mut self, name: &str) -> TreeRef {
        TreeRef::from(&self.get(name).unwrap())
    }

    /// All that a tree holds.
    fn whole(&mut self, name: &str) -> Whole {
        let tree = self.tree(name);
        self.run(async move |client| {
            let paths = walk(&client, tree).await;
            let of: BTreeMap<InodeNumber, Vec<u8>> = paths.directories.iter().cloned().collect();
            let mut first: BTreeMap<InodeNumber, Vec<u8>> = BTreeMap::new();
            let mut all: Vec<(Vec<u8>, InodeNumber)> = vec![(b"/".to_vec(), tree.root)];
            for (directory, name, inode, _) in &paths.names {
                all.push(([&of[directory][..], b"/", name].concat(), *inode));
            }
            all.sort();
            let mut whole = Whole::new();
            for (path, inode) in all {
                let is = client.get_attributes(tree, inode).await.unwrap();
                let mut xattrs = BTreeMap::new();
                for name in client.xattr_list(tree, inode).await.unwrap() {
                    let value = client.xattr_get(tree, inode, &name).await.unwrap();
                    xattrs.insert(name, value);
                }
                let target = match is.kind {
                    FileKind::Symlink => client.read_link(tree, inode).await.unwrap(),
                    _ => Vec::new(),
                };
                let mut content = Vec::new();
                while is.kind == FileKind::File && (content.len() as u64) < is.size {
                    let at = content.len() as u64;
                    let data = client.file_read(tree, inode, at, 1 << 20).await.unwrap();
                    data.iter().for_each(|piece| content.extend_from_slice(piece));
                }
                let found = Found {
                    kind: is.kind,
                    mode: is.mode,
                    owner: (is.uid, is.gid),
                    size: is.size,
                    times: (is.atime_ns, is.mtime_ns),
                    links: is.links,
                    target,
                    xattrs,
                    content,
                    same_as: first.entry(inode).or_insert_with(|| path.clone()).clone(),
                };
                whole.insert(path, found);
            }
            whole
        })
    }

    /// Changes a tree at random.
    fn stir(&mut self, name: &str, seed: u64, changes: u64) {
        let tree = self.tree(name);
        self.run(async move |client| {
            let mut random = Random::new(seed);
            for _ in 0..changes {
                let paths = walk(&client, tree).await;
                let result = change(&client, tree, &mut random, &paths).await;
                // Some are mistakes: a directory into itself, one that is not empty.
                let is_fine = matches!(
                    result,
                    Ok(())
                        | Err(StoreError::NotFound { .. }
                            | StoreError::AlreadyExists { .. }
                            | StoreError::NotEmpty { .. }
                            | StoreError::IsDirectory { .. }
                            | StoreError::NotDirectory { .. }
                            | StoreError::InvalidArgument { .. })
                );
                assert!(is_fine, "{result:?}");
            }
        });
    }
}

fn name_of(random: &mut Random) -> Vec<u8> {
    format!("n{}", random.below(12)).into_bytes()
}

async fn change(
    client: &Client<LocalLink>,
    tree: TreeRef,
    random: &mut Random,
    paths: &Paths,
) -> Result<(), StoreError> {
    let directory = random.pick(&paths.directories).0;
    let attributes = CreateAttributes { mode: random.below(0o1000) as u32, uid: 7, gid: 8 };
    let name = name_of(random);
    if paths.names.is_empty() {
        return client.create(tree, directory, &name, FileKind::File, attributes).await.map(drop);
    }
    let (from, old, inode, kind) = random.pick(&paths.names).clone();
    match random.below(13) {
        0 | 1 => client.create(tree, directory, &name, FileKind::File, attributes).await.map(drop),
        2 => client.create(tree, directory, &name, FileKind::Directory, attributes).await.map(drop),
        3 => client.symlink(tree, directory, &name, b"../where", attributes).await.map(drop),
        4 => client.remove(tree, from, &old, kind == FileKind::Directory).await,
        5 => client.rename(tree, (from, &old), (directory, &name), RenameMode::Replace).await,
        6 => {
            let (to, other, ..) = random.pick(&paths.names).clone();
            client.rename(tree, (from, &old), (to, &other), RenameMode::Exchange).await
        }
        7 if kind != FileKind::Directory => {
            client.link_inode(tree, inode, directory, &name).await.map(drop)
        }
        8 => {
            let name = format!("user.{}", random.below(4));
            match random.chance(1, 3) {
                true => client.xattr_remove(tree, inode, name.as_bytes()).await,
                false => {
                    let value = vec![random.below(256) as u8; random.below(100) as usize];
                    client.xattr_set(tree, inode, name.as_bytes(), &value, PutMode::Any).await
                }
            }
        }
        9 => {
            let mtime_ns = Some(random.below(1 << 40) as i64);
            let set = SetAttributes { mtime_ns, uid: Some(3), ..SetAttributes::default() };
            client.set_attributes(tree, inode, set).await.map(drop)
        }
        10 if kind == FileKind::File => {
            let size = Some(random.below(60_000));
            let set = SetAttributes { size, ..SetAttributes::default() };
            client.set_attributes(tree, inode, set).await.map(drop)
        }
        11 if kind == FileKind::File => {
            client.file_punch(tree, inode, random.below(40_000), random.range(1, 20_000)).await
        }
        _ if kind == FileKind::File => {
            // Now and then past the first chunk, which is on another shard.
            let far = if random.chance(1, 8) { 5 << 20 } else { 0 };
            let mut bytes = vec![0; random.range(1, 30_000) as usize];
            random.fill(&mut bytes);
            let data = Data::from_iter([Buffer::try_copy_of(&bytes)?.freeze()]);
            let offset = far + random.below(40_000);
            client.file_write(tree, inode, offset, data).await.map(drop)
        }
        _ => Ok(()),
    }
}

fn same(found: &Whole, expected: &Whole, told: &str) {
    let names = |whole: &Whole| whole.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{told}");
    for (path, is) in found {
        assert!(
            *is == expected[path],
            "{told}: {}: {is:?} {:?}",
            path.escape_ascii(),
            expected[path]
        );
    }
}

/// A tree with snapshots `s0`, `s1`, ..., each some changes after the one before.
fn stirred(seed: u64, snapshots: u64, changes: u64) -> Node {
    let mut node = Node::new(1, 4);
    node.run(async |client| drop(client.tree_create("t").await.unwrap()));
    for number in 0..snapshots {
        node.stir("t", seed * 100 + number, if number == 0 { 60 } else { changes });
        node.snapshot("t", &format!("s{number}"));
    }
    node.stir("t", 99, 10);
    node
}

#[test]
fn trees_follow_each_other_through_any_changes() {
    for seed in 0..12 {
        let mut from = stirred(seed, 4, 5 + seed * 6);
        let mut to = Node::new(2, 2);
        let whole = from.send("s0", None).unwrap();
        to.receive("s0", &whole).unwrap();
        same(&to.whole("s0"), &from.whole("s0"), &format!("seed {seed}, whole"));
        for number in 1..4 {
            let (name, base) = (format!("s{number}"), format!("s{}", number - 1));
            let stream = from.send(&name, Some(&base)).unwrap();
            to.receive(&name, &stream).unwrap();
            same(&to.whole(&name), &from.whole(&name), &format!("seed {seed}, {name}"));
        }
        // Backwards, and over several at once.
        let back = from.send("s0", Some("s3")).unwrap();
        to.receive("back", &back).unwrap();
        same(&to.whole("back"), &from.whole("s0"), &format!("seed {seed}, back"));
        let again = to.send("s3", Some("back")).unwrap();
        from.receive("again", &again).unwrap();
        same(&from.whole("again"), &from.whole("s3"), &format!("seed {seed}, again"));
        for node in [&mut from, &mut to] {
            node.check();
        }
    }
}

#[test]
fn a_tree_that_was_cut_off_anywhere_goes_on() {
    for seed in 0..10 {
        let mut from = stirred(50 + seed, 2, 40);
        let mut to = Node::new(2, 2);
        let whole = from.send("s0", None).unwrap();
        let difference = from.send("s1", Some("s0")).unwrap();
        for (name, stream, expected) in [("w", whole, "s0"), ("d", difference, "s1")] {
            let mut random = Random::new(seed);
            let mut rest = stream;
            loop {
                let cut = random.below(rest.len() as u64 + 400) as usize;
                if to.receive(name, &rest[..cut.min(rest.len())]).is_ok() {
                    break;
                }
                let Ok(there) = to.get(name) else { continue };
                let token = ResumeToken::of(&there).unwrap();
                rest = from.send_rest(token).unwrap();
            }
            same(&to.whole(name), &from.whole(expected), &format!("seed {seed}, {name}"));
        }
        to.check();
    }
}

#[test]
fn a_file_is_sent_with_its_holes_and_only_where_it_was_changed() {
    let mut from = Node::new(1, 4);
    let mut to = Node::new(2, 2);
    from.run(async |client| {
        let tree = TreeRef::from(&client.tree_create("t").await.unwrap());
        let attributes = CreateAttributes::default();
        let file =
            client.create(tree, tree.root, b"big", FileKind::File, attributes).await.unwrap();
        for at in [0, 9 << 20, 30 << 20] {
            let data = Data::from_iter([Buffer::try_copy_of(&[5; 1 << 20]).unwrap().freeze()]);
            client.file_write(tree, file.inode, at, data).await.unwrap();
        }
    });
    from.snapshot("t", "s0");
    from.run(async |client| {
        let tree = TreeRef::from(&client.subvolume_get("t").await.unwrap());
        let file = client.lookup(tree, tree.root, b"big").await.unwrap();
        let data = Data::from_iter([Buffer::try_copy_of(b"middle").unwrap().freeze()]);
        client.file_write(tree, file.inode, (9 << 20) + 5000, data).await.unwrap();
        client.file_punch(tree, file.inode, 30 << 20, 1 << 19).await.unwrap();
    });
    from.snapshot("t", "s1");
    let whole = from.send("s0", None).unwrap();
    let difference = from.send("s1", Some("s0")).unwrap();
    assert!(whole.len() < (3 << 20) + 5000 && difference.len() < 10_000);
    to.receive("s0", &whole).unwrap();
    to.receive("s1", &difference).unwrap();
    for name in ["s0", "s1"] {
        same(&to.whole(name), &from.whole(name), name);
    }
    to.check();
}
