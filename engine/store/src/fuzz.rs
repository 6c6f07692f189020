//! Every decoder of what is on disk, on bytes from outside: must answer, never panic, hang or take more
//! memory than the bytes warrant.

use crate::btree::NodePointer;
use crate::btree::format::read_bset;
use crate::extent::Extent;
use crate::journal::format::{parse_entry, records};
use crate::logged::Intent;
use crate::namespace::{Entry, Hashed, Inode, Xattr};
use crate::space::format::{BucketCheckpoint, decode_counter, decode_summary};
use crate::subvolume::format::{PoolName, Root, decode_subvolume};
use crate::superblock::{SUPERBLOCK_BYTES, Superblock};

/// Feeds `bytes` to all decoders, as they are and with the checksums of framed structures made right.
pub fn decoders(bytes: &[u8]) {
    let _ = Extent::decode(bytes);
    let _ = NodePointer::decode(bytes);
    let _ = crate::damage::Damage::decode(bytes);
    let _ = Inode::decode(bytes);
    let _ = Entry::decode(bytes);
    let _ = Xattr::decode(bytes);
    let _ = Intent::decode(bytes);
    let _ = Root::decode(bytes);
    let _ = PoolName::decode(bytes);
    let _ = decode_subvolume(1, bytes);
    let _ = BucketCheckpoint::decode(bytes);
    let _ = decode_counter(bytes);
    let _ = decode_summary(bytes, 1, 0);
    let _ = read_bset(bytes, 0, |_, _| ());
    // What checksums keep from strangers, a bug of ours could still write.
    let _ = records(bytes).count();
    if let Some((_, rest)) = parse_entry(bytes, [0; 16], 0, 0) {
        let _ = records(rest).count();
    }
    let mut copy = vec![0; SUPERBLOCK_BYTES];
    let len = bytes.len().min(copy.len());
    copy[..len].copy_from_slice(&bytes[..len]);
    let _ = Superblock::decode(&copy, 65536);
    Superblock::seal(&mut copy, 65536);
    if let Ok((superblock, _)) = Superblock::decode(&copy, 65536) {
        assert_eq!(superblock.validate(), Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use super::decoders;
    use crate::extent::Pointer;
    use engine_base::random::Random;

    /// A short fuzz run without a fuzzer: damaged samples and noise. FUZZ_SEED replays one.
    #[test]
    fn decoders_answer_whatever_the_bytes() {
        let seed = std::env::var("FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
        println!("FUZZ_SEED={seed}");
        let mut random = Random::new(seed);
        let extent = crate::extent::Extent {
            blocks: 2,
            pointers: [Pointer { member: 0, generation: 1, block: 9 }].into_iter().collect(),
            checksums: [1, 2].into_iter().collect(),
        };
        let superblock = crate::superblock::sample_for_tests().encode(0, 65536);
        let samples = [extent.encode().to_vec(), superblock, vec![0; 200]];
        for _ in 0..3000 {
            let mut bytes = random.pick(&samples).clone();
            for _ in 0..random.below(6) {
                let at = random.below(bytes.len().min(4400) as u64) as usize;
                bytes[at] = random.next_u64() as u8;
            }
            if random.chance(1, 3) {
                bytes.truncate(random.below(bytes.len() as u64) as usize);
            }
            decoders(&bytes);
        }
    }
}
