//! A short run of the fuzz bodies without a fuzzer: well-formed streams, mutated from a seed.
//!
//! `FUZZ_SEED` chooses the seed, `FUZZ_ROUNDS` the number of mutations.

use engine_base::random::Random;
use nvme_target::testing::{connection_stream, connection_stream_corpus, pdu_header, sqe_parse};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..random.range(1, 4) {
        let place = random.below(bytes.len() as u64) as usize;
        // Headers are in front: half of the mutations go there.
        let place = if random.chance(1, 2) { place.min(200) } else { place };
        match random.below(6) {
            0 => bytes[place] ^= 1 << random.below(8),
            1 => bytes[place] = random.next_u64() as u8,
            2 => bytes[place] = *random.pick(&[0, 1, 0x7f, 0x80, 0xff]),
            3 => bytes.truncate(place.max(1)),
            4 => {
                let end = (place + random.range(1, 64) as usize).min(bytes.len());
                let part = bytes[place..end].to_vec();
                bytes.extend(part);
            }
            _ => {
                let end = (place + random.range(1, 8) as usize).min(bytes.len());
                random.fill(&mut bytes[place..end]);
            }
        }
    }
}

#[test]
fn mutated_streams_neither_panic_nor_leak() {
    let seed = number("FUZZ_SEED", 1);
    println!("FUZZ_SEED={seed}");
    let mut random = Random::new(seed);
    let corpus = connection_stream_corpus();
    corpus.iter().for_each(|stream| connection_stream(stream));
    for _ in 0..number("FUZZ_ROUNDS", 3000) {
        let mut stream = random.pick(&corpus).clone();
        mutate(&mut stream, &mut random);
        connection_stream(&stream);
    }
}

#[test]
fn random_headers_and_entries_parse_or_fail() {
    let seed = number("FUZZ_SEED", 1);
    println!("FUZZ_SEED={seed}");
    let mut random = Random::new(seed);
    for _ in 0..number("FUZZ_ROUNDS", 3000) * 10 {
        let mut bytes = [0; 140];
        random.fill(&mut bytes);
        // Likely types and lengths, so that more than the first check is reached.
        if random.chance(3, 4) {
            bytes[1] = random.below(10) as u8;
            bytes[3] = *random.pick(&[24, 72, 128]);
            bytes[4] = random.below(40) as u8 * 4;
            bytes[6..9].fill(0);
            bytes[6] = random.below(2) as u8;
        }
        pdu_header(&bytes);
        bytes[0] = random.below(32) as u8;
        sqe_parse(&bytes);
    }
}
