//! Changes to what lies on a pool's disks: bits, blocks, and fields of structures whose checksum is then
//! made right again, so that what stands behind the checksum has to deal with them.
//!
//! The structures are known here by docs/format.md alone: each has its checksum first, which covers
//! the rest and then the place as u64.

use std::ops::Range;

use engine_base::checksum::{crc32c, crc32c_append};
use engine_base::random::Random;

use crate::disk::SimDisk;

const BLOCK: u64 = 4096;
const SUPERBLOCK_BYTES: usize = 65536;

/// A structure with a checksum of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Superblock,
    JournalEntry,
    Bset,
    Summary,
}

impl Kind {
    /// What `bytes` begin as, and for how many bytes it says that it goes on.
    fn of(bytes: &[u8]) -> Option<(Self, usize)> {
        let word = |at: usize| {
            bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes).map(|word| word as usize)
        };
        let known = |at: usize, magic: &[u8]| bytes.get(at..at + magic.len()) == Some(magic);
        if known(8, b"CAIRNPL\0") {
            Some((Self::Superblock, SUPERBLOCK_BYTES))
        } else if known(8, b"CAIRNJE\0") {
            Some((Self::JournalEntry, word(4)?.checked_add(56)?))
        } else if known(4, b"CBST") {
            Some((Self::Bset, word(24)?.checked_add(84)?))
        } else if known(8, b"CAIRNSU\0") {
            Some((Self::Summary, word(4)?.checked_mul(24)?.checked_add(24)?))
        } else {
            None
        }
    }
}

/// Where a structure lies.
#[derive(Clone, Copy, Debug)]
struct Found {
    disk: usize,
    page: u64,
    kind: Kind,
    /// Its bytes.
    len: usize,
    /// Of a journal entry: its number.
    seq: u64,
}

/// Longest structure that is looked at: a journal entry.
const STRUCTURE_BYTES_MAX: usize = 1 << 20;

/// The disks of a pool, its journals known.
pub(super) struct Mutator<'a> {
    pub(super) disks: &'a [SimDisk],
    pub(super) journals: &'a [(usize, Range<u64>)],
}

impl Mutator<'_> {
    /// Changes something; gives what, in words.
    pub(super) fn mutate(&self, random: &mut Random) -> String {
        match random.below(8) {
            0 => self.flip_bits(random),
            1 => self.change_block(random),
            _ => self.change_structure(random),
        }
    }

    fn some_page(&self, random: &mut Random) -> (usize, u64) {
        let disk = random.below(self.disks.len() as u64) as usize;
        let pages = self.disks[disk].written_pages();
        (disk, if pages.is_empty() { 0 } else { *random.pick(&pages) })
    }

    fn flip_bits(&self, random: &mut Random) -> String {
        let (disk, page) = self.some_page(random);
        let mut bytes = self.disks[disk].peek(page * BLOCK, BLOCK as usize);
        let count = random.range(1, 4);
        for _ in 0..count {
            bytes[random.below(BLOCK) as usize] ^= 1 << random.below(8);
        }
        self.disks[disk].poke(page * BLOCK, &bytes);
        format!("{count} bits of block {page} of disk {disk}")
    }

    fn change_block(&self, random: &mut Random) -> String {
        let (disk, page) = self.some_page(random);
        let mut bytes = vec![0; BLOCK as usize];
        let with = match random.below(3) {
            0 => "zeroes".to_owned(),
            1 => {
                random.fill(&mut bytes);
                "noise".to_owned()
            }
            _ => {
                let (from_disk, from) = self.some_page(random);
                bytes = self.disks[from_disk].peek(from * BLOCK, BLOCK as usize);
                format!("block {from} of disk {from_disk}")
            }
        };
        self.disks[disk].poke(page * BLOCK, &bytes);
        format!("block {page} of disk {disk}: {with}")
    }

    fn change_structure(&self, random: &mut Random) -> String {
        let found = self.structures();
        let mut kinds: Vec<Kind> = found.iter().map(|found| found.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        if kinds.is_empty() {
            return "nothing: no structure is left".to_owned();
        }
        let kind = *random.pick(&kinds);
        let mut of_kind: Vec<&Found> = found.iter().filter(|found| found.kind == kind).collect();
        if kind == Kind::JournalEntry && random.chance(1, 2) {
            // The newest are those that recovery takes.
            of_kind.sort_unstable_by_key(|found| std::cmp::Reverse(found.seq));
            of_kind.truncate(4);
        }
        let chosen = **random.pick(&of_kind);
        let base = chosen.page * BLOCK;
        let mut bytes = self.disks[chosen.disk].peek(base, chosen.len);
        let mut words = Vec::new();
        for _ in 0..random.range(1, 4) {
            words.push(edit(random, &mut bytes));
        }
        let places = match kind {
            // All copies alike, or the others mend it.
            Kind::Superblock => found.iter().filter(|other| other.kind == kind).collect(),
            _ => vec![&chosen],
        };
        for place in places {
            self.seal(place, &mut bytes);
            self.disks[place.disk].poke(place.page * BLOCK, &bytes);
        }
        let (page, disk) = (chosen.page, chosen.disk);
        format!("{kind:?} at block {page} of disk {disk}: {}", words.join(", "))
    }

    /// Makes the checksum right for a place.
    fn seal(&self, place: &Found, bytes: &mut [u8]) {
        let len = Kind::of(bytes).map_or(place.len, |(_, len)| len).clamp(4, bytes.len());
        let journal = self
            .journals
            .iter()
            .find(|(member, pages)| *member == place.disk && pages.contains(&place.page));
        let offset = match (place.kind, journal) {
            (Kind::JournalEntry, Some((_, pages))) => (place.page - pages.start) * BLOCK,
            _ => place.page * BLOCK,
        };
        let crc = crc32c_append(crc32c(&[0; 4]), &bytes[4..len]);
        let crc = crc32c_append(crc, &offset.to_le_bytes());
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Everything that begins as a structure does.
    fn structures(&self) -> Vec<Found> {
        let mut all = Vec::new();
        for (disk, handle) in self.disks.iter().enumerate() {
            for page in handle.written_pages() {
                let head = handle.peek(page * BLOCK, BLOCK as usize);
                let Some((kind, len)) = Kind::of(&head) else { continue };
                let mut seq = [0; 8];
                seq.copy_from_slice(&head[32..40]);
                let seq = u64::from_le_bytes(seq);
                let len = len.clamp(64, STRUCTURE_BYTES_MAX);
                all.push(Found { disk, page, kind, len, seq });
            }
        }
        all
    }
}

/// Values on which programs stumble.
const VALUES: [u64; 12] = [
    0,
    1,
    2,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 40,
    1 << 60,
    i64::MAX as u64,
    u64::MAX,
];

/// One change of a structure's bytes behind its checksum.
fn edit(random: &mut Random, bytes: &mut [u8]) -> String {
    let len = bytes.len();
    // Headers and what follows them decide most.
    let near = if random.chance(1, 2) { len.min(256) } else { len };
    let at = random.range(4, near as u64 - 1) as usize;
    match random.below(6) {
        0 => {
            bytes[at] ^= 1 << random.below(8);
            format!("bit of byte {at}")
        }
        1 => {
            bytes[at] = random.next_u64() as u8;
            format!("byte {at}")
        }
        2 => {
            let by = if random.chance(1, 2) { 1 } else { u8::MAX };
            bytes[at] = bytes[at].wrapping_add(by);
            format!("byte {at} by one")
        }
        3 => {
            let from = random.range(4, len as u64 - 1) as usize;
            let count = (random.range(1, 64) as usize).min(len - at.max(from));
            bytes.copy_within(from..from + count, at);
            format!("{count} bytes from {from} to {at}")
        }
        _ => {
            let width = *random.pick(&[2, 4, 8]);
            let width = width.min(len - at);
            let value = random.pick(&VALUES).to_le_bytes();
            bytes[at..at + width].copy_from_slice(&value[..width]);
            format!("{width} bytes at {at} as {value:02x?}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_structure_is_found_and_sealed_as_the_engine_seals_it() {
        let base = crate::simulation::mutated::base(1).unwrap();
        let (executor, disks) = base.disks_for_tests();
        let mutator = Mutator { disks: &disks, journals: &base.journals };
        let found = mutator.structures();
        for kind in [Kind::Superblock, Kind::JournalEntry, Kind::Bset] {
            assert!(found.iter().any(|found| found.kind == kind), "no {kind:?}");
        }
        for found in found {
            let bytes = disks[found.disk].peek(found.page * BLOCK, found.len);
            let mut sealed = bytes.clone();
            mutator.seal(&found, &mut sealed);
            assert_eq!(bytes[..4], sealed[..4], "{found:?}");
        }
        drop(executor);
    }
}
