//! Every decoder of what is on disk, on bytes from outside: must answer, never panic, hang or take more
//! memory than the bytes warrant.

use engine_base::SnapshotId;
use engine_base::checksum::{crc32c, crc32c_append};

use crate::api::VersionNode;
use crate::btree::NodePointer;
use crate::btree::format::read_bset;
use crate::codec::{Algorithm, Codec};
use crate::extent::Extent;
use crate::journal::Record;
use crate::journal::format::{parse_entry, records};
use crate::key::{Position, Tree};
use crate::logged::Intent;
use crate::namespace::{Entry, Hashed, Inode, Xattr};
use crate::space::format::{BucketCheckpoint, decode_counter, decode_summary};
use crate::subvolume::format::{PoolName, Root, decode_subvolume};
use crate::superblock::{SUPERBLOCK_BYTES, Superblock};

/// Feeds `bytes` to all decoders, as they are and with the checksums of framed structures made right.
pub fn decoders(bytes: &[u8]) {
    let _ = Extent::decode(bytes);
    frames(bytes);
    let _ = NodePointer::decode(bytes);
    let _ = crate::damage::Damage::decode(bytes);
    let _ = crate::check::Verified::decode(bytes);
    let _ = Inode::decode_slot(bytes);
    let _ = Entry::decode(bytes);
    let _ = Xattr::decode(bytes);
    let _ = Intent::decode(bytes);
    let _ = Root::decode(bytes);
    let _ = PoolName::decode(bytes);
    let _ = decode_subvolume(1, bytes);
    let _ = VersionNode::decode(SnapshotId(u32::MAX / 2), bytes);
    let _ = BucketCheckpoint::decode(bytes);
    let _ = decode_counter(bytes);
    let _ = decode_summary(bytes, 1, 0);
    let _ = read_bset(bytes, 0, |_, _| ());
    let mut scrub = crate::dump::image::Scrub::new([1, 2]);
    for tree in Tree::ALL {
        let value = scrub.value(tree, 0, Position::MIN, bytes);
        assert_eq!(value.len(), bytes.len());
    }
    // What checksums keep from strangers, a bug of ours could still write.
    let _ = records(bytes).count();
    if let Some((_, rest)) = parse_entry(bytes, [0; 16], 0, 0) {
        let _ = records(rest).count();
    }
    framed(bytes);
    let mut copy = vec![0; SUPERBLOCK_BYTES];
    let len = bytes.len().min(copy.len());
    copy[..len].copy_from_slice(&bytes[..len]);
    let _ = Superblock::decode(&copy, 65536);
    Superblock::seal(&mut copy, 65536);
    if let Ok((superblock, _)) = Superblock::decode(&copy, 65536) {
        assert_eq!(superblock.validate(), Ok(()));
    }
}

/// Feeds `bytes` to the decoders of compressed blocks, with the length in front that fits.
fn frames(bytes: &[u8]) {
    thread_local! {
        static CODEC: Codec = Codec::default();
    }
    let mut framed = (bytes.len() as u32).to_le_bytes().to_vec();
    framed.extend_from_slice(bytes);
    let mut output = vec![0; 4 * 4096];
    CODEC.with(|codec| {
        for algorithm in [Algorithm::Lz4, Algorithm::Gzip, Algorithm::Zstd] {
            let _ = codec.decode(algorithm, bytes, &mut output);
            let _ = codec.decode(algorithm, &framed, &mut output);
        }
    });
}

/// Feeds `bytes` to the decoders of framed structures with the head that these ask for and a right
/// checksum, so that what stands behind the checksum sees them. Gives how many took them as theirs.
fn framed(bytes: &[u8]) -> usize {
    // Where the magic lies and what it is, where the length, what it counts, bytes of the header.
    const ENTRY: (usize, &[u8], usize, usize, usize) = (8, b"CAIRNJE\0", 4, 1, 56);
    const BSET: (usize, &[u8], usize, usize, usize) = (4, b"CBST\0", 24, 1, 84);
    const SUMMARY: (usize, &[u8], usize, usize, usize) = (8, b"CAIRNSU\0", 4, 24, 24);
    let frame = |(magic_at, magic, len_at, unit, header): (usize, &[u8], usize, usize, usize)| {
        let mut framed = bytes.to_vec();
        framed.resize(framed.len().max(header), 0);
        framed[magic_at..magic_at + magic.len()].copy_from_slice(magic);
        let count = (framed.len() - header) / unit;
        framed[len_at..len_at + 4].copy_from_slice(&(count as u32).to_le_bytes());
        framed.truncate(header + count * unit);
        framed
    };
    let seal = |mut framed: Vec<u8>| {
        let crc = crc32c_append(crc32c(&[0; 4]), &framed[4..]);
        let crc = crc32c_append(crc, &0_u64.to_le_bytes());
        framed[..4].copy_from_slice(&crc.to_le_bytes());
        framed
    };
    let mut entry = frame(ENTRY);
    // Pool and shard.
    entry[16..32].fill(0);
    entry[48..50].fill(0);
    let mut summary = frame(SUMMARY);
    summary[16..20].copy_from_slice(&1_u32.to_le_bytes());
    let mut taken = 0;
    if let Some((_, rest)) = parse_entry(&seal(entry), [0; 16], 0, 0) {
        taken += 1;
        for record in records(rest).map_while(Result::ok) {
            match record {
                Record::Put { level: 0, value, .. } => drop(Extent::decode(value)),
                Record::Put { value, .. } => drop(NodePointer::decode(value)),
                Record::Root { pointer, .. } => drop(NodePointer::decode(pointer)),
                _ => {}
            }
        }
    }
    taken += usize::from(decode_summary(&seal(summary), 1, 0).is_some());
    // Bytes of a tree that is not known are refused, as are keys that are out of order.
    taken + usize::from(read_bset(&seal(frame(BSET)), 0, |_, _| ()).is_ok())
}

#[cfg(test)]
mod tests {
    use super::{decoders, framed};

    #[test]
    fn framed_bytes_come_past_the_checksums() {
        // A bset of no keys of tree 0 is one, too.
        assert!(framed(&[0; 56]) >= 2);
        assert!(framed(&[0; 84]) >= 2);
    }

    use crate::codec::Algorithm;
    use crate::extent::{Address, FramePart, Holder, Holders, Pointer, Sharing};
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
            ..crate::extent::Extent::default()
        };
        let part = FramePart { algorithm: Algorithm::Lz4, blocks: 8, offset: 3 };
        let compressed = crate::extent::Extent { frame: Some(part), ..extent.clone() };
        let superblock = crate::superblock::sample_for_tests().encode(0, 65536);
        let holder = Holder { inode: 3, version: 4, shift: 5 };
        let sharing = Sharing::Shared(Holders::one(holder));
        let shared = crate::extent::Extent { sharing, ..extent.clone() };
        let address = Address { space: Address::SPACES | 3, block: 9 };
        let reference = crate::extent::Extent::reference(address, 2);
        let [extent, compressed, shared, reference] =
            [extent, compressed, shared, reference].map(|extent| extent.encode().to_vec());
        let samples = [extent, compressed, shared, reference, superblock, vec![0; 200]];
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
