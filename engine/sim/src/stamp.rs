//! What the simulator writes: every block says where it belongs and which write made it, so that lost,
//! stale, misplaced and mixed data are told apart.

use engine_base::BLOCK_SIZE;

const BLOCK_WORDS: usize = BLOCK_SIZE as usize / 8;
const MAGIC: u64 = 0x6361_6972_6e73_696d;

/// What a block of a volume was found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Zeroes: never written, or discarded.
    Zeroes,
    /// The whole content of one write, at its place.
    Version(u64),
    /// A whole block of a write to another place.
    Misplaced {
        /// Volume it was written to.
        volume: u64,
        /// Block it was written to.
        block: u64,
        /// Its version.
        version: u64,
    },
    /// Begins as a write of this version does, and is not that write.
    Mixed {
        /// Version in its head.
        version: u64,
        /// First byte that differs.
        at: usize,
    },
    /// Nothing that was ever written.
    Garbage,
}

fn next_word(word: u64) -> u64 {
    word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f)
}

fn first_filler(volume: u64, block: u64, version: u64) -> u64 {
    next_word(volume ^ block.rotate_left(24) ^ version.rotate_left(48) ^ MAGIC)
}

/// The word after `word` in a block: cheap, as most of what a run does is to fill and compare blocks.
fn next_filler(word: u64) -> u64 {
    word.wrapping_add(0x9e37_79b9_7f4a_7c15)
}

/// What is added from word to word in a block of this version: every other one repeats its filler, so that it can be
/// compressed.
fn filler_of(version: u64, filler: u64) -> impl Fn(u64) -> u64 {
    let repeats = version.is_multiple_of(2);
    move |word| if repeats { filler } else { next_filler(word) }
}

/// Whether there are only zeroes.
pub fn is_zero(bytes: &[u8]) -> bool {
    const ZEROES: [u8; BLOCK_SIZE as usize] = [0; BLOCK_SIZE as usize];
    bytes.chunks(ZEROES.len()).all(|part| *part == ZEROES[..part.len()])
}

/// Fills one block with the stamp of `version` of `block` of `volume`.
pub fn write(bytes: &mut [u8], volume: u64, block: u64, version: u64) {
    assert_eq!(bytes.len() as u64, BLOCK_SIZE);
    let head = [MAGIC, volume, block, version];
    let mut filler = first_filler(volume, block, version);
    let next = filler_of(version, filler);
    for (index, chunk) in bytes.chunks_exact_mut(8).enumerate() {
        let word = head.get(index).copied().unwrap_or(filler);
        chunk.copy_from_slice(&word.to_le_bytes());
        filler = next(filler);
    }
}

fn word(bytes: &[u8], index: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[index * 8..index * 8 + 8]);
    u64::from_le_bytes(word)
}

/// Tells what one block of `volume` holds.
#[must_use]
pub fn read(bytes: &[u8], volume: u64, block: u64) -> Found {
    assert_eq!(bytes.len() as u64, BLOCK_SIZE);
    if word(bytes, 0) != MAGIC {
        return if is_zero(bytes) { Found::Zeroes } else { Found::Garbage };
    }
    let (in_volume, in_block, version) = (word(bytes, 1), word(bytes, 2), word(bytes, 3));
    let mut filler = first_filler(in_volume, in_block, version);
    let next = filler_of(version, filler);
    for index in 0..BLOCK_WORDS {
        if index >= 4 && word(bytes, index) != filler {
            return Found::Mixed { version, at: index * 8 };
        }
        filler = next(filler);
    }
    if (in_volume, in_block) == (volume, block) {
        Found::Version(version)
    } else {
        Found::Misplaced { volume: in_volume, block: in_block, version }
    }
}

/// Fills `bytes`, which lie at `offset` of a file, with the content of write `version`. A byte depends
/// on the version and its own offset only; of every other version the same word fills 512 bytes, so that it can be
/// compressed.
pub fn write_file(bytes: &mut [u8], offset: u64, version: u64) {
    let mut at = 0;
    while at < bytes.len() {
        let position = offset + at as u64;
        let unit = if version.is_multiple_of(2) { position / 512 } else { position / 8 };
        let word = next_word(next_word(unit ^ version.rotate_left(32) ^ MAGIC));
        let skip = (position % 8) as usize;
        // The low bits of this generator repeat early: take them from the top.
        let raw = word.rotate_left(29).to_le_bytes();
        let take = (8 - skip).min(bytes.len() - at);
        bytes[at..at + take].copy_from_slice(&raw[skip..skip + take]);
        at += take;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_damage_is_recognised() {
        let mut block = vec![0; 4096];
        assert_eq!(read(&block, 1, 2), Found::Zeroes);
        write(&mut block, 1, 2, 3);
        assert_eq!(read(&block, 1, 2), Found::Version(3));
        assert_eq!(read(&block, 1, 4), Found::Misplaced { volume: 1, block: 2, version: 3 });
        let mut newer = vec![0; 4096];
        write(&mut newer, 1, 2, 4);
        block[512..].copy_from_slice(&newer[512..]);
        assert_eq!(read(&block, 1, 2), Found::Mixed { version: 3, at: 512 });
        block[0] ^= 1;
        assert_eq!(read(&block, 1, 2), Found::Garbage);
    }

    #[test]
    fn file_content_does_not_depend_on_how_it_is_cut() {
        let mut whole = vec![0; 5000];
        write_file(&mut whole, 123, 9);
        let mut parts = vec![0; 5000];
        let (head, tail) = parts.split_at_mut(1003);
        write_file(head, 123, 9);
        write_file(tail, 123 + 1003, 9);
        assert_eq!(whole, parts);
        write_file(&mut parts, 123, 10);
        assert_ne!(whole, parts);
    }
}
