use engine_base::random::Random;

use super::*;
use crate::testing::with_seeds;

const BLOCK: usize = BLOCK_SIZE as usize;

fn all() -> Vec<Compression> {
    let mut all = vec![Compression::Lz4];
    all.extend((1..=9).map(Compression::Gzip));
    all.extend((1..=19).map(Compression::Zstd));
    all
}

/// Words in random order: about as compressible as text is.
fn words(random: &mut Random, len: usize) -> Vec<u8> {
    let list = ["bucket ", "extent ", "journal ", "snapshot ", "of ", "the ", "and ", "\n"];
    let mut text = Vec::with_capacity(len + 16);
    while text.len() < len {
        text.extend_from_slice(random.pick(&list).as_bytes());
    }
    text.truncate(len);
    text
}

#[test]
fn what_was_encoded_is_decoded() {
    let codec = Codec::default();
    let mut random = Random::new(3);
    for compression in all() {
        for blocks in [2, 4, 8, 32] {
            let input = words(&mut random, blocks * BLOCK);
            let mut output = vec![0xee; (blocks - 1) * BLOCK];
            let stored = codec.encode(compression, &input, &mut output).unwrap();
            assert!(stored < blocks, "{compression}");
            let mut decoded = vec![0; input.len()];
            let algorithm = compression.algorithm().unwrap();
            codec.decode(algorithm, &output[..stored * BLOCK], &mut decoded).unwrap();
            assert!(decoded == input, "{compression}");
        }
    }
}

#[test]
fn what_does_not_shrink_by_a_block_is_left_alone() {
    let codec = Codec::default();
    let mut random = Random::new(5);
    let mut noise = vec![0; 4 * BLOCK];
    random.fill(&mut noise);
    let mut output = vec![0; 3 * BLOCK];
    for compression in all() {
        assert_eq!(codec.encode(compression, &noise, &mut output), None, "{compression}");
    }
    let counter = |name: &str| {
        let mut counters = Vec::new();
        codec.counters(&mut counters);
        counters.into_iter().find(|(known, _)| *known == name).unwrap().1
    };
    assert_eq!(counter("compression_refused_blocks"), 4, "LZ4 is not kept from trying");
    assert_eq!(counter("compression_skipped_blocks"), 28 * 4);
    // Noise that repeats looks like noise, and shrinks.
    let block = noise[..BLOCK].to_vec();
    let repeated = block.repeat(4);
    let stored = codec.encode(Compression::Zstd(3), &repeated, &mut output);
    assert!(stored.is_some_and(|blocks| blocks <= 2), "{stored:?}");
    assert_eq!(codec.encode(Compression::None, &repeated, &mut output), None);
}

/// Frames as other programs make them: what this format promises is what its decoders must take.
#[test]
fn known_answers() {
    let codec = Codec::default();
    let expected: Vec<u8> = b"cairn ".iter().copied().cycle().take(2 * BLOCK).collect();
    let decode = |algorithm, body: &[u8]| {
        let mut frame = (body.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(body);
        frame.resize(frame.len().next_multiple_of(BLOCK), 0);
        let mut output = vec![0; 2 * BLOCK];
        codec.decode(algorithm, &frame, &mut output).unwrap();
        assert!(output == expected, "{algorithm}");
    };
    // A block of what `lz4` 1.9.4 makes, zlib's DEFLATE (wbits -15, level 6), and what `zstd -3` 1.5.4 makes.
    decode(Algorithm::Lz4, &hex(include_str!("known/lz4.hex")));
    decode(Algorithm::Gzip, &hex(include_str!("known/deflate.hex")));
    decode(Algorithm::Zstd, &hex(include_str!("known/zstd.hex")));
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.trim().bytes().collect();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

#[test]
fn damage_is_an_error_or_other_bytes_but_no_panic() {
    with_seeds(|seed| {
        let codec = Codec::default();
        let mut random = Random::new(seed);
        let input = words(&mut random, 4 * BLOCK);
        for compression in [Compression::Lz4, Compression::Gzip(6), Compression::Zstd(3)] {
            let mut output = vec![0; 3 * BLOCK];
            let stored = codec.encode(compression, &input, &mut output).unwrap();
            let algorithm = compression.algorithm().unwrap();
            let mut decoded = vec![0; 4 * BLOCK];
            for _ in 0..50 {
                let mut bad = output[..stored * BLOCK].to_vec();
                for _ in 0..1 + random.below(4) {
                    let at = random.below(bad.len() as u64) as usize;
                    bad[at] ^= 1 << random.below(8);
                }
                let _ = codec.decode(algorithm, &bad, &mut decoded);
            }
            let frame = &output[..stored * BLOCK];
            assert!(codec.decode(algorithm, &frame[..3], &mut decoded).is_err());
            assert!(codec.decode(algorithm, frame, &mut decoded[..3 * BLOCK]).is_err());
            assert!(codec.decode(algorithm, frame, &mut vec![0; 5 * BLOCK]).is_err());
            let mut long = frame.to_vec();
            long[..4].copy_from_slice(&u32::MAX.to_le_bytes());
            assert!(codec.decode(algorithm, &long, &mut decoded).is_err());
            // And after all that it is as good as new.
            codec.decode(algorithm, frame, &mut decoded).unwrap();
            assert!(decoded == input);
        }
    });
}

#[test]
fn names_are_read_as_they_are_written() {
    for compression in all().into_iter().chain([Compression::None]) {
        assert_eq!(compression.to_string().parse::<Compression>(), Ok(compression));
        assert_eq!(Compression::new(compression.algorithm(), compression.level()), Ok(compression));
    }
    assert_eq!("zstd".parse(), Ok(Compression::Zstd(3)));
    assert_eq!("gzip".parse(), Ok(Compression::Gzip(6)));
    for bad in ["", "zstd:0", "zstd:20", "gzip:10", "lz4:1", "none:1", "zstd:-1", "zstd:x", "LZ4"] {
        assert!(bad.parse::<Compression>().is_err(), "{bad}");
    }
    for number in 0..=u8::MAX {
        let known = Algorithm::from_disk(number);
        assert!(known.is_none_or(|algorithm| algorithm.to_disk() == number));
        assert_eq!(known.is_some(), (1..=3).contains(&number));
    }
}
