//! What is written: content from which one can tell, when it is read back, what it is, which version,
//! and whether all of it is there.

use anyhow::{Result, ensure};
use engine_base::random::Random;

/// Bytes of a block.
pub(crate) const BLOCK_BYTES: usize = 4096;
const MAGIC: u64 = 0x6372_6173_6862_6c6b; // "crashblk"

/// Content of version `version` (not 0) of object `object`, `len` bytes, at least 32.
pub(crate) fn fill(object: u64, version: u64, len: usize) -> Vec<u8> {
    assert!(version != 0 && len >= 32, "version 0 is `never written`; the header has 32 bytes");
    let mut bytes = vec![0; len];
    Random::new(object ^ version.rotate_left(32)).fill(&mut bytes);
    for (slot, word) in [MAGIC, object, version, len as u64].into_iter().enumerate() {
        bytes[slot * 8..slot * 8 + 8].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// The version of `object` that `bytes` hold; 0 when they are all zero, as before the first write.
///
/// # Errors
/// When they are neither, or only a part of a version.
pub(crate) fn version_of(object: u64, bytes: &[u8]) -> Result<u64> {
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(0);
    }
    ensure!(bytes.len() >= 32, "{} bytes are no version of anything", bytes.len());
    let word = |slot: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[slot * 8..slot * 8 + 8]);
        u64::from_le_bytes(word)
    };
    ensure!(word(0) == MAGIC, "not written by this test: starts with {:#x}", word(0));
    ensure!(word(1) == object, "belongs to object {:#x}, not {object:#x}", word(1));
    ensure!(word(3) == bytes.len() as u64, "{} bytes of a version with {}", bytes.len(), word(3));
    let version = word(2);
    ensure!(version != 0, "a header without a version");
    let expected = fill(object, version, bytes.len());
    if let Some(at) = expected.iter().zip(bytes).position(|(a, b)| a != b) {
        anyhow::bail!("version {version} of object {object:#x} is torn at byte {at}");
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_tells_what_it_is() {
        let bytes = fill(7, 3, BLOCK_BYTES);
        assert_eq!(version_of(7, &bytes).unwrap(), 3);
        assert_eq!(version_of(7, &[0; BLOCK_BYTES]).unwrap(), 0);
    }

    #[test]
    fn damage_is_seen() {
        let bytes = fill(7, 3, BLOCK_BYTES);
        assert!(version_of(8, &bytes).is_err(), "misplaced");
        assert!(version_of(7, &bytes[..2048]).is_err(), "cut off");
        let mut torn = bytes.clone();
        torn[2048..].copy_from_slice(&fill(7, 2, BLOCK_BYTES)[2048..]);
        assert!(version_of(7, &torn).is_err(), "torn");
        let mut zeroed = bytes;
        zeroed[2048..].fill(0);
        assert!(version_of(7, &zeroed).is_err(), "half zero");
    }
}
