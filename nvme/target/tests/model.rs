//! Random commands against a model of the volume, over a byte stream that is cut at random.
//!
//! `MODEL_SEED` chooses the seed; without it a fixed set runs.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use engine_base::random::Random;
use nvme_spec::Status;
use nvme_target::Limits;
use nvme_target::testing::{HostOptions, InProcess};

const BLOCKS: u64 = 96;
const STEPS: usize = 60;

struct Expected {
    link: usize,
    cid: u16,
    status: Status,
    data: Vec<u8>,
}

fn run(seed: u64) {
    let mut random = Random::new(seed);
    let options = HostOptions {
        header_digest: random.chance(1, 2),
        data_digest: random.chance(1, 2),
        data_alignment: random.below(32) as u8,
        disable_flow_control: random.chance(1, 2),
        h2c_data_max: *random.pick(&[0, 4096, 8192]),
    };
    let shift = *random.pick(&[9_u8, 12]);
    let limits = Limits {
        transfer_len_max_log2: 17,
        inflight_bytes_per_connection_max: 192 << 10,
        inflight_bytes_per_core_max: 256 << 10,
        ..Limits::default()
    };
    let mut t = InProcess::new(limits, shift, BLOCKS, Some(random.next_u64()));
    let (_, id) = t.connect_admin(options, 0);
    let links = [t.connect_io(options, id, 1), t.connect_io(options, id, 2)];
    let mut model = vec![0_u8; (BLOCKS << shift) as usize];
    for _ in 0..STEPS {
        // A batch whose writes do not overlap its other commands, so that the order does not matter.
        let mut free = 0;
        let mut expected = Vec::new();
        while free < BLOCKS && expected.len() < 24 {
            let first = free + random.below(4);
            let most = BLOCKS.saturating_sub(first).min((1 << 17 >> shift) as u64);
            if most == 0 {
                break;
            }
            let blocks = random.range(1, most.min(12));
            free = first + blocks;
            let range = (first << shift) as usize..((first + blocks) << shift) as usize;
            let link = *random.pick(&links);
            let host = &mut t.links[link].host;
            let bytes = range.len();
            let mut status = Status::SUCCESS;
            let mut data = Vec::new();
            let cid = match random.below(11) {
                0..=3 => {
                    let mut new = vec![0; bytes];
                    random.fill(&mut new);
                    model[range].copy_from_slice(&new);
                    let in_capsule = bytes <= 8192 && random.chance(1, 2);
                    host.write(1, first, blocks as u32, &new, in_capsule)
                }
                4..=6 => {
                    data = model[range].to_vec();
                    host.read(1, first, blocks as u32, bytes as u32)
                }
                7 => {
                    model[range].fill(0);
                    host.write_zeroes(1, first, blocks as u32)
                }
                8 => {
                    model[range].fill(0);
                    let in_capsule = random.chance(1, 2);
                    host.deallocate(1, &[(first, blocks as u32)], in_capsule)
                }
                9 if blocks >= 2 => {
                    // The second half becomes the first, in two ranges where there are two blocks.
                    let (half, in_capsule) = (blocks as u32 / 2, random.chance(1, 2));
                    let len = (half as usize) << shift;
                    model.copy_within(range.start..range.start + len, range.start + len);
                    let ranges = [(first, 1), (first + 1, half - 1)];
                    let count = if half > 1 { 2 } else { 1 };
                    host.copy(1, first + u64::from(half), &ranges[..count], in_capsule)
                }
                _ => {
                    status = Status::LBA_OUT_OF_RANGE;
                    host.read(1, BLOCKS - 1, 2, 2 << shift)
                }
            };
            expected.push(Expected { link, cid, status, data });
        }
        let held = random.chance(1, 3);
        t.volume.hold(held);
        t.pump();
        if held {
            t.volume.hold(false);
        }
        for _ in 0..expected.len() + 1 {
            t.pump();
        }
        for e in expected {
            let answer = t.links[e.link].host.take_answer(e.cid);
            let answer = answer.unwrap_or_else(|| panic!("seed {seed}: command {} lost", e.cid));
            assert_eq!(answer.status(), e.status, "seed {seed}");
            assert!(answer.data == e.data, "seed {seed}: command {} read other bytes", e.cid);
        }
        assert_eq!(t.context.inflight_bytes(), 0, "seed {seed}");
    }
    assert!(t.volume.bytes(0, model.len()) == model, "seed {seed}: the volumes differ");
}

#[test]
fn random_commands_match_the_model() {
    match std::env::var("MODEL_SEED") {
        Ok(seed) => run(seed.parse().expect("MODEL_SEED is a number")),
        Err(_) => (0..16).for_each(|seed| {
            println!("seed {seed}");
            run(seed);
        }),
    }
}
