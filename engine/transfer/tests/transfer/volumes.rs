//! Volumes.

use engine_base::random::Random;
use engine_base::{BLOCK_SIZE, MIB};
use engine_memory::Buffer;
use engine_store::StoreError;
use engine_store::api::{
    Compression, Data, NewSnapshot, SubvolumeInfo, SubvolumeKind, SubvolumeOptions,
};
use engine_store::client::VolumeRef;
use engine_transfer::{ResumeToken, content_of};

use crate::Node;

const SIZE: u64 = 40 * MIB;

impl Node {
    /// Fills blocks of a volume with random bytes, and drops some others.
    fn change(&mut self, name: &str, seed: u64, writes: u64) {
        let name = name.to_owned();
        self.run(async move |client| {
            let info = client.subvolume_get(&name).await.unwrap();
            let (volume, mut random) = (VolumeRef::from(&info), Random::new(seed));
            let blocks = info.size_bytes / BLOCK_SIZE;
            for _ in 0..writes {
                let at = random.below(blocks);
                let count = random.range(1, 40).min(blocks - at);
                let (offset, len) = (at * BLOCK_SIZE, count * BLOCK_SIZE);
                if random.chance(1, 5) {
                    client.volume_discard(&volume, offset, len).await.unwrap();
                    continue;
                }
                let mut bytes = vec![0; len as usize];
                random.fill(&mut bytes);
                let data = Data::from_iter([Buffer::try_copy_of(&bytes).unwrap().freeze()]);
                client.volume_write(&volume, offset, data, false).await.unwrap();
            }
        });
    }

    fn content(&mut self, name: &str) -> Vec<u8> {
        let info = self.get(name).unwrap();
        self.run(async move |client| {
            let (volume, mut all) = (VolumeRef::from(&info), Vec::new());
            for at in (0..info.size_bytes).step_by(MIB as usize) {
                let len = MIB.min(info.size_bytes - at).next_multiple_of(BLOCK_SIZE);
                let data = client.volume_read(&volume, at, len).await.unwrap();
                data.iter().for_each(|piece| all.extend_from_slice(piece));
            }
            all
        })
    }
}

/// A pool with a volume and snapshots `s0`, `s1`, ... of it, each some writes after the one before.
fn with_snapshots(count: u64) -> Node {
    let mut node = Node::new(1, 4);
    let options = SubvolumeOptions { compression: Compression::Zstd(3), ..Default::default() };
    node.run(async move |client| {
        let shape = (SIZE, 4096);
        client.subvolume_create("v", SubvolumeKind::Volume, shape, options).await.unwrap();
    });
    for number in 0..count {
        node.change("v", number, if number == 0 { 120 } else { 12 });
        node.snapshot("v", &format!("s{number}"));
    }
    node.change("v", 99, 20);
    node
}

#[test]
fn a_snapshot_becomes_the_same_in_another_pool() {
    let mut from = with_snapshots(1);
    let mut to = Node::new(2, 2);
    let stream = from.send("s0", None).unwrap();
    let received = to.receive("copy", &stream).unwrap();
    let sent = from.get("s0").unwrap();
    assert!(received.read_only && received.receiving().is_none());
    assert_eq!(content_of(&received), sent.uuid);
    assert!(received.uuid != sent.uuid);
    let shape = |info: &SubvolumeInfo| (info.kind, info.size_bytes, info.block_size, info.options);
    assert_eq!(shape(&received), shape(&sent));
    assert!(to.content("copy") == from.content("s0"));
    // It takes no more than the original: holes are not sent.
    let holes =
        from.content("s0").chunks(4096).filter(|block| block.iter().all(|b| *b == 0)).count();
    assert!(stream.len() as u64 <= SIZE - holes as u64 * BLOCK_SIZE + (1 << 16));
    to.check();
}

#[test]
fn differences_follow_each_other_and_go_back_the_other_way() {
    let mut from = with_snapshots(4);
    let mut to = Node::new(2, 2);
    let whole = from.send("s0", None).unwrap();
    to.receive("s0", &whole).unwrap();
    for number in 1..4 {
        let (name, base) = (format!("s{number}"), format!("s{}", number - 1));
        let stream = from.send(&name, Some(&base)).unwrap();
        assert!(stream.len() * 2 < whole.len(), "{} of {}", stream.len(), whole.len());
        to.receive(&name, &stream).unwrap();
        assert!(to.content(&name) == from.content(&name), "{name}");
    }
    // What was received is sent on, to a third pool and back to the first.
    let (whole, difference) = (to.send("s1", None).unwrap(), to.send("s3", Some("s1")).unwrap());
    let mut third = Node::new(3, 1);
    third.receive("a", &whole).unwrap();
    third.receive("b", &difference).unwrap();
    assert!(third.content("b") == from.content("s3"));
    from.receive("back", &difference).unwrap();
    assert!(from.content("back") == from.content("s3"));
    // Also to an older one.
    let backwards = to.send("s0", Some("s3")).unwrap();
    third.receive("old", &backwards).unwrap();
    assert!(third.content("old") == from.content("s0"));
    // What is cut off goes on, though the snapshots are there twice, of two volumes.
    let token = |node: &mut Node| ResumeToken::of(&node.get("rest").unwrap()).unwrap();
    third.receive("rest", &difference[..difference.len() / 2]).unwrap_err();
    let rest = from.send_rest(token(&mut third)).unwrap();
    third.receive("rest", &rest).unwrap();
    assert!(third.content("rest") == from.content("s3"));
    // A clone of what was received goes its own way, and what is sent of it is something else.
    to.run(async |client| {
        let (source, name) = ("s3".to_owned(), "clone".to_owned());
        client.snapshot_create(&[NewSnapshot { source, name, writable: true }]).await.unwrap();
    });
    to.change("clone", 5, 20);
    let own = to.snapshot("clone", "own");
    assert!(own.received.is_none());
    for node in [&mut from, &mut to, &mut third] {
        node.check();
    }
}

#[test]
fn a_volume_that_grew_or_shrank_between_two_snapshots() {
    for (size, block_size) in [(24 * MIB, 4096), (72 * MIB, 4096), (20 * MIB + 4096, 512)] {
        let mut from = Node::new(1, 4);
        from.run(async move |client| {
            client.volume_create("v", SIZE, block_size).await.unwrap();
        });
        from.change("v", 1, 100);
        from.snapshot("v", "s0");
        from.run(async move |client| client.volume_resize("v", size).await.unwrap());
        from.change("v", 2, 50);
        from.snapshot("v", "s1");
        let mut to = Node::new(2, 2);
        let stream = from.send("s0", None).unwrap();
        to.receive("s0", &stream).unwrap();
        let stream = from.send("s1", Some("s0")).unwrap();
        let received = to.receive("s1", &stream).unwrap();
        assert_eq!((received.size_bytes, received.block_size), (size, block_size));
        assert!(to.content("s1") == from.content("s1"));
        assert!(to.content("s0") == from.content("s0"));
        to.check();
    }
}

#[test]
fn a_stream_that_was_cut_off_goes_on_where_it_was() {
    let mut from = with_snapshots(2);
    let mut to = Node::new(2, 2);
    let whole = from.send("s0", None).unwrap();
    to.receive("base", &whole).unwrap();
    let difference = from.send("s1", Some("s0")).unwrap();
    for (name, stream, expected) in [("w", whole, "s0"), ("d", difference, "s1")] {
        let mut random = Random::new(stream.len() as u64);
        let mut rest = stream.clone();
        let mut resumed = 0;
        loop {
            let cut = random.below(rest.len() as u64 / 2 + 200) as usize;
            match to.receive(name, &rest[..cut.min(rest.len())]) {
                Ok(_) => break,
                Err(error) => assert!(error.to_string().contains("stream: "), "{error}"),
            }
            let Ok(there) = to.get(name) else { continue };
            // Nobody else uses what is there.
            let token = ResumeToken::of(&there).unwrap();
            let taken = name.to_owned();
            let refused = to.run(async move |client| {
                let (source, name) = (taken, "x".to_owned());
                client.snapshot_create(&[NewSnapshot { source, name, writable: false }]).await
            });
            assert!(refused.unwrap_err().to_string().contains("is being received"));
            rest = from.send_rest(token.to_string().parse().unwrap()).unwrap();
            assert!(rest.len() <= stream.len());
            resumed += 1;
            if resumed > 6 {
                assert!(rest.len() < stream.len(), "nothing is kept");
                to.receive(name, &rest).unwrap();
                break;
            }
        }
        assert!(to.content(name) == from.content(expected));
        // Once more from the start is refused: the name is taken.
        assert!(matches!(to.receive(name, &stream), Err(StoreError::AlreadyExists { .. })));
    }
    to.check();
}

#[test]
fn what_does_not_fit_is_refused_with_what_to_do() {
    let mut from = with_snapshots(2);
    let mut to = Node::new(2, 2);
    let whole = from.send("s0", None).unwrap();
    let difference = from.send("s1", Some("s0")).unwrap();
    let refused = |result: Result<SubvolumeInfo, StoreError>, why: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    refused(to.receive("d", &difference), "receive that one first, or send all of it");
    refused(to.receive("d", b""), "nothing of it came");
    refused(to.receive("d", b"hello"), "not one that cairn sent");
    refused(to.receive("-d", &whole), "subvolume name");
    assert!(to.get("d").is_err());
    // Another stream under the same name, and the rest of one of which less is there.
    refused(to.receive("d", &whole[..whole.len() / 2]), "was cut off");
    let other = from.send("s1", None).unwrap();
    refused(to.receive("d", &other), "is being received from another snapshot");
    let token = ResumeToken::of(&to.get("d").unwrap()).unwrap();
    let far = ResumeToken { position: token.position + 4 * MIB, ..token };
    refused(to.receive("d", &from.send_rest(far).unwrap()), "send with the resume token");
    let mut damaged = whole.clone();
    let at = damaged.len() * 2 / 3;
    damaged[at] ^= 1;
    refused(to.receive("d", &damaged), "is damaged");
    to.receive("d", &whole).unwrap();
    assert!(to.content("d") == from.content("s0"));
    // The side that sends.
    let gone = ResumeToken { source: [9; 16], ..token };
    assert!(matches!(from.send_rest(gone), Err(StoreError::NotFound { .. })));
    for (snapshot, base) in [("v", None), ("s0", Some("v")), ("s0", Some("s0"))] {
        let refused = from.send(snapshot, base);
        assert!(matches!(refused, Err(StoreError::InvalidArgument { .. })), "{refused:?}");
    }
    to.check();
}

#[test]
fn what_was_begun_is_deleted_as_any_subvolume() {
    let mut from = with_snapshots(1);
    let mut to = Node::new(2, 2);
    let whole = from.send("s0", None).unwrap();
    to.receive("d", &whole[..whole.len() / 2]).unwrap_err();
    to.run(async |client| client.subvolume_delete("d").await.unwrap());
    assert!(matches!(to.get("d"), Err(StoreError::NotFound { .. })));
    to.receive("d", &whole).unwrap();
    assert!(to.content("d") == from.content("s0"));
    to.check();
}
