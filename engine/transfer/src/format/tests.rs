//! Streams written, taken apart, and damaged.

use engine_store::api::FileKind;

use super::*;
use crate::tree_frame::NodeAttributes;

fn begin(base: Option<[u8; 16]>) -> Begin {
    Begin {
        name: "monday".to_owned(),
        kind: SubvolumeKind::Volume,
        source: [1; 16],
        base,
        size_bytes: 1 << 30,
        block_size: 4096,
        options: SubvolumeOptions { compression: Compression::Zstd(5), frame_bytes: 1 << 15 },
        from: 8192,
        created_ns: 99,
    }
}

fn frames(base: Option<[u8; 16]>) -> Vec<Frame> {
    vec![
        Frame::Begin(begin(base)),
        Frame::Data { offset: 8192, bytes: vec![7; 4096] },
        Frame::Hole { offset: 12288, len: 1 << 20 },
        Frame::Data { offset: 1 << 29, bytes: vec![9; 8192] },
        Frame::End,
    ]
}

/// One of each kind that a stream of a file tree has.
fn tree_frames() -> Vec<Frame> {
    let begin = Begin { kind: SubvolumeKind::FileTree, size_bytes: 0, ..begin(Some([2; 16])) };
    let tree = [
        TreeFrame::Removed { id: 77, path: b"/old/name".to_vec() },
        TreeFrame::New {
            id: 78,
            kind: FileKind::Symlink,
            mode: 0o777,
            uid: 1000,
            gid: 100,
            target: b"../where".to_vec(),
        },
        TreeFrame::Name {
            id: 78,
            in_base: None,
            directory: 5,
            directory_in_base: Some(b"/old".to_vec()),
            name: b"link".to_vec(),
        },
        TreeFrame::Named,
        TreeFrame::Node { kind: FileKind::File, size: 5000, path: b"/old/file".to_vec() },
        TreeFrame::Xattr { name: b"user.a".to_vec(), value: vec![0, 255] },
        TreeFrame::Attributes(NodeAttributes {
            mode: 0o640,
            uid: 1,
            gid: 2,
            atime_ns: -5,
            mtime_ns: 1 << 60,
            xattrs: vec![b"user.a".to_vec(), b"user.bc".to_vec()],
        }),
    ];
    let mut frames = vec![Frame::Begin(begin), Frame::Place { position: 77 }];
    frames.extend(tree.map(Frame::Tree));
    frames.extend([Frame::Data { offset: 4096, bytes: vec![3; 904] }, Frame::End]);
    frames
}

fn encoded(frames: &[Frame]) -> Vec<Vec<u8>> {
    let mut encoder = Encoder::default();
    frames.iter().map(|frame| encoder.frame(frame)).collect()
}

/// All frames of a stream that comes in pieces of `piece` bytes.
fn decoded(stream: &[u8], piece: usize) -> Result<(Vec<Frame>, bool), StoreError> {
    let mut decoder = Decoder::default();
    let mut found = Vec::new();
    for bytes in stream.chunks(piece) {
        decoder.feed(bytes);
        while let Some(frame) = decoder.next_frame()? {
            found.push(frame);
        }
    }
    Ok((found, decoder.has_ended()))
}

#[test]
fn what_is_written_is_read_in_pieces_of_any_size() {
    for frames in [frames(None), frames(Some([2; 16])), tree_frames()] {
        let stream = encoded(&frames).concat();
        for piece in [1, 3, 24, 4096, 1 << 20] {
            assert_eq!(decoded(&stream, piece), Ok((frames.clone(), true)));
        }
    }
}

/// This version's bytes, kept: whoever changes them writes another version.
#[test]
fn the_stream_of_version_1_stays_as_it_is() {
    let stream = encoded(&frames(Some([2; 16]))).concat();
    assert_eq!(stream.len(), 12518);
    assert_eq!(engine_base::checksum::crc32c(&stream), GOLDEN_CRC);
    let stream = encoded(&tree_frames()).concat();
    assert_eq!((stream.len(), engine_base::checksum::crc32c(&stream)), GOLDEN_TREE);
}

#[test]
fn no_damage_goes_unnoticed() {
    no_damage_to_goes_unnoticed(&frames(None));
    no_damage_to_goes_unnoticed(&tree_frames());
}

fn no_damage_to_goes_unnoticed(frames: &[Frame]) {
    let stream = encoded(frames).concat();
    for at in 0..stream.len() {
        let mut damaged = stream.clone();
        damaged[at] ^= 1 << (at % 8);
        match decoded(&damaged, 4096) {
            // A length that is longer now: the stream looks cut off.
            Ok((_, ended)) => assert!(!ended, "byte {at}"),
            Err(error) => assert!(matches!(error, StoreError::InvalidArgument { .. }), "{error}"),
        }
        let (found, ended) = decoded(&stream[..at], 4096).unwrap();
        assert!(!ended && found.len() < frames.len(), "cut at {at}");
    }
}

#[test]
fn frames_left_out_twice_there_or_of_another_stream_are_refused() {
    let (own, other) = (encoded(&frames(None)), encoded(&frames(Some([2; 16]))));
    for at in 0..own.len() {
        let refused = |what: &str, frames: Vec<Vec<u8>>| {
            let error = decoded(&frames.concat(), 1 << 20).unwrap_err().to_string();
            assert!(error.contains("stream: "), "{what} {at}: {error}");
        };
        if at + 1 < own.len() {
            let mut frames = own.clone();
            frames.remove(at);
            refused("left out", frames);
        }
        let mut frames = own.clone();
        frames.insert(at, own[at].clone());
        refused("twice", frames);
        if at > 0 {
            let mut frames = own.clone();
            frames[at] = other[at].clone();
            refused("of another stream", frames);
        }
    }
    let newer = {
        let mut stream = own[0].clone();
        stream[HEADER_BYTES] = 2;
        stream[12..16].fill(0);
        let crc = engine_base::checksum::crc32c(&stream);
        stream[12..16].copy_from_slice(&crc.to_le_bytes());
        stream
    };
    let error = decoded(&newer, 100).unwrap_err().to_string();
    assert!(error.contains("version 2"), "{error}");
    let error = decoded(b"#!/bin/sh\n", 100).unwrap_err().to_string();
    assert!(error.contains("not one that cairn sent"), "{error}");
}

#[test]
fn random_bytes_give_errors_only() {
    let mut random = engine_base::random::Random::new(5);
    let streams = [frames(None), tree_frames()].map(|frames| encoded(&frames).concat());
    for round in 0..4000 {
        let mut bytes = streams[round % 2][..random.below(300) as usize].to_vec();
        for _ in 0..random.below(4) {
            if let Some(at) = bytes.len().checked_sub(1) {
                let at = random.below(at as u64 + 1) as usize;
                bytes[at] = random.below(256) as u8;
            }
        }
        fuzz(&bytes, random.below(300) as usize);
    }
}

#[test]
fn what_a_tree_frame_holds_must_fill_it() {
    for frame in tree_frames() {
        let Frame::Tree(frame) = frame else { continue };
        let (kind, payload) = frame.encode();
        assert_eq!(TreeFrame::decode(kind, &payload).as_ref(), Ok(&frame));
        for len in 0..payload.len() {
            let cut = TreeFrame::decode(kind, &payload[..len]);
            assert_ne!(cut.as_ref(), Ok(&frame), "{len} bytes");
        }
        // What ends with a path, a target or a value is as long as that.
        if [NAME, NAMED, ATTRIBUTES].contains(&kind) {
            let longer = [&payload[..], &[0]].concat();
            assert!(TreeFrame::decode(kind, &longer).is_err(), "{frame:?}");
        }
    }
    let error = TreeFrame::decode(NODE, &[9; 20]).unwrap_err().to_string();
    assert!(error.contains("kind 9"), "{error}");
}

/// Bytes and CRC-32C of [`tree_frames`] as a stream.
const GOLDEN_TREE: (usize, u32) = (1424, 0x39b4_9ba1);
/// CRC-32C of [`frames`] as a stream.
const GOLDEN_CRC: u32 = 0xbdd2_78c9;
